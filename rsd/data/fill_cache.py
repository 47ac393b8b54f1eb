"""Filling a hidden-state cache: every frame of a data set, in order, through the frozen base model.

`ensure_cache` is what training calls: it opens the cache that belongs to a configuration and makes or completes it
first where needed. The base model is passed as a callable and is loaded only then.

What surprises first: pictures are prepared by `Backbone.prepare` in the data loader's workers and the states come from
`Backbone.forward`, the two methods that evaluation calls; the cache has no image path of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from rsd import __version__
from rsd.data.cache import (
    CACHE_FILE,
    HIDDEN_DTYPE,
    CacheError,
    CacheReader,
    as_json,
    check_content,
    content_key,
    differences,
    hidden_name,
    is_complete,
    read_record,
    row_layout,
)
from rsd.data.cache_writer import CacheWriter, empty_rows
from rsd.data.progress import track
from rsd.processes import say
from rsd.types import Backbone, Observation

MEGABYTE = 10**6


class Frames(Protocol):
    """A data set by frame: items {"observation", "actions" [T, A] float32 raw, "episode": int, "step": int}.

    Attributes:
        name: Of the data set.
        episodes: Numbers of all its episodes, also of those too short to give a frame.
    """

    name: str
    episodes: Sequence[int]

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> dict[str, Any]: ...

    def content_id(self) -> str: ...


def cache_content(
    *, fingerprint: Mapping[str, Any], frames: Frames, layers: Sequence[int], chunk_length: int, unnorm_key: str
) -> dict[str, Any]:
    """Everything that determines the cached numbers, as JSON: the cache's identity.

    Args:
        fingerprint: `Backbone.fingerprint()`: weights hash and image pipeline.
        frames: The data set; its name and content id count.
        layers: Layers to cache, any order; duplicates are dropped.
        chunk_length: T.
        unnorm_key: Statistics that the base model normalises and un-normalises with.
    """
    return as_json(
        {
            "backbone": fingerprint,
            "data": {
                "name": frames.name,
                "content_id": frames.content_id(),
                "num_episodes": len(frames.episodes),
            },
            "unnorm_key": unnorm_key,
            "layers": sorted(set(layers)),
            "chunk_length": chunk_length,
            "dtype": str(HIDDEN_DTYPE),
        }
    )


def write_cache(
    *,
    backbone: Backbone,
    frames: Frames,
    directory: Path,
    content: Mapping[str, Any],
    batch_size: int,
    shard_bytes: int,
    command: str,
    num_workers: int = 0,
    provenance: Mapping[str, Any] | None = None,
    report: Callable[[str], None] = say,
) -> None:
    """Write a cache, or the rest of it.

    Args:
        backbone: The frozen base model.
        frames: All frames, in the order of the rows.
        directory: The cache's own folder.
        content: From `cache_content`.
        batch_size: Frames a forward pass. A resumed cache equals an uninterrupted one bit for bit at the same size.
        shard_bytes: Target size of a shard.
        command: What completes the cache; error messages quote it.
        num_workers: Processes that decode and prepare pictures; 0 does it in this one.
        provenance: Recorded beside the content, never compared.
        report: Takes one line of text for people.

    Raises:
        CacheError: another configuration's cache, a disk too small or full, or states that are not finite.
        Exception: whatever the base model raises.
    """
    layers: list[int] = content["layers"]
    _check_backbone(backbone, content)
    writer = CacheWriter(
        directory,
        content=content,
        num_frames=len(frames),
        layout=row_layout(
            {layer: backbone.state_shapes[layer] for layer in layers}, backbone.chunk_length, backbone.action_dim
        ),
        shard_bytes=shard_bytes,
        batch_size=batch_size,
        norm_stats=backbone.norm_stats,
        provenance={"rsd": __version__, "torch": torch.__version__, "started": _now(), **(provenance or {})},
        command=command,
    )
    with writer:
        missing = writer.missing_shards()
        if not missing:
            return
        writer.check_space(report)
        loader = DataLoader(
            frames,
            batch_sampler=[rows for start, stop in missing for rows in _batches(start, stop, batch_size)],
            collate_fn=partial(_collate, backbone.prepare),
            num_workers=num_workers,
            multiprocessing_context="fork" if num_workers else None,
        )
        batches = iter(loader)
        with track("frames", total=len(frames), done=writer.rows_done, report=report) as advance:
            for start, stop in missing:
                rows = empty_rows(writer.layout, stop - start)
                for batch_rows in _batches(start, stop, batch_size):
                    first = batch_rows.start - start
                    for name, tensor in _forward(backbone, next(batches), layers).items():
                        rows[name][first : first + len(batch_rows)] = tensor
                    advance(len(batch_rows))
                writer.write_shard(start, rows)


def ensure_cache(
    *,
    root: Path,
    name: str,
    backbone: Callable[[], Backbone],
    dataset: Callable[[], Frames],
    layers: Sequence[int],
    chunk_length: int,
    unnorm_key: str,
    batch_size: int,
    shard_mb: int,
    command: str,
    num_workers: int = 0,
    outline: Callable[[], Backbone] | None = None,
    directory: Path | None = None,
    provenance: Mapping[str, Any] | None = None,
    report: Callable[[str], None] = say,
) -> CacheReader:
    """Open the cache of a configuration; make or complete it first where needed.

    Args:
        root: Folder of all caches.
        name: Readable beginning of the cache's folder: <name>-<key>.
        backbone: Loads the base model. Called when something must be computed, and to ask for its fingerprint when
            `outline` is None; then even an opened cache costs one loading.
        dataset: Makes the data set: all frames, with the views that the base model needs.
        layers: Layers to cache.
        chunk_length: T.
        unnorm_key: Statistics that the base model must use.
        batch_size, shard_mb, num_workers, command, provenance, report: See `write_cache`; megabytes of 10^6 bytes.
        outline: Makes the base model without its weights, which knows its fingerprint all the same.
        directory: Use this folder instead, and accept nothing but the configuration's own cache in it.

    Returns:
        The complete cache.

    Raises:
        CacheError: see `write_cache` and `CacheReader`.
    """
    loaded = backbone() if outline is None else None
    frames = dataset()
    content = cache_content(
        fingerprint=(loaded or outline()).fingerprint(),
        frames=frames,
        layers=layers,
        chunk_length=chunk_length,
        unnorm_key=unnorm_key,
    )
    directory = Path(directory) if directory is not None else Path(root) / f"{name}-{content_key(content)}"
    if (directory / CACHE_FILE).is_file():
        check_content(directory, read_record(directory)["content"], content)
    if not is_complete(directory):
        loaded = loaded or backbone()
        report(f"hidden-state cache {directory}")
        write_cache(
            backbone=loaded,
            frames=frames,
            directory=directory,
            content=content,
            batch_size=batch_size,
            shard_bytes=shard_mb * MEGABYTE,
            command=command,
            num_workers=num_workers,
            provenance=provenance,
            report=report,
        )
    return CacheReader(directory, expected=content)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _check_backbone(backbone: Backbone, content: Mapping[str, Any]) -> None:
    """The loaded model must be the one that the content describes."""
    loaded = {
        "backbone": as_json(backbone.fingerprint()),
        "unnorm_key": backbone.unnorm_key,
        "chunk_length": backbone.chunk_length,
    }
    lines = differences(loaded, {name: content[name] for name in loaded}, sides=("loaded", "configuration"))
    if lines:
        raise CacheError("the loaded base model is not the configured one: " + "; ".join(lines))
    absent = [layer for layer in content["layers"] if layer not in backbone.state_shapes]
    if absent:
        raise CacheError(
            f"layers {absent} do not exist; the base model has 1..{max(backbone.state_shapes)}; set layers"
        )


def _batches(start: int, stop: int, batch_size: int) -> Iterator[range]:
    for first in range(start, stop, batch_size):
        yield range(first, min(first + batch_size, stop))


def _collate(
    prepare: Callable[[Sequence[Observation]], dict[str, Tensor]], items: list[dict[str, Any]]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Frames → the base model's inputs, and what the cache keeps of the frames themselves."""
    inputs = prepare([item["observation"] for item in items])
    labels = {
        "actions": torch.stack([torch.as_tensor(item["actions"]) for item in items]),  # [B, T, A]
        "episode": torch.tensor([item["episode"] for item in items]),  # [B]
        "step": torch.tensor([item["step"] for item in items]),  # [B]
    }
    return inputs, labels


@torch.inference_mode()
def _forward(
    backbone: Backbone, batch: tuple[dict[str, Tensor], dict[str, Tensor]], layers: Sequence[int]
) -> dict[str, Tensor]:
    inputs, labels = batch
    output = backbone.forward(inputs, layers)
    rows = {hidden_name(layer): output.hidden_states[layer].to("cpu", HIDDEN_DTYPE) for layer in layers}
    rows |= {"base_actions": output.actions.to("cpu", torch.float32), **labels}
    for name, tensor in rows.items():
        broken = (~tensor.isfinite()).reshape(len(tensor), -1).any(dim=1)  # [B]
        if broken.any():
            bad = int(broken.nonzero()[0, 0])
            raise CacheError(
                f"{name} is not finite in episode {int(labels['episode'][bad])}, step {int(labels['step'][bad])}; "
                "nothing of this shard was kept: check the base model's checkpoint and the data set"
            )
    return rows
