"""Processes that train together: which one speaks for all.

The process that the user started is the first one; its trainer starts the others with LOCAL_RANK in their environment.
"""

from __future__ import annotations

import os


def is_first_process() -> bool:
    """Whether this is the process that the user started; of several machines, on the first one."""
    return all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK"))


def say(text: str) -> None:
    """Print a line at once, so that it reaches a log while it is made; silent in all processes but the first."""
    if is_first_process():
        print(text, flush=True)
