"""What proprio alone explains: a ridge regression from it to the chunk, held out by episode, as the control.

A policy with pictures and words should say more than a linear map of its joints. Where that map explains nearly all of
what it says, it has learned "what comes after this pose", and looks at nothing.
"""

from __future__ import annotations

import numpy as np

RIDGE = 1e-3  # of the squared length of each standardised dim: only keeps dims that repeat each other in bounds
NUM_FOLDS = 5


def ridge(inputs: np.ndarray, outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Fit outputs [n, dims] to inputs [n, P]; returns what `apply` takes."""
    center, scale = inputs.mean(axis=0), inputs.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    x, mean = (inputs - center) / scale, outputs.mean(axis=0)
    weights = np.linalg.solve(x.T @ x + RIDGE * len(x) * np.eye(x.shape[1]), x.T @ (outputs - mean))
    return center, scale, weights, mean


def apply(fitted: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], inputs: np.ndarray) -> np.ndarray:
    """Predictions for inputs [n, P]: [n, dims]."""
    center, scale, weights, mean = fitted
    return (inputs - center) / scale @ weights + mean


def held_out_predictions(inputs: np.ndarray, outputs: np.ndarray, episodes: np.ndarray) -> np.ndarray:
    """Predictions [n, dims] of rows whose whole episode was left out of the fit; of one episode, its parts are."""
    names = np.unique(episodes)
    groups = np.searchsorted(names, episodes) if len(names) > 1 else np.arange(len(inputs)) * NUM_FOLDS // len(inputs)
    fold = groups % min(NUM_FOLDS, len(np.unique(groups)))
    predicted = np.empty_like(outputs)
    for one in np.unique(fold):
        out = fold == one
        predicted[out] = apply(ridge(inputs[~out], outputs[~out]), inputs[out])
    return predicted
