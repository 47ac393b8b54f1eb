"""hydra/sweeper=study: cells, controls, what is refused, and what is left to be read."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rsd.commands.study import Study, check_design, main
from rsd.comparison.study import Design
from rsd.errors import SettingError
from rsd.record import write
from tests.commands import cells
from tests.commands.parabola import sweeps

ROOT = Path(__file__).parents[2]
FACTORS = "hydra.sweeper.factors={first: {one: ['x=1'], two: ['x=2']}, second: {one: [], three: ['slope=3']}}"
CONTROLS = "hydra.sweeper.controls={other: ['x=5']}"
FULL = "hydra.sweeper.fraction=full"


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "study.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_study_runs_its_cells_and_says_what_each_factor_does(tmp_path, sweep, monkeypatch):
    code, stdout, stderr = sweep(FULL, FACTORS, CONTROLS, sweeper="study", command=cells)
    assert code == 0, stderr
    (folder,) = sweeps(tmp_path)
    study = json.loads((folder / "study.json").read_text())
    found = {one["name"]: one for one in study["effects"]}
    # of 20 episodes: 20, 16, 20, 15 solved
    assert found["first"]["value"] == pytest.approx(-4.5 / 20) and found["second"]["value"] == pytest.approx(-0.5 / 20)
    assert found["first × second"]["value"] == pytest.approx(-0.5 / 20) and found["first"]["high"] < 0
    assert all(one["alias"] is None and one["num_episodes"] == 20 for one in study["effects"])
    table = {row["cell"]: row for row in rows(folder)}
    assert list(table) == ["(1)", "a", "b", "ab", "other"] and table["other"]["kind"] == "control"
    assert (table["(1)"]["num_success"], table["a"]["num_success"], table["ab"]["induced_failures"]) == (
        "20",
        "16",
        "5",
    )
    assert float(table["a"]["induced_bound"]) == pytest.approx(0.4010, abs=1e-3)  # Clopper and Pearson, 4 of 20
    assert float(table["a"]["open_translation_mm"]) == pytest.approx((12 * 5 + 12 * 10) / 24)
    assert float(table["a"]["open_drift_mm"]) == pytest.approx(8 * 7.5) and table["(1)"]["open_far"] == "0.0"
    assert {row["cell"]: row["typed"] for row in rows(folder)}["ab"] == "x=2 slope=3"
    assert study["missing"] == study["incomplete"] == []
    strongest = next(one for one in study["predictors"] if (one["error"], one["loss"]) == ("translation_mm", "success"))
    assert strongest["cells"] == "all" and {one["cells"] for one in study["predictors"]} == {"all"}  # too few in levels
    assert strongest["num_cells"] == 3 and strongest["value"] == pytest.approx(0.866, abs=1e-3)
    page = (folder / "study.html").read_text()
    assert (
        page.count('class="pareto"') == 2
        and "first × second" in page
        and "<td>other</td>" not in page.split("Effects")[0]
    )
    assert "effects on success, points, 20 episodes a cell" in stdout and "nothing" in stdout

    for name in ("study.json", "study.csv", "study.html"):
        (folder / name).unlink()
    monkeypatch.setattr(sys, "argv", ["study", str(folder)])
    main()
    assert json.loads((folder / "study.json").read_text()) == study


@pytest.mark.slow
def test_a_killed_study_goes_on_with_the_same_command(tmp_path, monkeypatch):
    mark = tmp_path / "mark"
    mark.touch()
    typed = ["-m", "hydra/sweeper=study", FULL, FACTORS, f"root={tmp_path}", f"fails={mark}"]
    command = [sys.executable, "-m", "tests.commands.cells", *typed]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert killed.returncode == -9
    (folder,) = sweeps(tmp_path)
    assert not (folder / "study.json").exists()
    monkeypatch.setattr(sys, "argv", ["study", str(folder)])
    main()  # what there is of it
    study = json.loads((folder / "study.json").read_text())
    assert study["missing"] == ["a", "b", "ab"] and study["effects"] is None
    mark.unlink()
    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert sweeps(tmp_path) == [folder] and "done already: job 0" in again.stdout
    study = json.loads((folder / "study.json").read_text())
    assert study["missing"] == [] and len(study["effects"]) == 3
    starts = [len(json.loads((folder / job / "provenance.json").read_text())["starts"]) for job in "0123"]
    assert starts == [1, 2, 1, 1]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([FACTORS], "half of the cells of 2 factors is a design of resolution 2"),
        ([FULL], "0 factors, expected 2 to 7"),
        ([FULL, FACTORS, "x=3"], "x=3 is typed for every cell, and a factor of the study changes x; leave it out"),
        ([FULL, FACTORS, "kind=small,small"], "kind=small,small is a sweep, and a study's jobs are its cells"),
        ([FULL, FACTORS, "hydra.sweeper.margin=2"], "hydra.sweeper.margin is 2, expected a share between 0 and 1"),
        ([FACTORS, "hydra.sweeper.fraction=third"], "hydra.sweeper.fraction is 'third', expected one of half, full"),
        (
            [FULL, FACTORS, "hydra.sweeper.control_trials=0"],
            "hydra.sweeper.control_trials is 0, expected a whole number",
        ),
        (
            [FULL, "hydra.sweeper.factors={first: ['x=1']}"],
            "hydra.sweeper.factors.first is ['x=1'], expected two levels",
        ),
        (
            [FULL, "hydra.sweeper.factors={first: {one: [], two: 'x=2'}, second: {one: [], three: ['slope=3']}}"],
            "hydra.sweeper.factors.first.two is 'x=2', expected a list of overrides, each KEY=VALUE",
        ),
        ([FULL, FACTORS, "hydra.sweeper.controls={other: ['x']}"], "hydra.sweeper.controls.other is ['x'], expected a"),
        ([FULL, FACTORS, "hydra.sweeper.controls={other: ['kind=large']}"], "kind/large"),
    ],
)
def test_a_study_that_cannot_be_is_one_line_and_runs_nothing(tmp_path, sweep, overrides, message):
    code, _, stderr = sweep(*overrides, sweeper="study", command=cells)
    assert code == 1 and message in stderr and "Traceback" not in stderr and not sweeps(tmp_path)


def test_a_folder_with_another_design_is_refused(tmp_path):
    record = Design(fraction="full", margin=0.02, factors=[], cells=[])
    check_design(tmp_path, record)
    write(tmp_path / "design.json", record)
    check_design(tmp_path, record)
    with pytest.raises(SettingError, match=r"has a study of another design: margin: 0.02 → 0.05; give the old one"):
        check_design(tmp_path, record | {"margin": 0.05})


def test_a_folder_without_a_study_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["study", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"holds no design.json; give the folder that python eval.py -m has named"):
        main()


def test_controls_have_trials_of_their_own():
    made = Study(
        factors={"a": {"low": [], "high": ["x=2"]}, "b": {"low": [], "high": ["y=2"]}},
        controls={"hold": ["z=1"], "none": None},
        fraction="full",
        margin=0.02,
        control_trials=3,
    )
    assert [cell["typed"] for cell in made.cells()] == [[], ["x=2"], ["y=2"], ["x=2", "y=2"], ["z=1", "num_trials=3"]]
