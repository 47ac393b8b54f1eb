"""Objects in each other's places: random placements in which remembering where things stood does not help.

LIBERO puts every object of a task into a region of its own, of a few centimetres. Here those that stand on the table
are dealt out anew over all of their places, and moved around there, by the placement's seed; what stands on one of them
goes with it. What surprises first: kinds of which there are two (libero_spatial's bowls) keep their places, because
there the place is what the instruction means, but for the one that the task does not ask for; and so does what is in or
on a fixture, with the fixture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from rsd.settings import NotNegative, Range, checked

LARGEST_M = 0.1  # radius; a basket stays where it is
GAP = 0.75  # of two radii: round objects touch before the corners of their boxes do, and LIBERO's own stand as close
TRIES = 2000
STREAM = 1  # of the seed; the placement itself and the episode's noise have others


@checked
@dataclass(frozen=True, kw_only=True)
class Exchange:
    """How `LiberoEnv.reset_random` deals places out anew.

    Attributes:
        share: Of the seeds for which it does, 0..1.
        spread_m: Largest distance along x and y from the place that an object was dealt, m.
    """

    share: Annotated[float, Range(0, 1)] = 0.5
    spread_m: NotNegative = 0.05

    def chosen(self, seed: int) -> bool:
        """Whether the placement of this seed is one of them."""
        return bool(self._random(seed).random() < self.share)

    def deal(
        self, places: Mapping[str, np.ndarray], radii: Mapping[str, float], movable: list[str], seed: int
    ) -> dict[str, np.ndarray]:
        """New places for `movable`, each [2], m; none where there is no room, or nothing to exchange.

        Args:
            places: Where everything on the table stands, fixtures too, each [2], m.
            radii: Of the same, m.
            movable: Names of those that are dealt out; the others are in the way.
        """
        random = self._random(seed)
        random.random()  # `chosen`
        if len(movable) < 2:
            return {}
        own = np.array([places[name] for name in movable])  # [N, 2]
        fixed = [name for name in places if name not in movable]
        for _ in range(TRIES):
            order = random.permutation(len(movable))
            dealt = own[order] + random.uniform(-self.spread_m, self.spread_m, own.shape)
            if (order == np.arange(len(order))).all():
                continue
            found = {**{name: places[name] for name in fixed}, **dict(zip(movable, dealt, strict=True))}
            if fits(found, radii, movable):
                return {name: found[name] for name in movable}
        return {}

    def _random(self, seed: int) -> np.random.Generator:
        return np.random.default_rng([seed, STREAM])


def fits(places: Mapping[str, np.ndarray], radii: Mapping[str, float], movable: list[str]) -> bool:
    """Whether each movable object is far enough from everything else."""
    for index, name in enumerate(movable):
        others = [other for other in places if other not in movable[: index + 1]]
        for other in others:
            if np.linalg.norm(places[name] - places[other]) < GAP * (radii[name] + radii[other]):
                return False
    return True


def exchange_places(domain: Any, exchange: Exchange, seed: int) -> dict[str, np.ndarray]:
    """Deal the places of a LIBERO problem out anew, in its simulator; it has just been reset.

    Args:
        domain: LIBERO's problem (`OffScreenRenderEnv.env`).

    Returns:
        Name → the place [2], m, world frame, of all that was moved, riders too; empty where nothing was.
    """
    problem, data = domain.parsed_problem, domain.sim.data
    places, radii, movable, riders = {}, {}, [], dict[str, str]()
    for relation, name, *where in problem["initial_state"]:
        if relation != "on" or not where:
            continue
        if where[0] in domain.objects_dict:
            riders[name] = where[0]
            continue
        region = problem["regions"].get(where[0])
        thing = domain.objects_dict.get(name) or domain.fixtures_dict.get(name)
        if region is None or not region["ranges"] or thing is None:
            continue  # in or on a fixture
        places[name] = data.body_xpos[domain.obj_body_id[name]][:2].copy()
        radii[name] = footprint(domain.sim, domain.obj_body_id[name])
        free = name not in problem["obj_of_interest"] or _is_alone(domain, name)
        if name in domain.objects_dict and radii[name] <= LARGEST_M and free:
            movable.append(name)
    dealt = exchange.deal(places, radii, movable, seed)
    offsets = {name: place - places[name] for name, place in dealt.items()}
    offsets |= {name: offsets[under] for name, under in riders.items() if under in offsets}
    moved = {}
    for name, offset in offsets.items():
        joint = domain.objects_dict[name].joints[-1]
        pose = data.get_joint_qpos(joint).copy()  # [7]
        pose[:2] += offset
        data.set_joint_qpos(joint, pose)
        moved[name] = pose[:2].copy()
    domain.sim.forward()
    return moved


def footprint(sim: Any, body: int) -> float:
    """Radius around a body's origin that all of its colliding parts lie in, seen from above, m.

    LIBERO's own `horizontal_radius` is the same 2.5 cm for most objects.
    """
    model, data = sim.model, sim.data
    same = model.body_rootid[model.geom_bodyid] == model.body_rootid[body]
    geoms = np.flatnonzero(same & (model.geom_contype != 0))
    turns = data.geom_xmat[geoms].reshape(-1, 3, 3)
    middle, half = model.geom_aabb[geoms, :3], model.geom_aabb[geoms, 3:]  # in the geom's frame
    centers = data.geom_xpos[geoms] + np.einsum("nij,nj->ni", turns, middle)
    extents = np.einsum("nij,nj->ni", np.abs(turns), half)
    reach = np.abs(centers - data.body_xpos[body])[:, :2] + extents[:, :2]
    return float(np.linalg.norm(reach, axis=1).max(initial=0.0))


def _is_alone(domain: Any, name: str) -> bool:
    """Whether no other object is of the same kind."""
    return sum(other.rpartition("_")[0] == name.rpartition("_")[0] for other in domain.objects_dict) == 1
