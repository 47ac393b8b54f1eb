"""A folder → OpenVLABase: the published layout, or our own (rsd/checkpoint.py) that phase=oft writes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import torch

from rsd.checkpoint import (
    JSON_FILE,
    Checkpoint,
    CheckpointError,
    cached_sha256,
    check_names,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    shapes_of,
    weights_in,
)
from rsd.errors import SettingError
from rsd.models.openvla import published
from rsd.models.openvla.base import OpenVLABase
from rsd.models.openvla.canaries import check_canaries
from rsd.models.openvla.execution import check_execution
from rsd.models.openvla.fp8 import Fp8
from rsd.models.openvla.model import Architecture, OpenVLAOFT, cast_weights, outline
from rsd.models.openvla.pictures import check_pictures
from rsd.models.openvla.processor import PrismaticImageProcessor
from rsd.models.openvla.robots import Robot
from rsd.models.openvla.sentences import SentenceEncoder, load_encoder
from rsd.models.openvla.text import PROMPT, VICUNA_PROMPT, LlamaText, SentenceText, TextEncoder, WordText
from rsd.models.openvla.visual_tokens import VisualTokens
from rsd.record import EntryError, arguments, conform
from rsd.settings import ChunkLength, Count, Device, Dtype, Text, Views, checked, require_device
from rsd.space import (
    BOUNDS,
    LIBERO_GRIPPER,
    Space,
    Statistics,
    bounds_of,
    check_statistics,
    resolve_unnorm_key,
    with_bounds,
)

KIND = "base"
PRODUCE = "python train.py phase=oft model=oft_tiny"
FINETUNE = "put a published checkpoint there, or make one with: python train.py phase=oft_lora model=openvla_7b"
SIDE_COMPONENTS = ("action_head", "proprio_projector", "noisy_action_projector", "vision_backbone")
REQUIRED_STATISTICS = ("q01", "q99", "min", "max")


class _Sentences(TypedDict):
    """Which frozen encoder reads the instructions, by name and content, and the tokens that its vector becomes."""

    encoder: str
    sha256: str
    num_tokens: Count


class _Config(TypedDict):
    """Entry "config" of checkpoint.json, with `words` or `sentences`."""

    architecture: dict[str, Any]
    processor: dict[str, Any]
    words: NotRequired[list[str]]
    sentences: NotRequired[_Sentences]
    instructions: NotRequired[list[str]]
    norm_stats: dict[str, dict[str, Any]]
    views: list[str]
    chunk_length: Count
    center_crop: bool


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
    text_source: str | None
    execution: str
    visual_tokens: VisualTokens | None
    fp8: Fp8 | None
    pictures: str

    @property
    def gripper(self) -> str:
        return LIBERO_GRIPPER if self.robot is None else self.robot.gripper


@checked
def load_base(
    *,
    checkpoint: str | Path,
    unnorm_key: str | None,
    views: Views,
    use_proprio: bool,
    chunk_length: ChunkLength,
    center_crop: bool = True,
    device: Device | Literal["meta"] = "cpu",
    dtype: Dtype = "float32",
    hub_id: str | None = None,
    action_head: str = "l1",
    num_images: Count | None = None,
    robot: Robot | None = None,
    text: TextEncoder | None = None,
    text_source: Text | None = None,
    execution: str = "eager",
    fp8: Fp8 | None = None,
    pictures: str = "cpu",
    canaries: bool = True,
    visual_tokens: VisualTokens | None = None,
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
        text_source: Where the files of its sentence encoder are: a folder, a .zip or an installed package; None where
            its name leads. A model that reads words has no need of it.
        execution: eager, captured, compiled or fp8 (see execution.py).
        fp8: Which layers execution=fp8 leaves alone, and how far it may be off; the defaults when None.
        pictures: Where a camera's pictures are prepared: cpu, or device (the model's; see pictures.py).
        canaries: Try the model on made-up observations before anybody relies on it (see canaries.py).
        visual_tokens: Which picture tokens the language model reads (see visual_tokens.py); None for all.

    Raises:
        CheckpointError: the folder is missing, damaged, of another architecture, or made for another chunk or input.
        UnknownKeyError: the statistics do not hold unnorm_key.
        CanaryError: the loaded model ignores its pictures, attends in the wrong direction, or is not finite.
        ExecutionError: the model cannot be run in this way on this device.
    """
    if device != "meta":
        require_device(device)
    check_execution(execution, action_head=action_head, device=torch.device(device), dtype=getattr(torch, dtype))
    check_pictures(pictures)
    require_checkpoint(checkpoint, hub_id, published_layout=robot is not None)
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
        text_source=text_source,
        execution=execution,
        visual_tokens=visual_tokens,
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
    config, architecture = _own_config(directory, load_checkpoint(directory, kind=KIND, produce=PRODUCE))
    names = list(config["norm_stats"])
    return {
        "views": config["views"],
        "use_proprio": architecture.proprio_dim is not None,
        "chunk_length": config["chunk_length"],
        "center_crop": config["center_crop"],
        "unnorm_key": names[0] if len(names) == 1 else None,  # of a mixture somebody has to choose
    }


def load_own(
    directory: Path,
    *,
    device: str = "cpu",
    execution: str = "eager",
    pictures: str = "cpu",
    text_source: str | None = None,
) -> OpenVLABase:
    """Load a base model of our own layout as it is: what it needs is what its files say.

    Args:
        directory: Holds checkpoint.json.
        device, execution, pictures, text_source: See `load_base`.

    Raises:
        CheckpointError: the folder is missing, damaged, or of another kind.
    """
    config = load_checkpoint(directory, kind=KIND, produce=PRODUCE).config
    return load_base(
        checkpoint=directory,
        unnorm_key=None,
        views=config["views"],
        use_proprio=config["architecture"]["proprio_dim"] is not None,
        chunk_length=config["chunk_length"],
        center_crop=config["center_crop"],
        device=device,
        execution=execution,
        pictures=pictures,
        text_source=text_source,
    )


@checked
def require_checkpoint(checkpoint: str | Path, hub_id: str | None = None, *, published_layout: bool = False) -> None:
    """See that a base model's folder is there, fetching it from the hub if need be, without loading it.

    Args:
        checkpoint, hub_id: See `load_base`.
        published_layout: Whether a checkpoint in the published layout is looked for, not one of phase=oft.

    Raises:
        CheckpointError: it is not there and cannot be had; the message names what to download and where to put it.
    """
    directory = Path(checkpoint)
    if directory.exists():
        return
    if hub_id is not None:
        published.fetch(directory, hub_id)
    elif published_layout:
        raise CheckpointError(f"no checkpoint: {directory} does not exist; {FINETUNE}")
    else:
        load_checkpoint(directory, kind=KIND, produce=PRODUCE)


def save_base(
    directory: Path,
    base: OpenVLABase,
    provenance: dict[str, Any],
    dtype: torch.dtype = torch.float32,
    spaces: Sequence[Space] = (),
) -> None:
    """Write a trained base model that reads words or sentences in our own layout, its weights rounded to `dtype`.

    Args:
        spaces: Of all data sets of a mixture; the model's own unless given. Whoever loads it chooses one by unnorm_key.
    """
    if not isinstance(base.text, WordText | SentenceText):
        raise TypeError(f"only words and sentences can be saved in our layout, got {type(base.text).__name__}")
    reads = base.text.to_json()
    config = {
        "architecture": base.model.architecture.to_json(),
        "processor": base.processor.to_json(),
        **(reads if isinstance(base.text, WordText) else {"sentences": reads}),
        "instructions": list(base.text.instructions),
        "norm_stats": {space.name: dict(space.statistics) for space in spaces or [base.space]},
        "views": list(base.views),
        "chunk_length": base.chunk_length,
        "center_crop": base.center_crop,
    }
    weights = weights_in(base.model, dtype)
    save_checkpoint(directory, kind=KIND, config=config, weights=weights, provenance=provenance)


def _own_config(directory: Path, checkpoint: Checkpoint) -> tuple[_Config, Architecture]:
    """What checkpoint.json says the model is made with, checked."""
    where = str(directory / JSON_FILE)
    try:
        config: _Config = conform(checkpoint.config, _Config, where, "config")
        architecture = Architecture.from_json(config["architecture"], where)
        PrismaticImageProcessor(**arguments(PrismaticImageProcessor, config["processor"], where, "config.processor"))
        if ("words" in config) == ("sentences" in config) or ("sentences" in config) != (
            architecture.sentence is not None
        ):
            raise EntryError(
                f"{where}: expected entry 'config.words' or 'config.sentences', as its architecture has it"
            )
        for name, statistics in config["norm_stats"].items():
            parts = ("action",) if architecture.proprio_dim is None else ("action", "proprio")
            check_statistics(statistics, f"{where}: entry 'config.norm_stats.{name}'", parts)
    except (EntryError, SettingError) as error:
        raise CheckpointError(f"{error}; copy it again or make it again with: {PRODUCE}") from error
    return config, architecture


def own_text(directory: Path, config: _Config, source: str | None, *, load: bool = True) -> WordText | SentenceText:
    """What turns instructions into the inputs of a model in our own layout.

    Args:
        source: See `load_base`.
        load: Whether a sentence encoder is wanted now, or when the first instruction is read.

    Raises:
        CheckpointError: the sentence encoder is not to be found, or is another one.
    """
    told = config.get("instructions", ())
    if "sentences" not in config:
        return WordText(config.get("words", ()), told)
    said = config["sentences"]

    def find() -> SentenceEncoder:
        encoder = load_encoder(said["encoder"], source)
        check_encoder(directory, said["encoder"], said["sha256"], encoder)
        return encoder

    text = SentenceText(
        find,
        name=said["encoder"],
        sha256=said["sha256"],
        num_tokens=said["num_tokens"],
        source=source,
        instructions=told,
    )
    if load:
        _ = text.encoder  # where it is missing, that is said before the weights are read
    return text


def check_encoder(directory: Path, name: str, sha256: str, found: SentenceEncoder) -> None:
    """Hold a sentence encoder to the one that a model was trained with.

    Raises:
        CheckpointError: it is another one.
    """
    if found.sha256 != sha256:
        raise CheckpointError(
            f"{directory} was trained with the sentence encoder {name!r} of content {sha256[:12]}…, and the one found "
            f"has {found.sha256[:12]}…; its vectors would mean something else: say where the right one is with "
            "text.sentences.source= (in Python: text_source=)"
        )


def _load_own(directory: Path, wanted: Wanted) -> OpenVLABase:
    checkpoint = load_checkpoint(directory, kind=KIND, produce=PRODUCE)
    config, architecture = _own_config(directory, checkpoint)
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
    text = wanted.text or own_text(directory, config, wanted.text_source, load=wanted.device != "meta")
    model = outline(architecture)  # sizes are held to those of the weights before memory is taken for them
    check_names(directory, shapes_of(model.state_dict()), shapes_of(checkpoint.weights))
    if wanted.device != "meta":
        model = OpenVLAOFT(architecture)
        load_weights(model, checkpoint, directory)
    return OpenVLABase(
        model=cast_weights(model.to(wanted.device), wanted.dtype).eval(),
        processor=PrismaticImageProcessor(**config["processor"]),
        text=text,
        space=Space.from_statistics(key, stats, gripper=wanted.gripper),
        views=wanted.views,
        chunk_length=wanted.chunk_length,
        center_crop=wanted.center_crop,
        weights_sha256=lambda: checkpoint.sha256,
        execution=wanted.execution,
        visual_tokens=wanted.visual_tokens,
        fp8=wanted.fp8,
        pictures=wanted.pictures,
    )


def _load_published(directory: Path, wanted: Wanted) -> OpenVLABase:
    # what we fine-tuned was made for the data set that its statistics are of, whatever robot it started from
    robot = wanted.robot if published.read_training(directory) is None else None
    _check_inputs(directory, wanted)
    config = published.read_entries(directory, {})
    key, stats = _statistics(directory, published.read_norm_stats(directory), wanted)
    prompt = VICUNA_PROMPT if config.get("llm_backbone_id", "").startswith("vicuna") else PROMPT
    text = wanted.text or LlamaText(directory, prompt)  # before the weights, which take minutes
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
    return OpenVLABase(
        model=model,
        processor=PrismaticImageProcessor.from_file(directory / "preprocessor_config.json"),
        text=text,
        space=Space.from_statistics(key, stats, gripper=wanted.gripper),
        views=wanted.views,
        chunk_length=wanted.chunk_length,
        center_crop=wanted.center_crop,
        weights_sha256=partial(_published_sha256, directory),
        execution=wanted.execution,
        visual_tokens=wanted.visual_tokens,
        fp8=wanted.fp8,
        pictures=wanted.pictures,
    )


def _check_inputs(directory: Path, wanted: Wanted) -> None:
    """Hold a checkpoint in the published layout to the wanted inputs, as far as its files or its robot say them."""
    training = published.read_training(directory)
    if training is not None:
        facts = {name: training[name] for name in ("action_head", "chunk_length", "use_proprio")}
        compared = {name: (fact, getattr(wanted, name)) for name, fact in facts.items()}
        if "center_crop" in training:  # since there has been a choice
            compared["center_crop"] = (training["center_crop"], wanted.center_crop)
        compared["views"] = (list(training["views"]), list(wanted.views))
        remedy = (
            f"model={training['phase']} chunk={training['chunk_length']} loads what phase={training['phase']} makes"
        )
        _check_contract(directory, compared, remedy)
    published.side_files(directory, action_head=wanted.action_head, use_proprio=wanted.use_proprio)
    if training is None:
        robot, num_views = wanted.robot, len(wanted.views)
        length = robot.chunk_length if robot else wanted.chunk_length
        length = 1 if wanted.action_head == "autoregressive" else length
        num_images = num_views if wanted.num_images is None else wanted.num_images
        facts = {"chunk_length": (length, wanted.chunk_length), "num_images": (num_images, num_views)}
        _check_contract(directory, facts)


def _check_contract(directory: Path, facts: dict[str, tuple[Any, Any]], remedy: str = "change the settings") -> None:
    """Compare what the checkpoint was trained with and what the caller asks for."""
    wrong = [f"{name} is {have!r}, asked for {want!r}" for name, (have, want) in facts.items() if have != want]
    if wrong:
        raise CheckpointError(f"{directory} was trained for something else: {'; '.join(wrong)}; {remedy}")


def _statistics(directory: Path, norm_stats: Mapping[str, Statistics], wanted: Wanted) -> tuple[str, Statistics]:
    """Name and entry of the wanted statistics."""
    key = resolve_unnorm_key(norm_stats, wanted.unnorm_key)
    stats = norm_stats[key]
    parts, named = ("action", "proprio") if wanted.use_proprio else ("action",), f"statistics {key!r} of {directory}"
    needed = [(part, name) for part in parts for name in REQUIRED_STATISTICS]
    try:
        present = {part: dict[str, Any] for part in parts if part in conform(stats, dict[str, Any], named)}
        conform(stats, present, named)
    except EntryError as error:
        raise CheckpointError(f"{error}; use the file that came with the model") from error
    missing = [f"{part}.{name}" for part, name in needed if name not in stats.get(part, {})]
    if missing:
        raise CheckpointError(f"{named} lack {missing}; use the file that came with the model")
    unknown = {part: name for part in parts if (name := bounds_of(stats[part])) not in BOUNDS}
    if unknown:
        raise CheckpointError(f"{named} name bounds {unknown}, expected one of {sorted(BOUNDS)}")
    try:
        check_statistics(stats, named, parts)
    except EntryError as error:
        raise CheckpointError(f"{error}; use the file that came with the model") from error
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
    """SHA-256 of the weight files' own, as text after each other; hashed side by side, once a process."""
    paths = [*published.weight_files(directory)]
    paths += [path for part in SIDE_COMPONENTS if (path := published.side_file(directory, part))]
    with ThreadPoolExecutor() as pool:
        hashes = list(pool.map(cached_sha256, paths))
    return hashlib.sha256("".join(hashes).encode()).hexdigest()
