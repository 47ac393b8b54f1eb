"""Fakes and the real things keep the same promises: `mypy` holds every assignment here to its protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rsd.data.datamodules import ChunkDataModule, FrameDataModule
from rsd.data.fill_cache import Frames
from rsd.data.hidden_states import HiddenStateDataModule
from rsd.demos.demonstrations import Expert, RandomStartEnv
from rsd.training import given
from rsd.types import BaseModel, Env, Pass, Policy
from tests.data.fake_base import LinearBase, ToyFrames
from tests.evaluation.policies import SeeingPolicy
from tests.fakes import PointMassEnv
from tests.scripts.point_mass import PointMassExpert, RandomPointMassEnv
from tests.serving.policies import TellingPolicy

if TYPE_CHECKING:
    from rsd.data.datasets import FrameDataset
    from rsd.demos.demonstrations import LiberoExpert
    from rsd.envs.libero import LiberoEnv
    from rsd.models.openvla.base import OpenVLABase
    from rsd.policy.policy import VLAPolicy


def promised(protocol: type) -> set[str]:
    """Names of everything that a protocol asks for."""
    names = {name for one in protocol.__mro__[:-1] for name in (*vars(one), *vars(one).get("__annotations__", {}))}
    return {name for name in names if not name.startswith("_")}


def test_fakes_have_all_that_their_protocols_ask_for(tmp_path):
    base: BaseModel = LinearBase()
    frames: Frames = ToyFrames()
    looked: Pass = base.look([frames[0]["observation"]])
    env: Env = PointMassEnv()
    random_start = RandomPointMassEnv(task_id=0, marks=str(tmp_path))
    anywhere: RandomStartEnv = random_start
    expert: Expert = PointMassExpert(random_start)
    policy: Policy = SeeingPolicy()
    served: Policy = TellingPolicy()
    kept = {BaseModel: base, Frames: frames, Pass: looked, Env: env, RandomStartEnv: anywhere, Expert: expert}
    missing = {protocol.__name__: promised(protocol) - set(dir(fake)) for protocol, fake in kept.items()}
    missing["Policy"] = promised(Policy) - (set(dir(policy)) & set(dir(served)))
    assert not any(missing.values()), missing


def real_ones(
    base: OpenVLABase, frames: FrameDataset, env: LiberoEnv, expert: LiberoExpert, policy: VLAPolicy
) -> tuple[BaseModel, Frames, RandomStartEnv, Expert, Policy]:
    """For mypy alone: they need weights, files or the simulator."""
    return base, frames, env, expert, policy


def datamodules(
    chunks: ChunkDataModule, frames: FrameDataModule, states: HiddenStateDataModule
) -> tuple[given.ChunkDataModule, given.FrameDataModule, given.HiddenStateDataModule]:
    """For mypy alone: what the phases ask for is what the datamodules have."""
    return chunks, frames, states
