"""An error as the one line that a user reads: this package's, Hydra's about the configuration, or the machine's."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from hydra.errors import HydraException, InstantiationException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from rsd.commands.run_folder import output_dir
from rsd.errors import RSDError
from rsd.files import in_words

# A command that makes what a message misses
HINT = re.compile(r"(python (?:train\.py phase=\w+|scripts/cache_hidden_states\.py))((?: \w+=[\w-]+)*)")
LOADER_DIED = re.compile(r"DataLoader worker \(pid.*\) (is killed by signal|exited unexpectedly)[^.]*")
NO_MEMORY = re.compile(r"out of memory|can't allocate memory")  # torch's words
REMEDIES = {  # Hydra's words, which advise a + before the key, → ours
    "Could not override 'accept'. No match in the defaults list.": "accept= is given, and nothing here accepts tokens; "
    "choose decoding=speculative, which brings accept along, or leave it out",
    "Could not override 'text.sentences.": "text.sentences is given, and text=words knows none; add text=sentence",
}
# What such a command takes over, of what was typed
REPEATED = ("model", "text", "quantizer", "data", "chunk", "paths", "visual_tokens")


class ProcessDiedError(RSDError, RuntimeError):
    """A process that a command started is gone."""


class NoMemoryError(RSDError, MemoryError):
    """What was asked for does not fit into this machine's memory, or its GPU's."""


def is_expected(error: BaseException) -> bool:
    """Whether an error speaks to the user: one of this package's, Hydra's about the configuration, or the machine's."""
    of_the_machine = isinstance(error, OSError) and error.errno is not None  # no room, no permission, no such folder …
    return of_the_machine or isinstance(error, RSDError | HydraException | OmegaConfBaseException)


def cause_of(error: BaseException) -> BaseException:
    """What a class raised in its constructor, out of the errors that Hydra wraps around it."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    return error


def as_expected(error: BaseException) -> BaseException:
    """The same error; where a data loader's process died, or there is no memory left, one that says what to do.

    torch raises both as RuntimeError, and anywhere.
    """
    if isinstance(error, RuntimeError) and (died := LOADER_DIED.search(str(error))):
        return ProcessDiedError(
            f"a process that loads data died ({died[0]}); memory may have run out: fewer num_workers"
        )
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and NO_MEMORY.search(str(error))):
        said = " ".join(str(error).split())[:300]
        return NoMemoryError(
            f"no memory is left ({said or 'MemoryError'}); a smaller batch, shorter chunk or smaller model needs less"
        )
    return error


def in_one_line(error: BaseException) -> str:
    """The message; Hydra's, which go over several lines, in one, and the machine's with the file that it is about."""
    if isinstance(error, RSDError):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None:  # some of Hydra's are of this kind, and without it
        return in_words(error, output_dir())
    if isinstance(error, OverrideParseException):  # whose words are the parser's
        remedy = "write key=value, and quotes of Hydra's own around a value that it cannot read: \"key='value'\""
        return f"{error.override!r} cannot be read; {remedy}"
    for words, remedy in REMEDIES.items():
        if words in str(error):
            return remedy
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else None
    return " ".join(" ".join(str(one).split()) for one in (error, cause) if one is not None)


def with_typed(message: str, overrides: Sequence[str]) -> str:
    """The message, its hint of a command completed with the groups and values that were typed."""
    typed = {one.partition("=")[0].lstrip("+"): one for one in overrides}
    data = {"data": f"data={typed['env'].partition('=')[2]}"} if "env" in typed else {}  # as conf/eval.yaml has it
    repeats = data | {key: one for key, one in typed.items() if key.partition(".")[0] in REPEATED}

    def completed(hint: re.Match[str]) -> str:
        own = {word.partition("=")[0]: word for word in hint[2].split()}
        known = {key: one for key, one in repeats.items() if "train.py" in hint[1] or not key.startswith("quantizer")}
        return " ".join([hint[1], *(shlex.quote(one) for one in (own | known).values())])

    return HINT.sub(completed, message)
