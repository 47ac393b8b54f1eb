"""The policy that reads sentences (docs/words.md): from the released base models, on new demonstrations.

The first training goes on from the model in released/ and is what released/words holds and what is evaluated whole; the
second goes on from the other seed's model, and says how far two trainings are apart. Their mean is worse than either
(docs/log.md).
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from rsd.commands.pipeline import Step
from scripts.reproduction import released
from scripts.reproduction.commands import LONG, SUITES, TAUGHT, evaluate, policy_folder, train_further

PLAIN = {"libero_spatial": 120, "libero_object": 300, "libero_goal": 200, LONG: 297}  # demonstrations
EXCHANGED = {"libero_spatial": 250}  # more, with objects exchanged
STEPS = 1900
NAME = "oft_small-sentence-libero_four_no_noops-t8"
PLAIN_SEED, EXCHANGED_SEED = 31, 33  # of placements
PERTURBED = ("lan", "swap", "object", "task")  # LIBERO-PRO's
ALL, SOME, FEW = 50, 15, 10  # episodes a task: of the first, of the second, of the first in perturbed suites


def plan(arguments: Namespace) -> list[Step]:
    """All steps, after those of `released`."""
    seeds = (PLAIN_SEED, EXCHANGED_SEED)
    demonstrations = released.plain_and_exchanged("words", PLAIN, EXCHANGED, seeds, arguments)
    return [*demonstrations, *trainings(arguments), *evaluations(arguments)]


def trainings(arguments: Namespace) -> list[Step]:
    """One for each seed, and a policy's folder of the first."""
    steps = []
    for seed in released.SEEDS:
        own = [*_reading(arguments), *released.four("words", arguments), f"seed={seed}"]
        own.append(f"paths.base={made(seed, arguments)}")
        start = released.made(f"four{seed}", arguments)
        steps.append(train_further(f"words_{seed}", start, own, STEPS, arguments))
    first = made(released.SEEDS[0], arguments)
    return [*steps, policy_folder("released_words", first, released.released(arguments) / "words")]


def evaluations(arguments: Namespace) -> list[Step]:
    """The first on official and perturbed suites, the others on the official ones."""

    def evaluated(name: str, seed: int, own: list[str], num_trials: int) -> Step:
        reading = ["model=oft_small", *_reading(arguments), f"paths.base={made(seed, arguments)}"]
        own = [*own, *released.four("words", arguments), *reading]
        return evaluate(f"words_{name}", own, num_trials, arguments)

    first, *others = released.SEEDS
    steps = [evaluated(suite, first, [f"env={suite}", *tasks], ALL) for suite, tasks in TAUGHT.items()]
    for suite in SUITES:
        for variant in PERTURBED:
            own = [f"env={suite}", f"env.variant={variant}"]
            steps.append(evaluated(f"{suite}_{variant}", first, own, FEW))
    for seed in others:
        steps += [evaluated(f"{seed}_{suite}", seed, [f"env={suite}", *tasks], SOME) for suite, tasks in TAUGHT.items()]
        own = ["env=libero_spatial", "env.variant=swap"]
        steps.append(evaluated(f"{seed}_libero_spatial_swap", seed, own, FEW))
    return steps


def made(seed: int, arguments: Namespace) -> Path:
    """A base model that reads sentences."""
    folder: Path = arguments.root / "checkpoints" / f"words{seed}" / NAME
    return folder


def _reading(arguments: Namespace) -> list[str]:
    source = [] if arguments.encoder is None else [f"text.sentences.source={arguments.encoder}"]
    return ["text=sentence", *source]
