"""The websocket around sessions: bytes in, bytes out.

What surprises:
* No keep-alive pings: the harness's client steps its simulator in the thread that would answer them.
* One message is unpacked at a time, whoever sent it; each is answered in a thread, so that connecting and /health are
  answered meanwhile. What several clients wait for is predicted in one call (`rsd.serving.batching`).
* A message may come in a million fragments of a byte or of none, and pings are answered to a client that never reads:
  one connection would take all the time or memory. Both are bounded, and the connection is closed.
* Many clients may send large messages at once. Of what all of them have sent and waits there is a largest amount; the
  client that is sending most is then asked to try again later, never one with a message of a usual size.
* Told to stop, it answers what it has begun to answer, and then says to each client that it goes away.
* `GET /health` on the same port answers 200 once the policy is loaded; the harness's tools wait for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any

from rsd.errors import RSDError
from rsd.serving.access import Access
from rsd.serving.encoding import pack, unpack
from rsd.serving.limits import Limits
from rsd.serving.messages import MessageError, ProtocolVersionError
from rsd.serving.session import Session

MAX_QUEUED_FRAMES = 2  # of a connection, before it is read no further
MAX_FRAGMENTS = 1000  # of a message, whatever their size
MIN_FRAGMENT_BYTES = 64  # on average, where there are more of them
MAX_UNREAD_BYTES = 2**20  # that a client was sent and did not read; more than an answer has
USUAL_BYTES = 2**20  # a client that sends no more is not turned away for what others send
CLOSE_S = 2.0  # that a client has to agree to the end of its connection
GOING_AWAY = 1001  # close code
UNSUPPORTED = 1002  # close code "protocol error"
TRY_LATER = 1013  # close code "try again later"
GRACE_S = 30.0  # that answers have that were begun when the server was told to stop
LEAVE_S = 1.0  # between the reason for an end and the end, for a client that goes on sending
MAX_REASON_BYTES = 123  # of a close frame

log = logging.getLogger(__name__)


class ServingError(RSDError, RuntimeError):
    """The server cannot run."""


class FragmentsError(RSDError):
    """A client cuts its messages too small; what else it sends is not waited for."""


async def serve(
    make_session: Callable[[], Session],
    *,
    host: str,
    port: int,
    ready: Callable[[int], None],
    access: Access | None = None,
    limits: Limits | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Answer clients until told to stop or cancelled; every connection gets a session of its own.

    Args:
        make_session: Called once a connection.
        host, port: Where to listen; port 0 takes a free one.
        ready: Called with the port once clients can connect.
        access: Who may connect; by default whoever is no page in a browser.
        limits: What clients may ask for.
        stop: Once it is set, what is being answered is, and then this ends.

    Raises:
        ServingError: the packages for it are not installed, the port is taken, or the host is not this machine's.
    """
    try:
        import msgpack  # noqa: F401  the encoding needs it
        from websockets.asyncio.server import ServerConnection
        from websockets.asyncio.server import serve as listen
        from websockets.exceptions import ConnectionClosed, ConnectionClosedOK
        from websockets.frames import DATA_OPCODES, Frame
        from websockets.protocol import OPEN
    except ImportError as error:
        raise ServingError(f"serving needs {error.name}; install it with: pip install -e '.[harness]'") from error

    allowed = limits or Limits()

    class Connection(ServerConnection):
        """Ends when its client sends, pings for example, and does not read what it is answered.

        Attributes:
            unanswered: Bytes in whole frames that came, and are not answered yet.
            in_turn: Of them, those of the message that is being answered or waits for that.
        """

        unanswered = 0
        in_turn = 0

        @property
        def waiting(self) -> int:
            """Bytes that came, and are not answered yet; of a connection at its end those in turn alone."""
            arrived = self.unanswered + len(self.protocol.reader.buffer)
            return arrived if self.protocol.state is OPEN else self.in_turn

        @property
        def arriving(self) -> int:
            """Bytes of messages that are still being sent, or wait behind another of this client."""
            return self.waiting - self.in_turn

        def process_event(self, event: Any) -> None:
            super().process_event(event)
            if isinstance(event, Frame) and event.opcode in DATA_OPCODES:
                self.unanswered += len(event.data)

        def turn_away(self) -> None:
            """Close it with a reason, whatever its client does."""
            reason = f"the messages that wait here are more than {allowed.waiting_bytes >> 20} MB; try again later"
            self.protocol.fail(TRY_LATER, reason)
            self.send_data()
            asyncio.get_running_loop().call_later(LEAVE_S, self.transport.abort)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            make_room()
            if self.transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
                log.warning("a client does not read its answers; its connection is closed")
                self.transport.abort()

    clients: set[Connection] = set()

    def make_room() -> None:
        while clients and sum(one.waiting for one in clients) > allowed.waiting_bytes:
            largest = max(clients, key=lambda one: one.arriving)
            if largest.arriving <= USUAL_BYTES:
                return
            largest.turn_away()

    one_at_a_time = asyncio.Lock()
    admitted, ending = access or Access(), stop or asyncio.Event()
    threads = ThreadPoolExecutor(allowed.sessions, thread_name_prefix="session")

    def admit(connection: Any, request: Any) -> Any:
        """Answer GET /health and whoever may not connect; None lets the websocket's handshake go on."""
        if request.path == "/health":
            return connection.respond(HTTPStatus.OK, "ok\n")
        headers = request.headers
        refused = admitted.refusal(request.path, headers.get_all("Origin"), headers.get_all("Authorization"))
        if refused is None and len(clients) >= allowed.sessions:
            refused = (
                HTTPStatus.SERVICE_UNAVAILABLE,
                (f"{len(clients)} clients are connected, as many as there may be (limits.sessions); try again later"),
            )
        if refused is None:
            return None
        log.warning("refused: %s", refused[1])
        return connection.respond(refused[0], f"{refused[1]}\n")

    async def handle(connection: Any) -> None:
        session = make_session()

        def answer(message: Any) -> bytes | None:
            refused = isinstance(message, MessageError)
            reply = session.refuse(message) if refused else session.answer(message)
            return None if reply is None else pack(reply)

        clients.add(connection)
        try:
            if len(clients) > allowed.sessions:  # of those whose handshakes were under way together
                await connection.close(TRY_LATER, "as many clients are connected as there may be; try again later")
            while not ending.is_set():
                async with asyncio.timeout(allowed.idle_s):
                    data = await _receive(connection)
                connection.in_turn = len(data) if isinstance(data, bytes) else len(data.encode())
                async with one_at_a_time:
                    message = await asyncio.to_thread(_unpacked, data)
                del data  # not to be kept while the next one is waited for
                reply = await asyncio.get_running_loop().run_in_executor(threads, answer, message)
                del message
                connection.unanswered -= connection.in_turn
                connection.in_turn = 0
                if reply is not None:
                    await connection.send(reply)
            await connection.close(GOING_AWAY, "the server ends")
        except TimeoutError:
            log.warning("no message came for %g s; the connection is closed", allowed.idle_s)
            await connection.close(GOING_AWAY, f"no message came for {allowed.idle_s:g} s")
        except ConnectionClosedOK:
            pass
        except (ProtocolVersionError, FragmentsError) as error:
            log.warning("refused: %s", error)
            reason = str(error).encode()[:MAX_REASON_BYTES].decode(errors="ignore")
            await connection.close(UNSUPPORTED, reason)  # the client shows a reason, but no answer to its hello
        except ConnectionClosed as error:
            log.warning("a connection broke: %s", error)
        finally:
            clients.discard(connection)
            session.close()

    try:
        server = await listen(
            handle,
            host,
            port,
            process_request=admit,
            compression=None,
            max_size=allowed.body_bytes,
            max_queue=MAX_QUEUED_FRAMES,
            ping_interval=None,
            close_timeout=CLOSE_S,
            create_connection=Connection,
        )
    except OSError as error:
        raise ServingError(f"cannot listen on {host}, port {port}: {error.strerror}; set host= or port=") from error
    try:
        ready(server.sockets[0].getsockname()[1])
        await ending.wait()
        log.info("ending: %d clients are connected", len(clients))
        server.close(close_connections=False)
        await asyncio.gather(*(one.close(GOING_AWAY, "the server ends") for one in clients if not one.in_turn))
        async with asyncio.timeout(GRACE_S):
            await server.wait_closed()
    except TimeoutError:
        log.warning("some answers took more than %g s, and are not given", GRACE_S)
    finally:
        server.close()
        await server.wait_closed()
        threads.shutdown(wait=False, cancel_futures=True)


def _unpacked(data: bytes | str) -> Any:
    """The message, or the error that says why it is none."""
    try:
        return unpack(data)
    except MessageError as error:
        return error


async def _receive(connection: Any) -> bytes | str:
    """The next message, its fragments put together as they come: there may be many thousands of them.

    Raises:
        FragmentsError: there are too many for what they hold.
    """
    data, text, count = bytearray(), False, 0
    async for fragment in connection.recv_streaming():
        text = isinstance(fragment, str)
        data += fragment.encode() if text else fragment
        count += 1
        if count > MAX_FRAGMENTS and len(data) < count * MIN_FRAGMENT_BYTES:
            raise FragmentsError(f"a message came in {count} fragments of {len(data)} bytes; send it in fewer")
    return data.decode() if text else bytes(data)
