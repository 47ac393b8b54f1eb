"""What released/ holds but for words/, in its order; and `next`, which words/ goes on from.

What surprises first: heads, drafts and the readout in numbers learn on the same episodes of the base model here; those
of released/ were made in two sessions, each with its own (350 and 347). And no training gives the same weights twice on
a GPU, so results differ as those of two seeds do.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from rsd.commands.pipeline import Step
from rsd.runs import METRICS_FILE
from scripts.reproduction.commands import (
    SUITES,
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
BASE = {"libero_spatial": 350, "libero_object": 210, "libero_goal": 315}  # demonstrations, for the base model
NEXT = {"libero_spatial": 450, "libero_object": 230, "libero_goal": 350}
VISITED = {"libero_spatial": 140, "libero_object": 105, "libero_goal": 105}  # episodes of the base model
HELD_OUT = {"libero_spatial": 80, "libero_object": 60, "libero_goal": 72}  # more of them, for calibration
FIRST_STEPS, BASE_STEPS, NEXT_STEPS = 3500, 5000, 3839
HEAD_STEPS, DISTILLED_STEPS = 1500, 2500
NAME, NEXT_SEED, VISITED_SEED, HELD_OUT_SEED = "oft_small-libero_suites_no_noops-t8", 11, 1, 5
KNOWN_TASKS = {"libero_goal": "[0,1,2,4,5,6,7,8,9]"}  # of the base model, where it does not know all
QUANTIZER, TOKENIZER = "quantizer=dct_d3", "tokenizer/dct_d3-libero_suites_no_noops-t8"
LARGE_BATCH = ["phase.datamodule.batch_size=512", "+phase.datamodule.memory_gb=16"]
ALL, HALF, FEW = 50, 20, 10  # episodes a task
ABLATIONS = ("black_pictures", "other_instruction", "zero_proprio")
VARIANTS = ("swap", "object")  # LIBERO-PRO's; lan and task have words that this model refuses


def plan(arguments: Namespace) -> list[Step]:
    """All steps but those of the policy of words."""
    steps = [*base_model(arguments), *heads_and_drafts(arguments), folder(arguments), *next_model(arguments)]
    return [*steps, *evaluations(arguments)]


def base_model(arguments: Namespace) -> list[Step]:
    """A base model of libero_spatial, and the same trained further on a data set of three suites."""
    steps, first = [], arguments.base
    if first is None:
        steps = [collect("collect", ["env=libero_spatial"], scaled(FIRST, arguments.scale), arguments)]
        steps += [train_base("oft", [], FIRST_STEPS, arguments)]
        first = run_of("oft", arguments)
    for suite, count in BASE.items():
        own = ["data=libero_suites", f"env={suite}", *known(suite)]
        steps.append(collect(f"collect_{suite}", own, scaled(count, arguments.scale), arguments))
    return [*steps, train_further("oft_suites", first, ["data=libero_suites"], BASE_STEPS, arguments)]


def heads_and_drafts(arguments: Namespace) -> list[Step]:
    """The tokenizer on the demonstrations; all others on episodes in which the base model acts itself."""
    rfsq = ["train.py", "phase=rfsq", QUANTIZER, "data=libero_suites", *roots(arguments)]
    visited = f"paths.data={arguments.root / 'visited'}"
    steps = [Step("rfsq", rfsq, METRICS_FILE)]
    for suite, count in VISITED.items():
        own = ["data=libero_suites", f"env={suite}", *known(suite), f"seed={VISITED_SEED}", visited]
        steps.append(visit(f"visit_{suite}", own, scaled(count, arguments.scale), arguments))
    cache = ["model=oft_small", "data=libero_suites", f"device={arguments.device}", visited]
    cache += [f"cache.{option}" for option in filling(arguments)]
    steps.append(Step("cache", ["scripts/cache_hidden_states.py", *cache, *roots(arguments)], finished=None))
    tokens = [QUANTIZER, visited, "phase.module.labels=base", *LARGE_BATCH]
    steps.append(train_part("head", ["phase=head", *tokens], HEAD_STEPS, arguments))
    steps.append(train_part("draft", ["phase=draft", *tokens], HEAD_STEPS, arguments))
    distilled = [QUANTIZER, visited, "phase.datamodule.batch_size=256"]
    pictures = [f"phase.datamodule.num_workers={arguments.workers}", *distilled]
    steps.append(train_part("micro", ["phase=draft", "draft=micro", *pictures], DISTILLED_STEPS, arguments))
    numbers = ["phase=draft", "draft=numbers", "draft.layer=2", *distilled]
    return [*steps, train_part("numbers", numbers, DISTILLED_STEPS, arguments)]


def folder(arguments: Namespace) -> Step:
    """The policy's folder, as released/ is one."""
    made = arguments.root / "checkpoints"
    parts = {"tokenizer": made / TOKENIZER, "head": made / "head" / f"oft_small-dct_d3-{_rest()}"}
    for part, draft in (("draft", "early"), ("micro", "micro"), ("numbers", "numbers")):
        parts[part] = made / "draft" / f"oft_small-{draft}-dct_d3-{_rest()}"
    return policy_folder("released", made / "base" / NAME, released(arguments), parts)


def next_model(arguments: Namespace) -> list[Step]:
    """The base model trained further on new demonstrations, all ten tasks of libero_goal among them."""
    data, made = f"paths.data={arguments.root / 'next'}", next_base(arguments)
    steps = []
    for suite, count in NEXT.items():
        own = ["data=libero_suites", f"env={suite}", f"seed={NEXT_SEED}", data]
        steps.append(collect(f"collect_next_{suite}", own, scaled(count, arguments.scale), arguments))
    own = ["data=libero_suites", data, f"paths.base={made}"]
    steps.append(train_further("oft_next", run_of("oft_suites", arguments), own, NEXT_STEPS, arguments))
    return [*steps, policy_folder("released_next", made, arguments.root / "released_next")]


def evaluations(arguments: Namespace) -> list[Step]:
    """All init states with the base model's own chunk, decodings on libero_spatial, and what is taken away there."""
    policy, spatial = f"policy={released(arguments)}", "env=libero_spatial"
    steps = []
    for suite in SUITES:
        steps.append(evaluate(f"l1_{suite}", [policy, f"env={suite}", *known(suite)], ALL, arguments))
        own = [f"policy={arguments.root / 'released_next'}", f"env={suite}"]
        steps.append(evaluate(f"next_{suite}", own, ALL, arguments))
    for decoding in ("speculative", "depth_ar", "parallel"):
        steps.append(evaluate(decoding, [policy, spatial, f"decoding={decoding}"], ALL, arguments))
    own = [policy, spatial, "decoding=speculative", "target=base"]
    steps.append(evaluate("speculative_base", own, ALL, arguments))
    steps.append(evaluate("early_exit", [policy, spatial, "decoding=early_exit"], HALF, arguments))
    steps.append(evaluate("numbers", [policy, spatial, "decoding=exit", "draft=numbers"], ALL, arguments))
    for ablation in ABLATIONS:
        steps.append(evaluate(ablation, [policy, spatial, f"ablation={ablation}"], FEW, arguments))
    for variant in VARIANTS:
        steps.append(evaluate(variant, [policy, spatial, f"env.variant={variant}"], FEW, arguments))
    return steps


def calibration(arguments: Namespace) -> list[Step]:
    """The threshold of `temporal`, from episodes that nothing was trained on; it comes last, for it may be refused."""
    held_out = arguments.root / "held_out"
    steps = []
    for suite, count in HELD_OUT.items():
        own = ["data=libero_suites", f"env={suite}", *known(suite), f"seed={HELD_OUT_SEED}", f"paths.data={held_out}"]
        steps.append(visit(f"hold_out_{suite}", own, scaled(count, arguments.scale), arguments))
    policy = released(arguments)
    command = ["scripts/calibrate.py", str(policy), "--decoding", "temporal", "--device", arguments.device]
    command += ["--data", str(held_out / "libero_suites_no_noops" / "1.0.0")]
    made = policy / "calibration" / "temporal.png"
    own = [f"policy={policy}", "env=libero_spatial", "decoding=temporal"]
    return [*steps, Step("calibrate", command, finished=None, made=made), evaluate("temporal", own, HALF, arguments)]


def released(arguments: Namespace) -> Path:
    """The policy's folder."""
    made: Path = arguments.root / "released"
    return made


def next_base(arguments: Namespace) -> Path:
    """The next policy's base model."""
    made: Path = arguments.root / "checkpoints" / "next" / NAME
    return made


def known(suite: str) -> list[str]:
    """Tasks of a suite that the base model is taught, where they are not all."""
    return [f"tasks={KNOWN_TASKS[suite]}"] if suite in KNOWN_TASKS else []


def _rest() -> str:
    return NAME.removeprefix("oft_small-")
