"""A pass is computed as far as somebody has asked; its rows go on by themselves; its account says what was run."""

import pytest
import torch

from rsd.models.openvla import load_base
from rsd.models.openvla.random_weights import openvla_architecture, write_random_checkpoint
from tests.models.openvla_tiny import LONG, SHORT, build_base, observation

POINTS = ("layer.1", "layer.2", "layer.3", "head")


@pytest.fixture(scope="module")
def base():
    return build_base()


@pytest.fixture
def observations():
    return [observation(0, SHORT), observation(1, LONG), observation(2, SHORT), observation(3, LONG)]


def counts(looked, *names):
    """Counters of the pass's account, a list a name."""
    return [getattr(looked.work, name).tolist() for name in names]


def test_each_question_runs_what_is_missing(base, observations):
    looked = base.look(observations[:2])
    names = ("pictures_prepared", "vision_calls", "visual_tokens", "base_layers")
    seen = []
    for ask in ("layer.1", "layer.1", "layer.3", "head", "chunk", "chunk"):
        looked.chunk() if ask == "chunk" else looked.at(ask)
        seen.append([row[0] for row in counts(looked, *names)])
    tokens = 2 * base.model.architecture.num_patches
    assert seen == [[2, 1, tokens, layers] for layers in (1, 1, 3, 3, 3, 3)]
    assert set(looked.clock.elapsed_ms) == {"preprocess", "base_model"}


def test_a_point_that_was_passed_by_costs_its_layers_again(base, observations):
    looked = base.look(observations[:1])
    expected, chunk = base.look(observations[:1]).at("layer.1"), looked.chunk()
    assert torch.equal(looked.at("layer.1"), expected)
    assert counts(looked, "base_layers", "vision_calls", "pictures_prepared") == [[3 + 1], [2], [2]]
    assert torch.equal(looked.at("layer.2"), base.look(observations[:1]).at("layer.2"))
    assert counts(looked, "base_layers", "vision_calls") == [[3 + 1 + 1], [2]]
    assert torch.equal(looked.chunk(), chunk)


@pytest.mark.parametrize("done", [None, "layer.1", "layer.2", "head", "chunk"])
def test_rows_go_on_by_themselves_and_are_booked_where_they_belong(base, observations, done):
    looked, whole = base.look(observations), base.look(observations)
    if done is not None:
        looked.chunk() if done == "chunk" else looked.at(done)
    before = {None: 0, "layer.1": 1, "layer.2": 2, "head": 3, "chunk": 3}[done]
    some = looked.of(torch.tensor([1, 3]))
    assert len(some) == 2 and some.clock is looked.clock
    torch.testing.assert_close(some.chunk(), whole.chunk()[[1, 3]], atol=1e-5, rtol=0)
    for point in POINTS[2:]:
        torch.testing.assert_close(some.at(point), whole.at(point)[[1, 3]], atol=1e-5, rtol=0)
    layers, seen = [before, 3, before, 3], int(done is not None)
    assert counts(looked, "base_layers", "vision_calls") == [layers, [seen, 1, seen, 1]]
    last = some.of(torch.tensor([1]))  # of row 3, which has come to the end
    assert torch.equal(last.chunk(), some.chunk()[1:]) and counts(looked, "base_layers") == [layers]
    other = looked.of(torch.tensor([0, 2]))  # the pass itself has not moved
    torch.testing.assert_close(other.chunk(), whole.chunk()[[0, 2]], atol=1e-5, rtol=0)
    assert counts(looked, "base_layers") == [[3, 3, 3, 3]]


def test_all_rows_are_the_pass_itself(base, observations):
    looked = base.look(observations)
    assert looked.of(torch.arange(4)) is looked


@pytest.mark.parametrize("done", [None, "layer.2", "head"])
def test_rows_come_in_the_order_that_they_are_asked_in(base, observations, done):
    looked, whole = base.look(observations[:3]), base.look(observations[:3])
    if done is not None:
        looked.at(done)
    turned = looked.of(torch.tensor([2, 1, 0]))
    torch.testing.assert_close(turned.chunk(), whole.chunk()[[2, 1, 0]], atol=1e-5, rtol=0)
    assert counts(looked, "base_layers") == [[3, 3, 3]]


def test_a_pass_of_nothing_is_refused(base, observations):
    with pytest.raises(ValueError, match="a pass of no observations; expected one or more"):
        base.look(observations).of(torch.tensor([], dtype=torch.int64))
    with pytest.raises(ValueError, match="a pass of no observations"):
        base.look([])


@pytest.mark.parametrize("point", ["layer.0", "layer.4", "Head", "layer", "chunk"])
def test_a_point_that_is_not_there_is_named(base, observations, point):
    looked = base.look(observations[:1])
    with pytest.raises(ValueError, match=rf"the base model has no point '{point}'; it has layer\.1, .*layer\.3, head"):
        looked.at(point)
    assert counts(looked, "pictures_prepared") == [[0]]


@pytest.mark.parametrize(("action_head", "runs"), [("autoregressive", 7), ("diffusion", 50), ("discrete", 1)])
def test_heads_of_many_runs_count_their_layers(tmp_path, action_head, runs):
    """And all of them have no point inside an L1 head."""
    alone = action_head == "autoregressive"  # the original OpenVLA: one action, and no proprio
    architecture = openvla_architecture(action_head=action_head, proprio_dim=None if alone else 8, size="tiny")
    write_random_checkpoint(tmp_path / "c", architecture=architecture)
    base = load_base(
        checkpoint=tmp_path / "c", unnorm_key="libero_goal", views=["image"], use_proprio=not alone,
        chunk_length=1 if alone else 8, action_head=action_head, canaries=False,
    )  # fmt: skip
    layers = []
    for layer in base.model.language_model.model.layers:
        layer.register_forward_hook(lambda *_: layers.append(1))
    looked = base.look([observation(0)])
    assert "head" not in base.spec.points and base.spec.continuous == (action_head == "diffusion")
    state, chunk = looked.at("layer.1"), looked.chunk()
    assert state.shape[:2] == (1, base.spec.chunk_length * 7)
    assert chunk.shape == (1, base.spec.chunk_length, 7) and chunk.dtype == torch.float32
    assert counts(looked, "base_layers", "vision_calls") == [[len(layers)], [1]]
    assert len(layers) == base.model.num_layers * runs
