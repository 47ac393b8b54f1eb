"""phase=head and phase=draft: labels of corrupted prefixes, learning from hidden states, law 10, and the export."""

import json

import pytest
import torch
from pytorch_lightning import LightningDataModule
from safetensors.torch import load_file

from rsd.checkpoint import CheckpointError
from rsd.data.shuffle import ShuffledLoader, batch_loader
from rsd.errors import SettingError
from rsd.space import Space, with_bounds
from rsd.stages.files import load_stage_head
from rsd.tokenizer import load_tokenizer, save_tokenizer
from rsd.training.calibration import expected_calibration_error, stage_report
from rsd.training.drafts import DraftModule, DraftsModule
from rsd.training.stage_head import StageHeadModule, corrupted_labels
from rsd.types import BaseSpec
from tests.tokenizer.contract import random_chunks
from tests.tokenizer.test_tokenizers import rfsq, transform
from tests.training.test_tokenizer_training import StopAfter, trainer

KEY = "toy"
ONES, MASK = [1.0] * 7, [True] * 6 + [False]
STATS = {"action": {"q01": [-1.0] * 7, "q99": ONES, "min": [-1.0] * 7, "max": ONES, "mask": MASK}}


class ToyStates(LightningDataModule):
    """Hidden states that hold the chunk itself, one action dim a position, in a fixed random basis."""

    space, fingerprint = Space.from_statistics(KEY, STATS), {"weights": "toy"}

    def __init__(self, batch_size: int = 32) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.actions = random_chunks(256, 8)
        basis = torch.randn(1, 12, generator=torch.Generator().manual_seed(0))
        self.states = self.actions.reshape(-1, 56, 1) * basis  # [N, K, H]

    def batch(self, rows) -> dict:
        rows = torch.as_tensor(rows)
        actions = self.actions[rows]
        return {"hidden": {"layer.3": self.states[rows]}, "actions": actions, "base_actions": actions * 0.9}

    def train_dataloader(self):
        return ShuffledLoader(224, self.batch, batch_size=self.batch_size, seed=0)

    def val_dataloader(self):
        return batch_loader(list(range(224, 256)), self.batch, 16, 0)

    def content_id(self) -> str:
        return "toy"

    def state_shape(self, point: str) -> tuple[int, int]:
        return tuple(self.states.shape[1:])


def toy_spec() -> BaseSpec:
    """Of the base model whose states these are."""
    return BaseSpec(
        views=("image",), proprio_dim=None, chunk_length=8, action_dim=7, space=ToyStates.space,
        points={"layer.3": (56, 12)}, action_head="l1", continuous=True, identify=lambda: ToyStates.fingerprint,
    )  # fmt: skip


@pytest.fixture(params=[rfsq, transform], ids=["rfsq", "transform"])
def make_tokenizer(request, tmp_path):
    save_tokenizer(request.param(), tmp_path / "tokenizer", {"unnorm_key": KEY})
    return request.param


def make_module(make_tokenizer, tmp_path, **changes) -> StageHeadModule:
    torch.manual_seed(0)
    arguments = {
        "kind": "head",
        "tokenizer": make_tokenizer(),
        "tokenizer_checkpoint": str(tmp_path / "tokenizer"),
        "layer": 3,
        "num_stages": None,
        "width": 32,
        "num_layers": 1,
        "num_heads": 2,
        "labels": "data",
        "learning_rate": 3e-3,
        "corruption_rate": 0.1,
        "hidden_rate": 0.25,
        "seed": 0,
    }
    return StageHeadModule(**{**arguments, **changes})


def test_labels_describe_the_residual_of_what_was_shown():
    tokenizer, actions = transform(ratio=7 / 3), random_chunks(64, 8)
    shown, labels = corrupted_labels(tokenizer, actions, 0.3, torch.Generator().manual_seed(0))
    assert (shown != labels).any() and ((shown - labels).abs() <= 1).all()
    assert torch.equal(labels[..., 0], tokenizer.encode(actions)[..., 0])
    for stage in range(1, 4):
        assert torch.equal(labels[..., stage], tokenizer.encode(actions, shown[..., :stage])[..., stage])
    clean, same = corrupted_labels(tokenizer, actions, 0.0, torch.Generator())
    assert torch.equal(clean, same) and torch.equal(clean, tokenizer.encode(actions))


@pytest.mark.slow
def test_learns_and_exports(make_tokenizer, tmp_path):
    module, datamodule = make_module(make_tokenizer, tmp_path), ToyStates()
    run = trainer(tmp_path / "resume", 250)
    run.validate(module, datamodule, verbose=False)
    before = module.report
    run.fit(module, datamodule)
    run.validate(module, datamodule, verbose=False)
    assert module.report["token_accuracy"][0] > max(0.6, before["token_accuracy"][0] + 0.2)
    assert module.report["nll"][0] < 0.7 * before["nll"][0]
    assert module.report["base_l1"] == pytest.approx(datamodule.actions[224:].abs().mean().item() * 0.1, rel=1e-3)
    module.export(tmp_path / "checkpoint", {"command": "test"})
    loaded = load_tokenizer(tmp_path / "tokenizer", expected=make_tokenizer())
    tokenizer = loaded.tokenizer
    made_for = {"code_shape": tokenizer.code_shape, "tokenizer_sha256": loaded.sha256, "base": toy_spec()}
    head, point = load_stage_head(tmp_path / "checkpoint", kind="head", **made_for)
    batch = datamodule.batch(range(4))
    known = tokenizer.encode(batch["actions"])
    with torch.inference_mode():
        logits = [
            model(model.features(batch["hidden"]["layer.3"]), known, 0, 4) for model in (head, module.head.eval())
        ]
    assert point == "layer.3" and torch.equal(*logits)


def test_the_tokens_may_be_those_of_the_base_models_own_chunk(make_tokenizer, tmp_path):
    module, datamodule = make_module(make_tokenizer, tmp_path, labels="base"), ToyStates()
    batch = datamodule.batch(range(8))
    batch["base_actions"] = 3 * batch["base_actions"]  # beyond [-1, 1]; the gripper's ones become 2.7
    wanted = module._wanted(batch)
    assert wanted.min() >= -1 and wanted.max() <= 1
    assert torch.equal(wanted[..., -1], batch["actions"][..., -1])  # 0 and 1


def test_a_tokenizer_of_other_bounds_is_refused(make_tokenizer, tmp_path):
    module, datamodule = make_module(make_tokenizer, tmp_path), ToyStates()
    datamodule.space = Space.from_statistics(KEY, with_bounds(STATS, "extremes"))
    with pytest.raises(CheckpointError, match=r"data\.bounds 'quantiles' against 'extremes'; .* data\.bounds=extremes"):
        trainer(tmp_path / "run", 1).fit(module, datamodule)


class OppositeBase(ToyStates):
    """A base model that moves the other way."""

    def batch(self, rows) -> dict:
        batch = super().batch(rows)
        signs = torch.tensor([-1.0] * 6 + [1.0])
        return batch | {"base_actions": batch["actions"] * signs}


@pytest.mark.long
def test_a_head_comes_closer_to_whom_it_was_trained_on(tmp_path):
    save_tokenizer(transform(), tmp_path / "tokenizer", {"unnorm_key": KEY})
    datamodule, distances = OppositeBase(), {}
    for labels in ("data", "base"):
        module = make_module(transform, tmp_path, labels=labels)
        run = trainer(tmp_path / labels, 150)
        run.fit(module, datamodule)
        run.validate(module, datamodule, verbose=False)
        distances[labels] = (module.report["greedy_to_base_l1"], module.report["greedy_l1"])
    assert distances["base"][0] < distances["data"][0] and distances["base"][1] > distances["data"][1]


def test_unknown_labels_are_refused(make_tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"phase.module.labels is 'expert', expected one of \['data', 'base'\]"):
        make_module(make_tokenizer, tmp_path, labels="expert")


def test_two_steps_a_stop_and_two_more_are_four_steps(make_tokenizer, tmp_path):
    module = make_module(make_tokenizer, tmp_path, kind="draft", num_stages=2)
    trainer(tmp_path / "whole", 4).fit(module, ToyStates())
    whole = {name: value.clone() for name, value in module.state_dict().items()}
    module = make_module(make_tokenizer, tmp_path, kind="draft", num_stages=2)
    trainer(tmp_path / "halves", 4, callbacks=[StopAfter(2)]).fit(module, ToyStates())
    assert any(not torch.equal(whole[name], value) for name, value in module.state_dict().items())
    module = make_module(make_tokenizer, tmp_path, kind="draft", num_stages=2)
    trainer(tmp_path / "halves", 4).fit(module, ToyStates(), ckpt_path=tmp_path / "halves" / "last.ckpt")
    for name, value in module.state_dict().items():
        assert torch.equal(whole[name], value), name


class TwoPoints(ToyStates):
    """The same states at an earlier layer, weaker and with the steps mixed up."""

    def batch(self, rows) -> dict:
        batch = super().batch(rows)
        return batch | {"hidden": {"layer.2": 0.1 * batch["hidden"]["layer.3"].flip(1), **batch["hidden"]}}


def test_drafts_that_are_trained_together_are_what_each_would_be_alone(make_tokenizer, tmp_path):
    save_tokenizer(make_tokenizer(), tmp_path / "tokenizer", {"unnorm_key": KEY})
    options = {"kind": "draft", "num_stages": 2, "learning_rate": 3e-3, "corruption_rate": 0.1, "hidden_rate": 0.25}
    options |= {"width": 32, "num_layers": 1, "num_heads": 2, "labels": "base", "seed": 0}
    reports = {}
    for layer in (2, 3, [3, 2, "layer.3"]):
        made = {"tokenizer": make_tokenizer(), "tokenizer_checkpoint": str(tmp_path / "tokenizer")}
        torch.manual_seed(0)
        module, folder = DraftModule(layer=layer, **made, **options), tmp_path / str(layer)
        run = trainer(folder, 3, gradient_clip_val=0.5)
        run.fit(module, TwoPoints())
        run.validate(module, TwoPoints(), verbose=False)
        reports[str(layer)] = module.export(folder / "checkpoint", {})
    assert isinstance(module, DraftsModule) and module.points == ["layer.3", "layer.2"]
    assert reports[str(layer)] == {"layer.3": reports["3"], "layer.2": reports["2"]} and reports["2"] != reports["3"]
    for point in (2, 3):
        alone, together = tmp_path / str(point), tmp_path / str(layer) / f"layer.{point}"
        for name, value in load_file(alone / "checkpoint" / "weights.safetensors").items():
            assert torch.equal(value, load_file(together / "checkpoint" / "weights.safetensors")[name]), name
        assert (
            json.loads((together / "checkpoint" / "checkpoint.json").read_text())["config"]["point"] == f"layer.{point}"
        )


@pytest.mark.parametrize("layer", [[], [2, 0], [True], 2.5, ""])
def test_layers_that_are_none_are_refused(make_tokenizer, tmp_path, layer):
    with pytest.raises(SettingError, match=r"layer is .*expected"):
        DraftModule(layer=layer, tokenizer=make_tokenizer())


def test_a_tokenizer_of_another_data_set_is_refused(make_tokenizer, tmp_path):
    module, datamodule = make_module(make_tokenizer, tmp_path), ToyStates()
    datamodule.space = Space.from_statistics("libero_10_no_noops", STATS)
    with pytest.raises(CheckpointError, match=r"statistics \(unnorm_key\) 'toy' against 'libero_10_no_noops'"):
        trainer(tmp_path / "resume", 1).fit(module, datamodule)


def test_calibration_by_hand():
    confidence = torch.tensor([0.95, 0.95, 0.55, 0.55])
    assert expected_calibration_error(confidence, torch.tensor([True, True, True, False])) == pytest.approx(0.05)
    assert expected_calibration_error(confidence, torch.tensor([False] * 4)) == pytest.approx(0.75)
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]]).reshape(2, 1, 1, 1, 2)
    report = stage_report(logits, torch.zeros(2, 1, 1, 1, dtype=torch.long), torch.full((1, 1, 1), 2))
    assert report["token_accuracy"] == [0.5] and report["stage_accuracy"] == [0.5]
    assert report["nll"][0] == pytest.approx((0.126928 + 2.126928) / 2, rel=1e-4)
