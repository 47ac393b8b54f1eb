"""Several goals in turn: the first that does not hold now, whenever the hand is free."""

import numpy as np
import pytest

from rsd.demos.sequence import InTurn, Step


class Counted:
    """A skill that makes its goal hold after a number of actions, and then frees the hand."""

    def __init__(self, world: dict[str, bool], name: str, num_actions: int = 2, undoes: str | None = None) -> None:
        self.world, self.name, self.num_actions, self.undoes = world, name, num_actions, undoes
        self.left, self.begun = 0, 0

    def begin(self) -> None:
        self.left, self.begun = self.num_actions, self.begun + 1

    def act(self) -> tuple[np.ndarray, bool]:
        self.left -= 1
        if self.left == 0:
            self.world[self.name] = True
            if self.undoes:
                self.world[self.undoes], self.undoes = False, None
        return np.full(7, ord(self.name)), False

    @property
    def hand_is_free(self) -> bool:
        return self.left <= 0


def acted(steps: list[Step], world: dict[str, bool], num_actions: int) -> str:
    """Whose actions they were, a letter each."""
    skill = InTurn(steps, lambda goal: world[goal[0]])
    skill.begin()
    return "".join(chr(int(skill.act()[0][0])) for _ in range(num_actions))


@pytest.mark.parametrize(
    ("holds", "undoes", "until", "expected"),
    [
        ("", None, None, "abbbb"),  # one action of a is replaced by the first of b
        ("a", None, None, "bbbbb"),  # what holds from the start is not begun
        ("", "a", None, "abaaa"),  # what a later step has undone is done again
        ("", "a", "b", "abbbb"),  # unless it was only a means
    ],
)
def test_the_first_goal_that_does_not_hold_is_next(holds, undoes, until, expected):
    world = {name: name in holds for name in "ab"}
    steps = [
        Step(["a"], Counted(world, "a"), until=[until] if until else None),
        Step(["b"], Counted(world, "b", undoes=undoes)),
    ]
    assert acted(steps, world, 5) == expected


def test_the_hand_is_not_taken_from_a_skill_that_is_not_done():
    world = {"a": True, "b": False}
    first, second = Counted(world, "a"), Counted(world, "b", num_actions=3)
    skill = InTurn([Step(["a"], first), Step(["b"], second)], lambda goal: world[goal[0]])
    skill.begin()
    world["a"] = False  # undone while b is on its way
    assert [chr(int(skill.act()[0][0])) for _ in range(4)] == list("bbaa")
    assert first.begun == 1 and second.begun == 1
