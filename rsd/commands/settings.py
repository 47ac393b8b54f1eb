"""All settings of a composed configuration held to what reads them, before a command does anything else.

A node with a `_target_` of this package is held to that constructor's annotations (rsd/settings.py), and what stands in
no such node to the table below. What surprises first: a message names the key where the value stands, and not those
that it reaches by interpolation: quantizer.tokenizer.num_levels, and not phase.module.tokenizer.num_levels.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, cast

from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rsd.errors import SettingError
from rsd.settings import (
    ChunkLength,
    Count,
    Depth,
    Device,
    Finite,
    Fraction,
    Length,
    Made,
    Natural,
    NotNegative,
    Pattern,
    Point,
    Points,
    Positive,
    Processes,
    Range,
    Seed,
    Side,
    Text,
    Views,
    Width,
    fits,
    hints,
    require,
)
from rsd.silence import LONGEST_S

PACKAGE = "rsd."
LOADER = "rsd.commands.configured.loader"
TASK_IDS = Annotated[list[Natural], Length()] | None
KEYS_INSIDE = dict[str, Any]
GROUPS = (
    "paths",
    "data",
    "env",
    "protocol",
    "model",
    "quantizer",
    "draft",
    "target",
    "decoding",
    "accept",
    "visual_tokens",
    "text",
)
SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
Ratio = Annotated[float, Range(0, 64, above=True)]
VIT = {
    "patch_size": Width,
    "embed_dim": Width,
    "depth": Depth,
    "num_heads": Depth,
    "mlp_ratio": Ratio,
    "reg_tokens": Annotated[int, Range(0, 1024)],
    "layer_scale": bool,
    "attention_pool": bool,
}
LLM = {
    "hidden_size": Width,
    "intermediate_size": Width,
    "num_hidden_layers": Depth,
    "num_attention_heads": Depth,
    "num_key_value_heads": Depth,
    "initializer_range": Fraction,
}
CONV = {name: Width for name in ("width", "num_keypoints", "feature_dim")}
PATCHES = {"width": Width, "feature_dim": Width, "film": bool}
ARCHITECTURE: dict[str, Any] = {
    "architecture": KEYS_INSIDE | None,
    "architecture.learned_slots": bool,
    **{
        f"architecture.{part}{name}": one
        for part, inside in (("dino", VIT), ("siglip", VIT), ("llm", LLM), ("conv", CONV), ("patches", PATCHES))
        for name, one in {"": KEYS_INSIDE, **{f".{name}": one for name, one in inside.items()}}.items()
    },
}
GRIPPER = {"open": Finite, "closed": Finite, "between": bool, "moves": bool, "dims": list[int] | None}
PLACES = Text | Annotated[list[Text], Length()] | None  # of features, with slices
THRESHOLD = float | Literal["inf", "-inf"]
OFFERS: dict[str, Any] = {"": KEYS_INSIDE | None, ".views": Views, ".proprio_dim": Count, ".action_dim": Count}
# Key to what may stand there; a command holds those that it has
KEYS: dict[str, Any] = {
    **dict.fromkeys((*GROUPS, "phase"), KEYS_INSIDE),
    **{f"{group}.name": Text for group in (*GROUPS, "phase", "decoding.full")},
    "chunk": ChunkLength,
    "seed": Seed,
    "device": Device | Annotated[list[Device], Length()],
    "tasks": TASK_IDS,
    "num_trials": Count,
    "shard": Natural,
    "shards": Count,
    "num_episodes": Count,
    "num_open_loop_steps": Count,
    "delay": Natural,
    "async": Made,
    "save_videos": Natural,
    "save_every": Count,
    "val_every": Count,
    "num_workers": Processes,
    "max_batch": Count,
    "policy_threads": Processes,
    "simulator_timeout_s": Annotated[float, Range(0, LONGEST_S, above=True)],
    "render_devices": Annotated[list[Natural], Length()] | None,
    "video_every_step": bool,
    "max_episodes": Count | None,
    "out": Text,
    "dry_run": bool,
    "exchanged": Annotated[float, Range(0, 1)],
    "tokenizers": list[Text],
    "depths": Annotated[list[Depth], Length()] | None,
    "disturbed": bool,
    "hdf5": Text | None,
    "num_still": Natural,
    "quick": bool,
    "name": Annotated[str, Pattern(r"[\w.-]+", "letters, digits, dots and dashes")] | None,
    "split": Literal["val", "all"],
    **dict.fromkeys(("num_frames", "batch_size"), Count),
    "num_looks": Natural,
    "simulator": bool,
    "host": Text,
    "port": Annotated[int, Range(0, 65535)],
    "wire": Text,  # typed as protocol=, by which name scripts/serve_policy.py says what it may be
    "limits": Made,
    "origins": list[str],
    "resume": Text | None,
    "policy": Text | None,
    **{name: Made | None for name in ("ablation", "stopping", "hidden_states", "open_loop")},
    **{name: Made for name in ("logger", "trainer", "plan", "cache", "reader", "recipe", "composed")},
    "check": Made | None,
    **dict.fromkeys(("logger.project", "job_type"), Text),
    **{f"paths.{name}": Text for name in ("root", "data", "cache", "checkpoints", "runs")},
    **{f"paths.{name}": Text for name in ("base", "tokenizer", "head", "draft", "correction", "scorer")},
    **{f"data.{name}": Text for name in ("suite", "unnorm_key", "root", "version")},
    **dict.fromkeys(("data.action", "data.proprio"), PLACES),
    "data.language": Text | None,
    "data.views": dict[str, Text] | None,
    **dict.fromkeys(("data.rate", "data.target_rate", "data.idle"), Positive | None),
    "data.every": Count | None,
    "data.relative": bool | list[bool] | None,
    "data.statistics": Text | None,
    "data.units": list[str] | None,
    "data.layout": Made,
    "data.transform": Text | None,
    "data.stream": Made,
    "data.stream.buffer_mb": Positive | None,
    "data.mixture": Text | None,
    "data.members": KEYS_INSIDE | None,
    "data.balance_weights": bool,
    "data.suites": Annotated[list[str], Length()],
    "data.bounds": Literal["quantiles", "extremes"],
    "data.gripper": Made | None,
    **{f"data.gripper.{name}": one for name, one in GRIPPER.items()},
    "protocol.version": Count,
    "protocol.num_trials": Count,
    "protocol.num_wait_steps": Natural,
    "protocol.waiting_action": list[Finite],
    "protocol.max_steps": KEYS_INSIDE,
    **{f"protocol.max_steps.{suite}": Count for suite in (*SUITES, "widowx")},
    "protocol.control_hz": Positive,
    "protocol.blocking": bool,
    "protocol.image_size": Side,
    "protocol.rotate_images": bool,
    "protocol.seed": Seed,
    "protocol.num_open_loop_steps": Count,
    "protocol.clip_actions": bool,
    **{f"env.{name}": Made for name in ("tasks", "make", "replay")},
    "env.check": Made | None,
    "env.suite": Text,
    "env.variant": Text | None,
    "env.allow_mujoco_version": Text | None,
    "env.score_versions": list[str],
    "env.num_tasks": Count,
    "env.num_init_states": Count,
    "env.max_steps": Count,
    "env.image_size": Side,
    "env.instructions": Annotated[list[Text], Length()] | None,
    **dict.fromkeys(("env.control_hz", "env.timeout_s", "env.motion_timeout_s"), Positive),
    "env.proprio_dim": Literal[7, 8],
    "env.blocking": bool,
    **dict.fromkeys(("env.host", "env.camera_topic"), Text),
    "env.port": Annotated[int, Range(1, 65535)],
    "env.start_position": Annotated[list[Finite], Length(3)],
    "env.workspace": Annotated[list[Annotated[list[Finite], Length(5)]], Length(2)],
    **{f"{place}{name}": one for place in ("env.offers", "offers") for name, one in OFFERS.items()},
    "plan.allowed_versions.mujoco": Text | None,
    "decoding.decode": Made,
    "decoding.decode.num_draft_stages": Depth | None,
    "decoding.full": KEYS_INSIDE,
    "decoding.full.decode": Made,
    **{f"decoding.{where}.gate.threshold": THRESHOLD for where in ("decode", "full.decode")},
    "accept.rule": Made,
    "accept.rule.path": Text,
    "demonstrator": KEYS_INSIDE,
    "demonstrator.keep": Annotated[list[Literal["success", "failure"]], Length()],
    "demonstrator.make": Made,
    "demonstrator.lead": Made | None,
    **{f"demonstrator.{who}.{name}": Made for who in ("make", "lead") for name in ("make_policy", "clock")},
    "recipe.store_picture.path": Text,
    "quantizer.num_stages": Depth,
    "quantizer.max_steps": Natural,
    "quantizer.tokenizer": Made,
    "target.checkpoint": Text | None,
    "visual_tokens.num_tokens": Count | None,
    "visual_tokens.seed": Seed,
    "visual_tokens.checkpoint": Text,
    "visual_tokens.suffix": str,
    "visual_tokens.typed": str,
    "visual_tokens.select": Made,
    "text.suffix": str,
    "text.typed": str,
    "text.sentences": Made | None,
    "draft.part": Text | None,
    "draft.readout": Literal["tokens", "numbers"] | None,
    "draft.num_stages": Depth | None,
    "draft.layer": Points | None,
    "draft.earlier": Point | None,
    "phase.points": Points | None,
    "draft.width": Width | None,
    "draft.num_layers": Depth | None,
    "draft.num_heads": Depth | None,
    "draft.control": Made | None,
    "draft.image_size": Side,
    "model.image_size": Side,
    "model.draft_layer": Point,
    "model.head_layer": Point,
    "model.backbone": Made,
    "model.backbone.fp8.keep": list[Text],
    "model.backbone.fp8.limit": Positive,
    **{f"{group}.{name}": one for group in ("model", "draft", "phase.module") for name, one in ARCHITECTURE.items()},
    "layers": Annotated[list[Point], Length()],
    "phase.check": Made | list[Made] | None,
    "phase.max_steps": Natural,
    "phase.checkpoint": Text,
    "phase.used_by": Text,
    "phase.shown": list[str],
    "phase.reads": KEYS_INSIDE | None,  # where a draft cannot be trained, as with module and datamodule
    "phase.reads.data": Text,
    **{f"phase.reads.{name}": Text | None for name in ("base", "tokenizer")},
    "phase.module": Made | None,
    "phase.module.layer": Points,
    "phase.datamodule": Made | None,
    "trainer.accelerator": Literal["cpu", "gpu", "cuda", "auto"],
    "trainer.devices": Annotated[int, Range(1, 1024)] | Literal[-1, "auto"] | Annotated[list[Natural], Length()],
    "trainer.strategy": Text,
    "trainer.precision": Literal["32-true", "bf16-mixed", "16-mixed"],
    "trainer.max_epochs": Literal[-1] | Count,
    "trainer.max_steps": Natural,
    "debug": KEYS_INSIDE | None,
    "debug.batches": Count | None,
    **dict.fromkeys(("trainer.limit_train_batches", "trainer.limit_val_batches"), Count),
    "trainer.profiler": Made | None,
    "trainer.profiler.extended": bool,
    "trainer.val_check_interval": Count,
    "trainer.check_val_every_n_epoch": None,  # val_every counts steps
    "trainer.num_sanity_val_steps": Natural,
    "trainer.log_every_n_steps": Count,
    "trainer.gradient_clip_val": NotNegative | None,
    "trainer.accumulate_grad_batches": Count,
    "trainer.use_distributed_sampler": bool,
    "trainer.enable_model_summary": bool,
    "trainer.enable_progress_bar": bool,
    "trainer.deterministic": bool | Literal["warn"],
}


def check_settings(cfg: DictConfig) -> None:
    """Hold the values of a configuration to the table, and the arguments of what it makes to their annotations.

    Values that cannot be told yet (required, or interpolated from what this command lacks) are left to their reader.

    Raises:
        SettingError: a value does not fit, a node has a key that its constructor lacks, nobody reads `accept`, or a
            data set of one's own says nothing of where its things lie.
    """
    data = cfg.get("data")
    if isinstance(data, DictConfig) and "layout" not in data and ("phase" in cfg or "cache" in cfg):
        raise SettingError(
            f"the data set's configuration ({data.get('name', 'data=')}) lacks what all of them share; begin its file "
            "with the lines defaults:, - _rlds, - _self_ (docs/data.md)"
        )
    for node, name, annotation in held(cfg):
        _check_entry(node, name, annotation)
    if "accept" in cfg and not any("accept" in node for node in _nodes(cfg.get("decoding"))):
        rule, decoding = (OmegaConf.select(cfg, f"{group}.name") for group in ("accept", "decoding"))
        raise SettingError(
            f"accept={rule} is given, and decoding={decoding} accepts no tokens; choose decoding=speculative, which "
            "brings accept along, or leave it out"
        )


def held(cfg: DictConfig) -> Iterator[tuple[DictConfig, str, Any]]:
    """Every node and name in it whose value is held to something, and to what.

    Raises:
        SettingError: a node has a key that its constructor lacks.
    """
    nodes: dict[str, Any] = {"": cfg}
    for key, annotation in KEYS.items():
        parent, _, name = key.rpartition(".")
        if parent not in nodes:
            nodes[parent] = OmegaConf.select(cfg, parent, throw_on_resolution_failure=False)
        node = nodes[parent]
        if isinstance(node, DictConfig) and name in node:
            yield node, name, annotation
    if isinstance(devices := cfg.get("device"), ListConfig) and len(devices) > 0:
        cfg = cast("DictConfig", OmegaConf.merge(cfg, {"device": devices[0]}))  # each has a copy of what is made
    for node in _nodes(cfg):
        target = node._target_
        if not isinstance(target, str):
            require(node._get_full_key("_target_"), target, Text)
        if isinstance(target, str) and target.startswith(PACKAGE):
            yield from ((node, name, one) for name, one in _read_by(node, _imported(node, target)).items())


def _nodes(node: Any) -> Iterator[DictConfig]:
    """Nodes with a `_target_`, each at the place where it stands."""
    if not OmegaConf.is_config(node) or node._is_none() or node._is_missing():
        return
    if "_target_" in node:
        yield node
    names: list[Any] = list(node) if isinstance(node, DictConfig) else list(range(len(node)))
    for name in names:
        if not OmegaConf.is_interpolation(node, name) and not OmegaConf.is_missing(node, name):
            yield from _nodes(node[name])


def _imported(node: DictConfig, target: str) -> Callable[..., Any]:
    try:
        return get_object(target)
    except (ImportError, ValueError) as error:
        raise SettingError(f"{node._get_full_key('_target_')} is {target!r}, which cannot be had: {error}") from error


def _read_by(node: DictConfig, made: Callable[..., Any]) -> dict[str, Any]:
    """Annotations of the arguments that a node gives."""
    annotations, names = arguments(made)
    loaded = OmegaConf.select(node, "config", throw_on_resolution_failure=False)  # a command may have no model
    if node._target_ == LOADER and isinstance(loaded, DictConfig) and "_target_" in loaded:
        annotations = annotations | arguments(_imported(loaded, loaded._target_))[0]  # its other arguments are for that
    given = [str(name) for name in node if not str(name).startswith("_")]
    unknown = [name for name in given if names and name not in names]
    if unknown:
        where = f"{node._get_full_key(None)}.{unknown[0]}"
        raise SettingError(f"{where} is given, but {node._target_} does not take it; it takes {', '.join(names)}")
    return {name: annotations[name] for name in given if name in annotations}


@functools.cache
def arguments(made: Callable[..., Any]) -> tuple[dict[str, Any], list[str]]:
    """Annotations by argument of a `checked` function or constructor, and the names of all its arguments.

    A constructor with `**common` takes those of the class above it, too. Neither where nothing is checked,
    and no names where it takes any.
    """
    functions = [made]
    if isinstance(made, type):
        own = [vars(one)["__init__"] for one in made.__mro__ if "__init__" in vars(one)]
        open_ended = [_takes_more(one) for one in own]
        functions = own[: 1 + open_ended.index(False)]
    annotations: dict[str, Any] = {}
    for function in reversed(functions):
        annotations |= hints(function)
    if not annotations:
        return {}, []
    if _takes_more(functions[-1]):
        return annotations, []
    parameters = [one for function in functions for one in inspect.signature(function).parameters.values()]
    names = [one.name for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    return annotations, sorted({*names} - {"self"})


def _takes_more(function: Callable[..., Any]) -> bool:
    return any(one.kind is one.VAR_KEYWORD for one in inspect.signature(function).parameters.values())


def _check_entry(node: DictConfig, name: str, annotation: Any) -> None:
    try:
        found = cast("Any", node._get_node(name))._maybe_dereference_node(throw_on_resolution_failure=True)
        if found._is_missing() or (OmegaConf.is_dict(found) and "_target_" in found):
            return  # what is made there says itself what it takes
        if OmegaConf.is_dict(found) and not found._is_none() and fits({}, annotation):
            return  # what stands inside is held by itself
        value = OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found._value()
    except OmegaConfBaseException:
        return  # whoever reads it will say so
    if not fits(value, annotation):
        require(found._get_full_key(None), value, annotation)  # a full key takes as long to find as the rest
