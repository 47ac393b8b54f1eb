"""scripts/convert.py as a user calls it, in this process."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

import rsd
from rsd.models.openvla import save_base
from rsd.policy.description import SKIPPED
from rsd.policy.folder import parts_in, read_record
from tests.models.openvla_tiny import SHORT, build_base
from tests.models.tiny_checkpoints import LAYERS, adapter, random

ROOT = Path(__file__).parents[2]


def run(monkeypatch, capsys, *arguments) -> tuple[int | str, list[str]]:
    """Exit code (or what is said with it), and lines."""
    monkeypatch.setattr(sys, "argv", ["convert.py", *map(str, arguments)])
    try:
        importlib.import_module("scripts.convert").main()
    except SystemExit as stop:
        return stop.code, capsys.readouterr().err.splitlines()
    return 0, capsys.readouterr().out.splitlines()


def test_there_and_back_and_on(tmp_path, monkeypatch, capsys):
    base = random(tmp_path / "base", dtype=torch.float32)
    tuned = adapter(tmp_path / "tuned" / "lora_adapter", LAYERS).parent
    code, lines = run(monkeypatch, capsys, "lora", base, tuned, tmp_path / "merged")
    assert code == 0 and "logits: merged and adapted differ by" in lines[1] and "4 layers merged" in lines[-1]
    code, lines = run(monkeypatch, capsys, "join", tmp_path / "merged", tmp_path / "joined")
    assert code == 0 and "action_head--150000_checkpoint.pt" in lines[0]
    code, lines = run(monkeypatch, capsys, "split", tmp_path / "joined", tmp_path / "split", "--step", "7")
    assert code == 0 and (tmp_path / "split" / "action_head--7_checkpoint.pt").is_file()
    code, lines = run(monkeypatch, capsys, "oft", tmp_path / "split", tmp_path / "oft")
    assert code == 0 and "188 keys as OpenVLA-OFT names them" in lines[0] and lines[1].startswith("note: config.json")
    code, lines = run(monkeypatch, capsys, "oft", tmp_path / "split", tmp_path / "oft")
    assert code.startswith("error: ") and "exists already" in code and "\n" not in code


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["melt", "a", "b"], "error: KIND: invalid choice: 'melt'"),
        (["join", "gone", "b"], "error: SRC is 'gone', where there is no folder"),
        (["lora", ".", "gone", "b"], "error: TUNED is 'gone', where there is no folder"),
        (["split", ".", "b", "--step", "x"], "error: --step is 'x', expected a number of steps, or latest"),
        (["oft", ".", "b", "--shard-gb", "0"], "error: --shard-gb is 0.0, expected a number from 0.001 to 1000"),
        (["lora", ".", ".", "b", "--device", "tpu"], "error: --device is 'tpu', expected cpu, cuda"),
    ],
)
def test_wrong_options_are_refused_in_one_line(tmp_path, monkeypatch, capsys, arguments, told):
    monkeypatch.chdir(tmp_path)
    code, lines = run(monkeypatch, capsys, *arguments)
    assert code == 2 and len(lines) == 1 and lines[0].startswith(told) and not list(tmp_path.iterdir())


def test_a_folder_of_another_kind_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    for kind in ("join", "split", "oft"):
        code, _ = run(monkeypatch, capsys, kind, tmp_path / "empty", tmp_path / "out")
        assert code.startswith("error: ") and str(tmp_path / "empty") in code and "\n" not in code
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@pytest.mark.slow
def test_the_released_policy_is_made_of_its_parts_again(tmp_path, monkeypatch, capsys):
    """All but the calibrated threshold, which needs episodes."""
    parts = parts_in(ROOT / "released")
    options = [word for part, path in parts.items() if part != "base" for word in (f"--{part}", path)]
    code, _ = run(monkeypatch, capsys, "policy", parts["base"], tmp_path / "again", *options)
    assert code == 0
    released, again = (read_record(folder) for folder in (ROOT / "released", tmp_path / "again"))
    assert released["parts"].keys() == again["parts"].keys()
    assert again["decodings"]["temporal"]["gate"]["threshold"] == SKIPPED
    again["decodings"]["temporal"] = released["decodings"]["temporal"]
    for name in ("base", "space", "num_open_loop_steps", "decoding", "decodings"):
        assert again[name] == released[name], name


def test_a_policy_folder_of_a_training_here(tmp_path, monkeypatch, capsys):
    """The checkpoint says everything itself; the link that a training publishes gives the folder its name."""
    save_base(tmp_path / "run" / "checkpoint", build_base(), {})
    (tmp_path / "published").symlink_to(tmp_path / "run" / "checkpoint")
    code, lines = run(monkeypatch, capsys, "policy", tmp_path / "published", tmp_path / "policy")
    assert code == 0 and "decodings l1" in lines[0]
    assert {*tmp_path.glob("policy/base/*/*")} == {
        tmp_path / "policy" / "base" / "published" / name for name in ("checkpoint.json", "weights.safetensors")
    }
    assert read_record(tmp_path / "policy")["base"]["views"] == ["image", "wrist_image"]
    rsd.load(tmp_path / "policy").check_instructions([SHORT])
    code, _ = run(monkeypatch, capsys, "policy", tmp_path / "published", tmp_path / "other", "--no-crop")
    assert code.endswith("says itself what it was trained with; leave out --no-crop")
