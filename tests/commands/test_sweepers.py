"""Sweeps that go on, on a command that takes no time; what their table and plots are made of."""

import json
import subprocess
import sys

import pytest

from rsd.commands.objectives import objective, on_front
from rsd.commands.sweep_plots import Figure, scale, sweep_plots
from rsd.locks import let_go
from tests.commands.parabola import sweeps, table

HOLD = """
import sys; from pathlib import Path; from rsd.locks import hold
hold(Path(sys.argv[1])); print(flush=True); input()
"""


def test_a_failed_job_holds_up_no_other_and_the_same_command_goes_on(tmp_path, sweep, monkeypatch):
    mark = tmp_path / "mark"
    mark.touch()
    command = ("x=2,3", f"fails={mark}")
    code, _, stderr = sweep(*command)
    assert code == 1 and stderr.endswith(
        "1 of 2 jobs failed; the same command runs them again, and no other:\n  job 0 (x=2): SettingError: x is 2\n"
    )
    (folder,) = sweeps(tmp_path)
    assert [row["status"] for row in table(folder)] == ["failed", "done"]

    let_go(folder)
    other = subprocess.Popen([sys.executable, "-c", HOLD, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        other.stdout.readline()
        code, _, stderr = sweep(*command)
    finally:
        other.communicate(b"\n")
    assert code == 1 and f"the same sweep is at work in {folder}; wait for its end or stop it" in stderr
    assert sweeps(tmp_path) == [folder]

    mark.unlink()
    code, stdout, _ = sweep(*command)
    assert code == 0 and f"goes on with {folder}; a new sweep needs hydra.sweep.dir=DIR" in stdout
    assert "done already: job 1\n" in stdout and sweeps(tmp_path) == [folder]
    assert [row["status"] for row in table(folder)] == ["done", "done"]
    starts = [len(json.loads((folder / job / "provenance.json").read_text())["starts"]) for job in "01"]
    assert starts == [2, 1]  # in its own folder
    assert '"y against x"' in (folder / "sweep.html").read_text()

    stored = (folder / "sweep.json").read_text()  # nothing is left to do there
    code, _, stderr = sweep("x=4,3", f"fails={mark}", f"hydra.sweep.dir={folder}")
    assert code == 1 and f"{folder}/0 holds another job, " in stderr and "give the sweep a new folder" in stderr
    monkeypatch.setenv("SLOPE", "2")
    code, _, stderr = sweep(*command, f"hydra.sweep.dir={folder}")
    assert code == 1 and f"{folder}/0 was run with another configuration: slope: 1 → 2; give the sweep" in stderr
    assert (folder / "sweep.json").read_text() == stored


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+chunk=8,0"], "+chunk=0 root="),
        (["kind=small,large"], "'kind/large'"),
        (
            ["x=1,2", "hydra.sweep.subdir=one"],
            "jobs 0 and 1 would write to one folder, one; leave out hydra.sweep.subdir",
        ),
    ],
)
def test_what_is_wrong_with_any_job_is_said_before_the_first(tmp_path, sweep, overrides, message):
    code, _, stderr = sweep(*overrides)
    assert code == 1 and message in stderr
    assert not list(tmp_path.rglob("*.json"))


def test_objectives_are_figures_of_the_last_stage_results_or_settings():
    metrics, settings = {"mse/1": 0.5, "mse/2": 0.25, "bits": 9.0}, {"draft.layer": "2", "kind": "small"}
    found = [objective(name, metrics, 7.0, settings) for name in ("mse", "bits", "result", "draft.layer", "kind", "no")]
    assert found == [0.25, 9.0, 7.0, 2.0, None, None]


def test_the_front_has_what_no_other_beats():
    rows = [[1.0, 5.0], [2.0, 5.0], [2.0, 7.0], [0.0, 7.0], [None, 9.0], [1.0, 5.0], [0.5, 7.0]]
    assert on_front(rows, ["minimize", "maximize"]) == [False, False, False, True, False, False, False]
    assert on_front(rows[:3], ["minimize", "maximize"]) == [True, False, True]


def test_axes_are_logarithmic_over_decades_and_take_names_in_their_order():
    assert scale([1.0, 1000.0], 0, 100).is_log and not scale([0.0, 1000.0], 0, 100).is_log
    names = scale(["b", "a", "b"], 0, 100)
    assert [tick["text"] for tick in names.ticks] == ["b", "a"] and names.at("b") == 25.0
    assert 0 < scale([1.0, 2.0], 0, 100).at(1.0) < scale([1.0, 2.0], 0, 100).at(2.0) < 100
    assert scale([3.0], 0, 100).at(3.0) == 50.0


def test_plots_are_of_objectives_first_and_leave_out_what_is_missing():
    names, error, bits = ["0", "1", "2"], Figure("mse", [1.0, 2.0, None]), Figure("bits", [2.0, 1.0, 3.0])
    swept = Figure("depth", ["1", "2", "3"])
    plots = sweep_plots(names, [swept], [error, bits], [True, True, False], is_search=True)
    assert [(plot["y_label"], plot["x_label"], len(plot["points"])) for plot in plots] == [
        ("mse", "bits", 2), ("mse", "depth", 2), ("bits", "depth", 3)
    ]  # fmt: skip
    assert plots[0]["front"].count(",") == 2 and not plots[1]["front"]
    (plot,) = sweep_plots(names, [swept], [bits], [False] * 3, is_search=False)
    assert plot["points"][0]["title"] == "run 0: depth 1, bits 2"
    assert sweep_plots(["0"], [Figure("depth", ["1"])], [Figure("bits", [1.0])], [False], is_search=False) == []
    same, bits = Figure("depth", ["1", "1"]), Figure("bits", [1.0, 2.0])  # nothing to see along an axis of one value
    assert sweep_plots(["0", "1"], [same], [bits], [False] * 2, is_search=False) == []
