"""A folder → OpenVLABackbone: the published layout, or our own (rsd/checkpoint.py) that phase=oft writes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from rsd.checkpoint import JSON_FILE, CheckpointError, file_sha256, load_checkpoint, load_weights, save_checkpoint
from rsd.models.openvla import published
from rsd.models.openvla.backbone import OpenVLABackbone
from rsd.models.openvla.canaries import check_canaries
from rsd.models.openvla.execution import check_execution
from rsd.models.openvla.model import Architecture, OpenVLAOFT, cast_weights
from rsd.models.openvla.processor import PrismaticImageProcessor
from rsd.models.openvla.robots import Robot
from rsd.models.openvla.text import PROMPT, VICUNA_PROMPT, LlamaText, TextEncoder, WordText
from rsd.normalization import BOUNDS, LIBERO_GRIPPER, bounds_of, resolve_unnorm_key, with_bounds

KIND = "base"
PRODUCE = "python train.py phase=oft model=oft_tiny"
SIDE_COMPONENTS = ("action_head", "proprio_projector", "noisy_action_projector", "vision_backbone")
REQUIRED_STATISTICS = ("q01", "q99", "min", "max")


def load_backbone(
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
    decoder: str = "l1",
    num_images: int | None = None,
    robot: Robot | None = None,
    text: TextEncoder | None = None,
    execution: str = "eager",
    canaries: bool = True,
) -> OpenVLABackbone:
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
        decoder: Of a published checkpoint: l1, diffusion, discrete or autoregressive (the original OpenVLA).
        num_images: M that a published checkpoint was trained with, which none of its files holds.
        robot: Constants of the robot that a published checkpoint was trained for; None checks what the files say alone.
        text: Replaces the checkpoint's own text encoder.
        execution: eager, captured or compiled (see execution.py).
        canaries: Try the model on made-up observations before anybody relies on it (see canaries.py).

    Raises:
        CheckpointError: the folder is missing, damaged, of another architecture, or made for another chunk or input.
        UnknownKeyError: the statistics do not hold unnorm_key.
        CanaryError: the loaded model ignores its pictures, attends in the wrong direction, or is not finite.
        ExecutionError: the model cannot be run in this way on this device.
    """
    check_execution(execution, decoder=decoder, device=torch.device(device))
    require_checkpoint(checkpoint, hub_id)
    directory = Path(checkpoint)
    load = _load_own if (directory / JSON_FILE).is_file() else _load_published
    backbone = load(
        directory,
        unnorm_key=unnorm_key,
        views=tuple(views),
        use_proprio=use_proprio,
        chunk_length=chunk_length,
        center_crop=center_crop,
        device=device,
        dtype=getattr(torch, dtype),
        decoder=decoder,
        num_images=num_images,
        robot=robot,
        text=text,
        execution=execution,
    )
    backbone.model.requires_grad_(False)
    if canaries and backbone.device.type != "meta":
        check_canaries(backbone)
    return backbone


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


def save_backbone(
    directory: Path, backbone: OpenVLABackbone, provenance: dict[str, Any], dtype: torch.dtype = torch.float32
) -> None:
    """Write a trained backbone with a word vocabulary in our own layout, its weights rounded to `dtype`."""
    if not isinstance(backbone.text, WordText):
        raise TypeError(f"only a WordText vocabulary can be saved in our layout, got {type(backbone.text).__name__}")
    config = {
        "architecture": backbone.model.architecture.to_json(),
        "processor": backbone.processor.to_json(),
        "words": list(backbone.text.words),
        "norm_stats": {backbone.unnorm_key: backbone.norm_stats},
        "views": list(backbone.views),
        "chunk_length": backbone.chunk_length,
        "center_crop": backbone.center_crop,
    }
    weights = {name: value.to(dtype) for name, value in backbone.model.state_dict().items()}
    save_checkpoint(directory, kind=KIND, config=config, weights=weights, provenance=provenance)


def _load_own(
    directory: Path,
    *,
    unnorm_key: str | None,
    views: tuple[str, ...],
    use_proprio: bool,
    chunk_length: int,
    center_crop: bool,
    device: str,
    dtype: torch.dtype,
    decoder: str,
    num_images: int | None,
    robot: Robot | None,
    text: TextEncoder | None,
    execution: str,
) -> OpenVLABackbone:
    checkpoint = load_checkpoint(directory, kind=KIND, produce=PRODUCE)
    config = checkpoint.config
    architecture = Architecture.from_json(config["architecture"])
    _check_contract(
        directory,
        {
            "chunk_length": (config["chunk_length"], chunk_length),
            "views": (tuple(config["views"]), views),
            "use_proprio": (architecture.proprio_dim is not None, use_proprio),
            "center_crop": (config["center_crop"], center_crop),
            "decoder": (architecture.decoder, decoder),
        },
    )
    key, stats = _statistics(directory, config["norm_stats"], unnorm_key, use_proprio)
    model = OpenVLAOFT(architecture)
    load_weights(model, checkpoint, directory)
    return OpenVLABackbone(
        model=cast_weights(model.to(device), dtype).eval(),
        processor=PrismaticImageProcessor(**config["processor"]),
        text=text or WordText(config["words"]),
        norm_stats=stats,
        unnorm_key=key,
        views=views,
        chunk_length=chunk_length,
        center_crop=center_crop,
        weights_sha256=lambda: checkpoint.sha256,
        execution=execution,
        gripper=LIBERO_GRIPPER if robot is None else robot.gripper,
    )


def _load_published(
    directory: Path,
    *,
    unnorm_key: str | None,
    views: tuple[str, ...],
    use_proprio: bool,
    chunk_length: int,
    center_crop: bool,
    device: str,
    dtype: torch.dtype,
    decoder: str,
    num_images: int | None,
    robot: Robot | None,
    text: TextEncoder | None,
    execution: str,
) -> OpenVLABackbone:
    trained_length = 1 if decoder == "autoregressive" else robot.chunk_length if robot else chunk_length
    trained_images = len(views) if num_images is None else num_images
    facts = {"chunk_length": (trained_length, chunk_length), "num_images": (trained_images, len(views))}
    _check_contract(directory, facts)
    config = published.read_json(directory, "config.json")
    key, stats = _statistics(directory, published.read_norm_stats(directory), unnorm_key, use_proprio)
    model = published.build_model(
        directory,
        use_proprio=use_proprio,
        device=device,
        dtype=dtype,
        decoder=decoder,
        action_dim=len(stats["action"]["q01"]),
    )
    _check_widths(directory, model.architecture, stats, robot)
    prompt = VICUNA_PROMPT if config.get("llm_backbone_id", "").startswith("vicuna") else PROMPT
    processor = PrismaticImageProcessor.from_file(directory / "preprocessor_config.json")
    return OpenVLABackbone(
        model=model,
        processor=processor,
        text=text or LlamaText(directory, prompt),
        norm_stats=stats if robot is None or "bounds" in stats["action"] else with_bounds(stats, robot.bounds),
        unnorm_key=key,
        views=views,
        chunk_length=chunk_length,
        center_crop=center_crop,
        weights_sha256=partial(_published_sha256, directory),
        execution=execution,
        gripper=LIBERO_GRIPPER if robot is None else robot.gripper,
    )


def _check_contract(directory: Path, facts: dict[str, tuple[Any, Any]]) -> None:
    """Compare what the checkpoint was trained with and what the caller asks for."""
    wrong = [f"{name} is {have!r}, asked for {want!r}" for name, (have, want) in facts.items() if have != want]
    if wrong:
        raise CheckpointError(f"{directory} was trained for something else: {'; '.join(wrong)}; change the settings")


def _statistics(
    directory: Path, norm_stats: dict[str, Any], unnorm_key: str | None, use_proprio: bool
) -> tuple[str, dict[str, Any]]:
    key = resolve_unnorm_key(norm_stats, unnorm_key)
    stats = norm_stats[key]
    parts = ("action", "proprio") if use_proprio else ("action",)
    wanted = [(part, name) for part in parts for name in REQUIRED_STATISTICS]
    missing = [f"{part}.{name}" for part, name in wanted if name not in stats.get(part, {})]
    if missing:
        raise CheckpointError(
            f"statistics {key!r} of {directory} lack {missing}; use the file that came with the model"
        )
    unknown = {part: name for part in parts if (name := bounds_of(stats[part])) not in BOUNDS}
    if unknown:
        raise CheckpointError(
            f"statistics {key!r} of {directory} name bounds {unknown}, expected one of {sorted(BOUNDS)}"
        )
    return key, stats


def _check_widths(directory: Path, architecture: Architecture, stats: dict[str, Any], robot: Robot | None) -> None:
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
