"""Sweeps that go on: the grid and the search, on a command that takes no time."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from rsd import runs
from rsd.commands import entry_point
from rsd.commands.jobs import Job
from rsd.commands.objectives import objective, on_front, read_search
from rsd.commands.search import Search, check_search, corners, distribution, drawn, require_optuna
from rsd.commands.sweep_plots import Figure, scale, sweep_plots
from rsd.errors import SettingError
from rsd.locks import let_go
from rsd.record import write
from tests.commands import parabola

optuna = pytest.importorskip("optuna")
CONF = Path(__file__).parents[2] / "conf"
HOLD = """
import sys; from pathlib import Path; from rsd.locks import hold
hold(Path(sys.argv[1])); print(flush=True); input()
"""


@pytest.fixture
def sweep(tmp_path, monkeypatch, capsys):
    """Run the command with -m; returns (exit code, what it printed, what it printed as error)."""
    monkeypatch.setattr(runs, "provenance", dict)

    def run(*overrides: str, sweeper: str = "grid") -> tuple[int, str, str]:
        argv = ["parabola.py", "-m", f"hydra.searchpath=[file://{CONF}]", f"hydra/sweeper={sweeper}", *overrides]
        monkeypatch.setattr(sys, "argv", [*argv, f"root={tmp_path}"])
        code: int | str | None = 0
        try:
            entry_point.run(parabola.main, parabola.CONFIG)
        except SystemExit as stop:
            code = stop.code
        printed = capsys.readouterr()
        return (code, *printed) if isinstance(code, int) else (1, printed.out, printed.err + str(code))

    return run


def sweeps(root: Path) -> list[Path]:
    return sorted(path.parent for path in root.glob("*/sweep.json"))


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


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


def trials(folder: Path) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="sweep", storage=f"sqlite:///{folder}/optuna.db").trials


def test_a_search_tells_its_study_what_is_done_and_runs_what_failed_again(tmp_path, sweep):
    mark = tmp_path / "mark"
    mark.touch()
    objectives = "hydra.sweeper.objectives={y: minimize, x: maximize}"
    command = ("hydra.sweeper.n_trials=4", "hydra.sweeper.sampler=random", objectives, "x=choice(1,2)", f"fails={mark}")
    code, _, stderr = sweep(*command, sweeper="optuna")
    (folder,) = sweeps(tmp_path)
    first = [trial.params["x"] for trial in trials(folder)]
    assert {*first} == {"1", "2"}
    assert {(trial.params["x"], trial.state.name) for trial in trials(folder)} == {("1", "COMPLETE"), ("2", "RUNNING")}
    assert code == 1 and "1 of 2 jobs failed" in stderr  # what is drawn again is not run again
    mark.unlink()
    assert sweep(*command, sweeper="optuna")[0] == 0 and sweeps(tmp_path) == [folder]
    assert [trial.params["x"] for trial in trials(folder)] == first
    assert {(trial.params["x"], *trial.values) for trial in trials(folder)} == {("1", 0.0, 1.0), ("2", 1.0, 2.0)}
    assert sum((one / "metrics.json").is_file() for one in folder.iterdir()) == 2
    assert {row["x"]: row["front"] for row in table(folder)} == {"1": "yes", "2": "yes"}
    page = (folder / "sweep.html").read_text()
    assert "Objectives: y (minimize), x (maximize)" in page and 'class="front"' in page


SETTINGS = {"n_trials": 2, "n_jobs": 1, "seed": 0, "sampler": "tpe", "objectives": None, "params": None}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"n_trials": 0}, "hydra.sweeper.n_trials is 0, expected a whole number, 1 or more"),
        ({"seed": -1}, "hydra.sweeper.seed is -1, expected a whole number, 0 or more"),
        ({"sampler": "grid"}, "hydra.sweeper.sampler is 'grid', expected one of tpe, nsga2, random"),
        ({"objectives": {"y": "least"}}, "each with one of minimize, maximize: hydra.sweeper.objectives"),
    ],
)
def test_settings_of_a_search(setting, message):
    with pytest.raises(SettingError, match=message):
        Search(**SETTINGS | setting)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "hydra/sweeper=optuna has nothing to search; give it a space"),
        (["x=range(1,3)", "hydra.sweeper.n_jobs=two"], "hydra.sweeper.n_jobs is 'two', expected a whole number"),
        (["kind=choice(small,large)"], "'kind/large'"),
    ],
)
def test_a_search_that_cannot_be_is_one_line(sweep, overrides, message):
    code, _, stderr = sweep(*overrides, sweeper="optuna")
    assert code == 1 and message in stderr and "Traceback" not in stderr and "Error in call" not in stderr


def test_an_objective_that_a_job_has_not_is_named_with_those_that_it_has(tmp_path):
    (tmp_path / "0").mkdir()
    write(tmp_path / "0" / "metrics.json", {"mse/1": 1.0, "bits": 2.0})
    search, job = Search(**SETTINGS | {"objectives": {"rate": "minimize"}}), Job(0, ("x=1",), None, "0")
    message = (
        r"job 0 \(x=1\) has no figure rate, which hydra.sweeper.objectives asks for; its metrics.json has bits, mse"
    )
    with pytest.raises(SettingError, match=message):
        search._objectives(job, tmp_path)


def test_a_search_is_spaced_in_hydras_words():
    words = ("a=range(1,9,2)", "b=tag(log,interval(1e-4,1e-2))", "c=x,null", "d=range(0.5,2,0.5)", "e=choice([1,2],3)")
    space = {one.key_or_group: distribution(one) for one in OverridesParser.create().parse_overrides(list(words))}
    assert (space["a"].low, space["a"].high, space["a"].step) == (1, 7, 2)
    assert space["b"].log and (space["b"].low, space["b"].high) == (1e-4, 1e-2)
    assert space["c"].choices == ("x", "null") and space["d"].choices == ("0.5", "1.0", "1.5")
    assert space["e"].choices == ("[1,2]", "3")
    shown = {one for corner in corners(space) for one in corner}
    assert {"a=1", "a=7", "b=0.0001", "b=0.01", "c=null", "e=3"} <= shown
    (empty,) = OverridesParser.create().parse_overrides(["x=range(4,1)"])
    with pytest.raises(SettingError, match=r"x=range\(4,1\) cannot be searched: "):
        distribution(empty)


def test_a_trial_that_a_kill_left_half_drawn_is_given_up():
    study, space = optuna.create_study(), {"x": optuna.distributions.IntDistribution(0, 3)}
    whole, _half = study.ask(space), study.ask()
    assert [trial.number for trial in drawn(study, space)] == [whole.number]
    assert [trial.state.name for trial in study.trials] == ["RUNNING", "FAIL"]


def test_a_folder_with_a_study_of_other_settings_is_refused(tmp_path):
    record = {"objectives": {"y": "minimize"}, "sampler": "tpe", "seed": 0, "space": {"x": "words"}}
    check_search(tmp_path, record)
    write(tmp_path / "search.json", record)
    check_search(tmp_path, record)
    with pytest.raises(
        SettingError, match="a study of other settings: seed: 0 → 1; give the old ones, or another folder"
    ):
        check_search(tmp_path, record | {"seed": 1})
    (tmp_path / "search.json").write_text("{")
    with pytest.raises(SettingError, match=r"search.json is not valid JSON .*; remove "):
        read_search(tmp_path)


def test_without_optuna_it_says_so(monkeypatch):
    monkeypatch.setattr(optuna, "__version__", "2.10.1")
    with pytest.raises(SettingError, match=r"needs optuna 4 or later, not 2\.10\.1; pip install --upgrade optuna"):
        require_optuna()
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(
        SettingError, match=r"needs optuna 4 or later, which is not installed: pip install 'rsd\[sweep\]'"
    ):
        require_optuna()


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
