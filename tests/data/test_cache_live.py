"""Law 6 with the real architecture, real JPEG files and the loader's processes: cached states are the live ones."""

import pytest
import torch

from rsd.data.cache import CacheReader
from rsd.data.datasets import all_frames
from rsd.data.fill_cache import write_cache
from rsd.models.openvla import load_base
from rsd.types import IMAGE_VIEWS, Observation
from tests.data.demonstrations import demonstration, write_dataset
from tests.data.tiny_base import save_tiny_base

POINTS = ["layer.2", "layer.4", "head"]
LENGTHS = [12, 10]
BATCH = 4


@pytest.fixture(scope="module")
def dataset_dir(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), LENGTHS)


@pytest.fixture(scope="module")
def base(tmp_path_factory, dataset_dir):
    directory = tmp_path_factory.mktemp("base") / "tiny"
    save_tiny_base(directory, dataset_dir)
    return load_base(
        checkpoint=directory, unnorm_key=None, views=["image", "wrist_image"], use_proprio=True, chunk_length=8
    )


@pytest.fixture(scope="module")
def frames(dataset_dir):
    return all_frames(dataset_dir, 8, IMAGE_VIEWS)


@pytest.fixture(scope="module")
def reader(tmp_path_factory, base, frames):
    directory = tmp_path_factory.mktemp("cache") / "tiny"
    write_cache(
        bases=[base],
        frames=frames,
        directory=directory,
        points=POINTS,
        batch_size=BATCH,
        shard_bytes=10**5,
        command="make-the-cache",
        num_workers=1,
        report=lambda line: None,
    )
    return CacheReader(directory, POINTS, verify=True)


def test_bit_for_bit_in_the_same_batch(base, frames, reader):
    for first in range(0, len(frames), BATCH):
        rows = range(first, min(first + BATCH, len(frames)))
        live = base.look([frames[row]["observation"] for row in rows])
        cached = reader.read(torch.tensor(rows), POINTS)
        for point in POINTS:
            assert torch.equal(cached["hidden"][point], live.at(point).bfloat16())
        assert torch.equal(cached["base_actions"], live.chunk())


def test_alone_from_the_camera_up_to_rounding(base, frames, reader):
    """What evaluation does: one raw picture a view, through JPEG once, batch 1."""
    for row in range(0, len(frames), 3):
        cached = reader[row]
        episode, step = int(cached["episode"]), int(cached["step"])
        raw = demonstration(episode, LENGTHS[episode])["steps"]["observation"]
        images = {view: raw[view][step] for view in base.views}
        observation = Observation(images, raw["state"][step], f"put toy {episode} away")
        live = base.look([observation])
        for point in POINTS:
            states = live.at(point)[0]
            torch.testing.assert_close(cached["hidden"][point].float(), states, rtol=2**-8, atol=1e-4)
        torch.testing.assert_close(cached["base_actions"], live.chunk()[0], rtol=1e-4, atol=1e-5)


def test_states_differ_from_frame_to_frame(reader):
    states = reader.read(torch.arange(len(reader)), ["layer.4"])["hidden"]["layer.4"].float().flatten(1)
    distances = torch.cdist(states, states)
    assert distances[~torch.eye(len(reader), dtype=torch.bool)].min() > 0
