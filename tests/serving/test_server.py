"""A real websocket on this machine; needs the extra `harness`."""

import asyncio
import itertools
import logging
import os
import queue
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from rsd.serving.access import Access
from rsd.serving.batching import Batched
from rsd.serving.limits import Limits
from rsd.serving.messages import decode_array
from rsd.serving.server import ServingError, serve
from rsd.serving.session import Session
from tests.serving.policies import HELLO, READER, START, UNIT, TellingPolicy, message, observation

ROOT = Path(__file__).parents[2]
REASON = "needs pip install -e '.[harness]'"
RECORDED = Path(__file__).parent / "client_0_8_0.msgpack"  # one episode of one step as vla-eval 0.8.0 packs it


@contextmanager
def serving(policy, access=None, limits=None, stop=None):
    """The address of a server in a thread of this process; `stop`, a list, gets what tells it to end."""
    pytest.importorskip("msgpack", reason=REASON)
    pytest.importorskip("websockets", reason=REASON)
    started = queue.Queue()

    async def main():
        shared = Batched(policy, max_batch=8)
        make_session = partial(Session, shared, reader=READER, seed=7, about={"model_server": "rsd"})
        ending, loop = asyncio.Event(), asyncio.get_running_loop()
        if stop is not None:
            stop.append(lambda: loop.call_soon_threadsafe(ending.set))
        task = asyncio.create_task(
            serve(
                make_session,
                host="127.0.0.1",
                port=0,
                ready=lambda port: started.put((loop, task, port)),
                access=access,
                limits=limits,
                stop=ending,
            )
        )
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


def test_no_more_clients_than_sessions():
    with serving(TellingPolicy(), limits=Limits(sessions=1)) as address, connect(address) as first:
        from websockets.exceptions import InvalidStatus

        exchange(first, HELLO)
        with pytest.raises(InvalidStatus, match="HTTP 503") as refused:
            connect(address)
        assert "1 clients are connected, as many as there may be" in refused.value.response.body.decode()
        assert first_action(first)[0] == 0


def test_a_client_that_says_nothing_for_long_is_let_go():
    with serving(TellingPolicy(), limits=Limits(idle_s=0.2)) as address, connect(address) as connection:
        from websockets.exceptions import ConnectionClosed

        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(timeout=60)
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1001, "no message came for 0.2 s")


class WaitingPolicy(TellingPolicy):
    """Answers when it is let."""

    def __init__(self):
        super().__init__()
        self.asked, self.go = threading.Event(), threading.Event()

    def predict(self, requests):
        self.asked.set()
        self.go.wait(60)
        return super().predict(requests)


def test_told_to_stop_it_answers_what_it_has_begun_and_says_goodbye_to_all():
    policy, stop = WaitingPolicy(), []
    with serving(policy, stop=stop) as address, connect(address) as busy, connect(address) as idle:
        from websockets.exceptions import ConnectionClosed

        exchange(busy, HELLO)
        exchange(idle, HELLO)
        with ThreadPoolExecutor(1) as client:
            action = client.submit(first_action, busy)
            policy.asked.wait(60)
            stop[0]()
            with pytest.raises(ConnectionClosed, match="the server ends"):
                idle.recv(timeout=60)
            policy.go.set()
            assert action.result()[0] == 0
        with pytest.raises(ConnectionClosed, match="the server ends") as closed:
            busy.recv(timeout=60)
        assert closed.value.rcvd.code == 1001


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


def lists(outer: int, inner: int = 0) -> bytes:
    """So many lists in a list, each of `inner` empty ones."""
    import msgpack

    head = msgpack.Packer().pack_array_header
    return head(outer) + (head(inner) + b"\x90" * inner) * outer


def nested(depth: int) -> bytes:
    return b"\x91" * depth + b"\xc0"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (lists(16 * 2**20 - 5), "out of bounds: 16777211 exceeds max_array_len(1000)"),
        (lists(1000, 1000), "the message has more than 1000 lists and maps"),
        (b"\xdd\xff\xff\xff\xff", "exceeds max_array_len(1000)"),
        (b"\xdf\xff\xff\xff\xff", "exceeds max_map_len(1000)"),
        (nested(20), "the message is nested more than 16 deep"),
        (nested(10_000), "out of bounds"),
        (b"\x82\xa1a\x01\xc4\x01b\x02", "a map has keys of type bytes, expected text"),
        (b"\x82\xa1a\x01\x02\x02", "out of bounds"),
        (b"\x81\x90\x02", "out of bounds"),
        (b"\xd4\x05\x00", "exceeds max_ext_len(0)"),
        (b"\xd6\xff\x00\x00\x00\x00", "exceeds max_ext_len(0)"),
        (b"\xa2\xff\xff", "out of bounds"),
        (b"\x90", "the message is of type list, expected a map"),
    ],
)
def test_messages_out_of_bounds_are_answered_and_the_connection_stays(data, said):
    pytest.importorskip("msgpack", reason=REASON)
    with serving(TellingPolicy()) as address, connect(address) as connection:
        import msgpack

        connection.send(data)
        answer = msgpack.unpackb(connection.recv(timeout=60))
        assert answer["type"] == "error" and said in answer["payload"]["error"]
        exchange(connection, HELLO)
        assert first_action(connection)[0] == 0


def test_a_message_in_fragments_of_nothing_ends_its_connection_alone():
    with serving(TellingPolicy()) as address, connect(address) as robot:
        from websockets.exceptions import ConnectionClosedError

        exchange(robot, HELLO)
        with connect(address) as connection:
            with pytest.raises(ConnectionClosedError):
                connection.send(itertools.repeat(b"\x90", 1001))
                connection.recv(timeout=60)
            assert (connection.close_code, connection.close_reason) == (
                1002,
                "a message came in 1001 fragments of 1001 bytes; send it in fewer",
            )
        assert first_action(robot)[0] == 0


def test_a_client_that_never_reads_is_not_answered_for_ever():
    """Each ping is answered; what it does not read would be kept for it, as much as it likes."""
    handshake = "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    handshake += "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    pings = (b"\x89\xfd" + bytes(4 + 125)) * 1000
    with serving(TellingPolicy()) as address, connect(address) as robot, socket.socket() as client:
        exchange(robot, HELLO)
        host, port = address.split(":")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((host, int(port)))
        client.sendall(handshake.encode())
        with pytest.raises(ConnectionError):
            for _ in range(300):  # 39 MB
                client.sendall(pings)
        assert first_action(robot)[0] == 0


@pytest.mark.parametrize(
    ("token", "headers", "path", "code"),
    [
        (None, {"Origin": "http://evil.example"}, "/", 403),
        (None, {"Origin": "http://localhost:3000"}, "/", None),
        ("secret", {}, "/", 401),
        ("secret", {"Authorization": "Bearer guessed"}, "/", 401),
        ("secret", {"Authorization": "Bearer secret"}, "/", None),
        ("secret", {}, "/?token=secret", None),
    ],
)
def test_who_may_not_connect_is_refused_in_a_line_on_both_sides(token, headers, path, code, caplog):
    access = Access(origins=["http://localhost:3000"], token=token)
    with serving(TellingPolicy(), access) as address:
        from websockets.exceptions import InvalidStatus
        from websockets.sync import client

        if code is None:
            with client.connect(f"ws://{address}{path}", additional_headers=headers) as connection:
                assert exchange(connection, HELLO)["type"] == "hello"
        else:
            with pytest.raises(InvalidStatus, match=f"HTTP {code}") as refused:
                client.connect(f"ws://{address}{path}", additional_headers=headers)
            body = refused.value.response.body.decode()
            assert body.count("\n") == 1 and f"refused: {body.strip()}" in caplog.text
        with urllib.request.urlopen(f"http://{address}/health") as answer:
            assert answer.status == 200


def test_a_long_name_of_another_protocol_fits_into_the_reason():
    with serving(TellingPolicy()) as address, connect(address) as connection:
        from websockets.exceptions import ConnectionClosedError

        with pytest.raises(ConnectionClosedError, match="harness ä") as closed:
            exchange(connection, message("hello", {"harness_version": "ä" * 10_000, "protocol_version": 2}))
        assert closed.value.rcvd.code == 1002


SERVER = """
import asyncio
from functools import partial
from rsd.serving.server import serve
from rsd.serving.session import Session
from tests.serving.policies import READER, TellingPolicy
make_session = partial(Session, TellingPolicy(), reader=READER, seed=7, about={})
asyncio.run(serve(make_session, host="127.0.0.1", port=0, ready=lambda port: print(port, flush=True)))
"""
MAX_GROWTH_MB = 400  # eight messages of 16 MB are 134 MB, and arrive in two copies


@contextmanager
def server_process():
    """The address of a server of its own, and a function that tells its largest memory so far, MB."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:

        def peak_mb() -> float:
            status = Path(f"/proc/{process.pid}/status").read_text()
            return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1000

        try:
            yield f"127.0.0.1:{int(process.stdout.readline())}", peak_mb
        finally:
            process.kill()


@pytest.mark.parametrize(
    "kind", ["one list", *(pytest.param(more, marks=pytest.mark.long) for more in ("a thousand lists", "fragments"))]
)
def test_eight_large_messages_of_empty_lists_at_once_cost_little_memory(kind):
    import msgpack

    size = 16 * 2**20 - 8
    with server_process() as (address, peak_mb), ThreadPoolExecutor(8) as clients, connect(address) as robot:
        exchange(robot, HELLO)
        before = peak_mb()
        data = lists(size) if kind != "a thousand lists" else lists(1000, size // 1000 - 8)
        fragments = [b"\x90" * 1000] * 10_000 if kind == "fragments" else [data]

        def send(_):
            with connect(address) as connection:
                connection.send(iter(fragments) if kind == "fragments" else data)
                return msgpack.unpackb(connection.recv(timeout=60))["type"]

        sent = [clients.submit(send, number) for number in range(8)]
        assert first_action(robot)[0] == 0  # it is served meanwhile
        assert [one.result() for one in sent] == ["error"] * 8
        assert peak_mb() - before < MAX_GROWTH_MB


MAX_CROWD_MB = 700  # 192 MB may wait, and a frame that is being read is there in three copies


@pytest.mark.slow
def test_of_a_crowd_with_large_messages_some_are_turned_away_with_a_reason():
    size = 16 * 2**20 - 8
    with server_process() as (address, peak_mb), ThreadPoolExecutor(60) as crowd, connect(address) as robot:
        import msgpack
        from websockets.exceptions import ConnectionClosed

        exchange(robot, HELLO)
        before, data = peak_mb(), lists(size)

        def send(_):
            try:
                with connect(address) as connection:
                    connection.send(data)
                    return msgpack.unpackb(connection.recv(timeout=60))["type"]
            except ConnectionClosed as closed:
                return closed.rcvd and (closed.rcvd.code, closed.rcvd.reason)

        sent = [crowd.submit(send, number) for number in range(60)]
        assert first_action(robot)[0] == 0  # it is served meanwhile
        ends = {one.result() for one in sent} - {None}  # of a client that was too slow to see why
        assert ends == {"error", (1013, "the messages that wait here are more than 192 MB; try again later")}
        assert peak_mb() - before < MAX_CROWD_MB


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
