"""Filling a hidden-state cache: every frame of a data set, in order, through the frozen base model.

`ensure_cache` is what training calls: it opens the cache that belongs to a configuration and makes or completes it
first where needed. The base model is passed as a callable and is loaded only then.

Pictures are prepared by `BaseModel.prepare` in the data loader's workers and the states come from `BaseModel.look`,
the two methods that evaluation calls; the cache has no image path of its own. The model is asked for what is missing,
and for nothing else: a point that is added later needs neither the other points nor the model's own chunk.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rsd import __version__
from rsd.data.cache import (
    HIDDEN_DTYPE,
    ROWS,
    STATES,
    CacheError,
    CacheReader,
    IncompleteCache,
    as_json,
    cache_layout,
    content_key,
    row_bytes,
)
from rsd.data.cache_writer import CacheWriter, empty_rows
from rsd.differences import differences
from rsd.points import point_names
from rsd.processes import say
from rsd.progress import track
from rsd.settings import Count, Device, Length, LoaderProcesses, Point, Share, Text, checked
from rsd.space import Space
from rsd.types import BaseModel, Frame, Inputs, Observation, ReadsInstructions

MEGABYTE = 10**6

Missing = tuple[int, int, list[str]]  # first row of a shard, the one behind its last, parts that miss it
Loaded = tuple[Inputs, dict[str, Tensor]]


class Frames(Protocol):
    """A data set by frame: items {"observation", "actions" [T, A] float32 standard, "episode": int, "step": int}.

    Attributes:
        name: Of the data set.
        episodes: Numbers of all its episodes, also of those too short to give a frame.
    """

    @property
    def name(self) -> str: ...

    @property
    def episodes(self) -> Sequence[int]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> Frame: ...

    def content_id(self) -> str: ...


@runtime_checkable
class Described(Protocol):
    """Frames that know all their instructions, where each stands, and what of the data is dropped or cut off."""

    def instructions(self) -> Mapping[str, str]: ...

    def notes(self, space: Space, cut_actions: bool = True) -> Sequence[str]: ...


class MeasuredFrames(Frames, Protocol):
    """A data set by frame that knows its own statistics."""

    def cut_off(self, space: Space) -> list[tuple[float, float]]:
        """Share of each action dim's movement that `space` cuts off, and that the data's own statistics would."""


def check_space(
    space: Space, frames: MeasuredFrames, bounds: str | None, max_clipped: float, report: Callable[[str], None]
) -> bool:
    """Hold a data set to the numbers that a base model speaks, and say what of it they do not reach.

    Args:
        space: The base model's.
        bounds: data.bounds; None takes the base model's.
        max_clipped: Largest share of a dim's movement that may be cut off beyond what the data set's own statistics
            would cut off.
        report: Takes one line of text for people.

    Returns:
        Whether it was said what is cut off of the actions.

    Raises:
        CacheError: other bounds, or more is cut off; all dims are named.
    """
    if bounds is not None and bounds != space.bounds:
        raise CacheError(
            f"data.bounds is {bounds!r}, and the base model was trained with {space.bounds!r}; set data.bounds="
            f"{space.bounds}, or train a base model with {bounds!r}"
        )
    shares = frames.cut_off(space)
    if all(share == own for share, own in shares):
        return False
    listed = ", ".join(f"{dim}: {100 * share:.1f}" for dim, (share, _) in enumerate(shares))
    said = (
        f"the base model has the statistics of other data ({space.name}) than {frames.name} holds now: they cut off, "
        f"in % of each action dim's movement, {listed}"
    )
    worst = max(share - own for share, own in shares)
    if worst > max_clipped:
        raise CacheError(
            f"{said}; {100 * worst:.1f} more than the data set's own would, and max_clipped allows "
            f"{100 * max_clipped:.1f}: train the base model on this data set, or raise max_clipped of the cache"
        )
    report(f"note: {said}")
    return True


def hold_frames_to(
    base: BaseModel, frames: MeasuredFrames, bounds: str | None, max_clipped: float, report: Callable[[str], None]
) -> None:
    """Hold a data set to the numbers and the words of the base model that will be shown it, and say what is lost.

    Args:
        base: With or without its weights.
        bounds, max_clipped, report: See `check_space`.

    Raises:
        CacheError: see `check_space`.
        InstructionError: the base model does not understand an instruction.
    """
    said = check_space(base.spec.space, frames, bounds, max_clipped, report)
    if isinstance(frames, Described):
        for note in frames.notes(base.spec.space, cut_actions=not said):
            report(f"note: {note}")
        if isinstance(base, ReadsInstructions):
            where = frames.instructions()
            base.check_instructions(list(where), where)


def cache_content(base: BaseModel, frames: Frames) -> dict[str, Any]:
    """Everything that determines the cached numbers, as JSON: the cache's identity, whatever points are in it.

    Args:
        base: The base model, with or without its weights.
        frames: The data set; its name, content id and number of episodes count.
    """
    return as_json(
        {
            "base": base.spec.fingerprint,
            "data": {
                "name": frames.name,
                "content_id": frames.content_id(),
                "num_episodes": len(frames.episodes),
            },
            "unnorm_key": base.spec.space.name,
            "chunk_length": base.spec.chunk_length,
            "dtype": str(HIDDEN_DTYPE),
        }
    )


def write_cache(
    *,
    bases: Sequence[BaseModel],
    frames: Frames,
    directory: Path,
    points: Sequence[str],
    batch_size: int,
    shard_bytes: int,
    command: str,
    num_workers: int = 0,
    provenance: Mapping[str, Any] | None = None,
    report: Callable[[str], None] = say,
) -> None:
    """Write what is missing of the rows and of these points.

    Args:
        bases: The frozen base model, once on each computing device. Shards are dealt out to them in turn; each is
            computed whole by one of them, so what is written does not depend on how many there are.
        frames: All frames, in the order of the rows.
        directory: The cache's own folder.
        points: Names of the points.
        batch_size: Frames a forward pass. A resumed cache equals an uninterrupted one bit for bit at the same size.
        shard_bytes: Target size of a shard of the widest point. One shard of each missing point is in memory at a time.
        command: What fills the cache; error messages quote it.
        num_workers: Processes that decode and prepare pictures, of all devices together; 0 does it in this one.
        provenance: Recorded beside the content, never compared.
        report: Takes one line of text for people.

    Raises:
        CacheError: no such point, another configuration's cache, a disk too small or full, or states that are not
            finite.
        Exception: whatever the base model raises.
    """
    base = bases[0]
    layout = cache_layout(base.spec.points, base.spec.chunk_length, base.spec.action_dim)
    absent = [point for point in points if point not in layout or point == ROWS]
    if absent:
        there = ", ".join(point for point in layout if point != ROWS)
        raise CacheError(f"points {absent} do not exist; the base model has {there}; set layers")
    widest = max(row_bytes(part) for part in layout.values())  # of all points, so that the grid depends on none of them
    writer = CacheWriter(
        directory,
        content=cache_content(base, frames),
        num_frames=len(frames),
        layout={part: layout[part] for part in (ROWS, *points)},
        rows_per_shard=max(1, shard_bytes // (widest * batch_size)) * batch_size,
        batch_size=batch_size,
        norm_stats=base.spec.space.statistics,
        provenance={"rsd": __version__, "torch": torch.__version__, "started": _now(), **(provenance or {})},
        command=command,
    )
    with writer:
        missing = writer.missing_shards()
        if not missing:
            return
        writer.check_space(report)
        to_do = sum(stop - start for start, stop, _ in missing)
        shares = [missing[number :: len(bases)] for number in range(len(bases))]
        workers = -(-num_workers // len(bases))
        loaders = [_loader(one, frames, share, batch_size, workers) for one, share in zip(bases, shares, strict=True)]
        batches = [iter(loader) for loader in loaders]  # their processes start here, before there are threads
        with track("frames", total=len(frames), done=len(frames) - to_do, report=report) as advance:
            stopped, told = threading.Event(), threading.Lock()

            def fill(one: BaseModel, share: Sequence[Missing], loaded: Iterator[Loaded]) -> None:
                for start, stop, parts in share:
                    shards = {part: empty_rows(writer.layout[part], stop - start) for part in parts}
                    for rows in _batches(start, stop, batch_size):
                        if stopped.is_set():
                            return
                        for part, tensors in _forward(one, next(loaded), parts).items():
                            for name, tensor in tensors.items():
                                shards[part][name][rows.start - start : rows.stop - start] = tensor
                        with told:
                            advance(len(rows))
                    for part, tensors in shards.items():
                        writer.write_shard(part, start, tensors)

            if len(bases) == 1:
                fill(base, missing, batches[0])
                return
            with ThreadPoolExecutor(len(bases)) as pool:
                jobs = [pool.submit(fill, *each) for each in zip(bases, shares, batches, strict=True)]
                try:
                    for job in as_completed(jobs):
                        job.result()
                finally:
                    stopped.set()  # whatever ends one ends the others


def _loader(
    base: BaseModel, frames: Frames, missing: Sequence[Missing], batch_size: int, num_workers: int
) -> DataLoader[Loaded]:
    """The batches of these shards, in order."""
    return DataLoader(
        cast(Dataset, frames),  # torch asks for no more than our protocol, but for a subclass
        batch_sampler=[list(rows) for start, stop, _ in missing for rows in _batches(start, stop, batch_size)],
        collate_fn=partial(_collate, base.prepare),
        num_workers=num_workers,
        multiprocessing_context="fork" if num_workers else None,
    )


@checked
def ensure_cache(
    *,
    root: Path,
    name: Text,
    base: Callable[..., BaseModel],
    dataset: Callable[[], MeasuredFrames],
    points: Sequence[Point],
    batch_size: Count,
    shard_mb: Count,
    command: str,
    num_workers: LoaderProcesses = 0,
    outline: Callable[[], BaseModel] | None = None,
    devices: Device | Annotated[list[Device], Length()] | None = None,
    directory: Path | None = None,
    bounds: str | None = None,
    max_clipped: Share = 1.0,
    provenance: Mapping[str, Any] | None = None,
    report: Callable[[str], None] = say,
) -> CacheReader:
    """Open the cache of a configuration at these points; make or complete it first where needed.

    Args:
        root: Folder of all caches.
        name: Readable beginning of the cache's folder: <name>-<key>.
        base: Loads the base model. Called when something must be computed, and to ask for its fingerprint when
            `outline` is None; then even an opened cache costs one loading.
        dataset: Makes the data set: all frames, with the views that the base model needs.
        points: Points to read, as `point_name` takes them; numbers are layers.
        batch_size, shard_mb, num_workers, command, provenance, report: See `write_cache`; megabytes of 10^6 bytes.
        devices: Several of them have a copy of the base model each, made with base(device=…), and share the work.
        outline: Makes the base model without its weights, which knows its fingerprint all the same.
        directory: Use this folder instead, and accept nothing but the configuration's own cache in it.
        bounds, max_clipped: See `check_space`.

    Returns:
        The cache, complete at these points.

    Raises:
        CacheError: see `write_cache`, `check_space` and `CacheReader`; or the loaded model is not the outlined one.
    """
    wanted = point_names(points)
    described = base() if outline is None else outline()
    frames = dataset()
    hold_frames_to(described, frames, bounds, max_clipped, report)
    content = cache_content(described, frames)
    directory = Path(directory) if directory is not None else Path(root) / f"{name}-{content_key(content)}"
    try:
        return CacheReader(directory, wanted, content=content)
    except IncompleteCache as error:
        damage = str(error).partition("; ")[0] if "damaged" in str(error) else ""
        report(f"hidden-state cache {directory}" + (f": {damage}" if damage else ""))
    if devices is not None and not isinstance(devices, str):
        bases = [base(device=one) for one in devices]
    else:
        bases = [described if outline is None else base()]
    for loaded in bases:
        different = [] if loaded is described else differences(cache_content(loaded, frames), content)
        lines = [one.named("loaded", "outlined") for one in different]
        if lines:
            raise CacheError("the loaded base model is not the configured one: " + "; ".join(lines))
    write_cache(
        bases=bases,
        frames=frames,
        directory=directory,
        points=wanted,
        batch_size=batch_size,
        shard_bytes=shard_mb * MEGABYTE,
        command=command,
        num_workers=num_workers,
        provenance=provenance,
        report=report,
    )
    return CacheReader(directory, wanted)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _batches(start: int, stop: int, batch_size: int) -> Iterator[range]:
    for first in range(start, stop, batch_size):
        yield range(first, min(first + batch_size, stop))


def _collate(
    prepare: Callable[[Sequence[Observation]], Inputs], items: list[Frame]
) -> tuple[Inputs, dict[str, Tensor]]:
    """Frames → the base model's inputs, and what the cache keeps of the frames themselves."""
    inputs = prepare([item["observation"] for item in items])
    labels = {
        "actions": torch.stack([item["actions"] for item in items]),  # [B, T, A]
        "episode": torch.tensor([item["episode"] for item in items]),  # [B]
        "step": torch.tensor([item["step"] for item in items]),  # [B]
    }
    return inputs, labels


@torch.inference_mode()
def _forward(
    base: BaseModel, batch: tuple[Inputs, dict[str, Tensor]], parts: Sequence[str]
) -> dict[str, dict[str, Tensor]]:
    """Rows of these parts for one batch."""
    inputs, labels = batch
    looked = base.look(inputs)
    points = [point for point in base.spec.points if point in parts]  # in the order in which the model comes to them
    rows = {point: {STATES: looked.at(point).to("cpu", HIDDEN_DTYPE)} for point in points}
    if ROWS in parts:
        rows[ROWS] = {**labels, "base_actions": looked.chunk().to("cpu", torch.float32)}
    for part, tensors in rows.items():
        for name, tensor in tensors.items():
            broken = (~tensor.isfinite()).reshape(len(tensor), -1).any(dim=1)  # [B]
            if broken.any():
                bad = int(broken.nonzero()[0, 0])
                raise CacheError(
                    f"{name} of {part} is not finite in episode {int(labels['episode'][bad])}, step "
                    f"{int(labels['step'][bad])}; nothing of this shard was kept: check the base model's checkpoint "
                    "and the data set"
                )
    return rows
