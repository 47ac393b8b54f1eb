"""The feature structure of the published `libero_*_no_noops` RLDS sets, for writing such sets and for checking them.

What surprises first: tensorflow-datasets takes a second to import (without TensorFlow), so it is imported inside the
functions that need it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from tensorflow_datasets.core.features import FeatureConnector

IMAGE_SHAPE = (256, 256, 3)
ACTION_DIM = 7  # end-effector deltas (6), gripper command
STATE_DIM = 8  # end-effector position (3, m), axis-angle (3, rad), gripper joint positions (2, m)
JOINT_DIM = 7  # arm joint angles, rad


class FeatureSpec(NamedTuple):
    """Shape and type of one value of a feature: kind "image" (encoded uint8), "text" or "tensor"."""

    kind: str
    dtype: np.dtype
    shape: tuple[int, ...]


def libero_features() -> FeatureConnector:
    """The structure as a tensorflow-datasets feature, which writes features.json and takes part in its reader."""
    import tensorflow_datasets as tfds

    def picture(doc: str) -> FeatureConnector:
        return tfds.features.Image(shape=IMAGE_SHAPE, dtype=np.uint8, encoding_format="jpeg", doc=doc)

    def vector(dims: int, doc: str) -> FeatureConnector:
        return tfds.features.Tensor(shape=(dims,), dtype=np.float32, doc=doc)

    def scalar(dtype: type, doc: str) -> FeatureConnector:
        return tfds.features.Scalar(dtype=dtype, doc=doc)

    observation = {
        "image": picture("Main camera RGB observation."),
        "wrist_image": picture("Wrist camera RGB observation."),
        "state": vector(STATE_DIM, "Robot EEF state (6D pose, 2D gripper)."),
        "joint_state": vector(JOINT_DIM, "Robot joint angles."),
    }
    step = {
        "observation": tfds.features.FeaturesDict(observation),
        "action": vector(ACTION_DIM, "Robot EEF action."),
        "discount": scalar(np.float32, "Discount if provided, default to 1."),
        "reward": scalar(np.float32, "Reward if provided, 1 on final step for demos."),
        "is_first": scalar(np.bool_, "True on first step of the episode."),
        "is_last": scalar(np.bool_, "True on last step of the episode."),
        "is_terminal": scalar(np.bool_, "True on last step of the episode if it is a terminal step, True for demos."),
        "language_instruction": tfds.features.Text(doc="Language Instruction."),
    }
    metadata = {"file_path": tfds.features.Text(doc="Path to the original data file.")}
    return tfds.features.FeaturesDict(
        {"steps": tfds.features.Dataset(step), "episode_metadata": tfds.features.FeaturesDict(metadata)}
    )


def flatten_features(feature: FeatureConnector, prefix: str = "") -> dict[str, FeatureSpec]:
    """Flat name, as it stands in a record ("steps/observation/state"), to what one value of it is."""
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.FeaturesDict):
        flat: dict[str, FeatureSpec] = {}
        for name, child in feature.items():
            flat |= flatten_features(child, f"{prefix}/{name}" if prefix else name)
        return flat
    if isinstance(feature, tfds.features.Dataset):
        return flatten_features(feature.feature, prefix)
    kind = "tensor"
    if isinstance(feature, tfds.features.Image):
        kind = "image"
    elif isinstance(feature, tfds.features.Text):
        kind = "text"
    return {prefix: FeatureSpec(kind, np.dtype(feature.np_dtype), tuple(feature.shape))}
