"""Pictures made on the model's device: the pixels of the CPU's path, within the tolerance that it is held to itself."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import rsd
from rsd.data.made_up import picture
from rsd.errors import SettingError
from rsd.jpeg import jpeg_round_trip
from rsd.models.openvla.base import OpenVLABase
from rsd.models.openvla.jpeg_on_device import round_trip, tables
from rsd.models.openvla.pictures import DevicePictures
from rsd.models.openvla.processor import PrismaticImageProcessor
from scripts.recorded import recorded_episodes
from tests.models.openvla_tiny import build_base, observation
from tests.models.test_visual_tokens import conv_base, patch_base

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def on_device(base: OpenVLABase, device=CPU) -> OpenVLABase:
    base._device_pictures = DevicePictures(base.processor, center_crop=base.center_crop, device=device)
    return base


def levels_apart(base, left, right):
    """Difference of two pixel tensors in uint8 levels."""
    std = torch.tensor(base.processor.stds).flatten().repeat(len(base.views))[:, None, None]
    return ((left.cpu() - right.cpu()).abs() * std * 255).round()


def live(seed):
    random = np.random.default_rng(seed)
    return observation(seed), {view: picture(random) for view in ("image", "wrist_image")}


@pytest.mark.parametrize("size", [28, 84, 224])
def test_the_same_pixels_as_on_the_cpu(size):
    base, other = build_base(image_size=size), on_device(build_base(image_size=size))
    seen = []
    for seed in range(3):
        noise, views = live(seed)
        seen += [noise, type(noise)(views, noise.proprio, noise.instruction)]
    expected, got = base.prepare(seen), other.prepare_live(seen)
    assert expected.keys() == got.keys()
    apart = levels_apart(base, expected["pixel_values"], got["pixel_values"])
    assert apart.max() <= 1 and (apart > 0).float().mean() < 2e-4
    for name in expected.keys() - {"pixel_values"}:
        assert torch.equal(expected[name], got[name])


@pytest.mark.parametrize("shapes", [[(96, 128), (64, 64)], [(90, 130), (64, 64)]], ids=["JPEG here", "JPEG there"])
def test_pictures_of_any_size_are_those_of_the_cpu(shapes):
    base, other = build_base(image_size=28), on_device(build_base(image_size=28))
    noise, _ = live(0)
    random = np.random.default_rng(1)
    views = {
        view: random.integers(0, 256, (*shape, 3), dtype=np.uint8)
        for view, shape in zip(("image", "wrist_image"), shapes, strict=True)
    }
    seen = [noise, type(noise)(views, noise.proprio, noise.instruction)]
    expected, got = base.prepare(seen)["pixel_values"], other.prepare_live(seen)["pixel_values"]
    assert levels_apart(base, expected, got).max() <= 1


def test_pictures_of_data_sets_see_no_second_jpeg():
    base, other = build_base(image_size=224), on_device(build_base(image_size=224))
    seen = [observation(0), dataclasses.replace(observation(1), stored=True)]
    for some in (seen, seen[1:], seen[:1]):
        assert torch.equal(base.prepare(some)["pixel_values"], other.prepare_live(some)["pixel_values"])


def test_without_a_crop_and_with_one_tower():
    processor = PrismaticImageProcessor(sizes=[56], means=[(0.5, 0.5, 0.5)], stds=[(0.5, 0.5, 0.5)])
    make = DevicePictures(processor, center_crop=False, device=CPU)
    pixels = make(np.full((2, 256, 256, 3), 255, dtype=np.uint8), live=True)
    assert torch.equal(pixels, torch.ones(2, 3, 56, 56))


@pytest.mark.parametrize("views", [("image",), ("image", "wrist_image")])
@pytest.mark.parametrize("towers", [1, 2])
@pytest.mark.parametrize("crop", [False, True])
def test_views_and_towers_lie_behind_each_other_as_on_the_cpu(views, towers, crop):
    """A crop leaves a picture's colours beside each other in memory, where those of two views are no one block."""
    half = [(0.5, 0.4, 0.3), (0.2, 0.1, 0.6)][:towers]
    bases = build_base(views=views), build_base(views=views)
    for base in bases:
        base.processor = PrismaticImageProcessor(sizes=[28] * towers, means=half, stds=half)
        base.center_crop = crop
    seen = [observation(0), observation(1)]
    for some in (seen[:1], seen):
        expected, got = bases[0].prepare(some)["pixel_values"], on_device(bases[1]).prepare_live(some)["pixel_values"]
        assert expected.shape == (len(some), 3 * towers * len(views), 28, 28)
        assert torch.equal(got, expected)


def test_the_released_policy_and_the_eyes_of_its_draft_see_the_same():
    """A convolutional tower a camera, in both: what they answer to real pictures stays what it is."""
    here, there = (
        (policy.base, policy.tokens.draft.eyes)
        for policy in (
            rsd.load(ROOT / "released", decoding="temporal", pictures=place, canaries=False)
            for place in ("cpu", "device")
        )
    )
    seen = recorded_episodes()[0][:2]
    for base, other in zip(here, there, strict=True):
        assert (base.pictures_on, other.pictures_on) == ("cpu", "device")
        expected, got = base.look(seen), other.look(seen)
        for point in base.spec.points:
            torch.testing.assert_close(got.at(point), expected.at(point), rtol=0, atol=1e-3)


@pytest.mark.parametrize("make", [build_base, conv_base, patch_base])
def test_a_pass_prepares_its_pictures_there_and_loaders_do_not(make):
    base = on_device(make())
    assert torch.equal(base.look([observation(0)]).chunk(), make().look([observation(0)]).chunk())
    base._device_pictures = lambda pictures, live: pytest.fail("a loader's worker has no device")
    base.prepare([observation(0)])


def test_what_it_cannot_make_is_refused():
    processor = PrismaticImageProcessor(sizes=[224, 384])
    with pytest.raises(SettingError, match=r"pictures of \[224, 384\] pixels, .*pictures=device makes one size only"):
        DevicePictures(processor, center_crop=True, device=CPU)
    base = build_base()
    with pytest.raises(SettingError, match=r"model.backbone.pictures is 'gpu', expected one of \['cpu', 'device'\]"):
        OpenVLABase(
            model=base.model, processor=base.processor, text=base.text, space=base.space, views=base.views,
            chunk_length=8, center_crop=True, weights_sha256=str, pictures="gpu",
        )  # fmt: skip


@pytest.mark.gpu
def test_jpeg_is_the_same_on_a_gpu():
    """Compiled, on noise, whose every bit counts."""
    pictures = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)
    cuda = torch.device("cuda")
    got = torch.compile(round_trip, dynamic=False)(torch.from_numpy(pictures).to(cuda), *tables(cuda)).cpu().numpy()
    for picture_here, expected in zip(got, map(jpeg_round_trip, pictures), strict=True):
        np.testing.assert_array_equal(picture_here, expected)


@pytest.mark.gpu
def test_the_same_pixels_on_a_gpu():
    base = build_base(image_size=224)
    other = on_device(build_base(image_size=224), torch.device("cuda"))
    for batch in (1, 2):
        for seed in range(4):
            noise, views = live(seed)
            seen = [noise, type(noise)(views, noise.proprio, noise.instruction)][:batch]
            apart = levels_apart(base, base.prepare(seen)["pixel_values"], other.prepare_live(seen)["pixel_values"])
            assert apart.max() <= 1 and (apart > 0).float().mean() < 2e-4
