"""The policy behind HTTP: POST /act as OpenVLA's deploy scripts have it, and sessions with an action queue each.

    GET    /health          200 once the policy is loaded; asks for no token
    GET    /info            contract, Space with units, hash of the policy, limits, timings of the last call
    POST   /sessions        {"seed"?} → {"session", …}: an episode, whose queue is here
    DELETE /sessions/ID     ends it
    POST   /act             see `rsd.serving.dialects`; with "session" and "step" the session's next action

Bodies are JSON as json-numpy writes it, or msgpack with Content-Type: application/msgpack; the answer is in the same.

What surprises first:
* An error has a status and a name, {"error": "MessageError", "message": …}, where OpenVLA's server answers every one
  with the text "error" and status 200, which a client takes for an action.
* Delay and age of actions are in the headers X-RSD-…, so that the bodies of the other dialects stay what they are.
* Requests wait in threads for the policy, and what waits together is predicted together (`rsd.serving.batching`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, Request, Response
from starlette.requests import ClientDisconnect

from rsd.clock import Clock
from rsd.errors import RSDError
from rsd.queue import LIMITS
from rsd.serving.access import Access
from rsd.serving.batching import Batched
from rsd.serving.dialects import OFT, OPENVLA, OWN, SESSION, STEP, DialectError, Dialects
from rsd.serving.encoding import dump_json, pack, parse_json, unpack
from rsd.serving.episode import BusyError, Episode, Episodes, StepError, UnknownSessionError
from rsd.serving.limits import Limits
from rsd.serving.messages import MessageError, in_short
from rsd.serving.server import GRACE_S, USUAL_BYTES, ServingError
from rsd.space import LIBERO_GRIPPER, Space
from rsd.types import Chunk, InstructionError
from rsd.types import Request as Question

MSGPACK, JSON = "application/msgpack", "application/json"
MSGPACK_TYPES = (MSGPACK, "application/x-msgpack", "application/vnd.msgpack")
BODY_S = 30.0  # that a body may take to come
MAX_SEED = 2**63 - 1
HEADER = "X-RSD-"
# By gripper rule and action dims of a Space: LIBERO's and WidowX's, see conf/robot
UNITS: dict[tuple[str, int], dict[str, tuple[str, ...]]] = {
    (LIBERO_GRIPPER, 7): {
        "action": ("0.05 m",) * 3 + ("0.5 rad",) * 3 + ("gripper",),
        "proprio": ("m",) * 3 + ("rad",) * 3 + ("m",) * 2,
    },
    ("unchanged", 7): {"action": ("m",) * 3 + ("rad",) * 3 + ("gripper",)},
}

log = logging.getLogger(__name__)


class BodyError(RSDError, ValueError):
    """A body that is too large, or does not come."""


class AccessError(RSDError, PermissionError):
    """Who may not ask."""


STATUS = {  # by class of the error; anything else is the policy's failure
    MessageError: HTTPStatus.BAD_REQUEST,
    InstructionError: HTTPStatus.UNPROCESSABLE_ENTITY,
    UnknownSessionError: HTTPStatus.NOT_FOUND,
    StepError: HTTPStatus.CONFLICT,
    BodyError: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    DialectError: HTTPStatus.NOT_IMPLEMENTED,
    BusyError: HTTPStatus.SERVICE_UNAVAILABLE,
}


@dataclass
class Answer:
    """What is sent back.

    Attributes:
        body: Plain types and arrays.
        encoded: Whether it goes as a JSON text inside of JSON, as it was asked.
    """

    body: Any
    headers: dict[str, str] = field(default_factory=dict)
    encoded: bool = False


@dataclass(kw_only=True)
class Service:
    """What a policy answers, in plain types; knows no sockets.

    Attributes:
        policy: Shared by all sessions.
        dialects: How it is asked.
        space: What its actions mean; None where it does not say.
        seed: The run's: of requests without a session, and of sessions that bring none.
        clock: How late chunks are in a session.
        limits: What clients may ask for.
        about: What /info says beside the rest, JSON types.
        identity: What a client compares: "policy_hash", "space_digest".
    """

    policy: Batched
    dialects: Dialects
    space: Space | None
    seed: int
    clock: Clock
    limits: Limits
    about: dict[str, Any]
    identity: dict[str, Any]

    def __post_init__(self) -> None:
        bounds = LIMITS if self.space is None else self.space.limits
        self._bounds = bounds
        self.episodes = Episodes(
            lambda seed: Episode(self.policy, seed=seed, clock=self.clock, limits=bounds), self.limits
        )

    def info(self) -> Answer:
        return Answer(
            {
                **self.about,
                **self.identity,
                "space": None if self.space is None else describe_space(self.space),
                "limits": {"body_bytes": self.limits.body_bytes, "sessions": self.limits.sessions}
                | {"idle_s": self.limits.idle_s, "instruction": self.limits.instruction},
                "sessions": len(self.episodes),
                "last_call": self.policy.last_call,
            }
        )

    def begin(self, payload: Any) -> Answer:
        """Open a session."""
        seed = _map(payload).get("seed", self.seed)
        if type(seed) is not int or not 0 <= seed <= MAX_SEED:
            raise MessageError(f"seed is {in_short(repr(seed))}, expected a whole number from 0 to {MAX_SEED}")
        name = self.episodes.begin(seed)
        delay = {"delay": self.clock.delay, "idle_s": self.limits.idle_s}
        return Answer({SESSION: name, STEP: 0, "needs_observation": True, **delay, **self.identity})

    def end(self, name: str) -> Answer:
        return Answer({SESSION: name, **self.episodes.end(name)})

    def act(self, payload: Any) -> Answer:
        """The action or actions for one request."""
        request = _map(payload)
        encoded = "encoded" in request
        if encoded:
            if len(request) > 1 or not isinstance(request["encoded"], str):
                raise MessageError("'encoded' has to be the only key, and a JSON text")
            request = _map(parse_json(request["encoded"]))
        dialect = self.dialects.of(request)
        if SESSION in request:
            if dialect != OWN:
                raise MessageError(f"a request with {SESSION!r} has its pictures under 'images', {{view: picture}}")
            answer = self._step(request)
        else:
            answer = self._at_once(request, dialect)
        answer.encoded = encoded
        return answer

    def _step(self, request: dict[str, Any]) -> Answer:
        name, step = request[SESSION], request.get(STEP)
        if not isinstance(name, str) or type(step) is not int:
            raise MessageError(f"{SESSION} and {STEP} are a text and a whole number: {in_short([name, step])}")
        episode = self.episodes.find(name)
        start = time.perf_counter()
        acted = episode.answer(step, lambda: self.dialects.read(request, OWN))
        body = {**vars(acted), SESSION: name, "delay": self.clock.delay}
        return Answer(body, _headers(self.clock.delay, acted.age, acted.age_ms, start))

    def _at_once(self, request: dict[str, Any], dialect: str) -> Answer:
        start = time.perf_counter()
        observation = self.dialects.read(request, dialect)
        self.policy.check_instructions([observation.instruction])
        (chunk,) = self.policy.predict([Question(observation, self.seed)])
        headers = _headers(0, 0, 1000 * (time.perf_counter() - start), start)
        if dialect == OPENVLA:
            return Answer(self.dialects.standard(chunk)[0], headers)
        if dialect == OFT:
            return Answer(list(self.dialects.standard(chunk)), headers)
        return Answer(self._own(chunk), headers)

    def _own(self, chunk: Chunk) -> dict[str, Any]:
        actions = np.clip(chunk.actions, *self._bounds)
        if not np.isfinite(actions).all():
            raise ValueError("the chunk is not finite")
        return {"actions": actions, "num_steps": chunk.num_steps, "delay": 0, "age": 0, "latency_ms": chunk.latency_ms}


def describe_space(space: Space) -> dict[str, Any]:
    """A Space in JSON types: what each number of an action and of the proprio means, with units."""
    limits = None if np.isinf(space.limits).any() else list(space.limits)
    grippers = space.action.grippers
    parts = {"action": space.action, "proprio": space.proprio}
    known = UNITS.get((space.gripper, len(space.action)), {})
    if space.units:
        known = {**known, "action": space.units}
    return {
        "name": space.name,
        "digest": space.digest,
        "bounds": space.bounds,
        "limits": limits,
        "gripper": {"dims": list(grippers), "standard": "1 open, 0 closed", "to_robot": space.gripper},
        **{
            name: None
            if one is None
            else {
                "low": list(one.low),
                "high": list(one.high),
                "normalized": list(one.mask),
                "units": list(known[name]) if len(known.get(name, ())) == len(one) else ["as recorded"] * len(one),
            }
            for name, one in parts.items()
        },
    }


def make_app(service: Service, access: Access) -> FastAPI:
    """The routes."""
    app = FastAPI(title="rsd", docs_url=None, redoc_url=None, openapi_url=None)
    threads = ThreadPoolExecutor(service.limits.sessions, thread_name_prefix="rest")
    doors = _Doors(service.limits)

    async def answered(request: Request, work: Callable[[Any], Answer]) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        kind = MSGPACK if kind in MSGPACK_TYPES else JSON
        try:
            _admit(request, access)
            with doors.entered():
                body = await doors.read(request)
                try:
                    loop = asyncio.get_running_loop()
                    content = await loop.run_in_executor(threads, _worked, work, body, kind)
                finally:
                    doors.waiting -= len(body)
            return content
        except _RefusedError as refused:
            status, error = refused.status, AccessError(str(refused))
            return _error(status, error, kind)
        except RSDError as error:
            return _error(_status(error), error, kind)
        except ClientDisconnect:
            log.warning("a client left before its request was here")
            return Response(status_code=HTTPStatus.BAD_REQUEST)  # for nobody

    async def health(request: Request) -> Response:
        return Response("ok\n", media_type="text/plain")

    async def info(request: Request) -> Response:
        return await answered(request, lambda _: service.info())

    async def sessions(request: Request) -> Response:
        return await answered(request, service.begin)

    async def session(request: Request) -> Response:
        return await answered(request, lambda _: service.end(request.path_params["name"]))

    async def act(request: Request) -> Response:
        return await answered(request, service.act)

    async def lost(request: Request, error: Any) -> Response:
        what = f"{request.method} {in_short(request.url.path)}: {error.detail}; there are GET /health, GET /info, "
        return _said(error.status_code, "RouteError", what + "POST /sessions, DELETE /sessions/ID and POST /act", JSON)

    for status in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED):
        app.add_exception_handler(status, lost)
    app.add_route("/health", health, methods=["GET"])
    app.add_route("/info", info, methods=["GET"])
    app.add_route("/sessions", sessions, methods=["POST"])
    app.add_route("/sessions/{name}", session, methods=["DELETE"])
    app.add_route("/act", act, methods=["POST"])
    return app


async def serve(
    service: Service,
    *,
    host: str,
    port: int,
    ready: Callable[[int], None],
    access: Access | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Answer clients until told to stop or cancelled; then what came is answered, and this ends.

    Args:
        host, port: Where to listen; port 0 takes a free one.
        ready: Called with the port once clients can connect.
        access: Who may ask; by default whoever is no page in a browser.

    Raises:
        ServingError: the port is taken, or the host is not this machine's.
    """

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield  # whoever called `serve` says when it ends

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready(listening.getsockname()[1])

    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        why = error.strerror or error
        raise ServingError(f"cannot listen on {host}, port {port}: {why}; set host= or port=") from error
    config = uvicorn.Config(
        make_app(service, access or Access()),
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_keep_alive=int(min(service.limits.idle_s, 3600)) or 1,
        timeout_graceful_shutdown=int(GRACE_S),
        limit_concurrency=4 * service.limits.sessions + 16,
    )
    server = Server(config)

    async def watch() -> None:
        await (stop or asyncio.Event()).wait()
        log.info("ending: %d sessions are open", len(service.episodes))
        server.should_exit = True

    watching = asyncio.create_task(watch())
    try:
        await server.serve(sockets=[listening])
    finally:
        watching.cancel()
        listening.close()


class _RefusedError(RSDError):
    """Of `Access`."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Doors:
    """How many requests are inside, and how many bytes of them."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._inside, self.waiting = limits, 0, 0

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        if self._inside >= self._limits.sessions:
            raise BusyError(f"{self._inside} requests are being answered, as many as there may be; try again later")
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    async def read(self, request: Request) -> bytes:
        """The body; it counts as waiting from then on.

        Raises:
            BodyError: it is larger than it may be, or takes too long.
            BusyError: others have sent so much that there is no room for a large one.
        """
        largest, body, is_read = self._limits.body_bytes, bytearray(), False
        try:
            if int(request.headers.get("content-length") or 0) > largest:
                raise BodyError(
                    f"the body has {request.headers['content-length'][:20]} bytes, expected {largest} at most"
                )
            async with asyncio.timeout(BODY_S):
                async for some in request.stream():
                    body += some
                    self.waiting += len(some)
                    if len(body) > largest:
                        raise BodyError(f"the body has more than {largest} bytes; send smaller pictures")
                    if len(body) > USUAL_BYTES and self.waiting > self._limits.waiting_bytes:
                        raise BusyError("more than enough bytes of other clients wait here; try again later")
            is_read = True
        except TimeoutError:
            raise BodyError(f"the body did not come within {BODY_S:g} s") from None
        finally:
            if not is_read:
                self.waiting -= len(body)
        return bytes(body)


def _admit(request: Request, access: Access) -> None:
    headers = request.headers
    path = f"{request.url.path}?{request.url.query}"
    refused = access.refusal(path, headers.getlist("origin"), headers.getlist("authorization"))
    if refused is not None:
        log.warning("refused: %s", refused[1])
        raise _RefusedError(*refused)


def _worked(work: Callable[[Any], Answer], body: bytes, kind: str) -> Response:
    """The answer to a body, in a thread of its own."""
    try:
        payload = None if not body else unpack(body) if kind == MSGPACK else parse_json(body)
        answer = work(payload)
        if answer.encoded:
            text = dump_json(answer.body)
            answer.body = text
        content = pack(answer.body) if kind == MSGPACK else dump_json(answer.body).encode()
        return Response(content, media_type=kind, headers=answer.headers)
    except RSDError as error:
        if (status := _status(error)) < HTTPStatus.INTERNAL_SERVER_ERROR:
            log.warning("refused: %s", in_short(error))
        return _error(status, error, kind)
    except Exception as error:  # whatever a policy raises ends its prediction, and not the server
        log.exception("the policy failed")
        what = f"the policy failed: {type(error).__name__}: {error}"
        return _said(HTTPStatus.INTERNAL_SERVER_ERROR, "PolicyFailed", what, kind)


def _status(error: RSDError) -> HTTPStatus:
    return next((one for kind, one in STATUS.items() if isinstance(error, kind)), HTTPStatus.INTERNAL_SERVER_ERROR)


def _error(status: HTTPStatus, error: RSDError, kind: str) -> Response:
    return _said(status, type(error).__name__, str(error), kind)


def _said(status: int, name: str, message: str, kind: str) -> Response:
    body = {"error": name, "message": in_short(message)}
    content = pack(body) if kind == MSGPACK else dump_json(body).encode()
    return Response(content, status, media_type=kind)


def _map(payload: Any) -> dict[str, Any]:
    if payload is None:
        return {}
    if not isinstance(payload, dict):
        raise MessageError(f"the body is of type {type(payload).__name__}, expected a map")
    return payload


def _headers(delay: int, age: int | None, age_ms: float | None, start: float) -> dict[str, str]:
    """Delay and age in control steps, of the first action that is answered; no age where the robot stands still."""
    ages = {"Age": age, "Age-Ms": age_ms if age_ms is None else round(age_ms, 3)}
    told = {"Delay": delay, **ages, "Latency-Ms": round(1000 * (time.perf_counter() - start), 3)}
    return {HEADER + name: str(value) for name, value in told.items() if value is not None}
