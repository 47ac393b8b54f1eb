"""scripts/calibrate.py: a policy's folder and held-out episodes in, a threshold with its evidence out."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from rsd.decoding import L1, MeanLogProb
from rsd.policy import calibration, describe_folder, load_folder
from scripts import calibrate
from tests.comparison.run_folders import planned, write_run
from tests.data import demonstrations
from tests.policy.test_micro import ALWAYS, counted, folder, temporal, written  # noqa: F401  fixtures


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["calibrate.py", *map(str, arguments)])
    calibrate.main()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three episodes in words that the tiny base model knows."""

    def demonstration(number, num_steps):
        episode = demonstrations.demonstration(number, num_steps)
        episode["steps"]["language_instruction"] = "pick up the black bowl"
        return episode

    directory = tmp_path_factory.mktemp("data") / demonstrations.NAME / "1.0.0"
    demonstrations.made_up.write_dataset(directory, [20, 24, 28], demonstration)
    return directory


@pytest.fixture
def policy(folder):  # noqa: F811
    written(folder, {"l1": (L1(), None), "temporal": (temporal(ALWAYS, 2), None)}, {"temporal": "micro"})
    return folder


def test_a_threshold_is_written_with_its_evidence(policy, data, monkeypatch, capsys):
    loose = ("--risk", 0.5, "--delta", 0.5, "--tau", 100, "--units", "robot")  # of random weights, shape only
    run(monkeypatch, policy, "--data", data, *loose)
    out = capsys.readouterr().out
    print(out)
    record = json.loads((policy / "policy.json").read_text())
    told = record["calibrations"]["temporal"]
    assert record["decodings"]["temporal"]["gate"]["threshold"] == told["threshold"]
    assert "3 episodes (all)" in out and told["num_episodes"] == 3 and told["units"] == "robot"
    assert told["suites"] == [demonstrations.NAME.removesuffix("_no_noops")]
    assert (policy / told["plot"]).read_bytes().startswith(b"\x89PNG")


def evaluated(policy, run_dir, row, decoding, **described):
    """A run folder as eval.py leaves it for this policy."""
    fields = describe_folder(policy, {"decoding": decoding, **described})
    fields["decoding"] = "l1" if isinstance(decoding, L1) else "temporal"
    plan = planned(num_tasks=1, num_trials=len(row), policy=fields)
    return write_run(run_dir, {0: row}, plan=plan, stats={"num_chunks": 4, "early_exits": 1})


@pytest.fixture
def runs(policy, tmp_path):
    gated = ((MeanLogProb(threshold=-0.5), "-+++"), (MeanLogProb(threshold=-9.0), "----"))
    found = [
        evaluated(policy, tmp_path / f"{gate.threshold}", row * 10, temporal(gate, 2), draft="micro")
        for gate, row in gated
    ]
    return [evaluated(policy, tmp_path / "l1", "+" * 40, L1()), *found]


def test_a_threshold_is_found_by_lost_episodes(policy, data, runs, monkeypatch, capsys):
    run(monkeypatch, policy, "--data", data, "--risk", 0.4, "--delta", 0.1, "--runs", *runs)
    told = json.loads((policy / "policy.json").read_text())["calibrations"]["temporal"]
    assert told["threshold"] == -0.5 and told["num_failures"] == 10 and told["num_episodes"] == 40
    assert binom.cdf(10, 40, told["bound"]) == pytest.approx(0.1) and told["suites"] == ["point_mass"]
    assert {"black pictures", "a frozen camera (image)"} < told["coverage_blind"].keys() and told["coverage"] == 0.25
    assert (policy / "calibration" / "temporal.png").is_file() and "10 of 40 episodes lost" in capsys.readouterr().out
    assert load_folder(policy, decoding="temporal", suite="point_mass", canaries=False).decoding.gate.threshold == -0.5


def test_evaluations_of_another_policy_or_decoding_or_too_few_are_refused(policy, data, runs, tmp_path, monkeypatch):
    other = evaluated(policy, tmp_path / "other", "+" * 40, temporal(MeanLogProb(threshold=-0.1), 3), draft="micro")
    damaged = json.loads((runs[1] / "plan.json").read_text())
    del damaged["checksum"]
    damaged["policy"]["checkpoints"]["micro"]["sha256"] = "0" * 64
    (runs[1] / "plan.json").write_text(json.dumps(damaged))
    for given, risk, message in (
        ([runs[0], other], 0.4, "other is of another policy or decoding .*: options.max_unverified: 2 → 3; evaluate"),
        (runs, 0.4, "of another policy or decoding than 'temporal' of .*: checkpoints.micro.sha256: "),
        ([runs[0], runs[2]], 0.05, "40 episodes are too few: a risk of 0.05 with delta 0.1 takes 45 at least"),
        ([runs[0], runs[2]], 0.4, "no threshold keeps a risk of 0.4 with delta 0.1: of 40 episodes the strictest, -9"),
    ):
        with pytest.raises(SystemExit, match=message):
            run(monkeypatch, policy, "--data", data, "--risk", risk, "--runs", *given)
    assert "calibrations" not in json.loads((policy / "policy.json").read_text())


def test_a_gate_that_black_pictures_open_is_not_shipped(policy, data, runs, monkeypatch):
    """However few episodes it loses."""
    measure = calibration.measure

    def sure_of_black(*given):
        found = measure(*given)
        return replace(found, blind={**found.blind, calibration.BLACK: np.zeros_like(found.score)})

    monkeypatch.setattr(calibration, "measure", sure_of_black)
    with pytest.raises(
        SystemExit, match=r"with black pictures the gate lets 100.0% of the chunks through, with the re"
    ):
        run(monkeypatch, policy, "--data", data, "--risk", 0.4, "--runs", *runs)
    assert not (policy / "calibration").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--decoding", "l1"), "decoding 'l1' has no gate with a threshold"),
        (("--decoding", "nosuch"), "has no decoding 'nosuch'; it has l1, temporal"),
        (("--risk", 0.05), "3 episodes are too few: a risk of 0.05 with delta 0.1 takes 45 at least"),
        (("--risk", 0.9), "risk is 0.9, expected"),
    ],
)
def test_what_cannot_be_calibrated_is_one_line_and_nothing_is_written(policy, data, monkeypatch, more, message):
    before = (policy / "policy.json").read_text()
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch, policy, "--data", data, *more)
    assert (policy / "policy.json").read_text() == before
