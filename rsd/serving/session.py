"""One client's connection: its episode, its action queue, and an answer to each of its messages.

What surprises:
* The harness asks for one action a control step and sends pictures each time. So the action queue is here: a chunk is
  predicted from the pictures that come when the queue needs some; those in between are not even decoded.
* A client waits for an answer to hello and to observation only. An answer to anything else would be taken for that of
  the next observation, and all later ones would be off by one. So what is wrong with an episode_start is said when its
  first observation comes.
* A client that lost its connection reconnects silently in the middle of an episode. The queue went with the old
  connection, so the observation is answered with an error, and the episode counts as crashed rather than as failed.
"""

from __future__ import annotations

import logging
import statistics
import time
from typing import Any

import numpy as np

from rsd.clock import Clock
from rsd.evaluation.plan import episode_seed
from rsd.queue import NO_DELAY
from rsd.serving.episode import Episode
from rsd.serving.messages import (
    MessageError,
    ObservationReader,
    ProtocolVersionError,
    check_hello,
    encode_array,
    in_short,
    read_message,
    read_task,
)
from rsd.types import InstructionError, Policy

log = logging.getLogger(__name__)


class Session:
    """Answers the messages of one client.

    Args:
        policy: What predicts. Sessions that answer in several threads share a `rsd.serving.batching.Batched`.
        reader: What the policy needs of an observation.
        seed: The run's seed. From it follow the same seeds of episodes and chunks as in `eval.py`, whatever connection
            runs an episode, and whatever ran before.
        about: What the hello says of this server beside the protocol, msgpack types; the harness keeps it with results.
        clock: How late chunks are, and what the robot does meanwhile: for a client whose simulator waits.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        reader: ObservationReader,
        seed: int,
        about: dict[str, Any],
        clock: Clock = NO_DELAY,
    ) -> None:
        self._policy = policy
        self._clock = clock
        self._reader = reader
        self._seed = seed
        self._about = about
        self._greeted = False
        self._task: dict[str, Any] | None = None  # of the running episode
        self._why_no_task = "no episode_start came on this connection"
        self._running = Episode(policy, seed=seed, clock=clock)

    def answer(self, message: Any) -> dict[str, Any] | None:
        """The message to send back; None for one that needs no answer.

        Whatever is wrong with the message, or goes wrong in the policy, is answered with an error message and logged.

        Raises:
            ProtocolVersionError: the client speaks another protocol; the connection has to end.
        """
        try:
            kind, payload, seq = read_message(message)
        except MessageError as error:
            given = message.get("seq") if isinstance(message, dict) else None
            return self.refuse(error, given if isinstance(given, int) else 0)
        try:
            if kind == "hello":
                return _reply("hello", self._hello(payload), seq)
            if not self._greeted:
                raise MessageError(f"the first message is {kind!r}, expected 'hello' with the protocol's version")
            if kind == "observation":
                return _reply("action", {"actions": encode_array(self._act(payload))}, seq)
        except (MessageError, InstructionError) as error:
            return self.refuse(error, seq)
        except ProtocolVersionError:
            raise
        except Exception as error:  # whatever a policy raises ends its prediction, and not the connection
            log.exception("the policy failed in %s", self._episode())
            return _error(f"the policy failed: {type(error).__name__}: {error}", "PolicyFailed", seq)
        if kind == "episode_start":
            self._start(payload)
        elif kind == "episode_end":
            self._end(payload)
        else:
            log.error("the client reports: %s", in_short(payload))
        return None

    def refuse(self, error: MessageError | InstructionError, seq: int = 0) -> dict[str, Any]:
        """The error message for something that could not be understood; goes to the log as well."""
        log.warning("refused: %s", in_short(error))
        return _error(error, type(error).__name__, seq)

    def close(self) -> None:
        """The client is gone."""
        if self._task is not None:
            log.warning("the client left in the middle of %s", self._episode())

    def _hello(self, payload: dict[str, Any]) -> dict[str, Any]:
        check_hello(payload)
        self._greeted = True
        harness, benchmark = payload.get("harness_version"), payload.get("benchmark")
        log.info("harness %s, benchmark %s", in_short(harness), in_short(benchmark))
        return {**self._about, **self._reader.hello()}

    def _start(self, payload: dict[str, Any]) -> None:
        self._task = None
        try:
            self._task = read_task(payload)
        except MessageError as error:
            self._why_no_task = in_short(error)
            log.warning("the episode cannot start: %s", in_short(error))
            return
        seed = episode_seed(self._seed, self._task["task_id"], self._task["episode_idx"])
        self._running = Episode(self._policy, seed=seed, clock=self._clock)

    def _act(self, payload: dict[str, Any]) -> np.ndarray:
        """The next action, [A], float64; predicts a chunk when it is time for the next."""
        if self._task is None:
            raise MessageError(f"an observation came outside of an episode: {self._why_no_task}")
        if not self._running.needs_observation and "task_description" in payload:
            self._reader.read_instruction(payload)
        try:
            return self._running.act(lambda: self._reader.read(payload))  # those between are not decoded
        except InstructionError as error:  # said once, and before anything is computed
            log.error("%s ends before its first step: %s", self._episode(), in_short(error))
            self._task, self._why_no_task = None, f"the policy does not understand the last one: {in_short(error)}"
            raise

    def _end(self, payload: dict[str, Any]) -> None:
        queue = self._running.queue
        median = statistics.median(queue.latency_ms.get("total") or [0.0])
        log.info(
            "%s: %s after %s steps; %d chunks, %.1f ms each (median)",
            self._episode(),
            in_short(payload.get("metrics")),
            in_short(payload.get("steps")),
            queue.num_chunks,
            median,
        )
        self._task = None
        self._why_no_task = "the last episode has ended, and no episode_start came since"

    def _episode(self) -> str:
        if self._task is None:
            return "no episode"
        name = in_short(self._task["name"])
        return f"task {self._task['task_id']} init state {self._task['episode_idx']} ({name})"


def _reply(kind: str, payload: dict[str, Any], seq: int) -> dict[str, Any]:
    return {"type": kind, "payload": payload, "seq": seq, "timestamp": time.time()}


def _error(what: object, name: str, seq: int) -> dict[str, Any]:
    return _reply("error", {"error": in_short(what), "name": name}, seq)
