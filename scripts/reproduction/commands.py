"""Single steps: episodes, trainings, evaluations, policy folders; each a command that a user could type."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

from rsd.commands.pipeline import RUNS, Step
from rsd.evaluation.report import REPORT_JSON
from rsd.runs import METRICS_FILE

SUITES = ("libero_spatial", "libero_object", "libero_goal")
EXPERT_NOISE = "[0.0,0.2,0.4]"  # of the executed actions in free space: states to recover from
POLICY_NOISE = "[0.0,0.1,0.2]"  # of all executed actions
BATCH_SIZE = 512  # frames of a step of a base model's training
CPU_BATCH_SIZE = 8  # where it is only tried out
MAX_BATCH = 16  # observations in one call of the policy


def scaled(count: int, share: float) -> int:
    """A share of a count, of which one is always left."""
    return max(1, round(count * share))


def collect(
    name: str, own: list[str], num_episodes: int, arguments: Namespace, noise_scales: str = EXPERT_NOISE
) -> Step:
    """Episodes of one suite; `num_episodes` is what its data set holds of the suite in the end."""
    options = [f"num_workers={arguments.workers}", f"recipe.noise_scales={noise_scales}"]
    if arguments.gpus > 1:
        options.append(f"render_devices={list(range(arguments.gpus))}")
    command = ["scripts/collect_demos.py", *own, f"num_episodes={num_episodes}", *options, *roots(arguments)]
    return Step(name, command, finished=None)


def visit(name: str, own: list[str], num_episodes: int, arguments: Namespace) -> Step:
    """Episodes in which a base model acts itself, disturbed."""
    acting = ["demonstrator=policy", "model=oft_small", f"device={arguments.device}", *own]
    return collect(name, acting, num_episodes, arguments, POLICY_NOISE)


def train_base(name: str, own: list[str], max_steps: int, arguments: Namespace) -> Step:
    """phase=oft_gpu."""
    share = max(1, arguments.workers // arguments.gpus)  # each process decodes all pictures for its own GPU
    max_steps = scaled(max_steps, arguments.steps_scale)
    options = [f"phase.max_steps={max_steps}", f"phase.datamodule.num_workers={share}", *trainer(arguments)]
    if arguments.gpus > 1:
        options += ["trainer=ddp", f"trainer.devices={arguments.gpus}"]
    batch_size = CPU_BATCH_SIZE if arguments.device == "cpu" else BATCH_SIZE // arguments.gpus
    options.append(f"phase.datamodule.batch_size={batch_size}")
    command = ["train.py", "phase=oft_gpu", "model=oft_small", *own, *options, *roots(arguments)]
    return Step(name, command, METRICS_FILE)


def train_further(name: str, start: Path | str, own: list[str], max_steps: int, arguments: Namespace) -> Step:
    """phase=oft_gpu on several suites, beginning with the model in `start`."""
    # errors in parts of q01..q99, although extremes are the bounds
    began = [f"phase.module.start_from={start}", "phase.module.loss_units=quantiles"]
    return train_base(name, [*own, *began], max_steps, arguments)


def train_part(name: str, own: list[str], max_steps: int, arguments: Namespace) -> Step:
    """A head or a draft on what the base model visits, with its own chunks as labels."""
    shared = ["model=oft_small", "data=libero_suites", *trainer(arguments)]
    options = [f"phase.max_steps={scaled(max_steps, arguments.steps_scale)}"]
    options += [f"phase.datamodule.cache.{option}" for option in filling(arguments)]
    return Step(name, ["train.py", *own, *shared, *options, *roots(arguments)], METRICS_FILE)


def filling(arguments: Namespace) -> list[str]:
    """How a cache of hidden states is filled."""
    return ["batch_size=256", f"num_workers={arguments.workers}"]


def trainer(arguments: Namespace) -> list[str]:
    on_gpu = arguments.device != "cpu"
    return [*(["trainer=gpu"] if on_gpu else []), f"device={arguments.device}", "val_every=1000", "save_every=2000"]


def evaluate(name: str, own: list[str], num_trials: int, arguments: Namespace) -> Step:
    """eval.py on official init states."""
    options = [f"device={arguments.device}", "save_videos=0", f"num_workers={arguments.workers}"]
    trials = f"num_trials={min(num_trials, arguments.num_trials)}"
    command = ["eval.py", *own, trials, *options, f"max_batch={MAX_BATCH}", *roots(arguments)]
    return Step(f"eval_{name}", command, REPORT_JSON)


def policy_folder(name: str, base: Path, out: Path, parts: Mapping[str, Path] | None = None) -> Step:
    """A base model with its heads and drafts as one folder."""
    options = [word for part, path in (parts or {}).items() for word in (f"--{part}", str(path))]
    return Step(name, ["scripts/convert.py", "policy", str(base), str(out), *options], finished=None, made=out)


def roots(arguments: Namespace) -> list[str]:
    return [f"paths.root={arguments.root}"]


def run_of(name: str, arguments: Namespace) -> Path:
    """What a training of that name has made."""
    made: Path = arguments.root / RUNS / name / "checkpoint"
    return made
