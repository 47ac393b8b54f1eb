"""The gripper's values are held to what data.gripper declares, in every phase that reads a data set."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from rsd.data import DataError
from rsd.data.datasets import ChunkDataset, Demonstrations, all_frames
from rsd.data.gripper import GripperRule
from rsd.data.layout import Layout
from rsd.data.rlds import RLDSWriter
from rsd.errors import SettingError
from rsd.tokenizer import RFSQTokenizer, TransformTokenizer
from rsd.training.given import gripper_accuracy
from tests.data.demonstrations import NAME, demonstration

CONF = Path(__file__).parents[2] / "conf"
N = 20
CLOSED = np.arange(N) >= N // 2  # a grasp in the middle of the episode


def write(root: Path, gripper: np.ndarray, episodes: int = 3) -> Path:
    """A data set whose gripper column, [N], is this in every episode."""
    directory = root / NAME / "1.0.0"
    with RLDSWriter(directory, NAME) as writer:
        for number in range(episodes):
            episode = demonstration(number, N)
            episode["steps"]["action"][:, -1] = gripper
            writer.write_episode(episode)
        writer.finish()
    return directory


RECORDED = {
    "open1": np.where(CLOSED, 0, 1),
    "close1": np.where(CLOSED, 1, 0),
    "metres": np.where(CLOSED, 0, 0.08),
    "counts": np.where(CLOSED, 0, 850),
    "robotiq": np.where(CLOSED, 255, 0),
    "percent": np.where(CLOSED, 0, 100),
    "constant": np.full(N, 0.3),
    "always open": np.full(N, -1.0),
    "increments": np.eye(N)[5] - np.eye(N)[12],
    "partial": np.where(CLOSED, 0.62, 0.35),
    "smooth": np.linspace(-1, 1, N),
    "one value in between": np.where(np.arange(N) == 9, 0.0, np.where(CLOSED, 1, -1)),
}


@pytest.mark.parametrize("kind", RECORDED)
def test_anything_but_the_declared_convention_is_refused_with_range_and_key(kind, tmp_path):
    recorded = RECORDED[kind]
    directory = write(tmp_path, recorded)
    with pytest.raises(DataError) as refused:
        Demonstrations(directory)
    message = str(refused.value)
    assert f"{recorded.min():g}..{recorded.max():g}" in message and str(directory) in message
    assert "data.gripper declares -1 open, 1 closed" in message and "\n" not in message


@pytest.mark.parametrize(
    ("kind", "opened", "closed"),
    [("open1", 1, 0), ("close1", 0, 1), ("metres", 0.08, 0), ("counts", 850, 0), ("robotiq", 0, 255)],
)
def test_a_declared_convention_becomes_1_open_0_closed(kind, opened, closed, tmp_path):
    directory = write(tmp_path, RECORDED[kind])
    with pytest.raises(DataError, match=r"data\.gripper\.open=.* data\.gripper\.closed=.*or the other way round"):
        Demonstrations(directory)
    demonstrations = Demonstrations(directory, layout=Layout(gripper=GripperRule(opened, closed)))
    for trajectory in demonstrations.trajectories:
        np.testing.assert_allclose(trajectory.actions[:, -1], 1.0 - CLOSED, atol=1e-6)
    assert demonstrations.norm_stats["action"]["mean"][-1] == pytest.approx(0.5)


def test_liberos_own_convention_is_bit_identical(tmp_path):
    recorded = np.where(CLOSED, 1, -1)
    demonstrations = Demonstrations(write(tmp_path, recorded))
    gripper = demonstrations.trajectories[0].actions[:, -1]
    assert gripper.tobytes() == (1 - np.clip(recorded, 0, 1)).astype(np.float32).tobytes()
    assert all_frames(demonstrations.rlds.directory, 8, []).content_id() == (
        f"{demonstrations.rlds.content_id()}-all-t8-{3 * (N - 7)}"
    )


def test_increments_are_refused_whatever_is_declared(tmp_path):
    directory = write(tmp_path, RECORDED["increments"])
    with pytest.raises(DataError, match="90 % of the steps stand at 0 between both signs, as increments do"):
        Demonstrations(directory, layout=Layout(gripper=GripperRule(1, -1, between=True)))


def test_a_gripper_that_never_moves_has_to_be_declared(tmp_path):
    directory = write(tmp_path, RECORDED["always open"])
    with pytest.raises(DataError, match=r"-1\.\.-1 .*it never moves; .*data\.gripper\.moves=false"):
        Demonstrations(directory)
    kept = Demonstrations(directory, layout=Layout(gripper=GripperRule(moves=False)))
    assert (kept.trajectories[0].actions[:, -1] == 1).all()
    with pytest.raises(DataError, match=r"set data\.gripper\.moves=true"):
        Demonstrations(
            write(tmp_path / "moves", np.where(CLOSED, 1, -1)), layout=Layout(gripper=GripperRule(moves=False))
        )


def test_caches_of_two_conventions_are_two(tmp_path):
    directory = write(tmp_path, RECORDED["open1"])
    ids = {all_frames(directory, 8, [], Layout(gripper=GripperRule(*sides))).content_id() for sides in ((0, 1), (1, 0))}
    assert len(ids) == 2


def test_positions_in_between_are_no_single_bit(tmp_path):
    """A learned tokenizer has levels for them; the transform family has one bit."""
    directory = write(tmp_path, RECORDED["partial"])
    with pytest.raises(DataError, match=r"100 % of the steps are neither.*data\.gripper\.between=true"):
        Demonstrations(directory, layout=Layout(gripper=GripperRule(0, 1)))
    chunks = ChunkDataset(
        Demonstrations(directory, layout=Layout(gripper=GripperRule(0, 1, between=True))), 8, "all"
    ).actions
    assert sorted(chunks[..., -1].unique().tolist()) == pytest.approx([0.38, 0.65])
    bit = TransformTokenizer(chunk_length=8, action_dim=7, num_stages=2, num_levels=7, ratio=7.0, margin=1.05)
    with pytest.raises(SettingError, match=r"in 100 % of the steps \(0\.38\.\.0\.65\), .*one bit.*rfsq_d8"):
        bit.fit(chunks)
    levels = RFSQTokenizer(
        chunk_length=8, action_dim=7, latent_dim=4, hidden_dim=8, num_stages=2, num_levels=7, scale="nested"
    )
    levels.fit(chunks)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"open": 1, "closed": 1}, r"data\.gripper\.open and data\.gripper\.closed are both 1"),
        ({"open": "up"}, r"data\.gripper\.open is 'up', expected a finite number"),
        ({"closed": float("nan")}, r"data\.gripper\.closed is nan, expected a finite number"),
        ({"between": "no"}, r"data\.gripper\.between is 'no', expected true or false"),
    ],
)
def test_a_rule_that_says_nothing(options, message):
    with pytest.raises(SettingError, match=message):
        GripperRule(**options)


@pytest.mark.parametrize("phase", ["rfsq", "oft", "oft_lora", "openvla_lora chunk=1", "head", "draft"])
def test_every_phase_is_given_the_rule(phase):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        typed = [*f"phase={phase}".split(), "data.gripper.open=0.08", "data.gripper.closed=0"]
        cfg = compose("train", overrides=typed)
    datamodule = cfg.phase.datamodule
    node = datamodule.cache.dataset if "cache" in datamodule else datamodule
    assert instantiate(node.layout).gripper == GripperRule(0.08, 0)


def test_a_word_for_a_rule_is_one_line(tmp_path):
    with pytest.raises(SettingError, match=r"gripper is 'open1', expected a GripperRule"):
        Demonstrations(write(tmp_path, RECORDED["open1"]), layout=Layout(gripper="open1"))


def test_the_majority_class_is_that_of_training():
    target = torch.zeros(4, 8, 7)
    target[0, :, -1] = 1
    assert gripper_accuracy(torch.zeros(7).expand_as(target), target, [6]) == 0.75
