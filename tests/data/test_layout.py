"""Data sets of other robots: what is declared is taken, what the features say is found, and nothing is guessed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rsd.data import DataError
from rsd.data.datamodules import ChunkDataModule, FrameDataModule
from rsd.data.datasets import Demonstrations, all_frames
from rsd.data.gripper import GripperRule
from rsd.data.layout import Layout, Part
from rsd.data.resampling import downsample, moving_steps
from rsd.errors import SettingError
from rsd.images import resize_lanczos3
from rsd.space import Space
from rsd.tokenizer import BinTokenizer, RFSQTokenizer, TransformTokenizer
from rsd.tokenizer.report import codec_report
from rsd.training.oft import FrameCollate
from tests.data.test_foreign_sets import JPEG, NAME, STEPS, F, encoded, episode, structure, write

WIDE = np.random.default_rng(1).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def vector(dims: int) -> Any:
    return F.Tensor(shape=(dims,), dtype=np.float32)


def numbers(dims: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (STEPS, dims)).astype(np.float32)


def changed(root: Path, *, step: Any = None, observation: Any = None, metadata: Any = None, **stored: Any) -> Path:
    """Two episodes with these features beside or instead of LIBERO's."""
    return write(root, [episode(n, **stored) for n in range(2)], structure(step, observation, metadata))


# --- actions


def test_the_only_vector_of_that_name_is_the_action(tmp_path: Path):
    recorded = numbers(4)
    recorded[:, -1] = np.where(np.arange(STEPS) < 4, 0, 850)
    directory = changed(
        tmp_path,
        step={"action": None, "joint_actions": vector(4)},
        **{"steps/action": None, "steps/joint_actions": recorded},
    )
    data = Demonstrations(directory, layout=Layout(gripper=GripperRule(open=850, closed=0)))
    assert data.places.action == (Part("joint_actions"),)
    np.testing.assert_array_equal(data.trajectories[0].actions[:, :3], recorded[:, :3])
    assert data.trajectories[0].actions[:, 3].tolist() == [0] * 4 + [1] * 4


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ({"action": None}, "feature action: expected tensor [dims], there is none of this name; vectors of its steps"),
        ({"action": None, "arm_action": vector(6), "hand_action": vector(1)}, "2 could be it: arm_action, hand_action"),
        (
            {"action": F.Scalar(dtype=np.float32)},
            "expected tensor [dims], it is a single number; vectors of its steps: observation/state [8];",
        ),
    ],
)
def test_no_action_or_two_are_refused_with_the_candidates_and_the_key(tmp_path: Path, step: Any, said: str):
    directory = write(tmp_path, [], structure(step), splits={"train": 1})
    with pytest.raises(DataError) as caught:
        Layout().find(_features(directory))
    assert said in str(caught.value) and "data.action" in str(caught.value)
    assert "observation/state [8]" in str(caught.value)


def _features(directory: Path) -> Any:
    """A data set of which only the features are asked."""
    from types import SimpleNamespace

    from rsd.data.rlds_metadata import read_metadata

    return SimpleNamespace(directory=directory, features=read_metadata(directory).features)


def test_parts_are_put_together_in_their_order(tmp_path: Path):
    layout = Layout(
        action=["observation/state[0:2]", "steps/action[-1]"],
        proprio=["observation/state[6:]", "reward"],
        views={"image": "observation/image"},
    )
    directory = changed(
        tmp_path, step={"reward": F.Scalar(dtype=np.float32)}, **{"steps/reward": np.arange(STEPS, dtype=np.float32)}
    )
    data, recorded = Demonstrations(directory, ("image",), layout), episode(0)
    state = recorded["steps/observation/state"]
    np.testing.assert_array_equal(data.trajectories[0].actions[:, :2], state[:, :2])
    assert data.trajectories[0].actions[:, 2].tolist() == [1] * 4 + [0] * 4
    np.testing.assert_array_equal(data.trajectories[0].proprio[:, :2], state[:, 6:])
    assert data.trajectories[0].proprio[:, 2].tolist() == list(range(STEPS))
    assert data.content_id() != Demonstrations(directory, ("image",)).content_id()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        *(
            (
                {"proprio": f"observation/state[{part}]"},
                rf"data\.proprio asks for .*\[{part}\], and it has 8 dims",
            )
            for part in ("0:9", "-9:7", "-99:")
        ),
        ({"action": "action[7:9]"}, r"data\.action asks for action\[7:9\] of \[7\], and no dim is left"),
        ({"proprio": "observation/joints"}, r"feature observation/joints: .*set data\.proprio to one of them"),
        ({"language": "observation/words"}, r"feature observation/words: expected text.*set data\.language"),
        ({"views": {"image": "action"}}, r"feature action: expected image .*it is tensor \[7\].*data\.views\.image"),
        ({"units": ["m"] * 3}, r"data\.units has 3 entries, the actions have 7 dims"),
        ({"relative": [True]}, r"data\.relative has 1 entries, the actions have 7 dims"),
        ({"gripper": GripperRule(dims=[9])}, r"data\.gripper\.dims holds 9, the actions have dims 0\.\.6"),
    ],
)
def test_what_is_declared_and_is_not_there_is_refused(tmp_path: Path, settings: Any, said: str):
    with pytest.raises(DataError, match=said):
        Demonstrations(changed(tmp_path), ("image",), Layout(**settings))


@pytest.mark.parametrize("text", ["a[", "a[x]", "a[]", "a[0:1:2]", "[0:1]"])
def test_a_slice_that_is_none_is_refused(text: str):
    with pytest.raises(SettingError, match=r"data\.action holds"):
        Layout(action=text)


# --- grippers


@pytest.fixture(scope="module")
def two_arms(tmp_path_factory: Any) -> Path:
    recorded = numbers(14)
    recorded[:, 6], recorded[:, 13] = np.arange(STEPS) < 3, np.arange(STEPS) < 5
    return changed(tmp_path_factory.mktemp("arms"), step={"action": vector(14)}, **{"steps/action": recorded})


def test_two_grippers_go_out_as_they_came_in(two_arms: Path):
    layout = Layout(gripper=GripperRule(open=0, closed=1, dims=[6, 13]))
    data = Demonstrations(two_arms, layout=layout)
    space = Space.from_statistics(NAME, data.norm_stats)
    actions = data.trajectories[0].actions
    assert space.action.grippers == (6, 13)
    assert actions[:, 6].tolist() == [0] * 3 + [1] * 5 and actions[:, 13].tolist() == [0] * 5 + [1] * 3
    robot = space.to_robot(space.to_model(actions))
    assert robot[:, 6].tolist() == [1] * 3 + [0] * 5 and robot[:, 13].tolist() == [1] * 5 + [0] * 3
    assert space.limits == (-np.inf, np.inf)


def test_without_grippers_every_dim_is_normalised_and_sent_as_it_is(two_arms: Path):
    data = Demonstrations(two_arms, layout=Layout(gripper=GripperRule(dims=[])))
    space = Space.from_statistics(NAME, data.norm_stats)
    assert space.action.grippers == () and all(space.action.mask)
    robot = space.to_robot(np.zeros((1, 14)))
    np.testing.assert_allclose(robot[0], (np.array(space.action.low) + space.action.high) / 2, atol=1e-6)


def test_a_gripper_between_is_commanded_between():
    entry = {name: [low, 0.0] for name, low in (("q01", -1.0), ("min", -1.0))}
    entry |= {name: [high, 1.0] for name, high in (("q99", 1.0), ("max", 1.0))}
    entry |= {"mask": [True, False]}
    opening = np.array([[0.0, 0.25], [0.0, 1.2]])
    for between, expected in ((True, [0.02, 0.08]), (False, [0.0, 0.08])):
        own = {"gripper": {"open": 0.08, "closed": 0.0, "between": between}}
        space = Space.from_statistics("x", {"action": entry | own})
        assert space.to_robot(opening)[:, 1].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("grippers", [[2, 5], []])
def test_tokenizers_of_other_grippers(grippers: list[int]):
    chunks = torch.rand(32, 8, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    chunks[..., grippers] = (chunks[..., grippers] > 0).float()
    common = {"chunk_length": 8, "action_dim": 6, "grippers": grippers}
    transform = TransformTokenizer(**common, num_stages=5, num_levels=7, ratio=7.0, margin=1.05)
    transform.fit(chunks)
    decoded = transform.decode(transform.encode(chunks))
    torch.testing.assert_close(decoded, chunks, atol=2e-3, rtol=0)
    assert torch.equal(decoded[..., grippers], chunks[..., grippers])
    assert transform.hand_over_bound()[..., grippers].abs().sum() == 0
    assert transform.grippers == tuple(grippers) == BinTokenizer(**common, num_bins=256).grippers
    assert codec_report(transform, chunks)["gripper_errors"][-1] == 0
    with pytest.raises(SettingError, match="grippers are dims"):
        RFSQTokenizer(**common | {"grippers": [6]}, latent_dim=4, hidden_dim=4, num_stages=1, num_levels=3)


# --- words, pictures and states


def test_words_of_the_episode_are_said_at_every_step(tmp_path: Path):
    stored = {"steps/language_instruction": None, "episode_metadata/task": [b"take it"]}
    directory = changed(
        tmp_path, step={"language_instruction": None}, metadata={"task": F.Text(), "file_path": F.Text()},
        **stored, **{"episode_metadata/file_path": [b"x"]},
    )  # fmt: skip
    assert Demonstrations(directory).trajectories[1].instructions == ("take it",) * STEPS


def test_pictures_of_any_size_and_place_are_resized_alike(tmp_path: Path):
    observation = {"cams": F.FeaturesDict({"wrist": F.Image(shape=(48, 64, 3), dtype=np.uint8)})}
    directory = changed(
        tmp_path, observation=observation, **{"steps/observation/cams/wrist": [encoded(WIDE, "PNG")] * STEPS}
    )
    frames = all_frames(directory, 4, ("image", "wrist"))
    shown = frames[0]["observation"].images
    assert shown["image"].shape == (256, 256, 3)
    np.testing.assert_array_equal(shown["wrist"], WIDE)
    pictures = FrameCollate(image_size=32, views=("image", "wrist"))([frames[0], frames[1]])["pictures"]
    assert pictures.shape == (2, 2, 32, 32, 3)
    assert torch.equal(pictures[1, 1], resize_lanczos3(torch.from_numpy(WIDE)[None], 32)[0])


def test_a_picture_of_another_size_than_declared_is_damage(tmp_path: Path):
    image = F.Image(shape=(256, 255, 3), dtype=np.uint8)
    stored = {"steps/observation/image": [JPEG] * STEPS}
    with pytest.raises(DataError, match=r"step 0: .*expected a picture of \[256, 255\] pixels"):
        Demonstrations(changed(tmp_path, observation={"image": image}, **stored), ("image",))


def test_no_state_is_needed_where_no_model_reads_it(tmp_path: Path):
    directory = changed(tmp_path, observation={"state": None}, **{"steps/observation/state": None})
    paths = {"root": str(tmp_path), "name": NAME, "version": "1.0.0", "chunk_length": 4, "batch_size": 2, "seed": 0}
    collate = FrameCollate(image_size=16, views=("image",))
    data = FrameDataModule(**paths, views=("image",), collate=collate, proprio=False, num_workers=0)
    data.setup()
    assert data.space.proprio is None
    assert next(iter(data.val_dataloader()))["proprio"].shape == (2, 0)
    with pytest.raises(
        DataError, match=r"vectors of its steps: none; .*model\.backbone\.use_proprio=false"
    ):  # no action
        Demonstrations(directory)


def test_a_single_episode_cannot_be_held_out(tmp_path: Path):
    write(tmp_path, [episode(0)])
    data = ChunkDataModule(root=str(tmp_path), name=NAME, version="1.0.0", chunk_length=4, batch_size=2, seed=0)
    with pytest.raises(
        DataError, match=r"strange_arm/1\.0\.0 has 1 episode, which cannot be split .* record at least one more"
    ):
        data.setup()


# --- fewer steps


def test_deltas_are_summed_and_absolute_values_picked():
    actions = np.arange(14, dtype=np.float32).reshape(7, 2)
    assert downsample(actions, 3, np.array([True, False])).tolist() == [[6, 5], [24, 11], [12, 13]]
    assert downsample(actions, 1, np.array([True, True])) is actions


def test_idle_steps_are_those_that_neither_move_nor_grasp():
    actions = np.array([[0, 0, 1], [0, 0, 1], [1, 0, 1], [1, 0, 1], [0, 0, 0], [0, 0, 0]], dtype=np.float32)
    deltas, absolute = np.array([True, True, False]), np.array([False] * 3)
    assert moving_steps(actions, deltas, [2], 1e-4).tolist() == [2, 3, 4]
    assert moving_steps(actions, absolute, [2], 1e-4).tolist() == [0, 2, 4]


def test_what_is_left_out_is_counted_and_changes_the_content(tmp_path: Path):
    recorded = numbers(7)
    recorded[:, -1], recorded[4:6, :-1] = np.where(np.arange(STEPS) < 4, -1, 1), 0
    directory = changed(tmp_path, **{"steps/action": recorded})
    layout = Layout(rate=20, target_rate=10, relative=True, idle=0.01)
    frames, whole = all_frames(directory, 2, ("image",), layout), all_frames(directory, 2, ("image",))
    trajectory = frames.trajectories[0]
    np.testing.assert_allclose(trajectory.actions[:2, :6], recorded[:4, :6].reshape(2, 2, 6).sum(axis=1), rtol=1e-6)
    assert trajectory.actions[:, -1].tolist() == [1, 1, 0, 0]  # the third step moves nothing, but grasps
    np.testing.assert_array_equal(trajectory.proprio, episode(0)["steps/observation/state"][::2])
    assert frames.content_id() != whole.content_id()
    notes = frames.notes(Space.from_statistics(NAME, frames.norm_stats))
    assert "every 2. of 16 steps is kept: 10 of 20 Hz" in notes
    assert "0 of 8 steps are idle, and left out (data.idle=0.01)" in notes
    with pytest.raises(DataError, match=r"data\.idle=100 leaves no step of 16"):
        recorded[:, -1] = -1
        write_still = changed(tmp_path / "still", **{"steps/action": recorded})
        Demonstrations(write_still, layout=Layout(relative=True, idle=100, gripper=GripperRule(moves=False)))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"target_rate": 5, "relative": True}, r"data\.target_rate asks for down-sampling, and data\.rate is not set"),
        ({"every": 2, "relative": True}, r"data\.every asks for down-sampling, and data\.rate is not set"),
        ({"every": 2, "rate": 20}, r"data\.every is 2, .*set data\.relative=true, =false, or a list"),
        ({"idle": 0.1}, r"data\.idle is 0\.1, .*set data\.relative"),
        ({"rate": 20, "target_rate": 7, "relative": True}, r"data\.rate 20 Hz is no multiple; set 6\.66667 or 5"),
        ({"rate": 20, "target_rate": 30, "relative": True}, r"data\.target_rate is 30 Hz.*set 20 or 10"),
        ({"rate": 20, "every": 2, "target_rate": 10, "relative": True}, r"both set; set one of them to null"),
    ],
)
def test_down_sampling_that_lacks_something_names_the_key(settings: Any, said: str):
    with pytest.raises(SettingError, match=said):
        Layout(**settings)


def test_statistics_are_stored_by_content_and_layout(tmp_path: Path):
    directory, folder = changed(tmp_path), tmp_path / "statistics"
    first = Demonstrations(directory, layout=Layout(statistics=folder))
    (path,) = folder.iterdir()
    again = Demonstrations(directory, layout=Layout(statistics=folder))
    assert again.norm_stats == first.norm_stats == Demonstrations(directory).norm_stats
    Demonstrations(directory, layout=Layout(statistics=folder, action="action[1:]"))
    assert len([*folder.iterdir()]) == 2
    path.write_text("{}")
    with pytest.raises(DataError, match="delete it"):
        Demonstrations(directory, layout=Layout(statistics=folder))
