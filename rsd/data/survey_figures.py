"""The figures of a data set that was looked into (rsd/data/survey.py), as one record that JSON holds.

What surprises first: figures are of what was read, also where a training refuses it. Gripper events are those of the
declared rule; where the values do not fit it, the middle of what is recorded stands for it, and `by_rule` is False.
"""

from __future__ import annotations

import hashlib
import statistics
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from rsd.data import DataError
from rsd.data.layout import Layout, Part
from rsd.data.motion import dim_figures, gripper_events, idle_figures, idle_steps, jumps, responses
from rsd.data.survey import Content, Episode, roles, spread
from rsd.data.trajectories import clipped_motion, compute_statistics, lost_motion, standardize_actions
from rsd.space import Range, SpaceError, with_bounds

ALIKE = 8  # levels of grey (of 255) by which no part of a picture differs from a nearly identical one
MOST_COMPARED = 1000  # episodes whose pictures are compared with each other
LISTED = 200  # entries of a list, of which a page shows the first
PARTS = 24  # of an episode, in which the course of a dim is shown
FLAT = 4.0  # standard deviation of a picture's grey, below which nothing can be seen in it


def figures(content: Content, layout: Layout, *, bounds: str, chunk_length: int) -> dict[str, Any]:
    """Everything there is to show, but for pictures; keys are those of data.json, see docs/inspect.md.

    Args:
        bounds: Which statistics normalise: "quantiles" or "extremes".
        chunk_length: Steps of an action chunk.
    """
    episodes = content.episodes
    return {
        "name": content.name,
        "version": content.version,
        "directory": str(content.directory),
        "files": content.files,
        "num_episodes": content.num_episodes,
        "num_read": len(episodes),
        "read": [one.index for one in episodes],
        "features": _features(content),
        "rate": layout.rate,
        "relative": None if layout.relative is None else list(content.places.relative),
        "lengths": _lengths(content, layout, chunk_length),
        "action": _vector(content, "action", layout),
        "proprio": _vector(content, "proprio", layout),
        "others": _others(episodes),
        "gripper": _gripper(content, layout),
        "idle": _idle(content, layout),
        "clipped": _clipped(content, layout, bounds),
        "responses": _responses(content),
        "jumps": _jumps(content),
        "languages": languages(episodes),
        "pictures": _pictures(content),
        "same_views": same_views(episodes),
        "duplicates": duplicates(episodes),
    }


def _features(content: Content) -> list[dict[str, Any]]:
    used = roles(content.places)
    return [
        {
            "name": name.removeprefix("steps/"),
            "of": "step" if name.startswith("steps/") else "episode",
            "kind": spec.kind,
            "dtype": "" if spec.kind == "text" else str(spec.dtype),
            "shape": list(spec.shape),
            "used_as": used.get(name.removeprefix("steps/"), ""),
        }
        for name, spec in content.features.items()
    ]


def _lengths(content: Content, layout: Layout, chunk_length: int) -> dict[str, Any]:
    lengths = [one.num_steps for one in content.episodes]
    found: dict[str, Any] = {"per_episode": lengths, "chunk_length": chunk_length, "steps": sum(lengths)}
    if lengths:
        found |= {"min": min(lengths), "median": statistics.median(lengths), "max": max(lengths)}
        found["histogram"] = dim_figures(np.array(lengths, dtype=float)[:, None])[0]["histogram"]
        found["short"] = [one.index for one in content.episodes if one.num_steps < chunk_length]
        found["chunks"] = sum(max(length - chunk_length + 1, 0) for length in lengths)
        if layout.rate is not None:
            found["median_s"] = found["median"] / layout.rate
    return found


def _vector(content: Content, name: str, layout: Layout) -> dict[str, Any]:
    there = [getattr(one, name) for one in content.episodes if getattr(one, name) is not None]
    if not there:
        return {"dims": []}
    dims = dim_figures(np.concatenate(there))
    names = [f"{part.feature}[{dim}]" for part in getattr(content.places, name) for dim in _rows(content, part)]
    units = list(layout.units or []) if name == "action" else []
    grippers = content.places.grippers if name == "action" else ()
    for dim, entry in enumerate(dims):
        entry["dim"], entry["from"] = dim, names[dim] if len(names) == len(dims) else ""
        entry["unit"] = units[dim] if dim < len(units) else ""
        entry["is_gripper"] = dim in grippers
        entry["course"] = course([values[:, dim] for values in there])
    return {"dims": dims}


def course(values: Sequence[np.ndarray]) -> list[list[float]]:
    """How a dim goes from the begin of an episode to its end: its 10 %, 50 % and 90 % quantiles, [3][PARTS]."""
    parts: list[list[np.ndarray]] = [[] for _ in range(PARTS)]
    for one in values:
        finite = one[np.isfinite(one)]
        for place, part in enumerate(np.array_split(finite, PARTS) if len(finite) >= PARTS else []):
            parts[place].append(part)
    if not parts[0]:
        return []
    quantiles = [np.quantile(np.concatenate(part), [0.1, 0.5, 0.9]) for part in parts]
    return np.stack(quantiles, axis=1).tolist()


def _rows(content: Content, part: Part) -> list[int]:
    """Which dims of its feature a part takes."""
    spec = content.features[f"steps/{part.feature}"]
    return part.take({part.feature: np.arange(int(np.prod(spec.sizes)))[None]})[0].tolist()


def _others(episodes: Sequence[Episode]) -> list[dict[str, Any]]:
    found = []
    for name in dict.fromkeys(name for one in episodes for name in one.others):
        values = np.concatenate([one.others[name] for one in episodes if name in one.others])
        finite = values[np.isfinite(values)]
        if len(finite):
            entry = {"name": name.removeprefix("steps/"), "dims": values.shape[1], "min": float(finite.min())}
            found.append(entry | {"max": float(finite.max()), "num_bad": int(values.size - finite.size)})
    return found


def _opening(content: Content, layout: Layout, dim: int) -> tuple[list[np.ndarray], bool]:
    """1 open, 0 closed of each episode with an action, and whether the values fit the declared rule."""
    recorded = [values[:, dim] for values in content.stacked("action")]
    try:
        layout.gripper.check(recorded, content.name)
        return [layout.gripper.standardize(one) for one in recorded], True
    except DataError:
        together = np.concatenate(recorded) if recorded else np.zeros(0)
        low, high = (together.min(), together.max()) if len(together) else (0.0, 0.0)
        if low == high:
            return [np.ones(len(one)) for one in recorded], False
        rising = layout.gripper.open > layout.gripper.closed  # the declared sense is all there is to go by
        parts = [(one - low) / (high - low) for one in recorded]
        return [part if rising else 1 - part for part in parts], False


def _gripper(content: Content, layout: Layout) -> list[dict[str, Any]]:
    """A record for each gripper."""
    there = [one for one in content.episodes if one.action is not None]
    found: list[dict[str, Any]] = []
    for dim in content.places.grippers if there else ():
        opening, by_rule = _opening(content, layout, dim)
        events = [gripper_events(one) for one in opening]
        rows: list[dict[str, Any]] = [
            {
                "episode": one.index,
                "closings": own.closings,
                "openings": own.openings,
                "starts_closed": own.starts_closed,
                "num_steps": len(values),
            }
            for one, own, values in zip(there, events, opening, strict=True)
        ]
        flat = np.concatenate(opening)
        found.append(
            {
                "dim": dim,
                "rule": str(layout.gripper),
                "by_rule": by_rule,
                "closed_share": float((flat < 0.5).mean()) if len(flat) else 0.0,
                "between_share": float(((flat > 0.05) & (flat < 0.95)).mean()) if len(flat) else 0.0,
                "never_closes": [row["episode"] for row in rows if not row["closings"] and not row["starts_closed"]],
                "starts_closed": [row["episode"] for row in rows if row["starts_closed"]],
                "chatters": [row["episode"] for row in rows if _chatters(row)],
                "first_closing": [row["closings"][0] / max(row["num_steps"] - 1, 1) for row in rows if row["closings"]],
                "episodes": rows,
            }
        )
    return found


def _chatters(row: dict[str, Any]) -> bool:
    """Whether two turns of a gripper lie within three steps."""
    turns = sorted(row["closings"] + row["openings"])
    return any(later - earlier < 3 for earlier, later in pairwise(turns))


def _finite(episodes: Sequence[Episode], name: str) -> dict[int, np.ndarray]:
    """Action or proprio of the episodes in which all of it is there and finite, by their number."""
    there = {one.index: getattr(one, name) for one in episodes}
    return {index: one for index, one in there.items() if one is not None and len(one) and np.isfinite(one).all()}


def _responses(content: Content) -> list[dict[str, Any]]:
    actions, states = (_finite(content.episodes, name) for name in ("action", "proprio"))
    both = [index for index in actions if index in states]
    return responses([actions[index] for index in both], [states[index] for index in both])


def _idle(content: Content, layout: Layout) -> dict[str, Any] | None:
    actions = _finite(content.episodes, "action")
    if not actions:
        return None
    grippers = list(content.places.grippers)
    arm = [dim for dim in range(next(iter(actions.values())).shape[1]) if dim not in grippers]
    kinds = [one["kind"] for one in _responses(content)]
    goals = [dim for dim in arm if dim < len(kinds) and kinds[dim] == "goal"]
    if layout.relative is not None and len(content.places.relative) > len(arm):  # declared is better than found
        goals = [dim for dim in arm if not content.places.relative[dim]]
    motion = []
    for action in actions.values():
        moved = np.abs(action)
        moved[:, goals] = np.abs(np.diff(action, axis=0, append=action[-1:]))[:, goals]
        motion.append(moved[:, arm])
    found = idle_figures(idle_steps(motion, [action[:, grippers] for action in actions.values()]))
    return found | {"episodes": [*actions], "goal_dims": goals}


def _clipped(content: Content, layout: Layout, bounds: str) -> dict[str, Any] | None:
    """What normalisation cuts off, by dim and by task, as trainings say it."""
    actions, grippers = _finite(content.episodes, "action"), content.places.grippers
    if not actions:
        return None
    standard = {
        index: standardize_actions(action, layout.gripper.standardize, grippers) for index, action in actions.items()
    }
    states = {index: one.astype(np.float32) for index, one in _finite(content.episodes, "proprio").items()}
    flat = [*states.values()] or [np.zeros((0, 0), np.float32)]
    found: dict[str, Any] = {"bounds": bounds, "error": None, "action": [], "proprio": [], "tasks": {}}
    try:
        stats = with_bounds(compute_statistics([*standard.values()], flat, grippers), bounds)
        found["action"] = lost_motion(np.concatenate([*standard.values()]), Range.from_entry(stats["action"])).tolist()
        if states:
            found["proprio"] = lost_motion(np.concatenate(flat), Range.from_entry(stats["proprio"])).tolist()
    except SpaceError as error:
        return found | {"error": str(error)}
    tasks: dict[str, list[np.ndarray]] = {}
    for one in content.episodes:
        said = np.array(one.instructions, dtype=object)  # [n], or none at all
        for instruction in dict.fromkeys(one.instructions) if one.index in standard else ():
            tasks.setdefault(instruction, []).append(standard[one.index][said == instruction])
    found["tasks"] = {
        task: clipped_motion(np.concatenate(own), stats["action"]).tolist() for task, own in tasks.items()
    }
    return found


def _jumps(content: Content) -> dict[str, Any]:
    found = {}
    for name in ("action", "proprio"):
        there = _finite(content.episodes, name)
        skip = content.places.grippers if name == "action" else ()
        numbers, all_found = [*there], jumps([*there.values()], skip)
        for one in all_found:
            one["episode"] = numbers[one["episode"]]
        found[name] = {
            "count": len(all_found),
            "episodes": len({one["episode"] for one in all_found}),
            "largest": all_found[:LISTED],
        }
    return found


def languages(episodes: Sequence[Episode]) -> dict[str, Any]:
    """Instructions with their counts, and what is odd about them."""
    steps: Counter[str] = Counter()
    there: dict[str, list[int]] = {}
    for one in episodes:
        steps.update(one.instructions)
        for text in dict.fromkeys(one.instructions):
            there.setdefault(text, []).append(one.index)
    alike: dict[str, list[str]] = {}
    for text in there:
        alike.setdefault(" ".join(text.lower().strip(" .!").split()), []).append(text)
    return {
        "instructions": [
            {"text": text, "episodes": len(there[text]), "steps": count, "ascii": text.isascii()}
            for text, count in steps.most_common()
        ],
        "empty_steps": sum(count for text, count in steps.items() if not text.strip()),
        "changing": [one.index for one in episodes if len(set(one.instructions)) > 1],
        "alike": [same for same in alike.values() if len(same) > 1],
    }


def _pictures(content: Content) -> dict[str, dict[str, Any]]:
    found = {}
    for view, feature in content.places.views.items():
        there = [one.pictures[view] for one in content.episodes if view in one.pictures]
        if not there:
            continue
        sizes = Counter(f"{one.size[0]}×{one.size[1]}" for one in there)
        found[view] = {
            "feature": feature,
            "sizes": dict(sizes.most_common()),
            "num_bytes": sum(one.num_bytes for one in there),
            "brightness": float(np.mean([value for one in there for value in one.brightness])),
            "flat_share": float(np.mean([value < FLAT for one in there for value in one.spread])),
            "repeated_share": float(np.mean([one.repeated for one in there])),
            "frozen": [one.index for one in content.episodes if _is_frozen(one, view)],
        }
    return found


def _is_frozen(episode: Episode, view: str) -> bool:
    return view in episode.pictures and episode.num_steps > 1 and episode.pictures[view].repeated == 1


def duplicates(episodes: Sequence[Episode]) -> dict[str, Any]:
    """Groups of episodes whose numbers are the same, and of those whose pictures nearly are.

    Pictures are compared in the middle of episodes: where they begin, many sets look alike.
    """
    same: dict[bytes, list[int]] = {}
    for one in episodes:
        if one.action is not None and len(one.action):
            digest = hashlib.blake2b(one.action.tobytes())
            digest.update(b"" if one.proprio is None else one.proprio.tobytes())
            same.setdefault(digest.digest(), []).append(one.index)
    views = dict.fromkeys(view for one in episodes for view in one.pictures)
    alike = {view: _alike(episodes, view) for view in views}
    return {
        "episodes": [group for group in same.values() if len(group) > 1],
        "pictures": {
            view: {"groups": groups[:LISTED], "episodes": sum(map(len, groups)), "other_instruction": other}
            for view, (groups, other) in alike.items()
        },
    }


def _alike(episodes: Sequence[Episode], view: str) -> tuple[list[list[int]], int]:
    """Groups of episodes with nearly the same picture in the middle, and how many of them have several instructions."""
    there = [one for one in episodes if view in one.pictures]
    there = [there[place] for place in spread(len(there), MOST_COMPARED)]
    middles = [one.pictures[view].small[len(one.pictures[view].steps) // 2].ravel() for one in there]
    waiting, groups, other = list(range(len(there))), [], 0
    pixels = np.array(middles, dtype=np.int16) if middles else np.zeros((0, 0), dtype=np.int16)
    while waiting:
        near = are_alike(pixels[waiting], pixels[waiting[0]])
        group = [place for place, is_near in zip(waiting, near, strict=True) if is_near]
        waiting = [place for place, is_near in zip(waiting, near, strict=True) if not is_near]
        if len(group) > 1:
            groups.append([there[place].index for place in group])
            other += len({there[place].instructions[:1] for place in group}) > 1
    return groups, other


def are_alike(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Which of many coarse pictures, [n, pixels], are nearly the same as another one, [n, pixels] or [pixels]."""
    return np.asarray(np.abs(a - b).max(axis=-1) <= ALIKE)


def same_views(episodes: Sequence[Episode]) -> list[list[str]]:
    """Pairs of views that show nearly the same in every episode."""
    views = list(dict.fromkeys(view for one in episodes for view in one.pictures))
    found = []
    for place, a in enumerate(views):
        for b in views[place + 1 :]:
            both = [one for one in episodes if a in one.pictures and b in one.pictures]
            if both and all(
                are_alike(*(one.pictures[v].small.reshape(-1, 1024) for v in (a, b))).all() for one in both
            ):
                found.append([a, b])
    return found
