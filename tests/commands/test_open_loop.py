"""`open_loop` of eval.py: a policy's actions in held-out episodes, kept in the run's folder once."""

from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from rsd.clock import Naive
from rsd.commands.configured import configured_policy
from rsd.commands.open_loop import keep_open_loop
from rsd.errors import SettingError
from rsd.evaluation.open_loop import OPEN_LOOP_FILE, read_executed
from rsd.types import InstructionError
from tests.data.demonstrations import write_dataset
from tests.data.tiny_base import save_tiny_base
from tests.evaluation.test_open_loop import Says

CONF = Path(__file__).parents[2] / "conf"


def test_actions_in_held_out_episodes_are_kept_once(tmp_path):
    data = write_dataset(tmp_path / "data", [9, 8, 12])
    save_tiny_base(tmp_path / "base", data)
    typed = [
        "experiment=study", "model=oft_tiny", "data=rlds", f"data.root={tmp_path / 'data'}", "max_batch=2",
        f"data.name={data.parent.name}", f"paths.root={tmp_path}", f"model.backbone.checkpoint={tmp_path / 'base'}",
        "device=cpu", "env.offers=null",
    ]  # fmt: skip
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("eval", typed)
        none = compose("eval", [*typed, "open_loop=null"])
    policy = configured_policy(cfg, typed)
    keep_open_loop(none, policy, Naive(delay=2), tmp_path)
    assert not (tmp_path / OPEN_LOOP_FILE).exists()
    keep_open_loop(cfg, policy, Naive(delay=2), tmp_path)
    (actions,) = read_executed(tmp_path / OPEN_LOOP_FILE).values()
    assert actions.shape[1] == 7 and np.isnan(actions[:2]).all() and np.isfinite(actions[2:]).all()
    stamp = (tmp_path / OPEN_LOOP_FILE).stat().st_mtime_ns
    keep_open_loop(cfg, policy, Naive(delay=2), tmp_path)
    assert (tmp_path / OPEN_LOOP_FILE).stat().st_mtime_ns == stamp
    (tmp_path / OPEN_LOOP_FILE).unlink()
    with pytest.raises(SettingError, match=r"a Says that has none of them cannot be held to it; set open_loop=null"):
        keep_open_loop(cfg, Says(4), Naive(delay=2), tmp_path)
    cfg.open_loop.dataset_dir = str(write_dataset(tmp_path / "others", [9, 8, 12, 9]))
    told = r"^\S+others\S+, which open_loop shows .* the task 'put toy 3 away' \(1 of 4 episodes: 3\), .*=null$"
    with pytest.raises(InstructionError, match=told):
        keep_open_loop(cfg, policy, Naive(delay=2), tmp_path)
