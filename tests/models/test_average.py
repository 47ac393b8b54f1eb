"""The mean of trainings: of weights, in one space; what is not of one model is refused by name."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from rsd.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from rsd.models.openvla import load_base
from rsd.models.openvla.average import average
from rsd.models.openvla.transfer import LAST_LAYER
from tests.data.demonstrations import write_dataset
from tests.data.tiny_base import save_tiny_base
from tests.models.openvla_tiny import observation

SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Three trainings of one model."""
    dataset, root = write_dataset(tmp_path_factory.mktemp("data"), [12, 10]), tmp_path_factory.mktemp("base")
    for seed in SEEDS:
        save_tiny_base(root / str(seed), dataset, seed=seed)
    return [root / str(seed) for seed in SEEDS]


def loaded(directory):
    return load_checkpoint(directory, kind="base", produce="")


def rewritten(source, out, weights=None, **config):
    """A copy with other weights or entries."""
    checkpoint = loaded(source)
    save_checkpoint(
        out, kind="base", config={**checkpoint.config, **config}, weights=weights or checkpoint.weights, provenance={}
    )
    return out


def test_every_weight_is_the_mean_and_the_model_loads(trained, tmp_path):
    average(trained, tmp_path / "mean")
    members, mean = [loaded(source).weights for source in trained], loaded(tmp_path / "mean")
    for name, value in mean.weights.items():
        expected = sum(member[name].double() for member in members) / 3
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-7)
    assert mean.provenance["averaged"] == [loaded(source).sha256 for source in trained]
    base = load_base(
        checkpoint=tmp_path / "mean", unnorm_key=None, views=("image", "wrist_image"), use_proprio=True, chunk_length=8
    )
    seen = replace(observation(), instruction=" ".join(base.text.words))
    assert np.isfinite(base.look([seen]).chunk().numpy()).all()


def test_a_member_in_other_statistics_is_restated(trained, tmp_path):
    """The same policy, its actions normalised by twice the range: the mean of both is that policy again."""
    ((key, stats),) = loaded(trained[0]).config["norm_stats"].items()
    wide = json.loads(json.dumps(stats))
    for name in ("q01", "q99", "min", "max"):
        wide["action"][name] = [
            2 * value if normalised else value
            for value, normalised in zip(stats["action"][name], stats["action"]["mask"], strict=True)
        ]
    weights, mask = dict(loaded(trained[0]).weights), torch.tensor(stats["action"]["mask"])
    low, high = (torch.tensor(stats["action"][name], dtype=torch.float64) for name in ("q01", "q99"))
    scale, shift = weights[f"{LAST_LAYER}.weight"].double(), weights[f"{LAST_LAYER}.bias"].double()
    commanded = low + (shift + 1) / 2 * (high - low)  # by the bias alone, in the robot's units
    weights[f"{LAST_LAYER}.weight"] = torch.where(mask[:, None], scale / 2, scale).float()
    weights[f"{LAST_LAYER}.bias"] = torch.where(mask, (commanded - 2 * low) / (high - low) - 1, shift).float()
    twin = rewritten(trained[0], tmp_path / "twin", weights, norm_stats={key: wide})
    average([trained[0], twin], tmp_path / "mean")
    mean, first = loaded(tmp_path / "mean").weights, loaded(trained[0]).weights
    for name, value in first.items():
        torch.testing.assert_close(mean[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"words": ["aardvark"]}, "in words;"),
        ({"chunk_length": 4}, "in chunk_length;"),
        ({"views": ["image"]}, "views;"),
    ],
)
def test_another_model_is_refused(trained, tmp_path, change, message):
    weights = {name: value + 1 for name, value in loaded(trained[0]).weights.items()}
    other = rewritten(trained[0], tmp_path / "other", weights, **change)
    with pytest.raises(CheckpointError, match=message):
        average([trained[0], other], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_twice_the_same_is_no_mean(trained, tmp_path):
    copy = shutil.copytree(trained[0], tmp_path / "copy")
    for sources in ([trained[0]], [trained[0], copy]):
        with pytest.raises(CheckpointError, match="at least two checkpoints of different weights"):
            average(sources, tmp_path / "mean")
