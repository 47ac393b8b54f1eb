"""A policy folder behind LeRobot's policy: an action queue for each environment of its batch.

What surprises first: actions are robot commands as the environment takes them (for LIBERO the gripper is -1 open and +1
close), so no postprocessor may un-normalise or turn anything. And there are no parameters to see here: the models are
rsd's own, on the device that the configuration names when they are loaded.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import OBS_STATE
from torch import Tensor

import rsd
from lerobot_policy_rsd.configuration_rsd import NotTrainedHereError, RSDConfig
from rsd.errors import RSDError
from rsd.queue import Queue, chunk_seed
from rsd.types import Observation, Request


class BatchError(RSDError, ValueError):
    """A batch of LeRobot's lacks something, or holds it in another form."""


class RSDPolicy(PreTrainedPolicy):
    """A policy folder.

    Attributes:
        policy: What `rsd.load` gives.

    Raises:
        SettingError: see `RSDConfig.policy_folder` and `RSDConfig.validate_features`.
        CheckpointError, PolicyError: see `rsd.load`.
    """

    config_class = RSDConfig
    name = "rsd"

    def __init__(self, config: RSDConfig, **_: Any) -> None:
        super().__init__(config)
        folder = config.policy_folder
        self.policy = rsd.load(
            folder,
            decoding=config.decoding,
            target=config.target,
            draft=config.draft,
            num_open_loop_steps=config.num_open_loop_steps,
            device=config.device or "cpu",
        )
        if missing := [view for view in self.policy.base.spec.views if view not in config.views]:
            raise BatchError(
                f"{folder} looks at {missing}, and policy.views names {sorted(config.views)}; name them too"
            )
        config.views = {view: config.views[view] for view in self.policy.base.spec.views}
        config.validate_features()
        self._episodes = -1  # episodes of each environment that are over
        self.reset()

    @classmethod
    def from_pretrained(
        cls, pretrained_name_or_path: str | Path, *, config: RSDConfig | None = None, **options: Any
    ) -> RSDPolicy:
        """The policy in a folder that `save_pretrained` has written."""
        if config is None:
            config = RSDConfig.from_pretrained(pretrained_name_or_path, **options)
        config.pretrained_path = Path(pretrained_name_or_path)
        policy = cls(config)
        policy.eval()
        return policy

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """The policy folder itself, and LeRobot's config.json in it: `--policy.path` takes it."""
        folder = self.config.policy_folder
        if folder.resolve() != Path(save_directory).resolve():
            shutil.copytree(folder, save_directory, dirs_exist_ok=True)
        named, path = self.config.folder, self.config.pretrained_path
        self.config.folder = self.config.pretrained_path = None  # it is where the configuration is, on any machine
        try:
            self.config._save_pretrained(save_directory)
        finally:
            self.config.folder, self.config.pretrained_path = named, path

    def reset(self) -> None:
        """Episodes begin, one in each environment of the batches that follow."""
        self._queues: list[Queue] = []
        self._episodes += 1

    @torch.inference_mode()
    def select_action(self, batch: Mapping[str, Any], **_: Any) -> Tensor:
        """The next action of each environment, [B, A], float32, robot commands.

        Raises:
            BatchError: see `observations_of`; or the batch has another size than since the last reset.
            ActionError: see `Queue.next`.
        """
        size = batch_size(batch, self.config.views)
        if not self._queues:
            self._queues = [self.policy.queue(seed=self.episode_seed(index)) for index in range(size)]
        if len(self._queues) != size:
            raise BatchError(
                f"a batch of {size} in the middle of {len(self._queues)} episodes; call reset() between them"
            )
        looks = any(queue.needs_observation for queue in self._queues)
        seen = self.observations_of(batch) if looks else [None] * size
        actions = [
            queue.next(one if queue.needs_observation else None) for queue, one in zip(self._queues, seen, strict=True)
        ]
        return torch.from_numpy(np.stack(actions)).float()

    @torch.inference_mode()
    def predict_action_chunk(self, batch: Mapping[str, Any], **_: Any) -> Tensor:
        """A chunk for each environment, [B, T, A], float32, clipped robot commands; nothing is remembered."""
        low, high = self.policy.base.spec.space.limits
        seen = self.observations_of(batch)
        requests = [Request(one, chunk_seed(self.episode_seed(index), 0)) for index, one in enumerate(seen)]
        length = self.policy.base.spec.chunk_length
        chunks = [chunk.actions[:length] for chunk in self.policy.predict(requests)]
        return torch.from_numpy(np.clip(np.stack(chunks), low, high)).float()

    def episode_seed(self, index: int) -> int:
        """Seed of the episode that runs now in this environment of the batch; a function of both and of the run's."""
        return chunk_seed(chunk_seed(self.config.seed, self._episodes), index)

    def observations_of(self, batch: Mapping[str, Any]) -> list[Observation]:
        """What each environment shows.

        Args:
            batch: As LeRobot's preprocessor gives it: pictures [B, 3, H, W], float in 0..1 or uint8; the state [B, P];
                "task", one text for each.

        Raises:
            BatchError: something is missing or of another form.
        """
        views = self.config.views
        size = batch_size(batch, views)
        pictures = {view: pixels(batch[key], key) for view, key in views.items()}  # [B, H, W, 3] each
        if self.config.rotate_images:
            pictures = {view: np.ascontiguousarray(stack[:, ::-1, ::-1]) for view, stack in pictures.items()}
        states, words = self._states(batch, size), instructions(batch, size)
        return [
            Observation({view: stack[index] for view, stack in pictures.items()}, states[index], words[index])
            for index in range(size)
        ]

    def _states(self, batch: Mapping[str, Any], size: int) -> np.ndarray:
        """Proprio of each environment, [B, P], float64; P is 0 where the policy is told none."""
        expected = self.policy.base.spec.proprio_dim
        if expected is None:
            return np.zeros((size, 0))
        found = batch.get(OBS_STATE)
        shape = None if found is None else tuple(found.shape)
        if shape != (size, expected):
            raise BatchError(
                f"{OBS_STATE} has shape {shape}, expected {(size, expected)}, as the policy was trained on"
            )
        return np.asarray(found.cpu().numpy(), dtype=np.float64)

    def forward(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict | None]:
        raise NotTrainedHereError

    def get_optim_params(self) -> dict:
        raise NotTrainedHereError


def batch_size(batch: Mapping[str, Any], views: Mapping[str, str]) -> int:
    """B.

    Raises:
        BatchError: a picture is not there.
    """
    if missing := sorted(set(views.values()) - batch.keys()):
        offered = sorted(key for key in batch if key.startswith("observation.image"))
        raise BatchError(f"pictures {missing} are missing, there are {offered}; name them with --policy.views=")
    return len(batch[next(iter(views.values()))])


def pixels(pictures: Tensor, key: str) -> np.ndarray:
    """Pictures [B, 3, H, W], float in 0..1 or uint8, as [B, H, W, 3], uint8: the ones that LeRobot has divided by 255.

    Raises:
        BatchError: they are of another form, or beyond 0..1, as normalised ones are.
    """
    if pictures.ndim != 4 or pictures.shape[1] != 3:
        raise BatchError(f"{key} has shape {list(pictures.shape)}, expected [B, 3, H, W]")
    if pictures.dtype != torch.uint8:
        low, high = (float(edge) for edge in torch.aminmax(pictures))
        if not (low >= 0 and high <= 1):
            raise BatchError(f"{key} lies in {low:.3g} … {high:.3g}, expected 0 … 1; leave out its normalisation")
        pictures = (pictures * 255).round().to(torch.uint8)
    return np.ascontiguousarray(pictures.permute(0, 2, 3, 1).cpu().numpy())


def instructions(batch: Mapping[str, Any], size: int) -> Sequence[str]:
    """The task of each environment in words.

    Raises:
        BatchError: there is none, or not one for each.
    """
    found = batch.get("task")
    words = [found] * size if isinstance(found, str) else found
    if not isinstance(words, Sequence) or len(words) != size or not all(isinstance(one, str) and one for one in words):
        raise BatchError(f"task is {found!r}, expected {size} instructions; give one with --task= where a robot asks")
    return words
