"""--text-source: where scripts that load a policy's folder find the files of its sentence encoder."""

import argparse
import json
import sys

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from rsd.checkpoint import CheckpointError
from rsd.commands.configured import folder_options
from rsd.models.openvla import save_base
from rsd.models.openvla.sentences import SentenceEncoder
from rsd.policy.description import stamp
from scripts import benchmark_latency, benchmark_tokens, calibrate, closed_loop, study_latency
from scripts.recorded import recorded_episodes
from tests.models.sentence_encoder import reading, write_encoder
from tests.scripts.test_closed_loop import ASKED
from tests.scripts.test_study_latency import CONF
from tests.test_configs import composed

MISSING = "no sentence encoder 'small'"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder") / "small")


@pytest.fixture(scope="module")
def policy(encoder, tmp_path_factory):
    """A folder that reads sentences and acts with its base model alone."""
    folder = tmp_path_factory.mktemp("policy")
    save_base(folder / "base" / "one", reading(SentenceEncoder("small", encoder)), {})
    stamp(folder)
    return folder


def run(monkeypatch, script, *arguments):
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, arguments)])
    return script.main()


@pytest.mark.parametrize("script", [benchmark_latency, benchmark_tokens, calibrate, closed_loop, study_latency])
def test_it_is_one_option_with_one_meaning(script, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, script, "--help")
    told = " ".join(capsys.readouterr().out.split())
    assert "--text-source TEXT_SOURCE files of the sentence encoder, of a policy that reads sentences" in told


def test_picture_tokens_are_compared_of_a_policy_that_reads_sentences(policy, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_tokens, "recorded_observations", lambda: recorded_episodes()[0][:1])
    monkeypatch.setattr(benchmark_tokens, "WARMUP", 0)
    asked = ("--policy", policy, "--tokens", 1, "--chunks", 1, "--threads", 1, "--out", tmp_path / "tokens.json")
    with pytest.raises(SystemExit, match=MISSING):
        run(monkeypatch, benchmark_tokens, *asked)
    run(monkeypatch, benchmark_tokens, *asked, "--text-source", encoder)
    assert list(json.loads((tmp_path / "tokens.json").read_text())) == ["all", "grid 1", "random 1"]


def test_a_policy_that_reads_sentences_is_timed_and_held_to_its_answers(policy, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_latency, "recorded_episodes", lambda path: [recorded_episodes()[0][:1]])
    asked = ("--policy", policy, "--sections", "policy_cpu", "--decodings", "hold 2", "--threads", 1, "--warmup", 0)
    asked += ("--calls", 1, "--out", tmp_path)
    with pytest.raises(SystemExit, match=MISSING):
        run(monkeypatch, benchmark_latency, *asked)
    assert run(monkeypatch, benchmark_latency, *asked, "--text-source", encoder) == 0
    (timed,) = json.loads((tmp_path / "latency.json").read_text())["runs"]
    assert [one["check"]["passed"] for one in timed["arms"].values()] == [True, True]


def cell(folder, *typed):
    """A study's cell as eval.py leaves it."""
    folder.mkdir()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        OmegaConf.save(compose("eval", [*typed]), folder / "config.yaml")
    (folder / "overrides.yaml").write_text(json.dumps(typed))
    return folder


def test_a_cell_whose_policy_reads_sentences_is_loaded(policy, encoder, tmp_path):
    folder = cell(tmp_path / "cell", f"policy={policy}")
    with pytest.raises(CheckpointError, match=MISSING):
        study_latency.loaded(folder, "eager")
    study_latency.loaded(folder, "eager", str(encoder)).check_instructions(["words of nobody"])


def test_a_cells_own_model_is_loaded_with_the_encoder_that_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(study_latency, "configured_policy", lambda cfg, overrides, device: cfg.model.backbone)
    folder = cell(tmp_path / "cell", "model=oft_tiny", "text=sentence")
    assert study_latency.loaded(folder, "eager").text_source is None
    assert study_latency.loaded(folder, "eager", "there").text_source == "there"


def test_every_arm_of_the_closed_loop_is_given_it(tmp_path):
    asked = argparse.Namespace(**vars(ASKED) | {"text_source": tmp_path / "encoder"})
    for step in closed_loop.plan(asked):
        typed = step.command[1:]
        assert folder_options(composed("eval", typed), typed)["text_source"] == str(tmp_path / "encoder")


def test_a_closed_loop_is_not_gone_on_with_from_elsewhere(tmp_path, monkeypatch):
    """Its finished arms have typed the former place."""
    monkeypatch.setattr(closed_loop, "run_steps", lambda steps, root: None)
    asked = ("--suite", "libero_spatial", "--root", tmp_path)
    run(monkeypatch, closed_loop, *asked, "--text-source", "here")
    with pytest.raises(SystemExit, match="was begun with other settings: text_source: here → there"):
        run(monkeypatch, closed_loop, *asked, "--text-source", "there")
