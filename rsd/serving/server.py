"""The websocket around sessions: bytes in, bytes out.

What surprises:
* No keep-alive pings: the harness's client steps its simulator in the thread that would answer them.
* One message at a time, whoever sent it: there is one policy. It works in a thread, so that connecting and /health are
  answered meanwhile; with several clients, each waits for the others' predictions.
* `GET /health` on the same port answers 200 once the policy is loaded; the harness's tools wait for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from rsd.errors import RSDError
from rsd.serving.messages import MessageError, ProtocolVersionError
from rsd.serving.session import Session

MAX_MESSAGE_BYTES = 16 * 2**20  # two raw pictures of 256 pixels are 0.4 MB
UNSUPPORTED = 1002  # close code "protocol error"; its reason may have up to 123 bytes

log = logging.getLogger(__name__)


class ServingError(RSDError, RuntimeError):
    """The server cannot run."""


async def serve(make_session: Callable[[], Session], *, host: str, port: int, ready: Callable[[int], None]) -> None:
    """Answer clients until cancelled; every connection gets a session of its own.

    Args:
        make_session: Called once a connection.
        host, port: Where to listen; port 0 takes a free one.
        ready: Called with the port once clients can connect.

    Raises:
        ServingError: the packages for it are not installed, the port is taken, or the host is not this machine's.
    """
    try:
        import msgpack
        from websockets.asyncio.server import serve as listen
        from websockets.exceptions import ConnectionClosed
    except ImportError as error:
        raise ServingError(f"serving needs {error.name}; install it with: pip install -e '.[harness]'") from error

    one_at_a_time = asyncio.Lock()

    async def handle(connection: Any) -> None:
        session = make_session()
        try:
            async for data in connection:
                answer: dict[str, Any] | None
                try:
                    message = msgpack.unpackb(data)
                except (ValueError, TypeError) as error:  # msgpack's own errors are ValueErrors
                    answer = session.refuse(MessageError(f"a message of {len(data)} bytes is not msgpack: {error}"))
                else:
                    async with one_at_a_time:
                        answer = await asyncio.to_thread(session.answer, message)
                if answer is not None:
                    await connection.send(msgpack.packb(answer))
        except ProtocolVersionError as error:
            log.warning("refused: %s", error)
            await connection.close(UNSUPPORTED, str(error))  # the client shows a reason, but no answer to its hello
        except ConnectionClosed as error:
            log.warning("a connection broke: %s", error)
        finally:
            session.close()

    try:
        server = await listen(
            handle,
            host,
            port,
            process_request=_health,
            compression=None,
            max_size=MAX_MESSAGE_BYTES,
            ping_interval=None,
        )
    except OSError as error:
        raise ServingError(f"cannot listen on {host}, port {port}: {error.strerror}; set host= or port=") from error
    async with server:
        ready(server.sockets[0].getsockname()[1])
        await server.serve_forever()


def _health(connection: Any, request: Any) -> Any:
    """Answer GET /health; None lets the websocket's handshake go on."""
    return connection.respond(HTTPStatus.OK, "ok\n") if request.path == "/health" else None
