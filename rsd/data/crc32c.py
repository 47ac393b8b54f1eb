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
WORDS_STRIDE = 4 * WORDS_TARGETS[0]  # words that are dropped between two reloads of the window
LANE_BYTES = 64  # what remains is cut into lanes of this size, which run side by side


@functools.cache
def _byte_table() -> np.ndarray:
    """Remainder of each single byte, [256], uint32."""
    table: np.ndarray = np.arange(256, dtype=np.uint32)
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


def _short(data: bytes | bytearray | memoryview) -> int:
    table, crc = _byte_list(), 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _fold(data: np.ndarray) -> np.ndarray:
    """A message [n], uint8, with about the same length as WORDS_FULL words at most, and the same remainder.

    A window slides over the message, small enough to stay in the processor's cache. The CRC's initial value is put in.
    """
    padding = -len(data) % 8  # leading zeros do not change a remainder
    window = np.empty(WORDS_FULL + WORDS_STRIDE, dtype="<u8")
    window_bytes = window.view(np.uint8)
    filled = min((len(data) + padding) // 8, len(window))
    taken = filled * 8 - padding
    window_bytes[:padding] = 0
    window_bytes[padding : filled * 8] = data[:taken]
    window_bytes[padding : padding + 4] ^= 0xFF
    while True:
        drop = max(filled - WORDS_FULL, 0)
        for start in range(0, drop, WORDS_TARGETS[0]):  # a block must not fold into itself
            block = window[start : min(start + WORDS_TARGETS[0], drop)]
            for target in WORDS_TARGETS:
                window[start + target : start + target + len(block)] ^= block
        if taken == len(data):
            return window_bytes[drop * 8 : filled * 8]
        window[:WORDS_FULL] = window[drop:filled]
        more = min(len(data) - taken, WORDS_STRIDE * 8)
        window_bytes[WORDS_FULL * 8 : WORDS_FULL * 8 + more] = data[taken : taken + more]
        filled, taken = WORDS_FULL + more // 8, taken + more


def crc32c(data: bytes | bytearray | memoryview) -> int:
    """CRC-32C of a buffer."""
    if len(data) < 2 * LANE_BYTES:
        return _short(data)
    rest = _fold(np.frombuffer(data, dtype=np.uint8))
    missing = -len(rest) % LANE_BYTES
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
