"""Models that run and cannot be right are refused when they are loaded."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from rsd.checkpoint import CheckpointError
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
    base = load(published)
    base.model.projector.fc3.bias[0] = torch.nan
    with pytest.raises(CanaryError, match=r"hidden states are finite: \d+ of \d+ numbers are not"):
        check_canaries(base)
    save_file(weights, published / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model.safetensors, read as .* NaN or infinite: projector.fc3.bias"):
        load(published, canaries=False)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_side_weights_that_are_not_finite_are_refused(published, value):
    path = next(published.glob("action_head--*"))
    weights = torch.load(path, weights_only=True)
    next(iter(weights.values())).view(-1)[0] = value
    torch.save(weights, path)
    with pytest.raises(CheckpointError, match=r"action_head--\S+ has weights that are NaN or infinite: "):
        load(published, canaries=False)


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
    with pytest.raises(CheckpointError, match=r"statistics have .*\.\..* in dim 0 of .*, no range"):
        load(published)
