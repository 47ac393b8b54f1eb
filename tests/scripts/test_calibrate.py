"""scripts/calibrate.py: a policy's folder and held-out episodes in, a threshold with its evidence out."""

import json
import sys

import pytest

from rsd.decoding import L1
from scripts import calibrate
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
    loose = ("--risk", 0.5, "--delta", 0.5, "--tau", 100)  # of random weights, shape only
    run(monkeypatch, policy, "--data", data, *loose)
    out = capsys.readouterr().out
    print(out)
    record = json.loads((policy / "policy.json").read_text())
    told = record["calibrations"]["temporal"]
    assert record["decodings"]["temporal"]["gate"]["threshold"] == told["threshold"]
    assert "3 episodes (all)" in out and told["num_episodes"] == 3


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
