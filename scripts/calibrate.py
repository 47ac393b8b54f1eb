"""Find the threshold of a gate that keeps a promise, and write it with its evidence into the policy's folder.

    python scripts/collect_demos.py demonstrator=policy policy=released env=libero_spatial data=libero_suites \
        num_episodes=200 seed=5 paths.data=outputs/held_out
    python scripts/calibrate.py released --decoding temporal --data outputs/held_out/libero_suites_no_noops/1.0.0

Promised is, for episodes like those of the data: at most a share --risk of an episode's chunks is the draft's and lies
further than --tau from what the base model would have done; but for a probability of --delta. See
rsd/policy/calibration.py.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from rsd.errors import SettingError
from rsd.options import Options, any_path, held, old_folder, reported
from rsd.settings import Device, Fraction, Positive

if TYPE_CHECKING:  # what needs torch is imported where it is used, so that --help comes at once
    from rsd.data.datasets import Demonstrations
    from rsd.decoding import MeanLogProb
    from rsd.policy.calibration import Point
    from rsd.types import Observation

ROWS = 9  # of the curve that are shown


def options() -> argparse.Namespace:
    """The command line."""
    parser = Options(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=any_path, help="of the policy; its policy.json is written")
    parser.add_argument("--data", type=old_folder, required=True, help="RLDS directory of episodes that were held out")
    parser.add_argument("--decoding", default="temporal", help="temporal, early_exit")
    parser.add_argument("--tau", type=held(Positive), default=0.2, help="what is wrong: further from the base model")
    parser.add_argument("--risk", type=held(Fraction), default=0.05, help="share of an episode's chunks that may be")
    parser.add_argument("--delta", type=held(Fraction), default=0.1, help="probability that the promise is not kept")
    parser.add_argument("--device", type=held(Device), default="cpu", help="where the models run")
    parser.add_argument("--dry-run", action="store_true", help="write nothing")
    return parser.parse_args()


def gated(folder: Path, name: str) -> tuple[MeanLogProb, int | None]:
    """The gate of the decoding of that name, which must have a threshold, and the stages that its draft is asked for.

    Raises:
        SettingError: it has none.
    """
    from rsd.decoding import EarlyExit, MeanLogProb, Temporal, from_json
    from rsd.policy.folder import read_record

    entries = read_record(folder)["decodings"]
    if name not in entries:
        raise SettingError(f"{folder} has no decoding {name!r}; it has {', '.join(entries)}")
    made = from_json({key: value for key, value in entries[name].items() if key not in ("target", "draft")})
    if not isinstance(made, EarlyExit | Temporal) or not isinstance(made.gate, MeanLogProb):
        raise SettingError(f"decoding {name!r} has no gate with a threshold; there is one in early_exit and temporal")
    return made.gate, made.num_draft_stages


def held_out(demonstrations: Demonstrations, trained_on: str, stride: int) -> list[list[Observation]]:
    """Frames of each episode at which a policy is asked, of episodes that the draft was not trained on.

    Args:
        trained_on: Content of the draft's training data; of the same set only the held-out split is taken.
    """
    from rsd.data.datasets import FrameDataset

    split = "val" if trained_on.startswith(demonstrations.content_id()) else "all"
    frames = FrameDataset(demonstrations, 1, split)
    episodes: dict[int, list[Observation]] = {}
    for row in range(len(frames)):
        if int(frames.step[row]) % stride == 0:
            episodes.setdefault(int(frames.episode[row]), []).append(frames[row]["observation"])
    print(f"{len(episodes)} episodes ({split}), {sum(map(len, episodes.values()))} frames, every {stride} steps")
    return list(episodes.values())


def show(points: list[Point], kept: Point) -> None:
    """Some rows of the curve, and the one that was taken."""
    table = Table("threshold", "lets through", "mean risk", "p")
    chosen = {round(i * (len(points) - 1) / (ROWS - 1)) for i in range(ROWS)} | {points.index(kept)}
    for number in sorted(chosen):
        one = points[number]
        style = "bold" if one is kept else None
        table.add_row(*(f"{v:.4g}" for v in (one.threshold, one.coverage, one.risk, one.p)), style=style)
    Console(highlight=False).print(table)


@reported
def main() -> None:
    """Command line."""
    asked = options()
    gate, num_stages = gated(asked.folder, asked.decoding)
    from rsd.checkpoint import load_checkpoint
    from rsd.data.datasets import Demonstrations
    from rsd.decoding import L1, EarlyExit
    from rsd.policy import load_folder
    from rsd.policy.calibration import Listening, Promise, calibrate, evidence, measure
    from rsd.policy.folder import calibrated, parts_in, read_record

    promise = Promise(tau=asked.tau, risk=asked.risk, delta=asked.delta)
    drafting = read_record(asked.folder)["decodings"][asked.decoding].get("draft", "draft")
    base = load_folder(asked.folder, decoding=L1(), device=asked.device)
    listening = Listening(gate=gate)
    proposing = EarlyExit(gate=listening, full=L1(), num_draft_stages=num_stages)
    draft = load_folder(asked.folder, decoding=proposing, draft=drafting, device=asked.device)
    part = load_checkpoint(parts_in(asked.folder)[drafting], kind="draft", produce="python train.py phase=draft")
    demonstrations = Demonstrations(asked.data, base.base.spec.views)
    episodes = held_out(demonstrations, str(part.provenance.get("data")), base.num_open_loop_steps)
    promise.check_episodes(len(episodes))
    draft.check_instructions(sorted({frame.instruction for episode in episodes for frame in episode}))
    measured = measure(draft, base, listening, episodes)
    kept, points = calibrate(measured, promise)
    show(points, kept)
    found = evidence(measured, promise, kept, points)
    print(
        f"threshold {kept.threshold:.4g}: {kept.coverage:.1%} of the chunks pass, mean risk {kept.risk:.2%} (promised: "
        f"{promise.risk:.2%} at tau {promise.tau:g}, delta {promise.delta:g}, {found['num_episodes']} episodes)"
    )
    if not asked.dry_run:
        data = {"name": demonstrations.name, "content": demonstrations.content_id()}
        calibrated(asked.folder, asked.decoding, kept.threshold, {"data": data, **found})
        print(f"written: {asked.folder / 'policy.json'}")


if __name__ == "__main__":
    main()
