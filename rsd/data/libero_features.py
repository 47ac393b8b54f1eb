"""The feature structure of the published `libero_*_no_noops` RLDS sets, for writing such sets and for checking them.

What surprises first: tensorflow-datasets takes a second to import (without TensorFlow), so it is imported inside the
functions that need it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from tensorflow_datasets.core.features import FeatureConnector

STEPS = "steps"  # the feature that holds one value a step of everything below it
IMAGE_SHAPE = (256, 256, 3)
ACTION_DIM = 7  # end-effector deltas (6), gripper command
STATE_DIM = 8  # end-effector position (3, m), axis-angle (3, rad), gripper joint positions (2, m)
JOINT_DIM = 7  # arm joint angles, rad


class FeatureSpec(NamedTuple):
    """Shape and type of one value of a feature.

    Attributes:
        kind: "image" (encoded), "text" or "tensor", which are read, or the name of what is not.
        dtype, shape: Of one value; of pictures None stands for sizes that are not declared.
        encoding: How a tensor's bytes lie in one string: "bytes" or "zlib"; "none" for a list of numbers.
    """

    kind: str
    dtype: np.dtype
    shape: tuple[int | None, ...]
    encoding: str = "none"

    @property
    def sizes(self) -> tuple[int, ...]:
        """Shape of a tensor, all of whose sizes are declared."""
        return tuple(size for size in self.shape if size is not None)

    @property
    def is_read(self) -> bool:
        """Whether the reader knows this kind."""
        return self.kind in ("image", "text", "tensor")


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
    if isinstance(feature, tfds.features.Dataset) and prefix == STEPS:
        return flatten_features(feature.feature, prefix)
    name, shape = type(feature).__name__, feature.shape
    if isinstance(feature, tfds.features.Image):
        return {prefix: FeatureSpec("image", np.dtype(feature.np_dtype), tuple(shape))}
    if not isinstance(feature, tfds.features.Tensor):  # Sequence, Video, Audio, …
        return {prefix: FeatureSpec(name, np.dtype(object), ())}
    dtype = np.dtype(feature.np_dtype)
    encoding = getattr(feature.to_json_content(), "encoding", "") or "none"  # ClassLabel and others have none
    if dtype.kind in "OSU":  # Text, or a Tensor of strings as the Open X-Embodiment sets have them
        kind = "text" if shape == () else f"{name} of strings {list(shape)}"
    elif dtype.kind in "fiub" and None not in shape and 0 not in shape:
        kind = "tensor"
    else:
        kind = f"{name} of {dtype} {list(shape)}"
    return {prefix: FeatureSpec(kind, dtype, tuple(shape), encoding)}
