"""Tokenizer checkpoints: what is saved comes back, and everything else is refused with a reason."""

import pytest
import torch

from rsd.checkpoint import CheckpointError
from rsd.tokenizer import load_tokenizer, save_tokenizer
from tests.tokenizer.contract import random_chunks
from tests.tokenizer.test_tokenizers import rfsq, transform

PROVENANCE = {"unnorm_key": "libero_spatial_no_noops"}


@pytest.mark.parametrize("make", [rfsq, transform])
def test_round_trip(tmp_path, make):
    tokenizer = make()
    save_tokenizer(tokenizer, tmp_path / "t", PROVENANCE)
    fresh = make()
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.add_(1.0)
    loaded, provenance = load_tokenizer(fresh, tmp_path / "t", unnorm_key="libero_spatial_no_noops")
    chunks = random_chunks(16, 8)
    assert torch.equal(loaded.encode(chunks), tokenizer.encode(chunks))
    assert loaded.code_shape == tokenizer.code_shape
    assert len(provenance["sha256"]) == 64


def test_transform_takes_its_ranges_from_the_checkpoint(tmp_path):
    tokenizer = transform()
    save_tokenizer(tokenizer, tmp_path / "t", PROVENANCE)
    unfitted = type(tokenizer)(**tokenizer.config)
    assert unfitted.code_shape != tokenizer.code_shape
    assert load_tokenizer(unfitted, tmp_path / "t")[0].code_shape == tokenizer.code_shape


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: rfsq(num_stages=8), "num_stages is 4 in the checkpoint but 8 in the configuration"),
        (lambda: rfsq(chunk_length=16), "chunk_length is 8 in the checkpoint but 16 in the configuration"),
        (transform, "family is 'RFSQTokenizer' in the checkpoint but 'TransformTokenizer'"),
    ],
)
def test_another_configuration_is_refused(tmp_path, other, message):
    save_tokenizer(rfsq(), tmp_path / "t", PROVENANCE)
    with pytest.raises(CheckpointError, match=message):
        load_tokenizer(other(), tmp_path / "t")


def test_another_data_set_is_refused(tmp_path):
    save_tokenizer(rfsq(), tmp_path / "t", PROVENANCE)
    with pytest.raises(CheckpointError, match="unnorm_key is 'libero_spatial_no_noops' in the checkpoint but"):
        load_tokenizer(rfsq(), tmp_path / "t", unnorm_key="libero_10_no_noops")


def test_actions_normalised_otherwise_are_refused(tmp_path):
    """A checkpoint that does not say it is one of quantiles."""
    save_tokenizer(rfsq(), tmp_path / "old", PROVENANCE)
    assert load_tokenizer(rfsq(), tmp_path / "old", bounds="quantiles")[1]["bounds"] == "quantiles"
    with pytest.raises(CheckpointError, match=r"data\.bounds is 'quantiles' in the checkpoint but 'extremes' here"):
        load_tokenizer(rfsq(), tmp_path / "old", bounds="extremes")
    save_tokenizer(rfsq(), tmp_path / "t", PROVENANCE | {"bounds": "extremes"})
    assert load_tokenizer(rfsq(), tmp_path / "t", bounds="extremes")[1]["bounds"] == "extremes"


def test_missing_checkpoint_names_the_command(tmp_path):
    with pytest.raises(CheckpointError, match="make it with: python train"):
        load_tokenizer(rfsq(), tmp_path / "nothing")
