"""Policies over a tiny base model, with checkpoints of a tokenizer, a target head and a draft with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from rsd.decoding import Decoding
from rsd.policy import Checkpoints, VLAPolicy, assemble
from rsd.stages import StageHead
from rsd.stages.files import save_stage_head
from rsd.tokenizer import save_tokenizer
from rsd.types import BaseModel, Observation, Request
from tests.models.openvla_tiny import UNNORM_KEY, statistics
from tests.tokenizer.test_tokenizers import rfsq

NUM_STAGES, NUM_DRAFT_STAGES = 4, 2
HEAD_POINT, DRAFT_POINT = "head", "layer.1"


def save_parts(root: Path, base: BaseModel) -> Path:
    """Write tokenizer/, head/ (on the L1 head's states) and draft/ (on the first layer)."""
    tokenizer = rfsq(num_stages=NUM_STAGES)
    save_tokenizer(tokenizer, root / "tokenizer", {"unnorm_key": UNNORM_KEY, "norm_stats": {UNNORM_KEY: statistics()}})
    save_head(root, base, "head", point=HEAD_POINT, seed=0, num_stages=NUM_STAGES, states_per_step=1)
    save_head(root, base, "draft", point=DRAFT_POINT, seed=1)
    return root


def save_head(
    root: Path,
    base: BaseModel,
    name: str,
    *,
    point: str,
    seed: int,
    num_stages: int = NUM_DRAFT_STAGES,
    states_per_step: int = 7,
) -> Path:
    """Write a head beside the tokenizer in `root`; all but "head" are drafts."""
    sha256 = json.loads((root / "tokenizer" / "checkpoint.json").read_text())["sha256"]
    made_for = {"tokenizer": sha256, "base": dict(base.spec.fingerprint), "unnorm_key": UNNORM_KEY}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = StageHead(
            code_shape=rfsq(num_stages=NUM_STAGES).code_shape,
            hidden_dim=32,
            states_per_step=states_per_step,
            num_stages=num_stages,
            width=16,
            num_layers=1,
            num_heads=2,
        )
    kind = "head" if name == "head" else "draft"
    save_stage_head(head, root / name, kind=kind, point=point, provenance=made_for)
    return root / name


def checkpoints_of(root: Path, **changes: Any) -> Checkpoints:
    return Checkpoints(**({name: root / name for name in ("tokenizer", "head", "draft")} | changes))


def make_policy(base: BaseModel, root: Path, decoding: Decoding, *, target: str = "head", **changes: Any) -> VLAPolicy:
    """Put together from the parts in `root`; target="base" leaves the head out."""
    checkpoints = checkpoints_of(root) if target == "head" else checkpoints_of(root, head=None)
    arguments = {"checkpoints": checkpoints, "num_open_loop_steps": 8, "device": "cpu"}
    return assemble(base=base, decoding=decoding, **(arguments | changes))


def requests(observations: list[Observation], **changes: Any) -> list[Request]:
    """One an observation, seeds 0, 1, 2, …"""
    return [Request(one, seed, **changes) for seed, one in enumerate(observations)]
