"""Every command of the pipeline on a 7B model with random weights: python scripts/benchmark_7b_pipeline.py --out DIR

A random checkpoint in the published layout and a set of made-up pictures are written to --scratch (45 GB; deleted at
the end unless --keep, or something failed); then trials, caching, tokenizer, head, draft, LoRA and closed-loop
evaluation run on them, eager and captured. Shapes and speed are real, success rates mean nothing. Writes
DIR/pipeline.json and pipeline.md after every step. About six minutes on one H200 with 16 cores; `--size tiny --device
cpu` tries the script. The first step that fails ends the run; it goes on when the same command is given again.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a bare checkout, where the package is not installed

from rsd.commands.pipeline import PipelineError, Step, is_finished, run_steps, seconds  # noqa: E402
from rsd.evaluation.report import REPORT_JSON  # noqa: E402
from rsd.files import write_atomically  # noqa: E402
from rsd.options import Options, held, new_folder, reported  # noqa: E402
from rsd.record import read_json, write  # noqa: E402
from rsd.runs import METRICS_FILE  # noqa: E402
from rsd.settings import Count, LoaderProcesses, require_device  # noqa: E402

DATA = "libero_spatial_no_noops"
RESULTS, TABLE = "pipeline.json", "pipeline.md"
OK = "ok"
LIMIT_S = 300  # of one step
GIGABYTE = 1e9
POLL_S = 0.25  # between two looks at the memory


class PeakMemory(threading.Thread):
    """Largest memory of a step's process, and in use on the first GPU, while this thread runs; bytes.

    Attributes:
        host, gpu: None where nothing was seen.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.host: int | None = None
        self.gpu: int | None = None
        self.done = threading.Event()

    def run(self) -> None:
        query = ["nvidia-smi", "--id=0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        children = Path(f"/proc/self/task/{os.getpid()}/children")  # of the main thread, which starts the steps
        while not self.done.wait(POLL_S):
            with contextlib.suppress(OSError):  # a process that has just ended
                for process in children.read_text().split():
                    for line in Path(f"/proc/{process}/status").read_text().splitlines():
                        if line.startswith("VmHWM:"):
                            self.host = max(self.host or 0, int(line.split()[1]) * 2**10)
            if shutil.which(query[0]):
                found = subprocess.run(query, capture_output=True, text=True)
                if found.returncode == 0:
                    self.gpu = max(self.gpu or 0, int(found.stdout.split()[0]) * 2**20)


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
    demos = ["--out", f"{scratch}/data/{DATA}/1.0.0", "--episodes", str(options.episodes)]
    random = ["--out", f"{scratch}/checkpoint", "--size", options.size, "--device", device]
    random += ["--data", f"{scratch}/data/{DATA}/1.0.0"]
    steps = [Step("data", ["scripts/make_random_demos.py", *demos], None)]
    if not (scratch / "checkpoint").is_dir():  # it appears whole
        steps.append(Step("checkpoint", ["scripts/make_random_checkpoint.py", *random], None))
    steps.append(Step("doctor", ["scripts/doctor.py", *model, *paths, "simulator=false"], None))
    for execution in executions:  # the last one's cache is the one that head and draft are trained on
        own = [] if execution == executions[-1] else [f"paths.cache={scratch}/cache_{execution}"]
        own += [f"model.backbone.execution={execution}", f"cache.num_workers={options.workers}"]
        steps.append(Step(f"cache_{execution}", ["scripts/cache_hidden_states.py", *model, *paths, *own], None))
    steps += [
        Step("rfsq", [*train, "phase=rfsq", "phase.max_steps=200"], METRICS_FILE),
        Step("head", [*heads, "phase=head"], METRICS_FILE),
        Step("draft", [*heads, "phase=draft"], METRICS_FILE),
    ]
    if installed("libero", "mujoco"):
        for decoding in ("l1", "speculative"):
            for execution in executions:
                command = ["eval.py", *model, *paths, f"decoding={decoding}", "env=libero_spatial", "tasks=[0]"]
                command += ["num_trials=1", "save_videos=0", f"env.max_steps={options.max_steps}"]
                command += [f"model.backbone.execution={execution}"]
                steps.append(Step(f"eval_{decoding}_{execution}", command, REPORT_JSON))
    if installed("peft"):
        steps.append(Step("oft_lora", lora, METRICS_FILE))
    return steps


def installed(*packages: str) -> bool:
    """Whether all of them can be imported."""
    return all(importlib.util.find_spec(package) is not None for package in packages)


def measure(step: Step, scratch: Path) -> dict[str, Any]:
    """Run a step, or the rest of it.

    Returns:
        Its record: status "ok" or what went wrong, seconds, peak memory, the command, and latencies of an evaluation.
    """
    memory = PeakMemory()
    memory.start()
    try:
        run_steps([step], scratch, limit_s=LIMIT_S)
        status = OK
    except PipelineError as error:
        status = str(error)
    finally:
        memory.done.set()
        memory.join()
    record = {"status": status, "seconds": round(seconds(step, scratch) or 0.0, 1)}
    record |= {"host_peak_bytes": memory.host, "gpu_peak_bytes": memory.gpu}
    if step.finished == REPORT_JSON:
        record["latency_ms"] = latencies(step.folder(scratch))
    return {**record, "command": shlex.join(["python", *step.command])}


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
        cells.append(f"{chunk['total']:.1f} / {chunk['base_model']:.1f}" if chunk else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


@reported
def main() -> int:
    parser = Options(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=new_folder, required=True, help="results")
    parser.add_argument("--scratch", type=new_folder, help="checkpoint, data, cache, runs; <out>/scratch if left out")
    parser.add_argument("--keep", action="store_true", help="leave the scratch folder")
    parser.add_argument("--size", choices=("7b", "tiny"), default="7b")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--episodes", type=held(Count), default=6, help="of 50 made-up frames")
    parser.add_argument("--max-steps", type=held(Count), default=80, help="control steps of an evaluated episode")
    parser.add_argument("--workers", type=held(LoaderProcesses), default=12, help="processes that prepare pictures")
    parser.add_argument("--steps", nargs="+", help="only these; what they need has to be there")
    options = parser.parse_args()
    require_device(options.device)
    out = options.out.resolve()
    scratch = options.scratch = (options.scratch or out / "scratch").resolve()
    for folder in (out, scratch):
        folder.mkdir(parents=True, exist_ok=True)
    os.chdir(ROOT)  # the steps name their scripts from here
    os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    steps = plan(options)
    results: dict[str, Any] = {"size": options.size, "device": options.device, "command": sys.argv, "steps": {}}
    if (scratch / "checkpoint").is_dir():  # going on
        results["steps"] = (read_json(out / RESULTS) or results)["steps"]
    names = [step.name for step in steps]
    if unknown := sorted({*(options.steps or [])} - {*names}):
        parser.error(f"--steps {' '.join(unknown)} names steps that do not exist here; they are {', '.join(names)}")
    for step in steps:
        if options.steps and step.name not in options.steps:
            continue
        if step.name in results["steps"] and is_finished(step, scratch):
            continue
        record = results["steps"][step.name] = measure(step, scratch)
        write(out / RESULTS, results)
        write_atomically(out / TABLE, table(results))
        print(f"{step.name}: {record['status']}, {record['seconds']:.0f} s", flush=True)
        if record["status"] != OK:
            print(f"{record['status']}; what it wrote is above, and what it left in {scratch}", file=sys.stderr)
            return 1
    print(table(results))
    if not options.keep:
        shutil.rmtree(scratch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
