"""report.json, report.html and metrics.json of a replay (env=replay), made of its lines and its plan alone.

The verdict is the second sanity check of OpenVLA's guide: on the same frames, what training measured must come out of
the inference path, too. Normalisation, the preparation of pictures, their colours and rotation, proprio and words all
stand between the two.

report.json:
    schema      int, this layout's version
    complete    whether each planned episode is there
    verdict     {text, equal (bool, or null where nothing can be compared), training (see `Training`) or null}
    notes       list of texts: what else to know
    dims        names of the action dims
    splits      "val", "train" → see `summarize`
    tasks       list of {split, suite, instruction, num_episodes, num_chunks, l1, agreement}
    episodes    list of {split, episode, file_path, instruction, num_chunks, l1, agreement, trace}
    decoding    statistics.summarize_decoding
    work        counter → a chunk's share of it, and model_ms
    plan, config, provenance    as they stand in the run folder
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from rsd.evaluation.page import render_page
from rsd.evaluation.replay import HELD_OUT, TRAINING, Replayed
from rsd.evaluation.report import REPORT_HTML, REPORT_JSON
from rsd.evaluation.statistics import CONFIDENCE, COUNTERS, summarize_decoding
from rsd.files import write_atomically
from rsd.record import read_json, write
from rsd.runs import METRICS_FILE
from rsd.work import add_counts

SCHEMA = 1
SAME = 0.02  # of training's l1: nearer is equal; batches, devices and dtypes make up to a thousandth
OTHER_COMMANDS = 1e-3  # model units; rounding makes a thousandth of it
NUM_RESAMPLES = 2000
WIDTH, HEIGHT, EDGE = 640, 96, 4  # of a plot of one dim
EPISODE_FIELDS = ("split", "episode", "file_path", "instruction", "num_chunks", "trace")


@dataclass(frozen=True)
class Training:
    """What training said of itself.

    Attributes:
        l1: Its val/l1: of the base model's own chunks, mean over held-out frames, steps and dims, model units.
        gripper_accuracy: Its val/gripper_accuracy, where it has one.
        source: The file that says so.
        data: Content id of the training split; None where it is not told.
    """

    l1: float
    gripper_accuracy: float | None
    source: str
    data: str | None


def pooled(results: Sequence[Replayed], value: Callable[[Replayed], Any]) -> Any:
    """Mean over all chunks of what is a mean over an episode's; an array."""
    weights = np.array([one.num_chunks for one in results], dtype=np.float64)
    return np.tensordot(weights / weights.sum(), np.array([value(one) for one in results], dtype=np.float64), axes=1)


def bootstrap(results: Sequence[Replayed], value: Callable[[Replayed], Any]) -> tuple[Any, Any] | None:
    """95 % interval of `pooled`, by drawing episodes with replacement: percentiles; None of a single episode.

    Frames of an episode are alike, so that it is episodes which are drawn; of a handful the interval is too narrow.
    """
    if len(results) < 2:
        return None
    values = np.array([value(one) for one in results], dtype=np.float64)  # [N, ...]
    counts = np.array([one.num_chunks for one in results], dtype=np.float64)  # [N]
    drawn = np.random.default_rng(0).integers(len(results), size=(NUM_RESAMPLES, len(results)))
    times = np.stack([np.bincount(one, minlength=len(results)) for one in drawn])  # [R, N]
    weights = times * counts
    means = np.tensordot(weights / weights.sum(axis=1, keepdims=True), values, axes=1)  # [R, ...]
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    return low, high


def figure(results: Sequence[Replayed], value: Callable[[Replayed], Any]) -> dict[str, Any]:
    """{mean, low, high}: numbers or lists, low and high None of a single episode."""
    ends = bootstrap(results, value)
    low, high = (None, None) if ends is None else (np.asarray(end).tolist() for end in ends)
    return {"mean": np.asarray(pooled(results, value)).tolist(), "low": low, "high": high}


def summarize(results: Sequence[Replayed]) -> dict[str, Any]:
    """Everything of one split.

    Returns:
        num_episodes, num_chunks; l1 (over steps and dims, model units; figure), l1_by_dim, l1_robot_by_dim, l1_by_step
        (figures of lists, [A], [A], [T]), l1_table and l1_robot_table ([T][A]), commands_off ([A] or None, see
        `Replayed`), l1_median_by_dim ([A]), l1_median; grippers: a record for each with dim, agreement
        (figure), majority (share of the commoner state), num_closings, num_missed, num_late, num_early, mean_delay
        (control steps, of those not missed; None without).
    """
    told = all(one.commands_off is not None for one in results)
    median = pooled(results, lambda one: one.l1_median)
    return {
        "num_episodes": len(results),
        "num_chunks": sum(one.num_chunks for one in results),
        "l1": figure(results, lambda one: np.mean(one.l1)),
        "l1_by_dim": figure(results, lambda one: np.mean(one.l1, axis=0)),
        "l1_robot_by_dim": figure(results, lambda one: np.mean(one.l1_robot, axis=0)),
        "l1_by_step": figure(results, lambda one: np.mean(one.l1, axis=1)),
        "l1_table": pooled(results, lambda one: one.l1).tolist(),
        "l1_robot_table": pooled(results, lambda one: one.l1_robot).tolist(),
        "commands_off": pooled(results, lambda one: one.commands_off).tolist() if told else None,
        "l1_median_by_dim": median.tolist(),
        "l1_median": float(median.mean()),
        "grippers": [_gripper(results, number) for number in range(len(results[0].grippers))],
    }


def _gripper(results: Sequence[Replayed], number: int) -> dict[str, Any]:
    share = float(pooled(results, lambda one: one.grippers[number].open_share))
    delays = [closing.delay for one in results for closing in one.grippers[number].closings]
    there = [delay for delay in delays if delay is not None]
    return {
        "dim": results[0].grippers[number].dim,
        "agreement": figure(results, lambda one: one.grippers[number].agreement),
        "majority": max(share, 1 - share),
        "num_closings": len(delays),
        "num_missed": len(delays) - len(there),
        "num_late": sum(delay > 0 for delay in there),
        "num_early": sum(delay < 0 for delay in there),
        "mean_delay": sum(there) / len(there) if there else None,
    }


def verdict(
    summary: dict[str, Any], training: Training | None, *, data: str, decoding: str, every: int
) -> dict[str, Any]:
    """The verdict about the held-out episodes; see the head of the file.

    Args:
        summary: Of them, see `summarize`.
        data: Content id of the training split of the data set that is replayed.
        decoding: Name of the policy's.
        every: See `Replay`.
    """
    here = summary["l1"]["mean"]
    gives = f"the inference path gives {here:.4f} on"
    if training is None:
        text = f"{gives} the held-out episodes; training's own l1 is not known: there is nothing to hold it against"
        return {"text": text, "equal": None, "training": None}
    told = {"training": training.__dict__}
    said = f"training said l1 = {training.l1:.4f} ({training.source}), {gives}"
    if training.data != data:
        why = "of other data" if training.data else "of nobody knows which data"
        return {"text": f"{said} these episodes: not comparable, its number is {why}", "equal": None, **told}
    if decoding != "l1":
        text = (
            f"{said} the same held-out episodes with decoding={decoding}: training measured the base model's own "
            "chunk, so decoding=l1 makes this check"
        )
        return {"text": text, "equal": None, **told}
    difference = here - training.l1
    equal = abs(difference) <= SAME * training.l1
    frames = "the same held-out episodes" if every == 1 else f"every {every}th frame of the same held-out episodes"
    if equal:
        return {"text": f"{said} {frames}: equal", "equal": True, **told}
    if every > 1:
        text = f"{said} {frames}: differs by {difference:+.4f}; env.replay.every=1 asks the frames that training did"
        return {"text": text, "equal": None, **told}
    share = f" ({100 * difference / training.l1:+.0f} %)" if training.l1 else ""
    text = (
        f"{said} {frames}: differs by {difference:+.4f}{share}; what stands between the two is normalisation, the "
        "preparation of pictures, their colours and rotation, proprio and words"
    )
    return {"text": text, "equal": False, **told}


def notes(splits: dict[str, dict[str, Any]], names: Sequence[str]) -> list[str]:
    """What else a reader has to know, a sentence each."""
    found = []
    held_out, seen = splits.get(HELD_OUT), splits.get(TRAINING)
    if held_out is not None and held_out["l1"]["low"] is None:
        found.append("One held-out episode: there is no interval, and another one may give another number.")
    if held_out is not None and held_out["l1"]["mean"] >= held_out["l1_median"]:
        found.append(
            f"Always saying the training actions' median gives {held_out['l1_median']:.4f}, no more: of these "
            "observations the policy makes nothing."
        )
    if held_out is not None and seen is not None and held_out["l1"]["mean"] > 2 * seen["l1"]["mean"]:
        found.append(
            f"On training episodes l1 is {seen['l1']['mean']:.4f}, less than half of that on held-out ones: it has "
            "learned these episodes by heart, or has seen too few."
        )
    for split, one in splits.items():
        if one["commands_off"] is not None:
            off = [name for name, value in zip(names, one["commands_off"], strict=True) if value > OTHER_COMMANDS]
            if off:
                found.append(
                    f"Commands of dims {', '.join(off)} ({split}) are not the model's chunk by this data set's "
                    "statistics: the policy un-normalises with others (unnorm_key, data.bounds)."
                )
        for gripper in one["grippers"]:
            if gripper["agreement"]["mean"] < gripper["majority"]:
                found.append(
                    f"The gripper, dim {names[gripper['dim']]}, is on the recorded side in "
                    f"{100 * gripper['agreement']['mean']:.1f} % of the steps ({split}); always saying the commoner "
                    f"state gives {100 * gripper['majority']:.1f} %."
                )
            if gripper["num_missed"]:
                found.append(
                    f"{gripper['num_missed']} of {gripper['num_closings']} closings of dim {names[gripper['dim']]} "
                    f"are missed ({split})."
                )
    return found


def dim_names(num_dims: int, grippers: Sequence[int], units: Sequence[str] = ()) -> list[str]:
    """Numbers, with their units, and which of them are grippers."""
    names = []
    for dim in range(num_dims):
        said = [*filter(None, units[dim : dim + 1]), *(["gripper"] if dim in grippers else [])]
        names.append(f"{dim} ({', '.join(said)})" if said else str(dim))
    return names


def build_report(
    results: Sequence[Replayed],
    *,
    plan: dict[str, Any],
    training: Training | None,
    config: dict[str, Any] | None,
    provenance: dict[str, Any] | None,
) -> dict[str, Any]:
    """The content of report.json; see the head of the file.

    Args:
        plan: As in plan.json.
    """
    results = sorted(results, key=lambda one: (one.split != HELD_OUT, one.split, one.episode))
    by_split = {split: [one for one in results if one.split == split] for split in plan["episodes"]}
    splits = {split: summarize(own) for split, own in by_split.items() if own}
    names = []
    if results:
        names = dim_names(len(results[0].l1[0]), [one.dim for one in results[0].grippers], plan["units"])
    planned = {(split, episode) for split, episodes in plan["episodes"].items() for episode in episodes}
    judged = {"text": "no held-out episode was replayed", "equal": None, "training": None}
    if HELD_OUT in splits:
        decoding = plan["policy"].get("decoding") or "its own"
        judged = verdict(splits[HELD_OUT], training, data=plan["data"], decoding=decoding, every=plan["every"])
    totals: dict[str, Any] = reduce(add_counts, (one.stats for one in results), {})
    num_chunks = totals.get("num_chunks", 0)
    work = {name: totals[name] / num_chunks for name in COUNTERS if name in totals and num_chunks}
    if num_chunks:
        work["model_ms"] = sum(one.model_ms for one in results) / num_chunks
    return {
        "schema": SCHEMA,
        "complete": planned == {(one.split, one.episode) for one in results},
        "verdict": judged,
        "notes": notes(splits, names),
        "dims": names,
        "splits": splits,
        "tasks": list(_tasks(results)),
        "episodes": [
            {
                name: getattr(one, name)
                for name in ("split", "episode", "file_path", "instruction", "num_chunks", "trace")
            }
            | {"l1": float(np.mean(one.l1)), "agreement": [gripper.agreement for gripper in one.grippers]}
            for one in results
        ],
        "decoding": summarize_decoding(totals),
        "work": work,
        "plan": plan,
        "config": config,
        "provenance": provenance,
    }


def _tasks(results: Sequence[Replayed]) -> Any:
    """A record for each split, suite and instruction; a suite is what scripts/collect_demos.py begins names with."""
    kinds = dict.fromkeys((one.split, _suite(one.file_path), one.instruction) for one in results)
    for split, suite, instruction in kinds:
        own = [
            one for one in results if (one.split, _suite(one.file_path), one.instruction) == (split, suite, instruction)
        ]
        yield {
            "split": split,
            "suite": suite,
            "instruction": instruction,
            "num_episodes": len(own),
            "num_chunks": sum(one.num_chunks for one in own),
            "l1": figure(own, lambda one: np.mean(one.l1)),
            "agreement": pooled(own, lambda one: [gripper.agreement for gripper in one.grippers]).tolist(),
        }


def _suite(file_path: str) -> str:
    suite, _, rest = file_path.partition("/task_")
    return suite if rest else ""


def flat_metrics(report: dict[str, Any]) -> dict[str, float]:
    """The figures that a table of runs or a logger wants; those of held-out episodes have no prefix."""
    metrics: dict[str, Any] = {}
    for split, prefix in ((HELD_OUT, ""), (TRAINING, "train_")):
        if (one := report["splits"].get(split)) is None:
            continue
        metrics |= {
            f"{prefix}l1{end}": one["l1"][name] for end, name in (("", "mean"), ("_low", "low"), ("_high", "high"))
        }
        metrics[f"{prefix}l1_median_action"] = one["l1_median"]
        for gripper in one["grippers"]:
            end = f"_{gripper['dim']}" if len(one["grippers"]) > 1 else ""
            metrics[f"{prefix}gripper_accuracy{end}"] = gripper["agreement"]["mean"]
            metrics[f"{prefix}gripper_majority{end}"] = gripper["majority"]
            metrics[f"{prefix}closings_missed{end}"] = gripper["num_missed"]
            metrics[f"{prefix}closings_late{end}"] = gripper["num_late"]
        metrics |= {f"{prefix}num_episodes": one["num_episodes"], f"{prefix}num_chunks": one["num_chunks"]}
    metrics |= {f"{name}_per_chunk": value for name, value in report["work"].items()}
    return {name: value for name, value in metrics.items() if value is not None}


def write_replay_report(run_dir: Path, report: dict[str, Any]) -> None:
    """Write report.json, report.html and metrics.json."""
    write(run_dir / REPORT_JSON, report)
    write(run_dir / METRICS_FILE, flat_metrics(report))
    drawn = [
        {
            "name": f"{one['split']} episode {one['episode']}: {one['instruction']}",
            "plots": plots(trace, report["dims"]),
        }
        for one in report["episodes"]
        if one["trace"] is not None and (trace := read_json(run_dir / one["trace"])) is not None
    ]
    page = render_page("replay.html", report=report, drawn=drawn, width=WIDTH, height=HEIGHT)
    write_atomically(run_dir / REPORT_HTML, page)


def plots(trace: dict[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """For each action dim its name, low and high, and the points of two lines in a picture of WIDTH x HEIGHT."""
    series = {name: np.array(trace[name]) for name in ("recorded", "commanded")}  # [n, A], [m, A]
    length = max(2, *map(len, series.values()))
    found = []
    for dim, name in enumerate(names):
        own = {kind: values[:, dim] for kind, values in series.items()}
        low, high = (float(end(np.concatenate([*own.values()]))) for end in (np.min, np.max))
        lines = {}
        for kind, values in own.items():
            x = WIDTH * np.arange(len(values)) / (length - 1)
            y = HEIGHT - EDGE - (HEIGHT - 2 * EDGE) * (values - low) / ((high - low) or 1.0)
            lines[kind] = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
        found.append({"name": name, "low": low, "high": high, **lines})
    return found
