"""diagnosis.html: one page that opens offline, verdict first; made from the records and a few pictures alone."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rsd.diagnosis.features import as_colours
from rsd.diagnosis.measurements import Measurements
from rsd.diagnosis.saliency import Saliency
from rsd.diagnosis.verdict import Statement, headline
from rsd.evaluation.page import render_page
from rsd.finding import FAILED, OK, WARNING
from rsd.types import Observation

HERE = Path(__file__).parent
SHOWN = 192  # pixels of a picture's side in the page
HOT, COLD = np.array([255.0, 90.0, 30.0]), np.array([20.0, 24.0, 40.0])
NUM_WORDS = 24  # bars of words in the page


@dataclass(frozen=True)
class Look:
    """One moment with what the policy makes of its pictures.

    Attributes:
        observation: What is seen.
        where: Task, episode and step, for people.
        saliency: Of the action slots.
        features: Stage → view → features on their grid; see `features.patch_features`.
    """

    observation: Observation
    where: str
    saliency: Saliency
    features: dict[str, dict[str, np.ndarray]]


def render_diagnosis(title: str, found: Measurements, statements: Sequence[Statement], looks: Sequence[Look]) -> str:
    """The page."""
    counts = {status: sum(one.status == status for one in statements) for status in (FAILED, WARNING, OK)}
    return render_page(
        "diagnosis.html",
        folder=HERE,
        title=title,
        headline=headline(list(statements)),
        statements=statements,
        counts=counts,
        status={"failed": FAILED, "warning": WARNING, "ok": OK},
        found=found,
        widest=max([1.0, *(one.of_spread.value for one in found.moved)]),
        looks=[_look(one) for one in looks],
        features=feature_pictures(looks),
        gripper_dims=[one.dim for one in found.grippers],
    )


def _look(one: Look) -> dict[str, Any]:
    words = sorted(one.saliency.words, key=lambda word: -word[1])[:NUM_WORDS]
    kept = {id(word) for word in words}
    return {
        "where": one.where,
        "instruction": one.observation.instruction,
        "shares": one.saliency.shares,
        "words": [word for word in one.saliency.words if id(word) in kept],
        "largest": max([share for _, share in one.saliency.words] or [1.0]) or 1.0,
        "pictures": [
            {
                "view": view,
                "plain": inline(one.observation.images[view]),
                "heat": inline(overlaid(one.observation.images[view], heat)),
            }
            for view, heat in one.saliency.maps.items()
        ],
    }


def feature_pictures(looks: Sequence[Look]) -> list[dict[str, Any]]:
    """Stage by stage and view by view the features of all looks in colours: {stage, view, pictures}."""
    rows = []
    for stage, by_view in looks[0].features.items() if looks else ():
        for view in by_view:
            colours = as_colours([one.features[stage][view] for one in looks])
            rows.append({"stage": stage, "view": view, "pictures": [inline(one, smooth=False) for one in colours]})
    return rows


def overlaid(picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A picture [H, W, 3] with heat [h, w] over it, the hottest place in full; [SHOWN, SHOWN, 3], uint8."""
    scaled = heat / heat.max() if heat.max() > 0 else heat
    mask = Image.fromarray((255 * scaled).astype(np.uint8)).resize((SHOWN, SHOWN), Image.Resampling.BILINEAR)
    strength = np.asarray(mask, dtype=np.float64)[..., None] / 255  # [SHOWN, SHOWN, 1]
    small = np.asarray(Image.fromarray(picture).resize((SHOWN, SHOWN)), dtype=np.float64)
    grey = small.mean(axis=-1, keepdims=True)
    shown = (1 - 0.75 * strength) * (0.55 * grey + 0.45 * COLD) + 0.75 * strength * HOT
    return shown.clip(0, 255).astype(np.uint8)


def inline(picture: np.ndarray, *, smooth: bool = True) -> str:
    """A picture as a data: URL, SHOWN pixels wide; small grids keep their squares."""
    resample = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    image, buffer = Image.fromarray(picture).resize((SHOWN, SHOWN), resample), io.BytesIO()
    image.save(buffer, format="JPEG" if smooth else "PNG", **({"quality": 82} if smooth else {}))
    kind = "jpeg" if smooth else "png"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
