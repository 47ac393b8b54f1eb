"""Which of the processes that train together is gone: what breaks says only that a connection was reset."""

from __future__ import annotations

import re
import subprocess
import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from rsd.errors import RSDError

LOST = re.compile(r"connection (closed|reset)|broken pipe|remote (process|peer)|timed? ?out|socket", re.IGNORECASE)
WAIT_S = 3.0  # for a process that is ending to have ended


class RankError(RSDError, RuntimeError):
    """Another process of this training is gone."""


class SameRanks(Callback):
    """Holds a resumed training to the number of processes that began it, which trainer.devices=-1 does not say."""

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["world_size"] = trainer.world_size

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        require_ranks(checkpoint.get("world_size", trainer.world_size), trainer.world_size)


def require_ranks(stored: int, present: int) -> None:
    """See that a state is of as many processes as there are.

    Raises:
        RankError: it is not.
    """
    if stored != present:
        raise RankError(
            f"the run to resume was trained by {stored} processes, and here are {present}, with which a step has "
            f"another batch; set trainer.devices={stored}, or start anew"
        )


def lost_rank(trainer: Trainer, error: RuntimeError, *, go_on: str) -> RankError | None:
    """What to raise instead of an error that another process caused by ending; None where it is this one's own.

    Args:
        trainer: The trainer that raised it.
        error: What broke a step: out of memory, say, or a connection to another process.
        go_on: The command that goes on from the last stored state.
    """
    if trainer.world_size == 1:
        return None
    started = getattr(trainer.strategy.launcher, "procs", [])  # rank 1 first; the first process alone knows them
    ended = _ended(started) if LOST.search(str(error)) else {}
    if ended:
        gone = ", ".join(f"rank {rank} of {trainer.world_size} ended with {code}" for rank, code in ended.items())
        return RankError(f"{gone} (-9: killed, by the system where memory ran out); go on with: {go_on}")
    if not started and LOST.search(str(error)):
        return RankError(f"rank {trainer.global_rank} of {trainer.world_size} lost another one; go on with: {go_on}")
    return None


def _ended(started: list[subprocess.Popen[bytes]]) -> dict[int, int]:
    """Rank and exit status of the processes that have ended, waited for a while."""
    until = time.monotonic() + WAIT_S
    while not any(process.poll() is not None for process in started) and time.monotonic() < until:
        time.sleep(0.05)
    codes = {rank: process.poll() for rank, process in enumerate(started, 1)}
    return {rank: code for rank, code in codes.items() if code is not None}
