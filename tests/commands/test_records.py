"""Files as rsd writes them are what their published schemas say, and every record has an entry on the page."""

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator, ValidationError

from rsd.checkpoint import CheckpointError
from rsd.commands.records import RECORDS, TRACE, page, record_schema, schema_name
from rsd.evaluation.report import write_report
from rsd.evaluation.sequential import VERDICT_FILE
from rsd.inputs import INPUTS_FILE, contents
from rsd.policy.folder import read_record
from rsd.record import sealed
from tests.evaluation.folders import make_run
from tests.evaluation.policies import EarlyExitPolicy, SeeingPolicy

ROOT = Path(__file__).parents[2]


def check(file: str, path: Path) -> int:
    """Hold a file's record, or each of its lines, to the schema; how many there were."""
    validator = Draft202012Validator(record_schema(file))
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    for line in lines:
        validator.validate(json.loads(line))
    return len(lines)


@pytest.mark.parametrize("file", RECORDS)
def test_each_schema_is_one_and_has_a_name_of_its_own(file):
    Draft202012Validator.check_schema(record_schema(file))
    assert [schema_name(one) for one in RECORDS].count(schema_name(file)) == 1


@pytest.mark.parametrize("policy", [SeeingPolicy(num_open_loop_steps=3), EarlyExitPolicy()], ids=["l1", "early_exit"])
def test_files_of_an_evaluation(policy, tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    make_run(tmp_path, policy, num_trials=1, save_videos=1)
    write_report(tmp_path)
    assert check("results.jsonl", tmp_path / "results.jsonl") == 3
    for file in ("plan.json", "report.json", "metrics.json"):
        check(file, tmp_path / file)
    traces = sorted((tmp_path / "traces").iterdir())
    assert [check(TRACE, path) for path in traces] == [1, 1, 1]


@pytest.mark.parametrize(
    "damage",
    [
        lambda report: report["decoding"].update(acceptance_rate="high"),
        lambda report: report["decoding"].pop("num_chunks"),
        lambda report: report["work"]["counters"][0].pop("total"),
        lambda report: report["delay"].update(still_share=2),
        lambda report: report["time"]["parts"][0].update(seconds=-1),
    ],
)
def test_figures_of_a_report_that_are_none_are_refused(damage, tmp_path):
    make_run(tmp_path, EarlyExitPolicy(), num_trials=1)
    report = write_report(tmp_path)
    validator = Draft202012Validator(record_schema("report.json"))
    validator.validate(json.loads((tmp_path / "report.json").read_text()))
    damage(report)
    with pytest.raises(ValidationError):
        validator.validate(report)


def test_lines_of_an_earlier_version():
    folder = ROOT / "tests/evaluation/runs_of_7eff0a3/libero"
    assert check("results.jsonl", folder / "results.jsonl") > 0
    check("provenance.json", folder / "provenance.json")


def test_files_of_a_sweep(sweep, tmp_path):
    code, _, error = sweep("x=1,2")
    assert code == 0, error
    for file in ("sweep.json", "job.json", "provenance.json"):
        paths = sorted(tmp_path.rglob(file))
        assert len(paths) == (1 if file == "sweep.json" else 2)
        assert [check(file, path) for path in paths] == [1] * len(paths)


def test_released_checkpoints_and_what_a_run_reads_of_them(tmp_path):
    paths = sorted(ROOT.glob("released/**/checkpoint.json"))
    assert paths and [check("checkpoint.json", path) for path in paths] == [1] * len(paths)
    (tmp_path / INPUTS_FILE).write_text(json.dumps(sealed(contents({"base": paths[0].parent}))))
    check(INPUTS_FILE, tmp_path / INPUTS_FILE)


@pytest.mark.parametrize("folder", ["released", "released/words"])
def test_released_policies(folder):
    assert check("policy.json", ROOT / folder / "policy.json") == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.update(schema=2),
        lambda record: record.pop("space"),
        lambda record: record["parts"]["base"].pop("sha256"),
        lambda record: record["base"].update(chunk_length=0),
        lambda record: record["decodings"]["l1"].pop("kind"),
        lambda record: record["decodings"]["speculative"].update(target="oracle"),
        lambda record: record["calibrations"]["temporal"].update(risk=5),
        lambda record: record["calibrations"]["temporal"]["curve"][0].pop(),
    ],
)
def test_what_reading_a_policy_refuses_its_schema_refuses(change, tmp_path):
    record = json.loads((ROOT / "released/policy.json").read_text())
    del record["checksum"]
    (tmp_path / "policy.json").write_text(json.dumps(record))
    read_record(tmp_path)
    change(record)
    (tmp_path / "policy.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError):
        read_record(tmp_path)
    with pytest.raises(ValidationError):
        check("policy.json", tmp_path / "policy.json")


def test_a_verdict(tmp_path):
    (tmp_path / VERDICT_FILE).write_text(json.dumps({"verdict": "above", "num_success": 20, "num_trials": 20}))
    check(VERDICT_FILE, tmp_path / VERDICT_FILE)


def test_the_page_has_every_record_and_what_its_entries_mean():
    shown = page()
    assert all(f"## {file}" in shown and f"(schemas/{schema_name(file)})" in shown for file in RECORDS)
    assert "| `model_ms` | number, optional | Milliseconds of the policy for this episode" in shown
    assert "| `schema` | `1` |" in shown
