"""The policy that reads sentences (docs/words.md): two trainings from a policy that reads words, and their mean.

Both learn from plain demonstrations and from some with objects in each other's places. The mean of their weights is
what is evaluated whole; each training alone says how far two of them are apart.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from rsd.commands.pipeline import Step
from scripts.reproduction.commands import SUITES, collect, evaluate, policy_folder, run_of, scaled, train_further

PLAIN = dict.fromkeys(SUITES, 250)  # demonstrations
EXCHANGED = {"libero_spatial": 300, "libero_object": 250, "libero_goal": 200}  # more, with objects exchanged
LONG, LONG_DEMOS, LONG_TASKS = "libero_10", 450, "[0,1,2,3,4,5,6,7,8]"  # --four-suites: what its expert does
SEEDS, STEPS = (0, 1), 3700
PLAIN_SEED, EXCHANGED_SEED = 21, 22  # of placements
PERTURBED = ("lan", "swap", "object", "task")  # LIBERO-PRO's
ALL, SOME, FEW = 50, 20, 10  # episodes a task: of the mean, of each training, of the mean in perturbed suites


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
    """One for each seed, their mean, and a policy's folder of that."""
    steps = []
    for seed in SEEDS:
        own = [*_reading(arguments), *_data(arguments), f"seed={seed}", f"paths.base={made(f'seed{seed}', arguments)}"]
        steps.append(train_further(f"words_{seed}", start, own, STEPS, arguments))
    mean = made("mean", arguments)
    command = ["scripts/convert.py", "average", *(str(run_of(f"words_{seed}", arguments)) for seed in SEEDS), str(mean)]
    steps.append(Step("words_mean", command, finished=None, made=mean))
    return [*steps, policy_folder("released_words", mean, arguments.root / "released_words")]


def evaluations(arguments: Namespace) -> list[Step]:
    """The mean on official and perturbed suites, and each training on the official ones."""
    official = {suite: [f"env={suite}"] for suite in SUITES}
    if arguments.four_suites:
        official[LONG] = [f"env={LONG}", f"tasks={LONG_TASKS}"]

    def evaluated(name: str, model: str, own: list[str], num_trials: int) -> Step:
        reading = ["model=oft_small", *_reading(arguments), f"paths.base={made(model, arguments)}"]
        return evaluate(f"words_{name}", [*own, *_data(arguments), *reading], num_trials, arguments)

    steps = [evaluated(suite, "mean", own, ALL) for suite, own in official.items()]
    for suite in SUITES:
        for variant in PERTURBED:
            own = [f"env={suite}", f"env.variant={variant}"]
            steps.append(evaluated(f"{suite}_{variant}", "mean", own, FEW))
    for seed in SEEDS:
        steps += [evaluated(f"{seed}_{suite}", f"seed{seed}", own, SOME) for suite, own in official.items()]
    return steps


def made(name: str, arguments: Namespace) -> Path:
    """A base model that reads sentences: "seed0", "seed1" or "mean"."""
    folder: Path = arguments.root / "checkpoints" / "words" / name
    return folder


def _data(arguments: Namespace) -> list[str]:
    data = "libero_four" if arguments.four_suites else "libero_suites"
    return [f"data={data}", f"paths.data={arguments.root / 'words'}"]


def _reading(arguments: Namespace) -> list[str]:
    source = [] if arguments.encoder is None else [f"text.sentences.source={arguments.encoder}"]
    return ["text=sentence", *source]
