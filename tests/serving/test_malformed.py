"""Thousands of messages that are none: each is refused with a name, and the server serves on.

pytest tests/serving/test_malformed.py -m long        # 10 000 on each protocol
"""

import logging
from concurrent.futures import ThreadPoolExecutor

import pytest

from rsd.serving.encoding import parse_json, unpack
from tests.serving import malformed
from tests.serving.policies import HELLO, START, SpacedPolicy, TellingPolicy, message, observation
from tests.serving.rest_server import rest_server
from tests.serving.test_rest import own, post
from tests.serving.test_server import connect, exchange, serving

NUM_CLIENTS = 10
MANY = [10, pytest.param(1000, marks=pytest.mark.long)]  # each


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("count", MANY)
def test_rest_refuses_each_with_a_name(count):
    requests = pytest.importorskip("requests", reason="needs pip install -e '.[dev]'")

    def client(seed):
        with requests.Session() as session:
            for method, path, body, kind in malformed.rest(seed, count):
                answer = session.request(method, address + path, data=body, headers={"Content-Type": kind}, timeout=60)
                decode = unpack if answer.headers["Content-Type"] == "application/msgpack" else parse_json
                said, told = decode(answer.content), (method, path, body[:300], kind, answer.status_code)
                assert 400 <= answer.status_code < 500, (*told, said)
                assert said["error"].endswith("Error") and said["message"], (*told, said)
        return count

    with rest_server(SpacedPolicy()) as (address, service), ThreadPoolExecutor(NUM_CLIENTS) as clients:
        assert sum(clients.map(client, range(NUM_CLIENTS))) == NUM_CLIENTS * count
        assert post(address, own()).status_code == 200 and len(service.episodes) == 0


@pytest.mark.parametrize("count", MANY)
def test_a_websocket_refuses_each_with_a_name_and_stays_open(count):
    def client(seed):
        import msgpack

        with connect(address) as connection:
            exchange(connection, HELLO)
            connection.send(msgpack.packb(START))
            for data in malformed.websocket(seed, count):
                connection.send(data)
                answer = msgpack.unpackb(connection.recv(timeout=60))
                assert answer["type"] == "error", (data[:300], answer)
                assert answer["payload"]["name"].endswith("Error") and answer["payload"]["error"], (data[:300], answer)
            assert exchange(connection, message("observation", observation()))["type"] == "action"
        return count

    with serving(TellingPolicy()) as address, ThreadPoolExecutor(NUM_CLIENTS) as clients:
        assert sum(clients.map(client, range(NUM_CLIENTS))) == NUM_CLIENTS * count
