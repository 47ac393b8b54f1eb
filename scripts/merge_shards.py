"""One report out of the shards of an evaluation: python scripts/merge_shards.py SWEEP_DIR, or RUN RUN … --out DIR

    python eval.py -m policy=released shard=0,1,2,3 shards=4                 # merges at its end by itself
    python scripts/merge_shards.py outputs/runs/eval_sweep/2026-11-28_10-00-00     # by hand, into merged/ there
    python scripts/merge_shards.py runs/a runs/b --out runs/whole                  # of shards that were run one by one

The merged folder is that of a run that was not divided: the same episodes in the same order, and the same report.
"""

from __future__ import annotations

from rsd.evaluation.shards import MergeError, merge_below, merge_shards, read_shard
from rsd.evaluation.terminal import show_report
from rsd.options import Options, new_folder, old_folder, reported


@reported
def main() -> None:
    """Command line."""
    parser = Options(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=old_folder, nargs="+", help="a sweep's folder, or one run folder a shard")
    parser.add_argument("--out", type=new_folder, metavar="DIR", help="the merged run; SWEEP_DIR/merged by default")
    asked = parser.parse_args()
    is_sweep = len(asked.folders) == 1 and read_shard(asked.folders[0]) is None
    if is_sweep:
        merged = merge_below(asked.folders[0], asked.out)
    elif asked.out is None:
        parser.error("--out is not given, expected a folder for the merged run")
    else:
        merged = [(asked.out, merge_shards(asked.folders, asked.out))]
    if not merged:
        raise MergeError(f"{asked.folders[0]} holds no shards that are not merged yet; name a sweep's folder")
    for folder, report in merged:
        show_report(report, folder)


if __name__ == "__main__":
    main()
