"""What a check found, wherever it looked: at the machine, the simulator, a data set or a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OK: Literal["ok"] = "ok"
WARNING: Literal["warning"] = "warning"
FAILED: Literal["FAILED"] = "FAILED"


@dataclass(frozen=True)
class Finding:
    """One check.

    Attributes:
        name: What was looked at.
        status: OK, WARNING or FAILED.
        found: What was found, in words.
        remedy: What repairs it; said where it is not ok.
    """

    name: str
    status: Literal["ok", "warning", "FAILED"]
    found: str
    remedy: str = ""

    @property
    def passed(self) -> bool:
        """Whether it has not failed; a warning passes."""
        return self.status != FAILED

    @property
    def text(self) -> str:
        """What was found, and the remedy where one is needed."""
        return self.found if self.status == OK or not self.remedy else f"{self.found}; {self.remedy}"


def judged(name: str, passed: bool, found: str, remedy: str = "") -> Finding:
    """A finding that is either OK or FAILED."""
    return Finding(name, OK if passed else FAILED, found, remedy)
