"""What the episodes of a data set of one's own are made of, declared in a few words; features.json says the same.

    features = rlds_features({
        "observation/front": picture(480, 640),
        "observation/state": vector(8, "joint angles (7, rad), opening of the gripper (0 open … 1 closed)"),
        "action": vector(8, "commands for the same"),
    })

What surprises first: flags, rewards and the instruction are declared without being asked for, since every reader wants
them; `RLDSWriter` fills in the flags of a demonstration by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np

from rsd.data import DataError

if TYPE_CHECKING:
    from tensorflow_datasets.core.features import FeatureConnector

Format = Literal["jpeg", "png"]


def picture(height: int | None, width: int | None, encoding: Format = "jpeg", doc: str = "") -> FeatureConnector:
    """RGB pictures of 8 bits, all of one size; None for sizes that differ. JPEG is lossy (quality 95), PNG exact."""
    import tensorflow_datasets as tfds

    return tfds.features.Image(shape=(height, width, 3), dtype=np.uint8, encoding_format=encoding, doc=doc)


def vector(dims: int, doc: str = "", dtype: type = np.float32) -> FeatureConnector:
    """So many numbers a step; `doc` is the place for names, units and frames of the dims."""
    import tensorflow_datasets as tfds

    return tfds.features.Tensor(shape=(dims,), dtype=dtype, doc=doc)


def scalar(dtype: type = np.float32, doc: str = "") -> FeatureConnector:
    """One number a step, or of the episode."""
    import tensorflow_datasets as tfds

    return tfds.features.Scalar(dtype=dtype, doc=doc)


def text(doc: str = "") -> FeatureConnector:
    """A text a step, or of the episode."""
    import tensorflow_datasets as tfds

    return tfds.features.Text(doc=doc)


def rlds_features(
    steps: Mapping[str, FeatureConnector], metadata: Mapping[str, FeatureConnector] | None = None
) -> FeatureConnector:
    """The structure of a data set.

    Args:
        steps: Name, parts of which are separated by slashes, to the feature that has a value at every step.
        metadata: The same of values that an episode has once, beside file_path, which tells episodes apart.

    Raises:
        DataError: a name is that of a value and of a group of values.
    """
    import tensorflow_datasets as tfds

    usual = {
        "discount": scalar(np.float32, "Discount if provided, default to 1."),
        "reward": scalar(np.float32, "Reward if provided, 1 on final step for demos."),
        "is_first": scalar(np.bool_, "True on first step of the episode."),
        "is_last": scalar(np.bool_, "True on last step of the episode."),
        "is_terminal": scalar(np.bool_, "True on last step of the episode if it is a terminal step, True for demos."),
        "language_instruction": text("Language Instruction."),
    }
    once = {"file_path": text("Path to the original data file.")} | dict(metadata or {})
    return tfds.features.FeaturesDict(
        {"steps": tfds.features.Dataset(_nested(usual | dict(steps))), "episode_metadata": _nested(once)}
    )


def _nested(flat: Mapping[str, FeatureConnector]) -> FeatureConnector:
    import tensorflow_datasets as tfds

    tree: dict[str, dict[str, FeatureConnector] | FeatureConnector] = {}
    for name, feature in flat.items():
        first, _, rest = name.partition("/")
        if rest:
            inner = tree.setdefault(first, {})
            if not isinstance(inner, dict):
                raise DataError(f"feature {first} is declared beside {name}: it is one value or holds others")
            inner[rest] = feature
        elif first in tree:
            raise DataError(f"feature {first} is declared twice, or beside others that it holds")
        else:
            tree[first] = feature
    return tfds.features.FeaturesDict(
        {name: _nested(inner) if isinstance(inner, dict) else inner for name, inner in tree.items()}
    )
