"""The workspace is printed without an account, and what is missing is said in a line."""

import json
import sys

import pytest

from scripts.dashboard import FRONTS, main


def test_a_dry_run_prints_the_panels(capsys):
    pytest.importorskip("wandb_workspaces")
    assert main(["--entity", "me", "--dry-run"]) == 0
    sections = json.loads(capsys.readouterr().out)["spec"]["section"]["panelBankConfig"]["sections"]
    assert [one["name"] for one in sections[:4]] == ["Pareto", "Rate and distortion", "Evaluation", "Media"]
    curve = sections[1]["panels"][0]["config"]
    assert (curve["xAxis"], curve["yAxis"]) == ("summary:val/bits", "summary:val/mse")
    assert [panel["config"]["xAxis"] for panel in sections[0]["panels"]] == [f"summary:{name}" for name in FRONTS]


def test_missing_library_is_one_line(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports", None)
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    assert main(["--entity", "me", "--dry-run"]) == 1
    assert "pip install 'rsd[dashboards]'" in capsys.readouterr().err
