"""Pixel operations against TensorFlow's recorded outputs, and by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch

from rsd import images
from rsd.jpeg import jpeg_round_trip


def load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


def test_golden_eval_image_ops(golden_dir):
    arrays = load(golden_dir / "eval_image_ops.npz")
    numbers = sorted(name.removeprefix("raw_") for name in arrays if name.startswith("raw_"))
    assert numbers
    for number in numbers:
        stored = jpeg_round_trip(arrays[f"raw_{number}"])
        np.testing.assert_array_equal(stored, arrays[f"jpeg_roundtrip_{number}"])
        expected = arrays[f"resized_{number}"]
        resized = images.resize_lanczos3(torch.from_numpy(stored)[None], expected.shape[0])[0].numpy()
        difference = np.abs(resized.astype(int) - expected)
        assert difference.max() <= 1
        assert (difference > 0).mean() < 2e-4  # SPEC §6 measured 0.006 %
        cropped = images.center_crop(torch.from_numpy(expected)[None])[0].numpy()
        np.testing.assert_array_equal(cropped, arrays[f"center_cropped_{number}"])


def test_golden_augment_ops(golden_dir):
    arrays = load(golden_dir / "augment_ops.npz")
    picture = torch.from_numpy(arrays["image_float"])[None]
    np.testing.assert_array_equal(images.to_float(torch.from_numpy(arrays["image"]))[None], picture)
    cropped = images.crop_and_resize(picture, torch.from_numpy(arrays["crop_box"]))
    np.testing.assert_allclose(cropped[0], arrays["crop_and_resize"], atol=1e-6)
    for name in ("brightness", "contrast", "saturation", "hue"):
        for index, value in enumerate(arrays[f"{name}_values"]):
            adjust = getattr(images, f"adjust_{name}")
            result = adjust(picture, torch.tensor([value], dtype=torch.float32)).clamp(0, 1)
            np.testing.assert_allclose(result[0], arrays[f"{name}_{index}"], atol=2e-6, err_msg=name)
    x = cropped.clamp(0, 1)
    for name, value in (("brightness", 0.13), ("contrast", 1.17), ("saturation", 0.8), ("hue", 0.04)):
        x = getattr(images, f"adjust_{name}")(x, torch.tensor([value])).clamp(0, 1)
    difference = np.abs(images.to_uint8(x)[0].numpy().astype(int) - arrays["chain_uint8"])
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3  # float rounding at trunc's edges


def test_resize_does_not_depend_on_the_batch():
    pictures = torch.randint(0, 256, (5, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    together = images.resize_lanczos3(pictures, 42)
    alone = torch.cat([images.resize_lanczos3(picture[None], 42) for picture in pictures])
    assert torch.equal(together, alone)


def test_augment_depends_on_the_generator_alone_and_differs_per_picture():
    picture = torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pictures = picture.expand(3, -1, -1, -1)
    first = images.augment(pictures, torch.Generator().manual_seed(1))
    assert torch.equal(first, images.augment(pictures, torch.Generator().manual_seed(1)))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, images.augment(pictures, torch.Generator().manual_seed(2)))


@pytest.mark.parametrize(
    ("picture", "shape"),
    [
        (np.zeros((256, 256, 3), np.float32), r"float32"),
        (np.zeros((256, 256, 4), np.uint8), r"\(256, 256, 4\)"),
        (np.zeros((256, 256), np.uint8), r"\(256, 256\)"),
    ],
)
def test_picture_of_other_channels_or_dtype_is_refused(picture, shape):
    with pytest.raises(images.ImageError, match=rf"'wrist_image'.*{shape}.*expected \(height, width, 3\) and uint8"):
        images.check_picture(picture, "wrist_image")
