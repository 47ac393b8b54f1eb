"""Milliseconds of a call of each policy of a study, with nothing beside it: python scripts/study_latency.py STUDY_DIR

Cells that differ only in what is done with a chunk (how much of it is executed, how late it is) ask the same policy, so
there is an arm for each combination of what is left. Each sees one recorded observation before any sees the next one,
in an order drawn anew, run eagerly; those that `--compiled` names, as cells, are run compiled, too. Ratios are over the
fastest way of the reference. Writes latency.json into the study's folder, and the study's page anew.

    python scripts/study_latency.py outputs/runs/eval_sweep/… --compiled "(1)" abc

What surprises first: an arm whose chunks are not those of the same policy run eagerly keeps its time and loses its
ratio.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a bare checkout, where the package is not installed

from rsd.commands.configured import configured_policy  # noqa: E402
from rsd.comparison.study import LATENCY_FILE, read_design, write_study  # noqa: E402
from rsd.errors import SettingError  # noqa: E402
from rsd.evaluation.open_loop import observed  # noqa: E402
from rsd.evaluation.parallel import device_names  # noqa: E402
from rsd.evaluation.replay import HELD_OUT, chosen_episodes  # noqa: E402
from rsd.files import write_atomically  # noqa: E402
from rsd.options import Options, any_path, held, old_folder, reported  # noqa: E402
from rsd.provenance import provenance  # noqa: E402
from rsd.runs import CONFIG_FILE, read_overrides  # noqa: E402
from rsd.settings import Count, Positive  # noqa: E402
from rsd.types import Observation, Policy  # noqa: E402
from scripts.latency.replay import AGREEING, TOLERANCE, in_turn, mean_ratio  # noqa: E402

WARMUP = 20  # calls of each before those that count
EPISODES = 3  # recorded ones
EVERY = 8  # control steps between the observations that are asked about


def arms(study_dir: Path) -> dict[str, Path]:
    """Name of an arm, of the first cell that has it, to that cell's folder.

    Raises:
        SettingError: the folder holds no study.
    """
    written = read_design(study_dir)
    if written is None:
        raise SettingError(f"{study_dir} holds no study; give the folder that python eval.py -m has named")
    found: dict[str, tuple[str, Path]] = {}
    for cell in written["cells"]:
        folder = study_dir / cell["folder"]
        if not (folder / CONFIG_FILE).is_file():
            continue
        asked = json.dumps(_asked(OmegaConf.load(folder / CONFIG_FILE)), sort_keys=True)
        found.setdefault(asked, (cell["name"], folder))
    return dict(found.values())


def _asked(cfg: Any) -> dict[str, Any]:
    """What decides on a call: not how much of its chunk is executed, nor how late it is."""
    decoding = OmegaConf.to_container(cfg.decoding.decode, resolve=True)
    assert isinstance(decoding, dict)
    while decoding["_target_"].endswith(("FixedHorizon", "Hold")):
        decoding = decoding["full"]
    backbone = OmegaConf.to_container(cfg.model.backbone, resolve=True)
    return {"backbone": backbone, "decoding": decoding, "layer": cfg.draft.layer, "draft": cfg.draft.name}


def loaded(folder: Path, execution: str, text_source: str | None = None) -> Policy:
    """The policy of a cell.

    Args:
        text_source: Files of the sentence encoder, where they are not where the cell found them.
    """
    cfg = OmegaConf.load(folder / CONFIG_FILE)
    assert isinstance(cfg, DictConfig)
    OmegaConf.update(cfg, "model.backbone.execution", execution)
    overrides = read_overrides(folder)
    if text_source is not None:
        OmegaConf.update(cfg, "text.sentences.source", text_source, force_add=True)
        if "text_source" in cfg.model.backbone:
            cfg.model.backbone.text_source = text_source
        overrides = [*overrides, f"text.sentences.source={text_source}"]  # what a folder's policy heeds
    return configured_policy(cfg, overrides, device_names(cfg.device)[0])


def recorded(folder: Path) -> list[list[Observation]]:
    """Observations of held-out episodes, one a chunk."""
    cfg = OmegaConf.load(folder / CONFIG_FILE)
    frames = instantiate(cfg.open_loop)(
        views=list(cfg.model.backbone.views), chunk_length=cfg.chunk, proprio=cfg.model.backbone.use_proprio
    ).frames[HELD_OUT]
    return [list(observed(frames, number)[::EVERY]) for number in chosen_episodes(frames, EPISODES)]


def measure(
    study_dir: Path, compiled: Sequence[str], *, calls: int, seconds: float, text_source: str | None = None
) -> dict[str, Any]:
    """The content of latency.json.

    Raises:
        SettingError: a cell to be compiled is no arm, or there is nothing to measure with.
    """
    end = time.monotonic() + seconds
    folders = arms(study_dir)
    if unknown := sorted(set(compiled) - set(folders)):
        raise SettingError(f"--compiled names {unknown}, expected some of {', '.join(folders)}")
    if not folders:
        raise SettingError(f"{study_dir} has no cell that was begun; run the study first")
    wanted = [(name, "eager") for name in folders] + [(name, "compiled") for name in compiled]
    policies = {f"{name} {how}": loaded(folders[name], how, text_source) for name, how in wanted}
    episodes = recorded(next(iter(folders.values())))
    made = in_turn(policies, episodes, warmup=WARMUP, calls=calls, left=lambda: end - time.monotonic())
    ms = {name: np.array([one.ms for one in asked]) for name, asked in made.items()}
    if not all(map(len, ms.values())):
        raise SettingError(f"after --seconds {seconds:g} no call was timed: {WARMUP} of each come before; give more")
    first = next(iter(folders))
    reference = min((f"{first} {how}" for name, how in wanted if name == first), key=lambda one: np.median(ms[one]))
    records = []
    for name, how in wanted:
        own, eager = made[f"{name} {how}"], made[f"{name} eager"]
        off = [float(np.abs(a.chunk.actions - b.chunk.actions).max()) for a, b in zip(own, eager, strict=True)]
        agreeing = float(np.mean(np.array(off) <= TOLERANCE))
        ratio = mean_ratio(ms[f"{name} {how}"], ms[reference]) if agreeing >= AGREEING[how] else None
        records.append(
            {
                "name": name,
                "execution": how,
                "median_ms": float(np.median(ms[f"{name} {how}"])),
                "p90_ms": float(np.percentile(ms[f"{name} {how}"], 90)),
                "base_ms": float(np.median([one.chunk.latency_ms.get("base_model", 0.0) for one in own])),
                "agreeing": agreeing,
                "off": max(off),
                "ratio": ratio and ratio["ratio"],
                "low": ratio and ratio["interval"][0],
                "high": ratio and ratio["interval"][1],
            }
        )
    start = provenance()
    return {"reference": reference, "calls": len(own), "device": start["device"], "arms": records, "start": start}


@reported
def main() -> None:
    """Command line."""
    parser = Options(description=__doc__.splitlines()[0])
    parser.add_argument("study_dir", type=old_folder, help="the study's folder, with one folder a cell")
    parser.add_argument("--compiled", nargs="+", default=[], metavar="CELL", help="cells that are run compiled, too")
    parser.add_argument("--calls", type=held(Count), default=200, help="timed calls of each (200)")
    parser.add_argument("--seconds", type=held(Positive), default=3600.0, help="after so many it ends early")
    parser.add_argument(
        "--text-source", type=any_path, help="files of the sentence encoder, of a policy that reads sentences"
    )
    asked = parser.parse_args()
    source = None if asked.text_source is None else str(asked.text_source)
    record = measure(asked.study_dir, asked.compiled, calls=asked.calls, seconds=asked.seconds, text_source=source)
    write_atomically(asked.study_dir / LATENCY_FILE, json.dumps(record, indent=1) + "\n")
    for one in record["arms"]:
        ratio = "–" if one["ratio"] is None else f"{one['ratio']:.2f} ({one['low']:.2f} … {one['high']:.2f})"
        print(f"{one['name']:<16} {one['execution']:<9} {one['median_ms']:8.1f} ms  {ratio}")
    write_study(asked.study_dir)


if __name__ == "__main__":
    main()
