"""Captured and compiled execution: what needs no GPU with a stand-in for the capture, and graphs on a GPU.

The stand-in keeps a graph's contract (it reads where the inputs were, and writes where the outputs were), so that a
forgotten copy on either side is found on a CPU too. On a GPU: pytest -m gpu tests/models/test_execution.py
"""

from functools import partial

import pytest
import torch
from torch import nn

from rsd.models.openvla import ExecutionError, load_base, segments
from rsd.models.openvla.compilation import transformer_blocks, twin
from rsd.models.openvla.execution import Graphs, check_execution, deviation, make_run
from rsd.models.openvla.model import cast_weights
from rsd.models.openvla.random_weights import openvla_architecture, random_model, write_random_checkpoint
from rsd.models.openvla.segments import Eager
from tests.models.openvla_tiny import LONG, SHORT, build_base, observation

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
VIEWS = ["image", "wrist_image"]


def rerun(call):
    """A capture without a GPU: every replay runs the call again and writes into the first outputs."""
    outputs = call()

    def replay():
        for name, value in call().items():
            if value is not None:
                outputs[name].copy_(value)
        return outputs

    return replay


@pytest.fixture
def base():
    return build_base()


def graphed(base, **options) -> Graphs:
    """Make the base model run by graphs."""
    base.run = Graphs(base.model, **{"capture": rerun, "limit": 0.01, **options})
    return base.run


def observations(seed, texts):
    return [observation(seed + row, text) for row, text in enumerate(texts)]


def ask(looked, points) -> dict[str, torch.Tensor]:
    """States at the points, in this order, and the chunk."""
    return {point: looked.chunk() if point == "chunk" else looked.at(point) for point in points}


def assert_same(left, right):
    assert left.keys() == right.keys()
    for point, value in left.items():
        assert torch.equal(value, right[point]), point


BATCHES = [[SHORT], [LONG], [SHORT, SHORT], [SHORT, LONG], [LONG, SHORT]]  # with and without pads
QUESTIONS = [["chunk"], ["layer.2", "head"], ["layer.1", "layer.3", "chunk"], ["layer.1", "layer.2", "layer.3"]]


def test_graphs_give_what_the_model_gives_and_are_used_again(base):
    eager, run = build_base(), graphed(base)
    for seed in range(2):
        for texts in BATCHES:
            inputs = base.prepare(observations(seed, texts))
            for points in QUESTIONS:
                assert_same(ask(base.look(inputs), points), ask(eager.look(inputs), points))
    cuts = {(0, 3), (0, 2), (2, 3), (0, 1), (1, 3), (1, 2)}
    # [SHORT, LONG] and [LONG, SHORT] have the same shapes; heads do not see how long a prompt is
    assert run.num_captured == 4 + 4 * len(cuts) + 2 + 2


def segments_of(base, inputs):
    """Every segment and every cut with its inputs, eagerly: (name, segment, inputs)."""
    layers, length = base.model.num_layers, base.chunk_length
    run, prepared = Eager(base.model), base.on_device(inputs)
    embed = partial(segments.embed, chunk_length=length)
    sequence = run(embed, prepared)
    yield "embed", embed, prepared
    for start in range(layers):
        before = sequence
        if start > 0:
            before = {**sequence, "x": run(partial(segments.run_layers, start=0, stop=start), sequence)["x"]}
        for stop in range(start + 1, layers + 1):
            cut = partial(segments.run_layers, start=start, stop=stop)
            yield f"layers {start}..{stop}", cut, before
    states = {"states": run(partial(segments.run_layers, start=0, stop=layers), sequence)["states"]}
    yield "head", partial(segments.read_head), states
    features = run(partial(segments.read_head), states)
    yield "chunk", partial(segments.read_chunk, chunk_length=length), features


@pytest.mark.parametrize("texts", [[SHORT], [SHORT, LONG]])
def test_each_segment_alone(base, texts):
    """The second time with other numbers: from the graph that the first ones have made."""
    run, eager = graphed(base), Eager(base.model)
    first, second = (segments_of(base, base.prepare(observations(seed, texts))) for seed in (0, 7))
    for number, ((name, segment, inputs), (_, _, others)) in enumerate(zip(first, second, strict=True)):
        for values in (inputs, others, inputs):
            expected, got = eager(segment, values), run(segment, values)
            assert expected.keys() == got.keys(), name
            for key, value in expected.items():
                assert (value is None) == (got[key] is None) and (value is None or torch.equal(value, got[key])), name
        assert run.num_captured == number + 1
    assert number + 1 == 1 + 6 + 2


def test_rows_of_a_ragged_batch_go_on(base):
    """After a layer some rows go on, as a batch of another size: further graphs, the same numbers."""
    eager, run = build_base(), graphed(base)
    seen = observations(0, [SHORT, LONG, SHORT])
    for rows in ([0, 2], [1], [0, 1, 2]):
        captured = None
        for _ in range(2):
            results = []
            for one in (base, eager):
                looked = one.look(seen)
                looked.at("layer.1")
                results.append(ask(looked.of(torch.tensor(rows)), ["layer.2", "chunk"]))
                assert looked.work.base_layers.tolist() == [3 if row in rows else 1 for row in range(3)]
            assert_same(*results)
            captured = captured or run.num_captured
        assert run.num_captured == captured  # the second time from the graphs of the first
    whole = eager.look(seen).chunk()
    torch.testing.assert_close(results[0]["chunk"], whole, atol=1e-5, rtol=0)


def test_results_belong_to_the_caller(base):
    graphed(base)
    first = ask(base.look([observation(0)]), ["layer.2", "head", "chunk"])
    kept = {point: value.clone() for point, value in first.items()}
    second = ask(base.look([observation(1)]), ["layer.2", "head", "chunk"])
    assert_same(first, kept)
    assert not any(torch.equal(second[point], kept[point]) for point in kept)


def test_passes_that_stand_still_are_not_overwritten(base):
    """Two passes share every graph, and each goes on from its own sequence."""
    graphed(base)
    looked = [base.look([observation(seed)]) for seed in range(2)]
    for point in ("layer.1", "layer.2", "chunk"):
        answers = [ask(one, [point]) for one in looked]
        for seed, answer in enumerate(answers):
            assert_same(answer, ask(build_base().look([observation(seed)]), [point]))


def test_the_graph_unused_for_longest_goes(base):
    run, embed = graphed(base, max_graphs=2), partial(segments.embed, chunk_length=8)
    one, two, three = (base.on_device(base.prepare(observations(0, [SHORT] * count))) for count in (1, 2, 3))
    for inputs in (one, two, one, three, one):  # three replaces two, not one
        run(embed, inputs)
    assert run.num_captured == 3
    run(embed, two)
    assert run.num_captured == 4 and len(run._graphs) == 2


def test_inference_mode_and_its_absence_may_alternate(base):
    graphed(base)
    eager = build_base()
    for mode in (True, False, True):
        with torch.inference_mode(mode):
            inputs = base.prepare([observation(int(mode))])
            points = ["layer.1", "head", "chunk"]
            assert_same(ask(base.look(inputs), points), ask(eager.look(inputs), points))


def test_moved_weights_need_new_graphs(base):
    run = graphed(base)
    inputs = base.prepare([observation()])
    points = ["layer.1", "chunk"]
    ask(base.look(inputs), points)
    made = run.num_captured
    cast_weights(base.model, torch.bfloat16)
    rounded = ask(base.look(inputs), points)
    assert rounded["layer.1"].dtype == torch.bfloat16 and rounded["chunk"].dtype == torch.float32
    assert run.num_captured == 2 * made
    cast_weights(base.model, torch.float32)  # the first graphs' shapes and types, at other addresses
    eager = build_base()
    cast_weights(cast_weights(eager.model, torch.bfloat16), torch.float32)
    assert_same(ask(base.look(inputs), points), ask(eager.look(inputs), points))
    assert run.num_captured == 3 * made


def test_changed_weights_are_seen(base):
    graphed(base)
    inputs = base.prepare([observation()])
    before = base.look(inputs).chunk()
    with torch.no_grad():
        base.model.action_head.model.fc2.bias.add_(1)
    torch.testing.assert_close(base.look(inputs).chunk(), before + 1)


def test_a_graph_that_differs_from_the_model_is_refused(base):
    """Each segment by itself; what has been computed eagerly so far is the model's own."""
    run = graphed(base, twin=build_base(seed=1).model)
    said = {"embed": "x by", "head": "features by", "chunk": "chunk by"}
    for name, segment, inputs in segments_of(base, base.prepare([observation()])):
        outputs = said.get(name, "x by .* states by")
        message = rf"a captured {segment.func.__name__} .* differs from the eager one .*{outputs} .* at most 0\.01"
        with pytest.raises(ExecutionError, match=message):
            run(segment, inputs)
    assert not run._graphs  # the next call does not use it either


def test_a_graph_that_is_not_finite_is_refused(base):
    broken = build_base().model
    with torch.no_grad():
        broken.action_head.model.fc2.bias.fill_(float("nan"))
    graphed(base, twin=broken)
    with pytest.raises(ExecutionError, match=r"a captured read_chunk \{'chunk_length': 8\} .* chunk by nan"):
        base.look([observation()]).chunk()


def test_a_discrete_model_is_compared_by_its_states():
    """Its chunk jumps where two tokens are about as probable."""
    architecture = openvla_architecture(action_head="discrete", size="tiny")
    model, other = (random_model(architecture, seed=0, device="cpu", dtype=torch.float32) for _ in range(2))
    with torch.no_grad():
        other.language_model.lm_head.weight[:31744] = 0  # it says action tokens, the model itself says words
    run, eager = Graphs(model, capture=rerun, limit=0.01, twin=other), Eager(model)
    inputs = {
        "pixel_values": torch.randn(1, 12, 56, 56), "input_ids": torch.tensor([[1, 300, 301, *[1] * 56, 2]]),
        "attention_mask": None, "action_start": torch.tensor([3]), "proprio": torch.zeros(1, 8),
    }  # fmt: skip
    layers = partial(segments.run_layers, start=0, stop=2)
    with torch.no_grad():
        sequence = eager(partial(segments.embed, chunk_length=8), inputs)
        states = eager(layers, sequence)["states"]
        assert torch.equal(run(layers, sequence)["states"], states)
        chunk = run(partial(segments.read_chunk, chunk_length=8), {"states": states})["chunk"]
        assert not torch.equal(chunk, eager(partial(segments.read_chunk, chunk_length=8), {"states": states})["chunk"])
        other.language_model.model.layers[1].mlp.down_proj.weight.mul_(2)
        with pytest.raises(ExecutionError, match="a captured run_layers"):
            Graphs(model, capture=rerun, limit=0.01, twin=other)(layers, sequence)


def test_no_logits_are_computed_for_a_head(base):
    base.model.language_model.lm_head = nn.Identity()  # would change shapes if it were called
    base.model.language_model.lm_head.register_forward_hook(lambda *_: pytest.fail("lm_head was called"))
    ask(base.look([observation()]), ["layer.1", "layer.3", "chunk"])


def test_what_cannot_be_captured_is_refused_before_loading(tmp_path):
    with pytest.raises(
        ExecutionError, match=r"'fast' is unknown; expected one of \['eager', 'captured', 'compiled', 'fp8'\]"
    ):
        check_execution("fast", action_head="l1", device=CUDA)
    for action_head in ("diffusion", "autoregressive"):
        with pytest.raises(
            ExecutionError, match=f"l1 or discrete; this model's is '{action_head}': set .*execution=eager"
        ):
            check_execution("captured", action_head=action_head, device=CUDA)
        check_execution("eager", action_head=action_head, device=CPU)
    missing = {"checkpoint": tmp_path / "missing", "unnorm_key": None, "views": VIEWS, "use_proprio": True}
    for execution in ("captured", "compiled"):
        with pytest.raises(ExecutionError, match=f"'{execution}' needs a CUDA device, got 'cpu'; set device=cuda or"):
            load_base(**missing, chunk_length=8, execution=execution)


def test_a_twin_shares_weights_and_has_blocks_of_its_own(base):
    model = base.model
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


def test_deviation_of_zeros_is_a_number():
    zeros, ones = torch.zeros(2, 3), torch.ones(2, 3)
    assert deviation(zeros, zeros) == {"max_abs": 0.0, "max_rel": 0.0}
    assert deviation(zeros, ones)["max_rel"] == float("inf")
    assert deviation(-4 * ones, -3 * ones) == {"max_abs": 1.0, "max_rel": 0.25}


def test_eagerly_segments_are_run_as_they_are(base):
    run = make_run(base.model, "eager")
    assert isinstance(run, Eager) and run.model is base.model and isinstance(base.run, Eager)


# --- on a GPU

GPU_TEXTS = ["pick up the black bowl", "put both moka pots on the stove and then close the drawer"]
WAYS = [("captured", "float32"), ("captured", "bfloat16"), ("compiled", "float32"), ("compiled", "bfloat16")]
TOLERANCES = {"captured": 1e-3, "compiled": 0.1}  # in parts of the largest value


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("published") / "oft"
    write_random_checkpoint(directory, architecture=openvla_architecture(size="tiny"))
    return directory


def on_gpu(checkpoint, execution, dtype="float32"):
    return load_base(
        checkpoint=checkpoint, unnorm_key="libero_spatial", views=VIEWS, use_proprio=True, chunk_length=8,
        device="cuda", dtype=dtype, execution=execution, canaries=False,
    )  # fmt: skip


@pytest.fixture(scope="module", params=WAYS, ids="-".join)
def way(request, checkpoint):
    """(base model in one way of running, the same weights eagerly, tolerance)."""
    execution, dtype = request.param
    base = on_gpu(checkpoint, execution, dtype)
    eager = on_gpu(checkpoint, "eager", dtype)
    return base, eager, TOLERANCES[execution]


def assert_close(expected, got, tolerance, what):
    assert expected.dtype == got.dtype and expected.shape == got.shape, what
    largest = (expected.float() - got.float()).abs().max()
    assert largest <= tolerance * expected.float().abs().max(), f"{what}: {float(largest):.3g}"


@pytest.mark.gpu
def test_each_segment_on_a_gpu(way):
    """embed, every cut of the layers, the head and the chunk, alone: captured on some numbers, replayed on others."""
    base, eager, tolerance = way
    made = None
    for mode in (True, False):
        with torch.inference_mode(mode), torch.no_grad():
            first, second = (
                [*segments_of(eager, eager.prepare(observations(seed + mode, GPU_TEXTS[:1])))] for seed in (0, 7)
            )
            for (name, segment, inputs), (_, _, others) in zip(first, second, strict=True):
                for values in (inputs, others, inputs):
                    expected, got = Eager(eager.model)(segment, values), base.run(segment, values)
                    assert expected.keys() == got.keys()
                    for key, value in expected.items():
                        if value is not None and value.is_floating_point():
                            assert_close(value, got[key], tolerance, f"{name}, {key}")
                        else:
                            assert value is got[key] is None or torch.equal(value, got[key]), f"{name}, {key}"
        assert len(first) == 1 + 3 + 2
        made = made or base.run.num_captured
    assert base.run.num_captured == made >= len(first)  # without inference mode from the same graphs


@pytest.mark.gpu
def test_rows_of_a_ragged_batch_on_a_gpu(way):
    base, eager, tolerance = way
    made = None
    for seed in range(2):
        seen = observations(seed, GPU_TEXTS)
        looked, expected = base.look(seen), eager.look(seen)
        for one in (looked, expected):
            one.at("layer.1")
        rows = torch.tensor([1], device="cuda")
        got, whole = looked.of(rows), expected.of(rows)
        for point, value in ask(whole, ["layer.2", "head", "chunk"]).items():
            assert_close(value, ask(got, [point])[point], tolerance, point)
        assert_close(expected.chunk()[1:], got.chunk(), max(tolerance, 0.1), "the row in the whole batch")
        assert looked.work.base_layers.tolist() == [1, 2]
        made = made or base.run.num_captured
    assert base.run.num_captured == made


@pytest.mark.gpu
def test_passes_that_stand_still_on_a_gpu(way):
    """They share every graph and the memory between; each goes on from its own sequence."""
    base, eager, tolerance = way
    looked = [base.look(observations(seed, GPU_TEXTS[:1])) for seed in range(2)]
    for point in ("layer.1", "chunk"):
        answers = [ask(one, [point])[point] for one in looked]
        for seed, answer in enumerate(answers):
            expected = ask(eager.look(observations(seed, GPU_TEXTS[:1])), ["layer.1", "chunk"])[point]
            assert_close(expected, answer, tolerance, f"{point} of {seed}")


@pytest.mark.gpu
def test_more_signatures_than_graphs_on_a_gpu(checkpoint):
    base, eager = on_gpu(checkpoint, "captured"), on_gpu(checkpoint, "eager")
    base.run.max_graphs = 3
    for _ in range(2):
        for count in range(1, 4):
            seen = observations(0, GPU_TEXTS[:1] * count)
            torch.testing.assert_close(base.look(seen).chunk(), eager.look(seen).chunk(), rtol=0, atol=1e-4)
    assert len(base.run._graphs) == 3 and base.run.num_captured == 2 * 3 * 4


@pytest.mark.gpu
def test_moved_weights_on_a_gpu(checkpoint):
    base = on_gpu(checkpoint, "captured")
    inputs = base.prepare(observations(0, GPU_TEXTS[:1]))
    exact = base.look(inputs).at("layer.2")
    made = base.run.num_captured
    cast_weights(base.model, torch.bfloat16)
    rounded = base.look(inputs).at("layer.2")
    cast_weights(base.model, torch.float32)  # the checkpoint's weights are bfloat16, so this loses nothing
    torch.testing.assert_close(base.look(inputs).at("layer.2"), exact, rtol=0, atol=1e-4)
    assert rounded.dtype == torch.bfloat16 and (rounded.float() - exact).abs().max() > 0
    assert base.run.num_captured == 3 * made
