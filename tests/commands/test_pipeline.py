"""Sequences of commands: finished steps are skipped, others resumed, and what does not fit is refused."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rsd.commands.pipeline import PipelineError, Step, is_finished, keep_settings, run_steps, seconds

SCRIPT = """
import json, sys
from pathlib import Path
arguments = dict(argument.split("=", 1) for argument in sys.argv[1:])
folder = Path(arguments.get("hydra.run.dir") or arguments["resume"])
folder.mkdir(parents=True, exist_ok=True)
with open(folder / "starts", "a") as log:
    log.write(("resumed" if "resume" in arguments else "started") + chr(10))
(folder / "overrides.yaml").write_text("".join(f"- {a}" + chr(10) for a in sys.argv[1:-1]) or "[]")
(folder / "config.yaml").write_text("{}")
if arguments.get("fail") == "once" and not (folder / "failed").exists():
    (folder / "failed").touch()
    sys.exit(3)
(folder / "metrics.json").write_text(json.dumps({"l1": 0.5}))
"""


@pytest.fixture
def script(tmp_path) -> str:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return str(path)


def starts(root: Path, name: str) -> list[str]:
    return (root / "runs" / name / "starts").read_text().split()


def test_a_failed_step_ends_the_pipeline_and_is_resumed(tmp_path, script, capsys):
    steps = [Step("one", [script, "size=3"], "metrics.json"), Step("two", [script, "fail=once"], "metrics.json")]
    with pytest.raises(PipelineError, match="step 'two' failed; the same command goes on from here"):
        run_steps(steps, tmp_path)
    run_steps(steps, tmp_path)
    assert starts(tmp_path, "one") == ["started"] and starts(tmp_path, "two") == ["started", "resumed"]
    assert all(seconds(step, tmp_path) > 0 for step in steps)
    assert "step 'one' is finished" in capsys.readouterr().out


def test_a_step_with_other_settings_is_refused_but_for_those_that_do_not_matter(tmp_path, script):
    run_steps([Step("one", [script, "size=3", "num_workers=2"], "metrics.json")], tmp_path)
    assert is_finished(Step("one", [script, "size=3", "num_workers=16"], "metrics.json"), tmp_path)
    with pytest.raises(PipelineError, match=r"was made with .*size=3.*, not .*size=4.*; remove .* to start afresh"):
        run_steps([Step("one", [script, "size=4"], "metrics.json")], tmp_path)


def test_an_evaluation_with_crashes_or_gaps_is_not_finished(tmp_path):
    step = Step("eval", ["eval.py"], "report.json")
    folder = step.folder(tmp_path)
    folder.mkdir(parents=True)
    (folder / "overrides.yaml").write_text("[]")
    for complete, errors, finished in ((True, 0, True), (True, 1, False), (False, 0, False)):
        report = {"complete": complete, "success": {"num_errors": errors}}
        (folder / "report.json").write_text(json.dumps(report))
        assert is_finished(step, tmp_path) == finished


def test_a_step_that_finds_out_itself_is_always_run(tmp_path):
    mark = tmp_path / "marks"
    step = Step("collect", ["-c", f"open({str(mark)!r}, 'a').write('x')"], None)
    assert Path(sys.executable).exists()
    run_steps([step], tmp_path)
    run_steps([step], tmp_path)
    assert mark.read_text() == "xx"


def test_a_step_that_takes_too_long_is_stopped(tmp_path):
    step = Step("hang", ["-c", "import time; time.sleep(600)"], None)
    with pytest.raises(PipelineError, match="step 'hang' was stopped after 1 s"):
        run_steps([step], tmp_path, limit_s=1.0)
    assert 1 <= seconds(step, tmp_path) < 600


STEP = """
import os, sys, time
from pathlib import Path
try:
    Path(sys.argv[1]).write_text(str(os.getpid()))
    time.sleep(600)
except KeyboardInterrupt:
    Path(sys.argv[1]).with_name("saved").touch()
    sys.exit(130)
"""
PIPELINE = """
import sys
from pathlib import Path
from rsd.commands import pipeline
pipeline.SAVING_S = 0.5
pipeline.run_steps([pipeline.Step("long", ["-c", sys.argv[1], sys.argv[2]], None)], Path(sys.argv[3]))
"""


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_pipeline_that_is_killed_takes_its_running_step_along(tmp_path, stop):
    mark = tmp_path / "pid"
    command = [sys.executable, "-c", PIPELINE, STEP, str(mark), str(tmp_path)]
    pipeline = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    wait_until(lambda: mark.exists() and mark.read_text())
    pipeline.send_signal(stop)
    pipeline.wait(60)
    wait_until(lambda: not is_running(int(mark.read_text())))
    assert (tmp_path / "saved").exists() == (stop == signal.SIGINT)


def wait_until(true):
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_settings_that_decide_the_results_must_not_change(tmp_path):
    root = tmp_path / "small"
    keep_settings(root, {"num_episodes": 300, "quantizer": "dct_d3"})
    keep_settings(root, {"num_episodes": 300, "quantizer": "dct_d3"})
    with pytest.raises(PipelineError, match="begun with other settings: num_episodes: 300 → 700; give the old ones"):
        keep_settings(root, {"num_episodes": 700, "quantizer": "dct_d3"})
