"""Captured and compiled execution: what needs no GPU with a stand-in for the capture, and graphs on a GPU.

The stand-in keeps a graph's contract (it reads where the inputs were, and writes where the outputs were), so that a
forgotten copy on either side is found on a CPU too.
"""

import pytest
import torch
from torch import nn

from rsd.models.openvla import ExecutionError, load_backbone
from rsd.models.openvla.compilation import transformer_blocks, twin
from rsd.models.openvla.execution import GraphedForward, check_execution, make_forward
from rsd.models.openvla.model import cast_weights
from rsd.models.openvla.random_weights import openvla_architecture, random_model, write_random_checkpoint
from tests.models.openvla_tiny import LONG, SHORT, build_backbone, observation

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
VIEWS = ["image", "wrist_image"]


def rerun(call):
    """A capture without a GPU: every replay runs the call again and writes into the first outputs."""
    states, actions = call()

    def replay():
        new_states, new_actions = call()
        for layer, value in new_states.items():
            states[layer].copy_(value)
        return states, actions.copy_(new_actions)

    return replay


@pytest.fixture
def backbone():
    return build_backbone()


def graphed(backbone, **options) -> GraphedForward:
    """Make the backbone run by graphs."""
    backbone._run = GraphedForward(backbone.model, **{"capture": rerun, "limit": 0.01, **options})
    return backbone._run


def assert_same(left, right):
    assert left.hidden_states.keys() == right.hidden_states.keys()
    for layer, states in left.hidden_states.items():
        assert torch.equal(states, right.hidden_states[layer])
    assert torch.equal(left.actions, right.actions)


BATCHES = [[SHORT], [LONG], [SHORT, SHORT], [SHORT, LONG], [LONG, SHORT]]  # with and without pads


def test_graphs_give_what_the_model_gives_and_are_used_again(backbone):
    eager, forward = build_backbone(), graphed(backbone)
    for seed in range(3):
        for texts in BATCHES:
            for layers in ([], [2], [1, 3]):
                observations = [observation(seed + row, text) for row, text in enumerate(texts)]
                inputs = backbone.prepare(observations)
                assert_same(backbone.forward(inputs, layers), eager.forward(inputs, layers))
    assert forward.num_captured == 4 * 3  # [SHORT, LONG] and [LONG, SHORT] have the same shapes


def test_results_belong_to_the_caller(backbone):
    graphed(backbone)
    first = backbone.forward(backbone.prepare([observation(0)]), [2])
    states, actions = first.hidden_states[2].clone(), first.actions.clone()
    second = backbone.forward(backbone.prepare([observation(1)]), [2])
    assert torch.equal(first.hidden_states[2], states) and torch.equal(first.actions, actions)
    assert not torch.equal(second.hidden_states[2], states)


def test_the_graph_unused_for_longest_goes(backbone):
    forward = graphed(backbone, max_graphs=2)
    one, two, three = (backbone.prepare([observation(row) for row in range(count)]) for count in (1, 2, 3))
    for inputs in (one, two, one, three, one):  # three replaces two, not one
        backbone.forward(inputs, [])
    assert forward.num_captured == 3
    backbone.forward(two, [])
    assert forward.num_captured == 4 and len(forward._graphs) == 2


def test_inference_mode_and_its_absence_may_alternate(backbone):
    graphed(backbone)
    eager = build_backbone()
    for mode in (True, False, True):
        with torch.inference_mode(mode):
            inputs = backbone.prepare([observation(int(mode))])
            assert_same(backbone.forward(inputs, [1]), eager.forward(inputs, [1]))


def test_moved_weights_need_new_graphs(backbone):
    forward = graphed(backbone)
    inputs = backbone.prepare([observation()])
    backbone.forward(inputs, [])
    cast_weights(backbone.model, torch.bfloat16)
    rounded = backbone.forward(inputs, [1])
    assert rounded.hidden_states[1].dtype == torch.bfloat16 and forward.num_captured == 2
    cast_weights(backbone.model, torch.float32)  # the first graph's shapes and types, at other addresses
    eager = build_backbone()
    cast_weights(cast_weights(eager.model, torch.bfloat16), torch.float32)
    assert_same(backbone.forward(inputs, []), eager.forward(inputs, []))
    assert forward.num_captured == 3


def test_changed_weights_are_seen(backbone):
    graphed(backbone)
    inputs = backbone.prepare([observation()])
    before = backbone.forward(inputs, []).actions
    with torch.no_grad():
        backbone.model.action_head.model.fc2.bias.add_(1)
    torch.testing.assert_close(backbone.forward(inputs, []).actions, before + 1)


def test_a_graph_that_differs_from_the_model_is_refused(backbone):
    other = build_backbone(seed=1).model
    forward = graphed(backbone, run=other)
    inputs = backbone.prepare([observation()])
    with pytest.raises(ExecutionError, match=r"differs from the eager one .* layer 3 by .* actions by .* at most 0.01"):
        backbone.forward(inputs, [])
    assert not forward._graphs  # the next call does not use it either


def test_a_graph_that_is_not_finite_is_refused(backbone):
    broken = build_backbone().model
    with torch.no_grad():
        broken.action_head.model.fc2.bias.fill_(float("nan"))
    graphed(backbone, run=broken)
    with pytest.raises(ExecutionError, match="actions by nan"):
        backbone.forward(backbone.prepare([observation()]), [])


def test_a_discrete_model_is_compared_by_its_states():
    architecture = openvla_architecture(decoder="discrete", size="tiny")
    model = random_model(architecture, seed=0, device="cpu", dtype=torch.float32)
    forward = GraphedForward(model, capture=rerun, limit=0.01)
    ids = torch.tensor([[1, 300, 301, *[1] * 56, 2]])
    inputs = {
        "pixel_values": torch.randn(1, 12, 56, 56), "input_ids": ids, "attention_mask": None,
        "action_start": torch.tensor([3]), "proprio": torch.zeros(1, 8),
    }  # fmt: skip
    with torch.no_grad():
        expected = model(**inputs, chunk_length=8, layers=[1])
    states, actions = forward(**inputs, chunk_length=8, layers=[1])
    assert torch.equal(states[1], expected[0][1]) and torch.equal(actions, expected[1])


def test_no_logits_are_computed_for_a_head(backbone):
    backbone.model.language_model.lm_head = nn.Identity()  # would change shapes if it were called
    backbone.model.language_model.lm_head.register_forward_hook(lambda *_: pytest.fail("lm_head was called"))
    backbone.forward(backbone.prepare([observation()]), [1, 3])


def test_what_cannot_be_captured_is_refused_before_loading(tmp_path):
    with pytest.raises(ExecutionError, match=r"'fast' is unknown; expected one of \['eager', 'captured', 'compiled'\]"):
        check_execution("fast", decoder="l1", device=CUDA)
    for decoder in ("diffusion", "autoregressive"):
        with pytest.raises(ExecutionError, match=f"l1 or discrete; this model's is '{decoder}': set .*execution=eager"):
            check_execution("captured", decoder=decoder, device=CUDA)
        check_execution("eager", decoder=decoder, device=CPU)
    missing = {"checkpoint": tmp_path / "missing", "unnorm_key": None, "views": VIEWS, "use_proprio": True}
    for execution in ("captured", "compiled"):
        with pytest.raises(ExecutionError, match=f"'{execution}' needs a CUDA device, got 'cpu'; set device=cuda or"):
            load_backbone(**missing, chunk_length=8, execution=execution)


def test_a_twin_shares_weights_and_has_blocks_of_its_own(backbone):
    model = backbone.model
    other = twin(model)
    assert {value.data_ptr() for value in other.parameters()} == {value.data_ptr() for value in model.parameters()}
    assert not set(transformer_blocks(other)) & set(transformer_blocks(model))
    assert len(transformer_blocks(model)) == 3 + 3 + 3  # two vision transformers and the language model


def test_casting_leaves_the_rotary_frequencies():
    model = random_model(openvla_architecture(size="tiny"), seed=0, device="cpu", dtype=torch.float32)
    frequencies = model.language_model.model.rotary_emb.inv_freq.clone()
    cast_weights(model, torch.bfloat16)
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}
    assert torch.equal(model.language_model.model.rotary_emb.inv_freq, frequencies)
    assert not torch.equal(frequencies.bfloat16().float(), frequencies)  # it would have mattered


def test_eager_is_the_model_itself(backbone):
    assert make_forward(backbone.model, "eager") is backbone.model


# --- on a GPU


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("published") / "oft"
    write_random_checkpoint(directory, architecture=openvla_architecture(size="tiny"))
    return directory


TEXTS = ["pick up the black bowl", "put both moka pots on the stove and then close the drawer"]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("execution, tolerance", [("captured", 1e-3), ("compiled", 0.1)])
def test_graphs_on_a_gpu(checkpoint, execution, tolerance, dtype):
    def load(execution):
        return load_backbone(
            checkpoint=checkpoint, unnorm_key="libero_spatial", views=VIEWS, use_proprio=True, chunk_length=8,
            device="cuda", dtype=dtype, execution=execution,
        )  # fmt: skip

    eager, other = load("eager"), load(execution)
    captured_by_canaries = other._run.num_captured
    cases = [TEXTS[:1], TEXTS[1:], TEXTS[:1] * 3, TEXTS]
    for mode in (True, False):
        for repetition in range(2):
            for texts in cases:
                observations = [observation(10 * repetition + row, text) for row, text in enumerate(texts)]
                with torch.inference_mode(mode):
                    inputs = other.prepare(observations)
                    expected, got = eager.forward(inputs, [1, 2]), other.forward(inputs, [1, 2])
                for layer in (1, 2):
                    largest = expected.hidden_states[layer].float().abs().max()
                    difference = (expected.hidden_states[layer].float() - got.hidden_states[layer].float()).abs().max()
                    assert difference <= tolerance * largest
                assert (expected.actions - got.actions).abs().max() <= tolerance * expected.actions.abs().max()
    assert other._run.num_captured == captured_by_canaries + len(cases)


@pytest.mark.gpu
def test_more_shapes_than_graphs_on_a_gpu(checkpoint):
    backbone = load_backbone(
        checkpoint=checkpoint, unnorm_key="libero_spatial", views=VIEWS, use_proprio=True, chunk_length=8,
        device="cuda", execution="captured", canaries=False,
    )  # fmt: skip
    backbone._run.max_graphs = 3
    for _ in range(2):
        for count in range(1, 6):
            inputs = backbone.prepare([observation(row, TEXTS[0]) for row in range(count)])
            expected = backbone.model(
                **{name: value.cuda() for name, value in inputs.items() if name != "attention_mask"},
                attention_mask=None, chunk_length=8, layers=[],
            )[1]  # fmt: skip
            torch.testing.assert_close(backbone.forward(inputs, []).actions, expected, rtol=0, atol=1e-4)
    assert len(backbone._run._graphs) == 3 and backbone._run.num_captured == 10


@pytest.mark.gpu
def test_moved_weights_on_a_gpu(checkpoint):
    backbone = load_backbone(
        checkpoint=checkpoint, unnorm_key="libero_spatial", views=VIEWS, use_proprio=True, chunk_length=8,
        device="cuda", execution="captured", canaries=False,
    )  # fmt: skip
    inputs = backbone.prepare([observation(0, TEXTS[0])])
    exact = backbone.forward(inputs, [2]).hidden_states[2]
    cast_weights(backbone.model, torch.bfloat16)
    rounded = backbone.forward(inputs, [2]).hidden_states[2]
    cast_weights(backbone.model, torch.float32)  # the checkpoint's weights are bfloat16, so this loses nothing
    torch.testing.assert_close(backbone.forward(inputs, [2]).hidden_states[2], exact, rtol=0, atol=1e-4)
    assert rounded.dtype == torch.bfloat16 and (rounded.float() - exact).abs().max() > 0
    assert backbone._run.num_captured == 3
