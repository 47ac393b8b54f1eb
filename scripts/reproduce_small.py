"""The small policy from nothing, on one GPU: python scripts/reproduce_small.py [--root DIR] [--workers 16] [--base DIR]

A base model is trained on demonstrations of LIBERO-Spatial and goes on with those of three suites, on request also with
the expert's corrections of what it does itself. Target head and draft learn its tokens on episodes that it acts in.
Closed-loop evaluation on the official init states follows.
Every step is a command that a user could type, and is printed before it runs; an interrupted run goes on where it was.
Ends with tables of results and times in --results. With --base the first model is not trained, but taken from there;
with --suites-base the second. With --words another policy is made: one that reads sentences (docs/words.md), of four
suites, from the model given there and with exchanged objects; not run yet.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
from pathlib import Path
from typing import Annotated, Any

from rsd.commands.pipeline import RUNS, Step, keep_settings, run_steps, seconds
from rsd.evaluation.report import REPORT_JSON
from rsd.files import write_atomically
from rsd.options import Options, held, new_folder, old_folder, reported
from rsd.record import read_json
from rsd.runs import METRICS_FILE, PROVENANCE_FILE
from rsd.settings import Count, NotNegative, Positive, Processes, Range

SUITES = {"libero_spatial": 500, "libero_object": 300, "libero_goal": 450}  # demonstrations of the second data set
CORRECTIONS = {"libero_spatial": 250, "libero_object": 150, "libero_goal": 200}  # added to that data set
HARD_TASKS = {"libero_spatial": 9, "libero_object": 2}  # solved least often after the second training
HARD_CORRECTIONS = 50  # added for each of these
VISITED = {"libero_spatial": 200, "libero_object": 150, "libero_goal": 150}  # episodes in which the base model acts
ALL_TASKS = "null"
FIRST_BASE = "checkpoints/base/oft_small-libero_spatial_no_noops-t8"
DECODINGS = ("speculative", "depth_ar", "parallel")
ABLATIONS = ("black_pictures", "other_instruction", "zero_proprio")
PLAIN = {"libero_spatial": 500, "libero_object": 500, "libero_goal": 500, "libero_10": 450}  # with --words
EXCHANGED = {"libero_spatial": 300, "libero_object": 300, "libero_goal": 300}  # added, with objects exchanged
COVERED = {"libero_10": "[0,1,2,3,4,5,6,7,8]"}  # tasks that the expert does, where it does not do all
PERTURBED = ("lan", "task", "swap", "object")  # LIBERO-PRO's, of a policy that reads sentences
VARIANTS = ("swap", "object")  # LIBERO-PRO's; lan and task have words that the small model refuses
NOISE_SCALES = "[0.0,0.2,0.4]"  # of the executed actions in free space: states to recover from
VISITED_NOISE = "[0.0,0.1,0.2]"  # of all executed actions
CORRECTED_NOISE = "[0.0,0.1,0.3]"  # of the model's actions, and of the expert's in free space
LEAD_STEPS = "[0,60]"  # that the model acts before the expert: after more it has mostly grasped, and needs no help
HARD_LEAD_STEPS = "[20,90]"  # more often after a grasp that has failed
NUM_TASKS = 10  # of a suite
FEW_TRIALS = 10  # episodes a task of ablations and variants
BATCH_SIZE = 512  # frames of a step of a base model's training
MAX_BATCH = 16  # observations in one call of the policy
Trials = Annotated[int, Range(1, 50)]
RESULTS_JSON, RESULTS_TABLE = "small_policy.json", "small_policy.md"


def plan(arguments: argparse.Namespace) -> list[Step]:
    """The steps, in order."""
    if arguments.words:
        return policy_of_words(arguments)
    steps = []
    if not arguments.suites_base:
        steps += [] if arguments.base else first_base(arguments)
        steps += base_of_all_suites(arguments)
    if arguments.corrections_scale:
        steps += corrected_base(arguments)
    return [*steps, *heads(arguments), *evaluations(arguments)]


def first_base(arguments: argparse.Namespace) -> list[Step]:
    """A base model for LIBERO-Spatial alone."""
    data = ["env=libero_spatial", f"num_episodes={arguments.num_episodes}"]
    return [collect("collect", data, NOISE_SCALES, arguments), train_base("oft", [], arguments.oft_steps, arguments)]


def base_of_all_suites(arguments: argparse.Namespace) -> list[Step]:
    """The same model, trained further on a smaller data set of all suites."""
    steps = []
    for suite, num_episodes in SUITES.items():
        count = max(1, round(num_episodes * arguments.suites_scale))
        data = ["data=libero_suites", f"env={suite}", f"num_episodes={count}"]
        steps.append(collect(f"collect_{suite}", data, NOISE_SCALES, arguments))
    first = arguments.base or arguments.root / FIRST_BASE
    return [*steps, train_further("oft_suites", first, arguments.suites_steps, arguments)]


def corrected_base(arguments: argparse.Namespace) -> list[Step]:
    """The same model again, after the expert has shown how to go on from where it leads.

    Only these episodes are added to the data set: they include some in which the model hardly acts before the expert.
    """
    model = arguments.suites_base or arguments.root / RUNS / "oft_suites" / "checkpoint"
    common = ["data=libero_suites", "demonstrator=corrections", "model=oft_small", "seed=2", f"paths.base={model}"]
    asked: dict[str, tuple[str, str, int, str]] = {}  # name: suite, tasks, episodes in the data set, steps of the model
    for suite, added in CORRECTIONS.items():
        there = 0 if arguments.suites_base else max(1, round(SUITES[suite] * arguments.suites_scale))
        count = there + max(1, round(added * arguments.corrections_scale))
        asked[suite] = (suite, ALL_TASKS, count, LEAD_STEPS)
        if suite in HARD_TASKS:
            count = count // NUM_TASKS + max(1, round(HARD_CORRECTIONS * arguments.corrections_scale))
            asked[f"{suite}_{HARD_TASKS[suite]}"] = (suite, f"[{HARD_TASKS[suite]}]", count, HARD_LEAD_STEPS)
    steps = []
    for name, (suite, tasks, count, lead_steps) in asked.items():
        own = [f"env={suite}", f"tasks={tasks}", f"num_episodes={count}", f"recipe.lead_steps={lead_steps}"]
        steps.append(collect(f"correct_{name}", [*common, *own], CORRECTED_NOISE, arguments))
    return [*steps, train_further("oft_corrected", model, arguments.corrected_steps, arguments)]


def policy_of_words(arguments: argparse.Namespace) -> list[Step]:
    """A policy that reads sentences, from a trained one, on plain demonstrations and some with objects exchanged."""
    common, steps = ["data=libero_four", "model=oft_small", "text=sentence"], []
    counts = {suite: max(1, round(count * arguments.suites_scale)) for suite, count in PLAIN.items()}
    for suite, count in counts.items():
        own = ["data=libero_four", f"env={suite}", f"tasks={COVERED.get(suite, ALL_TASKS)}"]
        steps.append(collect(f"collect_{suite}", [*own, f"num_episodes={count}"], NOISE_SCALES, arguments))
        if suite in EXCHANGED:
            count += max(1, round(EXCHANGED[suite] * arguments.suites_scale))
            own += ["seed=3", "exchanged=1", f"num_episodes={count}"]
            steps.append(collect(f"exchange_{suite}", own, NOISE_SCALES, arguments))
    own = [*common, f"phase.module.start_from={arguments.words}", f"phase.module.loss_units={arguments.loss_units}"]
    steps.append(train_base("oft_words", own, arguments.suites_steps, arguments))
    few = f"num_trials={min(FEW_TRIALS, arguments.num_trials)}"
    for suite in PLAIN:
        own = [f"env={suite}", f"tasks={COVERED.get(suite, ALL_TASKS)}", f"num_trials={arguments.num_trials}"]
        steps.append(evaluate(f"l1_{suite}", [*own, *common], arguments))
        for variant in PERTURBED if suite in EXCHANGED else ():
            own = [f"env={suite}", f"env.variant={variant}", few]
            steps.append(evaluate(f"l1_{suite}_{variant}", [*own, *common], arguments))
    return steps


def evaluate(name: str, own: list[str], arguments: argparse.Namespace) -> Step:
    """eval.py on the GPU."""
    options = ["device=cuda", "save_videos=0", f"num_workers={arguments.workers}", f"max_batch={MAX_BATCH}"]
    return Step(f"eval_{name}", ["eval.py", *own, *options, f"paths.root={arguments.root}"], REPORT_JSON)


def heads(arguments: argparse.Namespace) -> list[Step]:
    """Tokenizer on the demonstrations; hidden states, target head and draft on episodes of the base model itself."""
    common = ["data=libero_suites", f"paths.root={arguments.root}"]
    visited = f"paths.data={arguments.root / 'visited'}"
    model = ["model=oft_small", f"quantizer={arguments.quantizer}"]
    steps = [Step("rfsq", ["train.py", "phase=rfsq", f"quantizer={arguments.quantizer}", *common], METRICS_FILE)]
    for suite, num_episodes in VISITED.items():
        count = max(1, round(num_episodes * arguments.suites_scale))
        data = ["data=libero_suites", f"env={suite}", f"num_episodes={count}"]
        data += ["demonstrator=policy", "model=oft_small", "seed=1", visited]
        steps.append(collect(f"visit_{suite}", data, VISITED_NOISE, arguments))
    cache = ["cache.batch_size=256", f"cache.num_workers={arguments.workers}"]
    train = [f"phase.max_steps={arguments.head_steps}", "phase.module.labels=base", *gpu(), visited]
    train += ["phase.datamodule.batch_size=512", "+phase.datamodule.memory_gb=16"]
    train += [f"phase.datamodule.{option}" for option in cache]
    caching = ["scripts/cache_hidden_states.py", "model=oft_small", "device=cuda", visited, *cache, *common]
    return [
        *steps,
        Step("cache", caching, finished=None),
        Step("head", ["train.py", "phase=head", *model, *train, *common], METRICS_FILE),
        Step("draft", ["train.py", "phase=draft", *model, *train, *common], METRICS_FILE),
    ]


def evaluations(arguments: argparse.Namespace) -> list[Step]:
    """l1 on every suite; on libero_spatial the decodings, ablations and variants, too."""
    common = ["data=libero_suites", "model=oft_small", f"quantizer={arguments.quantizer}"]
    many, few = (f"num_trials={min(count, arguments.num_trials)}" for count in (arguments.num_trials, FEW_TRIALS))
    spatial = "env=libero_spatial"
    asked = {"l1": [spatial, many]}
    for suite in ("libero_object", "libero_goal"):
        asked[f"l1_{suite}"] = [f"env={suite}", many]
    asked |= {decoding: [spatial, f"decoding={decoding}", many] for decoding in DECODINGS}
    asked["speculative_base"] = [spatial, "decoding=speculative", "target=base", many]
    asked |= {ablation: [spatial, f"ablation={ablation}", few] for ablation in ABLATIONS}
    asked |= {variant: [spatial, f"env.variant={variant}", few] for variant in VARIANTS}
    return [evaluate(name, [*own, *common], arguments) for name, own in asked.items()]


def collect(name: str, data: list[str], noise_scales: str, arguments: argparse.Namespace) -> Step:
    """Episodes of one suite."""
    options = [
        f"num_workers={arguments.workers}",
        f"recipe.noise_scales={noise_scales}",
        f"paths.root={arguments.root}",
    ]
    if arguments.gpus > 1:
        options.append(f"render_devices={list(range(arguments.gpus))}")
    return Step(name, ["scripts/collect_demos.py", *data, *options], finished=None)


def train_base(name: str, own: list[str], max_steps: int, arguments: argparse.Namespace) -> Step:
    """phase=oft_gpu."""
    share = max(1, arguments.workers // arguments.gpus)  # each process decodes all pictures for its own GPU
    options = [f"phase.max_steps={max_steps}", f"phase.datamodule.num_workers={share}", *gpu()]
    if arguments.gpus > 1:
        options += ["trainer=ddp", f"trainer.devices={arguments.gpus}"]
        options.append(f"phase.datamodule.batch_size={BATCH_SIZE // arguments.gpus}")
    model = [] if "model=oft_small" in own else ["model=oft_small"]
    command = ["train.py", "phase=oft_gpu", *model, *own, *options, f"paths.root={arguments.root}"]
    return Step(name, command, METRICS_FILE)


def train_further(name: str, start: Path, max_steps: int, arguments: argparse.Namespace) -> Step:
    """phase=oft_gpu on all suites, beginning with the model in `start`."""
    own = ["data=libero_suites", f"phase.module.start_from={start}"]
    return train_base(name, [*own, f"phase.module.loss_units={arguments.loss_units}"], max_steps, arguments)


def gpu() -> list[str]:
    return ["trainer=gpu", "device=cuda", "val_every=1000", "save_every=2000"]


def collect_results(root: Path, steps: list[Step]) -> dict[str, Any]:
    """What every step has measured so far, with its command, time and provenance."""
    results = {}
    for step in steps:
        folder = step.folder(root)
        record: dict[str, Any] = {"command": shlex.join(["python", *step.command]), "seconds": seconds(step, root)}
        report, metrics = read_json(folder / REPORT_JSON), read_json(folder / METRICS_FILE)
        if report is not None:
            record["report"] = {name: value for name, value in report.items() if name not in ("episodes", "config")}
            record["episodes"] = [
                [episode["task_id"], episode["init_state_id"], episode["success"], episode["num_steps"]]
                for episode in report["episodes"]
            ]
        if metrics is not None:
            record["metrics"] = metrics
        provenance = read_json(folder / PROVENANCE_FILE)
        if provenance is not None:
            record["provenance"] = provenance["starts"][-1]
        results[step.name] = record
    return results


def table(results: dict[str, Any]) -> str:
    """Markdown: a row for each evaluation, then a row for each step's time."""
    lines = ["| run | success | 95 % interval | episodes | mean steps |", "|---|---|---|---|---|"]
    lines += [row(name.removeprefix("eval_"), record) for name, record in results.items() if "report" in record]
    lines += ["", "| step | seconds |", "|---|---|"]
    lines += [f"| {name} | {record['seconds']:.0f} |" for name, record in results.items() if record["seconds"]]
    return "\n".join(lines) + "\n"


def row(name: str, record: dict[str, Any]) -> str:
    """One evaluation; crashed episodes and missing ones are named."""
    success, report = record["report"]["success"], record["report"]
    num_trials = success["num_episodes"] - success["num_errors"]
    if num_trials == 0:
        return f"| {name} | – | – | {success['num_errors']} crashed | – |"
    mean_steps = sum(episode[-1] for episode in record["episodes"]) / len(record["episodes"])
    episodes = str(num_trials)
    if success["num_errors"]:
        episodes += f", {success['num_errors']} crashed"
    if not report["complete"]:
        episodes += f", of {report['num_planned']} planned"
    return (
        f"| {name} | {100 * success['success_rate']:.1f} % | "
        f"{100 * success['success_low']:.1f}–{100 * success['success_high']:.1f} % | {episodes} | {mean_steps:.0f} |"
    )


@reported
def main() -> None:
    parser = Options(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=new_folder, default=Path("outputs/small"), help="where everything goes")
    parser.add_argument("--results", type=new_folder, default=None, help="where tables go; <root>/results by default")
    parser.add_argument("--workers", type=held(Processes), default=16, help="processes; about 2 GB of memory each")
    parser.add_argument(
        "--gpus", type=held(Count), default=1, help="that demonstrations are drawn and base models trained on"
    )
    parser.add_argument(
        "--base", type=old_folder, help="base model for LIBERO-Spatial to go on from, instead of training one"
    )
    parser.add_argument("--num-episodes", type=held(Count), default=700, help="demonstrations for the first base model")
    parser.add_argument("--oft-steps", type=held(Count), default=3500)
    parser.add_argument(
        "--suites-scale", type=held(Positive), default=1.0, help="share of the second data set's demonstrations"
    )
    parser.add_argument("--suites-steps", type=held(Count), default=3500)
    parser.add_argument(
        "--suites-base", type=old_folder, help="base model of all suites to correct, instead of training one"
    )
    parser.add_argument(
        "--corrections-scale", type=held(NotNegative), default=0.0, help="share of the corrections; 0 for none"
    )
    parser.add_argument("--words", type=old_folder, help="base model to go on from with sentences; not run yet")
    parser.add_argument("--corrected-steps", type=held(Count), default=5000)
    parser.add_argument("--loss-units", default="quantiles", help="of the trainings on all suites")
    parser.add_argument("--head-steps", type=held(Count), default=3000)
    parser.add_argument("--num-trials", type=held(Trials), default=50, help="episodes a task, 1..50")
    parser.add_argument("--quantizer", default="dct_d3")
    parser.add_argument("--only", help="names of the steps to run now, separated by commas; all by default")
    arguments = parser.parse_args()
    if arguments.suites_base and not arguments.corrections_scale:
        parser.error("--suites-base is a model to correct; give --corrections-scale, too")
    root: Path = arguments.root
    root.mkdir(parents=True, exist_ok=True)
    steps = plan(arguments)
    names = [step.name for step in steps]
    chosen = names if arguments.only is None else arguments.only.split(",")
    if not set(chosen) <= set(names):
        parser.error(f"--only {arguments.only} names steps that do not exist; the steps are {', '.join(names)}")
    free = ("root", "results", "workers", "only")  # change no result
    settings = {name: value for name, value in vars(arguments).items() if name not in free}
    for name in ("base", "suites_base", "words"):
        settings[name] = settings[name] and str(settings[name])
    keep_settings(root, settings)
    run_steps([step for step in steps if step.name in chosen], root)
    directory: Path = arguments.results or root / "results"
    directory.mkdir(parents=True, exist_ok=True)
    results = collect_results(root, steps)
    write_atomically(directory / RESULTS_JSON, json.dumps(results) + "\n")
    write_atomically(directory / RESULTS_TABLE, table(results))
    for step in steps:
        for plot in sorted(step.folder(root).glob("*.png")):
            shutil.copy(plot, directory / f"{step.name}_{plot.name}")
    print(f"\n{table(results)}results: {directory}")


if __name__ == "__main__":
    main()
