"""hydra/sweeper=optuna, on a command that takes no time."""

import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from rsd.commands.jobs import Job
from rsd.commands.objectives import read_search
from rsd.commands.search import Search, check_search, corners, distribution, drawn, require_optuna
from rsd.errors import SettingError
from rsd.record import write
from tests.commands.parabola import sweeps, table

optuna = pytest.importorskip("optuna", minversion="4")  # extra sweep, and dev


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
