"""Every choice of the groups `env` and `protocol` builds the environment's constructor call."""

import inspect
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from rsd.envs.checks import check_environment
from rsd.envs.libero import ACTION_DIM, CAMERAS, PROPRIO_DIM, LiberoEnv, libero_tasks
from rsd.protocols import OPENVLA_OFT, PROMISED

CONF = Path(__file__).parents[2] / "conf"
MAX_STEPS = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}
PROTOCOLS = {"openvla_oft": (50, 8), "openvla": (50, 1), "lerobot": (10, 8), "smoke": (1, 8)}  # trials, executed steps


def composed(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("eval", list(overrides))


def choices(group):
    return {path.stem for path in (CONF / group).glob("*.yaml") if not path.stem.startswith("_")}


@pytest.mark.parametrize("suite", MAX_STEPS)
def test_suite(suite):
    config = composed(f"env={suite}", "env.variant=swap")
    make = instantiate(config.env.make)
    assert make.func is LiberoEnv
    assert make.keywords["suite"] == config.env.suite == suite and make.keywords["variant"] == "swap"
    assert make.keywords["max_steps"] == config.env.max_steps == MAX_STEPS[suite]
    assert make.keywords["waiting_action"] == [0, 0, 0, 0, 0, 0, -1]
    assert config.env.tasks.max_steps == config.env.max_steps and config.env.tasks.protocol == config.env.make.protocol
    inspect.signature(libero_tasks).bind(
        **{key: config.env.tasks[key] for key in config.env.tasks if key != "_target_"}
    )
    assert config.env.num_tasks == (90 if suite == "libero_90" else 10)
    inspect.signature(LiberoEnv).bind(**make.keywords, task_id=3)
    inspect.signature(check_environment).bind(**{key: config.check[key] for key in config.check if key != "_target_"})


def test_what_is_offered_is_what_tasks_say():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        served = compose("serve").offers
    expected = {"views": list(CAMERAS), "proprio_dim": PROPRIO_DIM, "action_dim": ACTION_DIM}
    assert composed().env.offers == served == expected


def test_all_suites_and_protocols_are_tested_here():
    assert choices("env") - {"replay", "widowx"} == set(MAX_STEPS)
    assert choices("protocol") - {"openvla_bridge"} == set(PROTOCOLS)  # tests/envs/test_widowx.py


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_protocol(protocol):
    config = composed(f"protocol={protocol}")
    make = instantiate(config.env.make)
    assert make.keywords["protocol"] == f"{protocol}-1"
    assert (config.num_trials, config.num_open_loop_steps) == PROTOCOLS[protocol]
    assert config.protocol.clip_actions is True
    expected = {"num_wait_steps": 10, "image_size": 256, "rotate_images": True, "seed": 0, "max_steps": 220}
    if protocol == "lerobot":
        expected |= {"seed": 1000, "max_steps": 280}
    assert {key: make.keywords[key] for key in expected} == expected


@pytest.mark.parametrize("suite", MAX_STEPS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_a_protocol_is_configured_with_is_what_its_name_promises(protocol, suite):
    config = composed(f"protocol={protocol}", f"env={suite}", "env.variant=swap")
    assert instantiate(config.env.make).keywords["protocol"] == f"{protocol}-1"
    for name in OPENVLA_OFT.keys() - {"max_steps"}:
        assert config.protocol[name] == PROMISED[f"{protocol}-1"][name]
    assert config.env.max_steps == PROMISED[f"{protocol}-1"]["max_steps"][suite]


@pytest.mark.parametrize(
    ("typed", "changed"),
    [
        ("protocol.num_wait_steps=0", "num_wait_steps=0"),
        ("env.make.num_wait_steps=20", "num_wait_steps=20"),
        ("env.max_steps=100", "max_steps=100"),
        ("protocol.max_steps.libero_spatial=400", "max_steps=400"),
        ("env.make.max_steps=300", "max_steps=300"),
        ("protocol.image_size=128", "image_size=128"),
        ("env.image_size=224", "image_size=224"),
        ("protocol.rotate_images=false", "rotate_images=False"),
        ("protocol.seed=1", "seed=1"),
        ("protocol.clip_actions=false", "clip_actions=False"),
        ("protocol.waiting_action=[0,0,0,0,0,0,1]", "waiting_action=[0, 0, 0, 0, 0, 0, 1]"),
    ],
)
def test_a_stamp_says_which_value_it_does_not_promise(typed, changed):
    config = composed(typed)
    assert instantiate(config.env.make).keywords["protocol"] == f"openvla_oft-1 with {changed}"
    assert config.env.tasks.protocol == config.env.make.protocol
    made = composed(typed, "protocol.name=mine")
    assert instantiate(made.env.make).keywords["protocol"] == "mine-1"


def test_accepting_another_mujoco_reaches_check_and_environment():
    config = composed("env.allow_mujoco_version=3.3.0")
    assert config.check.allow_mujoco_version == config.env.make.allow_mujoco_version == "3.3.0"
