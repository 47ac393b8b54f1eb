"""Checkpoints in the published layout from one form into another: side files joined or split, adapters merged, export.

Numbers change nowhere but where adapters are merged. All names and shapes are compared before anything is written, and
a folder appears whole or not at all. Each function gives the lines to be told about what it did.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rsd.checkpoint import JSON_FILE, CheckpointError, Shape, check_names, shapes_of
from rsd.models.openvla.adapters import WEIGHTS_FILE as ADAPTER_WEIGHTS
from rsd.models.openvla.adapters import Adapter, film_for_readers, merged, read_adapters
from rsd.models.openvla.lora import MAX_ALPHA
from rsd.models.openvla.model import Architecture, OpenVLAOFT, outline
from rsd.models.openvla.processor import PrismaticImageProcessor
from rsd.models.openvla.published import TRAINING_FILE, merge_lora, read_json, read_norm_stats
from rsd.models.openvla.published_writer import DEFAULT_SHARD_BYTES, SIDE_DTYPES, processor_record
from rsd.models.openvla.same_outputs import TOLERANCE, distance, load_network, outputs, require_same
from rsd.models.openvla.stored import (
    ADAPTER_FOLDER,
    FILM,
    Stored,
    Weights,
    is_film,
    json_file,
    new_folder,
    require_new,
    step_of,
    write_stored,
)
from rsd.models.openvla.streaming import put

TOKENIZER_FILE, PROCESSOR_FILE = "tokenizer.json", "preprocessor_config.json"
STATISTICS_FILE = "dataset_statistics.json"
OFT_RANK = 32  # OpenVLA-OFT's lora_rank, with which its loader wraps the towers before it reads FiLM's file
WRAPPED = ".base_layer."
ROUNDING = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}  # of merged weights, of their largest


def opened(directory: Path) -> tuple[Stored, OpenVLAOFT]:
    """A folder in the published layout and its network on "meta": all names and shapes have been compared.

    Raises:
        CheckpointError: it is in another layout, or something is missing or of another shape.
    """
    if (directory / JSON_FILE).is_file():
        raise CheckpointError(
            f"{directory} is in rsd's own layout ({JSON_FILE}), whose words and sizes are its own; give a checkpoint "
            "in the published layout: config.json with model*.safetensors"
        )
    if (directory / "checkpoints").is_dir():
        raise CheckpointError(f"{directory} is in Prismatic's layout; convert it with from-prismatic first")
    return Stored(directory), load_network(directory, device="meta")


def join(source: Path, out: Path, *, shard_bytes: int = DEFAULT_SHARD_BYTES) -> list[str]:
    """Side files into the safetensors, under the network's names; nothing is pickled then. rsd reads it as it is.

    Raises:
        CheckpointError: `source` is no whole checkpoint, has no side files, or `out` is there already.
    """
    stored, _ = opened(source)
    require_new(out, source)
    if not stored.side_paths:
        raise CheckpointError(f"{source} has no side files (action_head--*_checkpoint.pt, …): there is nothing to join")
    side = {part: stored.side(part) for part in stored.side_paths}
    shapes = stored.shapes
    if FILM in side:  # its names begin with that already
        side[FILM] = {name.removeprefix(f"{FILM}."): value for name, value in merge_lora(side[FILM]).items()}
        shapes = {name: shape for name, shape in shapes.items() if not name.startswith(f"{FILM}.")}
    own = {f"{part}.{name}": value for part, weights in side.items() for name, value in weights.items()}
    with new_folder(out) as folder:
        write_stored(
            folder,
            files=stored.others,
            shapes=shapes | shapes_of(own),
            tensor_of=lambda name: own[name] if name in own else stored.tensor(name),
            side={},
            shard_bytes=shard_bytes,
        )
        load_network(folder, device="meta")
    told = [f"{out}: {', '.join(path.name for path in stored.side_paths.values())} among {len(shapes | own)} weights"]
    if FILM in side:
        told.append("note: FiLM's adapters were merged, and the towers of the shards left out, which nobody reads")
    return told


def split(source: Path, out: Path, *, step: str | None = None, shard_bytes: int = DEFAULT_SHARD_BYTES) -> list[str]:
    """The inverse of `join`: heads and FiLM's towers into side files, as OpenVLA-OFT has them.

    Args:
        step: In the names of the side files; None for that of those that are there, or "latest".

    Raises:
        CheckpointError: `source` is no whole checkpoint, has nothing to split, or `out` is there already.
    """
    stored, _ = opened(source)
    require_new(out, source)
    if not stored.joined and not is_film(stored.headers):
        raise CheckpointError(f"{source} has no heads among its safetensors: there is nothing to split")
    side, extra = _divided(stored)
    shapes = _main_shapes(stored, extra)
    files = {f"{part}--{step or step_of(stored)}_checkpoint.pt": weights for part, weights in side.items()}
    with new_folder(out) as folder:
        write_stored(
            folder,
            files=stored.others,
            shapes=shapes,
            tensor_of=lambda name: extra[name] if name in extra else stored.tensor(name),
            side=files,
            shard_bytes=shard_bytes,
        )
        load_network(folder, device="meta")
    return [f"{out}: {', '.join(sorted(files))} beside {len(shapes)} weights"]


def merge(
    base: Path,
    tuned: Path,
    out: Path,
    *,
    check_outputs: bool = True,
    device: str = "cpu",
    shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> list[str]:
    """Adapters into the weights that they were trained on, with everything that lies beside them.

    Args:
        base: The checkpoint that the adapters were trained on.
        tuned: Holds lora_adapter/ with the heads, FiLM's file, training.json and statistics of its training, or is an
            adapter's folder itself. Where both folders have a file, this one's is taken.
        check_outputs: Compare logits of the merged network with those of the base with its adapters beside it.
        device: Where that is computed.

    Raises:
        CheckpointError: the adapters are of another checkpoint or of a kind that is not merged here, a file is missing,
            or merged weights and adapted ones do not compute the same; nothing is written then.
    """
    adapters = read_adapters(tuned)
    place = adapters.directory
    stored, _ = opened(base)
    beside = Stored(place.parent if place.name == ADAPTER_FOLDER else place)
    require_new(out, base, tuned)
    _refuse_twice(base, place)
    owners = dict.fromkeys(stored.side_paths, stored) | dict.fromkeys(beside.side_paths, beside)
    side = {owner.side_paths[part].name: owner.side(part) for part, owner in owners.items()}
    layers, told, originals = dict(adapters.layers), [], Weights()
    if FILM in owners:
        if unread := sorted(name for name in layers if name.startswith(f"{FILM}.")):
            raise CheckpointError(
                f"{place} has adapters of towers without FiLM ({unread[0]}), which nobody reads where there is "
                f"{owners[FILM].side_paths[FILM]}; give the base of this training"
            )
        path = owners[FILM].side_paths[FILM]
        side[path.name], line = _film_with(side[path.name], adapters.film, path, owners[FILM] is stored, originals)
        told += line
    elif adapters.film and is_film(stored.headers):
        layers |= {f"{FILM}.{name}": one for name, one in adapters.film.items()}
    elif adapters.film:
        raise CheckpointError(
            f"{place} has adapters of FiLM's towers, and neither {beside.directory} nor {base} has the "
            f"{FILM}--*_checkpoint.pt with FiLM's own weights; put it there"
        )
    dataclasses.replace(adapters, layers=layers).check(stored.shapes, base)
    heads = tuple(f"{part}." for part in beside.side_paths if part != FILM)
    shapes = {name: shape for name, shape in stored.shapes.items() if not (heads and name.startswith(heads))}
    files = stored.others | {
        name: path for name, path in beside.others.items() if path.parent != place or not _is_of_adapter(path)
    }
    files |= {f"{ADAPTER_FOLDER}/{path.name}": path for path in sorted(place.iterdir()) if _is_of_adapter(path)}
    with new_folder(out) as folder:
        write_stored(
            folder,
            files=files,
            shapes=shapes,
            tensor_of=lambda name: merged(stored.tensor(name), layers.get(name.removesuffix(".weight"))),
            side=side,
            shard_bytes=shard_bytes,
        )
        load_network(folder, device="meta")
        told.append(_check_weights(stored, Stored(folder), layers))
        if check_outputs:
            film = {f"{FILM}.{name}": one for name, one in adapters.film.items()}
            originals |= {f"{name}.weight": stored.tensor(f"{name}.weight") for name in layers}
            told.append(_check_outputs(folder, film | layers, originals, device))
    kept = sorted({*side} | ({TRAINING_FILE} & files.keys()))
    told.append(
        f"{out}: {len(layers)} layers merged; carried along: {', '.join(kept) or 'no side files, there are none'}"
    )
    return told


def export(source: Path, out: Path, *, step: str | None = None, shard_bytes: int = DEFAULT_SHARD_BYTES) -> list[str]:
    """A folder that OpenVLA-OFT's own loader takes: its files, names, prefixes and dtypes, compared key by key.

    Args:
        step: See `split`.

    Raises:
        CheckpointError: `source` is no whole checkpoint, or has what OpenVLA-OFT has no place for.
    """
    stored, model = opened(source)
    require_new(out, source)
    side, extra = _divided(stored)
    notes = []
    if FILM in side:
        side[FILM], rank = _wrapped(side[FILM], model.architecture)
        if rank != OFT_RANK:
            notes.append(f"note: FiLM's adapters have rank {rank}: start OpenVLA-OFT with --lora_rank {rank}")
    side = {
        part: {name: value.to(SIDE_DTYPES.get(part, value.dtype)) for name, value in weights.items()}
        for part, weights in side.items()
    }
    shapes = _main_shapes(stored, extra)
    _check_keys(source, shapes, side, model.architecture)
    processor = read_json(source, PROCESSOR_FILE)
    made = processor_record(PrismaticImageProcessor.from_file(source / PROCESSOR_FILE))
    config = {"architectures": ["OpenVLAForActionPrediction"], "n_action_bins": 256, "pad_to_multiple_of": 64}
    files: dict[str, Path | bytes] = dict(stored.others)
    files["config.json"] = json_file(config | stored.config)
    files[PROCESSOR_FILE] = json_file(made | processor)
    files[STATISTICS_FILE] = json_file(read_norm_stats(source))
    names = {f"{part}--{step or step_of(stored)}_checkpoint.pt": weights for part, weights in side.items()}
    with new_folder(out) as folder:
        write_stored(
            folder,
            files=files,
            shapes=shapes,
            tensor_of=lambda name: extra[name] if name in extra else stored.tensor(name),
            side=names,
            shard_bytes=shard_bytes,
        )
        load_network(folder, device="meta")
    if TOKENIZER_FILE not in files:
        notes.append(f"note: {source} has no {TOKENIZER_FILE}; put those of openvla/openvla-7b into {out}")
    if "timm_model_kwargs" in stored.config:
        notes.append(
            "note: config.json shrinks the towers (timm_model_kwargs), which OpenVLA-OFT's own code does not do"
        )
    if "action_head" not in side:
        notes.append(
            "note: no action head: an original OpenVLA, or tokens side by side; load it with use_l1_regression=False"
        )
    count = len(shapes) + sum(map(len, side.values()))
    return [f"{out}: {count} keys as OpenVLA-OFT names them; {', '.join(sorted(names)) or 'no side files'}", *notes]


def _divided(stored: Stored) -> tuple[dict[str, Weights], Weights]:
    """Side files of a folder, from wherever their weights lie, and FiLM's towers as plain ones for the shards."""
    side = {part: stored.side(part) for part in stored.side_paths}
    for part, names in stored.joined.items():
        side[part] = {name.removeprefix(f"{part}."): stored.tensor(name) for name in names}
    if is_film(stored.headers):
        side[FILM] = {name: stored.tensor(name) for name in stored.headers if name.startswith(f"{FILM}.")}
    if FILM not in side:
        return side, {}
    towers = {
        name.replace(".block.", "."): value
        for name, value in merge_lora(side[FILM]).items()
        if ".scale." not in name and ".shift." not in name
    }
    return side, towers


def _main_shapes(stored: Stored, extra: Weights) -> dict[str, Shape]:
    """Of what stays in the shards: no heads, and of FiLM's towers the plain ones."""
    heads = tuple(f"{part}." for part in stored.joined)
    kept = {name: shape for name, shape in stored.shapes.items() if not (heads and name.startswith(heads))}
    if extra:
        kept = {name: shape for name, shape in kept.items() if not name.startswith(f"{FILM}.")}
    return kept | shapes_of(extra)


def _refuse_twice(base: Path, place: Path) -> None:
    """See that the base is not the merged checkpoint that the adapters came with.

    Raises:
        CheckpointError: it is.
    """
    own = base / ADAPTER_FOLDER / ADAPTER_WEIGHTS
    if own.is_file() and _sha256(own) == _sha256(place / ADAPTER_WEIGHTS):
        raise CheckpointError(
            f"{base} has these adapters in its own {ADAPTER_FOLDER}/: they are merged there already; give the "
            "checkpoint that they were trained on"
        )


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_of_adapter(path: Path) -> bool:
    return path.is_file() and (path.name.startswith("adapter_") or path.parent.name == ADAPTER_FOLDER)


def _film_with(
    weights: Weights, film: Mapping[str, Adapter], path: Path, is_of_base: bool, originals: Weights
) -> tuple[Weights, list[str]]:
    """FiLM's side file as its readers will understand it, and what to tell about it.

    Args:
        is_of_base: Whether the file lies beside the weights that the adapters were trained on.
        originals: Gets the towers' weights without adapters, by their names in the network.

    Raises:
        CheckpointError: file and adapters contradict each other.
    """
    if any(WRAPPED in name for name in weights):
        originals |= {f"{FILM}.{name}.weight": weights[f"{FILM}.{name}{WRAPPED}weight"] for name in film}
        changed, count = film_for_readers(weights, film, path)
        if count:
            return changed, [
                f"{path.name}: {count} layers rescaled to alpha = min(rank, {MAX_ALPHA}), which readers assume"
            ]
        return changed, [f"{path.name}: its adapters stay beside its weights, as OpenVLA-OFT and rsd read them"]
    if not film:
        return weights, []
    if not is_of_base:
        raise CheckpointError(
            f"{path} holds FiLM's towers without adapters, and the adapter folder has some: nobody can say whether "
            "they were merged; put the base model's file into the base's folder, or take it as training saved it"
        )
    names = {f"{FILM}.{name}.weight": one for name, one in film.items()}
    if missing := sorted(name for name, one in names.items() if shapes_of(weights).get(name) != one.shape):
        raise CheckpointError(f"{path} has no {missing[0]} of the shape of its adapter; give the base of this training")
    originals |= {name: weights[name] for name in names}
    told = [f"{path.name}: {len(film)} layers of FiLM's towers merged"]
    return {name: merged(value, names.get(name)) for name, value in weights.items()}, told


def _check_weights(before: Stored, after: Stored, layers: Mapping[str, Adapter]) -> str:
    """Hold what was written to base + scale * B A, computed once more in float64.

    Raises:
        CheckpointError: a layer is off by more than its dtype's rounding, or another weight has changed.
    """
    worst = 0.0
    for name in after.headers:
        old, new = before.tensor(name), after.tensor(name)
        one = layers.get(name.removesuffix(".weight"))
        if one is None:
            if not torch.equal(old, new):
                raise CheckpointError(f"{name} has no adapter and has changed; nothing was written")
            continue
        expected = old.double() + one.scale * (one.up.double() @ one.down.double())
        if one.magnitude is not None:
            expected *= (one.magnitude.double() / expected.norm(dim=1))[:, None]
        off = float((new.double() - expected).abs().max() / expected.abs().max())
        if not off <= ROUNDING[new.dtype]:
            raise CheckpointError(f"{name} is off base + adapter by {off:.3g} of its largest; nothing was written")
        worst = max(worst, off)
    return f"merged weights are off base + adapter by at most {worst:.2g} of their largest"


def _check_outputs(folder: Path, layers: Mapping[str, Adapter], originals: Weights, device: str) -> str:
    """Compare the merged network with the base and its adapters beside it, computed in float32."""
    model = load_network(folder, device=device)
    after = outputs(model)
    for name, value in originals.items():
        put(model, name, value.to(device, torch.float32))
    beside, without = outputs(model, layers), outputs(model)
    tolerance = max((TOLERANCE[value.dtype] for value in originals.values()), default=TOLERANCE[torch.float32])
    off = require_same(after, beside, tolerance=tolerance, what="merging the adapters")
    effect = distance(beside, without)
    return f"logits: merged and adapted differ by {off:.2g} of the largest; the adapters' own effect is {effect:.2g}"


def _linear_names(architecture: Architecture) -> set[str]:
    """Linear layers of FiLM's towers that an adapter of "all linear layers" is on, as their file names them."""
    model = outline(architecture)
    return {
        f"{FILM}.{name}"
        for name, module in model.vision_backbone.named_modules()
        if isinstance(module, nn.Linear) and not name.endswith((".scale", ".shift"))
    }


def _wrapped(weights: Weights, architecture: Architecture) -> tuple[Weights, int]:
    """FiLM's file with adapters on every linear layer, as OpenVLA-OFT's loader expects; those that are added are zero.

    Returns:
        The weights, and the adapters' rank.
    """
    ranks = {len(value) for name, value in weights.items() if ".lora_A." in name}
    if len(ranks) > 1:
        raise CheckpointError(f"FiLM's adapters have ranks {sorted(ranks)}; OpenVLA-OFT takes one: join, then export")
    rank = next(iter(ranks), OFT_RANK)
    result: Weights = {}
    linear = _linear_names(architecture)
    for name, value in weights.items():
        layer, _, leaf = name.rpartition(".")
        if layer not in linear:
            result[name] = value
            continue
        result[f"{layer}{WRAPPED}{leaf}"] = value
        if leaf == "weight":
            result[f"{layer}.lora_A.default.weight"] = value.new_zeros(rank, value.shape[1])
            result[f"{layer}.lora_B.default.weight"] = value.new_zeros(len(value), rank)
    return result, rank


def _check_keys(source: Path, shapes: Mapping[str, Shape], side: Mapping[str, Weights], own: Architecture) -> None:
    """Compare every key with OpenVLA-OFT's (SPEC §2, §10).

    Raises:
        CheckpointError: one is missing, too many, or of another shape.
    """
    plain = dataclasses.replace(own, action_head="autoregressive", proprio_dim=None, film=False)
    check_names(source, shapes_of(outline(plain).state_dict()), dict(shapes))
    full = shapes_of(outline(own).state_dict())
    for part, weights in side.items():
        prefix = f"{part}."
        expected: dict[str, Any] = {n.removeprefix(prefix): shape for n, shape in full.items() if n.startswith(prefix)}
        if part == FILM:
            made = {f"{prefix}{name}": torch.empty(shape, device="meta") for name, shape in expected.items()}
            rank = next(len(value) for name, value in weights.items() if ".lora_A." in name)
            example = {**made, "x.lora_A.default.weight": torch.empty(rank, 1, device="meta")}
            expected = shapes_of(_wrapped(example, own)[0])
            del expected["x.lora_A.default.weight"]
        check_names(source, expected, shapes_of(weights))
