"""A real websocket on this machine; needs the extra `harness`."""

import asyncio
import logging
import queue
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from rsd.serving.messages import decode_array
from rsd.serving.server import ServingError, serve
from rsd.serving.session import Session
from tests.serving.policies import HELLO, READER, START, UNIT, TellingPolicy, message, observation

REASON = "needs pip install -e '.[harness]'"
RECORDED = Path(__file__).parent / "client_0_8_0.msgpack"  # one episode of one step as vla-eval 0.8.0 packs it


@contextmanager
def serving(policy):
    """The address of a server in a thread of this process."""
    pytest.importorskip("msgpack", reason=REASON)
    pytest.importorskip("websockets", reason=REASON)
    started = queue.Queue()

    async def main():
        make_session = partial(Session, policy, reader=READER, seed=7, about={"model_server": "rsd"})
        task = asyncio.create_task(
            serve(make_session, host="127.0.0.1", port=0, ready=lambda port: started.put((loop, task, port)))
        )
        loop = asyncio.get_running_loop()
        await asyncio.wait([task])

    thread = threading.Thread(target=asyncio.run, args=[main()])
    thread.start()
    loop, task, port = started.get(timeout=60)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()


def exchange(connection, sent: dict) -> dict:
    import msgpack

    connection.send(msgpack.packb(sent))
    return msgpack.unpackb(connection.recv(timeout=60))


def connect(address: str):
    from websockets.sync.client import connect

    return connect(f"ws://{address}")


def first_action(connection) -> list[float]:
    import msgpack

    connection.send(msgpack.packb(START))
    answer = exchange(connection, message("observation", observation(), seq=3))
    return decode_array(answer["payload"]["actions"], "actions").tolist()


def test_an_episode_as_the_harness_sends_it(caplog):
    caplog.set_level(logging.INFO)
    with serving(TellingPolicy()) as address, connect(address) as connection:
        import msgpack

        with RECORDED.open("rb") as file:
            hello, start, ask, end = msgpack.Unpacker(file)
        assert exchange(connection, hello)["payload"]["observation_params"]["quat_no_antipodal"] is True
        connection.send(msgpack.packb(start))
        answer = exchange(connection, ask)
        assert (answer["type"], answer["seq"]) == ("action", ask["seq"])
        assert (UNIT * decode_array(answer["payload"]["actions"], "actions")).tolist() == [0, 10, 100, 110, 200, 3.5, 1]
        connection.send(msgpack.packb(end))
        assert exchange(connection, hello)["type"] == "hello"  # by now the end has been read
    assert "task 3 init state 5 (reach): {'success': True} after 1 steps" in caplog.text


def test_two_clients_have_their_own_queues():
    with serving(TellingPolicy()) as address, connect(address) as one, connect(address) as other:
        exchange(one, HELLO)
        exchange(other, HELLO)
        assert [first_action(one)[0], first_action(other)[0]] == [0, 0]
        ask = message("observation", observation())
        assert decode_array(exchange(one, ask)["payload"]["actions"], "actions")[0] == 1 / UNIT


class JealousPolicy(TellingPolicy):
    """Fails when it is asked while it is busy."""

    busy = False

    def predict(self, requests):
        if self.busy:
            raise RuntimeError("two predictions at a time")
        self.busy = True
        time.sleep(0.02)
        self.busy = False
        return super().predict(requests)


def test_predictions_come_one_at_a_time():
    def client(address):
        with connect(address) as connection:
            exchange(connection, HELLO)
            return first_action(connection)[0]

    with serving(JealousPolicy()) as address, ThreadPoolExecutor(4) as clients:
        assert list(clients.map(client, [address] * 4)) == [0] * 4


def test_the_server_goes_on_after_bytes_that_are_no_message(caplog):
    with serving(TellingPolicy()) as address, connect(address) as connection:
        import msgpack

        for data in (b"\xc1", b"", "text"):
            connection.send(data)
            answer = msgpack.unpackb(connection.recv(timeout=60))
            assert answer["type"] == "error" and "not msgpack" in answer["payload"]["error"], data
        assert "not msgpack" in caplog.text
        exchange(connection, HELLO)
        assert first_action(connection)[0] == 0


def test_another_protocol_is_refused_with_a_reason_and_the_server_goes_on(caplog):
    with serving(TellingPolicy()) as address:
        from websockets.exceptions import ConnectionClosedError

        with connect(address) as connection, pytest.raises(ConnectionClosedError, match="speaks protocol 2") as closed:
            exchange(connection, message("hello", {"harness_version": "2.0", "protocol_version": 2}))
        assert closed.value.rcvd.code == 1002
        assert "harness 2.0 speaks protocol 2, this server 1" in caplog.text
        with connect(address) as connection:
            exchange(connection, HELLO)
            assert first_action(connection)[0] == 0


def test_a_client_that_vanishes_leaves_the_others_alone(caplog):
    with serving(TellingPolicy()) as address, connect(address) as stays:
        exchange(stays, HELLO)
        with connect(address) as goes:
            exchange(goes, HELLO)
            first_action(goes)
            goes.socket.close()
        assert first_action(stays)[0] == 0
    assert "the client left in the middle of task 3 init state 5" in caplog.text


def test_health_says_that_the_policy_is_loaded():
    with serving(TellingPolicy()) as address, urllib.request.urlopen(f"http://{address}/health") as answer:
        assert answer.status == 200


@pytest.mark.parametrize("package", ["msgpack", "websockets.asyncio.server"])
def test_a_missing_package_is_named(monkeypatch, package):
    pytest.importorskip("msgpack", reason=REASON)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        ServingError, match=rf"serving needs {package}; install it with: pip install -e '\.\[harness\]'"
    ):
        asyncio.run(serve(TellingPolicy, host="127.0.0.1", port=0, ready=print))


def test_the_harness_own_client():
    """The client of vla-eval itself, where it is installed beside this project."""
    connection = pytest.importorskip("vla_eval.connection", reason="vla-eval is not installed; docs/interop.md")
    import numpy as np

    async def episode(address):
        async with connection.Connection(f"ws://{address}") as client:
            assert client.server_info["model_server"] == "rsd"
            await client.start_episode({"task": {"name": "reach", "task_id": 3, "episode_idx": 5}})
            pictures = {name: np.full((16, 16, 3), 40, dtype=np.uint8) for name in ("agentview", "wrist")}
            seen = {"images": pictures, "states": np.arange(8) / 8, "task_description": "reach"}
            with pytest.raises(RuntimeError, match="has no 'images'"):
                await client.act({})
            return (await client.act(seen))["actions"]

    with serving(TellingPolicy()) as address:
        assert (UNIT * asyncio.run(episode(address))).tolist() == [0, 40, 40, 40, 40, 3.5, 1]
