"""Sweeps that go on: the grid and the search, on a command that takes no time."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from rsd.commands import entry_point
from rsd.commands.objectives import objective, on_front
from rsd.commands.sweep_plots import scale
from rsd.locks import let_go
from tests.commands import parabola

CONF = Path(__file__).parents[2] / "conf"


HOLD = """
import sys; from pathlib import Path; from rsd.locks import hold
hold(Path(sys.argv[1])); print(flush=True); input()
"""


@pytest.fixture
def sweep(tmp_path, monkeypatch, capsys):
    """Run the command with -m; returns (exit code, what it printed, what it printed as error)."""

    def run(*overrides: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["parabola.py", "-m", f"hydra.searchpath=[file://{CONF}]", f"root={tmp_path}"])
        sys.argv += ["hydra/sweeper=grid", *overrides]
        code: int | str | None = 0
        try:
            entry_point.run(parabola.main, parabola.CONFIG)
        except SystemExit as stop:
            code = stop.code
        printed = capsys.readouterr()
        return (code, *printed) if isinstance(code, int) else (1, printed.out, printed.err + str(code))

    return run


@pytest.fixture
def search(sweep):
    """The same with a search of six trials."""

    def run(*overrides: str) -> tuple[int, str, str]:
        return sweep("hydra/sweeper=optuna", "hydra.sweeper.n_trials=6", "hydra.sweeper.sampler=random", *overrides)

    return run


def sweeps(root: Path) -> list[Path]:
    return sorted(path.parent for path in root.glob("*/sweep.json"))


def statuses(folder: Path) -> dict[str, str]:
    with (folder / "sweep.csv").open() as file:
        return {row["run"]: row["status"] for row in csv.DictReader(file)}


def num_starts(job: Path) -> int:
    return len(json.loads((job / "provenance.json").read_text())["starts"])


def test_a_failed_job_holds_up_no_other_and_the_same_command_runs_it_alone(tmp_path, sweep):
    mark = tmp_path / "mark"
    mark.touch()
    command = ("x=1,2,3", f"fails={mark}")
    code, _, stderr = sweep(*command)
    assert code == 1
    assert (
        "1 of 3 jobs failed; the same command runs them again, and no other:\n  job 1 (x=2): SettingError: x is 2"
        in stderr
    )
    (folder,) = sweeps(tmp_path)
    assert statuses(folder) == {"0": "done", "1": "failed", "2": "done"}
    mark.unlink()
    code, stdout, _ = sweep(*command)
    assert code == 0 and f"goes on with {folder}; a new sweep needs hydra.sweep.dir=DIR" in stdout
    assert "done already: job 0, 2" in stdout and sweeps(tmp_path) == [folder]
    assert statuses(folder) == dict.fromkeys("012", "done")
    assert [num_starts(folder / job) for job in "012"] == [1, 2, 1]  # in its own folder
    assert sweep(*command)[0] == 0 and len(sweeps(tmp_path)) == 2  # nothing is left to do: a sweep of its own


def test_a_job_that_never_ended_goes_on(tmp_path, sweep):
    assert sweep("x=1,2")[0] == 0
    (folder,) = sweeps(tmp_path)
    (folder / "1" / "job.json").unlink()
    code, stdout, _ = sweep("x=1,2", f"hydra.sweep.dir={folder}")
    assert code == 0 and "done already: job 0\n" in stdout
    assert [num_starts(folder / job) for job in "01"] == [1, 2]


def test_a_defect_of_one_job_is_listed_and_keeps_its_traceback(tmp_path, sweep):
    code, _, stderr = sweep("x=1,word")
    assert code == 1 and "job 1 (x=word): " in stderr
    (folder,) = sweeps(tmp_path)
    assert "Traceback" in (folder / "1" / "error.log").read_text()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+chunk=8,0"], "+chunk=0): chunk is 0, expected a whole number of control steps"),
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
    assert not list(tmp_path.rglob("provenance.json")) and not sweeps(tmp_path)


def test_a_folder_with_another_job_is_refused(tmp_path, sweep, monkeypatch):
    folder = tmp_path / "mine"
    assert sweep("x=1,2", f"hydra.sweep.dir={folder}")[0] == 0
    stored = (folder / "sweep.json").read_text()
    code, _, stderr = sweep("x=3,2", f"hydra.sweep.dir={folder}")
    assert code == 1 and f"{folder}/0 holds another job, " in stderr and "give the sweep a new folder" in stderr
    monkeypatch.setenv("SLOPE", "2")
    code, _, stderr = sweep("x=1,2", f"hydra.sweep.dir={folder}")
    assert code == 1 and f"{folder}/0 was run with another configuration: slope: 1 → 2; give the sweep" in stderr
    assert (folder / "sweep.json").read_text() == stored


def test_the_same_sweep_twice_at_once_is_refused(tmp_path, sweep):
    assert sweep("x=1,2", f"fails={tmp_path}")[0] == 1
    (folder,) = sweeps(tmp_path)
    let_go(folder)
    other = subprocess.Popen([sys.executable, "-c", HOLD, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        other.stdout.readline()
        code, _, stderr = sweep("x=1,2", f"fails={tmp_path}")
    finally:
        other.communicate(b"\n")
    assert code == 1 and f"the same sweep is at work in {folder}; wait for its end or stop it" in stderr
    assert sweeps(tmp_path) == [folder]


def trials(folder: Path) -> list[tuple[dict, str, list[float] | None]]:
    import optuna

    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{folder}/optuna.db")
    return [(trial.params, trial.state.name, trial.values) for trial in study.trials]


OBJECTIVES = "hydra.sweeper.objectives={y: minimize, cost: maximize}"


def test_a_search_finds_a_front_and_runs_nothing_twice(tmp_path, search):
    code, *_ = search("x=range(0,4)", OBJECTIVES, f"hydra.sweep.dir={tmp_path}/one")
    assert code == 0
    drawn = [(params["x"], values) for params, state, values in trials(tmp_path / "one") if state == "COMPLETE"]
    assert len(drawn) == 6 and all(values == [(x - 1) ** 2, x] for x, values in drawn)
    with (tmp_path / "one" / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len({x for x, _ in drawn}) < 6
    assert {row["x"]: row["front"] for row in rows} == {str(x): "yes" if x > 0 else "" for x, _ in drawn}
    page = (tmp_path / "one" / "sweep.html").read_text()
    assert 'aria-label="y against cost"' in page and "Objectives: y (minimize), cost (maximize)" in page
    assert search("x=range(0,4)", OBJECTIVES, f"hydra.sweep.dir={tmp_path}/two", "hydra.sweeper.n_trials=2")[0] == 0
    assert search("x=range(0,4)", OBJECTIVES, f"hydra.sweep.dir={tmp_path}/two")[0] == 0
    assert trials(tmp_path / "two") == trials(tmp_path / "one")  # broken off or not, the draws are the same


def test_a_failed_trial_is_run_again_alone(tmp_path, search):
    mark = tmp_path / "mark"
    mark.touch()
    command = ("x=choice(2)", "slope=interval(0,1)", f"fails={mark}", "hydra.sweeper.n_trials=2")
    code, _, stderr = search(*command)
    assert code == 1 and "2 of 2 jobs failed" in stderr
    (folder,) = sweeps(tmp_path)
    drawn = [params for params, state, _ in trials(folder) if state == "RUNNING"]
    mark.unlink()
    code, *_ = search(*command)
    assert code == 0 and sweeps(tmp_path) == [folder]
    assert [(params, values) for params, _, values in trials(folder)] == [(params, [1.0]) for params in drawn]


def test_a_trial_that_a_kill_left_half_drawn_is_given_up(tmp_path, search):
    import optuna

    folder = tmp_path / "one"
    assert search("x=range(0,4)", f"hydra.sweep.dir={folder}", "hydra.sweeper.n_trials=1")[0] == 0
    optuna.load_study(study_name="sweep", storage=f"sqlite:///{folder}/optuna.db").ask()
    assert search("x=range(0,4)", f"hydra.sweep.dir={folder}", "hydra.sweeper.n_trials=2")[0] == 0
    assert [state for _, state, _ in trials(folder)] == ["COMPLETE", "FAIL", "COMPLETE"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "hydra/sweeper=optuna has nothing to search; give it a space"),
        (["x=range(4,1)"], "x=range(4,1) cannot be searched: "),
        (
            ["x=range(0,4)", "hydra.sweeper.n_trials=0"],
            "hydra.sweeper.n_trials is 0, expected a whole number, 1 or more",
        ),
        (
            ["x=range(0,4)", "hydra.sweeper.sampler=grid"],
            "hydra.sweeper.sampler is 'grid', expected one of tpe, nsga2",
        ),
        (["x=range(0,4)", "hydra.sweeper.objectives={y: least}"], "each with one of minimize, maximize"),
        (
            ["x=range(0,4)", "hydra.sweeper.objectives={z: minimize}"],
            "has no figure z, which hydra.sweeper.objectives",
        ),
        (["kind=choice(small,large)"], "'kind/large'"),
    ],
)
def test_a_search_that_cannot_be_is_one_line(search, overrides, message):
    code, _, stderr = search(*overrides)
    assert code == 1 and message in stderr and "Traceback" not in stderr


def test_a_folder_with_a_study_of_other_settings_is_refused(tmp_path, search):
    folder = f"hydra.sweep.dir={tmp_path}/one"
    assert search("x=range(0,4)", folder, "hydra.sweeper.n_trials=1")[0] == 0
    code, _, stderr = search("x=range(0,4)", folder, "hydra.sweeper.seed=1")
    assert (
        code == 1 and "one has a study of other settings: seed: 0 → 1; give the old ones, or another folder" in stderr
    )


@pytest.mark.parametrize(
    ("version", "message"), [(None, "which is not installed: pip install"), ("2.10.1", "not 2.10.1")]
)
def test_without_optuna_it_says_so(monkeypatch, search, version, message):
    module = None if version is None else type(sys)("optuna")
    if module is not None:
        module.__version__ = version
    monkeypatch.setitem(sys.modules, "optuna", module)
    code, _, stderr = search("x=range(0,4)")
    assert code == 1 and "hydra/sweeper=optuna needs optuna 4 or later, " in stderr and message in stderr


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
    numbers = scale([1.0, 2.0], 0, 100)
    assert 0 < numbers.at(1.0) < numbers.at(2.0) < 100
    assert scale([3.0], 0, 100).at(3.0) == 50.0
