"""Instructions → prompt ids: the tokenizer of a published checkpoint, or a small vocabulary of words (SPEC §5).

Both keep OFT's scheme: BOS first, one fixed id that closes the prompt (29871 in Llama's vocabulary), then the caller
appends the K action placeholders and the stop token.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from tokenizers import Tokenizer

from rsd.checkpoint import CheckpointError
from rsd.errors import RSDError

BOS = 1  # also the placeholder at the action positions, whose embedding is zeroed
STOP = 2
LLAMA_PAD = 32000  # "<PAD>", added by OpenVLA
LLAMA_PROMPT_END = 29871  # the lone "▁"
PROMPT = "In: What action should the robot take to {instruction}?\nOut:"
VICUNA_PROMPT = (  # OpenVLA v0.1
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: What action should the robot take to {instruction}? ASSISTANT:"
)


class TextEncoder(Protocol):
    """One instruction in, prompt ids out (BOS … prompt end), without padding."""

    @property
    def pad_id(self) -> int: ...

    @property
    def example(self) -> str:
        """An instruction that the encoder knows."""

    def encode(self, instruction: str) -> list[int]: ...

    def to_json(self) -> dict[str, Any]:
        """What identifies the encoder: part of a base model's fingerprint."""


class LlamaText:
    """The Llama-2 tokenizer of a published checkpoint with OpenVLA's prompt.

    Reads tokenizer.json through the tokenizers library: the file holds the whole pipeline, BOS included.
    """

    pad_id = LLAMA_PAD
    example = "pick up the black bowl and place it on the plate"

    def __init__(self, directory: Path, prompt: str = PROMPT) -> None:
        self.prompt = prompt
        path = Path(directory) / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(f"{path} does not exist; copy the tokenizer files of the published checkpoint there")
        self.tokenizer = Tokenizer.from_file(str(path))
        self.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()

    def encode(self, instruction: str) -> list[int]:
        ids = self.tokenizer.encode(self.prompt.format(instruction=instruction.lower())).ids
        if ids[:1] != [BOS]:
            raise CheckpointError(f"the tokenizer starts a prompt with id {ids[:1]}, expected BOS ({BOS})")
        return ids if ids[-1] == LLAMA_PROMPT_END else [*ids, LLAMA_PROMPT_END]

    def to_json(self) -> dict[str, Any]:
        return {"prompt": self.prompt, "tokenizer_sha256": self.sha256}


class UnknownWordError(RSDError, ValueError):
    """An instruction with a word that the base model was not trained on."""


class WordText:
    """One id a word, from the instructions of a data set; no punctuation, no case, no prompt around them.

    A word outside the vocabulary is an error, not an <unk>: its embedding would be untrained, and a model that has seen
    a few tasks only would answer confidently and wrongly.
    """

    pad_id = 0
    PROMPT_END = 3
    FIRST_WORD = 4

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        self.ids = {word: self.FIRST_WORD + index for index, word in enumerate(self.words)}

    @classmethod
    def from_instructions(cls, instructions: Iterable[str]) -> WordText:
        """The vocabulary of these instructions, in alphabetical order."""
        return cls(sorted({word for instruction in instructions for word in split_words(instruction)}))

    @property
    def example(self) -> str:
        return " ".join(self.words[:4])

    @property
    def vocab_size(self) -> int:
        return self.FIRST_WORD + len(self.words)

    def encode(self, instruction: str) -> list[int]:
        words = split_words(instruction)
        unknown = [word for word in words if word not in self.ids]
        if unknown:
            raise UnknownWordError(
                f"instruction {instruction!r} has words {unknown} that the base model was not trained on; known words: "
                f"{list(self.words)}; train it on a data set with these tasks (train.py phase=oft)"
            )
        return [BOS, *(self.ids[word] for word in words), self.PROMPT_END]

    def to_json(self) -> dict[str, Any]:
        return {"words": list(self.words)}


def split_words(instruction: str) -> list[str]:
    """Lower-case runs of letters and digits, of any script."""
    return re.findall(r"[^\W_]+", instruction.lower())
