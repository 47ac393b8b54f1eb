"""The policy that reads sentences (docs/words.md): two trainings from a policy that reads words.

Both learn from plain demonstrations and from some with objects in each other's places. The first is what released/
holds and what is evaluated whole; the second says how far two trainings are apart. Their mean is worse than either
(docs/log.md).
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from rsd.commands.pipeline import Step
from scripts.reproduction.commands import SUITES, collect, evaluate, policy_folder, scaled, train_further

PLAIN = {"libero_spatial": 250, "libero_object": 250, "libero_goal": 200}  # demonstrations
EXCHANGED = {"libero_spatial": 300, "libero_object": 200, "libero_goal": 150}  # more, with objects exchanged
LONG, LONG_DEMOS, LONG_TASKS = "libero_10", 450, "[0,1,2,3,4,5,6,7,8]"  # --four-suites: what its expert does
SEEDS, STEPS = (0, 1), 2459
PLAIN_SEED, EXCHANGED_SEED = 31, 33  # of placements
PERTURBED = ("lan", "swap", "object", "task")  # LIBERO-PRO's
ALL, SOME, FEW = 50, 15, 10  # episodes a task: of the first, of the second, of the first in perturbed suites


def plan(start: Path, arguments: Namespace) -> list[Step]:
    """All steps, from the model in `start`."""
    return [*demonstrations(arguments), *trainings(start, arguments), *evaluations(arguments)]


def demonstrations(arguments: Namespace) -> list[Step]:
    """Of each suite, plain ones and then those with objects exchanged, in one data set."""
    steps = []
    for suite, plain in PLAIN.items():
        own, count = [*_data(arguments), f"env={suite}"], scaled(plain, arguments.scale)
        steps.append(collect(f"collect_words_{suite}", [*own, f"seed={PLAIN_SEED}"], count, arguments))
        own += [f"seed={EXCHANGED_SEED}", "exchanged=1"]
        count += scaled(EXCHANGED[suite], arguments.scale)
        steps.append(collect(f"exchange_{suite}", own, count, arguments))
    if arguments.four_suites:
        own = [*_data(arguments), f"env={LONG}", f"tasks={LONG_TASKS}", f"seed={PLAIN_SEED}"]
        steps.append(collect(f"collect_words_{LONG}", own, scaled(LONG_DEMOS, arguments.scale), arguments))
    return steps


def trainings(start: Path, arguments: Namespace) -> list[Step]:
    """One for each seed, and a policy's folder of the first."""
    steps = []
    for seed in SEEDS:
        own = [*_reading(arguments), *_data(arguments), f"seed={seed}", f"paths.base={made(seed, arguments)}"]
        steps.append(train_further(f"words_{seed}", start, own, STEPS, arguments))
    return [*steps, policy_folder("released_words", made(SEEDS[0], arguments), arguments.root / "released" / "words")]


def evaluations(arguments: Namespace) -> list[Step]:
    """The first on official and perturbed suites, the others on the official ones."""
    official = {suite: [f"env={suite}"] for suite in SUITES}
    if arguments.four_suites:
        official[LONG] = [f"env={LONG}", f"tasks={LONG_TASKS}"]

    def evaluated(name: str, seed: int, own: list[str], num_trials: int) -> Step:
        reading = ["model=oft_small", *_reading(arguments), f"paths.base={made(seed, arguments)}"]
        return evaluate(f"words_{name}", [*own, *_data(arguments), *reading], num_trials, arguments)

    steps = [evaluated(suite, SEEDS[0], own, ALL) for suite, own in official.items()]
    for suite in SUITES:
        for variant in PERTURBED:
            own = [f"env={suite}", f"env.variant={variant}"]
            steps.append(evaluated(f"{suite}_{variant}", SEEDS[0], own, FEW))
    for seed in SEEDS[1:]:
        steps += [evaluated(f"{seed}_{suite}", seed, own, SOME) for suite, own in official.items()]
    return steps


def made(seed: int, arguments: Namespace) -> Path:
    """A base model that reads sentences."""
    folder: Path = arguments.root / "checkpoints" / "words" / f"seed{seed}"
    return folder


def _data(arguments: Namespace) -> list[str]:
    data = "libero_four" if arguments.four_suites else "libero_suites"
    return [f"data={data}", f"paths.data={arguments.root / 'words'}"]


def _reading(arguments: Namespace) -> list[str]:
    source = [] if arguments.encoder is None else [f"text.sentences.source={arguments.encoder}"]
    return ["text=sentence", *source]
