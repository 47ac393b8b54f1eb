"""JPEG in integers: libjpeg's own pixels, to the last bit."""

import numpy as np
import pytest
import torch

from rsd.data.made_up import picture
from rsd.jpeg import jpeg_round_trip
from rsd.models.openvla.jpeg_on_device import round_trip, tables

RANDOM = np.random.default_rng(0)
RAMP = np.add.outer(np.arange(256), np.arange(256)) % 256
PICTURES = {
    "smooth": picture(RANDOM),
    "noise": RANDOM.integers(0, 256, (256, 256, 3), dtype=np.uint8),
    "black and white noise": (RANDOM.integers(0, 2, (256, 256, 3)) * 255).astype(np.uint8),
    "colours at their ends": RANDOM.choice(np.array([0, 1, 254, 255], dtype=np.uint8), (256, 256, 3)),
    "black": np.zeros((256, 256, 3), dtype=np.uint8),
    "white": np.full((256, 256, 3), 255, dtype=np.uint8),
    "a ramp": np.stack([RAMP, RAMP[::-1], 255 - RAMP], axis=-1).astype(np.uint8),
    "another shape": RANDOM.integers(0, 256, (32, 112, 3), dtype=np.uint8),
}


def on_device(pictures: np.ndarray) -> np.ndarray:
    return round_trip(torch.from_numpy(pictures.copy()), *tables(torch.device("cpu"))).numpy()


@pytest.mark.parametrize("name", PICTURES)
def test_bit_equal_to_libjpeg(name):
    np.testing.assert_array_equal(on_device(PICTURES[name][None])[0], jpeg_round_trip(PICTURES[name]))


def test_golden_pictures(golden_dir):
    with np.load(golden_dir / "eval_image_ops.npz") as arrays:
        numbers = [name.removeprefix("raw_") for name in arrays if name.startswith("raw_")]
        for number in numbers:
            np.testing.assert_array_equal(
                on_device(arrays[f"raw_{number}"][None])[0], arrays[f"jpeg_roundtrip_{number}"]
            )
    assert numbers


def test_pictures_do_not_mix():
    several = np.stack([PICTURES["noise"], PICTURES["smooth"], PICTURES["white"]])
    for together, alone in zip(on_device(several), several, strict=True):
        np.testing.assert_array_equal(together, jpeg_round_trip(alone))
