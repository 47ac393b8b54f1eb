"""Is everything in order? python scripts/doctor.py [quick=true] [model=oft_spatial] [data=…] [device=cuda]

Looks at the machine, the simulator and the data set, and with model= at the model's checkpoints: whether base model,
tokenizer, head and draft fit together, whether the weights fit into memory, and whether the loaded model passes the
canaries. One row a finding; a row that is not ok ends in what repairs it. The exit code is 1 when a row FAILED.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from rsd.data import DataError
from rsd.data.rlds import RLDSDataset
from rsd.data.rlds_metadata import check_dataset
from rsd.entry_point import cause_of, is_expected, report_errors, run
from rsd.envs.checks import check_installed_files
from rsd.envs.gl import INSTALL_COMMAND, MUJOCO_VERSION, REINSTALL_COMMAND, check_simulator
from rsd.envs.scene_trials import run_scene_trials
from rsd.envs.suites import check_suite, suite_name
from rsd.normalization import BOUNDS, bounds_of, unnormalize

if TYPE_CHECKING:  # what needs torch is imported where it is used, so that --help comes at once
    from rsd.models.openvla.backbone import OpenVLABackbone

CONFIG = Path(__file__).parents[1] / "conf" / "doctor.yaml"
OK, WARNING, FAILED = "ok", "warning", "FAILED"
STYLES = {OK: "green", WARNING: "yellow", FAILED: "bold red"}
NUM_OBSERVATIONS = 4
SCARCE_GB, TOO_LITTLE_GB = 10.0, 1.0  # of free disk
WORKING_MEMORY = 1.2  # memory that a model needs, relative to its weights


@dataclass(frozen=True)
class Finding:
    """One row: what was looked at, how it is, and what was found, with the remedy where it is not ok."""

    name: str
    status: str
    found: str


def examine(name: str, look: Callable[..., Iterable[Finding]], *arguments: object) -> Iterator[Finding]:
    """What `look` finds; an error that speaks to the user becomes a finding too."""
    try:
        yield from look(*arguments)
    except Exception as raised:
        error = cause_of(raised)
        if not is_expected(error):
            raise
        yield Finding(name, FAILED, str(error))


def torch_and_device(device: str) -> Iterator[Finding]:
    import torch

    name = torch.cuda.get_device_name(device) if device.startswith("cuda") and torch.cuda.is_available() else device
    if device.startswith("cuda") and not torch.cuda.is_available():
        found = f"torch {torch.__version__} sees no GPU; install its CUDA build or a driver, or say device=cpu"
        yield Finding("torch", FAILED, found)
        return
    yield Finding("torch", OK, f"{torch.__version__} on {name}")


def free_disk(root: Path) -> Iterator[Finding]:
    folder = next(path for path in (root.absolute(), *root.absolute().parents) if path.is_dir())
    if not os.access(folder, os.W_OK):
        yield Finding("disk", FAILED, f"{folder} cannot be written to; set paths.root to a folder of yours")
        return
    free = shutil.disk_usage(folder).free / 1e9
    status = FAILED if free < TOO_LITTLE_GB else WARNING if free < SCARCE_GB else OK
    remedy = "" if status == OK else "; make room, or set paths.root to a folder on another disk"
    yield Finding("disk", status, f"{free:.1f} GB free for outputs in {folder}{remedy}")


def simulator(env: DictConfig) -> Iterator[Finding]:
    found = check_simulator(env.allow_mujoco_version)
    yield Finding("GL backend", OK, f"{found['gl_backend']} renders")
    if found["mujoco"] == MUJOCO_VERSION:
        yield Finding("MuJoCo", OK, f"{found['mujoco']}, with robosuite {found['robosuite']}")
    else:
        remedy = f"scores are not comparable; pip install mujoco=={MUJOCO_VERSION}"
        yield Finding("MuJoCo", WARNING, f"{found['mujoco']} accepted by env.allow_mujoco_version: {remedy}")


def libero_files() -> Iterator[Finding]:
    counts = check_installed_files()
    if not counts:
        yield Finding("LIBERO's files", WARNING, f"not compared: no installer noted their sizes; {INSTALL_COMMAND}")
        return
    yield Finding("LIBERO's files", OK, f"{sum(counts.values())} of {next(iter(counts))} are there, in the right sizes")


def suite(env: DictConfig) -> Iterator[Finding]:
    check_suite(env.suite, env.variant, num_tasks=env.num_tasks, num_init_states=env.num_init_states)
    name = suite_name(env.suite, env.variant)
    yield Finding("suite", OK, f"{name}: {env.num_tasks} tasks with {env.num_init_states} init states or more")


def scene(env: DictConfig) -> Iterator[Finding]:
    try:
        for trial in run_scene_trials(env.allow_mujoco_version):
            yield Finding(trial.name, OK if trial.passed else FAILED, trial.found)
    except Exception as error:  # noqa: BLE001  whatever the simulator raises is what there is to report
        first_line = str(error).partition("\n")[0]
        remedy = f"pip install mujoco=={MUJOCO_VERSION}" if env.allow_mujoco_version else REINSTALL_COMMAND
        yield Finding("scene", FAILED, f"{type(error).__name__}: {first_line}; {remedy}")


def dataset(data: DictConfig, offers: DictConfig) -> Iterator[Finding]:
    """Its first and last episode are read, pictures included."""
    directory = Path(data.root) / data.name / data.version
    if not directory.is_dir():
        try:
            check_dataset(directory)
        except DataError as absent:
            yield Finding("data set", WARNING, f"{absent}; evaluation needs none")
            return
    episodes = RLDSDataset(directory)
    for index in {0, len(episodes) - 1}:
        episodes.episode(index, images=True)
    expected = {f"observation/{view}" for view in offers.views} | {"observation/state", "action"}
    shapes = {name.removeprefix("steps/"): spec.shape for name, spec in episodes.features.items()}
    wrong = sorted(expected - shapes.keys())
    for name, dims in (("observation/state", offers.proprio_dim), ("action", offers.action_dim)):
        wrong += [f"{name} of {dims} dims"] if shapes.get(name, (dims,)) != (dims,) else []
    if wrong:
        yield Finding("data set", FAILED, f"{directory} lacks {wrong}; fetch or collect a set that has them")
        return
    yield Finding("data set", OK, f"{directory}: {len(episodes)} episodes, first and last read, LIBERO's features")


def contract(backbone: OpenVLABackbone) -> Iterator[Finding]:
    """What goes in and comes out."""
    size = sum(parameter.numel() for parameter in backbone.model.parameters())
    rows = {
        "pictures": f"{len(backbone.views)}: {', '.join(backbone.views)}, {backbone.image_size} px to the model",
        "centre crop": "yes" if backbone.center_crop else "no",
        "proprio": "none" if backbone.proprio_dim is None else f"{backbone.proprio_dim} dims",
        "chunk": f"{backbone.chunk_length} steps of {backbone.action_dim} dims, by {backbone.decoder}",
        "statistics": f"{backbone.unnorm_key}, {' to '.join(BOUNDS[bounds_of(backbone.norm_stats['action'])])}",
        "layers": f"{backbone.num_layers} of width {backbone.hidden_dim}",
        "weights": f"{size / 1e9:.3f} billion, {str(backbone.dtype).removeprefix('torch.')}",
        "execution": backbone.execution,
    }
    yield from (Finding(name, OK, found) for name, found in rows.items())


def memory(backbone: OpenVLABackbone, device: str) -> Iterator[Finding]:
    """Weights and as much as the forward pass of one observation takes, against what is free."""
    import torch

    weights = sum(tensor.numel() * tensor.element_size() for tensor in backbone.model.parameters())
    if device.startswith("cuda"):
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    needed = WORKING_MEMORY * weights
    found = f"about {needed / 1e9:.2f} GB needed, {free / 1e9:.1f} GB free on {device}"
    if needed <= free:
        yield Finding("memory", OK, found)
    else:
        yield Finding("memory", FAILED, f"{found}; end other processes, or choose another device or a smaller model")


def together(cfg: DictConfig, backbone: OpenVLABackbone) -> Iterator[Finding]:
    """Hold the parts of a policy, and the environment, to one contract."""
    instantiate(cfg.policy)(backbone=backbone)
    parts = {"tokenizer": cfg.decoding.tokenizer_checkpoint, "head": cfg.decoding.head_checkpoint}
    parts["draft"] = cfg.decoding.draft_checkpoint
    named = ["base model", *(f"{part} {path}" for part, path in parts.items() if path is not None)]
    yield Finding("checkpoints", OK, f"{', '.join(named)} and {cfg.env.suite} fit together")


def loaded_model(cfg: DictConfig) -> Iterator[Finding]:
    """The canaries, and what rounding does, with the weights."""
    from rsd.models.openvla.canaries import run_canaries

    backbone = instantiate(cfg.backbone)(canaries=False)
    remedy = "the weights are not what the model's code expects: fetch the checkpoint again"
    for canary in run_canaries(backbone):
        found = canary.found if canary.passed else f"{canary.found}; {remedy}"
        yield Finding(canary.name, OK if canary.passed else FAILED, found)
    yield Finding("bfloat16 against float32", OK, rounding(backbone))


def rounding(backbone: OpenVLABackbone) -> str:
    """How far bfloat16 moves states and actions; changes the dtype of the model's weights."""
    import numpy as np
    import torch

    from rsd.models.openvla.canaries import random_observation
    from rsd.models.openvla.model import cast_weights

    observations = [random_observation(backbone, seed) for seed in range(NUM_OBSERVATIONS)]
    inputs, last = backbone.prepare(observations), backbone.num_layers
    found = {}
    for dtype in (torch.float32, torch.bfloat16):  # bfloat16 weights are exact in float32, so this order loses nothing
        cast_weights(backbone.model, dtype)
        output = backbone.forward(inputs, [last])
        raw = unnormalize(output.actions.cpu().numpy(), backbone.norm_stats["action"])
        found[dtype] = (output.hidden_states[last].float(), raw)
    (states, actions), (rounded_states, rounded_actions) = found.values()
    relative = float((states - rounded_states).norm() / states.norm())
    return f"states move by {100 * relative:.2g} %, actions by up to {np.abs(actions - rounded_actions).max():.2g}"


def model_findings(cfg: DictConfig) -> Iterator[Finding]:
    """Files first, on torch's device "meta"; weights are loaded only when the rest is in order."""
    backbone = instantiate(cfg.backbone)(canaries=False, device="meta")
    yield from contract(backbone)
    first = [*examine("memory", memory, backbone, cfg.device), *examine("checkpoints", together, cfg, backbone)]
    yield from first
    if not cfg.quick and all(finding.status != FAILED for finding in first):
        yield from examine("loading", loaded_model, cfg)


def findings(cfg: DictConfig) -> Iterator[Finding]:
    """Everything, cheap things first."""
    machine = [*examine("torch", torch_and_device, cfg.device), *examine("disk", free_disk, Path(cfg.paths.root))]
    yield from machine
    if cfg.simulator:
        there = [*examine("simulator", simulator, cfg.env)]
        yield from there
        if all(finding.status != FAILED for finding in there):
            yield from examine("LIBERO's files", libero_files)
            yield from examine("suite", suite, cfg.env)
            if not cfg.quick:
                yield from examine("scene", scene, cfg.env)
    yield from examine("data set", dataset, cfg.data, cfg.env.offers)
    if cfg.get("model") is not None and machine[0].status != FAILED:
        yield from examine("base model", model_findings, cfg)


@hydra.main(version_base="1.3", config_path="../conf", config_name="doctor")
@report_errors
def main(cfg: DictConfig) -> None:
    table = Table("status", "what", Column("found", overflow="fold"), box=None, pad_edge=False, show_header=False)
    rows = list(findings(cfg))
    for row in rows:
        table.add_row(Text(row.status, style=STYLES[row.status]), Text(row.name), Text(row.found))
    Console(highlight=False).print(table)
    if any(row.status == FAILED for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    run(main, CONFIG)
