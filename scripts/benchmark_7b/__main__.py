"""Time and memory of OpenVLA-OFT at 7B shapes on one GPU, with random weights: python scripts/benchmark_7b --out DIR

Needs torch, transformers, safetensors, scipy and PIL only. Writes DIR/benchmark_7b.json (after every section, so that
an interrupted run keeps what it has) and DIR/benchmark_7b.md, and prints the table. About eight minutes on an H200.

What surprises first: variants take turns call by call, so that clocks and temperature treat them alike, and whatever is
timed is also compared: a captured path whose outputs differ from the eager ones on the timed inputs fails the run.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

SCRIPTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(SCRIPTS), str(SCRIPTS.parent)]  # runs from a bare checkout, where the package is not installed

from benchmark_7b.caching import measure_caching  # noqa: E402
from benchmark_7b.forward import measure_forward  # noqa: E402
from benchmark_7b.loading import measure_load  # noqa: E402
from benchmark_7b.table import table  # noqa: E402
from rsd.models.openvla.model import OpenVLAOFT  # noqa: E402
from rsd.models.openvla.random_weights import openvla_architecture, random_model  # noqa: E402
from rsd.options import Options, held, new_folder, reported  # noqa: E402
from rsd.settings import Count, Device, LoaderProcesses, Natural, require_device  # noqa: E402

RESULTS, TABLE = "benchmark_7b.json", "benchmark_7b.md"
MEASURES = {"forward": measure_forward, "caching": measure_caching}
SECTIONS = ("load", *MEASURES)


@reported
def main() -> int:
    parser = Options(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=new_folder, required=True)
    parser.add_argument("--device", type=held(Device), default="cuda")
    parser.add_argument("--size", choices=("7b", "tiny"), default="7b")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--warmup", type=held(Natural), default=20)
    parser.add_argument("--calls", type=held(Count), default=200)
    parser.add_argument("--frames", type=held(Count), default=640, help="of the caching section")
    parser.add_argument("--batch-size", type=held(Count), default=16, help="of the caching section")
    parser.add_argument("--workers", type=held(LoaderProcesses), default=12, help="processes that prepare pictures")
    parser.add_argument("--scratch", type=new_folder, default=None, help="folder for 15 GB that are deleted again")
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled variant out")
    options = parser.parse_args()
    require_device(options.device)
    options.out.mkdir(parents=True, exist_ok=True)
    device = torch.device(options.device)
    cuda = device.type == "cuda"
    results: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if cuda else "CPU",
        "torch": torch.__version__,
        "size": options.size,
        "command": sys.argv,
        "errors": {},
        "seconds": {},
    }
    model: OpenVLAOFT | None = None
    for section in SECTIONS:
        if section not in options.sections:
            continue
        started = time.perf_counter()
        try:
            if section == "load":
                results[section] = measure_load(options, device)
            else:
                if model is None:
                    dtype = torch.bfloat16 if cuda else torch.float32
                    model = random_model(openvla_architecture(size=options.size), seed=0, device=device, dtype=dtype)
                    model.requires_grad_(False)
                results[section] = MEASURES[section](options, model, device)
        except Exception:  # noqa: BLE001  the other sections are still worth their time; the run fails all the same
            results["errors"][section] = traceback.format_exc()
        results["seconds"][section] = time.perf_counter() - started
        (options.out / RESULTS).write_text(json.dumps(results, indent=1) + "\n")
        print(f"{section}: {results['seconds'][section]:.0f} s", file=sys.stderr, flush=True)
    text = table(results)
    (options.out / TABLE).write_text(text)
    print(text)
    wrong = results.get("forward", {}).get("disagreements", [])
    for line in wrong:
        print(f"outputs differ: {line}", file=sys.stderr)
    for error in results["errors"].values():
        print(error, file=sys.stderr)
    return 1 if wrong or results["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
