# ruff: noqa: E402  what needs LeRobot comes behind the question whether it is there
"""plugins/lerobot_policy_rsd against LeRobot's own classes.

LeRobot has an environment of its own, without what tests/conftest.py needs; everywhere else these tests are skipped:
python -m pytest --noconftest tests/plugins (docs/lerobot.md).
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lerobot", reason="see docs/lerobot.md")
ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "plugins" / "lerobot_policy_rsd"))  # installed or not, these are the files under test

import torch
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.envs import preprocess_observation
from lerobot.envs.configs import LiberoEnv as LiberoConfig
from lerobot.policies import PreTrainedPolicy, get_policy_class, make_policy, make_pre_post_processors
from lerobot.policies.utils import prepare_observation_for_inference
from lerobot.processor.env_processor import LiberoProcessorStep
from lerobot_policy_rsd import RSDConfig, RSDPolicy
from lerobot_policy_rsd.modeling_rsd import BatchError, pixels

import rsd
from rsd.envs.rotation import axis_angle
from rsd.errors import SettingError
from rsd.types import Observation, Request

STOVE, RAMEKIN = (f"pick up the black bowl on the {place} and place it on the plate" for place in ("stove", "ramekin"))
QUATERNION = np.array([0.998, -0.02, 0.05, 0.03])  # x, y, z, w; robosuite's order
QUATERNION = QUATERNION / np.linalg.norm(QUATERNION)
SIZE = 256


def policy(**options) -> RSDPolicy:
    return RSDPolicy(RSDConfig(folder=str(ROOT / "released"), device="cpu", **options))


@pytest.fixture(scope="module")
def early():
    return policy(decoding="speculative")


def simulated(*seeds: int) -> dict:
    """What LeRobot's LIBERO environments give, a batch of them: pictures as rendered, which is upside down."""
    random = [np.random.default_rng(seed) for seed in seeds]
    pictures = {
        name: np.stack([one.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8) for one in random])
        for name in ("image", "image2")
    }
    hand = {
        "pos": np.stack([one.normal([-0.1, 0, 1.1], 0.1) for one in random]),
        "quat": np.stack([QUATERNION] * len(seeds)),
        "mat": np.zeros((len(seeds), 3, 3)),
    }
    joints = {"qpos": np.array([[0.04, -0.04]] * len(seeds)), "qvel": np.zeros((len(seeds), 2))}
    return {"pixels": pictures, "robot_state": {"eef": hand, "gripper": joints, "joints": {}}}


def ours(raw: dict, index: int, instruction: str) -> Observation:
    """The same as rsd's own environment gives it, but for the state's float32."""
    views = zip(("image", "wrist_image"), ("image", "image2"), strict=True)
    state = LiberoProcessorStep().observation(preprocess_observation(raw))["observation.state"]
    proprio = state[index].double().numpy()
    images = {mine: np.ascontiguousarray(raw["pixels"][theirs][index, ::-1, ::-1]) for mine, theirs in views}
    return Observation(images, proprio, instruction)


def batch_of(policy: RSDPolicy, raw: dict, *instructions: str) -> dict:
    """Through LeRobot's own steps, as lerobot-eval takes them."""
    before, _ = make_pre_post_processors(policy.config)
    observation = preprocess_observation(raw) | {"task": list(instructions)}
    return before(LiberoProcessorStep().observation(observation))


def test_lerobot_finds_the_policy_by_its_name():
    assert PreTrainedConfig.get_choice_class("rsd") is RSDConfig
    assert get_policy_class("rsd") is RSDPolicy and issubclass(RSDPolicy, PreTrainedPolicy)
    assert not RSDPolicy.__abstractmethods__ and not RSDConfig.__abstractmethods__


def test_pictures_and_state_are_those_of_rsds_own_environment(early):
    raw = simulated(1, 2)
    (_, seen) = early.observations_of(batch_of(early, raw, STOVE, RAMEKIN))
    hand, joints = raw["robot_state"]["eef"], raw["robot_state"]["gripper"]
    proprio = np.concatenate([hand["pos"][1], axis_angle(QUATERNION), joints["qpos"][1]])
    np.testing.assert_allclose(seen.proprio, proprio, atol=1e-6)
    np.testing.assert_array_equal(seen.images["image"], raw["pixels"]["image"][1, ::-1, ::-1])
    np.testing.assert_array_equal(seen.images["wrist_image"], raw["pixels"]["image2"][1, ::-1, ::-1])
    assert seen.instruction == RAMEKIN and not seen.stored


def test_the_same_observation_gives_the_same_actions_as_rsd_load(early):
    raw = simulated(0)
    early.reset()
    queue = rsd.load(ROOT / "released", decoding="speculative").queue(seed=early.episode_seed(0))
    _, after = make_pre_post_processors(early.config)
    observation = ours(raw, 0, STOVE)
    for _ in range(10):  # a chunk and the beginning of the next
        action = after(early.select_action(batch_of(early, raw, STOVE)))
        expected = queue.next(observation if queue.needs_observation else None)
        np.testing.assert_array_equal(action.numpy(), expected[None].astype(np.float32))
    assert set(np.unique(action[:, 6])) <= {-1.0, 1.0}


def test_each_environment_of_a_batch_has_its_own_queue_and_seed():
    sampled = policy(decoding="speculative_sampled") if has("speculative_sampled") else policy()
    raw = simulated(0, 1)
    batch = batch_of(sampled, raw, STOVE, RAMEKIN)
    first = sampled.select_action(batch)
    loaded = rsd.load(ROOT / "released", decoding=sampled.config.decoding)
    for index, words in enumerate((STOVE, RAMEKIN)):
        expected = loaded.queue(seed=sampled.episode_seed(index)).next(ours(raw, index, words))
        np.testing.assert_array_equal(first[index].numpy(), expected.astype(np.float32))
    before = [sampled.episode_seed(index) for index in range(2)]
    sampled.reset()
    after = [sampled.episode_seed(index) for index in range(2)]
    assert len({*before, *after}) == 4 and sampled._queues == []


def has(decoding: str) -> bool:
    return decoding in json.loads((ROOT / "released" / "policy.json").read_text())["decodings"]


def test_a_batch_must_not_change_in_the_middle_of_episodes(early):
    early.reset()
    early.select_action(batch_of(early, simulated(0, 1), STOVE, RAMEKIN))
    with pytest.raises(BatchError, match=r"a batch of 1 in the middle of 2 episodes; call reset\(\)"):
        early.select_action(batch_of(early, simulated(0), STOVE))


def test_a_chunk_is_the_policys_own(early):
    early.reset()
    raw = simulated(3, 4)
    chunk = early.predict_action_chunk(batch_of(early, raw, STOVE, RAMEKIN))
    assert chunk.shape == (2, 8, 7) and chunk.dtype == torch.float32
    (expected,) = early.policy.predict([Request(ours(raw, 0, STOVE), 0)])
    np.testing.assert_allclose(chunk[0].numpy(), np.clip(expected.actions, -1, 1), atol=1e-5)  # another batch


def test_every_pixel_comes_back_from_lerobots_floats():
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    np.testing.assert_array_equal(pixels(levels.float() / 255, "image"), levels.permute(0, 2, 3, 1).numpy())
    np.testing.assert_array_equal(pixels(levels, "image"), levels.permute(0, 2, 3, 1).numpy())


def test_pictures_that_are_not_turned_yet_are_turned_on_demand(early):
    raw = simulated(5)
    early.config.rotate_images = True
    try:
        unturned = preprocess_observation(raw) | {"task": [STOVE], "observation.state": torch.zeros(1, 8)}
        (seen,) = early.observations_of(unturned)
    finally:
        early.config.rotate_images = False
    np.testing.assert_array_equal(seen.images["image"], ours(raw, 0, STOVE).images["image"])


def test_a_robots_observation_goes_the_same_way(early):
    """lerobot-rollout: one robot, pictures [H, W, 3], the task as one text."""
    turned = ours(simulated(0), 0, STOVE)
    frame = {
        "observation.images.image": turned.images["image"],
        "observation.images.image2": turned.images["wrist_image"],
        "observation.state": turned.proprio.astype(np.float32),
    }
    before, after = make_pre_post_processors(early.config)
    early.reset()
    action = after(early.select_action(before(prepare_observation_for_inference(frame, torch.device("cpu"), STOVE))))
    expected = early.policy.queue(seed=early.episode_seed(0)).next(turned)
    np.testing.assert_array_equal(action.squeeze(0).numpy(), expected.astype(np.float32))


def test_saved_and_loaded_by_path(early, tmp_path):
    early.save_pretrained(tmp_path)
    for pipeline in make_pre_post_processors(early.config):
        pipeline.save_pretrained(tmp_path)
    config = PreTrainedConfig.from_pretrained(tmp_path, cli_overrides=["--decoding=l1", "--device=cpu"])
    assert isinstance(config, RSDConfig) and config.folder is None and config.decoding == "l1"
    config.pretrained_path = tmp_path
    libero = LiberoConfig(task="libero_goal", observation_height=SIZE, observation_width=SIZE)
    loaded = make_policy(config, env_cfg=libero)
    pipelines = make_pre_post_processors(
        config,
        pretrained_path=str(tmp_path),
        preprocessor_overrides={
            "device_processor": {"device": "cpu"},
            "rename_observations_processor": {"rename_map": {}},
        },
    )
    raw = simulated(0)
    observation = preprocess_observation(raw) | {"task": [STOVE]}
    action = pipelines[1](loaded.select_action(pipelines[0](LiberoProcessorStep().observation(observation))))
    queue = rsd.load(ROOT / "released").queue(seed=loaded.episode_seed(0))
    np.testing.assert_array_equal(action[0].numpy(), queue.next(ours(raw, 0, STOVE)).astype(np.float32))


def changed(**entries):
    """A batch that fits, with some entries exchanged; None takes one away."""
    fits = {
        "observation.images.image": torch.zeros(1, 3, 8, 8),
        "observation.images.image2": torch.zeros(1, 3, 8, 8),
        "observation.state": torch.zeros(1, 8),
        "task": [STOVE],
    }
    keys = {"image": "observation.images.image", "state": "observation.state", "task": "task"}
    given = fits | {keys[one]: new for one, new in entries.items()}
    return {key: value for key, value in given.items() if value is not None}


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            changed(image=None),
            r"pictures \['observation.images.image'\] are missing, there are .*image2.*--policy.views=",
        ),
        (changed(image=torch.zeros(1, 8, 8, 3)), r"has shape \[1, 8, 8, 3\], expected \[B, 3, H, W\]"),
        (
            changed(image=torch.full((1, 3, 8, 8), -2.0)),
            r"lies in -2 … -2, expected 0 … 1; leave out its normalisation",
        ),
        (changed(state=torch.zeros(1, 7)), r"observation.state has shape \(1, 7\), expected \(1, 8\)"),
        (changed(state=None), r"observation.state has shape None"),
        (changed(task=None), r"task is None, expected 1 instructions; give one with --task="),
        (changed(task=[""]), r"task is \[''\], expected 1 instructions"),
    ],
)
def test_a_batch_that_does_not_fit_says_what(early, batch, message):
    with pytest.raises(BatchError, match=message):
        early.observations_of(batch)


def test_a_configuration_that_does_not_fit_says_what(tmp_path):
    with pytest.raises(SettingError, match=r"no policy folder; give --policy.folder=released"):
        RSDPolicy(RSDConfig(device="cpu"))
    with pytest.raises(SettingError, match=r"policy folder 'nobody/policy' does not exist here"):
        RSDPolicy(RSDConfig(folder="nobody/policy", device="cpu"))
    with pytest.raises(SettingError, match=r"policy.seed is -1"):
        RSDConfig(seed=-1, device="cpu")
    with pytest.raises(BatchError, match=r"looks at \['wrist_image'\], and policy.views names \['image'\]"):
        policy(views={"image": "observation.images.front"})
    camera = PolicyFeature(FeatureType.VISUAL, (3, 8, 8))
    with pytest.raises(
        SettingError, match=r"'observation.images.image2'\] are not offered, but \['observation.images.a'\]"
    ):
        policy(input_features={"observation.images.a": camera})


def test_training_is_refused_in_one_line(early):
    for ask in (lambda: early.forward({}), early.get_optim_params, early.config.get_optimizer_preset):
        with pytest.raises(NotImplementedError, match=r"LeRobot cannot train a policy folder of rsd; .*train.py"):
            ask()


def test_the_distribution_has_the_name_that_lerobot_looks_for():
    import tomllib

    project = tomllib.loads((ROOT / "plugins/lerobot_policy_rsd/pyproject.toml").read_text())["project"]
    assert project["name"] == "lerobot_policy_rsd" and project["version"] == rsd.__version__
    assert {field.name for field in dataclasses.fields(RSDConfig)} >= {"folder", "decoding", "views", "seed"}


def test_the_command_that_saves_one_says_what_is_wrong(tmp_path):
    command = [sys.executable, "-m", "lerobot_policy_rsd", str(tmp_path), str(tmp_path / "out")]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT / "plugins/lerobot_policy_rsd", env={"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "is no policy" in done.stderr
