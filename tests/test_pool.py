"""Seats, jobs and deaths, with real processes."""

import os
import signal
import time

import pytest

from rsd.pool import MAX_DEATHS, Death, Pool
from rsd.silence import simulator_turn


def double(connection, offset):
    """Answers numbers; a negative one kills the process."""
    try:
        while True:
            number = connection.recv()
            if number < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            connection.send(2 * number + offset)
    except EOFError:
        return


@pytest.fixture
def pool():
    pool: Pool[int] = Pool(double, 1, size=2)
    yield pool
    pool.stop()
    assert not any(seat.worker.process.is_alive() for seat in pool.seats)


def test_jobs_are_answered_and_seats_become_idle(pool):
    assert pool.idle() == pool.seats
    for seat, number in zip(pool.seats, (3, 4), strict=True):
        pool.give(seat, number)
    assert pool.jobs() == [3, 4] and pool.idle() == []
    answers = {}
    while pool.jobs():
        for seat, job, message in pool.listen():
            answers[job] = message
            seat.job = None
    assert answers == {3: 7, 4: 9} and [seat.last for seat in pool.seats] == [3, 4]


@pytest.mark.slow
def test_a_dead_worker_is_replaced_until_its_job_has_cost_too_many(pool):
    seat = pool.seats[0]
    pool.give(seat, -1)
    tried_again = []
    for _ in range(MAX_DEATHS):
        before = seat.worker
        assert list(pool.listen()) == [(seat, -1, Death("signal SIGKILL"))]
        tried_again.append(pool.replace(seat))
        assert seat.worker is not before
    assert tried_again == [True, True, False] and seat.job == -1 and seat.last is None
    pool.give(seat, 5)
    assert list(pool.listen()) == [(seat, 5, 11)]


def stop_once(connection, mark):
    """Answers numbers; the very first one stops the process, as a hanging simulator would be."""
    try:
        while True:
            number = connection.recv()
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGSTOP)
            connection.send(number)
    except EOFError:
        return


def test_a_worker_that_does_not_answer_is_replaced_and_its_job_done(tmp_path):
    pool: Pool[int] = Pool(stop_once, tmp_path / "mark", size=1, patience_s=2.0)
    (seat,) = pool.seats
    stopped = seat.worker
    pool.give(seat, 3)
    assert list(pool.listen()) == [(seat, 3, Death("no answer for 2 s"))]
    assert pool.replace(seat) and seat.worker is not stopped and not stopped.process.is_alive()
    assert list(pool.listen()) == [(seat, 3, 3)]
    pool.stop()


def work_slowly(connection, seconds, num_turns):
    """Never silent for long, although its answer takes longer than anybody's patience."""
    for _ in range(num_turns):
        with simulator_turn():
            time.sleep(seconds)
    connection.send("done")


def test_signs_of_life_are_an_answer_and_so_is_waiting_for_the_next_job():
    pool: Pool[int] = Pool(work_slowly, 0.5, 12, size=1, patience_s=4.0)
    (seat,) = pool.seats
    pool.give(seat, 1)
    assert list(pool.listen()) == [(seat, 1, "done")]
    pool.stop()
