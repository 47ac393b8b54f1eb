"""What LeRobot is told of a policy: --policy.type=rsd, and every field below as --policy.FIELD.

What surprises first: nothing here describes the model. The folder does, and its statistics are applied inside of it, so
LeRobot normalises nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lerobot.configs import FeatureType, NormalizationMode, PreTrainedConfig
from lerobot.optim import OptimizerConfig

from rsd.errors import RSDError, SettingError

NORMALIZED = (FeatureType.VISUAL, FeatureType.STATE, FeatureType.ACTION)  # elsewhere; here nothing is
IDENTITY = {kind.value: NormalizationMode.IDENTITY for kind in NORMALIZED}
# LeRobot's names for LIBERO's cameras, both in its environment and in its data sets
LIBERO_VIEWS = {"image": "observation.images.image", "wrist_image": "observation.images.image2"}


class NotTrainedHereError(RSDError, NotImplementedError):
    """LeRobot was asked to train the policy."""

    def __init__(self) -> None:
        super().__init__("LeRobot cannot train a policy folder of rsd; train its parts with train.py")


@PreTrainedConfig.register_subclass("rsd")
@dataclass
class RSDConfig(PreTrainedConfig):
    """A policy folder, and how it is used.

    Attributes:
        folder: Holds policy.json; None: the folder that --policy.path names, as `save_pretrained` writes it.
        decoding, target, draft: As in `rsd.load`; None takes the folder's own choice.
        num_open_loop_steps: Actions of a chunk that are executed; None takes the folder's.
        seed: Every episode's own follows from it; 0 or more.
        views: View of the policy → key of the picture in LeRobot's observations.
        rotate_images: Turn pictures by 180 degrees first. LeRobot has done that for its LIBERO environment and data
            sets; the policy wants them so.
    """

    folder: str | None = None
    decoding: str | None = None
    target: str | None = None
    draft: str | None = None
    num_open_loop_steps: int | None = None
    seed: int = 7
    views: dict[str, str] = field(default_factory=lambda: dict(LIBERO_VIEWS))
    rotate_images: bool = False
    normalization_mapping: dict[str, NormalizationMode] = field(default_factory=lambda: dict(IDENTITY))
    push_to_hub: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seed < 0:
            raise SettingError(f"policy.seed is {self.seed}, expected an integer of 0 or more")

    @property
    def policy_folder(self) -> Path:
        """Where policy.json is.

        Raises:
            SettingError: nobody said, or it is no folder of this machine.
        """
        named = self.folder or self.pretrained_path
        if named is None:
            raise SettingError("no policy folder; give --policy.folder=released, or --policy.path= of one saved before")
        if not Path(named).is_dir():
            raise SettingError(f"policy folder {str(named)!r} does not exist here; one on a hub is to be fetched first")
        return Path(named)

    def validate_features(self) -> None:
        """Hold the pictures that LeRobot announces against `views`; without an announcement nothing.

        Raises:
            SettingError: one is not among them.
        """
        offered = sorted(self.image_features)
        missing = [key for key in self.views.values() if offered and key not in offered]
        if missing:
            raise SettingError(
                f"pictures {missing} are not offered, but {offered} are; name them with "
                '--policy.views=\'{"image": "observation.images.NAME"}\''
            )

    def get_optimizer_preset(self) -> OptimizerConfig:
        raise NotTrainedHereError

    def get_scheduler_preset(self) -> None:
        raise NotTrainedHereError

    @property
    def observation_delta_indices(self) -> None:
        return None

    @property
    def action_delta_indices(self) -> None:
        return None

    @property
    def reward_delta_indices(self) -> None:
        return None
