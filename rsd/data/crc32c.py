"""CRC-32C (Castagnoli), the checksum of TFRecord files, at memory speed in numpy.

What surprises first: most of the work is done by three XORs. A message is a polynomial over GF(2), and the checksum its
remainder modulo the CRC's polynomial P. x^5685 + x^1362 + x^426 + 1 is a multiple of P, and so is its 64th power, whose
exponents are whole 64-bit words. A leading word may therefore be dropped if it is XORed into the words 5685 - 1362,
5685 - 426 and 5685 places further on. What remains in the end is short and goes through a table.
"""

from __future__ import annotations

import functools

import numpy as np

POLYNOMIAL = 0x82F63B78  # reflected, RFC 3720
WORDS_FULL = 5685  # exponents of the sparse multiple of P, in 64-bit words
WORDS_TARGETS = (5685 - 1362, 5685 - 426, 5685)  # where a dropped word goes
LANE_BYTES = 64  # what remains is cut into lanes of this size, which run side by side


@functools.cache
def _byte_table() -> np.ndarray:
    """Remainder of each single byte, [256], uint32."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> 1) ^ np.where(table & 1, np.uint32(POLYNOMIAL), np.uint32(0))
    return table


@functools.cache
def _lane_tables() -> list[list[int]]:
    """What a register becomes after LANE_BYTES zero bytes, per byte of the register, [4][256]."""
    table = _byte_table()
    register = np.arange(256, dtype=np.uint32) << np.uint32(8) * np.arange(4, dtype=np.uint32)[:, None]  # [4, 256]
    for _ in range(LANE_BYTES):
        register = table[register & 0xFF] ^ (register >> 8)
    return register.tolist()


@functools.cache
def _byte_list() -> list[int]:
    return _byte_table().tolist()


def _short(data: bytes | memoryview) -> int:
    table, crc = _byte_list(), 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _fold(words: np.ndarray) -> np.ndarray:
    """Drop leading words of a message, uint64, until fewer than about WORDS_FULL remain. Changes its argument."""
    start, end = 0, len(words) - WORDS_FULL
    while start < end:
        size = min(WORDS_TARGETS[0], end - start)  # a block must not fold into itself
        block = words[start : start + size]
        for target in WORDS_TARGETS:
            words[start + target : start + target + size] ^= block
        start += size
    return words[start:]


def crc32c(data: bytes | bytearray | memoryview) -> int:
    """CRC-32C of a buffer."""
    size = len(data)
    if size < 2 * LANE_BYTES:
        return _short(data)
    padding = -size % LANE_BYTES  # leading zeros do not change a remainder
    message = np.empty(size + padding, dtype=np.uint8)
    message[:padding] = 0
    message[padding:] = np.frombuffer(data, dtype=np.uint8)
    message[padding : padding + 4] ^= 0xFF  # the CRC's initial value
    rest = _fold(message.view("<u8"))
    rest = rest.view(np.uint8)
    missing = -len(rest) % LANE_BYTES
    if missing:
        rest = np.concatenate([np.zeros(missing, dtype=np.uint8), rest])
    columns = np.ascontiguousarray(rest.reshape(-1, LANE_BYTES).T).astype(np.uint32)  # [LANE_BYTES, lanes]
    table, lanes = _byte_table(), np.zeros(columns.shape[1], dtype=np.uint32)
    for column in columns:
        lanes = table[(lanes ^ column) & 0xFF] ^ (lanes >> 8)
    zero, one, two, three = _lane_tables()
    crc = 0
    for lane in lanes.tolist():
        crc = zero[crc & 0xFF] ^ one[crc >> 8 & 0xFF] ^ two[crc >> 16 & 0xFF] ^ three[crc >> 24] ^ lane
    return crc ^ 0xFFFFFFFF


def masked_crc32c(data: bytes | bytearray | memoryview) -> int:
    """The checksum as TFRecord stores it: rotated by 15 bits and offset, so that a CRC of CRCs stays useful."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
