"""Does this installation compute what it should? python -m rsd.selfcheck

What surprises first: no weights are needed. A base model with random ones is written in the published layout, loaded
back, and decoded in two ways that promise the same answer; numbers that must agree are compared, not looked at. It
takes seconds on a CPU. Of the extras it only says which are there; scripts/doctor.py of the repository examines those.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import rsd
from rsd.decoding import L1, Decoding, DepthAR, Speculative
from rsd.models.openvla.loading import load_base
from rsd.models.openvla.random_weights import openvla_architecture, statistics, write_random_checkpoint
from rsd.policy import Checkpoints, VLAPolicy, assemble
from rsd.stages.controls import random as random_draft
from rsd.tokenizer import save_tokenizer
from rsd.tokenizer.transform import TransformTokenizer
from rsd.types import Observation, Request

SUITE = "libero_spatial_no_noops"
EXTRAS = {  # setup.cfg → a package of it
    "commands": "hydra", "libero": "mujoco", "tf": "tensorflow", "peft": "peft", "harness": "websockets",
    "convert": "pyarrow",
}  # fmt: skip
VIEWS = ("image", "wrist_image")


def requests(count: int) -> list[Request]:
    """Of made-up pictures and proprio."""
    noise = np.random.default_rng(0)
    return [
        Request(
            Observation(
                {view: noise.integers(0, 256, (256, 256, 3), dtype=np.uint8) for view in VIEWS},
                proprio=noise.uniform(-1, 1, 8),
                instruction="put the bowl on the plate",
            ),
            seed=index,
        )
        for index in range(count)
    ]


def check(folder: Path) -> list[tuple[str, Callable[[], str]]]:
    """Names and checks, in order; each returns what it found and raises AssertionError where something is wrong."""
    tokenizer = TransformTokenizer(chunk_length=8, action_dim=7, num_stages=3, num_levels=9, ratio=8.0, margin=1.0)
    chunks = torch.rand(64, 8, 7, generator=torch.Generator().manual_seed(0)) * 2 - 1
    chunks[..., -1] = (chunks[..., -1] > 0).float()
    asked = requests(2)

    def policy(decoding: Decoding) -> VLAPolicy:
        base = load_base(checkpoint=folder / "base", unnorm_key=SUITE, views=VIEWS, use_proprio=True, chunk_length=8)
        parts = Checkpoints(tokenizer=folder / "tokenizer", control=random_draft)
        return assemble(base=base, decoding=decoding, checkpoints=parts, num_open_loop_steps=8, device="cpu")

    def code() -> str:
        indices = tokenizer.encode(chunks)
        decoded = [tokenizer.decode(indices[..., :depth]) for depth in (1, 2, 3)]
        errors = [(one - chunks).abs().max().item() for one in decoded]
        assert errors[0] > errors[1] > errors[2], f"the error does not fall from stage to stage: {errors}"
        assert ((decoded[2] - decoded[0]).abs() <= tokenizer.action_bound(1)).all(), "later stages leave their bound"
        return f"largest error after 1, 2, 3 stages: {', '.join(f'{one:.3f}' for one in errors)}"

    def layout() -> str:
        write_random_checkpoint(folder / "base", architecture=openvla_architecture(size="tiny"))
        entry = {"unnorm_key": SUITE, "norm_stats": {SUITE: statistics(7, 8)}}
        save_tokenizer(tokenizer, folder / "tokenizer", entry)
        actions = np.stack([chunk.actions for chunk in policy(L1()).predict(asked)])
        assert actions.shape == (2, 8, 7) and np.isfinite(actions).all()
        return "a published checkpoint's layout is written, loaded and run"

    def exact() -> str:
        one, two = (policy(way).predict(asked) for way in (DepthAR(), Speculative(num_draft_stages=2)))
        assert all(np.array_equal(a.actions, b.actions) for a, b in zip(one, two, strict=True)), (
            "speculation changes it"
        )
        return "speculative decoding with a random draft returns the target's own chunk"

    def queue() -> str:
        whole = policy(L1())
        queue, chunk = whole.queue(seed=0), whole.predict(asked[:1])[0]
        actions = np.stack([queue.next(asked[0].observation) for _ in range(8)])
        assert np.array_equal(actions, chunk.actions.clip(-1, 1)), "the queue gives other actions than the chunk has"
        return "an episode's queue gives the chunk's actions, one a step, within limits"

    return [("tokenizer", code), ("base model", layout), ("decoding", exact), ("queue", queue)]


def main() -> int:
    """Prints a row for each check; 1 where one failed."""
    print(f"rsd {rsd.__version__}, torch {torch.__version__}, Python {sys.version.split()[0]}")
    there = [name for name, package in EXTRAS.items() if importlib.util.find_spec(package)]
    print(f"extras: {', '.join(there) or 'none'}; not here: {', '.join(sorted(set(EXTRAS) - set(there))) or 'none'}")
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, run in check(Path(folder)):
            started = time.monotonic()
            try:
                status, found = "ok", run()
            except Exception as error:  # noqa: BLE001  whatever it is, it is the answer
                status, found, failed = "FAILED", f"{type(error).__name__}: {error}", failed + 1
            print(f"{status:7} {name:11} {found} ({time.monotonic() - started:.1f} s)")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
