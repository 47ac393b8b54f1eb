"""Models that run and cannot be right are refused when they are loaded."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from rsd.models.openvla import CanaryError
from rsd.models.openvla.canaries import check_canaries
from tests.models.published_copy import edit_json, load


@torch.no_grad()
def test_a_blind_model_is_refused(published):
    weights = load_file(published / "model.safetensors")
    weights["projector.fc3.weight"] = torch.zeros_like(weights["projector.fc3.weight"])
    save_file(weights, published / "model.safetensors")
    with pytest.raises(CanaryError, match=r"a black and a white picture give different answers: states differ by 0"):
        load(published)
    assert load(published, canaries=False).model is not None


def test_weights_that_are_not_finite_are_refused(published):
    weights = load_file(published / "model.safetensors")
    weights["projector.fc3.bias"][0] = torch.nan
    save_file(weights, published / "model.safetensors")
    with pytest.raises(CanaryError, match=r"hidden states are finite: \d+ of \d+ numbers are not"):
        load(published)


def test_a_causal_oft_model_is_refused(published, monkeypatch):
    base = load(published)
    honest = base.model.layer_states
    monkeypatch.setattr(
        base.model, "layer_states", lambda *args, **kwargs: honest(*args, **(kwargs | {"causal": True}))
    )
    with pytest.raises(CanaryError, match=r"attention is bidirectional: a change of the last token moves .* by 0"):
        check_canaries(base)


def test_reversed_statistics_are_refused(published):
    def swap(record):
        for entry in record.values():
            entry["action"]["q01"], entry["action"]["q99"] = entry["action"]["q99"], entry["action"]["q01"]

    edit_json(published / "dataset_statistics.json", swap)
    with pytest.raises(CanaryError, match="statistics are present and ordered"):
        load(published)
