"""What a run was made of, in names: an artifact is called after its content, so one input has one name in every run.

What surprises first: an artifact is a name and a digest, no bytes. Whoever makes a checkpoint and whoever reads it give
the same artifact without asking each other, wherever it lies and whether or not there is a network; Weights & Biases
draws data → tokenizer → cache → draft → evaluation from that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rsd.record import unsealed
from rsd.runs import is_job_of_sweep, pipeline_of

SHOWN = 12  # hex digits of a digest, in names
NEVER_SENT = ("data", "cache", "evaluation")  # kinds whose folder is no checkpoint
NOT_IN_NAMES = re.compile(r"[^\w.-]")


def inputs_of(run_dir: Path) -> dict[str, dict[str, Any]]:
    """Content of each part that a run reads, see `rsd.inputs`; nothing for a run without inputs.json."""
    path = run_dir / "inputs.json"
    parts: dict[str, dict[str, Any]] = unsealed(json.loads(path.read_text())) if path.is_file() else {}
    return {part: {"kind": part.split()[0], **content} for part, content in parts.items()}


def digests_of(run_dir: Path) -> dict[str, str | None]:
    """Digest of each part that a run reads."""
    return {part: content["digest"] for part, content in inputs_of(run_dir).items()}


def group_of(run_dir: Path) -> str | None:
    """Name of the sweep's folder, for a job of a sweep; of the pipeline's, for a step of one."""
    if is_job_of_sweep(run_dir):
        return run_dir.resolve().parent.name
    pipeline = pipeline_of(run_dir)
    return None if pipeline is None else pipeline.name


def artifact_name(content: Mapping[str, Any]) -> str:
    """ "tokenizer-12ab34cd56ef": kind and digest, whatever role it plays and wherever it lies."""
    return f"{NOT_IN_NAMES.sub('_', content['kind'])}-{content['digest'][:SHOWN]}"


def reference(content: Mapping[str, Any]) -> str:
    """What an artifact holds in the place of bytes."""
    return f"sha256:{content['digest']}"
