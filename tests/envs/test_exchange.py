"""Places dealt out anew: by seed, without overlaps, and in the simulator with what stands on them."""

import numpy as np
import pytest

from rsd.envs.exchange import Exchange, fits

PLACES = {
    name: np.array(xy) for name, xy in {"cup": (0, 0), "plate": (0.3, 0), "box": (0, 0.3), "oven": (0.5, 0.5)}.items()
}
RADII = {"cup": 0.04, "plate": 0.1, "box": 0.06, "oven": 0.2}
MOVABLE = ["cup", "plate", "box"]


def test_objects_stand_around_each_others_places():
    exchange = Exchange(share=1.0, spread_m=0.02)
    seen = set()
    for seed in range(20):
        dealt = exchange.deal(PLACES, RADII, MOVABLE, seed)
        assert sorted(dealt) == sorted(MOVABLE)
        nearest = {
            n: min(MOVABLE, key=lambda other, xy=xy: np.abs(PLACES[other] - xy).max()) for n, xy in dealt.items()
        }
        assert sorted(nearest.values()) == sorted(MOVABLE) and any(name != place for name, place in nearest.items())
        assert all(np.abs(PLACES[nearest[name]] - xy).max() <= 0.02 for name, xy in dealt.items())
        seen.add(tuple(nearest.values()))
    assert len(seen) == 5  # all orders of three but their own


def test_a_seed_decides():
    exchange = Exchange(share=1.0)
    first, again, other = (exchange.deal(PLACES, RADII, MOVABLE, seed) for seed in (3, 3, 4))
    assert all((first[name] == again[name]).all() and (first[name] != other[name]).any() for name in MOVABLE)
    share = np.mean([Exchange(share=0.3).chosen(seed) for seed in range(2000)])
    assert 0.26 < share < 0.34
    assert not Exchange(share=0.0).chosen(1) and Exchange(share=1.0).chosen(1)


def test_nothing_is_dealt_where_there_is_no_room_or_nothing_to_exchange():
    exchange = Exchange(share=1.0, spread_m=0.0)
    assert exchange.deal(PLACES, RADII, ["cup"], 0) == {}
    tight = {"cup": np.zeros(2), "plate": np.array([1.0, 0]), "oven": np.array([0.1, 0])}
    assert exchange.deal(tight, {"cup": 0.02, "plate": 0.2, "oven": 0.1}, ["cup", "plate"], 0) == {}


def test_near_things_do_not_fit():
    near = {"cup": np.zeros(2), "plate": np.array([0.1, 0.0])}
    assert not fits(near, {"cup": 0.07, "plate": 0.07}, ["cup"]) and fits(near, {"cup": 0.06, "plate": 0.07}, ["cup"])


@pytest.mark.sim
def test_in_the_simulator_riders_go_along_and_everything_stays_where_it_was_put():
    from rsd.demos.demonstrations import LiberoExpert
    from rsd.envs.libero import LiberoEnv

    options = {"suite": "libero_spatial", "task_id": 5, "max_steps": 220, "views": ("image",)}  # bowl on the ramekin
    env = LiberoEnv(**options, exchange=Exchange(share=1.0))
    expert = LiberoExpert(env)
    try:
        env.reset_random(3)
        moved, domain = env.moved, env.simulator.env
        assert {"plate_1", "cookies_1", "glazed_rim_porcelain_ramekin_1", "akita_black_bowl_1"} <= set(moved)
        for name, place in moved.items():
            assert np.abs(domain.sim.data.body_xpos[domain.obj_body_id[name]][:2] - place).max() < 0.03, name
        ramekin, bowl = (domain.sim.data.body_xpos[domain.obj_body_id[name]] for name in
                         ("glazed_rim_porcelain_ramekin_1", "akita_black_bowl_1"))  # fmt: skip
        assert np.linalg.norm((bowl - ramekin)[:2]) < 0.03 and bowl[2] > ramekin[2]
        expert.begin()
        assert expert.scene_is_as_described()
        env.reset(0)
        assert env.moved == {}
    finally:
        env.close()


@pytest.mark.sim
def test_of_two_bowls_the_one_that_is_not_asked_for_moves():
    from rsd.envs.libero import LiberoEnv

    options = {"suite": "libero_spatial", "task_id": 1, "max_steps": 220, "views": ("image",)}  # bowl next to a ramekin
    env = LiberoEnv(**options, exchange=Exchange(share=1.0))
    try:
        env.reset_random(3)
        assert "akita_black_bowl_2" in env.moved and "akita_black_bowl_1" not in env.moved
    finally:
        env.close()
