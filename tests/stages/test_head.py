"""Law 5 and the seam between head and decodings."""

import json

import pytest
import torch

from rsd.checkpoint import CheckpointError
from rsd.decoding import DepthAR, Noise, Speculative
from rsd.space import Space
from rsd.stages import Absent, HeadAt, HeadLogits, NotFiniteError
from rsd.stages.files import load_stage_head, save_stage_head
from rsd.stages.head import StageHead
from rsd.types import BaseSpec
from tests.models.openvla_tiny import build_base, observation, statistics
from tests.tokenizer.test_tokenizers import rfsq, transform


def make_head(tokenizer, num_stages=None, seed=0, hidden_dim=12, states_per_step=7) -> StageHead:
    torch.manual_seed(seed)
    num_stages = num_stages or tokenizer.code_shape.num_stages
    head = StageHead(
        code_shape=tokenizer.code_shape,
        hidden_dim=hidden_dim,
        states_per_step=states_per_step,
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
    target, draft = (HeadLogits(head, head.features(hidden)) for head in (target, draft))
    reference = DepthAR().run(target, Absent("draft"), levels, Noise(range(5)))
    code = Speculative(num_draft_stages=2).run(target, draft, levels, Noise(range(5)))
    assert torch.equal(code.indices, reference.indices)


def test_wrong_shapes_are_named(tokenizer):
    head = make_head(tokenizer)
    with pytest.raises(ValueError, match=r"hidden states are \[2, 55, 12\], expected \[B, 56, 12\]"):
        head.features(torch.randn(2, 55, 12))
    with pytest.raises(ValueError, match="num_stages 5 of the head, but the tokenizer has 4"):
        make_head(tokenizer, num_stages=5)


FINGERPRINT = {"weights_sha256": "bb", "crop": True}


def spec(name="k", fingerprint=FINGERPRINT, num_layers=3) -> BaseSpec:
    """Of a base model with states behind its layers and in its L1 head."""
    return BaseSpec(
        views=("image",),
        proprio_dim=None,
        chunk_length=8,
        action_dim=7,
        space=Space.from_statistics(name, statistics()),
        points={f"layer.{number}": (56, 12) for number in range(1, num_layers + 1)} | {"head": (8, 12)},
        action_head="l1",
        continuous=True,
        identify=lambda: fingerprint,
    )


def save(head, folder, kind="head", point="layer.3", **changes):
    made_for = {"tokenizer": "aa", "base": FINGERPRINT, "unnorm_key": "k"}
    save_stage_head(head, folder, kind=kind, point=point, provenance=made_for | changes)


def load(folder, tokenizer, kind="head", **changes):
    arguments = {"code_shape": tokenizer.code_shape, "tokenizer_sha256": "aa", "base": spec()}
    return load_stage_head(folder, kind=kind, **(arguments | changes))


@torch.no_grad()
def test_checkpoint_round_trip(tmp_path, tokenizer):
    head = make_head(tokenizer)
    save(head, tmp_path / "h")
    loaded, point = load(tmp_path / "h", tokenizer)
    hidden, indices = torch.randn(2, 56, 12), random_indices(tokenizer, 2)
    assert point == "layer.3"
    assert torch.equal(loaded(loaded.features(hidden), indices, 0, 4), head(head.features(hidden), indices, 0, 4))
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize(("states", "layer", "point"), [(7, 2, "layer.2"), (1, 4, "head"), (None, 3, "layer.3")])
def test_checkpoints_of_earlier_versions_name_a_layer(tmp_path, states, layer, point):
    """The inside of the L1 head was the layer after the last; the very first ones all read layers, and said no more."""
    tokenizer = rfsq()
    save(make_head(tokenizer, states_per_step=states or 7), tmp_path / "h")
    path = tmp_path / "h" / "checkpoint.json"
    record = json.loads(path.read_text())
    del record["checksum"], record["config"]["point"]
    record["config"]["layer"] = layer
    if states is None:
        del record["config"]["states_per_step"]
    path.write_text(json.dumps(record))
    assert load(tmp_path / "h", tokenizer)[1] == point


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer_sha256": "zz"}, "another tokenizer: 'aa' in the checkpoint, 'zz' here; train it again"),
        ({"base": spec(name="other")}, "another unnorm_key: 'k' in the checkpoint, 'other' here"),
        (
            {"base": spec(fingerprint=FINGERPRINT | {"weights_sha256": "cc"})},
            r"another base: \{'weights_sha256': 'bb'\} in the checkpoint, .*'cc'\} here; train it again",
        ),
        (
            {"base": spec(fingerprint=FINGERPRINT | {"space": "x"})},
            r"another base: .* scripts/restamp\.py FOLDER writes",
        ),
        ({"base": spec(num_layers=2)}, r"head .*h reads 'layer\.3', the base model has layer\.1, layer\.2, head"),
        ({"code_shape": rfsq(num_stages=2).code_shape}, "another code than the tokenizer.*2 stages of 7 levels"),
        ({"kind": "draft"}, "a checkpoint of kind 'head', expected 'draft'"),
    ],
)
def test_a_head_for_something_else_is_refused(tmp_path, change, message):
    tokenizer = rfsq()
    save(make_head(tokenizer), tmp_path / "h")
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "h", tokenizer, **change)


# --- bound to a pass


@pytest.fixture(scope="module")
def base():
    return build_base()


def known_nothing(tokenizer, batch):
    return torch.zeros(batch, *torch.tensor(tokenizer.code_shape.levels).shape[:2], 0).long()


@torch.no_grad()
@pytest.mark.parametrize(("point", "states", "layers"), [("layer.2", 7, 2), ("head", 1, 3)])
def test_a_bound_head_reads_its_point_when_it_is_asked_and_once(base, tokenizer, point, states, layers):
    head = make_head(tokenizer, hidden_dim=32, states_per_step=states)
    looked = base.look([observation(seed) for seed in range(2)])
    bound = HeadAt(head, point, "draft").bind(looked, [None, None])
    assert looked.work.base_layers.tolist() == [0, 0] and looked.clock.elapsed_ms == {}
    logits = bound(known_nothing(tokenizer, 2), 0, 1)
    assert looked.work.base_layers.tolist() == [layers, layers]
    expected = head(head.features(looked.at(point)), known_nothing(tokenizer, 2), 0, 1)
    assert torch.equal(logits, expected)
    bound(known_nothing(tokenizer, 2), 1, 2)
    some = bound.of(torch.tensor([1]))
    torch.testing.assert_close(some(known_nothing(tokenizer, 1), 0, 1), logits[1:], atol=1e-5, rtol=0)
    assert looked.work.base_layers.tolist() == [layers, layers]
    assert set(looked.clock.elapsed_ms) == {"draft", "base_model", "preprocess"}


@torch.no_grad()
def test_what_is_not_finite_is_named(base, tokenizer):
    broken = make_head(tokenizer, hidden_dim=32)
    broken.feature_proj.bias[0] = torch.nan
    bound = HeadAt(broken, "layer.1", "target").bind(base.look([observation()]), [None])
    with pytest.raises(NotFiniteError, match=r"what the target says of stages 1\.\.2 is NaN or infinite"):
        bound(known_nothing(tokenizer, 1), 1, 3)
    other = build_base()
    other.model.language_model.model.layers[0].mlp.down_proj.weight[0, 0] = torch.nan
    bound = HeadAt(make_head(tokenizer, hidden_dim=32), "layer.1", "target").bind(other.look([observation()]), [None])
    with pytest.raises(NotFiniteError, match=r"the base model's state 'layer\.1' is NaN"):
        bound(known_nothing(tokenizer, 1), 0, 1)
