"""Every key of every command is held to a type and a range before the command does anything, and named in full."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from rsd.commands.settings import check_settings, held
from rsd.errors import SettingError
from rsd.runs import unused_folder
from rsd.settings import fits
from tests.test_configs import CONF, PHASES, choices

OmegaConf.register_new_resolver("unused", unused_folder, replace=True)
# Together they have every key; what else composes is accepted in tests/test_configs.py
COMMANDS = [
    *(("train", f"phase={phase}", *more) for phase, more in PHASES.items()),
    ("train", "phase=draft", "draft=micro", "visual_tokens=random"),
    ("train", "phase=draft", "draft=numbers"),
    ("train", "phase=draft", "draft=oracle", "logger=wandb"),
    ("train", "phase=rfsq", "quantizer=dct_d2", "trainer=finetune", "data=libero_suites"),
    ("train", "phase=rfsq", "quantizer=bins256"),
    ("train", "phase=oft", "debug=profile"),
    *(("eval", f"decoding={one}") for one in choices("decoding") if one != "speculative_sampled"),
    ("eval", "decoding=speculative", "accept=levels"),
    ("eval", "stopping=decided", "ablation=other_instruction", "visual_tokens=learned", "model=oft_spatial"),
    ("collect", "demonstrator=corrections"),
    ("collect", "demonstrator=policy"),
    ("replay_demos",),
    ("eval", "env=replay", "data=libero_spatial"),
    ("eval", "env=widowx", "protocol=openvla_bridge", "env.instructions=[put the carrot on the plate]"),
    ("cache",),
    ("doctor", "model=oft_tiny"),
    ("inspect", "model=oft_tiny"),
    ("diagnose", "model=oft_tiny", "data=libero_spatial"),
    ("serve",),
]
UNREAD = {"phase.check.checkpoint", "phase.check.hub_id"}  # where a draft cannot be trained
UNREAD |= {"data.views.image"}  # held with data.views, whose keys are free


@functools.cache
def composed(command: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(command[0], list(command[1:]))
    OmegaConf.set_struct(cfg, False)
    return cfg


def keys(node: DictConfig, prefix: str = "") -> Iterator[str]:
    """All keys, of groups and of what stands in them; not those that name what is made, or how."""
    for name in node:
        if not str(name).startswith("_"):
            yield f"{prefix}{name}"
            if not OmegaConf.is_interpolation(node, name) and isinstance(node._get_node(name), DictConfig):
                yield from keys(node[name] or {}, f"{prefix}{name}.")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_key_is_held_to_something(command):
    """A key with a new reader fails here until its type is written down: as an annotation, or in KEYS."""
    cfg = composed(command)
    refuses = {
        node._get_full_key(name) for node, name, kind in held(cfg) if not (fits({"wrong": 1}, kind) and fits(2.5, kind))
    }
    own = {key for key in keys(cfg) if key.split(".")[0] != "phases"}  # doctor's: two trainings, held above as phase
    assert own - refuses - UNREAD == set()


TRAIN, MICRO, EVAL = ("train", "phase=oft"), ("train", "phase=draft", "draft=micro"), ("eval", "decoding=speculative")
RFSQ, HEAD, COLLECT, SERVE = ("train", "phase=rfsq"), ("train", "phase=head"), ("collect",), ("serve",)
STAGES, HORIZON = ("train", "phase=rfsq", "quantizer=dct_d2"), ("eval", "decoding=fixed_horizon")
LORA = ("train", "phase=oft_lora", "model=oft_spatial")


def slips() -> Iterator[tuple[tuple[str, ...], str, Any, str]]:
    """Command, key, value, and what is expected of it."""
    for command, key, values, expected in [
        (EVAL, "num_workers", (0, -1, 2.5, "abc", None, True, 10**12), "a whole number from 1 to 1024"),
        (EVAL, "tasks", ([], 4, "abc", [-1], [1.5], {}), "a list (each entry a whole number of at least 0)"),
        (EVAL, "max_batch", (0, -1, 1e30, math.nan), "a whole number of at least 1"),
        (EVAL, "env.max_steps", (0, -5, 2.5), "a whole number of at least 1"),
        (EVAL, "protocol.max_steps.libero_10", (0, "abc"), "a whole number of at least 1"),
        (EVAL, "save_videos", (-1, 0.5), "a whole number of at least 0"),
        (EVAL, "decoding.decode.temperature", (-0.1, "abc", math.nan, math.inf, None), "a number of at least 0"),
        (EVAL, "num_trials", (0, 2.5, "abc"), "a whole number of at least 1"),
        (EVAL, "simulator_timeout_s", (0, -1, math.nan, "abc", None), "a number above 0"),
        (EVAL, "device", ("gpu0", [], "", 4, None, ["cpu", "gpu"]), "cpu, cuda or cuda:N or a list"),
        (EVAL, "policy", (4, []), "text that is not empty or null"),
        (EVAL, "paths.runs", ("", 4), "text that is not empty"),
        (HORIZON, "decoding.decode.num_steps", (0, 2.5), "a whole number of at least 1"),
        (HORIZON, "decoding.decode.full", ("l1", None), "a Decoding"),
        (COLLECT, "num_episodes", (0, -1, 2.5, "abc", 10**12), "a whole number of at least 1"),
        (SERVE, "port", (99999, -1, "abc"), "a whole number from 0 to 65535"),
        (SERVE, "origins", (None, "*", [4]), "a list (each entry text)"),
        (TRAIN, "seed", (1.5, "abc", -1, None), "a whole number from 0 to 4294967295"),
        (TRAIN, "save_every", (0, -1, None), "a whole number of at least 1"),
        (TRAIN, "val_every", (0, -1, 1.5), "a whole number of at least 1"),
        (TRAIN, "phase.max_steps", (-1, 2.5, None), "a whole number of at least 0"),
        (TRAIN, "phase.module.learning_rate", ("fast", 0, -1, math.nan, math.inf), "a number above 0"),
        (RFSQ, "phase.module.learning_rate", (1e38, 2e30), "a number above 0 to 1e+30"),
        (TRAIN, "phase.module.weight_decay", (1e38, -1), "a number from 0 to 1000"),
        (TRAIN, "phase.datamodule.batch_size", (0, -1, "abc"), "a whole number of at least 1"),
        (TRAIN, "model.architecture.llm.hidden_size", (0, 1.5, None), "a whole number from 1 to 65536"),
        (TRAIN, "model.architecture.dino", (4, [1]), "keys with values"),
        (TRAIN, "model.architecture", (4, [1]), "keys with values or null"),
        (TRAIN, "model.image_size", (0, 2.5, 65536, None), "a whole number from 1 to 4096"),
        (TRAIN, "phase.reads.data", (None, 4, ""), "text that is not empty"),
        (TRAIN, "phase.module._target_", (None, 4), "text that is not empty"),
        (TRAIN, "logger._target_", (None,), "text that is not empty"),
        (TRAIN, "trainer.accelerator", ("abc", None), "one of cpu, gpu, cuda, auto"),
        (TRAIN, "trainer.devices", ([], 0, -2, 1.5), "a whole number from 1 to 1024 or one of -1, auto"),
        (TRAIN, "trainer.precision", ("abc", 32), "one of 32-true"),
        (TRAIN, "data.gripper.open", (math.inf, "abc", None), "a number that is finite"),
        (TRAIN, "data.bounds", ("abc", None), "one of quantiles, extremes"),
        (RFSQ, "quantizer.tokenizer.num_levels", (1, 0, 2.5), "a whole number from 2 to 65536"),
        (RFSQ, "quantizer.num_stages", (0, -1, None), "a whole number from 1 to 1024"),
        (STAGES, "quantizer.tokenizer.margin", (0, -1, math.nan), "a number above 0"),
        (HEAD, "phase.datamodule.cache.shard_mb", (0, -1, 1.5), "a whole number of at least 1"),
        (HEAD, "phase.datamodule.cache.directory", ("", 4, []), "a path or null"),
        (HEAD, "phase.datamodule.cache.max_clipped", (-1, 2, math.nan), "a number from 0 to 1"),
        (HEAD, "phase.module.weights_dtype", ("float16", "abc", 16, None), "one of float32, bfloat16"),
        (MICRO, "phase.module.weights_dtype", ("float16", None), "one of float32, bfloat16"),
        (HEAD, "phase.module.layer", (0, -1, 1.5, None, ""), "a whole number of at least 1 or text"),
        (LORA, "model.backbone.fp8.limit", (0, -0.1, "abc", None, math.nan, math.inf), "a number above 0"),
        (LORA, "model.backbone.fp8.keep", ("projector", None, [4], [""]), "a list (each entry text that is not empty)"),
        (MICRO, "draft.architecture.llm.num_hidden_layers", (0, "abc"), "a whole number from 1 to 1024"),
        (MICRO, "phase.module.number_weight", (-1, "abc"), "a number of at least 0"),
        (("cache",), "cache.outline.device", ("gpu0", 4, None), "cpu, cuda or cuda:N or meta"),
        (("train", "phase=tokens"), "phase.module.base.visual_tokens", (4, "abc", []), "a VisualTokens or null"),
        (("cache",), "layers", ([], 4, [0], None), "a list (each entry a whole number of at least 1 or text"),
    ]:
        for value in values:
            yield command, key, value, expected


@pytest.mark.parametrize(("command", "key", "value", "expected"), list(slips()))
def test_a_slip_is_one_line_with_key_and_what_is_expected(command, key, value, expected):
    cfg = copy.deepcopy(composed(command))
    OmegaConf.update(cfg, key, value, merge=False)
    with pytest.raises(SettingError) as refused:
        check_settings(cfg)
    assert str(refused.value).startswith(f"{key} is ") and f", expected {expected}" in str(refused.value)


@pytest.mark.parametrize(
    ("command", "key", "value"),
    [
        (EVAL, "tasks", [1]),
        (EVAL, "device", ["cuda:0", "cuda:1"]),
        (EVAL, "decoding.decode.temperature", 1),
        (("eval", "decoding=early_exit"), "decoding.decode.gate.threshold", -math.inf),
        (("eval", "decoding=early_exit"), "decoding.decode.gate.threshold", "inf"),
        (HEAD, "phase.module.layer", "head"),
        (TRAIN, "trainer.devices", -1),
        (TRAIN, "phase.module.start_from", "a folder"),
        (LORA, "model.backbone.fp8.keep", []),
    ],
)
def test_what_has_a_meaning_passes(command, key, value):
    cfg = copy.deepcopy(composed(command))
    OmegaConf.update(cfg, key, value, merge=False)
    check_settings(cfg)


def test_a_target_that_cannot_be_had_is_one_line():
    cfg = copy.deepcopy(composed(TRAIN))
    cfg.phase.module._target_ = "rsd.training.oft.Absent"
    with pytest.raises(
        SettingError, match=r"^phase\.module\._target_ is 'rsd.training.oft.Absent', which cannot be had"
    ):
        check_settings(cfg)


def test_what_a_command_has_no_model_for_is_left_to_its_reader():
    check_settings(composed(("doctor",)))
