"""Heads, drafts and corrections: rounded once they are trained, validated and stored so, and read back as such."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningDataModule, LightningModule
from safetensors.torch import load_file
from torch import nn

from rsd.checkpoint import load_checkpoint, load_weights, round_weights, save_checkpoint, weights_in
from rsd.errors import SettingError
from rsd.models.openvla.loading import load_own
from rsd.stages.correction import load_correction
from rsd.stages.files import EYES, load_numbers, load_stage_head
from rsd.tokenizer import load_tokenizer, save_tokenizer
from rsd.training.drafts import DraftModule
from rsd.training.micro import MicroModule
from rsd.training.numbers import NumberHeadModule
from rsd.types import BaseSpec
from tests.tokenizer.test_tokenizers import rfsq
from tests.training.test_correction_training import ARCHITECTURE, FINGERPRINT, SPACE, VIEWS, Drifting, T
from tests.training.test_correction_training import build as correction
from tests.training.test_numbers_training import made as numbers
from tests.training.test_numbers_training import toy_spec_of
from tests.training.test_stage_head_training import ToyStates, TwoPoints, make_module, toy_spec
from tests.training.test_tokenizer_training import trainer

DTYPES = [torch.float32, torch.bfloat16]
SPEC = BaseSpec(VIEWS, 8, T, 7, SPACE, {}, "l1", True, identify=lambda: FINGERPRINT)


class Seen(Drifting):
    """Frames for a micro draft: the demonstration's chunk beside the base model's."""

    def _frame(self, row: int) -> dict[str, Any]:
        frame = super()._frame(row)
        return frame | {"actions": frame["base_actions"]}


@dataclass
class Kind:
    """What is trained, on which data, and what is exported.

    Attributes:
        make: Folder with a tokenizer and dtype → module and data.
        pairs: Module, folder with the tokenizer, exported folder → networks that were trained, and those read back.
    """

    make: Callable[[Path, str], tuple[LightningModule, LightningDataModule]]
    pairs: Callable[[Any, Path, Path], Iterator[tuple[nn.Module, nn.Module]]]


def code(parts: Path) -> dict[str, Any]:
    loaded = load_tokenizer(parts / "tokenizer", expected=rfsq())
    return {"code_shape": loaded.tokenizer.code_shape, "tokenizer_sha256": loaded.sha256}


def heads(module, parts, folder):
    yield module.head, load_stage_head(folder, kind="head", base=toy_spec(), **code(parts))[0]


def several(module, parts, folder):
    for point, draft in zip(module.points, module.drafts, strict=True):
        inside, spec = folder.parent / point / folder.name, toy_spec_of(point)
        if isinstance(draft, NumberHeadModule):
            yield draft.head, load_numbers(inside, base=spec)[0]
        else:
            yield draft.head, load_stage_head(inside, kind="draft", base=spec, **code(parts))[0]


def one_in_numbers(module, parts, folder):
    yield module.head, load_numbers(folder, base=toy_spec())[0]


def with_eyes(module, parts, folder):
    eyes = load_own(folder / EYES)
    yield module.model, eyes.model
    yield module.head, load_stage_head(folder, kind="draft", base=SPEC, eyes=eyes.spec, **code(parts))[0]


def corrections(module, parts, folder):
    eyes = load_own(folder / EYES)
    yield module.model, eyes.model
    yield module.head, load_correction(folder, base=SPEC, eyes=eyes.spec, delay=2)


def micro(parts: Path, dtype: str) -> tuple[MicroModule, Seen]:
    torch.manual_seed(0)
    module = MicroModule(
        kind="draft", tokenizer=rfsq(), tokenizer_checkpoint=str(parts / "tokenizer"), layer="head", num_stages=2,
        width=16, num_layers=1, num_heads=2, labels="base", learning_rate=1e-3, corruption_rate=0.1, hidden_rate=0.25,
        seed=0, weights_dtype=dtype, architecture=ARCHITECTURE, image_size=16, views=list(VIEWS), use_proprio=True,
        chunk_length=T, image_augmentation=True, proprio_dropout=0.2, number_weight=1.0, weight_decay=0.03,
    )  # fmt: skip
    return module, Seen()


def drafts(parts: Path, dtype: str) -> tuple[LightningModule, TwoPoints]:
    torch.manual_seed(0)
    module = DraftModule(
        kind="draft", tokenizer=rfsq(), tokenizer_checkpoint=str(parts / "tokenizer"), layer=[3, 2], num_stages=2,
        width=32, num_layers=1, num_heads=2, labels="base", learning_rate=3e-3, corruption_rate=0.1, hidden_rate=0.25,
        seed=0, weights_dtype=dtype,
    )  # fmt: skip
    return module, TwoPoints()


KINDS = {
    "head": Kind(lambda parts, dtype: (make_module(rfsq, parts, weights_dtype=dtype), ToyStates()), heads),
    "drafts": Kind(drafts, several),
    "numbers": Kind(lambda parts, dtype: (numbers(weights_dtype=dtype), ToyStates()), one_in_numbers),
    "numbers at several points": Kind(
        lambda parts, dtype: (numbers(layer=[2, 3], weights_dtype=dtype), TwoPoints()), several
    ),
    "micro": Kind(micro, with_eyes),
    "correction": Kind(lambda parts, dtype: correction(weights_dtype=dtype), corrections),
}


@pytest.fixture
def parts(tmp_path) -> Path:
    torch.manual_seed(0)
    save_tokenizer(rfsq(), tmp_path / "tokenizer", {"unnorm_key": "toy"})
    return tmp_path


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_what_is_exported_was_validated(parts, kind, dtype):
    """And a training that is resumed after its last step, killed in its validation say, ends in the same bits."""
    reports, stored = [], []
    for number, state in enumerate((None, parts / "resume" / "last.ckpt")):
        module, datamodule = kind.make(parts, str(dtype).removeprefix("torch."))
        run, folder = trainer(parts / "resume", 2), parts / str(number) / "checkpoint"
        run.fit(module, datamodule, ckpt_path=state)
        assert run.global_step == 2
        run.validate(module, datamodule, verbose=False)
        reports.append(module.export(folder, {"command": "test"}))
        files = sorted(folder.parent.rglob("weights.safetensors"))
        stored.append([file.read_bytes() for file in files])
        for trained, loaded in kind.pairs(module, parts, folder):
            for name, value in trained.state_dict().items():
                assert loaded.state_dict()[name].dtype == value.dtype == torch.float32
                assert torch.equal(loaded.state_dict()[name], value), name
        weights = [value for file in files for value in load_file(file).values()]
        assert {value.dtype for value in weights} == {dtype}
    assert dtype == torch.bfloat16 or any((value != value.bfloat16()).any() for value in weights)
    assert reports[0] == reports[1] and stored[0] == stored[1]


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_states_to_resume_from_are_not_rounded(parts, kind):
    states = []
    for dtype in ("float32", "bfloat16"):
        module, datamodule = kind.make(parts, dtype)
        trainer(parts / dtype, 2).fit(module, datamodule)
        states.append(torch.load(parts / dtype / "last.ckpt", weights_only=True)["state_dict"])
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


@pytest.mark.parametrize("make", [numbers, correction])
def test_a_dtype_without_the_range_is_refused(make):
    with pytest.raises(SettingError, match=r"weights_dtype is 'float16', expected one of float32, bfloat16"):
        make(weights_dtype="float16")


class Counting(nn.Module):
    """A weight, and buffers that are none."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.001, -3.0]))
        self.register_buffer("frequencies", torch.tensor([1.001]))
        self.register_buffer("count", torch.tensor([257]))


def test_only_weights_are_rounded(tmp_path):
    made = Counting()
    round_weights(made, torch.bfloat16)
    assert made.weight.tolist() == [1.0, -3.0] and made.weight.dtype == torch.float32
    assert made.frequencies.item() == pytest.approx(1.001) and made.count.item() == 257
    save_checkpoint(tmp_path / "one", kind="x", config={}, weights=weights_in(made, torch.bfloat16), provenance={})
    loaded, fresh = load_checkpoint(tmp_path / "one", kind="x", produce="nothing"), Counting()
    assert [loaded.weights[name].dtype for name in ("weight", "frequencies", "count")] == [
        torch.bfloat16,
        torch.float32,
        torch.int64,
    ]
    load_weights(fresh, loaded, tmp_path / "one")
    for name, value in made.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value) and fresh.state_dict()[name].dtype == value.dtype
