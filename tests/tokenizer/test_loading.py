"""Tokenizer checkpoints: what is saved comes back, and everything else is refused with a reason."""

from functools import partial

import pytest
import torch

from rsd.checkpoint import CheckpointError
from rsd.errors import SettingError
from rsd.space import Space, with_bounds
from rsd.tokenizer import BinTokenizer, TransformTokenizer, load_tokenizer, save_tokenizer
from rsd.tokenizer.loading import for_space
from tests.models.openvla_tiny import statistics
from tests.records import edit
from tests.tokenizer.contract import random_chunks
from tests.tokenizer.test_tokenizers import rfsq, transform

KEY = "libero_spatial_no_noops"
PROVENANCE = {"unnorm_key": KEY}  # of the first checkpoints: they do not hold the statistics
FITTED = PROVENANCE | {"norm_stats": {KEY: statistics()}}


def space(name=KEY, bounds="quantiles", **changes) -> Space:
    stats = statistics()
    return Space.from_statistics(name, with_bounds({"action": stats["action"] | changes}, bounds))


@pytest.mark.parametrize("make", [rfsq, transform])
@pytest.mark.parametrize("provenance", [PROVENANCE, FITTED])
def test_round_trip(tmp_path, make, provenance):
    tokenizer = make()
    save_tokenizer(tokenizer, tmp_path / "t", provenance)
    fresh = make()
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.add_(1.0)
    chunks = random_chunks(16, 8)
    for expected in (fresh, None):
        loaded = load_tokenizer(tmp_path / "t", expected=expected, space=space())
        assert torch.equal(loaded.tokenizer.encode(chunks), tokenizer.encode(chunks))
        assert loaded.tokenizer.code_shape == tokenizer.code_shape
        assert not loaded.tokenizer.training and not any(one.requires_grad for one in loaded.tokenizer.parameters())
        assert (len(loaded.sha256), loaded.unnorm_key, loaded.bounds) == (64, KEY, "quantiles")
        assert loaded.space == (Space.from_statistics(KEY, statistics()) if provenance is FITTED else None)
    if list(fresh.parameters()):
        assert not torch.equal(fresh.encode(chunks), tokenizer.encode(chunks))  # what was expected stays as it was


def test_transform_takes_its_ranges_from_the_checkpoint(tmp_path):
    tokenizer = transform()
    save_tokenizer(tokenizer, tmp_path / "t", PROVENANCE)
    unfitted = type(tokenizer)(**tokenizer.config)
    assert unfitted.code_shape != tokenizer.code_shape
    assert load_tokenizer(tmp_path / "t", expected=unfitted).tokenizer.code_shape == tokenizer.code_shape


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
        load_tokenizer(tmp_path / "t", expected=other())


def test_another_family_is_refused(tmp_path):
    save_tokenizer(rfsq(), tmp_path / "t", PROVENANCE)
    edit(tmp_path / "t" / "checkpoint.json", lambda record: record["config"].update(family="Subprocess"))
    with pytest.raises(CheckpointError, match=r"is of family 'Subprocess', expected one of \['BinTokenizer', 'RFSQ"):
        load_tokenizer(tmp_path / "t")


@pytest.mark.parametrize("provenance", [PROVENANCE, FITTED])
def test_another_data_set_is_refused(tmp_path, provenance):
    save_tokenizer(rfsq(), tmp_path / "t", provenance)
    with pytest.raises(CheckpointError, match=f"statistics .unnorm_key. '{KEY}' against 'libero_10_no_noops' here"):
        load_tokenizer(tmp_path / "t", space=space(name="libero_10_no_noops"))


def test_actions_normalised_otherwise_are_refused(tmp_path):
    """A checkpoint that does not say it is one of quantiles."""
    save_tokenizer(rfsq(), tmp_path / "old", PROVENANCE)
    assert load_tokenizer(tmp_path / "old", space=space()).bounds == "quantiles"
    with pytest.raises(CheckpointError, match=r"data\.bounds 'quantiles' against 'extremes' here"):
        load_tokenizer(tmp_path / "old", space=space(bounds="extremes"))
    for name, provenance in (("t", PROVENANCE), ("fitted", FITTED)):
        save_tokenizer(rfsq(), tmp_path / name, provenance | {"bounds": "extremes"})
        assert load_tokenizer(tmp_path / name, space=space(bounds="extremes")).bounds == "extremes"
        with pytest.raises(CheckpointError, match=r"data\.bounds 'extremes' against 'quantiles' here"):
            load_tokenizer(tmp_path / name, space=space())


def test_other_numbers_under_the_same_name_are_refused_where_the_checkpoint_can_tell(tmp_path):
    """Another data set in the folder of the first: the names agree, -1 and 1 do not."""
    moved = space(q99=[0.5, 0.6, *[0.5] * 5])
    save_tokenizer(rfsq(), tmp_path / "t", FITTED)
    with pytest.raises(CheckpointError, match=r"does not fit: dim 1 spans -0\.5\.\.0\.5 against -0\.5\.\.0\.6 here"):
        load_tokenizer(tmp_path / "t", space=moved)
    save_tokenizer(rfsq(), tmp_path / "old", PROVENANCE)
    assert load_tokenizer(tmp_path / "old", space=moved).space is None


def test_missing_checkpoint_names_the_command(tmp_path):
    with pytest.raises(CheckpointError, match="make it with: python train"):
        load_tokenizer(tmp_path / "nothing")


def test_a_tokenizer_with_one_bit_is_not_made_for_grippers_that_stand_anywhere():
    stats = statistics()
    own = {"gripper": {"open": 0.08, "closed": 0.0, "between": True}}
    between = Space.from_statistics(KEY, {"action": stats["action"] | own})
    make = partial(TransformTokenizer, chunk_length=8, num_stages=2, num_levels=7, ratio=7.0, margin=1.05)
    with pytest.raises(SettingError, match=r"^data\.gripper\.between is true, and this tokenizer knows .*rfsq_d8"):
        for_space(make, between)
    assert for_space(partial(BinTokenizer, chunk_length=8, num_bins=256), between).between
