"""Instructions → prompt ids: a published checkpoint's tokenizer, a small vocabulary, or whole sentences (SPEC §5).

All keep OFT's scheme: BOS first, one fixed id that closes the prompt (29871 in Llama's vocabulary), then the caller
appends the K action placeholders and the stop token. Of a sentence the ids are placeholders, and a vector says it all.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tokenizers import Tokenizer
from torch import Tensor

from rsd.checkpoint import CheckpointError
from rsd.files import stranger
from rsd.types import InstructionError

if TYPE_CHECKING:
    from rsd.models.openvla.sentences import SentenceEncoder

SENTENCE_END = " .!?。！？\t\n"
SHOWN_ERRORS = 3
BOS = 1  # also the placeholder at the action positions, whose embedding is zeroed
STOP = 2
LLAMA_PAD = 32000  # "<PAD>", added by OpenVLA
LLAMA_PROMPT_END = 29871  # the lone "▁"
UNKNOWN = "<unk>"
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

    def vector(self, instruction: str) -> Tensor | None:
        """What a sentence encoder makes of the instruction, [E], float32; None where the ids say everything."""

    def without_words(self) -> list[int]:
        """Prompt ids of no instruction at all, which `encode` refuses: to see what a model does without one."""

    def piece(self, token: int) -> str:
        """A token as text, for people."""

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
        content = path.read_bytes()
        try:
            self.tokenizer = Tokenizer.from_buffer(content)
        except ValueError as error:  # all that the library says of what is none
            message = f"{path} is no tokenizer ({error}); copy it again"
            raise CheckpointError(stranger(path) or message) from error
        self.tokenizer.no_truncation()  # a file may keep what a training once cut its texts to
        self.tokenizer.no_padding()
        added = self.tokenizer.get_added_tokens_decoder().items()
        self._special = {self.tokenizer.token_to_id(UNKNOWN)} | {number for number, token in added if token.special}
        self._nothing = self._ids("")
        self.sha256 = hashlib.sha256(content).hexdigest()

    def encode(self, instruction: str) -> list[int]:
        """Ids of the prompt with this instruction.

        Raises:
            InstructionError: it is empty to the tokenizer, or has what is no word to it.
            CheckpointError: the tokenizer is not Llama's.
        """
        if not instruction.strip():
            raise InstructionError(f"instruction {instruction!r} is empty; say the task in words")
        ids = self._ids(instruction)
        if ids[:1] != [BOS]:
            raise CheckpointError(f"the tokenizer starts a prompt with id {ids[:1]}, expected BOS ({BOS})")
        if ids == self._nothing:
            raise InstructionError(f"instruction {instruction!r} encodes to nothing; say the task in words")
        if strange := [str(self.tokenizer.id_to_token(one)) for one in ids[1:] if one in self._special]:
            raise InstructionError(
                f"instruction {instruction!r} encodes to {sorted(set(strange))}, which is no word to the tokenizer of "
                "the base model; say the task in letters that it knows"
            )
        return ids if ids[-1] == LLAMA_PROMPT_END else [*ids, LLAMA_PROMPT_END]

    def vector(self, instruction: str) -> None:
        """See `TextEncoder`."""

    def without_words(self) -> list[int]:
        """See `TextEncoder`."""
        return self._nothing if self._nothing[-1] == LLAMA_PROMPT_END else [*self._nothing, LLAMA_PROMPT_END]

    def piece(self, token: int) -> str:
        """See `TextEncoder`."""
        return str(self.tokenizer.id_to_token(token)).replace("\u2581", " ")

    def _ids(self, instruction: str) -> list[int]:
        return self.tokenizer.encode(self.prompt.format(instruction=instruction.lower())).ids

    def to_json(self) -> dict[str, Any]:
        return {"prompt": self.prompt, "tokenizer_sha256": self.sha256}


class UnknownWordError(InstructionError):
    """An instruction with a word that the base model was not trained on."""


class WordText:
    """One id a word, from the instructions of a data set; no punctuation, no case, no prompt around them.

    A word outside the vocabulary is an error, not an <unk>: its embedding would be untrained, and a model that has seen
    a few tasks only would answer confidently and wrongly.

    Args:
        words: The vocabulary.
        instructions: What it was made from, if that is known: another instruction that encodes like one of them is an
            error. No part of what identifies the encoder.
    """

    pad_id = 0
    PROMPT_END = 3
    FIRST_WORD = 4

    def __init__(self, words: Sequence[str], instructions: Iterable[str] = ()) -> None:
        self.words = tuple(words)
        self.ids = {word: self.FIRST_WORD + index for index, word in enumerate(self.words)}
        self.instructions = tuple(sorted(set(instructions)))
        self._known = {tuple(split_words(instruction)): instruction for instruction in self.instructions}

    @classmethod
    def from_instructions(cls, instructions: Iterable[str], where: Mapping[str, str] | None = None) -> WordText:
        """The vocabulary of these instructions, in alphabetical order.

        Raises:
            InstructionError: one of them has no word, or two encode alike.
        """
        instructions = sorted(set(instructions))
        words = sorted({word for instruction in instructions for word in split_words(instruction)})
        check_instructions(cls(words), instructions, where)
        return cls(words, instructions)

    @property
    def example(self) -> str:
        return " ".join(self.words[:4])

    @property
    def vocab_size(self) -> int:
        return self.FIRST_WORD + len(self.words)

    def encode(self, instruction: str) -> list[int]:
        """Ids of the words.

        Raises:
            InstructionError: no word, or the words of another instruction that the model was trained on.
            UnknownWordError: words that it was not trained on.
        """
        words = split_words(instruction)
        if not words:
            raise InstructionError(f"instruction {instruction!r} has no word; say the task in letters or digits")
        unknown = [word for word in words if word not in self.ids]
        if unknown:
            raise UnknownWordError(
                f"instruction {instruction!r} has words {unknown} that the base model was not trained on; known words: "
                f"{list(self.words)}; train it on a data set with these tasks (train.py phase=oft)"
            )
        known = self._known.get(tuple(words), instruction)
        if sentence(known) != sentence(instruction):
            raise InstructionError(
                f"instruction {instruction!r} encodes like {known!r}, which the model was trained on; only letters "
                "and digits count: say the difference in words"
            )
        return [BOS, *(self.ids[word] for word in words), self.PROMPT_END]

    def vector(self, instruction: str) -> None:
        """See `TextEncoder`."""

    def without_words(self) -> list[int]:
        """See `TextEncoder`."""
        return [BOS, self.PROMPT_END]

    def piece(self, token: int) -> str:
        """See `TextEncoder`."""
        return self.words[token - self.FIRST_WORD] if token >= self.FIRST_WORD else "(end)"

    def to_json(self) -> dict[str, Any]:
        return {"words": list(self.words)}


class SentenceText:
    """The whole instruction as one vector of a frozen sentence encoder: any words, and paraphrases are nearly the same.

    The ids are the same for every instruction: BOS, `num_tokens` placeholders, the end of the prompt. What stands at
    the placeholders the model makes of the vector.

    Args:
        find: Gives the encoder; called when the first instruction is read, so that a model can be described without it.
        name, sha256: What the encoder is called in checkpoints, and its content's hash.
        num_tokens: Placeholders.
        source: What led to the encoder's files; see `sentences.Sentences`.
        instructions: What the model was trained on, if that is known; of these `example` is one.
    """

    pad_id = 0
    SENTENCE = 4
    vocab_size = 5

    def __init__(
        self,
        find: Callable[[], SentenceEncoder],
        *,
        name: str,
        sha256: str,
        num_tokens: int,
        source: str | None = None,
        instructions: Iterable[str] = (),
    ) -> None:
        self._find, self.name, self.sha256, self.num_tokens, self.source = find, name, sha256, num_tokens, source
        self.instructions = tuple(sorted(set(instructions)))

    @classmethod
    def of(cls, encoder: SentenceEncoder, num_tokens: int, instructions: Iterable[str] = ()) -> SentenceText:
        """With an encoder at hand."""
        own: dict[str, Any] = {"name": encoder.name, "sha256": encoder.sha256, "source": encoder.source}
        return cls(lambda: encoder, **own, num_tokens=num_tokens, instructions=instructions)

    @cached_property
    def encoder(self) -> SentenceEncoder:
        """The sentence encoder.

        Raises:
            CheckpointError: it is not to be found, or is another one.
        """
        return self._find()

    @property
    def width(self) -> int:
        """E, numbers of a vector."""
        return self.encoder.width

    @property
    def example(self) -> str:
        return self.instructions[0] if self.instructions else LlamaText.example

    def encode(self, instruction: str) -> list[int]:
        """BOS, placeholders, end.

        Raises:
            InstructionError: the encoder cannot read it.
        """
        self.vector(instruction)
        return [BOS, *[self.SENTENCE] * self.num_tokens, WordText.PROMPT_END]

    def vector(self, instruction: str) -> Tensor:
        """See `TextEncoder`."""
        return self.encoder(instruction)

    def without_words(self) -> list[int]:
        """See `TextEncoder`."""
        return [BOS, WordText.PROMPT_END]

    def piece(self, token: int) -> str:
        """See `TextEncoder`."""
        return "(sentence)" if token == self.SENTENCE else "(end)"

    def to_json(self) -> dict[str, Any]:
        return {"encoder": self.name, "sha256": self.sha256, "num_tokens": self.num_tokens}


def split_words(instruction: str) -> list[str]:
    """Lower-case runs of letters, digits and the marks on them, of any script, composed (NFC)."""
    words, word = [], ""
    for character in unicodedata.normalize("NFC", instruction.lower()):
        kind = unicodedata.category(character)[0]
        if kind in "LN" or (kind == "M" and word):  # vowel signs of many scripts are marks
            word += character
        elif word:
            words.append(word)
            word = ""
    return [*words, word] if word else words


def sentence(instruction: str) -> str:
    """An instruction without what is no difference: case, spaces, composition, and the end of the sentence."""
    return " ".join(unicodedata.normalize("NFC", instruction.lower()).rstrip(SENTENCE_END).split())


def check_instructions(text: TextEncoder, instructions: Iterable[str], where: Mapping[str, str] | None = None) -> None:
    """See that all of these instructions tell the base model something, and each something else.

    Args:
        where: Of each instruction, for messages: "3 episodes: 1, 2, 5".

    Raises:
        InstructionError: what is wrong, of all of them; UnknownWordError where nothing but unknown words is.
    """
    wrong: list[InstructionError] = []
    encoded: dict[tuple[float, ...], str] = {}
    for instruction in sorted(set(instructions)):
        place = f" ({where[instruction]})" if where and instruction in where else ""
        try:
            ids, vector = text.encode(instruction), text.vector(instruction)
        except InstructionError as error:
            wrong.append(type(error)(f"{error}{place}"))
            continue
        other = encoded.setdefault((*ids, *([] if vector is None else vector.tolist())), instruction)
        if sentence(other) != sentence(instruction):
            wrong.append(
                InstructionError(
                    f"instructions {other!r} and {instruction!r} encode alike{place}; the model could not tell them "
                    "apart: say the difference in words"
                )
            )
    if wrong:
        kind = UnknownWordError if all(isinstance(one, UnknownWordError) for one in wrong) else InstructionError
        more = f"; and {len(wrong) - SHOWN_ERRORS} more" if len(wrong) > SHOWN_ERRORS else ""
        raise kind("; ".join(map(str, wrong[:SHOWN_ERRORS])) + more)
