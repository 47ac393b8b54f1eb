"""A draft in numbers: what it computes, its checkpoint, and what that is held to."""

import dataclasses

import pytest
import torch

from rsd.checkpoint import CheckpointError
from rsd.errors import SettingError
from rsd.stages import NumberHead
from rsd.stages.files import load_numbers, load_stage_head, save_numbers, says_numbers
from tests.records import edit
from tests.tokenizer.test_tokenizers import rfsq
from tests.training.test_stage_head_training import KEY, toy_spec

SIZE = {"chunk_length": 8, "action_dim": 7, "hidden_dim": 12, "states_per_step": 7}
MADE_FOR = {"base": {"weights": "toy"}, "unnorm_key": KEY}


def head(**changes) -> NumberHead:
    torch.manual_seed(0)
    return NumberHead(**{**SIZE, "width": 16, "num_layers": 1, "num_heads": 2, **changes})


@pytest.fixture
def saved(tmp_path):
    save_numbers(head(), tmp_path / "draft", point="layer.3", provenance=MADE_FOR)
    return tmp_path / "draft"


@pytest.mark.parametrize("states_per_step", [7, 1])
def test_every_step_of_the_chunk_is_said_from_its_states(states_per_step):
    """Without the blocks a step knows its own states alone, and an output of zeros leaves the bias."""
    made = head(states_per_step=states_per_step).eval()
    hidden = torch.randn(2, 8 * states_per_step, 12)
    with torch.inference_mode():
        said = made(hidden)
        assert said.shape == (2, 8, 7) and said.dtype == torch.float32
        torch.testing.assert_close(made(hidden[1:]), said[1:])
        made.blocks = torch.nn.Identity()
        other = hidden.clone()
        other[:, 3 * states_per_step : 4 * states_per_step] += torch.arange(12)
        moved = (made(other) - made(hidden)).abs().amax(dim=(0, 2)) > 1e-6  # [T]
        assert moved.tolist() == [step == 3 for step in range(8)]
        made.output.weight.zero_()
        assert torch.equal(made(hidden), made.output.bias.expand(2, 8, 7))


def test_other_states_and_widths_that_no_heads_divide_are_refused():
    with pytest.raises(ValueError, match=r"hidden states are \[2, 8, 12\], expected \[B, 56, 12\]"):
        head()(torch.zeros(2, 8, 12))
    with pytest.raises(SettingError, match="num_heads is 3, expected a divisor of the width 16"):
        head(num_heads=3)


def test_a_checkpoint_comes_back(saved):
    assert says_numbers(saved) and not says_numbers(saved / "nothing")
    loaded, point = load_numbers(saved, base=toy_spec())
    hidden = torch.randn(2, 56, 12)
    assert point == "layer.3" and not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    torch.testing.assert_close(loaded(hidden), head().eval()(hidden))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["provenance"].update(unnorm_key="other"), r"was made for another unnorm_key: 'other' in"),
        (lambda r: r["provenance"].update(base={"weights": "b"}), r"was made for another base: .*'b'.* in the checkpo"),
        (lambda r: r["provenance"].pop("base"), r"provenance.*base"),
        (lambda r: r["config"].update(point="layer.9"), r"reads 'layer\.9', the base model has layer\.3; train it"),
        (lambda r: r["config"].update(chunk_length=16), r"says chunks of \(16, 7\), the base model's are \(8, 7\)"),
        (lambda r: r["config"].update(width="wide"), r"config\.width.* is 'wide'"),
        (lambda r: r["config"].update(num_heads=3), r"'config': num_heads is 3, expected a divisor of the width 16"),
        (lambda r: r["config"].update(width=32), r"is of another architecture"),
        (lambda r: r["config"].pop("readout"), r"says tokens, expected numbers; train it again .*draft=numbers"),
    ],
)
def test_what_does_not_fit_is_refused(saved, change, message):
    edit(saved / "checkpoint.json", change)
    with pytest.raises(CheckpointError, match=message):
        load_numbers(saved, base=toy_spec())


def test_visual_tokens_that_changed_are_told_apart_from_another_base_model(saved):
    few = dataclasses.replace(toy_spec(), identify=lambda: {"weights": "toy", "visual_tokens": {"kind": "grid"}})
    with pytest.raises(CheckpointError, match=r"visual tokens changed after heads were trained: draft .* with all"):
        load_numbers(saved, base=few)


def test_numbers_in_the_place_of_tokens_are_refused(saved):
    expected = {"code_shape": rfsq().code_shape, "tokenizer_sha256": "", "base": toy_spec()}
    with pytest.raises(CheckpointError, match=r"draft .* says numbers, expected tokens; train it again"):
        load_stage_head(saved, kind="draft", **expected)
