"""FAST's idea (arXiv 2501.09747): a DCT over the steps, rounding, and byte pairs over the coefficients.

An implementation of our own: FAST's processor is code on a model hub and no package of an index. Scale 10 and 1024
tokens are its published choices; so is the order, low frequencies of all dims first. What surprises first: chunks have
unequal numbers of tokens, and a code has one stage, since a prefix of pairs is no prefix of frequencies.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from tokenizers import Tokenizer, models, trainers
from torch import Tensor

from rsd.arena.contract import Written
from rsd.tokenizer.transform import dct_matrix

SCALE = 10.0  # steps of 0.1 in the orthonormal coefficients
VOCABULARY = 1024
FIRST = 0x4E00  # letter of the smallest coefficient: from here on thousands are letters, and none is a space
RANGE = 8192  # letters


class BytePairs:
    """DCT, rounding, byte pairs; all dims, the gripper too."""

    name, idea, num_stages = "fast", "DCT, rounding, byte pairs (FAST's idea)", 1

    def __init__(self, chunk_length: int, action_dim: int) -> None:
        self._shape = (chunk_length, action_dim)
        self._basis = dct_matrix(chunk_length).float()  # [T, T]

    def fit(self, chunks: Tensor, *, seed: int, max_steps: int | None) -> int:
        coefficients = self._coefficients(chunks)
        self._low = int(coefficients.min())
        self._high = min(int(coefficients.max()), self._low + RANGE - 1)
        self._pairs = Tokenizer(models.BPE())
        alphabet = [chr(FIRST + value) for value in range(self._high - self._low + 1)]
        trainer = trainers.BpeTrainer(
            vocab_size=max(VOCABULARY, len(alphabet)), initial_alphabet=alphabet, special_tokens=[], show_progress=False
        )
        self._pairs.train_from_iterator(self._texts(coefficients), trainer)
        spelled = (self._pairs.id_to_token(token) or "" for token in range(self._pairs.get_vocab_size()))
        self._letters = [np.array([ord(letter) for letter in word]) - FIRST + self._low for word in spelled]
        return 0

    def _coefficients(self, chunks: Tensor) -> np.ndarray:
        """[N, T, A] → [N, T*A], integers, low frequencies first."""
        return torch.round(SCALE * (self._basis @ chunks)).flatten(1).numpy().astype(np.int64)

    def _texts(self, coefficients: np.ndarray) -> list[str]:
        letters = coefficients.clip(self._low, self._high) - self._low + FIRST
        return ["".join(map(chr, row)) for row in letters]

    def encode(self, chunks: Tensor) -> list[list[int]]:
        return [one.ids for one in self._pairs.encode_batch(self._texts(self._coefficients(chunks)))]

    def decode(self, code: Sequence[Sequence[int]], depth: int) -> Tensor:
        spelled = np.concatenate([self._letters[token] for token in itertools.chain.from_iterable(code)])
        coefficients = torch.from_numpy(spelled).float().view(len(code), *self._shape) / SCALE
        return self._basis.T @ coefficients

    def written(self, code: Sequence[Sequence[int]]) -> Written:
        longest = max(map(len, code))
        tokens = torch.tensor([[*one, *[-1] * (longest - len(one))] for one in code])
        size = self._pairs.get_vocab_size()
        return Written(tokens, torch.zeros(longest).long(), torch.full((longest,), size), aligned=False)

    def tail_bound(self, depth: int) -> Tensor | None:
        return torch.zeros(self._shape)
