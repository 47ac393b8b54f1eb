"""JPEG as the RLDS sets store it: one encoder and one decoder for collecting, training, caching and evaluation.

What surprises first: decoders differ. TensorFlow's default is libjpeg's *fast* integer IDCT, and PIL's pictures are up
to 9 levels away from it. Encoders differ too: PIL's output decodes to TensorFlow's pixels, simplejpeg's does not.
Source: SPEC §6 (TF 2.15.1, run and compared).
"""

from __future__ import annotations

import io

import numpy as np
import simplejpeg
from PIL import Image

JPEG_QUALITY = 95  # tf.image.encode_jpeg's default, with 4:2:0 chroma
FAST_DCT, FAST_UPSAMPLE = True, False  # of the decoder
DESCRIPTION = f"simplejpeg, fast IDCT {FAST_DCT}, fast upsampling {FAST_UPSAMPLE}"  # part of a base model's fingerprint


def encode_jpeg(picture: np.ndarray) -> bytes:
    """[H, W, 3], uint8 → JPEG bytes that decode to the same pixels as tf.image.encode_jpeg's."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=JPEG_QUALITY, subsampling="4:2:0")
    return buffer.getvalue()


def decode_jpeg(data: bytes) -> np.ndarray:
    """JPEG bytes → [H, W, 3], uint8; bit-equal to TensorFlow's default decoder (fast IDCT, fancy up-sampling)."""
    return simplejpeg.decode_jpeg(data, colorspace="RGB", fastdct=FAST_DCT, fastupsample=FAST_UPSAMPLE)


def jpeg_round_trip(picture: np.ndarray) -> np.ndarray:
    """A live camera picture → the same picture as an RLDS set would store it. [H, W, 3], uint8."""
    return decode_jpeg(encode_jpeg(picture))
