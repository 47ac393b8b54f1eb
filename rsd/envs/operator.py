"""The person beside a real robot: arranges the scene, says when it is ready, and whether an episode succeeded.

What surprises first: a question is a whole line, because the evaluation's live table shows nothing shorter. Nothing is
ever asked where no terminal is: `check_terminal` says so before an evaluation begins. While somebody is asked,
simulator_timeout_s does not count.
"""

from __future__ import annotations

import select
import sys
from collections.abc import Sequence

from rsd.errors import RSDError, SettingError
from rsd.silence import give_time

YES, NO = ("y", "yes"), ("n", "no")
SOLVED = "s"  # typed in the middle of an episode


class OperatorError(RSDError, RuntimeError):
    """The terminal is gone, and with it whoever would answer."""


def check_terminal() -> None:
    """See that somebody can be asked.

    Raises:
        SettingError: standard input is no terminal.
    """
    if not sys.stdin.isatty():
        raise SettingError(
            "env=widowx asks a person to arrange the scene and whether an episode succeeded, and standard input is no "
            "terminal; run it in one (tmux, ssh -t)"
        )


class Operator:
    """Asks on the terminal."""

    def wait_until_ready(self, instruction: str, init_state_id: int) -> None:
        """Return once the scene is arranged for an episode."""
        self._ask(f"Episode {init_state_id + 1}: {instruction!r}. Arrange the scene, then press Enter.")
        print(f"It runs. {SOLVED} and Enter: solved, it ends. Ctrl-C: stop the evaluation.", flush=True)

    def says_solved(self) -> bool:
        """Whether somebody has typed so since the last question; waits for nobody."""
        lines = self._typed()
        if "" in lines:
            raise OperatorError("standard input has ended in the middle of an episode; resume in a terminal")
        return any(line.strip().lower() == SOLVED for line in lines)

    def judge(self, instruction: str) -> bool:
        """Whether the episode that has just ended was a success."""
        answers: Sequence[str] = (*YES, *NO)
        answer = self._ask(f"The episode has ended. Was {instruction!r} done? Type y or n, then Enter.")
        while answer not in answers:
            answer = self._ask(f"{answer!r} is no answer; type y or n, then Enter.")
        return answer in YES

    @staticmethod
    def _typed() -> list[str]:
        """Lines that were typed and nobody has read; "" at last where standard input has ended."""
        lines: list[str] = []
        while "" not in lines and select.select([sys.stdin], [], [], 0)[0]:
            lines.append(sys.stdin.readline())
        return lines

    def _ask(self, question: str) -> str:
        """What is typed as the answer, in small letters; not what was typed before: it would set the arm in motion."""
        give_time()
        self._typed()
        print(question, flush=True)
        line = sys.stdin.readline()
        if not line:
            raise OperatorError("standard input has ended, and nobody can be asked; resume in a terminal")
        return line.strip().lower()
