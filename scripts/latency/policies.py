"""Part (b): which arms of a policy folder take part, on one device, and what is kept of them."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import rsd
from rsd.decoding import L1, Decoding, Hold, from_json
from rsd.errors import RSDError
from rsd.models.openvla import ExecutionError
from rsd.policy import VLAPolicy
from rsd.policy.folder import DRAFTS, read_record
from scripts.latency.arms import EAGER, RUNGS
from scripts.latency.replay import AGREEING, REFERENCE, TOLERANCE, Answers, Asked, Episodes, agreement, in_turn, record

DECODINGS = (REFERENCE, "speculative", "exit", "exit numbers", "early_exit", "temporal", "temporal 3", "hold 2")
LABEL = "released weights, recorded episodes"
WRITE_EVERY = 50  # rounds
FIRST = 2  # calls of an arm by itself, at which it is compiled and captured: with and without a past
LOAD_S, COMPILE_S = 2.0, 40.0  # what loading an arm takes, and compiling it


def chosen(name: str, entries: Mapping[str, dict[str, Any]]) -> tuple[str | Decoding, str | None]:
    """A decoding of the folder and its draft, by its name; or "hold N"; or "temporal N", the folder's with another
    number of chunks from one asking of the base model to the next; or "exit DRAFT", with another of its drafts.

    Args:
        entries: Decodings of policy.json.
    """
    word, _, count = name.partition(" ")
    if word == "hold" and count.isdigit():
        return Hold(num_repeats=int(count), full=L1()), None
    entry = entries.get(word, {})
    if word == "temporal" and entry and count.isdigit():
        options = {key: value for key, value in entry.items() if key not in ("draft", "target")}
        return from_json({**options, "max_unverified": int(count)}), entry.get("draft")
    if count in DRAFTS:
        return word, count
    return name, entry.get("draft")


class Policies:
    """Every decoding of a folder on one device; on a GPU on every rung of the ladder, with pictures prepared there.

    Args:
        folder: Of a policy.
        decodings: Names; `l1` comes first in any case.
        threads: Computing threads on the CPU; None leaves them as they are.
        text_source: Files of the sentence encoder, of a policy that reads sentences.
        left: Seconds until the last timed call may begin.
        report: Told of what happens.
    """

    def __init__(
        self,
        folder: Path,
        decodings: Sequence[str],
        episodes: Episodes,
        *,
        device: str,
        threads: int | None,
        text_source: str | None = None,
        left: Callable[[], float],
        report: Callable[[str], None],
    ) -> None:
        self.folder, self.episodes, self.left, self.report = folder, episodes, left, report
        self.rungs = RUNGS if torch.device(device).type == "cuda" else (EAGER,)
        self.options = {"device": device, "num_threads": threads, "canaries": False, "text_source": text_source}
        if len(self.rungs) > 1:
            self.options["pictures"] = "device"
        named = dict.fromkeys([REFERENCE, *decodings])
        self.arms = {f"{name}, {rung}": (name, rung) for rung in reversed(self.rungs) for name in named}
        self.entries = read_record(folder)["decodings"]

    def load(self, name: str, rung: str) -> VLAPolicy:
        """One arm.

        Raises:
            CheckpointError: the folder is no policy, or has no such decoding.
        """
        decoding, draft = chosen(name, self.entries)
        policy = rsd.load(self.folder, decoding=decoding, draft=draft, execution=rung, **self.options)
        assert isinstance(policy, VLAPolicy)
        return policy

    def measure(self, known: set[str], *, warmup: int, calls: int, write: Callable[[dict[str, Any]], None]) -> None:
        """Load the arms that are not known, and those of `l1`, and let them take turns; results as they come.

        Args:
            known: Names of arms that an earlier run has timed.
            calls: Of each at least; whole passes through the episodes are made.
            write: Keeps what is known so far.
        """
        per_pass = sum(map(len, self.episodes))
        calls = per_pass * math.ceil(calls / per_pass)
        wanted = [name for name, (decoding, _) in self.arms.items() if decoding == REFERENCE or name not in known]
        if known >= self.arms.keys():
            self.report("no arm is left that can be timed; --again forgets those that were")
            return
        ready: dict[str, VLAPolicy] = {}
        postponed: list[str] = []
        refused: dict[str, str] = {}
        failed: dict[str, str] = {}
        for name in wanted:
            decoding, rung = self.arms[name]
            if ready and self.left() < (LOAD_S if rung == EAGER else COMPILE_S):
                postponed.append(name)
                continue
            try:
                policy = self.load(decoding, rung)
                in_turn({name: policy}, self.episodes, warmup=FIRST, calls=0)  # compiles and captures
            except ExecutionError as error:
                refused[name] = str(error)
            except RSDError:
                raise
            except Exception:  # noqa: BLE001  the other arms are still worth their time; the run fails all the same
                failed[name] = traceback.format_exc()
            else:
                ready[name] = policy
            self.report(f"{name}: {'ready' if name in ready else (refused | failed)[name].splitlines()[-1]}")
        answers = Answers(self.folder, self.episodes, **self.options)
        self.report(f"{len(ready)} arms, {calls} calls each")

        def kept(made: dict[str, list[Asked]]) -> dict[str, Any]:
            return {
                "label": LABEL,
                "episodes": [len(one) for one in self.episodes],
                "warmup": warmup,
                "rounds": len(next(iter(made.values()))),
                "postponed": postponed,
                "refused": refused,
                "failed": failed,
                "arms": {name: self._record(name, ready[name], made, answers) for name in made},
            }

        def seen(made: dict[str, list[Asked]]) -> None:
            rounds = len(next(iter(made.values())))
            if rounds % WRITE_EVERY == 0 or rounds == calls or self.left() < 0:
                write(kept(made))
                self.report(f"{rounds} of {calls} calls each")

        in_turn(ready, self.episodes, warmup=warmup, calls=calls, left=self.left, seen=seen)

    def _record(self, name: str, policy: VLAPolicy, made: dict[str, list[Asked]], answers: Answers) -> dict[str, Any]:
        decoding, rung = self.arms[name]
        references = [made[one] for one, (other, _) in self.arms.items() if other == REFERENCE and one in made]
        fastest = min(references, key=lambda one: sum(asked.ms for asked in one))
        check = agreement(made[name], answers, policy.decoding, chosen(decoding, self.entries)[1])
        passed = check["agreeing"] >= AGREEING[rung]
        return {
            "decoding": decoding, "execution": rung, **record(made[name], fastest),
            "check": {**check, "limit": TOLERANCE, "least": AGREEING[rung], "passed": passed},
        }  # fmt: skip
