"""The robot's side, against the real server in this process and against sockets that misbehave."""

import json
import re
import socket
import threading
from contextlib import contextmanager

import numpy as np
import pytest

import rsd
from rsd.errors import SettingError
from rsd.serving.access import Access
from rsd.serving.client import (
    Client,
    ClientError,
    RefusedError,
    StaleActionError,
    UnreachableError,
    WrongPolicyError,
    asked_hash,
)
from rsd.types import Observation
from tests.serving.policies import SIZE, UNIT, SpacedPolicy, TellingPolicy
from tests.serving.rest_server import IDENTITY, rest_server

QUICK = {"timeout_s": 5.0, "retries": 1, "max_age_s": 20.0}


def seen(first=10):
    images = {"image": np.full((SIZE, SIZE, 3), first, np.uint8), "wrist_image": np.full((SIZE, SIZE, 3), 99, np.uint8)}
    return Observation(images=images, proprio=np.arange(8.0) / 8, instruction="reach")


def told(action):
    return [round(UNIT * one) for one in action[:2]]


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    monkeypatch.delenv("RSD_TOKEN", raising=False)


def test_an_episode_in_which_pictures_are_sent_when_they_are_needed():
    policy = TellingPolicy(num_open_loop_steps=3)
    with rest_server(policy) as (address, service), rsd.Client(address, **QUICK) as robot:
        robot.start(seed=5)
        actions = []
        for step in range(5):
            needed = robot.needs_observation
            actions.append(told(robot.act(seen(10 + step) if needed else None)))
        assert actions == [[0, 10], [1, 10], [2, 10], [0, 13], [1, 13]]
        assert robot.last["age"] == 1 and robot.last["chunk"] == 1 and robot.last["delay"] == 0
        robot.start(seed=5)
        assert told(robot.act(seen(50))) == [0, 50] and policy.seeds[0] == policy.seeds[-1]
        assert len(service.episodes) == 1
    assert len(service.episodes) == 0


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"policy": "cd" * 32}, f"policy_hash is {'ab' * 32}, asked for was {'cd' * 32}"),
        ({"space": "0" * 12}, "space_digest is 123456789abc, asked for was 000000000000"),
        ({"space": SpacedPolicy.space}, f"asked for was {SpacedPolicy.space.digest}"),
        ({"decoding": "L1"}, "decoding is Telling, asked for was L1"),
    ],
)
def test_the_hello_refuses_another_policy_or_space(asked, said):
    with rest_server(TellingPolicy()) as (address, _), pytest.raises(WrongPolicyError, match=said):
        Client(address, **QUICK, **asked)


def test_the_hello_takes_what_was_asked_for():
    with rest_server(TellingPolicy()) as (address, _):
        asked = {"policy": "abababab", "space": "123456789abc", "decoding": "Telling"}
        assert Client(address, **QUICK, **asked).info["policy_hash"] == IDENTITY["policy_hash"]


def test_a_folder_stands_for_its_hash(tmp_path):
    (tmp_path / "policy.json").write_text("{}")
    assert asked_hash(tmp_path) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    with pytest.raises(SettingError, match=r"no folder with policy.json, and no SHA-256 of one"):
        asked_hash("released?")


def test_a_server_that_was_started_again_goes_on_with_what_is_seen_now(caplog):
    with rest_server(TellingPolicy()) as (address, _):
        robot = Client(address, **QUICK)
        assert [told(robot.act(seen(10))) for _ in range(2)] == [[0, 10], [1, 10]]
    port = int(address.rpartition(":")[2])
    with pytest.raises(UnreachableError, match=r"no answer to POST /act in 2 tries"):
        robot.act(seen(20))
    with rest_server(TellingPolicy(), port=port):
        with pytest.raises(ClientError, match="the session is lost, and its actions with it"):
            robot.act(None)
        robot._session = "forgotten"
        assert told(robot.act(seen(30))) == [0, 30] and robot.num_resumed == 2
        assert "the session was lost" in caplog.text
    with rest_server(TellingPolicy(), port=port, identity=IDENTITY | {"policy_hash": "ef" * 32}):
        with pytest.raises(WrongPolicyError, match=f"policy_hash is {'ef' * 32}, asked for was {'ab' * 32}"):
            robot.act(seen())


def test_an_action_of_an_old_picture_is_not_given_and_the_next_call_asks_anew(monkeypatch):
    policy = TellingPolicy(num_open_loop_steps=3)
    with rest_server(policy) as (address, service), Client(address, **QUICK) as robot:
        robot.act(seen(10))
        robot._sent_at[0] -= 21.0  # the robot was busy for so long
        with pytest.raises(
            StaleActionError, match=r"the action of step 1 came of a picture from 21[.\d]* s ago, more than"
        ):
            robot.act(None)
        assert robot.needs_observation and told(robot.act(seen(40))) == [0, 40]
        assert len(service.episodes) == 1  # the one that was given up is ended


def test_what_the_server_refuses_has_its_name_and_leaves_the_session():
    with rest_server(TellingPolicy()) as (address, _), Client(address, **QUICK) as robot:
        with pytest.raises(RefusedError, match="400 MessageError: instruction is ' '") as refused:
            robot.act(Observation(images=seen().images, proprio=seen().proprio, instruction=" "))
        assert (refused.value.status, refused.value.name) == (400, "MessageError")
        assert told(robot.act(seen(20))) == [0, 20]


def test_the_token_of_the_environment_is_sent(monkeypatch):
    with rest_server(TellingPolicy(), access=Access(token="secret")) as (address, _):
        with pytest.raises(RefusedError, match="401 AccessError"):
            Client(address, **QUICK)
        monkeypatch.setenv("RSD_TOKEN", "secret")
        assert Client(address, **QUICK).info


def test_no_url_is_an_error_in_a_line():
    for url in ("127.0.0.1:8000", "ws://127.0.0.1:8000", "http://"):
        with pytest.raises(SettingError, match=r"expected such as http://127.0.0.1:8000"):
            Client(url)
    with pytest.raises(SettingError, match="max_age_s"):
        Client("http://127.0.0.1:8000", max_age_s=0)


INFO = json.dumps({"policy_hash": None, "space_digest": None, "policy": {"decoding": "L1"}}).encode()
BEGUN = b'{"session": "x", "policy_hash": null, "space_digest": null}'


def ok(body):
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


@contextmanager
def answering(*answers):
    """A server that gives each request of its only client the next of these answers; None: silence."""
    done = threading.Event()

    def serve(listening):
        left = list(answers)
        while left and not done.is_set():
            try:
                connection = listening.accept()[0]
            except OSError:
                return
            with connection:
                while left and is_asked(connection):
                    answer = left.pop(0)
                    if answer is None:
                        done.wait(60)
                    elif callable(answer):
                        answer(connection, done)
                    else:
                        connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, args=[listening])
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            done.set()
            listening.shutdown(socket.SHUT_RDWR)
    thread.join()


def is_asked(connection) -> bool:
    """Whether a whole request came."""
    data = b""
    while b"\r\n\r\n" not in data:
        if not (some := connection.recv(1 << 16)):
            return False
        data += some
    head, _, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head.lower())
    while length and len(body) < int(length[1]):
        body += connection.recv(1 << 16)
    return True


def drips(connection, done):
    """An answer of which a byte comes now and then, for ever: no wait for a byte is long."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while not done.wait(0.02):
        try:
            connection.sendall(b" ")
        except OSError:
            return


@pytest.mark.parametrize("stalls", [None, drips], ids=["silence", "drips"])
def test_a_server_that_stalls_is_an_error_and_never_the_last_action_again(stalls):
    with answering(ok(INFO), stalls) as address:
        robot = Client(address, timeout_s=0.2, retries=0)
        with pytest.raises(UnreachableError, match=r"no answer to POST /sessions in 1 tries .*no answer within 0.2 s"):
            robot.act(seen())


def test_busy_servers_are_asked_again():
    busy = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 19\r\n\r\nService Unavailable"
    with answering(busy, ok(INFO)) as address:
        assert Client(address, timeout_s=5.0).info["policy"]["decoding"] == "L1"


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([ok(b"<html>")], "is it protocol=rest"),
        ([ok(INFO), ok(b'{"policy_hash": null, "space_digest": null}')], "a session without a name"),
        ([ok(INFO), ok(BEGUN), ok(b'{"step": 0}')], "something else than its action: 'action'"),
    ],
)
def test_answers_that_are_none(answers, said):
    with answering(*answers) as address, pytest.raises(ClientError, match=said):
        Client(address, **QUICK).act(seen())


def test_a_step_in_need_of_pictures_says_so():
    with rest_server(TellingPolicy()) as (address, _), pytest.raises(ClientError, match="needs an observation"):
        Client(address, **QUICK).act(None)
