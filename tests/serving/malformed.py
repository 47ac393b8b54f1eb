"""Messages that are none, as many as anyone wants of a seed: each differs in one place from one that is good."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np

from rsd.serving.encoding import dump_json, pack
from rsd.serving.messages import encode_array
from tests.serving.policies import HELLO, SIZE, START, message, observation

JUNK: list[Any] = [None, True, -1, 2**63, 1e308, [], {}, [[[0]]], [None] * 900, {"__ndarray__": True}, {"a": {"b": []}}]
DTYPES = ["O", "V8", "U4", "", "<f9", "float1024", ">c16", "M8[s]", "u1,u1", "|b1"]
SHAPES = [[-1], [2**40], [SIZE, SIZE], [SIZE, SIZE, 4], [1] * 40, [0], [SIZE, SIZE, 3.0], "x", None, [True]]


def rest(seed: int, count: int) -> Iterator[tuple[str, str, bytes, str]]:
    """Method, path, body and content type of requests that no server can answer."""
    rng = np.random.default_rng(seed)
    images = {"image": np.full((SIZE, SIZE, 3), 9, np.uint8), "wrist_image": np.full((SIZE, SIZE, 3), 9, np.uint8)}
    good = {"images": images, "proprio": np.arange(8.0), "instruction": "reach"}
    oft = {"full_image": images["image"], "wrist": images["image"], "state": np.arange(8.0), "instruction": "reach"}
    encoders = ((dump_json, "application/json"), (pack, "application/msgpack"))
    for number in range(count):
        encode, kind = encoders[rng.integers(2)]
        request = copy.deepcopy(good if rng.integers(2) else oft)
        match number % 10:
            case 0:
                yield "POST", "/act", rng.bytes(rng.integers(2000)), kind
            case 1:
                body = encode(request)
                yield "POST", "/act", _bytes(body)[: rng.integers(len(body))], kind
            case 2:
                body = bytearray(dump_json(request).encode())
                body.insert(rng.integers(len(body)), 0)
                yield "POST", "/act", bytes(body), "application/json"
            case 3:
                del request[list(request)[rng.integers(len(request))]]
                yield "POST", "/act", _bytes(encode(request)), kind
            case 4:
                request[list(request)[rng.integers(len(request))]] = _junk(rng)
                yield "POST", "/act", _bytes(encode(request)), kind
            case 5:
                name = "proprio" if "proprio" in request else "full_image"
                array = encode_array(np.arange(8.0)) | {"__numpy__": "AAAA"}
                array |= {"dtype": DTYPES[rng.integers(len(DTYPES))], "shape": SHAPES[rng.integers(len(SHAPES))]}
                if kind == "application/json":
                    del array["data"], array["__ndarray__"]
                yield "POST", "/act", _bytes(encode(request | {name: array})), kind
            case 6:
                junk = [_junk(rng), "x" * rng.integers(1, 99)][rng.integers(2)]
                yield "POST", "/act", _bytes(encode(good | {"session": junk, "step": int(rng.integers(9))})), kind
            case 7:
                yield "POST", "/act", _bytes(encode({"encoded": rng.bytes(9).hex() + "["})), kind
            case 8:
                yield (
                    "POST",
                    "/sessions",
                    _bytes(encode({"seed": [None, True, -1, 2**63, 0.5, [], {}][rng.integers(7)]})),
                    kind,
                )
            case _:
                method = ["GET", "PUT", "DELETE", "POST"][rng.integers(4)]
                yield method, f"/sessions/{rng.bytes(4).hex()}" if method == "DELETE" else "/acts", b"", kind


def websocket(seed: int, count: int) -> Iterator[bytes | str]:
    """Messages that a server can only refuse, on a connection with an episode that runs."""
    import msgpack

    rng = np.random.default_rng(seed)
    for number in range(count):
        good = message("observation", observation(), seq=number)
        match number % 7:
            case 0:
                yield rng.bytes(rng.integers(2000))
            case 1:
                data = msgpack.packb([HELLO, START, good][rng.integers(3)])
                yield data[: rng.integers(len(data))]
            case 2:
                yield rng.bytes(rng.integers(99)).hex()
            case 3:
                name = ["type", "payload", "seq"][rng.integers(3)]
                good[name] = 0.5 if name == "seq" or rng.integers(2) else _junk(rng)
                yield msgpack.packb(good, default=str)
            case 4:
                payload = good["payload"]
                payload[list(payload)[rng.integers(len(payload))]] = _junk(rng)
                yield msgpack.packb(good)
            case 5:
                array = encode_array(np.arange(8.0))
                array |= {"dtype": DTYPES[rng.integers(len(DTYPES))], "shape": SHAPES[rng.integers(len(SHAPES))]}
                good["payload"]["states"] = array
                yield msgpack.packb(good)
            case _:
                picture = good["payload"]["images"][["agentview", "wrist"][rng.integers(2)]]
                data = bytearray(picture["data"])
                del data[rng.integers(len(data) // 2) :]  # a picture that lacks its end alone can be read
                picture["data"] = bytes(data)
                yield msgpack.packb(good)


def _junk(rng: np.random.Generator) -> Any:
    return JUNK[rng.integers(len(JUNK))]


def _bytes(body: bytes | str) -> bytes:
    return body if isinstance(body, bytes) else body.encode()
