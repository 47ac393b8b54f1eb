"""scripts/convert_data.py as a user calls it, in this process; and the page that describes it."""

import importlib
import sys
from pathlib import Path

import pytest

from rsd.data.rlds import RLDSDataset
from tests.data.foreign_formats import libero_demo, write_hdf5, write_lerobot
from tests.test_readme import python_blocks

ROOT = Path(__file__).parents[2]
pytest.importorskip("av", reason="pip install -e '.[dev]'")
pytest.importorskip("h5py", reason="pip install -e '.[dev]'")


def run(monkeypatch, capsys, *arguments) -> tuple[int | str, list[str]]:
    """Exit code (or what is said with it), and lines."""
    monkeypatch.setattr(sys, "argv", ["convert_data.py", *map(str, arguments)])
    try:
        importlib.import_module("scripts.convert_data").main()
    except SystemExit as stop:
        return stop.code, capsys.readouterr().err.splitlines()
    return 0, capsys.readouterr().out.splitlines()


def test_lerobot(tmp_path, monkeypatch, capsys):
    root, out = write_lerobot(tmp_path / "2026-pick up"), tmp_path / "out"
    code, lines = run(monkeypatch, capsys, "lerobot", root, out, "--views", "front", "--pictures", "png")
    directory = out / "set_2026_pick_up" / "1.0.0"
    assert (
        code == 0
        and lines[0].startswith("note: ")
        and f"{directory}: 3 episodes converted now, 3 in {root}. To tra" in (lines[-3])
    )
    assert f"data.root={out} data.name=set_2026_pick_up data.rate=10" in lines[-2]
    assert len(RLDSDataset(directory)) == 3
    code, lines = run(monkeypatch, capsys, "lerobot", root, out, "--views", "front", "--pictures", "png")
    assert code == 0 and f"{directory}: 0 episodes converted now" in lines[-3]
    code, _ = run(monkeypatch, capsys, "lerobot", root, out)
    assert "was begun with others: pictures: png → jpeg; views: ['front'] → all" in code


def test_hdf5(tmp_path, monkeypatch, capsys):
    write_hdf5(tmp_path / "libero_goal" / "push_the_plate_demo.hdf5", {"demo_0": libero_demo(0, side=256)})
    out = tmp_path / "out"
    code, lines = run(monkeypatch, capsys, "hdf5", tmp_path / "libero_goal", out, "--no-noops")
    assert code == 0 and "data.name=libero_goal_no_noops data.rate=20 data.gripper.open=-1" in lines[-1]
    assert len(RLDSDataset(out / "libero_goal_no_noops" / "1.0.0").episode(0)["action"]) == 4
    code, lines = run(monkeypatch, capsys, "hdf5", tmp_path / "libero_goal", out, "--views", "main=front")
    assert "has no front; there are" in code


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["tfds", "a", "b"], "error: FORMAT: invalid choice: 'tfds'"),
        (["lerobot", "gone", "b"], "error: SRC is 'gone', where there is no folder"),
        (["hdf5", "gone", "b"], "error: SRC is 'gone', where there is no folder"),
        (["lerobot", ".", "b", "--name", "a-b"], "error: --name is 'a-b', expected a name of letters, digits"),
        (["hdf5", ".", "b", "--views", "front"], "error: --views is 'front', expected NAME=KEY"),
    ],
)
def test_wrong_options_are_refused_in_one_line(tmp_path, monkeypatch, capsys, arguments, told):
    monkeypatch.chdir(tmp_path)
    code, lines = run(monkeypatch, capsys, *arguments)
    assert code == 2 and len(lines) == 1 and lines[0].startswith(told)


def test_the_example_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = python_blocks(ROOT / "docs" / "convert_data.md")
    exec(compile(block, "docs/convert_data.md", "exec"), {})
    assert len(RLDSDataset(tmp_path / "outputs/data/arm/1.0.0")) == 3
