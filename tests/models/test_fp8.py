"""Eight-bit products: arithmetic on the CPU, which has them too (slowly), refusals, and the promise held on a GPU.

On a GPU: pytest -m gpu tests/models/test_fp8.py
"""

import dataclasses
from functools import partial

import pytest
import torch
from torch import nn

from rsd.errors import RSDError
from rsd.models.openvla import ExecutionError, Fp8, Fp8Error, load_base, segments
from rsd.models.openvla.compilation import twin
from rsd.models.openvla.execution import Quantised, check_execution, deviation, make_run
from rsd.models.openvla.fp8 import KEEP, Fp8Attention, Fp8Linear, Fp8MLP, Side, scaled, to_fp8
from rsd.models.openvla.model import cast_weights
from rsd.models.openvla.random_weights import openvla_architecture, random_model
from rsd.models.openvla.segments import Eager
from rsd.models.openvla.text import WordText
from rsd.models.openvla.visual_tokens import Grid
from rsd.stages.files import _restamp
from tests.models.openvla_tiny import SHORT, build_base, observation, plain_observation
from tests.models.test_execution import rerun

CUDA = torch.device("cuda")
ALL_BUT_ONE = (*KEEP, "*.q_proj", "*.o_proj", "*.gate_proj", "language_model.model.layers.[12].mlp.down_proj")


def half_base(seed=0, **options):
    """A base model in bfloat16."""
    base = build_base(seed=seed, **options)
    cast_weights(base.model, torch.bfloat16)
    return base


def eight_bits(model, fp8=None):
    double = twin(model)
    to_fp8(double, fp8 or Fp8())
    return double


def test_rows_are_scaled_to_the_largest_number_of_the_format():
    rows, scale = scaled(torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0], [448.0, 1.0, 0.0]]))
    assert scale[0] == 2 / 448 and scale[2] == 1
    assert rows.dtype == torch.float8_e4m3fn
    assert rows.float().tolist() == [[224, -448, 112], [0, 0, 0], [448, 1, 0]]


def test_a_product_is_that_of_the_rounded_numbers():
    """Against the same integers in float64: only the accumulation and the result's bfloat16 differ."""
    torch.manual_seed(0)
    layers = [nn.Linear(64, 32, bias=False).bfloat16(), nn.Linear(64, 48, bias=False).bfloat16()]
    product, x = Fp8Linear(layers), torch.randn(2, 5, 64).bfloat16()
    assert product.weight.dtype == torch.float8_e4m3fn and product.weight.shape == (80, 64)
    got = product(x)
    rows, scale = scaled(x.reshape(10, 64))
    exact = (rows.double() * scale.double()) @ (product.weight.double().T * product.scale.double())
    assert got.shape == (2, 5, 80) and got.dtype == torch.bfloat16
    assert deviation(exact.view(2, 5, 80), got)["max_rel"] < 0.005
    sixteen = torch.cat([layer(x) for layer in layers], dim=-1)
    assert 0.005 < deviation(sixteen, got)["max_rel"] < 0.08  # and it is truly eight bits


def test_biases_are_added():
    layer = nn.Linear(16, 16).bfloat16()
    with torch.no_grad():
        layer.bias.copy_(torch.arange(16))
    assert torch.equal(Fp8Linear([layer])(torch.zeros(3, 16).bfloat16()), layer.bias.expand(3, 16))


def test_only_what_is_not_kept_is_replaced_and_the_model_stays_as_it_is():
    model = half_base().model
    double = eight_bits(model)
    assert {type(layer.self_attn) for layer in double.language_model.model.layers} == {Fp8Attention}
    assert {type(layer.mlp) for layer in double.language_model.model.layers} == {Fp8MLP}
    eight = [name for name, module in double.named_modules() if isinstance(module, Fp8Linear)]
    assert len(eight) == 3 * 4 and all(name.startswith("language_model.model.layers.") for name in eight)
    assert not any(isinstance(module, Fp8Linear) for module in model.modules())


def test_joint_products_are_the_layers_own():
    """With all but one product kept, the double's attention and MLP are Llama's to the last rounding."""
    base = half_base()
    double = eight_bits(base.model, Fp8(keep=ALL_BUT_ONE))
    assert sum(isinstance(module, Fp8Linear) for module in double.modules()) == 1
    assert sum(isinstance(module, Side) for module in double.modules()) == 6
    x = torch.randn(2, 9, 32).bfloat16()
    for mask in (None, torch.tensor([[True] * 9, [True] * 7 + [False] * 2])):
        real = torch.ones(2, 9, dtype=torch.bool) if mask is None else mask
        expected, got = (model.run_layers(x, mask, 1, 3)[real] for model in (base.model, double))
        torch.testing.assert_close(got, expected, atol=0.02, rtol=0.02)


def test_vision_towers_may_be_in_eight_bits():
    base = half_base()
    cast = random_model(
        dataclasses.replace(
            base.model.architecture,
            dino=dataclasses.replace(base.model.architecture.dino, embed_dim=32, num_heads=2),
            siglip=dataclasses.replace(base.model.architecture.siglip, embed_dim=48, num_heads=2),
        ),
        seed=0,
        device="cpu",
    )  # fmt: skip
    double = eight_bits(cast, Fp8(keep=KEEP[1:]))
    pixels = torch.randn(1, 12, 28, 28).bfloat16()
    assert deviation(cast.vision_backbone(pixels), double.vision_backbone(pixels))["max_rel"] < 0.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": "projector"}, r"fp8.keep is 'projector', expected a list of names"),
        ({"limit": 0.0}, r"fp8.limit is 0.0, expected a number above 0"),
        ({"limit": float("nan")}, r"fp8.limit is nan, expected a number above 0"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(Fp8Error, match=message):
        Fp8(**options)


def test_widths_that_the_hardware_has_not_are_refused_by_name():
    model = random_model(openvla_architecture(size="tiny"), seed=0, device="cpu")  # its MLP is 136 wide
    with pytest.raises(
        Fp8Error, match=r"layers.0.mlp.gate_proj is 48 wide and gives 136, .* multiples of 16; add it to .*fp8.keep"
    ):
        eight_bits(model)
    eight_bits(model, Fp8(keep=(*KEEP, "*.mlp")))
    with pytest.raises(Fp8Error, match="keeps every layer; shorten it, or set execution=compiled"):
        eight_bits(model, Fp8(keep=["*"]))


def test_a_name_that_is_no_layers_is_refused():
    model = half_base().model
    with pytest.raises(
        Fp8Error, match=r"fp8.keep names \['layers.0'\], and the model has no such linear layer; it has"
    ):
        eight_bits(model, Fp8(keep=(*KEEP, "layers.0")))
    double = eight_bits(model, Fp8(keep=(*KEEP, "language_model.model.layers.0")))  # and defaults need not be there
    assert sum(isinstance(module, Fp8Linear) for module in double.modules()) == 2 * 4


def test_without_a_card_that_has_it_it_is_refused_by_name(monkeypatch):
    with pytest.raises(ExecutionError, match=r"'fp8' needs a CUDA device, got 'cpu'; set device=cuda or"):
        check_execution("fp8", action_head="l1", device=torch.device("cpu"))
    with pytest.raises(
        ExecutionError, match=r"'fp8' is held to the model in bfloat16, got dtype float32; set .*dtype="
    ):
        check_execution("fp8", action_head="l1", device=CUDA, dtype=torch.float32)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ExecutionError, match=r"needs a card of compute capability 8.9 or more, torch finds none"):
        check_execution("fp8", action_head="l1", device=CUDA, dtype=torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(ExecutionError, match=r"NVIDIA A100-SXM4-80GB has 8.0 and no eight-bit products; .*=compiled"):
        check_execution("fp8", action_head="l1", device=CUDA, dtype=torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    check_execution("fp8", action_head="l1", device=CUDA, dtype=torch.bfloat16)
    with pytest.raises(ExecutionError, match="needs an action head of one parallel pass"):
        check_execution("fp8", action_head="diffusion", device=CUDA, dtype=torch.bfloat16)
    with pytest.raises(ExecutionError, match="'fp8' needs a CUDA device, got 'cpu'"):
        make_run(half_base().model, "fp8")


def outline(published, **options):
    """A base model of files alone; nothing is run."""
    return load_base(
        checkpoint=published, unnorm_key=None, views=["image", "wrist_image"], use_proprio=True, chunk_length=8,
        device="meta", dtype="bfloat16", text=WordText.from_instructions([SHORT]), **options,
    )  # fmt: skip


def test_the_fingerprint_carries_it(published):
    before = outline(published).fingerprint()
    assert outline(published, execution="compiled").fingerprint() == before
    base = outline(published, execution="fp8", fp8=Fp8(keep=["vision_backbone", "action_head"], limit=0.2))
    assert isinstance(base.run, Eager)
    said = {"format": "e4m3", "weights": "output channel", "activations": "row"}
    assert base.fingerprint() == before | {"fp8": said | {"keep": ["action_head", "vision_backbone"]}}
    assert base.pictures.fingerprint() == before  # a selection of tokens is trained in sixteen bits


def test_heads_of_another_precision_are_told_apart_from_older_descriptions():
    stored, here = {"weights_sha256": "a"}, {"weights_sha256": "a", "fp8": {}}
    assert "states in eight bits are others" in _restamp(stored, here)
    assert "states in eight bits are others" in _restamp(here, stored)


def quantised(base, double, limit=0.5):
    """Run the base model by graphs of `double`, and note what is said."""
    said = []
    base.run = Quantised(
        base.model, twin=double, capture=rerun, limit=limit, selection=base.selection, report=said.append
    )
    return said


def test_the_deviation_is_measured_once_on_the_first_real_observation_and_said():
    base = half_base()
    said = quantised(base, eight_bits(base.model))
    eager = half_base()
    base.look(base.prepare([plain_observation(level) for level in (0, 255)])).chunk()
    assert said == [] and base.run.deviation is None
    got, expected = base.look([observation(0)]).chunk(), eager.look([observation(0)]).chunk()
    assert base.run.deviation == deviation(expected, got)
    assert len(said) == 1 and f"{deviation(expected, got)['max_rel']:.3g} of the largest value" in said[0]
    base.look([observation(1)]).chunk()
    assert len(said) == 1


def test_the_deviation_is_that_of_the_tokens_which_are_read():
    base, eager = half_base(visual_tokens=Grid(num_tokens=2)), half_base(visual_tokens=Grid(num_tokens=2))
    quantised(base, eight_bits(base.model))
    got, expected = base.look([observation(0)]).chunk(), eager.look([observation(0)]).chunk()
    assert base.run.deviation == deviation(expected, got)
    assert not torch.equal(expected, half_base().look([observation(0)]).chunk())


def test_what_is_too_far_off_is_refused_and_asked_again_the_next_time():
    base = half_base()
    said = quantised(base, eight_bits(half_base(seed=1).model))
    for _ in range(2):
        with pytest.raises(ExecutionError, match=r"'fp8' moves the chunk .* expected at most 0.5; keep more layers"):
            base.look([observation(0)]).chunk()
    assert said == []


def test_numbers_that_are_not_finite_are_refused():
    base = half_base()
    double = eight_bits(base.model)
    double.language_model.model.layers[0].mlp.outward.scale.fill_(float("nan"))
    quantised(base, double)
    with pytest.raises(RSDError, match=r"moves the chunk .* by nan"):
        base.look([observation(0)]).chunk()


def test_tokens_are_judged_by_their_states():
    model = random_model(openvla_architecture(action_head="discrete", size="tiny"), seed=0, device="cpu")
    run = Quantised(model, twin=eight_bits(model, Fp8(keep=(*KEEP, "*.mlp"))), capture=rerun, limit=0.5)
    inputs = {
        "pixel_values": torch.randn(1, 12, 56, 56).bfloat16(), "attention_mask": None,
        "input_ids": torch.tensor([[1, 300, 301, *[1] * 56, 2]]), "action_start": torch.tensor([3]),
        "proprio": torch.zeros(1, 8).bfloat16(),
    }  # fmt: skip
    run(partial(segments.embed, chunk_length=8), inputs)
    assert 0 < run.deviation["max_rel"] < 0.2


# --- on a GPU


@pytest.mark.gpu
def test_on_a_gpu_the_promise_holds():
    """Captured products equal the uncaptured ones, and what the fresh model says of itself is true."""
    base = half_base()
    base.model.to("cuda")
    eager = half_base()
    eager.model.to("cuda")
    base.run = make_run(base.model, "fp8", Fp8(limit=0.5))
    double = eight_bits(eager.model)
    for seed in range(3):
        seen = [observation(seed, SHORT)]
        got, expected = base.look(seen).chunk(), eager.look(seen).chunk()
        assert deviation(expected, got)["max_rel"] < 0.5
        eager.run, kept = Eager(double), eager.run
        assert deviation(eager.look(seen).chunk(), got)["max_rel"] < 0.1
        eager.run = kept
    assert base.run.deviation is not None
