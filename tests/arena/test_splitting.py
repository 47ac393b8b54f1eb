"""Which demonstrations are held out."""

from rsd.arena.splitting import split


def test_every_second_undisturbed_demonstration_of_a_task_is_held_out():
    assert split(dict(enumerate("aababc")), set()) == ([0, 2, 3, 5], [1, 4])
    assert split(dict(enumerate("abc")), set()) == ([0, 2], [1])
    assert split({0: "a"}, set()) == ([0], [])
    assert split(dict(enumerate("aaaabb")), {1, 4}) == ([0, 1, 3, 4, 5], [2])
    assert split(dict(enumerate("ab")), {0, 1}) == ([0, 1], [])


def test_a_limit_takes_undisturbed_ones_first_and_the_tasks_in_turn():
    tasks = dict(enumerate("aaabbb"))
    assert split(tasks, set(), 4) == ([0, 3], [1, 4])
    assert split(tasks, {0, 3}, 4) == ([1, 4], [2, 5])
    assert split(tasks, {0, 3}, 5) == ([0, 1, 4], [2, 5])
