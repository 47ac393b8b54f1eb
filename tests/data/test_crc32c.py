"""CRC-32C against published check values, and the fast path against the byte-by-byte one."""

import numpy as np
import pytest

from rsd.data import crc32c as module
from rsd.data.crc32c import crc32c, masked_crc32c

WINDOW_BYTES = 8 * (module.WORDS_FULL + module.WORDS_STRIDE)
SIZES = [128, 129, 1000, 8 * module.WORDS_FULL + 1, 8 * (module.WORDS_FULL + module.WORDS_TARGETS[0]) + 5]


@pytest.mark.parametrize(
    ("data", "expected"),
    [(b"", 0), (b"123456789", 0xE3069283), (bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43)],
)
def test_published_values(data: bytes, expected: int):
    """RFC 3720, B.4."""
    assert crc32c(data) == expected


@pytest.mark.parametrize("size", [*SIZES, WINDOW_BYTES - 1, WINDOW_BYTES, WINDOW_BYTES + 9, 2 * WINDOW_BYTES + 3])
def test_folding_changes_nothing(size: int):
    data = np.random.default_rng(size).bytes(size)
    assert crc32c(data) == module._short(data)


def test_sparse_multiple_of_the_polynomial():
    """x^5685 + x^1362 + x^426 + 1 is 0 modulo the CRC's polynomial, here bit by bit."""
    polynomial, powers, value = 0x11EDC6F41, {}, 1
    for exponent in range(module.WORDS_FULL + 1):
        powers[exponent] = value
        value <<= 1
        value ^= polynomial if value >> 32 else 0
    exponents = [module.WORDS_FULL - target for target in module.WORDS_TARGETS]
    assert exponents == [1362, 426, 0]
    assert powers[module.WORDS_FULL] == powers[1362] ^ powers[426] ^ powers[0]


def test_mask():
    assert masked_crc32c(b"123456789") == ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) % 2**32
