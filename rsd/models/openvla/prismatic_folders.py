"""Prismatic's training checkpoints into the published layout and back, as whole folders (SPEC §14).

What surprises first: Prismatic's Llama has a norm epsilon of 1e-5, which config.json says here, so that logits stay as
they were in training; the published OpenVLA's config.json leaves it out, which means 1e-6.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rsd.checkpoint import CheckpointError, check_finite, shapes_of, write_pickled
from rsd.errors import SettingError
from rsd.models.openvla import prismatic
from rsd.models.openvla.conversions import STATISTICS_FILE, TOKENIZER_FILE, opened
from rsd.models.openvla.pretrained import KEPT_FILES
from rsd.models.openvla.published import TEXT_CONFIG_IGNORED, architecture_of, read_json, read_norm_stats
from rsd.models.openvla.published_writer import DEFAULT_SHARD_BYTES, GENERATION, processor_record
from rsd.models.openvla.same_outputs import TOLERANCE, load_network, outputs, require_same
from rsd.models.openvla.stored import json_file, new_folder, require_new, write_stored
from rsd.record import EntryError
from rsd.settings import Dtype
from rsd.space import check_statistics

ACTION_DIM = 7  # of made-up inputs, where no statistics say it
PUBLISHED_EPS = 1e-6  # what a config.json means that does not say it
IDS = ("vision_backbone_id", "llm_backbone_id", "arch_specifier", "image_resize_strategy")
SIZES = ("image_sizes", "timm_model_kwargs")


def from_prismatic(
    source: Path,
    out: Path,
    *,
    tokenizer: Path | None = None,
    dtype: Dtype = "bfloat16",
    check_outputs: bool = True,
    device: str = "cpu",
    shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> list[str]:
    """A Prismatic folder (config.json, checkpoints/…pt, dataset_statistics.json) into the published layout.

    Args:
        tokenizer: A folder with Llama's tokenizer files; None takes those of `source`, where it has some.
        dtype: Of the weights that are written.
        check_outputs: Compare logits of both.
        device: Where.

    Returns:
        Lines to be told.

    Raises:
        CheckpointError: `source` is not Prismatic's, damaged, or of a model that is not supported.
    """
    if not prismatic.is_prismatic(source):
        raise CheckpointError(f"{source} is not in Prismatic's layout: it has no checkpoints/ beside its config.json")
    require_new(out, source)
    where = str(source / "config.json")
    statistics = _statistics(source)
    config = prismatic.read_config(source)
    action_dim = _action_dim(statistics)
    try:
        architecture = architecture_of(
            config, where, action_head="autoregressive", action_dim=action_dim, proprio_dim=None
        )
    except SettingError as error:
        raise CheckpointError(f"{error}; copy {where} again") from error
    words = _tokenizer_files(tokenizer or source, needed=tokenizer is not None)
    stored = prismatic.to_published(prismatic.read_parts(prismatic.checkpoint_file(source)))
    weights = prismatic.read_weights(source, architecture, config)
    wanted = getattr(torch, dtype)
    files: dict[str, Path | bytes] = {
        "config.json": json_file(config | {"norm_stats": statistics, "torch_dtype": dtype}),
        "preprocessor_config.json": json_file(processor_record(prismatic.processor_of(config))),
        "generation_config.json": json_file(GENERATION),
        **words,
    }
    if statistics:
        files[STATISTICS_FILE] = json_file(statistics)
    told = []
    with new_folder(out) as folder:
        write_stored(
            folder,
            files=files,
            shapes=shapes_of(weights),
            tensor_of=lambda name: weights[name].to(wanted).clone(),
            side={},
            shard_bytes=shard_bytes,
        )
        load_network(folder, device="meta")
        if check_outputs:
            told.append(_same(source, folder, action_dim, device, TOLERANCE[wanted]))
    rows = {len(stored[name]) for name in prismatic.VOCABULARY if name in stored}
    if rows and rows != {architecture.llm["vocab_size"]}:
        told.append(f"the vocabulary of {max(rows)} was made one of {architecture.llm['vocab_size']}")
    if not statistics:
        told.append(f"note: {source} has no {STATISTICS_FILE}: a vision-language model, which knows no actions")
    if TOKENIZER_FILE not in words:
        told.append(f"note: no {TOKENIZER_FILE}; put those of openvla/openvla-7b into {out}, or give --tokenizer")
    return [*told, f"{out}: {len(weights)} weights in {dtype}, statistics of {', '.join(statistics) or 'nothing'}"]


def to_prismatic(source: Path, out: Path, *, check_outputs: bool = True, device: str = "cpu") -> list[str]:
    """The inverse: a checkpoint in the published layout into Prismatic's. All weights are held in memory.

    Args:
        check_outputs, device: See `from_prismatic`.

    Returns:
        Lines to be told.

    Raises:
        CheckpointError: `source` is no whole checkpoint, or has heads, for which Prismatic has no place.
    """
    stored, model = opened(source)
    require_new(out, source)
    if heads := sorted({path.name for path in stored.side_paths.values()} | stored.joined.keys()):
        raise CheckpointError(
            f"{source} has {', '.join(heads)}, for which Prismatic's layout has no place; convert the checkpoint that "
            "they were trained on"
        )
    statistics = read_norm_stats(source)
    record = _record(stored.config, statistics)
    weights = {name: stored.tensor(name) for name in stored.headers}
    check_finite(weights, str(source))
    files = {name: path for name, path in stored.others.items() if name not in ("config.json", STATISTICS_FILE)}
    told = []
    with new_folder(out) as folder:
        for name, path in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(path.read_bytes())
        (folder / "config.json").write_bytes(json_file(record))
        if statistics:
            (folder / STATISTICS_FILE).write_bytes(json_file(statistics))
        (folder / prismatic.CHECKPOINT_FILE).parent.mkdir()
        write_pickled({"model": prismatic.to_prismatic(weights)}, folder / prismatic.CHECKPOINT_FILE)
        action_dim = model.architecture.action_dim
        prismatic.load_prismatic(folder, action_dim=action_dim, device="meta")
        if check_outputs:
            told.append(_same(folder, source, action_dim, device, TOLERANCE[torch.float32]))
    epsilon = record["model"]["text_config"]["rms_norm_eps"]
    if epsilon != prismatic.LLAMA_EPS:
        told.append(
            f"note: the model has a norm epsilon of {epsilon:g}, which rsd reads in config.json; Prismatic's own code "
            f"takes Llama's {prismatic.LLAMA_EPS:g}"
        )
    return [*told, f"{out}: {len(weights)} weights in {prismatic.CHECKPOINT_FILE}"]


def _statistics(source: Path) -> dict[str, Any]:
    """Statistics by data set; empty where there is no file."""
    if not (source / STATISTICS_FILE).is_file():
        return {}
    statistics = read_json(source, STATISTICS_FILE)
    try:
        for name, one in statistics.items():
            check_statistics(one, f"{source / STATISTICS_FILE}: entry {name!r}")
    except EntryError as error:
        raise CheckpointError(f"{error}; copy it again") from error
    return statistics


def _action_dim(statistics: dict[str, Any]) -> int:
    first = next(iter(statistics.values()), None)
    return ACTION_DIM if first is None else len(first["action"]["q01"])


def _tokenizer_files(directory: Path, *, needed: bool) -> dict[str, Path | bytes]:
    found: dict[str, Path | bytes] = {n: directory / n for n in KEPT_FILES if (directory / n).is_file()}
    if needed and TOKENIZER_FILE not in found:
        raise CheckpointError(f"{directory} has no {TOKENIZER_FILE}; name a folder with Llama's tokenizer")
    return found


def _same(theirs: Path, published: Path, action_dim: int, device: str, tolerance: float) -> str:
    """Compare the logits of both layouts, one network after the other."""
    before = outputs(prismatic.load_prismatic(theirs, action_dim=action_dim, device=device))
    after = outputs(load_network(published, device=device))
    off = require_same(after, before, tolerance=tolerance, what="converting")
    return f"logits of both layouts differ by {off:.2g} of the largest"


def _record(config: dict[str, Any], statistics: dict[str, Any]) -> dict[str, Any]:
    """Prismatic's config.json: the model's ids and what they leave open, and of an OpenVLA its base's name."""
    ids = {name: config[name] for name in IDS if name in config}
    known = {name: own for name, own in prismatic.BASE_VLMS.items() if ids.items() >= own.items()}
    base = next(iter(known), ids.get("vision_backbone_id", ""))
    text = {name: value for name, value in config["text_config"].items() if name not in TEXT_CONFIG_IGNORED}
    model = {"model_id": base, **ids, **{name: config[name] for name in SIZES if name in config}}
    model["text_config"] = {"rms_norm_eps": PUBLISHED_EPS, **text}
    return {"model": model} | ({"vla": {"vla_id": base, "base_vlm": base}} if statistics else {})
