"""Is everything in order? python scripts/doctor.py [quick=true] [model=oft_spatial] [data=…] [device=cuda]

Looks at the machine, the simulator and the data set, and with model= at the model's checkpoints: whether base model,
tokenizer, head and draft fit together, whether the weights fit into memory, and whether the loaded model passes the
canaries. One row a finding; a row that is not ok ends in what repairs it. The exit code is 1 when a row FAILED.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from rsd.commands.entry_point import cause_of, is_expected, report_errors, run
from rsd.data import DataError
from rsd.data.rlds import RLDSDataset
from rsd.data.rlds_metadata import check_dataset
from rsd.envs.checks import check_installed_files
from rsd.envs.gl import INSTALL_COMMAND, MUJOCO_VERSION, REINSTALL_COMMAND, check_simulator
from rsd.envs.scene_trials import run_scene_trials
from rsd.envs.suites import check_suite, suite_name
from rsd.finding import FAILED, OK, WARNING, Finding

if TYPE_CHECKING:  # what needs torch is imported where it is used, so that --help comes at once
    from rsd.types import BaseModel

CONFIG = Path(__file__).parents[1] / "conf" / "doctor.yaml"
STYLES = {OK: "green", WARNING: "yellow", FAILED: "bold red"}
SCARCE_GB, TOO_LITTLE_GB = 10.0, 1.0  # of free disk


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
        remedy = "install its CUDA build or a driver, or say device=cpu"
        yield Finding("torch", FAILED, f"torch {torch.__version__} sees no GPU", remedy)
        return
    yield Finding("torch", OK, f"{torch.__version__} on {name}")


def free_disk(root: Path) -> Iterator[Finding]:
    folder = next(path for path in (root.absolute(), *root.absolute().parents) if path.is_dir())
    if not os.access(folder, os.W_OK):
        yield Finding("disk", FAILED, f"{folder} cannot be written to", "set paths.root to a folder of yours")
        return
    free = shutil.disk_usage(folder).free / 1e9
    status = FAILED if free < TOO_LITTLE_GB else WARNING if free < SCARCE_GB else OK
    remedy = "make room, or set paths.root to a folder on another disk"
    yield Finding("disk", status, f"{free:.1f} GB free for outputs in {folder}", remedy)


def simulator(env: DictConfig) -> Iterator[Finding]:
    found = check_simulator(env.allow_mujoco_version)
    yield Finding("GL backend", OK, f"{found['gl_backend']} renders")
    if found["mujoco"] == MUJOCO_VERSION:
        yield Finding("MuJoCo", OK, f"{found['mujoco']}, with robosuite {found['robosuite']}")
    else:
        words = f"{found['mujoco']} accepted by env.allow_mujoco_version: scores are not comparable"
        yield Finding("MuJoCo", WARNING, words, f"pip install mujoco=={MUJOCO_VERSION}")


def libero_files() -> Iterator[Finding]:
    counts = check_installed_files()
    if not counts:
        yield Finding("LIBERO's files", WARNING, "not compared: no installer noted their sizes", INSTALL_COMMAND)
        return
    yield Finding("LIBERO's files", OK, f"{sum(counts.values())} of {next(iter(counts))} are there, in the right sizes")


def suite(env: DictConfig) -> Iterator[Finding]:
    check_suite(env.suite, env.variant, num_tasks=env.num_tasks, num_init_states=env.num_init_states)
    name = suite_name(env.suite, env.variant)
    yield Finding("suite", OK, f"{name}: {env.num_tasks} tasks with {env.num_init_states} init states or more")


def scene(env: DictConfig) -> Iterator[Finding]:
    try:
        yield from run_scene_trials(env.allow_mujoco_version)
    except Exception as error:  # noqa: BLE001  whatever the simulator raises is what there is to report
        first_line = str(error).partition("\n")[0]
        remedy = f"pip install mujoco=={MUJOCO_VERSION}" if env.allow_mujoco_version else REINSTALL_COMMAND
        yield Finding("scene", FAILED, f"{type(error).__name__}: {first_line}", remedy)


def dataset(data: DictConfig, offers: DictConfig) -> Iterator[Finding]:
    """Its first and last episode are read, pictures included."""
    directory = Path(data.root) / data.name / data.version
    if not directory.is_dir():
        try:
            check_dataset(directory)
        except DataError as absent:
            yield Finding("data set", WARNING, str(absent), "evaluation needs none")
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
        yield Finding("data set", FAILED, f"{directory} lacks {wrong}", "fetch or collect a set that has them")
        return
    yield Finding("data set", OK, f"{directory}: {len(episodes)} episodes, first and last read, LIBERO's features")


def loaded_model(cfg: DictConfig) -> Iterator[Finding]:
    """The canaries, and what rounding does, with the weights."""
    from rsd.policy.examination import weights

    yield from weights(instantiate(cfg.model.backbone, canaries=False))


def together(cfg: DictConfig, base: BaseModel) -> Iterator[Finding]:
    """Hold the parts of a composed policy, and the environment, to one contract."""
    from rsd.policy.examination import parts_of

    policy = instantiate(cfg.composed)(base=base, device="cpu")
    yield Finding("checkpoints", OK, f"{parts_of(policy)} and {cfg.env.suite} fit together")


def model_findings(cfg: DictConfig) -> Iterator[Finding]:
    """Files first, on torch's device "meta"; weights are loaded only when the rest is in order."""
    from rsd.policy.examination import contract, memory

    base = instantiate(cfg.model.backbone, canaries=False, device="meta")
    yield from contract(base)
    first = [*examine("memory", memory, base, cfg.device), *examine("checkpoints", together, cfg, base)]
    yield from first
    if not cfg.quick and all(finding.status != FAILED for finding in first):
        yield from examine("loading", loaded_model, cfg)


def folder_findings(cfg: DictConfig, overrides: Sequence[str]) -> Iterator[Finding]:
    """A policy's folder: its hashes, its parts together, and with the weights the canaries."""
    from rsd.commands.configured import folder_options
    from rsd.policy import load_folder
    from rsd.policy.examination import contract, openvla_base, parts_of, weights

    policy = load_folder(cfg.policy, **folder_options(cfg, overrides), canaries=False)
    base = openvla_base(policy)
    yield from contract(base)
    yield Finding("checkpoints", OK, f"{parts_of(policy)} and {cfg.env.suite} fit together; hashes are right")
    if not cfg.quick:
        yield from weights(base)


def findings(cfg: DictConfig, overrides: Sequence[str]) -> Iterator[Finding]:
    """Everything, cheap things first; `overrides` are what was typed."""
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
    if cfg.policy is not None:
        yield from examine("policy", folder_findings, cfg, overrides)
    elif cfg.get("model") is not None and machine[0].status != FAILED:
        yield from examine("base model", model_findings, cfg)


@hydra.main(version_base="1.3", config_path="../conf", config_name="doctor")
@report_errors
def main(cfg: DictConfig) -> None:
    table = Table("status", "what", Column("found", overflow="fold"), box=None, pad_edge=False, show_header=False)
    rows = list(findings(cfg, HydraConfig.get().overrides.task))
    for row in rows:
        table.add_row(Text(row.status, style=STYLES[row.status]), Text(row.name), Text(row.text))
    Console(highlight=False).print(table)
    if any(row.status == FAILED for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    run(main, CONFIG)
