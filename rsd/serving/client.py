"""The robot's side of protocol=rest: an action a control step, or an error with a name; never the last action again.

    with rsd.Client("http://127.0.0.1:8000", policy="released") as robot:
        robot.start(seed=0)
        action = robot.act(observation)      # [A], robot commands

What surprises first:
* An action is as old as the picture that it came of. One that is older than `max_age_s` on this machine's clock when it
  gets here is not given, and the next call begins from a new picture: `StaleActionError`. What the robot does meanwhile
  is the caller's to say, who knows how it stands still.
* A session that the server has forgotten (it was started again) is begun anew with the present picture, after a look
  whether it is still the same policy. `num_resumed` counts; the rest of the old chunk is lost.
* Nothing but numpy is needed beside the standard library, and no proxy of the environment is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import logging
import os
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from rsd.errors import RSDError, SettingError
from rsd.serving.encoding import dump_json, parse_json
from rsd.serving.messages import MessageError, decode_array
from rsd.settings import Natural, Positive, checked
from rsd.space import Space
from rsd.types import Observation

TOKEN = "RSD_TOKEN"  # environment variable
POLICY_FILE = "policy.json"
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0  # before trying again
TRY_AGAIN = (408, 429, 502, 503, 504)
MAX_ANSWER_BYTES = 16 * 2**20
NOT_FOUND = 404
MAX_SEEN = 4096  # steps whose time is kept

log = logging.getLogger(__name__)


class ClientError(RSDError, RuntimeError):
    """No action came of it; catch it to catch all of them, and hold the robot still."""


class UnreachableError(ClientError):
    """The server did not answer in time, as often as it was asked."""


class StaleActionError(ClientError):
    """The answer came of a picture that is older than an action may be."""


class WrongPolicyError(ClientError):
    """The server has another policy, or its numbers mean something else, than what was asked for."""


class RefusedError(ClientError):
    """The server answered with an error.

    Attributes:
        status: HTTP's.
        name: The server's name for it.
    """

    def __init__(self, message: str, status: int, name: str) -> None:
        super().__init__(message)
        self.status, self.name = status, name


class Client:
    """A server's policy as seen from the robot; for one thread.

    Args:
        url: Such as http://127.0.0.1:8000.
        policy: What the server has to serve: a policy folder, or the SHA-256 (or its first 8 digits and more) of its
            policy.json; None takes any.
        space: What its actions have to mean: a `Space`, or its digest; None takes any.
        decoding: Name of the decoding's class that it has to use, such as "Speculative"; None takes any.
        token: That the server asks for; by default RSD_TOKEN of the environment.
        timeout_s: For one try.
        retries: Further tries of one call, where the server cannot be reached or is busy.
        max_age_s: Of an action: from `act` with its picture to the return. It has to last for a chunk.

    Attributes:
        info: What the server says of itself.
        last: What the server said with the last action: step, age (control steps), age_ms, chunk, index, delay.
        num_resumed: Sessions that were begun anew because the server had forgotten them.

    Raises:
        SettingError: the URL is no such one, or a folder has no policy.json.
        UnreachableError, RefusedError: no answer, or an error.
        WrongPolicyError: it is another policy or Space than was asked for; the message has both.
    """

    @checked
    def __init__(
        self,
        url: str,
        *,
        policy: str | Path | None = None,
        space: Any = None,
        decoding: str | None = None,
        token: str | None = None,
        timeout_s: Positive = 2.0,
        retries: Natural = 3,
        max_age_s: Positive = 5.0,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise SettingError(f"url is {url!r}, expected such as http://127.0.0.1:8000")
        self.url = url
        self._host, self._port, self._path = parts.hostname, parts.port, parts.path.rstrip("/")
        self._is_tls = parts.scheme == "https"
        self._token = token if token is not None else os.environ.get(TOKEN)
        self._timeout_s, self._retries, self._max_age_s = float(timeout_s), retries, float(max_age_s)
        self._asked = {
            "policy_hash": None if policy is None else asked_hash(policy),
            "space_digest": space.digest if isinstance(space, Space) else space,
            "decoding": decoding,
        }
        self._connection: http.client.HTTPConnection | None = None
        self._session: str | None = None
        self._abandoned: list[str] = []  # sessions to be ended when the server answers again
        self._needs_observation = True
        self._seed: int | None = None
        self._step = 0
        self._sent_at: dict[int, float] = {}  # step of the session → when its picture was sent first
        self.last: dict[str, Any] = {}
        self.num_resumed = 0
        self.info: dict[str, Any] = {}
        self.hello()

    def hello(self) -> dict[str, Any]:
        """What the server says of itself, held against what was asked for.

        Raises:
            WrongPolicyError: it is something else; the message has every difference.
        """
        return self._hello(self._patience())

    def _hello(self, until: float) -> dict[str, Any]:
        info = self._call("GET", "/info", None, until)
        found = {
            "policy_hash": info.get("policy_hash"),
            "space_digest": info.get("space_digest"),
            "decoding": (info.get("policy") or {}).get("decoding"),
        }
        wrong = [
            f"{name} is {found[name]}, asked for was {asked}"
            for name, asked in self._asked.items()
            if asked is not None
            and not (found[name] == asked or (name == "policy_hash" and str(found[name]).startswith(asked)))
        ]
        if wrong:
            raise WrongPolicyError(f"{self.url} serves something else: {'; '.join(wrong)}")
        for name, value in found.items():  # from now on it is this one, also after the server was started again
            if self._asked[name] is None:
                self._asked[name] = value
        self.info = info
        return info

    @property
    def needs_observation(self) -> bool:
        """Whether the next `act` has to bring pictures; those in between need not be rendered."""
        return self._session is None or self._needs_observation

    def start(self, seed: int | None = None) -> None:
        """Begin an episode: an empty queue; the one before ends.

        Args:
            seed: Of everything random in it; None takes the server's.
        """
        self.end()
        self._seed = seed
        self._begin(self._patience())

    def act(self, observation: Observation | None) -> np.ndarray:
        """The action for this control step, [A], float64, robot commands.

        Args:
            observation: What is seen now; may be None unless `needs_observation`.

        Raises:
            StaleActionError: the answer is older than max_age_s; the next call asks anew.
            UnreachableError: there was none in the tries of a call, or within max_age_s.
            RefusedError: it was an error; the session stays as it is.
            WrongPolicyError: the server was started again with another policy.
        """
        until = time.monotonic() + min(self._max_age_s, self._patience_s)
        if self._session is None:
            self._begin(until)
        try:
            answer = self._ask(observation, until)
        except RefusedError as error:
            if error.status != NOT_FOUND or error.name != "UnknownSessionError":
                raise
            log.warning("the session was lost and is begun anew from what is seen next: %s", error)
            self._forget()
            self.num_resumed += 1
            if observation is None:
                raise ClientError(
                    f"the session is lost, and its actions with it; act with what is seen now ({error})"
                ) from error
            self._hello(until)
            self._begin(until)
            answer = self._ask(observation, until)
        action, age_s = self._read(answer)
        if age_s > self._max_age_s:
            self._abandoned += [] if self._session is None else [self._session]
            self._forget()
            raise StaleActionError(
                f"the action of step {self.last['step']} came of a picture from {age_s:.3g} s ago, more than "
                f"max_age_s={self._max_age_s:g}; hold the robot still, and act with what is seen then"
            )
        return action

    def end(self) -> None:
        """End the episode, if there is one; a server that does not answer ends it by itself."""
        if self._session is not None:
            self._end(self._session, time.monotonic() + self._timeout_s)
        self._forget()

    def close(self) -> None:
        self.end()
        self._hang_up()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _patience_s(self) -> float:
        """For all tries of a call."""
        return (1 + self._retries) * (self._timeout_s + LONGEST_PAUSE_S)

    def _patience(self) -> float:
        return time.monotonic() + self._patience_s

    def _forget(self) -> None:
        self._session, self._needs_observation, self._step, self._sent_at = None, True, 0, {}

    def _end(self, session: str, until: float) -> None:
        with contextlib.suppress(ClientError):
            self._call("DELETE", f"/sessions/{session}", None, until, tries=1)

    def _begin(self, until: float) -> None:
        answer = self._call("POST", "/sessions", {} if self._seed is None else {"seed": self._seed}, until)
        same = all(answer.get(name) == self.info.get(name) for name in ("policy_hash", "space_digest"))
        if not same:
            self._hello(until)  # raises where something else was asked for
        if not isinstance(answer.get("session"), str):
            raise ClientError(f"{self.url} began a session without a name: {str(answer)[:200]}")
        self._forget()
        self._session = answer["session"]
        while self._abandoned:
            self._end(self._abandoned.pop(), until)

    def _ask(self, observation: Observation | None, until: float) -> Mapping[str, Any]:
        request: dict[str, Any] = {"session": self._session, "step": self._step}
        if self._needs_observation:
            if observation is None:
                raise ClientError("this step needs an observation; see needs_observation")
            request |= {
                "images": observation.images,
                "proprio": np.asarray(observation.proprio),
                "instruction": observation.instruction,
            }
            self._sent_at.setdefault(self._step, time.monotonic())
        return self._call("POST", "/act", request, until)

    def _read(self, answer: Mapping[str, Any]) -> tuple[np.ndarray, float]:
        """The action, and the age of its picture, s; 0 where the robot stands still."""
        try:
            action = decode_array(answer["action"], "action")
            step, age, needs = answer["step"], answer["age"], answer["needs_observation"]
            if step != self._step or action.ndim != 1 or not np.isfinite(action).all() or type(needs) is not bool:
                raise ValueError(f"step {step} for {self._step}, action {action}")
            sent = time.monotonic() if age is None else self._sent_at[step - age]
        except (KeyError, TypeError, ValueError, MessageError) as error:
            self._forget()
            raise ClientError(f"{self.url} answered a step with something else than its action: {error}") from error
        self.last = {name: value for name, value in answer.items() if name not in ("action", "session")}
        self._step, self._needs_observation = step + 1, needs
        for old in [one for one in self._sent_at if one < step - MAX_SEEN]:
            del self._sent_at[old]
        return np.array(action, dtype=np.float64), time.monotonic() - sent

    def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None, until: float, tries: int | None = None
    ) -> dict[str, Any]:
        """The answer to a request, asked again where the server is not there or busy."""
        tries, pause = 1 + self._retries if tries is None else tries, FIRST_PAUSE_S
        content = None if body is None else dump_json(body).encode()
        start, last, tried = time.monotonic(), "there was no time to ask", 0
        while tried < tries and (left := until - time.monotonic()) > 0:
            tried += 1
            try:
                status, data = self._try(method, path, content, min(left, self._timeout_s))
            except (OSError, http.client.HTTPException) as error:
                last = str(error) or type(error).__name__
                self._hang_up()
            else:
                answer = self._parsed(status, data)
                if status < 300:
                    return answer
                name, message = str(answer.get("error", "HTTP")), str(answer.get("message", ""))
                refused = RefusedError(
                    f"{method} {path.partition('?')[0][:20]}: {status} {name}: {message}", status, name
                )
                if status not in TRY_AGAIN:
                    raise refused
                last = str(refused)
            if tried < tries:
                time.sleep(max(0.0, min(pause, until - time.monotonic())))
                pause = min(2 * pause, LONGEST_PAUSE_S)
        waited = time.monotonic() - start
        raise UnreachableError(
            f"{self.url} gave no answer to {method} {path[:20]} in {tried} tries and {waited:.3g} s: {last}; see that "
            "it runs, or raise timeout_s or retries"
        )

    def _try(self, method: str, path: str, content: bytes | None, timeout_s: float) -> tuple[int, bytes]:
        """Status and body of one try, all of it within timeout_s: the socket is shut under whoever reads from it."""
        if self._connection is None:
            kind = http.client.HTTPSConnection if self._is_tls else http.client.HTTPConnection
            self._connection = kind(self._host, self._port, timeout=timeout_s)
        connection, is_late = self._connection, threading.Event()
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"

        def cut() -> None:
            is_late.set()
            if connection.sock is not None:
                with contextlib.suppress(OSError):
                    connection.sock.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(timeout_s, cut)
        timer.daemon = True
        timer.start()
        try:
            connection.timeout = timeout_s
            if connection.sock is not None:
                connection.sock.settimeout(timeout_s)
            connection.request(method, self._path + path, body=content, headers=headers)
            response = connection.getresponse()
            data = response.read(MAX_ANSWER_BYTES)
            if is_late.is_set():
                raise TimeoutError
            return response.status, data
        except (OSError, http.client.HTTPException, ValueError) as error:
            if is_late.is_set() or isinstance(error, TimeoutError):
                raise TimeoutError(f"no answer within {timeout_s:.3g} s") from error
            raise OSError(f"{type(error).__name__}: {error}") from error
        finally:
            timer.cancel()

    def _parsed(self, status: int, data: bytes) -> dict[str, Any]:
        try:
            answer = parse_json(data)
        except MessageError:
            answer = None
        if not isinstance(answer, dict):
            if status < 300:
                self._hang_up()
                raise ClientError(f"{self.url} answered what is no JSON map: {data[:100]!r}; is it protocol=rest?")
            return {"message": data[:200].decode(errors="replace").strip()}
        return answer

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def asked_hash(policy: str | Path) -> str:
    """The hash that a server of this policy tells: of a folder's policy.json, or as given.

    Raises:
        SettingError: it is neither.
    """
    path = Path(policy) / POLICY_FILE
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    given = str(policy).lower()
    if 8 <= len(given) <= 64 and not set(given) - set("0123456789abcdef"):
        return given
    raise SettingError(
        f"policy is {str(policy)!r}: no folder with {POLICY_FILE}, and no SHA-256 of one (8 digits or more)"
    )
