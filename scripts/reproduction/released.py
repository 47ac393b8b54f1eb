"""What released/ holds but for words/, in its order.

A base model is trained four times, each time from where the last one ended and on new demonstrations: of one suite, of
three, of three with all of their tasks, and of four. Only the last is released, with heads and drafts that learn on
episodes which it acts in. What surprises first: no training gives the same weights twice on a GPU, so results differ as
those of two seeds do.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from rsd.commands.pipeline import Step
from rsd.runs import METRICS_FILE
from scripts.reproduction.commands import (
    LONG,
    SUITES,
    TAUGHT,
    collect,
    evaluate,
    filling,
    policy_folder,
    roots,
    run_of,
    scaled,
    train_base,
    train_further,
    train_part,
    visit,
)

FIRST = 700  # demonstrations of libero_spatial, for the first model
SUITES_DEMOS = {"libero_spatial": 350, "libero_object": 210, "libero_goal": 315}  # for the second
NEXT_DEMOS = {"libero_spatial": 450, "libero_object": 230, "libero_goal": 350}  # for the third
FOUR_DEMOS = {"libero_spatial": 250, "libero_object": 450, "libero_goal": 320, LONG: 495}  # for the released one
EXCHANGED = {"libero_spatial": 350}  # more for it, with objects in each other's places
VISITED = {"libero_spatial": 140, "libero_object": 105, "libero_goal": 105, LONG: 90}  # episodes of the released one
HELD_OUT = {"libero_spatial": 80, "libero_object": 60, "libero_goal": 72, LONG: 54}  # more of them, for calibration
FIRST_STEPS, SUITES_STEPS, NEXT_STEPS, FOUR_STEPS = 3500, 5000, 3839, 2000
FOUR_BATCH = 1024  # frames of a step
HEAD_STEPS, DISTILLED_STEPS = 1500, 2500
NAME = "oft_small-libero_four_no_noops-t8"
NEXT_SEED, FOUR_SEED, EXCHANGED_SEED, VISITED_SEED, HELD_OUT_SEED = 11, 41, 43, 1, 5  # of placements
SEEDS = (0, 1)  # of the last training: the first is released, the second says how far two trainings are apart
BEFORE = {"libero_goal": "[0,1,2,4,5,6,7,8,9]"}  # tasks that the second model is taught, where they are not all
QUANTIZER, TOKENIZER = "quantizer=dct_d3", "tokenizer/dct_d3-libero_four_no_noops-t8"
LARGE_BATCH = ["phase.datamodule.batch_size=512", "+phase.datamodule.memory_gb=16"]
ALL, HALF, SOME, FEW = 50, 20, 15, 10  # episodes a task
ABLATIONS = ("black_pictures", "other_instruction", "zero_proprio")
VARIANTS = ("swap", "object")  # LIBERO-PRO's; lan and task have words that this model refuses


def plan(arguments: Namespace) -> list[Step]:
    """All steps but those of the policy of words, and calibration."""
    before = [] if arguments.start is not None else earlier_models(arguments)
    own = [*before, *demonstrations(arguments), *trainings(arguments), *heads_and_drafts(arguments)]
    return [*own, folder(arguments), *evaluations(arguments)]


def earlier_models(arguments: Namespace) -> list[Step]:
    """Base models of libero_spatial, of three suites, and of three with all of their tasks."""
    steps = [collect("collect", ["env=libero_spatial"], scaled(FIRST, arguments.scale), arguments)]
    steps.append(train_base("oft", [], FIRST_STEPS, arguments))
    for suite, count in SUITES_DEMOS.items():
        own = ["data=libero_suites", f"env={suite}"]
        own += [f"tasks={BEFORE[suite]}"] if suite in BEFORE else []
        steps.append(collect(f"collect_{suite}", own, scaled(count, arguments.scale), arguments))
    steps.append(train_further("oft_suites", run_of("oft", arguments), ["data=libero_suites"], SUITES_STEPS, arguments))
    data = ["data=libero_suites", f"paths.data={arguments.root / 'next'}"]
    for suite, count in NEXT_DEMOS.items():
        own = [*data, f"env={suite}", f"seed={NEXT_SEED}"]
        steps.append(collect(f"collect_next_{suite}", own, scaled(count, arguments.scale), arguments))
    own = [*data, f"paths.base={made('next', arguments)}"]
    return [*steps, train_further("oft_next", run_of("oft_suites", arguments), own, NEXT_STEPS, arguments)]


def demonstrations(arguments: Namespace) -> list[Step]:
    """Of four suites in one data set: plain ones, and then some with objects exchanged."""
    return plain_and_exchanged("four", FOUR_DEMOS, EXCHANGED, (FOUR_SEED, EXCHANGED_SEED), arguments)


def plain_and_exchanged(
    name: str, plain: dict[str, int], exchanged: dict[str, int], seeds: tuple[int, int], arguments: Namespace
) -> list[Step]:
    """Steps for a data set `name` of four suites, with the seeds of plain and of exchanged placements."""
    steps = []
    for suite, count in plain.items():
        own, count = [*four(name, arguments), f"env={suite}", *TAUGHT[suite]], scaled(count, arguments.scale)
        steps.append(collect(f"collect_{name}_{suite}", [*own, f"seed={seeds[0]}"], count, arguments))
        if suite in exchanged:
            own += [f"seed={seeds[1]}", "exchanged=1"]
            count += scaled(exchanged[suite], arguments.scale)
            steps.append(collect(f"exchange_{name}_{suite}", own, count, arguments))
    return steps


def trainings(arguments: Namespace) -> list[Step]:
    """One for each seed, from the third model or the one that was given."""
    start = arguments.start or made("next", arguments)
    steps = []
    for seed in SEEDS:
        own = [*four("four", arguments), f"seed={seed}", f"paths.base={made(f'four{seed}', arguments)}"]
        steps.append(train_further(f"four_{seed}", start, own, FOUR_STEPS, arguments, FOUR_BATCH))
    return steps


def heads_and_drafts(arguments: Namespace) -> list[Step]:
    """The tokenizer on the demonstrations; all others on episodes in which the base model acts itself."""
    rfsq = ["train.py", "phase=rfsq", QUANTIZER, *four("four", arguments), *roots(arguments)]
    base = f"paths.base={made('four0', arguments)}"
    visited = [f"paths.data={arguments.root / 'visited'}", base]
    steps = [Step("rfsq", rfsq, METRICS_FILE)]
    for suite, count in VISITED.items():
        own = ["data=libero_four", f"env={suite}", *TAUGHT[suite], f"seed={VISITED_SEED}", *visited]
        steps.append(visit(f"visit_{suite}", own, scaled(count, arguments.scale), arguments))
    cache = ["model=oft_small", "data=libero_four", f"device={arguments.device}", *visited]
    cache += [f"cache.{option}" for option in filling(arguments)]
    steps.append(Step("cache", ["scripts/cache_hidden_states.py", *cache, *roots(arguments)], finished=None))
    tokens = [QUANTIZER, *visited, "phase.module.labels=base", *LARGE_BATCH]
    steps.append(train_part("head", ["phase=head", *tokens], HEAD_STEPS, arguments))
    steps.append(train_part("draft", ["phase=draft", *tokens], HEAD_STEPS, arguments))
    distilled = [QUANTIZER, *visited, "phase.datamodule.batch_size=256"]
    pictures = [f"phase.datamodule.num_workers={arguments.workers}", *distilled]
    steps.append(train_part("micro", ["phase=draft", "draft=micro", *pictures], DISTILLED_STEPS, arguments))
    numbers = ["phase=draft", "draft=numbers", "draft.layer=2", *distilled]
    return [*steps, train_part("numbers", numbers, DISTILLED_STEPS, arguments)]


def folder(arguments: Namespace) -> Step:
    """The policy's folder, as released/ is one."""
    checkpoints, rest = arguments.root / "checkpoints", NAME.removeprefix("oft_small-")
    parts = {"tokenizer": checkpoints / TOKENIZER, "head": checkpoints / "head" / f"oft_small-dct_d3-{rest}"}
    for part, draft in (("draft", "early"), ("micro", "micro"), ("numbers", "numbers")):
        parts[part] = checkpoints / "draft" / f"oft_small-{draft}-dct_d3-{rest}"
    return policy_folder("released", made("four0", arguments), released(arguments), parts)


def evaluations(arguments: Namespace) -> list[Step]:
    """All init states with the base model's own chunk, decodings, and what is taken away on libero_spatial."""
    policy, spatial = f"policy={released(arguments)}", "env=libero_spatial"
    first, *others = SEEDS
    steps = official(first, ALL, arguments)
    for seed in others:
        steps += official(seed, SOME, arguments)
    for decoding in ("speculative", "depth_ar", "parallel"):
        steps.append(evaluate(decoding, [policy, spatial, f"decoding={decoding}"], ALL, arguments))
    own = [policy, spatial, "decoding=speculative", "target=base"]
    steps.append(evaluate("speculative_base", own, ALL, arguments))
    for suite, tasks in TAUGHT.items():
        own = [policy, f"env={suite}", *tasks]
        steps.append(evaluate(f"early_exit_{suite}", [*own, "decoding=early_exit"], FEW, arguments))
        steps.append(evaluate(f"numbers_{suite}", [*own, "decoding=exit", "draft=numbers"], FEW, arguments))
    for ablation in ABLATIONS:
        steps.append(evaluate(ablation, [policy, spatial, f"ablation={ablation}"], FEW, arguments))
    for suite in SUITES:
        for variant in VARIANTS:
            own = [policy, f"env={suite}", f"env.variant={variant}"]
            steps.append(evaluate(f"{suite}_{variant}", own, FEW, arguments))
    return steps


def official(seed: int, num_trials: int, arguments: Namespace) -> list[Step]:
    """A base model's own chunks on the official init states of the four suites."""
    own = ["model=oft_small", *four("four", arguments), f"paths.base={made(f'four{seed}', arguments)}"]
    return [
        evaluate(f"four{seed}_{suite}", [f"env={suite}", *tasks, *own], num_trials, arguments)
        for suite, tasks in TAUGHT.items()
    ]


def calibration(arguments: Namespace) -> list[Step]:
    """The threshold of `temporal`, from episodes that nothing was trained on; it comes last, for it may be refused."""
    held_out, base = arguments.root / "held_out", f"paths.base={made('four0', arguments)}"
    steps = []
    for suite, count in HELD_OUT.items():
        own = ["data=libero_four", f"env={suite}", *TAUGHT[suite], f"seed={HELD_OUT_SEED}"]
        own += [f"paths.data={held_out}", base]
        steps.append(visit(f"hold_out_{suite}", own, scaled(count, arguments.scale), arguments))
    policy = released(arguments)
    command = ["scripts/calibrate.py", str(policy), "--decoding", "temporal", "--device", arguments.device]
    command += ["--data", str(held_out / "libero_four_no_noops" / "1.0.0")]
    plot = policy / "calibration" / "temporal.png"
    steps.append(Step("calibrate", command, finished=None, made=plot))
    for suite, tasks in TAUGHT.items():
        own = [f"policy={policy}", f"env={suite}", *tasks, "decoding=temporal"]
        steps.append(evaluate(f"temporal_{suite}", own, FEW, arguments))
    return steps


def released(arguments: Namespace) -> Path:
    """The policy's folder."""
    folder: Path = arguments.root / "released"
    return folder


def made(name: str, arguments: Namespace) -> Path:
    """A base model of that name: next, four0, four1."""
    folder: Path = arguments.root / "checkpoints" / name / (NAME if name.startswith("four") else "oft_small")
    return folder


def four(data: str, arguments: Namespace) -> list[str]:
    """The data set of four suites in a folder of that name."""
    return ["data=libero_four", f"paths.data={arguments.root / data}"]
