"""Requests to a robot's action server as edgeml speaks them: pickled objects in lz4 frames, over a ZeroMQ REQ socket.

What surprises first: a pickle can run code, so what a server sends is not unpickled freely. Numbers, texts, lists,
dicts and arrays are read, and anything else is an error. Arrays that are sent are written with names that the robot's
older numpy has, too. A request is never sent twice: nobody knows whether the first one has moved the robot.

Source: youliangtan/edgeml @ b4b8495 (edgeml/action.py, edgeml/zmq_wrapper/req_rep.py, edgeml/internal/utils.py).
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rsd.errors import RSDError
from rsd.settings import shown

INSTALL = "pip install -e '.[widowx]'"
LARGEST = 64 * 2**20  # bytes of a message once it is unpacked; a camera's picture has 1 MB
PROTOCOL = 4  # of pickle: Python 3.4 and newer
VERSION = "0.0.1"  # of edgeml's configuration of a server
ARRAYS = {  # what pickles of arrays name: by numpy 1 and 2
    (f"numpy.{core}.{module}", name)
    for core in ("core", "_core")
    for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
} | {("numpy", "ndarray"), ("numpy", "dtype"), ("numpy", "array")}


class RobotServerError(RSDError, RuntimeError):
    """A robot's server is not there, does not answer in time, or answers that something did not work."""


class MessageError(RSDError, ValueError):
    """Bytes that are no message of edgeml's, or one that holds more than data."""


class ActionClient:
    """One server, asked for one thing at a time.

    Args:
        host, port: Where it is.
        action_keys, observation_keys: What it has to offer, in its order.
        timeout_s: For the first answer.

    Raises:
        RobotServerError: nobody answers, or somebody with other keys or of another version; or a library is missing.
    """

    def __init__(
        self, host: str, port: int, *, action_keys: Sequence[str], observation_keys: Sequence[str], timeout_s: float
    ) -> None:
        try:
            import lz4.frame  # noqa: F401  needed later
            import zmq
        except ImportError as error:
            raise RobotServerError(f"env=widowx needs {error.name}, which is not installed; {INSTALL}") from error
        self._address = f"{host}:{port}"
        self._context = zmq.Context()
        self._socket: Any = None
        self._keys = set(observation_keys)
        try:
            self._hello(list(action_keys), list(observation_keys), timeout_s)
        except RSDError:
            self.close()
            raise

    def act(self, key: str, payload: Mapping[str, Any], *, timeout_s: float) -> Any:
        """Have an action executed; the server's reply.

        Raises:
            RobotServerError: see `request`.
        """
        return self.request({"type": "act", "key": key, "payload": dict(payload)}, key, timeout_s)

    def observe(self, *, timeout_s: float) -> Any:
        """What the server sees, all keys.

        Raises:
            RobotServerError: see `request`.
        """
        return self.request({"type": "obs", "keys": self._keys}, "an observation", timeout_s)

    def request(self, message: Mapping[str, Any], what: str, timeout_s: float) -> Any:
        """Send a message once and wait for its reply.

        Args:
            what: For messages.

        Raises:
            RobotServerError: there is no reply in time, or one that cannot be read; whether the message was acted on is
                not known then.
        """
        import zmq

        if self._context.closed:
            raise RobotServerError("the connection to the robot server is closed")
        if self._socket is None:
            self._socket = self._context.socket(zmq.REQ)
            self._socket.setsockopt(zmq.LINGER, 0)
            self._socket.connect(f"tcp://{self._address}")
        try:
            self._socket.send(encode(message), zmq.NOBLOCK)
            if not self._socket.poll(round(timeout_s * 1000), zmq.POLLIN):
                raise RobotServerError(
                    f"the robot server at {self._address} has not answered in {timeout_s:g} s, asked for {what}; see "
                    "whether widowx_env_service runs there, and env.host, env.port and env.timeout_s"
                )
            return decode(self._socket.recv())
        except zmq.ZMQError as error:
            self._forget()
            raise RobotServerError(f"the robot server at {self._address} cannot be reached: {error}") from error
        except MessageError as error:
            self._forget()
            raise RobotServerError(f"the robot server at {self._address} answered with {error}") from error
        except BaseException:  # an interrupt, too: the socket waits for a reply that would be taken for another's
            self._forget()
            raise

    def close(self) -> None:
        """Close the connection; further calls do nothing."""
        self._forget()
        if not self._context.closed:
            self._context.term()

    def _forget(self) -> None:
        """Close the socket: a reply that comes late is nobody's."""
        if self._socket is not None:
            self._socket.close(0)
            self._socket = None

    def _hello(self, action_keys: list[str], observation_keys: list[str], timeout_s: float) -> None:
        """Compare configurations as edgeml's client does, but for the ports, which may be forwarded."""
        reply = self.request({"type": "hash"}, "its configuration", timeout_s)
        expected = {"action_keys": action_keys, "observation_keys": observation_keys, "version": VERSION}
        try:
            found = json.loads(reply["payload"])
            found = {name: found[name] for name in expected}
        except (TypeError, KeyError, ValueError):
            raise RobotServerError(
                f"{self._address} answers, but with {shown(reply)} in the place of a configuration of edgeml's; see "
                "env.host and env.port"
            ) from None
        for name, value in expected.items():
            if found[name] != value:
                raise RobotServerError(
                    f"the robot server at {self._address} has {name} {found[name]}, expected {value}; it is another "
                    "version of bridge_data_robot"
                )


class _Writer(pickle.Pickler):
    """Writes arrays as a call of numpy.array, which every numpy has under this name."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return np.array, (value.tolist(), value.dtype.str)
        return NotImplemented


class _Reader(pickle._Unpickler):
    """Reads data, and nothing else; in Python, because the one in C takes memory for what a damaged byte announces."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):  # bytes, as written for Python 2
            return _encoded
        if (module, name) not in ARRAYS:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _encoded(text: str, encoding: str) -> bytes:
    return text.encode(encoding)


def encode(message: Any) -> bytes:
    """A message as bytes."""
    import lz4.frame

    pickled = io.BytesIO()
    _Writer(pickled, protocol=PROTOCOL).dump(message)
    return lz4.frame.compress(pickled.getvalue())


def decode(data: bytes) -> Any:
    """Bytes as a message.

    Raises:
        MessageError: they are none, or it holds anything but numbers, texts, lists, dicts and arrays.
    """
    import lz4.frame

    try:
        unpacking = lz4.frame.LZ4FrameDecompressor()
        pickled = unpacking.decompress(data, max_length=LARGEST)
        if not unpacking.eof:
            raise MessageError(f"a message that is cut off, or larger than {LARGEST // 2**20} MB")
        return _Reader(io.BytesIO(pickled)).load()
    except MessageError:
        raise
    except Exception as error:
        raise MessageError(f"what is no message of edgeml's ({type(error).__name__}: {error})") from error
