"""Processes that train together, forked from a test: each has all modules, so that they cost seconds."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch


def run_ranks(function: Callable[..., Any], *arguments: Any, num_ranks: int = 2, timeout_s: float = 900) -> list[Any]:
    """What `function(*arguments)` returns, or raises as a text, in each of so many processes over gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in range(num_ranks)]
    started = [
        context.Process(target=_rank, args=(rank, num_ranks, port, pipe[1], function, arguments))
        for rank, pipe in enumerate(pipes)
    ]
    for process in started:
        process.start()
    for _, sent in pipes:
        sent.close()
    try:
        return [_received(pipe[0], process, timeout_s) for pipe, process in zip(pipes, started, strict=True)]
    finally:
        for process in started:
            process.join(timeout=5)
            process.kill()


def _received(pipe: Any, process: Any, timeout_s: float) -> Any:
    if not pipe.poll(timeout_s):
        return f"no answer after {timeout_s} s"
    try:
        return torch.load(io.BytesIO(pipe.recv_bytes()), weights_only=True)
    except EOFError:
        process.join()
        return f"ended with {process.exitcode}"


def _rank(rank: int, num_ranks: int, port: int, pipe: Any, function: Callable[..., Any], arguments: Any) -> None:
    names = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": num_ranks, "NODE_RANK": 0}
    os.environ.update({name: str(value) for name, value in (names | {"LOCAL_RANK": rank}).items()})
    try:
        answer = function(*arguments)
    except BaseException as error:  # noqa: BLE001  told to the test
        with contextlib.suppress(OSError):  # a test may have left no room for what is captured either
            traceback.print_exc()
        answer = f"{type(error).__name__}: {error}"
    written = io.BytesIO()
    torch.save(answer, written)  # tensors would be shared through memory that ends with this process
    pipe.send_bytes(written.getvalue())
    pipe.close()
    os._exit(0)  # what the test's own process registered for its end is not this one's
