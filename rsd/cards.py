"""README.md of a policy folder or of a data set: what its numbers mean, where they come from, how it is used.

Everything in a card is read from the folder's own files; what nobody has written down is not in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rsd.checkpoint import JSON_FILE
from rsd.data.datasets import Demonstrations
from rsd.data.rlds import RLDSDataset
from rsd.errors import RSDError
from rsd.models.openvla.loading import load_base
from rsd.policy.folder import base_arguments, parts_in, read_record
from rsd.record import read_json
from rsd.space import BOUNDS, Space

FRONT = "---\n{entries}---\n"
SHOWN_INSTRUCTIONS = 20


def policy_card(folder: Path, repo_id: str | None = None, license_name: str | None = None) -> str:
    """Of a policy folder.

    Args:
        repo_id: Where it will be; for the command that fetches it.
        license_name: As the hub names it; left out when None.

    Raises:
        CheckpointError: policy.json or a part is missing or damaged.
    """
    record, parts = read_record(folder), parts_in(folder)
    options = base_arguments(record["base"], parts.get("visual_tokens"))
    base = load_base(checkpoint=parts["base"], **options, device="meta")
    spec, space = base.spec, base.space
    rows = [
        ("pictures", f"{', '.join(spec.views)}, {base.image_size} px to the model"),
        ("proprio", "none" if spec.proprio_dim is None else f"{spec.proprio_dim} numbers"),
        ("action chunk", f"{spec.chunk_length} steps of {spec.action_dim} numbers"),
        ("executed steps", f"{record['num_open_loop_steps']} of {spec.chunk_length}"),
        ("unnorm_key", f"`{space.name}`"),
        ("Space digest", f"`{space.digest}`"),
        (
            "decodings",
            ", ".join(f"`{name}`" for name in record["decodings"]) + f"; `{record['decoding']}` unless asked",
        ),
    ]
    made = [(name, f"`{path.relative_to(folder).as_posix()}`", _weights(path)) for name, path in parts.items()]
    title = (repo_id or folder.resolve().name).rpartition("/")[2]
    return "\n".join(
        [
            _front(["robotics", "vision-language-action", "rsd"], license_name, "pipeline_tag: robotics\n"),
            f"# {title}\n",
            "A vision-language-action policy as a policy folder of rsd: data only, no code.\n",
            _fetching(repo_id, title, "model"),
            f'    policy = rsd.load("{title}")\n',
            "## What goes in and comes out\n",
            _table(("", ""), rows),
            "## Parts\n",
            _table(("part", "folder", "weights"), made),
            _statistics(space.statistics, space),
        ]
    )


def data_card(folder: Path, repo_id: str | None = None, license_name: str | None = None) -> str:
    """Of a data set, <root>/<name>/<version>.

    Args:
        repo_id, license_name: See `policy_card`.

    Raises:
        DataError: the folder holds no data set, or a damaged one.
    """
    rlds = RLDSDataset(folder)
    rows: list[tuple[str, ...]] = [
        ("episodes", str(len(rlds))),
        ("bytes", f"{rlds.num_bytes:,}"),
        ("unnorm_key", f"`{rlds.name}`"),
    ]
    said, words = "", []
    try:
        read = Demonstrations(folder)
        space = Space.from_statistics(read.name, read.norm_stats)
        rows += [("steps", str(sum(len(one.actions) for one in read.trajectories)))]
        rows += [("Space digest", f"`{space.digest}`")]
        words = sorted({word for one in read.trajectories for word in one.instructions})
        said = _statistics(read.norm_stats, space)
    except RSDError as error:  # another robot's: what it means stands in the configuration and not in the set
        rows += [("Space digest", "none: how it is recorded has to be declared (`data=rlds`, docs/data.md)")]
        said = f"## Statistics\n\nNot taken: {' '.join(str(error).split())}.\n"
    features = [
        (f"`{name}`", str(getattr(spec, "kind", "")), "×".join(map(str, getattr(spec, "shape", ()))) or "1")
        for name, spec in rlds.features.items()
    ]
    title = (repo_id or rlds.name).rpartition("/")[2]
    listed = [f"* {word}" for word in words[:SHOWN_INSTRUCTIONS]]
    if len(words) > SHOWN_INSTRUCTIONS:
        listed.append(f"* … {len(words) - SHOWN_INSTRUCTIONS} more")
    return "\n".join(
        [
            _front(["robotics", "rlds", "rsd"], license_name, "task_categories: [robotics]\n"),
            f"# {title}\n",
            "Demonstrations in RLDS (tensorflow-datasets) files, read by rsd without TensorFlow.\n",
            _fetching(repo_id, title, "dataset"),
            f"    python train.py phase=rfsq data=rlds data.root={title} data.name={rlds.name}\n",
            "## What it holds\n",
            _table(("", ""), rows),
            *(["## Instructions\n", "\n".join(listed) + "\n"] if listed else []),
            "## Features\n",
            _table(("feature", "kind", "shape"), features),
            said,
        ]
    )


def _front(tags: Sequence[str], license_name: str | None, more: str) -> str:
    """What the hub reads."""
    named = "" if license_name is None else f"license: {license_name}\n"
    return FRONT.format(entries=f"{named}library_name: rsd\n{more}tags: [{', '.join(tags)}]\n")


def _fetching(repo_id: str | None, title: str, kind: str) -> str:
    return f"    python scripts/hub.py pull {repo_id or f'OWNER/{title}'} {title} --type {kind}"


def _weights(part: Path) -> str:
    """Hash of a part's weights, shortened."""
    record = read_json(part / JSON_FILE)
    return f"`{record['sha256'][:12]}`" if isinstance(record, dict) and "sha256" in record else "published"


def _statistics(statistics: Mapping[str, Any], space: Space) -> str:
    """What the numbers of actions and proprio span."""
    text = ["## Statistics\n"]
    for part, bounds in (("action", space.action), ("proprio", space.proprio)):
        entry = statistics.get(part)
        if entry is None or bounds is None:
            continue
        names = [name for name in ("min", "q01", "mean", "std", "q99", "max") if name in entry]
        used = entry.get("mask") or [True] * len(bounds)
        rows = [
            (str(dim), *(f"{entry[name][dim]:.4g}" for name in names), "yes" if used[dim] else "no")
            for dim in range(len(bounds))
        ]
        low, high = BOUNDS[space.bounds]
        text += [f"{part}; −1 and 1 of the model stand for {low} and {high}:\n"]
        text += [_table(("dim", *names, "normalised"), rows)]
    return "\n".join(text)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + "\n"
