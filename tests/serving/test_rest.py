"""A real HTTP server on this machine, asked as clients of OpenVLA's two deploy scripts and of this project ask."""

import base64
import json
import logging
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from rsd.clock import Naive
from rsd.serving.access import Access
from rsd.serving.encoding import dump_json, pack, parse_json, unpack
from rsd.serving.limits import Limits
from rsd.serving.messages import MessageError, decode_array
from rsd.serving.server import ServingError
from rsd.types import InstructionError
from tests.serving.policies import SIZE, UNIT, SpacedPolicy, TellingPolicy
from tests.serving.rest_server import rest_server

requests = pytest.importorskip("requests", reason="needs pip install -e '.[dev]'")


def picture(first=10, size=SIZE):
    return np.full((size, size, 3), first, dtype=np.uint8)


def own(first=10, **more):
    """A request in the own dialect, for dump_json or pack."""
    images = {"image": picture(first), "wrist_image": picture(100)}
    return {"images": images, "proprio": np.arange(8.0) / 8, "instruction": "reach", **more}


def post(address, message, path="/act", **options):
    return requests.post(address + path, data=dump_json(message), timeout=60, **options)


class OneEyed(SpacedPolicy):
    """OpenVLA's own inputs: one picture and words."""

    contract = SpacedPolicy.contract.__class__(
        **{**vars(SpacedPolicy.contract), "views": ("image",), "proprio_dim": None}
    )

    def _chunk(self, observation):
        return np.array([[t, *observation.images["image"][[0, -1], 0, 0], 0, 0, 0, 1] for t in range(4)]) / UNIT


@pytest.fixture
def json_numpy(monkeypatch):
    """As such clients use it: it changes the json module, for as long as the test takes."""
    package = pytest.importorskip("json_numpy", reason="needs pip install -e '.[dev]'")
    for name in ("dumps", "loads", "dump", "load"):
        monkeypatch.setattr(json, name, getattr(package, name))
    import requests.compat

    monkeypatch.setattr(requests.compat.json, "dumps", package.dumps)
    monkeypatch.setattr(requests.compat.json, "loads", package.loads)
    return package


SEEN = 10 / UNIT  # of the first pixel, in model space
STANDARD = [0.5 * SEEN * (1 + 1e-8)] + [0.0] * 5  # spans -0.5..0.5; index 0 of the chunk


def test_a_client_of_openvlas_server_gets_a_standard_action(json_numpy):
    """Un-normalised, with the gripper as the model has it: not the command -1, which such clients make of it."""
    with rest_server(OneEyed()) as (address, _):
        payload = {"image": picture(size=30), "instruction": "reach", "unnorm_key": "reach"}
        response = requests.post(f"{address}/act", json=payload)
        action = response.json()
        assert isinstance(action, np.ndarray) and action.shape == (7,) and action.dtype == np.float64
        np.testing.assert_allclose(action, [*STANDARD, 0.9], atol=1e-8)
        twice = requests.post(f"{address}/act", json={"encoded": json.dumps(payload)}).json()
        assert isinstance(twice, str)
        np.testing.assert_array_equal(json.loads(twice), action)
        assert (response.headers["X-RSD-Delay"], response.headers["X-RSD-Age"]) == ("0", "0")
        assert float(response.headers["X-RSD-Latency-Ms"]) > 0


def test_a_client_of_openvla_ofts_server_gets_a_list_of_standard_actions(json_numpy):
    """Wrist pictures in the order of their keys, whatever comes before and behind 'wrist'."""
    policy = SpacedPolicy()
    with rest_server(policy) as (address, _):
        payload = {"full_image": picture(), "left_wrist_cam": picture(99, 20), "state": np.arange(8.0)}
        actions = requests.post(f"{address}/act", json={**payload, "instruction": "reach"}).json()
        assert isinstance(actions, list) and len(actions) == 4
        np.testing.assert_allclose(actions[0], [*STANDARD, 0.9], atol=1e-8)
        np.testing.assert_allclose(actions[3][1:6], [0.15] * 5, atol=1e-6)
        (seen,) = policy.seen
        assert seen.images["wrist_image"].shape == (20, 20, 3) and seen.proprio.tolist() == list(range(8))


def test_the_own_dialect_gives_robot_commands_in_json_and_msgpack():
    with rest_server(SpacedPolicy()) as (address, _):
        in_json = parse_json(post(address, own()).content)
        packed = requests.post(f"{address}/act", pack(own()), headers={"Content-Type": "application/msgpack"})
        assert packed.headers["Content-Type"] == "application/msgpack"
        for answer in (in_json, unpack(packed.content)):
            actions = decode_array(answer["actions"], "actions")
            assert actions.shape == (4, 7) and set(actions[:, -1]) == {-1.0}
            assert (answer["num_steps"], answer["delay"], answer["age"]) == (3, 0, 0)


def session_of(address, **options):
    return parse_json(post(address, options, "/sessions").content)["session"]


def test_a_session_has_its_own_queue_and_tells_the_age_of_its_actions():
    policy = TellingPolicy(num_open_loop_steps=3)
    with rest_server(policy) as (address, service):
        one, other = session_of(address, seed=1), session_of(address, seed=2)
        for name in (one, other):
            answers = [parse_json(post(address, own(10 + step, session=name, step=step)).content) for step in range(4)]
            actions = [(UNIT * decode_array(answer["action"], "action")).tolist() for answer in answers]
            assert [action[0] for action in actions] == [0, 1, 2, 0]
            assert [action[1] for action in actions] == [10, 10, 10, 13]
            assert [answer["age"] for answer in answers] == [0, 1, 2, 0]
            assert [answer["chunk"] for answer in answers] == [0, 0, 0, 1]
            assert [answer["needs_observation"] for answer in answers] == [False, False, True, False]
        assert policy.seeds[0] != policy.seeds[2] and len(service.episodes) == 2
        assert requests.delete(f"{address}/sessions/{one}").json() == {"session": one, "num_chunks": 2, "num_still": 0}
        gone = post(address, own(session=one, step=4))
        assert gone.status_code == 404 and gone.json()["error"] == "UnknownSessionError"


def test_a_late_chunk_shows_in_delay_age_and_standing_still():
    with rest_server(TellingPolicy(num_open_loop_steps=4), clock=Naive(delay=1)) as (address, _):
        name = session_of(address)
        responses = [post(address, own(session=name, step=step)) for step in range(3)]
        answers = [response.json() for response in responses]
        assert [answer["age"] for answer in answers] == [None, 1, 2] and answers[0]["delay"] == 1
        assert responses[1].headers["X-RSD-Age"] == "1" and responses[1].headers["X-RSD-Delay"] == "1"
        assert "X-RSD-Age" not in responses[0].headers and answers[1]["age_ms"] > 0


def test_a_step_that_is_asked_again_has_the_same_action_and_no_other_is_left_out():
    policy = TellingPolicy()
    with rest_server(policy) as (address, _):
        name = session_of(address)
        first = post(address, own(session=name, step=0)).content
        assert post(address, own(77, session=name, step=0)).content == first and len(policy.seen) == 1
        wrong = post(address, own(session=name, step=5))
        assert wrong.status_code == 409
        assert wrong.json()["error"] == "StepError" and "expected 1, or 0 again" in wrong.json()["message"]
        post(address, {"session": name, "step": 1})  # no pictures in between


class Slow(TellingPolicy):
    """Fails when asked while it is busy, and remembers how many were asked for together."""

    def __init__(self):
        super().__init__()
        self.batches, self.busy, self.go = [], False, threading.Event()

    def predict(self, requests):
        assert not self.busy
        self.busy = True
        self.batches.append(len(requests))
        self.go.wait(60)
        self.busy = False
        return super().predict(requests)


def waits_for(condition):
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come to that")


def test_what_waits_together_is_predicted_together_and_everyone_gets_their_own():
    policy = Slow()
    with rest_server(policy, max_batch=3) as (address, service), ThreadPoolExecutor(8) as clients:
        first = clients.submit(post, address, own(1))
        waits_for(lambda: policy.batches == [1])
        others = [clients.submit(post, address, own(number)) for number in range(2, 8)]
        waits_for(lambda: len(service.policy._waiting) == 6)
        policy.go.set()
        told = [
            UNIT * decode_array(parse_json(one.result().content)["actions"], "actions")[0, 1]
            for one in [first, *others]
        ]
        assert told == [1, 2, 3, 4, 5, 6, 7] and policy.batches == [1, 3, 3]
        assert requests.get(f"{address}/info").json()["last_call"]["batch"] == 3


def test_of_a_batch_that_fails_only_whose_observation_it_was_hears_of_it(caplog):
    policy = Slow()
    with rest_server(policy) as (address, service), ThreadPoolExecutor(8) as clients:
        blocked = clients.submit(post, address, own(1))
        waits_for(lambda: policy.batches == [1])
        sent = [clients.submit(post, address, own(first)) for first in (5, 0, 6)]
        waits_for(lambda: len(service.policy._waiting) == 3)
        policy.go.set()
        assert [one.result().status_code for one in (blocked, *sent)] == [200, 200, 500, 200]
        failed = sent[1].result().json()
        assert failed["error"] == "PolicyFailed" and "illegal memory access" in failed["message"]


def test_info_says_contract_space_units_hash_and_timings():
    with rest_server(SpacedPolicy()) as (address, _):
        post(address, own())
        info = requests.get(f"{address}/info").json()
        assert info["policy"]["views"] == ["image", "wrist_image"] and info["policy_hash"] == "ab" * 32
        space = info["space"]
        assert space["name"] == "reach_no_noops" and space["digest"] == SpacedPolicy.space.digest
        assert space["action"]["units"] == ["0.05 m"] * 3 + ["0.5 rad"] * 3 + ["gripper"]
        assert space["gripper"] == {"dims": [6], "standard": "1 open, 0 closed", "to_robot": "inverted_sign"}
        assert space["limits"] == [-1, 1] and space["proprio"] is None
        assert info["last_call"]["batch"] == 1 and info["last_call"]["wall_ms"] >= 0
        assert info["limits"]["sessions"] == 128 and info["sessions"] == 0
        assert requests.get(f"{address}/health").text == "ok\n"


def array(dtype="|u1", shape=(SIZE, SIZE, 3), data=None):
    data = bytes(SIZE * SIZE * 3) if data is None else data
    return {"__numpy__": base64.b64encode(data).decode(), "dtype": dtype, "shape": shape}


WRONG = [
    (b"{", "not JSON"),
    (b"\xff\xfe\x00", "not JSON"),
    (b"[1]", "type list, expected a map"),
    (b"", "expected one of ['image', 'full_image', 'images']"),
    (b"[" * 100_000, "lists and maps"),
    (b"[" * 900 + b"]" * 900, "nested more than 16 deep"),
    (b"[0" + b",0" * 30_000 + b"]", "commas"),
    (b'{"images": NaN}', "the number NaN"),
    (b'{"images": ' + b"9" * 5000 + b"}", "not JSON"),
    (b'{"image": {"__numpy__": "%%%"}}', "not base64"),
    (b'{"encoded": "{}", "image": 1}', "'encoded' has to be the only key"),
    (b'{"encoded": "["}', "not JSON"),
    ({"image": 1, "images": 2}, "expected one of"),
    ({"images": {}, "instruction": 1}, "the request.instruction is of type int"),
    ({"images": {}, "instruction": " "}, "instruction is ' '"),
    ({"images": {}, "instruction": "x" * 10_001}, "10001 characters, expected 10000 at most"),
    ({"images": {}, "instruction": "\ud800"}, "half a character"),
    ({"images": {}, "instruction": "reach"}, "images has no 'image'"),
    ({"images": {}, "instruction": "reach", "unnorm_key": "bridge"}, "un-normalised with 'reach_no_noops'"),
    ({"images": {}, "instruction": "reach", "unnorm_key": 1}, "unnorm_key is 1"),
    ({"image": picture(), "instruction": "reach"}, "the request has no 'wrist_image'"),
    ({"image": [[[0]]], "instruction": "reach"}, "the request.image is of type list, expected dict"),
    ({"full_image": picture(), "instruction": "reach"}, "0 pictures with 'wrist' in their name"),
    ({"full_image": array("<f4", [16, 12]), "wrist": array(), "instruction": "reach"}, "is float32 [16, 12]"),
    ({"full_image": array(shape=[0, 1, 3], data=b""), "wrist": array(), "instruction": "reach"}, "[0, 1, 3]"),
    ({"full_image": array("O"), "wrist": array(), "instruction": "reach"}, "dtype object is not a number's"),
    ({"full_image": array(shape=[2, 2, 3]), "wrist": array(), "instruction": "reach"}, "cannot reshape"),
    (own() | {"images": {"image": picture(size=8), "wrist_image": picture()}}, "expected uint8 [16, 16, 3]"),
    ({name: value for name, value in own().items() if name != "proprio"}, "no 'proprio'"),
    (own(proprio=[1, 2]), "proprio is float64 [2]"),
    (own(proprio=["a"] * 8), "expected 8 finite numbers"),
    (own(proprio=np.full(8, np.nan)), "expected [8] finite numbers"),
    (own(session=1, step=0), "a text and a whole number"),
    (own(session="x", step=True), "a text and a whole number"),
    ({"image": picture(), "session": "x"}, "a request with 'session' has its pictures under 'images'"),
]


def test_what_is_wrong_with_a_request_is_said_with_a_name(caplog):
    with rest_server(SpacedPolicy()) as (address, _):
        for message, said in WRONG:
            data = message if isinstance(message, bytes) else dump_json(message)
            answer = requests.post(f"{address}/act", data, timeout=60)
            assert answer.status_code == 400 and answer.json()["error"] == "MessageError", (said, answer.text)
            assert said in answer.json()["message"]
        for seed in (-1, 2**63, "1", True, 1.0):
            answer = post(address, {"seed": seed}, "/sessions")
            assert answer.status_code == 400 and "expected a whole number from 0" in answer.json()["message"]
        kind = {"Content-Type": "application/x-msgpack"}
        answer = requests.post(f"{address}/act", b"\xc1", headers=kind)
        assert answer.status_code == 400 and unpack(answer.content)["error"] == "MessageError"
        lost = requests.get(f"{address}/act")
        assert lost.status_code == 405 and lost.json()["error"] == "RouteError"
        assert requests.get(f"{address}/acts").json()["error"] == "RouteError"
        assert post(address, own()).status_code == 200


def test_a_policy_without_a_space_speaks_the_own_dialect_alone():
    with rest_server(TellingPolicy()) as (address, _):
        answer = post(address, {"image": picture(), "instruction": "reach"})
        assert answer.status_code == 501 and answer.json()["error"] == "DialectError"


class Choosy(TellingPolicy):
    def check_instructions(self, instructions, where=None):
        if "fly" in instructions:
            raise InstructionError("nobody can fly; ask for something else")


def test_an_instruction_that_the_policy_cannot_read_is_an_error_of_its_own():
    policy = Choosy()
    with rest_server(policy) as (address, _):
        for more in ({}, {"session": session_of(address), "step": 0}):
            answer = post(address, own(**more) | {"instruction": "fly"})
            assert answer.status_code == 422 and answer.json()["error"] == "InstructionError" and not policy.seen


def test_limits_of_body_sessions_and_idle_time(monkeypatch):
    limits = Limits(body_bytes=20_000, sessions=2, idle_s=100.0)
    with rest_server(TellingPolicy(), limits=limits) as (address, service):
        large = requests.post(f"{address}/act", bytes(20_001))
        assert large.status_code == 413 and "20001 bytes, expected 20000 at most" in large.json()["message"]
        in_parts = requests.post(f"{address}/act", iter([bytes(10_000)] * 3))  # without a Content-Length
        assert in_parts.status_code == 413 and in_parts.json()["error"] == "BodyError"
        names = [session_of(address) for _ in range(2)]
        full = post(address, {}, "/sessions")
        assert full.status_code == 503 and full.json()["error"] == "BusyError"
        clock = time.monotonic
        monkeypatch.setattr("rsd.serving.episode.time.monotonic", lambda: clock() + 101)
        idle = post(address, own(session=names[0], step=0))
        assert idle.status_code == 404 and "idle for 100 s" in idle.json()["message"]
        assert len(service.episodes) == 0 and session_of(address)


def test_no_more_requests_at_a_time_than_sessions():
    policy = Slow()
    with rest_server(policy, limits=Limits(sessions=1)) as (address, _), ThreadPoolExecutor(1) as client:
        one = client.submit(post, address, own())
        waits_for(lambda: policy.batches)
        busy = post(address, own())
        policy.go.set()
        assert busy.status_code == 503 and busy.json()["error"] == "BusyError" and one.result().status_code == 200


def test_a_body_that_does_not_come_is_waited_for_a_while_only(monkeypatch):
    pytest.importorskip("fastapi")
    monkeypatch.setattr("rsd.serving.rest.BODY_S", 0.05)
    with rest_server(TellingPolicy()) as (address, _):
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(b"POST /act HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
            client.settimeout(10)
            answer = b""
            while b"}" not in answer and (some := client.recv(4096)):  # head and body may come one by one
                answer += some
            assert b"did not come within 0.05 s" in answer


def test_a_client_that_leaves_in_the_middle_of_a_body_is_no_failure(caplog):
    with rest_server(TellingPolicy()) as (address, _):
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(b"POST /act HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
        waits_for(lambda: "a client left before its request was here" in caplog.text)
        assert post(address, own()).status_code == 200 and "Traceback" not in caplog.text


@pytest.mark.parametrize(
    ("token", "headers", "status"),
    [
        (None, {"Origin": "http://evil.example"}, 403),
        (None, {"Origin": "http://localhost:3000"}, 200),
        ("secret", {}, 401),
        ("secret", {"Authorization": "Bearer guessed"}, 401),
        ("secret", {"Authorization": "Bearer secret"}, 200),
    ],
)
def test_who_may_not_ask_is_refused(token, headers, status):
    with rest_server(TellingPolicy(), access=Access(origins=["http://localhost:3000"], token=token)) as (address, _):
        for answer in (requests.get(f"{address}/info", headers=headers), post(address, own(), headers=headers)):
            assert answer.status_code == status
            assert status == 200 or answer.json()["error"] == "AccessError"
        assert requests.get(f"{address}/health").status_code == 200


def test_told_to_stop_it_answers_what_it_has_begun(caplog):
    caplog.set_level(logging.INFO)
    policy = Slow()
    with ThreadPoolExecutor(4) as clients:
        with rest_server(policy) as (address, _):
            sent = [clients.submit(post, address, own(number)) for number in (1, 2, 3)]
            waits_for(lambda: policy.batches)
            threading.Timer(0.3, policy.go.set).start()  # while it is ending
        assert [one.result().status_code for one in sent] == [200] * 3
        assert "ending: 0 sessions are open" in caplog.text
        with pytest.raises(requests.ConnectionError):
            requests.get(f"{address}/health")


def test_a_port_that_is_taken_is_an_error_in_a_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(ServingError, match=r"cannot listen on 127.0.0.1, port .*: Address already in use"):
            with rest_server(TellingPolicy(), port=taken.getsockname()[1]):
                pass


def test_arrays_travel_as_json_numpy_writes_them(json_numpy):
    for value in (np.arange(6, dtype=">i2").reshape(2, 3), np.float32(1.5), np.zeros((0, 3)), np.arange(4)[::2]):
        assert dump_json({"x": value}) == json_numpy.dumps({"x": value}, separators=(",", ":"))
        np.testing.assert_array_equal(decode_array(parse_json(json_numpy.dumps(value)), "x"), value)
        np.testing.assert_array_equal(decode_array(unpack(pack({"x": value}))["x"], "x"), value)
    for encode in (dump_json, pack):
        with pytest.raises(TypeError, match="a set has no place in"):
            encode({1})
    with pytest.raises(MessageError, match="has the number Infinity"):
        parse_json("[Infinity]")


def test_importing_the_package_or_its_client_needs_no_server_and_no_torch():
    code = "import sys, rsd; rsd.Client; assert not {'torch', 'fastapi', 'uvicorn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
