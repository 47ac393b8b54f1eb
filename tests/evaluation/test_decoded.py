"""Decodings from the command line's words to the report: the released policy, composed and evaluated."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from rsd.commands.configured import configured_policy
from rsd.evaluation.evaluate import Recording, evaluate
from rsd.evaluation.plan import keep_plan
from rsd.evaluation.report import write_report
from tests.evaluation.folders import plan_of
from tests.fakes import PointMassEnv

ROOT = Path(__file__).parents[2]
STOVE = "pick up the black bowl on the stove and place it on the plate"


class StoveEnv(PointMassEnv):
    """The point mass, told what the released policy understands."""

    def __init__(self, task_id: int = 0) -> None:
        super().__init__(task_id=task_id, max_steps=24)
        self.task = dataclasses.replace(self.task, instruction=STOVE)


def evaluated(run_dir: Path, overrides: list[str]) -> tuple[dict, list[dict]]:
    """Report, and the chunks of the one episode's trace."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("eval", [f"policy={ROOT / 'released'}", *overrides])
    before = torch.get_num_threads()
    policy = configured_policy(cfg, overrides)
    plan = plan_of([StoveEnv().task], num_trials=1, save_videos=1)
    keep_plan(run_dir, plan)
    recording = Recording(run_dir, every_step=False)
    (result,) = evaluate(make_env=StoveEnv, policy=policy, plan=plan.episodes, done=[], recording=recording)
    torch.set_num_threads(before)
    assert result.error is None and result.num_steps == 24
    return write_report(run_dir), json.loads((run_dir / result.trace).read_text())["chunks"]


def test_anytime(tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    report, chunks = evaluated(tmp_path, ["decoding=anytime", "decoding.decode.budget_passes=0.3"])
    assert [chunk["stats"]["drafted_steps"] for chunk in chunks] == [3, 3, 3]
    assert [chunk["stats"]["base_layers"] for chunk in chunks] == [6, 6, 6]
    for chunk in chunks:
        assert chunk["actions"][:3] == chunk["draft_actions"][:3] and chunk["actions"][3:] != chunk["draft_actions"][3:]
    assert (report["work"]["drafted_steps_per_chunk"], report["work"]["late_steps_per_chunk"]) == (3.0, 0.0)
    assert json.loads((tmp_path / "metrics.json").read_text())["drafted_steps_per_chunk"] == 3.0
    assert (
        'Steps of the draft, due before the target was finished</td><td class="n">3.00'
        in (tmp_path / "report.html").read_text()
    )


def test_acceptance_by_certificate(tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    overrides = ["decoding=speculative", "accept=certificate", "target=base"]
    report, chunks = evaluated(tmp_path, overrides)
    bounds = [chunk["bound"] for chunk in chunks]
    assert all(bound is not None and 0 < max(bound) < 0.1 and bound[6] == 0 for bound in bounds)
    assert report["bound"]["num_bounded"] == report["bound"]["num_chunks"] == 3
    assert report["bound"]["max"] == pytest.approx(max(map(max, bounds)), abs=1e-5)
    assert "drafted_steps_per_chunk" not in json.loads((tmp_path / "metrics.json").read_text())
