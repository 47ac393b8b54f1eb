"""A command whose runs are those of an evaluation: cells of a study that take no time. Success falls with x and slope.

    python -m tests.commands.cells -m hydra/sweeper=study …

While the file `fails` is there, a job with x=2 dies as if it was killed.
"""

import os
import signal
import sys
from pathlib import Path

import hydra
import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from rsd import runs
from rsd.commands import entry_point
from rsd.commands.error_reports import report_errors
from rsd.evaluation.open_loop import OPEN_LOOP_FILE, keep_executed
from rsd.evaluation.plan import keep_plan
from rsd.evaluation.results import append_result
from rsd.record import write
from rsd.runs import METRICS_FILE, open_run
from rsd.types import EpisodeResult
from tests.comparison.run_folders import planned

CONFIG = Path(__file__).parent / "conf" / "parabola.yaml"
NUM_TRIALS = 10


def outcome(x: float, slope: float, task: int, trial: int) -> bool:
    """Two in ten trials are lost where x is 2, and one more of task 1 where slope is 3, too."""
    lost = 2 * (x == 2) + (x == 2 and slope == 3 and task == 1)
    return trial >= lost


@hydra.main(version_base="1.3", config_path=str(CONFIG.parent), config_name="parabola")
@report_errors
def main(cfg: DictConfig) -> float:
    """Returns the share of solved episodes."""
    run_dir = open_run(cfg, HydraConfig.get())
    if cfg.x == 2 and cfg.fails is not None and Path(cfg.fails).exists():
        os.kill(os.getpid(), signal.SIGKILL)
    plan = planned(num_trials=NUM_TRIALS, policy={"options": {"x": cfg.x, "slope": float(cfg.slope)}})
    keep_plan(run_dir, plan)
    solved = []
    for one in plan.episodes:
        solved.append(outcome(cfg.x, float(cfg.slope), one.task_id, one.init_state_id))
        words = f"reach <goal> {one.task_id}"
        stats = {"num_chunks": 10 // cfg.x, "vision_calls": 10 // cfg.x, "base_layers": 10}
        result = EpisodeResult(
            "point_mass", one.task_id, words, one.init_state_id, one.seed, solved[-1], 20 + cfg.x, stats=stats
        )
        append_result(run_dir / "results.jsonl", result)
    actions = np.zeros((12, 7))
    actions[:, 0] = 0.1 * (cfg.x - 1)
    keep_executed(run_dir / OPEN_LOOP_FILE, {4: actions, 7: 2 * actions})
    rate = float(np.mean(solved))
    write(run_dir / METRICS_FILE, {"success_rate": rate})
    return rate


if __name__ == "__main__":
    runs.provenance = lambda: {"device": "cpu"}
    sys.argv[2:2] = [f"hydra.searchpath=[file://{Path(__file__).parents[2] / 'conf'}]"]
    entry_point.run(main, CONFIG)
