"""Law 5 and the seam between head and decodings."""

import pytest
import torch

from rsd.checkpoint import CheckpointError
from rsd.decoding import depth_ar, speculative
from rsd.models.loading import load_stage_head, save_stage_head
from rsd.models.stage_head import StageHead
from tests.tokenizer.test_tokenizers import rfsq, transform


def make_head(tokenizer, num_stages=None, seed=0) -> StageHead:
    torch.manual_seed(seed)
    num_stages = num_stages or tokenizer.code_shape.num_stages
    head = StageHead(
        code_shape=tokenizer.code_shape,
        hidden_dim=12,
        states_per_step=7,
        num_stages=num_stages,
        width=32,
        num_layers=2,
        num_heads=4,
    )
    with torch.no_grad():  # larger than at initialisation, so that a leak would show
        for parameter in head.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return head.eval()


@pytest.fixture(params=[rfsq, transform], ids=["rfsq", "transform"])
def tokenizer(request):
    return request.param()


def random_indices(tokenizer, batch, seed=0):
    levels = torch.tensor(tokenizer.code_shape.levels)
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(batch, *levels.shape, generator=generator) * levels).long().minimum(levels - 1)


@torch.no_grad()
def test_changing_later_stages_never_changes_earlier_logits(tokenizer):
    head = make_head(tokenizer)
    features = head.features(torch.randn(3, 56, 12))
    indices = random_indices(tokenizer, 3)
    logits = head(features, indices, 0, 4)
    for stage in range(4):
        other = indices.clone()
        other[..., stage:] = random_indices(tokenizer, 3, seed=stage + 1)[..., stage:]
        changed = head(features, other, 0, 4)
        assert torch.equal(changed[..., : stage + 1, :], logits[..., : stage + 1, :])
        if stage < 3:
            assert not torch.equal(changed[..., stage + 1, :], logits[..., stage + 1, :])  # and it does read stage


@torch.no_grad()
def test_asking_for_a_range_equals_asking_for_all(tokenizer):
    head = make_head(tokenizer)
    features, indices = head.features(torch.randn(2, 56, 12)), random_indices(tokenizer, 2)
    everything = head(features, indices, 0, 4)
    for start, stop in [(0, 1), (1, 3), (3, 4)]:
        part = head(features, indices[..., : stop - 1], start, stop)
        torch.testing.assert_close(part, everything[..., start:stop, :], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_levels_that_do_not_exist_have_no_probability(tokenizer):
    head = make_head(tokenizer)
    logits = head(head.features(torch.randn(2, 56, 12)), random_indices(tokenizer, 2), 0, 4)
    levels = torch.tensor(tokenizer.code_shape.levels)
    missing = torch.arange(7) >= levels[..., None]
    assert torch.isinf(logits[:, missing]).all() and torch.isfinite(logits[:, ~missing]).all()


@torch.no_grad()
def test_speculative_equals_depth_ar_with_real_heads(tokenizer):
    target, draft = make_head(tokenizer, seed=1), make_head(tokenizer, num_stages=2, seed=2)
    hidden = torch.randn(5, 56, 12)
    levels = torch.tensor(tokenizer.code_shape.levels)
    bind = lambda head: lambda known, start, stop: head(head.features(hidden), known, start, stop)  # noqa: E731
    reference = depth_ar(bind(target), levels=levels, batch_size=5)
    result = speculative(bind(target), bind(draft), levels=levels, batch_size=5, num_draft_stages=2)
    assert torch.equal(result.indices, reference.indices)


def test_wrong_shapes_are_named(tokenizer):
    head = make_head(tokenizer)
    with pytest.raises(ValueError, match=r"hidden states are \[2, 55, 12\], expected \[B, 56, 12\]"):
        head.features(torch.randn(2, 55, 12))
    with pytest.raises(ValueError, match="num_stages 5 of the head, but the tokenizer has 4"):
        make_head(tokenizer, num_stages=5)


CONTRACT = {"tokenizer_sha256": "aa", "base": {"weights": "bb", "crop": True}, "unnorm_key": "k"}


def save(head, folder, kind="head"):
    provenance = {"tokenizer": "aa", "base": {"weights": "bb", "crop": True}, "unnorm_key": "k"}
    save_stage_head(head, folder, kind=kind, point="layer.3", provenance=provenance)


@torch.no_grad()
def test_checkpoint_round_trip(tmp_path, tokenizer):
    head = make_head(tokenizer)
    save(head, tmp_path / "h")
    loaded, point = load_stage_head(tmp_path / "h", kind="head", code_shape=tokenizer.code_shape, **CONTRACT)
    hidden, indices = torch.randn(2, 56, 12), random_indices(tokenizer, 2)
    assert point == "layer.3"
    record = tmp_path / "h" / "checkpoint.json"
    record.write_text(record.read_text().replace('"layer.3"', "3"))  # as older checkpoints have it
    assert load_stage_head(tmp_path / "h", kind="head", code_shape=tokenizer.code_shape, **CONTRACT)[1] == point
    assert torch.equal(loaded(loaded.features(hidden), indices, 0, 4), head(head.features(hidden), indices, 0, 4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer_sha256": "zz"}, "another tokenizer: 'aa' in the checkpoint, 'zz' here"),
        ({"unnorm_key": "other"}, "another unnorm_key"),
        ({"base": {"weights": "cc", "crop": True}}, r"another base: \{'weights': 'bb'\} in the checkpoint"),
        ({"code_shape": rfsq(num_stages=2).code_shape}, "another code than the tokenizer.*2 stages of 7 levels"),
    ],
)
def test_a_head_for_something_else_is_refused(tmp_path, change, message):
    tokenizer = rfsq()
    save(make_head(tokenizer), tmp_path / "h")
    with pytest.raises(CheckpointError, match=message):
        load_stage_head(tmp_path / "h", kind="head", **{"code_shape": tokenizer.code_shape, **CONTRACT, **change})
