"""The files of a run folder and of a checkpoint that others may read, with their JSON schemas.

A schema is made of the type that the file is held to when rsd reads or writes it, so it cannot say anything else.
"""

from __future__ import annotations

import inspect
from typing import Any, Literal

from rsd.checkpoint import JSON_FILE, CheckpointRecord
from rsd.commands.jobs import JOB_FILE, SWEEP_FILE, Ended, Sweep
from rsd.evaluation.plan import PLAN_FILE, SCHEMA, Plan
from rsd.evaluation.player import TraceRecord
from rsd.evaluation.report import REPORT_JSON
from rsd.evaluation.report_record import Report
from rsd.evaluation.results import RESULTS_FILE
from rsd.evaluation.sequential import VERDICT_FILE, Verdict
from rsd.inputs import INPUTS_FILE, PartRecord
from rsd.policy.folder import POLICY_FILE
from rsd.policy.folder_record import PolicyRecord
from rsd.runs import METRICS_FILE, PROVENANCE_FILE, Provenance
from rsd.schema import schema
from rsd.types import EpisodeResult

TRACE = "traces/*.json"
RECORDS: dict[str, tuple[str, Any]] = {
    RESULTS_FILE: ("A line of it is an episode, on disk before the next one starts.", EpisodeResult),
    REPORT_JSON: ("What an evaluation came to, made of the other files.", Report),
    PLAN_FILE: ("What an evaluation was meant to measure, written at its first start.", Plan),
    VERDICT_FILE: ("Of an evaluation that a rule ended early.", Verdict),
    TRACE: ("The chunks of a recorded episode.", TraceRecord),
    METRICS_FILE: ("Flat figures of a finished run: name to number.", dict[str, float]),
    PROVENANCE_FILE: ("The choice of each group, and versions and commit of each start.", Provenance),
    INPUTS_FILE: ("What a run reads, by content: part to path and digest.", dict[str, PartRecord]),
    JOB_FILE: ("How a job of a sweep ended.", Ended),
    SWEEP_FILE: ("A sweep's command, and whether nothing of it is left to do.", Sweep),
    JSON_FILE: ("What the weights beside it are.", CheckpointRecord),
    POLICY_FILE: ("The parts of a policy, its decodings, and what its thresholds were found by.", PolicyRecord),
}
MORE = {PLAN_FILE: {"schema": Literal[SCHEMA]}}


def record_schema(file: str) -> dict[str, Any]:
    """The JSON schema of one of RECORDS."""
    return schema(RECORDS[file][1], title=file, more=MORE.get(file))


def schema_name(file: str) -> str:
    """What the schema's own file is called: results.schema.json."""
    return f"{file.split('/')[0].split('.')[0]}.schema.json"


def page() -> str:
    """All records in Markdown, each with its entries and a link to its schema."""
    parts = []
    for file, (purpose, kind) in RECORDS.items():
        made = record_schema(file)
        lines = [f"## {file}", "", f"{purpose} [{schema_name(file)}](schemas/{schema_name(file)})", ""]
        if inspect.isclass(kind):
            lines += _table(made)
        for name, inside in made.get("$defs", {}).items():
            lines += ["", f"**{name}**", "", *_table(inside)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _table(of: dict[str, Any]) -> list[str]:
    lines = ["| entry | type | meaning |", "|---|---|---|"]
    for name, one in of.get("properties", {}).items():
        optional = "" if name in of["required"] else ", optional"
        meaning = one.get("description", "").replace("|", r"\|").replace("<", "&lt;")
        lines.append(f"| `{name}` | {_words(one)}{optional} | {meaning} |")
    return lines


def _words(of: dict[str, Any]) -> str:
    """A schema's type in words; its limits are in its file."""
    if "$ref" in of:
        return of["$ref"].rpartition("/")[2]
    if "enum" in of:
        return " or ".join(f"`{one}`" for one in of["enum"])
    if of.get("type") == "array" and "items" in of:
        return f"list of {_words(of['items'])}"
    if of.get("type") == "object" and isinstance(of.get("additionalProperties"), dict):
        return f"name → {_words(of['additionalProperties'])}"
    if "type" not in of and "anyOf" in of:
        return " or ".join(_words(one) for one in of["anyOf"])
    return str(of.get("type", "anything"))
