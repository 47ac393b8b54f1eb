"""Pictures as RLDS sets store them: JPEG or PNG, told by their first bytes whatever features.json says.

What surprises first: tensorflow-datasets writes PNG where no encoding is declared, and its reader does not look at the
declaration either. JPEG is decoded as TensorFlow does (rsd/jpeg.py); PNG has one right answer.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence

import numpy as np
import simplejpeg
from PIL import Image

from rsd.jpeg import decode_jpeg

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"  # first bytes
JPEG_END, PNG_END = b"\xff\xd9", b"IEND\xaeB`\x82"  # last bytes
PNG_HEADER_BYTES = 26  # up to the kind of colour
OTHERS = {b"GIF8": "GIF", b"BM": "BMP", b"RIFF": "WebP", b"II*\x00": "TIFF", b"MM\x00*": "TIFF"}
GREY_KINDS = (0, 4)  # kinds of colour of a PNG


def check_header(data: bytes | memoryview, size: Sequence[int | None] | None) -> None:
    """Look at format and size of a picture; it is decoded only where its end is missing.

    Args:
        size: Height and width that are expected; None for any, or for any of the two.

    Raises:
        ValueError: it is none that `decode_picture` reads, has another size, or was cut off.
    """
    found = _size(data)
    if bytes(data[-len(PNG_END) :]) != PNG_END and bytes(data[-len(JPEG_END) :]) != JPEG_END:
        decode_picture(bytes(data))
    if size is not None and any(side not in (None, own) for side, own in zip(size, found, strict=True)):
        raise ValueError(f"expected a picture of {list(size)} pixels (height, width), got {list(found)}")


def _size(data: bytes | memoryview) -> tuple[int, int]:
    head = bytes(data[:PNG_HEADER_BYTES])
    if head.startswith(JPEG):
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        return height, width
    if head.startswith(PNG) and len(head) == PNG_HEADER_BYTES:
        width, height, depth, colour = struct.unpack_from(">IIBB", head, 16)
        if depth == 16 and colour in GREY_KINDS:
            raise ValueError("is a grey PNG of 16 bits, as of depths; expected one of 8 bits")
        return height, width
    kind = next(
        (name for first, name in OTHERS.items() if head.startswith(first)), f"something that begins {head[:8]!r}"
    )
    raise ValueError(f"expected a JPEG or PNG picture, got {kind if data else 'nothing'}")


def decode_picture(data: bytes) -> np.ndarray:
    """Bytes → [H, W, 3], uint8, as tensorflow-datasets does: grey becomes RGB, transparency is left out.

    Raises:
        ValueError: no JPEG or PNG picture, or a damaged one.
    """
    _size(data)
    if data.startswith(JPEG):
        return decode_jpeg(data)
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # all that Pillow says of damaged files
        raise ValueError(f"is a damaged PNG: {error}") from error
