"""A REST server in a thread of this process."""

from __future__ import annotations

import asyncio
import queue
import threading
from contextlib import contextmanager

import pytest

from rsd.clock import Clock
from rsd.serving.batching import Batched
from rsd.serving.dialects import Dialects
from rsd.serving.limits import Limits
from tests.serving.policies import SIZE

REASON = "needs pip install -e '.[serve]'"
IDENTITY = {"policy_hash": "ab" * 32, "space_digest": "123456789abc"}


@contextmanager
def rest_server(policy, *, access=None, limits=None, clock=None, max_batch=8, port=0, identity=IDENTITY, stop=None):
    """Its address, and the service behind it."""
    pytest.importorskip("fastapi", reason=REASON)
    pytest.importorskip("uvicorn", reason=REASON)
    from rsd.serving.rest import Service, serve

    limits, space = limits or Limits(), getattr(policy, "space", None)
    shared = Batched(policy, max_batch=max_batch)
    service = Service(
        policy=shared,
        dialects=Dialects(
            views=policy.contract.views,
            image_size=SIZE,
            proprio_dim=policy.contract.proprio_dim,
            max_instruction=limits.instruction,
            space=space,
        ),
        space=space,
        seed=7,
        clock=clock or Clock(),
        limits=limits,
        about={"model_server": "rsd", "policy": {"decoding": "Telling", "views": list(policy.contract.views)}},
        identity=identity,
    )
    started: queue.Queue = queue.Queue()

    async def main():
        end = asyncio.Event()

        def ready(found):
            started.put((asyncio.get_running_loop(), end, found))

        try:
            await serve(service, host="127.0.0.1", port=port, ready=ready, access=access, stop=end)
        except BaseException as error:  # noqa: BLE001  the test is to see it
            started.put(error)

    thread = threading.Thread(target=asyncio.run, args=[main()])
    thread.start()
    found = started.get(timeout=60)
    if isinstance(found, BaseException):
        thread.join()
        raise found
    loop, end, port = found
    try:
        yield f"http://127.0.0.1:{port}", service
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join()
        shared.close()
