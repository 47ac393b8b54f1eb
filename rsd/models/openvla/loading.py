"""A folder → OpenVLABase: the published layout, or our own (rsd/checkpoint.py) that phase=oft writes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from rsd.checkpoint import JSON_FILE, CheckpointError, file_sha256, load_checkpoint, load_weights, save_checkpoint
from rsd.models.openvla import published
from rsd.models.openvla.base import OpenVLABase
from rsd.models.openvla.canaries import check_canaries
from rsd.models.openvla.execution import check_execution
from rsd.models.openvla.fp8 import Fp8
from rsd.models.openvla.model import Architecture, OpenVLAOFT, cast_weights
from rsd.models.openvla.pictures import check_pictures
from rsd.models.openvla.processor import PrismaticImageProcessor
from rsd.models.openvla.robots import Robot
from rsd.models.openvla.text import PROMPT, VICUNA_PROMPT, LlamaText, TextEncoder, WordText
from rsd.space import BOUNDS, LIBERO_GRIPPER, Space, Statistics, bounds_of, resolve_unnorm_key, with_bounds

KIND = "base"
PRODUCE = "python train.py phase=oft model=oft_tiny"
SIDE_COMPONENTS = ("action_head", "proprio_projector", "noisy_action_projector", "vision_backbone")
REQUIRED_STATISTICS = ("q01", "q99", "min", "max")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the caller works with, and how the model is to be loaded; see `load_base`."""

    unnorm_key: str | None
    views: tuple[str, ...]
    use_proprio: bool
    chunk_length: int
    center_crop: bool
    device: str
    dtype: torch.dtype
    action_head: str
    num_images: int | None
    robot: Robot | None
    text: TextEncoder | None
    execution: str
    fp8: Fp8 | None
    pictures: str

    @property
    def gripper(self) -> str:
        return LIBERO_GRIPPER if self.robot is None else self.robot.gripper


def load_base(
    *,
    checkpoint: str | Path,
    unnorm_key: str | None,
    views: Sequence[str],
    use_proprio: bool,
    chunk_length: int,
    center_crop: bool = True,
    device: str = "cpu",
    dtype: str = "float32",
    hub_id: str | None = None,
    action_head: str = "l1",
    num_images: int | None = None,
    robot: Robot | None = None,
    text: TextEncoder | None = None,
    execution: str = "eager",
    fp8: Fp8 | None = None,
    pictures: str = "cpu",
    canaries: bool = True,
) -> OpenVLABase:
    """Load a base model, frozen and in evaluation mode.

    Args:
        checkpoint: The folder.
        unnorm_key: Name of the statistics; "<suite>" finds "<suite>_no_noops"; None if there is only one.
        views: Names of the pictures, in the order of the model's images.
        use_proprio: Whether the proprio token is part of the sequence.
        chunk_length: T that the caller works with.
        center_crop: Evaluation's crop; right for every model that was trained with image augmentation.
        device, dtype: Where and how the weights live, in torch's names. Device "meta" checks the files only: it gives
            everything but numbers, the fingerprint included.
        hub_id: Where the checkpoint is published; asked only when the folder does not exist.
        action_head: Of a published checkpoint: l1, diffusion, discrete or autoregressive (the original OpenVLA).
        num_images: M that a published checkpoint was trained with, which none of its files holds.
        robot: Constants of the robot that a published checkpoint was trained for; None checks what the files say alone.
        text: Replaces the checkpoint's own text encoder.
        execution: eager, captured, compiled or fp8 (see execution.py).
        fp8: Which layers execution=fp8 leaves alone, and how far it may be off; the defaults when None.
        pictures: Where a camera's pictures are prepared: cpu, or device (the model's; see pictures.py).
        canaries: Try the model on made-up observations before anybody relies on it (see canaries.py).

    Raises:
        CheckpointError: the folder is missing, damaged, of another architecture, or made for another chunk or input.
        UnknownKeyError: the statistics do not hold unnorm_key.
        CanaryError: the loaded model ignores its pictures, attends in the wrong direction, or is not finite.
        ExecutionError: the model cannot be run in this way on this device.
    """
    check_execution(execution, action_head=action_head, device=torch.device(device), dtype=getattr(torch, dtype))
    check_pictures(pictures)
    require_checkpoint(checkpoint, hub_id)
    wanted = Wanted(
        unnorm_key=unnorm_key,
        views=tuple(views),
        use_proprio=use_proprio,
        chunk_length=chunk_length,
        center_crop=center_crop,
        device=device,
        dtype=getattr(torch, dtype),
        action_head=action_head,
        num_images=num_images,
        robot=robot,
        text=text,
        execution=execution,
        fp8=fp8,
        pictures=pictures,
    )
    directory = Path(checkpoint)
    base = _load_own(directory, wanted) if is_own(directory) else _load_published(directory, wanted)
    base.model.requires_grad_(False)
    if canaries and base.device.type != "meta":
        check_canaries(base)
    return base


def is_own(directory: Path) -> bool:
    """Whether a checkpoint is in our own layout, and says itself what it was trained with."""
    return (directory / JSON_FILE).is_file()


def own_inputs(directory: Path) -> dict[str, Any]:
    """What a checkpoint of our own layout was trained with, as arguments of `load_base`.

    Raises:
        CheckpointError: missing or damaged.
    """
    config = load_checkpoint(directory, kind=KIND, produce=PRODUCE).config
    return {
        "views": config["views"],
        "use_proprio": Architecture.from_json(config["architecture"]).proprio_dim is not None,
        "chunk_length": config["chunk_length"],
        "center_crop": config["center_crop"],
        "unnorm_key": next(iter(config["norm_stats"])),
    }


def require_checkpoint(checkpoint: str | Path, hub_id: str | None = None) -> None:
    """See that a base model's folder is there, fetching it from the hub if need be, without loading it.

    Raises:
        CheckpointError: it is not there and cannot be had; the message names what to download and where to put it.
    """
    directory = Path(checkpoint)
    if directory.exists():
        return
    if hub_id is not None:
        published.fetch(directory, hub_id)
    else:
        load_checkpoint(directory, kind=KIND, produce=PRODUCE)


def save_base(
    directory: Path, base: OpenVLABase, provenance: dict[str, Any], dtype: torch.dtype = torch.float32
) -> None:
    """Write a trained base model with a word vocabulary in our own layout, its weights rounded to `dtype`."""
    if not isinstance(base.text, WordText):
        raise TypeError(f"only a WordText vocabulary can be saved in our layout, got {type(base.text).__name__}")
    config = {
        "architecture": base.model.architecture.to_json(),
        "processor": base.processor.to_json(),
        "words": list(base.text.words),
        "norm_stats": {base.space.name: dict(base.space.statistics)},
        "views": list(base.views),
        "chunk_length": base.chunk_length,
        "center_crop": base.center_crop,
    }
    weights = {name: value.to(dtype) for name, value in base.model.state_dict().items()}
    save_checkpoint(directory, kind=KIND, config=config, weights=weights, provenance=provenance)


def _load_own(directory: Path, wanted: Wanted) -> OpenVLABase:
    checkpoint = load_checkpoint(directory, kind=KIND, produce=PRODUCE)
    config = checkpoint.config
    architecture = Architecture.from_json(config["architecture"])
    _check_contract(
        directory,
        {
            "chunk_length": (config["chunk_length"], wanted.chunk_length),
            "views": (tuple(config["views"]), wanted.views),
            "use_proprio": (architecture.proprio_dim is not None, wanted.use_proprio),
            "center_crop": (config["center_crop"], wanted.center_crop),
            "action_head": (architecture.action_head, wanted.action_head),
        },
    )
    key, stats = _statistics(directory, config["norm_stats"], wanted)
    model = OpenVLAOFT(architecture)
    load_weights(model, checkpoint, directory)
    return OpenVLABase(
        model=cast_weights(model.to(wanted.device), wanted.dtype).eval(),
        processor=PrismaticImageProcessor(**config["processor"]),
        text=wanted.text or WordText(config["words"]),
        space=Space.from_statistics(key, stats, gripper=wanted.gripper),
        views=wanted.views,
        chunk_length=wanted.chunk_length,
        center_crop=wanted.center_crop,
        weights_sha256=lambda: checkpoint.sha256,
        execution=wanted.execution,
        fp8=wanted.fp8,
        pictures=wanted.pictures,
    )


def _load_published(directory: Path, wanted: Wanted) -> OpenVLABase:
    robot, num_views = wanted.robot, len(wanted.views)
    trained_length = robot.chunk_length if robot else wanted.chunk_length
    if wanted.action_head == "autoregressive":
        trained_length = 1
    trained_images = num_views if wanted.num_images is None else wanted.num_images
    facts = {"chunk_length": (trained_length, wanted.chunk_length), "num_images": (trained_images, num_views)}
    _check_contract(directory, facts)
    config = published.read_json(directory, "config.json")
    key, stats = _statistics(directory, published.read_norm_stats(directory), wanted)
    model = published.build_model(
        directory,
        use_proprio=wanted.use_proprio,
        device=wanted.device,
        dtype=wanted.dtype,
        action_head=wanted.action_head,
        action_dim=len(stats["action"]["q01"]),
    )
    _check_widths(directory, model.architecture, stats, robot)
    if robot is not None and "bounds" not in stats["action"]:
        stats = with_bounds(stats, robot.bounds)
    prompt = VICUNA_PROMPT if config.get("llm_backbone_id", "").startswith("vicuna") else PROMPT
    return OpenVLABase(
        model=model,
        processor=PrismaticImageProcessor.from_file(directory / "preprocessor_config.json"),
        text=wanted.text or LlamaText(directory, prompt),
        space=Space.from_statistics(key, stats, gripper=wanted.gripper),
        views=wanted.views,
        chunk_length=wanted.chunk_length,
        center_crop=wanted.center_crop,
        weights_sha256=partial(_published_sha256, directory),
        execution=wanted.execution,
        fp8=wanted.fp8,
        pictures=wanted.pictures,
    )


def _check_contract(directory: Path, facts: dict[str, tuple[Any, Any]]) -> None:
    """Compare what the checkpoint was trained with and what the caller asks for."""
    wrong = [f"{name} is {have!r}, asked for {want!r}" for name, (have, want) in facts.items() if have != want]
    if wrong:
        raise CheckpointError(f"{directory} was trained for something else: {'; '.join(wrong)}; change the settings")


def _statistics(directory: Path, norm_stats: Mapping[str, Statistics], wanted: Wanted) -> tuple[str, Statistics]:
    """Name and entry of the wanted statistics."""
    key = resolve_unnorm_key(norm_stats, wanted.unnorm_key)
    stats = norm_stats[key]
    parts = ("action", "proprio") if wanted.use_proprio else ("action",)
    needed = [(part, name) for part in parts for name in REQUIRED_STATISTICS]
    missing = [f"{part}.{name}" for part, name in needed if name not in stats.get(part, {})]
    if missing:
        raise CheckpointError(
            f"statistics {key!r} of {directory} lack {missing}; use the file that came with the model"
        )
    unknown = {part: name for part in parts if (name := bounds_of(stats[part])) not in BOUNDS}
    if unknown:
        raise CheckpointError(
            f"statistics {key!r} of {directory} name bounds {unknown}, expected one of {sorted(BOUNDS)}"
        )
    if not wanted.use_proprio:
        stats = {name: value for name, value in stats.items() if name != "proprio"}
    return key, stats


def _check_widths(directory: Path, architecture: Architecture, stats: Statistics, robot: Robot | None) -> None:
    """Weights, statistics and the robot's constants must agree on the widths of actions and proprio."""
    wrong = []
    for name, width in {"action": architecture.action_dim, "proprio": architecture.proprio_dim}.items():
        if width is None:
            continue
        said = {"the weights": width, "the statistics": len(stats[name]["q01"])}
        if robot is not None:
            said[f"robot={robot.name}"] = getattr(robot, f"{name}_dim")
        if len(set(said.values())) > 1:
            wrong.append(f"{name} has " + " and ".join(f"{value} dims in {source}" for source, value in said.items()))
    if wrong:
        raise CheckpointError(
            f"{directory} is contradicted: {'; '.join(wrong)}; files of two models are mixed, or it is another robot's"
        )


def _published_sha256(directory: Path) -> str:
    """One hash over all weight files; reads every byte, once a process as long as the files stay as they are."""
    paths = [*published.weight_files(directory)]
    paths += [path for part in SIDE_COMPONENTS if (path := published.side_file(directory, part))]
    return _joint_sha256(tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in paths))


@lru_cache(maxsize=4)
def _joint_sha256(files: tuple[tuple[Path, int, int], ...]) -> str:
    """SHA-256 of the files' own, as text after each other; hashed side by side, a core a file."""
    with ThreadPoolExecutor() as pool:
        hashes = list(pool.map(file_sha256, [path for path, _, _ in files]))
    return hashlib.sha256("".join(hashes).encode()).hexdigest()
