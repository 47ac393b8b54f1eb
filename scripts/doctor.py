"""Is everything in order? python scripts/doctor.py [quick=true] [model=oft_spatial] [phase=oft] [data=…] [device=cuda]

Looks at the machine, the simulator and the data set, which it reads by the classes that training and caching read it
by, and with model= at the model's checkpoints: whether base model, tokenizer, head and draft fit together and are
finite, whether the weights fit into memory, and whether the loaded model passes the canaries: on made-up pictures, and
on frames of the data set, where a policy ignores its pictures whose chunks another task's pictures hardly move. One row
a finding; a row that is not ok ends in what repairs it. The exit code is 1 when a row FAILED.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from rsd.commands.entry_point import run
from rsd.commands.error_lines import cause_of, is_expected
from rsd.commands.error_reports import report_errors
from rsd.commands.requirements import require_simulator
from rsd.data import DataError
from rsd.data.rlds_metadata import check_dataset
from rsd.envs.checks import check_installed_files
from rsd.envs.gl import INSTALL_COMMAND, MUJOCO_VERSION, REINSTALL_COMMAND, check_simulator
from rsd.envs.scene_trials import run_scene_trials
from rsd.envs.suites import check_suite, suite_name
from rsd.errors import SettingError
from rsd.finding import FAILED, OK, WARNING, Finding
from rsd.points import draft_folder

if TYPE_CHECKING:  # what needs torch is imported where it is used, so that --help comes at once
    from rsd.models.openvla.text import TextEncoder
    from rsd.policy import VLAPolicy
    from rsd.space import Space
    from rsd.training.finetune import FinetuneModule
    from rsd.types import BaseModel, Policy

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


def dataset(cfg: DictConfig) -> Iterator[Finding]:
    """It is read as phase= reads it; without one as phase=rfsq does, and with a model= as phase=oft does, too."""
    directory = Path(cfg.data.root) / cfg.data.name / cfg.data.version
    if not directory.is_dir():
        try:
            check_dataset(directory)
        except DataError as absent:
            if cfg.get("phase") is not None:
                raise
            yield Finding("data set", WARNING, str(absent), "evaluation needs none")
            return
    phases, notes = [cfg.phases.rfsq], list[str]()
    reads_frames = cfg.get("phase") is not None and "points" not in cfg.phase.datamodule  # and no hidden states
    if reads_frames:
        phases = [cfg.phase]
    elif cfg.get("model") is not None:
        phases += [cfg.phases.oft]
    for phase in phases:
        yield from examine(f"data set, phase={phase.name}", training_data, cfg, phase, notes)
    if cfg.get("model") is None and cfg.policy is None:
        yield Finding("pictures", OK, "not looked at: model= or policy= says which ones are read")
    yield from (Finding("note", WARNING, note) for note in dict.fromkeys(notes))


def training_data(cfg: DictConfig, phase: DictConfig, notes: list[str]) -> Iterator[Finding]:
    """What the phase's own datamodule reads; what is dropped and cut off of it is added to the notes."""
    from rsd.data.datamodules import ChunkDataModule
    from rsd.data.examination import samples
    from rsd.tokenizer.loading import for_space
    from rsd.training.oft import text_of

    name = f"data set, phase={phase.name}"
    data = instantiate(phase.datamodule, batch_size=1, num_workers=0)
    data.read()
    space, told = data.space, data.train.instructions()
    if isinstance(data, ChunkDataModule):
        for_space(instantiate(cfg.quantizer.tokenizer), space).fit(space.to_model(data.train.actions))
    elif (
        cfg.model.architecture is not None
    ):  # what is trained from scratch has the data set's words, or reads sentences
        text_of(told, instantiate(phase.module.get("sentences")))
    given, asked = {"action": len(space.action)}, {"action": cfg.env.offers.action_dim}
    if space.proprio is not None:  # a tokenizer's training needs none
        given["observation/state"], asked["observation/state"] = len(space.proprio), cfg.env.offers.proprio_dim
    if "suite" not in cfg.data:  # a data set of no simulator's: nothing to hold it to
        given = asked
    if wrong := [f"{feature} of {dims} dims" for feature, dims in asked.items() if given[feature] != dims]:
        yield Finding(name, FAILED, f"{data.dataset_dir} lacks {wrong}", "fetch or collect a set that has them")
        return
    count = f"{len(data.train.trajectories)} episodes, {len(told)} instructions"
    yield Finding(name, OK, f"{data.dataset_dir}: {count}; {'; '.join(samples(data))}")
    notes += data.train.notes(space)


def instructions(policy: Policy, env: DictConfig) -> Iterator[Finding]:
    """Whether the policy understands the suite's tasks."""
    from rsd.commands.configured import check_tasks

    tasks = instantiate(env.tasks)
    check_tasks(policy, tasks)
    yield Finding("instructions", OK, f"the policy understands the {len(tasks)} tasks of {env.suite}")


def together(cfg: DictConfig, policy: VLAPolicy, also: str = "") -> Iterator[Finding]:
    """Hold a policy to what the environment offers; without a simulator that is a warning."""
    from rsd.policy import PolicyError
    from rsd.policy.examination import parts_of

    try:
        policy.contract.check(**cfg.env.offers)
    except PolicyError as error:
        yield Finding("checkpoints", FAILED if cfg.simulator else WARNING, str(error))
    else:
        yield Finding("checkpoints", OK, f"{parts_of(policy)} and {cfg.env.suite} fit together{also}")
    if cfg.simulator:
        yield from examine("instructions", instructions, policy, cfg.env)


def real_frames(cfg: DictConfig, base: BaseModel, policy: VLAPolicy | None) -> Iterator[Finding]:
    """The data set as caching shows it to the base model, and what a loaded policy makes of its frames."""
    from rsd.data.examination import in_words, pairs_of_tasks
    from rsd.data.fill_cache import hold_frames_to
    from rsd.policy.sensitivity import NUM_FRAMES, findings, sensitivity

    not_run, name = "canaries on real frames were not run: ", "canaries"
    directory = Path(cfg.data.root) / cfg.data.name / cfg.data.version
    if not directory.is_dir():
        remedy = "set data= and paths.data to a data set of the policy's tasks"
        yield Finding(name, WARNING, f"{not_run}no data set {directory}", remedy)
        return
    spec, notes = base.spec, list[str]()
    shown = instantiate(cfg.cache.dataset, views=list(spec.views), chunk_length=spec.chunk_length)()
    bounds = cfg.cache.bounds if cfg.policy is None else None  # a policy's folder has its own
    hold_frames_to(base, shown, bounds, cfg.cache.max_clipped, notes.append)
    first = shown[0]
    sample = {one: values[0] for one, values in base.prepare([first["observation"]]).items()}
    sample["actions"] = spec.space.to_model(first["actions"])
    yield Finding("hidden states", OK, f"{len(shown)} frames, the first of them {in_words(sample)}")
    yield from (Finding("note", WARNING, note.removeprefix("note: ")) for note in notes)
    if policy is None:
        yield Finding(name, WARNING, f"{not_run}no weights are loaded with quick=true or after a FAILED")
        return
    pairs = pairs_of_tasks(shown, NUM_FRAMES)
    if not pairs:
        why = "the data set has one task, and whether a policy looks is judged by another task's pictures"
        yield Finding(name, WARNING, f"{not_run}{why}", "set data= to one with several tasks")
        return
    tasks = len({own["observation"].instruction for own, _ in pairs})
    where = f"{len(pairs)} held-out frames of {tasks} task{'s' * (tasks > 1)}"
    yield from findings(sensitivity(policy, pairs), where)


def loaded_model(cfg: DictConfig) -> Iterator[Finding]:
    """The canaries on real frames and on made-up ones, and what rounding does, with the weights."""
    from rsd.policy.examination import weights

    base = instantiate(cfg.model.backbone, canaries=False)
    policy = instantiate(cfg.composed, offered=None)(base=base)
    yield from examine("hidden states", real_frames, cfg, base, policy)
    yield from weights(base)


def composed(cfg: DictConfig, base: BaseModel) -> Iterator[Finding]:
    """The parts of a composed policy."""
    yield from together(cfg, instantiate(cfg.composed, offered=None)(base=base, device="cpu"))


def model_findings(cfg: DictConfig) -> Iterator[Finding]:
    """Files first, on torch's device "meta"; weights are loaded only when the rest is in order."""
    from rsd.policy.examination import contract, finite_parts, memory

    base = instantiate(cfg.model.backbone, canaries=False, device="meta")
    yield from contract(base)
    parts = {
        "tokenizer": cfg.paths.tokenizer,
        "head": cfg.target.checkpoint,
        "draft": draft_folder(Path(cfg.paths.draft), cfg.draft.layer),
    }
    if cfg.draft.earlier is not None:
        parts["earlier"] = draft_folder(Path(cfg.paths.draft), cfg.draft.earlier)
    parts |= {"visual_tokens": OmegaConf.select(cfg, "visual_tokens.checkpoint")}
    first = [*finite_parts({name: Path(path) for name, path in parts.items() if path is not None})]
    first += [*examine("memory", memory, base.model, cfg.device), *examine("checkpoints", composed, cfg, base)]
    yield from first
    if not cfg.quick and all(finding.status != FAILED for finding in first):
        yield from examine("loading", loaded_model, cfg)
    else:
        yield from examine("hidden states", real_frames, cfg, base, None)


def is_fine_tuning(cfg: DictConfig) -> bool:
    """Whether the phase= that is to start trains a published model further."""
    return cfg.get("phase") is not None and "hub_id" in cfg.phase.module


def fine_tuning_check(cfg: DictConfig) -> Iterator[Finding]:
    """What the training itself asks for before it begins."""
    instantiate(cfg.phase.check)
    yield Finding("fine-tuning", OK, "checkpoint, tokenizer and peft are there")


def told_apart(text: TextEncoder, told: Mapping[str, str]) -> Iterator[Finding]:
    """Whether a base model is told something else by each of a data set's instructions, given with their places."""
    from rsd.models.openvla.text import check_instructions

    check_instructions(text, list(told), told)
    yield Finding("instructions", OK, f"the model's tokenizer tells the {len(told)} of the data set apart")


def published_weights(module: FinetuneModule, space: Space, device: str) -> Iterator[Finding]:
    """Whether the weights can be read, too."""
    module.load(space, device)
    yield Finding("loading", OK, "the weights can be read and are finite")


def published_findings(cfg: DictConfig) -> Iterator[Finding]:
    """The published model as a fine-tuning loads it: with its new heads, and the data set's words and statistics."""
    from rsd.policy.examination import memory

    module, data = instantiate(cfg.phase.module), instantiate(cfg.phase.datamodule, batch_size=1, num_workers=0)
    data.read()
    start, told = module.load(data.space, "meta"), data.train.instructions()
    size = sum(parameter.numel() for parameter in start.model.parameters())
    said = f"{start.directory}: {size / 1e9:.3f} billion weights, those of new heads among them"
    yield Finding("base model", OK, f"{said}, to be trained as {module.action_head}")
    yield from examine("instructions", told_apart, start.text, told)
    room = [*examine("memory", memory, start.model, cfg.device)]
    yield from room
    if not cfg.quick and all(finding.status != FAILED for finding in room):
        yield from examine("loading", published_weights, module, data.space, cfg.device)


def folder_findings(cfg: DictConfig, overrides: Sequence[str]) -> Iterator[Finding]:
    """A policy's folder: its hashes, its parts together, and with the weights the canaries."""
    from rsd.commands.configured import folder_options
    from rsd.policy import load_folder
    from rsd.policy.examination import contract, finite_parts, openvla_base, weights
    from rsd.policy.folder import parts_in

    options = folder_options(cfg, overrides) | {"offered": None}
    yield from finite_parts(parts_in(Path(cfg.policy)))
    policy = load_folder(cfg.policy, **options, canaries=False)
    base = openvla_base(policy)
    yield from contract(base)
    yield from together(cfg, policy, "; hashes are right")
    yield from examine("hidden states", real_frames, cfg, base, None if cfg.quick else policy)
    if not cfg.quick:
        yield from weights(base)


def needs_base(cfg: DictConfig) -> bool:
    """Whether a base model has to be there: a model= was given, and no phase= that makes it."""
    makes_it = cfg.get("phase") is not None and not cfg.phase.reads.get("base")
    return cfg.get("model") is not None and not makes_it


def findings(cfg: DictConfig, overrides: Sequence[str]) -> Iterator[Finding]:
    """Everything, cheap things first; `overrides` are what was typed.

    Raises:
        SettingError: a phase= that reads pictures, and no model= that says which; or env=replay.
    """
    require_simulator(cfg)
    if cfg.get("phase") is not None and cfg.phase.name != "rfsq" and OmegaConf.select(cfg, "model.name") is None:
        raise SettingError(f"phase={cfg.phase.name} was given without a model; say whose it is: model=oft_tiny")
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
    read = [*examine("data set", dataset, cfg)]
    yield from read
    if cfg.policy is not None:
        yield from examine("policy", folder_findings, cfg, overrides)
    elif is_fine_tuning(cfg):
        yield from examine("fine-tuning", fine_tuning_check, cfg)
        if all(finding.status != FAILED for finding in (machine[0], *read)):
            yield from examine("base model", published_findings, cfg)
    elif needs_base(cfg) and machine[0].status != FAILED:
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
