"""All settings of a composed configuration held to what reads them, before a command does anything else.

A node with a `_target_` of this package is held to that constructor's annotations (rsd/settings.py), and what stands in
no such node to the table below. What surprises first: a message names the key where the value stands, and not those
that it reaches by interpolation: quantizer.tokenizer.num_levels, and not phase.module.tokenizer.num_levels.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, cast

from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rsd.errors import SettingError
from rsd.settings import (
    Count,
    Depth,
    Device,
    Finite,
    Length,
    Natural,
    NotNegative,
    Positive,
    Processes,
    Range,
    Seed,
    Width,
    hints,
    require,
)

PACKAGE = "rsd."
Point = Count | Literal["head"] | str
TASK_IDS = Annotated[list[Natural], Length()] | None
VIT = {
    "patch_size": Width,
    "embed_dim": Width,
    "depth": Depth,
    "num_heads": Depth,
    "mlp_ratio": Positive,
    "reg_tokens": Natural,
    "layer_scale": bool,
    "attention_pool": bool,
}
# Key to what may stand there; a command holds those that it has
KEYS: dict[str, Any] = {
    "seed": Seed,
    "device": Device | Annotated[list[Device], Length()],
    "layers": Annotated[list[Point], Length()],
    "tasks": TASK_IDS,
    "num_trials": Count,
    "num_episodes": Count,
    "num_open_loop_steps": Count,
    "save_videos": Natural,
    "save_every": Count,
    "val_every": Count,
    "num_workers": Processes,
    "max_batch": Count,
    "policy_threads": Processes,
    "render_devices": Annotated[list[Natural], Length()] | None,
    "video_every_step": bool,
    "dry_run": bool,
    "quick": bool,
    "simulator": bool,
    "host": str,
    "port": Annotated[int, Range(0, 65535)],
    **{f"paths.{name}": str for name in ("root", "data", "cache", "checkpoints", "runs")},
    **{f"data.{name}": str for name in ("suite", "name", "unnorm_key", "root", "version")},
    "data.suites": Annotated[list[str], Length()],
    "protocol.name": str,
    "protocol.version": Count,
    "protocol.num_trials": Count,
    "protocol.num_wait_steps": Natural,
    "protocol.waiting_action": list[Finite],
    "protocol.image_size": Width,
    "protocol.rotate_images": bool,
    "protocol.seed": Seed,
    "protocol.num_open_loop_steps": Count,
    "protocol.clip_actions": bool,
    "env.num_tasks": Count,
    "env.num_init_states": Count,
    "env.max_steps": Count,
    "env.image_size": Width,
    "env.offers.views": Annotated[list[str], Length()],
    "env.offers.proprio_dim": Count,
    "env.offers.action_dim": Count,
    "decoding.decode.num_draft_stages": Depth | None,
    "demonstrator.keep": Annotated[list[Literal["success", "failure"]], Length()],
    "quantizer.num_stages": Depth,
    "quantizer.max_steps": Natural,
    "draft.num_stages": Depth | None,
    "draft.layer": Point | None,
    "draft.width": Width | None,
    "draft.num_layers": Depth | None,
    "draft.num_heads": Depth | None,
    "model.image_size": Width,
    "model.draft_layer": Point,
    "model.head_layer": Point,
    "model.architecture.learned_slots": bool,
    **{f"model.architecture.{tower}.{name}": one for tower in ("dino", "siglip") for name, one in VIT.items()},
    **{f"model.architecture.conv.{name}": Width for name in ("width", "num_keypoints", "feature_dim")},
    "model.architecture.llm.hidden_size": Width,
    "model.architecture.llm.intermediate_size": Width,
    "model.architecture.llm.num_hidden_layers": Depth,
    "model.architecture.llm.num_attention_heads": Depth,
    "model.architecture.llm.num_key_value_heads": Depth,
    "model.architecture.llm.initializer_range": Positive,
    "phase.max_steps": Natural,
    "phase.shown": list[str],
    "trainer.devices": Annotated[int, Range(1, 1024)] | Literal[-1, "auto"] | list[Natural],
    "trainer.max_epochs": Literal[-1] | Natural,
    "trainer.max_steps": Natural,
    "trainer.val_check_interval": Count,
    "trainer.check_val_every_n_epoch": Count | None,
    "trainer.num_sanity_val_steps": Natural,
    "trainer.log_every_n_steps": Count,
    "trainer.gradient_clip_val": NotNegative | None,
    "trainer.accumulate_grad_batches": Count,
    "trainer.use_distributed_sampler": bool,
    "trainer.enable_model_summary": bool,
    "trainer.enable_progress_bar": bool,
    "trainer.deterministic": bool | Literal["warn"],
}


def check_settings(cfg: DictConfig, unread: tuple[str, ...] = ()) -> None:
    """Hold the values of a configuration to the table, and the arguments of what it makes to their annotations.

    Values that cannot be told yet (required, or interpolated from what this command lacks) are left to their reader.

    Args:
        unread: Groups that the command may never come to read, and whose code takes seconds to import.

    Raises:
        SettingError: a value does not fit, or a node has a key that its constructor lacks.
    """
    for key, annotation in KEYS.items():
        parent, _, name = key.rpartition(".")
        node = OmegaConf.select(cfg, parent) if parent else cfg
        if isinstance(node, DictConfig) and name in node:
            _check_entry(node, name, annotation)
    for node in _nodes(cfg, unread):
        target = node._target_
        if isinstance(target, str) and target.startswith(PACKAGE):
            _check_node(node, get_object(target))


def _nodes(node: Any, unread: tuple[str, ...] = ()) -> Iterator[DictConfig]:
    """Nodes with a `_target_`, each at the place where it stands."""
    if isinstance(node, DictConfig):
        if "_target_" in node:
            yield node
        inside: list[Any] = [name for name in node if name not in unread]
    elif isinstance(node, ListConfig):
        inside = list(range(len(node)))
    else:
        return
    if not node._is_none() and not node._is_missing():
        for name in inside:
            if not OmegaConf.is_interpolation(node, name) and not OmegaConf.is_missing(node, name):
                yield from _nodes(node[name])


def _check_node(node: DictConfig, made: Callable[..., Any]) -> None:
    annotations, names = arguments(made)
    given = [str(name) for name in node if not str(name).startswith("_")]
    unknown = [name for name in given if names and name not in names]
    if unknown:
        where = f"{node._get_full_key(None)}.{unknown[0]}"
        raise SettingError(f"{where} is given, but {node._target_} does not take it; it takes {', '.join(names)}")
    for name in given:
        if name in annotations:
            _check_entry(node, name, annotations[name])


def arguments(made: Callable[..., Any]) -> tuple[dict[str, Any], list[str]]:
    """Annotations by argument of a `checked` function or constructor, and the names of all its arguments.

    A constructor with `**common` takes those of the class above it, too. Neither where nothing is checked.
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
        value = OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found._value()
    except OmegaConfBaseException:
        return  # whoever reads it will say so
    require(found._get_full_key(None), value, annotation)
