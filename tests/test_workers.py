"""Worker processes: what their end of the pipe tells, and what happens to messages that come too late or break off."""

import os
import signal
import struct
import threading
import time

import pytest

from rsd.workers import WorkerDiedError, ready, render_variables, start_worker, stop_workers


def echo(connection):
    """Return what comes, until the pipe closes."""
    try:
        while True:
            connection.send(connection.recv())
    except EOFError:
        return


def break_off(connection):
    """Announce a message of 1000 bytes, send ten of them, and die as if memory had run out."""
    os.write(connection.fileno(), struct.pack("!i", 1000) + b"x" * 10)
    os.kill(os.getpid(), signal.SIGKILL)


def report_variables(connection):
    connection.send({name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MUJOCO_EGL_DEVICE_ID")})


def test_a_worker_that_dies_in_the_middle_of_a_message_is_a_dead_worker():
    worker = start_worker(break_off)
    assert ready([worker]) == [worker]
    with pytest.raises(WorkerDiedError, match="signal SIGKILL"):
        worker.receive()
    stop_workers([worker])


def test_a_worker_that_ends_says_its_exit_code():
    worker = start_worker(report_variables, variables=render_variables([3, 5], number=3))
    assert worker.receive() == {"OMP_NUM_THREADS": "1", "MUJOCO_EGL_DEVICE_ID": "5"}
    with pytest.raises(WorkerDiedError, match="exit code 0"):
        worker.receive()
    worker.send("too late")  # is lost, and no error
    stop_workers([worker])
    assert render_variables(None, number=3) == {}


def test_sending_and_stopping_at_the_same_time_is_no_error():
    worker, errors = start_worker(echo), []

    def send_for_a_while():
        try:
            for _ in range(200):
                worker.send(b"x" * 100_000)
        except BaseException as error:
            errors.append(error)
            raise

    thread = threading.Thread(target=send_for_a_while)
    thread.start()
    time.sleep(0.3)  # the pipe is full by now: nobody reads what comes back
    stop_workers([worker])
    thread.join(10)
    assert not thread.is_alive() and not errors and not worker.process.is_alive()
