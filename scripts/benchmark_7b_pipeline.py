"""Every command of the pipeline on a 7B model with random weights: python scripts/benchmark_7b_pipeline.py --out DIR

A random checkpoint in the published layout and a set of made-up pictures are written to --scratch (45 GB; deleted at
the end unless --keep, or something failed); then trials, caching, tokenizer, head, draft, LoRA and closed-loop
evaluation run on them, eager and captured. Shapes and speed are real, success rates mean nothing. Writes
DIR/pipeline.json and pipeline.md after every step, and DIR/<step>.log. About six minutes on one H200 with 16 cores;
`--size tiny --device cpu` tries the script. An interrupted or failed run goes on when the same command is given again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from statistics import median
from typing import Any

from timed_steps import Step, run_all, with_needs

DATA = "libero_spatial_no_noops"
RESULTS, TABLE = "pipeline.json", "pipeline.md"
LIMIT_S = 300  # of one step
GIGABYTE = 1e9


def plan(options: argparse.Namespace) -> list[Step]:
    """The steps, in order."""
    scratch, tiny, device = options.scratch, options.size == "tiny", options.device
    executions = ["eager"] if device == "cpu" else ["eager", "captured"]
    best = f"model.backbone.execution={executions[-1]}"
    model = ["model=oft_spatial", f"model.backbone.checkpoint={scratch}/checkpoint", f"device={device}"]
    if tiny:
        model += ["model.image_size=56", "model.draft_layer=1"]
    paths = [f"paths.root={scratch}/outputs", f"paths.data={scratch}/data"]
    train = ["train.py", *model, *paths, "val_every=1000", "save_every=1000"]
    accelerator = "trainer=cpu" if device == "cpu" else "trainer=gpu"
    workers = [f"datamodule.cache.num_workers={options.workers}"]
    heads = [*train, accelerator, "phase.max_steps=20", *(f"phase.{option}" for option in workers), best]
    lora = [*train, accelerator if tiny else "trainer=finetune", "phase=oft_lora", "phase.max_steps=2"]
    lora += [
        f"phase.datamodule.num_workers={options.workers}",
        *(["phase.module.rank=4", "phase.module.dtype=float32"] if tiny else []),
    ]
    made = ("checkpoint", "data")
    demos = ["--out", f"{scratch}/data/{DATA}/1.0.0", "--episodes", str(options.episodes)]
    random = ["--out", f"{scratch}/checkpoint", "--size", options.size, "--device", device]
    steps = [
        Step("checkpoint", ["scripts/make_random_checkpoint.py", *random]),
        Step("data", ["scripts/make_random_demos.py", *demos]),
        Step("doctor", ["scripts/doctor.py", *model, *paths, "simulator=false"], made),
    ]
    for execution in executions:  # the last one's cache is the one that head and draft are trained on
        own = [] if execution == executions[-1] else [f"paths.cache={scratch}/cache_{execution}"]
        own += [f"model.backbone.execution={execution}", f"cache.num_workers={options.workers}"]
        steps.append(Step(f"cache_{execution}", ["scripts/cache_hidden_states.py", *model, *paths, *own], made))
    cached = (*made, "rfsq", f"cache_{executions[-1]}")
    steps += [
        Step("rfsq", [*train, "phase=rfsq", "phase.max_steps=200"], ("data",)),
        Step("head", [*heads, "phase=head"], cached),
        Step("draft", [*heads, "phase=draft"], cached),
    ]
    for decoding, needs in (("l1", ("checkpoint",)), ("speculative", ("checkpoint", "head", "draft"))):
        for execution in executions:
            name = f"eval_{decoding}_{execution}"
            command = ["eval.py", *model, *paths, f"decoding={decoding}", "env=libero_spatial", "tasks=[0]"]
            command += ["num_trials=1", "save_videos=0", f"env.max_steps={options.max_steps}"]
            command += [f"model.backbone.execution={execution}", f"hydra.run.dir={scratch}/runs/{name}"]
            steps.append(Step(name, command, needs, ("libero", "mujoco")))
    return [*steps, Step("oft_lora", lora, made, ("peft",))]


def latencies(run_dir: Path) -> dict[str, float]:
    """Median milliseconds a chunk of each part of an evaluation, without each episode's first chunk."""
    path = run_dir / "results.jsonl"
    if not path.is_file():
        return {}
    parts: dict[str, list[float]] = {}
    for line in path.read_text().splitlines():
        for part, values in json.loads(line)["latency_ms"].items():
            parts.setdefault(part, []).extend(values[1:])
    return {part: round(median(values), 2) for part, values in parts.items() if values}


def table(results: dict[str, Any]) -> str:
    """What people read."""
    lines = [
        f"{results['size']} shapes on {results['device']}, random weights, made-up pictures: shapes and speed only",
        "",
        "| step | result | s | host GB | GPU GB | ms a chunk: whole / base model |",
        "|---|---|---|---|---|---|",
    ]
    for name, record in results["steps"].items():
        sizes = [record.get(f"{kind}_peak_bytes") for kind in ("host", "gpu")]
        chunk = record.get("latency_ms", {})
        cells = [name, record["status"], f"{record['seconds']:.0f}" if "seconds" in record else ""]
        cells += [f"{size / GIGABYTE:.1f}" if size else "" for size in sizes]
        cells.append(f"{chunk['total']:.1f} / {chunk['backbone']:.1f}" if chunk else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="results and logs")
    parser.add_argument("--scratch", type=Path, help="checkpoint, data, cache, runs; <out>/scratch if left out")
    parser.add_argument("--keep", action="store_true", help="leave the scratch folder")
    parser.add_argument("--size", choices=("7b", "tiny"), default="7b")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--episodes", type=int, default=6, help="of 50 made-up frames")
    parser.add_argument("--max-steps", type=int, default=80, help="control steps of an evaluated episode")
    parser.add_argument("--workers", type=int, default=12, help="processes that prepare pictures")
    parser.add_argument("--steps", nargs="+", help="only these, and what they need")
    options = parser.parse_args()
    out = options.out.resolve()
    scratch = options.scratch = (options.scratch or out / "scratch").resolve()
    steps = plan(options)
    if options.steps:
        steps = with_needs(steps, options.steps)
    for folder in (out, scratch):
        folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"size": options.size, "device": options.device, "command": sys.argv, "steps": {}}
    if (out / RESULTS).is_file() and (scratch / "checkpoint").is_dir():
        results["steps"] = json.loads((out / RESULTS).read_text())["steps"]

    def finished(step: Step, record: dict[str, Any]) -> None:
        if step.name.startswith("eval_"):
            record["latency_ms"] = latencies(scratch / "runs" / step.name)
        (out / RESULTS).write_text(json.dumps(results, indent=1) + "\n")
        (out / TABLE).write_text(table(results))
        print(f"{step.name}: {record['status']}, {record.get('seconds', 0):.0f} s", flush=True)

    failed = run_all(steps, out, results["steps"], limit_s=LIMIT_S, finished=finished)
    print(table(results))
    if failed:
        print(f"failed: {', '.join(failed)}; see {out}/<step>.log, then give the same command again", file=sys.stderr)
        return 1
    if not options.keep:
        shutil.rmtree(scratch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
