"""What the scripted expert can do in LIBERO: which skill reaches which goal of a task, and in which order.

The phase machines know no simulator; the skills tell them where things are gripped and where they go.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rsd.demos.drawers import SlideDrawer
from rsd.demos.parts import DRAGS, Drag, TurnOn
from rsd.demos.placing import PLACES, PickAndPlace
from rsd.demos.sequence import Goal, InTurn, Skill, Step
from rsd.errors import SettingError


def skill_for(goal_state: Sequence[Goal], domain: Any) -> Skill:
    """The skill that reaches a parsed goal such as [["on", "akita_black_bowl_1", "plate_1"]].

    Args:
        goal_state: The task's goals, all of which must hold in the end; each a relation and its arguments.
        domain: The simulated task, a BDDLBaseDomain of LIBERO.

    Raises:
        SettingError: a goal that no skill reaches.
    """
    steps = steps_to(goal_state, domain)
    if not steps:
        raise refusal(goal_state, [])
    return steps[0].skill if len(steps) == 1 else InTurn(steps, domain._eval_predicate)


def steps_to(goal_state: Sequence[Goal], domain: Any) -> list[Step]:
    """What is to be done, in an order that works."""
    steps = []
    for goal in goal_state:
        match goal:
            case ["on", name, region] if (name, region) in DRAGS:
                steps.append(Step(goal, Drag(domain, name, region)))
            case ["in", name, region] if is_of_fixture(region, domain) and region not in PLACES:
                raise refusal(goal_state, goal)  # furniture that nobody has measured
            case ["in", name, region] if is_drawer(region, domain):
                steps.append(Step(["open", region], SlideDrawer(domain, region, "open"), until=goal))
                steps.append(Step(goal, PickAndPlace(domain, name, region, "in")))
            case ["on" | "in" as relation, name, target]:
                others = [other[1] for other in goal_state if other[2:] == [target] and other[1] != name]
                steps.append(Step(goal, PickAndPlace(domain, name, target, relation, others)))
            case ["open" | "close" as relation, region] if is_drawer(region, domain):
                steps.append(Step(goal, SlideDrawer(domain, region, relation)))
            case ["turnon", stove]:
                steps.append(Step(goal, TurnOn(domain, stove)))
            case _:
                raise refusal(goal_state, goal)
    return sorted(steps, key=lambda step: rank(step.goal, domain))


def rank(goal: Goal, domain: Any) -> int:
    """Which goals come before which; those of one rank as they are given."""
    if goal[0] == "turnon":
        return 0
    if goal[0] == "close":  # what is closed takes nothing
        return 3
    return 2 if goal[-1] in domain.objects_dict else 1  # beside a plate first: the hand would push over what is on it


def refusal(goal_state: Sequence[Goal], goal: Goal) -> SettingError:
    return SettingError(
        f"the task's goal is {[list(goal) for goal in goal_state]}; the scripted expert does not reach {list(goal)}, "
        "only: on, in, open and close (drawers), turnon; choose other tasks with tasks=[...]"
    )


def is_of_fixture(region: str, domain: Any) -> bool:
    """Whether a region belongs to furniture, and not to the table or to an object."""
    site = domain.object_sites_dict.get(region)
    return site is not None and site.parent_name in domain.fixtures_dict


def is_drawer(region: str, domain: Any) -> bool:
    """Whether a region is inside a part of furniture that moves."""
    return is_of_fixture(region, domain) and bool(domain.object_sites_dict[region].joints)
