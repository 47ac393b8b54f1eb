"""A demonstration of the scripted expert, executed again in the simulator from the start that its name tells."""

import numpy as np
import pytest

from rsd.demos.demonstrations import LiberoExpert, record_demonstration
from rsd.demos.rerun import Rerun, execute
from rsd.demos.schedule import Attempt
from rsd.envs.libero import LiberoEnv
from rsd.jpeg import decode_jpeg, encode_jpeg

pytestmark = pytest.mark.sim


def test_what_was_recorded_undisturbed_succeeds_again_and_another_start_is_seen():
    attempt, other = (Attempt("libero_spatial", 8, 3, placement) for placement in (0, 1))
    env = LiberoEnv(suite="libero_spatial", task_id=8, max_steps=220)
    try:
        made = record_demonstration(
            env, LiberoExpert(env), seed=attempt.placement_seed, noise_scales=(0.0,), store_picture=encode_jpeg
        )
        assert made.outcome == "success"
        commands = np.stack(made.actions).astype(np.float32).astype(np.float64)  # as a record holds them
        picture = decode_jpeg(made.images["image"][0])
        still = np.zeros_like(commands)
        job = Rerun(0, 8, attempt.placement_seed, None, "image", picture, {"raw": commands, "still": still})
        off, arms = execute(env, job, num_still=0)
        assert off < 4 and arms["raw"].success and not arms["still"].success
        state = env.simulator.get_sim_state()
        assert env.reset_state(state).proprio.shape == (8,)
        moved = Rerun(0, 8, other.placement_seed, None, "image", picture, {"raw": commands})
        off, arms = execute(env, moved, num_still=0)
        assert off > 12 and arms == {}
    finally:
        env.close()
