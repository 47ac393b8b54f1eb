"""Loading: a random checkpoint is written and loaded in a fresh process; files are in the page cache by then."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from rsd.models.openvla.random_weights import openvla_architecture, write_random_checkpoint

ROOT = Path(__file__).resolve().parents[2]

LOAD = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
import torch
from rsd.models.openvla import load_base

def status(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) * 1024

device = sys.argv[3]
torch.zeros(1, device=device)
before, started = status("VmRSS:"), time.perf_counter()
base = load_base(checkpoint=sys.argv[2], unnorm_key="libero_spatial", views=["image", "wrist_image"],
                         use_proprio=True, chunk_length=8, device=device, dtype="bfloat16", canaries=False)
seconds, peak = time.perf_counter() - started, status("VmHWM:") - before
from rsd.models.openvla.canaries import check_canaries
started = time.perf_counter()
found = [canary.found for canary in check_canaries(base)]
gpu = torch.cuda.max_memory_allocated() if device == "cuda" else None
print(json.dumps({"load_s": seconds, "host_peak_bytes": peak, "canaries_s": time.perf_counter() - started,
                  "canaries": found, "gpu_bytes": gpu}))
"""


def measure_load(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Seconds and peak memory of loading, and of the trials that follow it."""
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        directory = Path(scratch) / "checkpoint"
        started = time.perf_counter()
        write_random_checkpoint(
            directory, architecture=openvla_architecture(size=options.size), device=device.type, shard_bytes=5 * 10**9
        )
        written_s = time.perf_counter() - started
        if device.type == "cuda":
            torch.cuda.empty_cache()
        files = sorted(directory.glob("model*.safetensors"))
        command = [sys.executable, "-c", LOAD, str(ROOT), str(directory), device.type]
        process = subprocess.run(command, capture_output=True, text=True)
        if process.returncode:
            raise RuntimeError(f"loading failed: {process.stderr[-2000:]}")
        record = json.loads(process.stdout.splitlines()[-1])
        sizes = {"largest_shard_bytes": max(path.stat().st_size for path in files), "num_shards": len(files)}
        return {**record, **sizes, "write_s": written_s, "page_cache": "warm"}
