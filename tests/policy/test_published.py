"""scripts/convert.py policy: a published checkpoint and heads become a folder that rsd.load takes and checks."""

import importlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import rsd
from rsd.checkpoint import CheckpointError
from rsd.models.openvla import load_base
from rsd.policy.folder import base_arguments, describe_folder, read_record
from rsd.policy.published import PICTURES, base_entry
from rsd.stages import StageHead
from rsd.stages.files import save_stage_head
from rsd.tokenizer import save_tokenizer
from rsd.types import Request
from scripts.restamp import restamp
from tests.models.openvla_tiny import UNNORM_KEY, observation, statistics
from tests.models.tiny_checkpoints import random
from tests.tokenizer.test_tokenizers import rfsq

CONF = Path(__file__).parents[2] / "conf"
LIBERO = yaml.safe_load((CONF / "robot" / "libero.yaml").read_text())
del LIBERO["_target_"]


def run(monkeypatch, capsys, *arguments) -> tuple[int | str, list[str]]:
    """Exit code (or what is said with it), and lines."""
    monkeypatch.setattr(sys, "argv", ["convert.py", *map(str, arguments)])
    try:
        importlib.import_module("scripts.convert").main()
    except SystemExit as stop:
        return stop.code, capsys.readouterr().err.splitlines()
    return 0, capsys.readouterr().out.splitlines()


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """checkpoint/, and tokenizer/, head/ and draft/ that were trained on it."""
    root = tmp_path_factory.mktemp("made")
    checkpoint = random(root / "checkpoint")
    (checkpoint / "dataset_statistics.json").write_text(json.dumps({UNNORM_KEY: statistics()}))
    entry = base_entry(checkpoint, robot=LIBERO, dtype="float32")
    base = load_base(checkpoint=checkpoint, **base_arguments(entry, None))
    save_tokenizer(
        rfsq(num_stages=4), root / "tokenizer", {"unnorm_key": UNNORM_KEY, "norm_stats": {UNNORM_KEY: statistics()}}
    )
    sha256 = json.loads((root / "tokenizer" / "checkpoint.json").read_text())["sha256"]
    made_for = {"tokenizer": sha256, "base": dict(base.spec.fingerprint), "unnorm_key": UNNORM_KEY}
    for name, num_stages, point, states in (("head", 4, "head", 1), ("draft", 2, "layer.1", 7)):
        width = base.spec.points[point][1]
        torch.manual_seed(0)
        shape = {"code_shape": rfsq(num_stages=4).code_shape, "hidden_dim": width, "states_per_step": states}
        head = StageHead(**shape, num_stages=num_stages, width=16, num_layers=1, num_heads=2)
        save_stage_head(head, root / name, kind=name, point=point, provenance=made_for)
    return root


def arguments(made: Path, out: Path) -> list:
    parts = [f"--{part}={made / part}" for part in ("tokenizer", "head", "draft")]
    return ["policy", made / "checkpoint", out, *parts, "--dtype", "float32"]


@pytest.fixture
def folder(made, tmp_path, monkeypatch, capsys) -> Path:
    code, lines = run(monkeypatch, capsys, *arguments(made, tmp_path / "policy"))
    assert code == 0 and "base, tokenizer, head, draft; decodings l1, parallel, depth_ar, speculative" in lines[0]
    return tmp_path / "policy"


def test_the_folder_acts_as_its_parts_do(made, folder, tmp_path):
    moved = Path(shutil.move(folder, tmp_path / "elsewhere"))
    policy = rsd.load(moved)
    entry = base_entry(made / "checkpoint", robot=LIBERO, dtype="float32")
    base = load_base(checkpoint=made / "checkpoint", **base_arguments(entry, None))
    expected = base.space.to_robot(base.look([observation()]).chunk().numpy())[0]
    np.testing.assert_allclose(policy.predict([Request(observation(), 0)])[0].actions, expected, atol=1e-6)
    assert read_record(moved)["base"]["robot"]["name"] == "libero"
    drafted = rsd.load(moved, decoding="speculative").predict([Request(observation(), 0)])[0]
    exact = rsd.load(moved, decoding="depth_ar").predict([Request(observation(), 0)])[0]
    np.testing.assert_array_equal(drafted.actions, exact.actions)
    assert describe_folder(moved, {})["checkpoints"]["base"] == moved / "base" / "checkpoint"
    restamp(moved)  # describes it anew and keeps the base model's entry
    assert read_record(moved)["base"] == read_record(moved)["base"] | {"dtype": "float32", "unnorm_key": UNNORM_KEY}


def test_another_byte_or_another_file_is_seen(folder):
    base = folder / "base" / "checkpoint"
    stray = base / "vision_backbone--1_checkpoint.pt"
    shutil.copy(base / "proprio_projector--150000_checkpoint.pt", stray)
    with pytest.raises(CheckpointError, match=r"vision_backbone--1_checkpoint.pt is not in files.json"):
        rsd.load(folder)
    stray.unlink()
    weights = base / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"model.safetensors is damaged: its SHA-256 is not that of files.json"):
        rsd.load(folder)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors is missing; fetch the folder again"):
        rsd.load(folder)


def test_a_robot_that_is_none_is_named(folder):
    record = json.loads((folder / "policy.json").read_text())
    del record["checksum"], record["base"]["robot"]["bounds"]
    (folder / "policy.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=r"policy.json lacks entry 'base.robot.bounds'"):
        rsd.load(folder)


def test_parts_of_something_else_are_refused_before_anything_is_written(made, tmp_path, monkeypatch, capsys):
    other = random(tmp_path / "checkpoint", seed=1)
    (other / "dataset_statistics.json").write_text(json.dumps({UNNORM_KEY: statistics()}))
    asked = arguments(made, tmp_path / "out")
    code, _ = run(monkeypatch, capsys, asked[0], other, *asked[2:])
    assert code.startswith("error: ") and "was made for something else: base." in code and "\n" not in code
    code, _ = run(monkeypatch, capsys, *asked, "--micro", made / "checkpoint")
    assert "micro" in code and "has no checkpoint.json; name the folder that train.py has made" in code
    code, _ = run(monkeypatch, capsys, *asked, "--unnorm-key", "nosuch")
    assert "unnorm_key 'nosuch' not in norm_stats" in code and code.endswith("name one of them with --unnorm-key")
    code, _ = run(monkeypatch, capsys, *asked, "--views", "image", "nonsense")
    assert code.startswith("error: --views names 'nonsense', which robot libero does not offer; it has image, wrist_")
    code, _ = run(monkeypatch, capsys, *asked, "--views", "image", "image")
    assert code == "error: --views names a picture twice: image image; name each once"
    code, _ = run(monkeypatch, capsys, *asked, "--robot", "aloha")
    assert code.startswith("error: ") and "\n" not in code
    code, lines = run(monkeypatch, capsys, *asked, "--robot", "nosuch")
    assert code == 2 and lines[0].startswith("error: --robot: invalid choice: 'nosuch'")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("*.converting"))


def test_pictures_of_a_robot_are_those_that_its_environment_offers():
    offered = {"libero": CONF / "env" / "_offers.yaml", "bridge": CONF / "env" / "widowx.yaml"}
    assert offered.keys() == PICTURES.keys()
    for robot, file in offered.items():
        env = yaml.safe_load(file.read_text())
        assert tuple(env.get("offers", env)["views"]) == PICTURES[robot]


def test_code_and_hidden_files_are_left_out(made, tmp_path, monkeypatch, capsys):
    """A folder that was fetched from a hub has both; a policy folder with them could not be fetched again."""
    checkpoint = Path(shutil.copytree(made / "checkpoint", tmp_path / "checkpoint"))
    for name in ("modeling_prismatic.py", ".cache/huggingface/config.json.metadata"):
        (checkpoint / name).parent.mkdir(parents=True, exist_ok=True)
        (checkpoint / name).touch()
    asked = arguments(made, tmp_path / "out")
    assert run(monkeypatch, capsys, asked[0], checkpoint, *asked[2:])[0] == 0
    there = {path.name for path in (tmp_path / "out" / "base" / "checkpoint").iterdir()}
    assert there == {path.name for path in (made / "checkpoint").iterdir()} | {"files.json"}
    rsd.load(tmp_path / "out")


def test_linked_files_are_the_same_ones(made, tmp_path, monkeypatch, capsys):
    code, _ = run(monkeypatch, capsys, *arguments(made, tmp_path / "policy"), "--link")
    file = tmp_path / "policy" / "base" / "checkpoint" / "model.safetensors"
    assert code == 0 and file.stat().st_ino == (made / "checkpoint" / "model.safetensors").stat().st_ino
