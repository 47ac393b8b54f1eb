"""Seats, jobs and deaths, with real processes."""

import os
import signal

import pytest

from rsd.pool import MAX_DEATHS, Death, Pool


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
