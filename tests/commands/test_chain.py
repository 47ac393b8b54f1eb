"""A pipeline at work: what is there is skipped, one step's failure holds up those that read it, and the table says it.

The steps' commands are made up; what they read and make is found by content, as that of real ones is.
"""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from rsd.commands import chain
from rsd.commands.chain import open_pipeline, run_steps, tell_failures
from rsd.commands.chain_table import Row, success_plot, time_plot, write_pipeline
from rsd.commands.error_reports import ERROR_FILE
from rsd.commands.pipeline import InterruptedStepError
from rsd.commands.steps import Planned
from rsd.errors import SettingError
from rsd.record import write
from rsd.runs import METRICS_FILE, pipeline_of
from rsd.training.lineage import group_of

NAMES = ("tokenizer", "head", "eval")


@pytest.fixture
def pipeline(tmp_path, monkeypatch):
    """Start the pipeline with a setting a step; returns (statuses, what was run, its table)."""
    folder, ran = tmp_path / "small", []

    def run_command(name, command):
        ran.append(name)
        run = Path(command[-1].partition("=")[2])
        setting = next(one for one in command if one.startswith("setting=")).partition("=")[2]
        if setting == "stops":
            raise InterruptedStepError("interrupted; the same command goes on from here")
        if setting == "fails" and not (tmp_path / "repaired").exists():
            (run / ERROR_FILE).write_text("Traceback\n  x\nrsd.errors.SettingError: it is broken\n")
            return 1
        (run / "checkpoint").mkdir(exist_ok=True)
        (run / "checkpoint" / "weights").write_text(setting)
        write(run / METRICS_FILE, {"l1": 0.5})
        return 0

    monkeypatch.setattr(chain, "run_command", run_command)
    monkeypatch.setattr(chain, "_publish", lambda step, run: None)
    monkeypatch.setattr(chain, "made_by", lambda step, run: {"checkpoint": weights(run)})
    monkeypatch.setattr(chain, "read_by", lambda step, runs: {name: weights(runs[name]) for name in step.reads})

    def start(*settings):
        ran.clear()
        reads = ([], ["tokenizer"], ["head"])
        steps = [
            Planned(name, "train.py", [f"setting={setting}"], read, False)
            for name, setting, read in zip(NAMES, settings, reads, strict=True)
        ]
        other = Planned("other", "train.py", ["setting=other"], [], False)
        open_pipeline(folder, ["train.py"])
        outcomes = run_steps([*steps, other], folder)
        with (folder / "pipeline.csv").open() as file:
            table = list(csv.DictReader(file))
        return {one.step.name: one.status for one in outcomes}, list(ran), table, outcomes

    return start


def weights(run):
    path = run / "checkpoint" / "weights"
    return path.read_text() if path.is_file() else None


def test_a_step_is_run_once_and_again_where_what_it_reads_has_changed(pipeline):
    assert pipeline("a", "b", "c")[1] == [*NAMES, "other"]
    assert pipeline("a", "b", "c")[1] == []
    statuses, ran, table, _ = pipeline("a2", "b", "c")
    assert ran == ["tokenizer", "head"] and set(statuses.values()) == {"done"}  # the head came out as it was
    assert pipeline("a", "b", "c")[1] == []  # back again: what was made first is still there
    assert [row["step"] for row in table] == [*NAMES, "other"] and table[0]["l1"] == "0.5"


def test_what_was_lost_or_changed_since_is_made_again(pipeline, tmp_path):
    pipeline("a", "b", "c")
    (made,) = (tmp_path / "small" / "head").glob("*/checkpoint/weights")
    made.write_text("damaged")
    assert pipeline("a", "b", "c")[1] == ["head"]


def test_a_failed_step_holds_up_those_that_read_it_and_is_run_again_alone(pipeline, tmp_path, capsys):
    statuses, ran, table, outcomes = pipeline("a", "fails", "c")
    assert statuses == {"tokenizer": "done", "head": "failed", "eval": "waiting", "other": "done"}
    assert [row["error"] for row in table] == ["", "it is broken", "waits for head", ""]
    with pytest.raises(SystemExit) as stop:
        tell_failures(outcomes)
    assert stop.value.code == 1
    said = "1 of 4 steps failed; the same command runs that again, and then eval:\n  head: it is broken"
    assert said in capsys.readouterr().err
    (tmp_path / "repaired").touch()
    statuses, ran, _, outcomes = pipeline("a", "fails", "c")
    assert ran == ["head", "eval"] and set(statuses.values()) == {"done"}
    tell_failures(outcomes)


def test_ctrl_c_ends_the_pipeline_and_the_table_says_where(pipeline, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        pipeline("a", "stops", "c")
    assert stop.value.code == 130 and "the same command goes on" in capsys.readouterr().err
    with (tmp_path / "small" / "pipeline.csv").open() as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["done", "not finished", "", ""]


def test_two_at_one_folder_and_foreign_folders_are_refused(tmp_path):
    hold = (
        "import sys, pathlib; from rsd.locks import hold; hold(pathlib.Path(sys.argv[1])); print(flush=True); input()"
    )
    folder = tmp_path / "small"
    folder.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", hold, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        with pytest.raises(SettingError, match=r"a pipeline is at work in .*small; wait for its end or stop it"):
            open_pipeline(folder, ["train.py"])
        process.communicate(b"\n")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").touch()
    with pytest.raises(SettingError, match="holds something else than a pipeline"):
        open_pipeline(tmp_path / "mine", ["train.py"])


def test_the_steps_of_a_pipeline_are_one_group_of_a_dashboard(tmp_path):
    run = tmp_path / "small" / "head" / "0123456789ab"
    run.mkdir(parents=True)
    assert group_of(run) is None
    write(tmp_path / "small" / "pipeline.json", {"command": []})
    assert group_of(run) == "small" and pipeline_of(run) == tmp_path / "small"


def test_the_page_shows_success_with_its_interval_and_the_time_of_each_step(tmp_path):
    run = tmp_path / "l1" / "0123456789ab"
    run.mkdir(parents=True)
    success = {"success_rate": 0.5, "success_low": 0.25, "success_high": 0.75}
    write(run / METRICS_FILE, success)
    write(run / "inputs.json", {"base": {"path": "somewhere", "digest": "ab" * 32}})
    rows = [
        Row("base", ["train.py", "phase=oft"], "done", None, 20.0, made=["ab" * 32]),
        Row("l1", ["eval.py", "decoding=l1"], "done", run, 40.0),
        Row("compare", ["scripts/compare.py"], "failed", None, error="no <b>pairs</b>"),
    ]
    write_pipeline(rows, tmp_path, "small")
    page = (tmp_path / "pipeline.html").read_text()
    assert "base of base (abababababab)" in page and 'href="l1/0123456789ab"' in page
    assert "no &lt;b&gt;pairs&lt;/b&gt;" in page and "3 steps, 1.0 minutes in all" in page
    (bar,) = success_plot(rows)["bars"]
    assert (bar["low"], bar["at"], bar["high"]) == (94.0, 180.0, 266.0) and bar["text"] == "50.0 % (25.0–75.0)"
    assert [one["width"] for one in time_plot(rows)["bars"]] == [172.0, 344.0]
