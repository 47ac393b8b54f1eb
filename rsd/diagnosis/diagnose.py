"""A diagnosis from a policy and a data set to a folder: measured, looked into, judged, written down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from rsd.data.datasets import FrameDataset
from rsd.diagnosis.features import patch_features
from rsd.diagnosis.measure import Options, Tell, measure
from rsd.diagnosis.measurements import Measurements
from rsd.diagnosis.moments import Moment
from rsd.diagnosis.page import Look, render_diagnosis
from rsd.diagnosis.saliency import saliency
from rsd.diagnosis.verdict import Statement, headline, verdict
from rsd.files import write_atomically
from rsd.models.openvla.base import OpenVLABase
from rsd.policy.policy import VLAPolicy
from rsd.record import write

RECORD, PAGE = "diagnosis.json", "diagnosis.html"


def diagnose(
    policy: VLAPolicy,
    frames: FrameDataset,
    folder: Path,
    title: str,
    options: Options,
    num_looks: int,
    tell: Tell,
    speaker: VLAPolicy | None = None,
) -> list[Statement]:
    """Measure a policy, and write diagnosis.json and diagnosis.html; the statements come back, the worst first.

    Args:
        frames: Of all episodes, with the policy's views and chunk length.
        folder: Where to; what an earlier diagnosis left there is replaced.
        num_looks: Frames whose features and saliency are drawn.
        speaker: The same policy by a decoding over tokens; see `measure`.

    Raises:
        DataError: nothing can be held out, or a picture cannot be decoded.
        InstructionError: the policy does not understand the data set's instructions.
        PolicyError or NotFiniteError: a part says NaN.
    """
    found, moments = measure(policy, frames, options, tell, speaker)
    statements = verdict(found)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder, title, found, statements, [])  # before the pictures, which need gradients and more memory
    base = policy.base
    assert isinstance(base, OpenVLABase)
    looks = []
    chosen = [moments[int(one)] for one in np.linspace(0, len(moments) - 1, min(num_looks, len(moments)))]
    for number, moment in enumerate(chosen):
        looks.append(look(base, moment))
        tell("pictures", number + 1, len(chosen))
    if looks:
        names = looks[0].saliency.shares
        found = replace(found, saliency={one: float(np.mean([a.saliency.shares[one] for a in looks])) for one in names})
    _write(folder, title, found, statements, looks)
    return statements


def look(base: OpenVLABase, moment: Moment) -> Look:
    """What the base model makes of a moment's pictures, and on what its chunk hangs."""
    observation = moment.own["observation"]
    return Look(
        observation=observation,
        where=f"episode {moment.own['episode']}, step {moment.own['step']}",
        saliency=saliency(base, observation),
        features=patch_features(base, observation),
    )


def _write(
    folder: Path, title: str, found: Measurements, statements: Sequence[Statement], looks: Sequence[Look]
) -> None:
    record = {
        "title": title,
        "verdict": headline(list(statements)),
        "statements": [asdict(one) for one in statements],
        "measurements": asdict(found),
    }
    write(folder / RECORD, record)
    write_atomically(folder / PAGE, render_diagnosis(title, found, statements, looks))
