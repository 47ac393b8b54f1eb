"""Law 6 with the real architecture, real JPEG files and the loader's processes: cached states are the live ones."""

import pytest
import torch

from rsd.data.cache import CacheReader
from rsd.data.datasets import all_frames
from rsd.data.fill_cache import write_cache
from rsd.jpeg import jpeg_round_trip
from rsd.models.openvla import load_backbone
from rsd.types import IMAGE_VIEWS, Observation
from tests.data.demonstrations import demonstration, write_dataset
from tests.data.tiny_base import save_tiny_base

POINTS = {"layer.2": 2, "layer.4": 4, "head": 5}  # name → the model's number
LENGTHS = [12, 10]
BATCH = 4


@pytest.fixture(scope="module")
def dataset_dir(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), LENGTHS)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory, dataset_dir):
    directory = tmp_path_factory.mktemp("base") / "tiny"
    save_tiny_base(directory, dataset_dir)
    return load_backbone(
        checkpoint=directory, unnorm_key=None, views=["image", "wrist_image"], use_proprio=True, chunk_length=8
    )


@pytest.fixture(scope="module")
def frames(dataset_dir):
    return all_frames(dataset_dir, 8, IMAGE_VIEWS)


@pytest.fixture(scope="module")
def reader(tmp_path_factory, backbone, frames):
    directory = tmp_path_factory.mktemp("cache") / "tiny"
    write_cache(
        backbone=backbone,
        frames=frames,
        directory=directory,
        points=list(POINTS),
        batch_size=BATCH,
        shard_bytes=10**5,
        command="make-the-cache",
        num_workers=1,
        report=lambda line: None,
    )
    return CacheReader(directory, list(POINTS), verify=True)


def test_bit_for_bit_in_the_same_batch(backbone, frames, reader):
    for first in range(0, len(frames), BATCH):
        rows = range(first, min(first + BATCH, len(frames)))
        live = backbone.forward(backbone.prepare([frames[row]["observation"] for row in rows]), list(POINTS.values()))
        cached = reader.read(torch.tensor(rows), list(POINTS))
        for point, layer in POINTS.items():
            assert torch.equal(cached["hidden"][point], live.hidden_states[layer].bfloat16())
        assert torch.equal(cached["base_actions"], live.actions)


def test_alone_from_the_camera_up_to_rounding(backbone, frames, reader):
    """What evaluation does: one raw picture a view, through JPEG once, batch 1."""
    for row in range(0, len(frames), 3):
        cached = reader[row]
        episode, step = int(cached["episode"]), int(cached["step"])
        raw = demonstration(episode, LENGTHS[episode])["steps"]["observation"]
        images = {view: jpeg_round_trip(raw[view][step]) for view in backbone.views}
        observation = Observation(images, raw["state"][step], f"put toy {episode} away")
        live = backbone.forward(backbone.prepare([observation]), list(POINTS.values()))
        for point, layer in POINTS.items():
            states = live.hidden_states[layer][0]
            torch.testing.assert_close(cached["hidden"][point].float(), states, rtol=2**-8, atol=1e-4)
        torch.testing.assert_close(cached["base_actions"], live.actions[0], rtol=1e-4, atol=1e-5)


def test_states_differ_from_frame_to_frame(reader):
    states = reader.read(torch.arange(len(reader)), ["layer.4"])["hidden"]["layer.4"].float().flatten(1)
    distances = torch.cdist(states, states)
    assert distances[~torch.eye(len(reader), dtype=torch.bool)].min() > 0
