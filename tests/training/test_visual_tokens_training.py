"""phase=tokens: the relaxed choice, learning from the frozen model's own chunks, law 10, and the export."""

from functools import partial

import pytest
import torch

from rsd.data.datamodules import FrameDataModule
from rsd.errors import SettingError
from rsd.models.openvla import load_base
from rsd.models.openvla.random_weights import openvla_architecture, write_random_checkpoint
from rsd.models.openvla.visual_tokens import Grid, Learned
from rsd.training.oft import FrameCollate
from rsd.training.visual_tokens import VisualTokensModule, log_weights
from rsd.types import IMAGE_VIEWS
from tests.data.demonstrations import NAME, write_dataset
from tests.data.tiny_base import save_tiny_base
from tests.training.test_tokenizer_training import StopAfter, trainer

K, PATCHES = 6, 36


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    save_tiny_base(root / "base", write_dataset(root, [12, 10]))
    return root


def load(root):
    return load_base(
        checkpoint=root / "base", unnorm_key=None, views=IMAGE_VIEWS, use_proprio=True, chunk_length=8, canaries=False
    )


def build(root, base=None, **changes):
    arguments = {
        "selection": "learned",
        "num_tokens": K,
        "hidden": 16,
        "learning_rate": 1e-2,
        "first_temperature": 1.0,
        "last_temperature": 0.1,
        "noise": 0.5,
        "seed": 0,
        "base": base or partial(load, root),
    }
    datamodule = FrameDataModule(
        root=str(root), name=NAME, version="1.0.0", chunk_length=8, views=IMAGE_VIEWS, batch_size=3, num_workers=0,
        seed=0, collate=FrameCollate(image_size=84, views=IMAGE_VIEWS),
    )  # fmt: skip
    return VisualTokensModule(**{**arguments, **changes}), datamodule


def test_weights_are_a_half_at_the_threshold_and_hard_when_it_is_cold():
    scores = torch.tensor([[[4.0, 1.0, 2.0, 3.0]]])
    for temperature in (1.0, 0.1):
        weights = log_weights(scores, 2, temperature, torch.zeros_like(scores)).exp()[0, 0]
        assert (weights > 0.5).tolist() == [True, False, False, True]
        torch.testing.assert_close(weights[3] + weights[2], torch.tensor(1.0))  # the last in and the first out
    assert weights[1] < 1e-3 and weights[0] > 1 - 1e-3
    shifted = log_weights(10 * scores + 7, 2, 0.1, torch.zeros_like(scores)).exp()[0, 0]
    torch.testing.assert_close(shifted, weights, atol=1e-4, rtol=0)  # a wider spread buys nothing


def test_weights_of_one_and_zero_are_the_whole_model_and_the_model_without(root, tmp_path):
    module, datamodule = build(root)
    trainer(tmp_path, 1).fit(module, datamodule)
    sequence = module._sequence(next(iter(datamodule.val_dataloader())))
    full = module._last_states(sequence)
    weights = torch.zeros(full.shape[0], 2, PATCHES)
    torch.testing.assert_close(module._last_states(module.relaxed(sequence, weights)), full, atol=1e-5, rtol=1e-4)
    kept = Grid(num_tokens=K).choose(module.base.pictures, torch.zeros(1, 2 * PATCHES, 1), lambda: None)[0]
    hard = torch.full((full.shape[0], 2 * PATCHES), -torch.inf)
    hard[:, kept] = 0
    without = load(root)
    without = type(without)(
        model=without.model, processor=without.processor, text=without.text, space=without.space, views=without.views,
        chunk_length=8, center_crop=True, weights_sha256=lambda: "", visual_tokens=Grid(num_tokens=K),
    )  # fmt: skip
    got = module._answer(module._last_states(module.relaxed(sequence, hard.view(-1, 2, PATCHES))))
    frames = [datamodule.val[row]["observation"] for row in range(3)]
    torch.testing.assert_close(got, without.look(frames).chunk(), atol=1e-5, rtol=1e-3)


def test_two_steps_a_stop_and_two_more_are_four_steps(root, tmp_path):
    module, datamodule = build(root)
    trainer(tmp_path / "whole", 4).fit(module, datamodule)
    whole = {name: value.clone() for name, value in module.state_dict().items()}
    assert not any("language_model" in name for name in whole)  # the base model is not part of the state

    module, datamodule = build(root)
    trainer(tmp_path / "halves", 4, callbacks=[StopAfter(2)]).fit(module, datamodule)
    torch.rand(7)  # the global random state must not matter
    module, datamodule = build(root)
    trainer(tmp_path / "halves", 4).fit(module, datamodule, ckpt_path=tmp_path / "halves" / "last.ckpt")
    for name, value in module.state_dict().items():
        assert torch.equal(whole[name], value), name


@pytest.mark.slow
def test_a_scorer_learns_what_the_model_looks_at_and_is_exported(root, tmp_path):
    """On two episodes it beats chance, and what was measured is what the exported scorer does."""
    module, datamodule = build(root, first_temperature=0.5)
    run = trainer(tmp_path / "resume", 40)
    run.fit(module, datamodule)
    run.validate(module, datamodule, verbose=False)
    report = module.export(tmp_path / "scorer", {"command": "test"})
    assert set(report) == {"learned_l1", "grid_l1", "random_l1", "all_l1"}
    assert report["all_l1"] == 0 and 0 < report["learned_l1"] < report["random_l1"]
    selection = Learned(num_tokens=K, checkpoint=tmp_path / "scorer")
    base = load_base(
        checkpoint=root / "base", unnorm_key=None, views=IMAGE_VIEWS, use_proprio=True, chunk_length=8,
        visual_tokens=selection,
    )  # fmt: skip
    frames = [datamodule.val[row]["observation"] for row in range(len(datamodule.val))]
    moved = (base.look(frames).chunk() - load(root).look(frames).chunk()).abs().mean().item()
    assert moved == pytest.approx(report["learned_l1"], rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"selection": "all", "num_tokens": None}, r"phase=tokens trains visual_tokens=learned, and visual_tokens=all"),
        ({"selection": "grid"}, r"visual_tokens=grid is chosen; say phase=tokens visual_tokens=learned"),
        ({"last_temperature": 0.0}, r"last_temperature is 0\.0, expected a number above 0"),
        ({"last_temperature": 2.0}, r"temperatures fall from 1\.0 to 2\.0"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_loaded(root, changes, message):
    with pytest.raises(SettingError, match=message):
        build(root, **changes)


@pytest.mark.parametrize("count", [0, 2.5])
def test_a_number_of_tokens_is_one(root, count):
    with pytest.raises(SettingError, match=rf"num_tokens is {count}, expected a whole number of at least 1"):
        build(root, num_tokens=count)


@pytest.mark.parametrize("count", [PATCHES, PATCHES + 1])
def test_a_scorer_needs_something_to_choose(root, tmp_path, count):
    module, datamodule = build(root, num_tokens=count)
    with pytest.raises(SettingError, match=rf"num_tokens is {count}, and the model has 36 tokens a view; a scorer ch"):
        trainer(tmp_path, 1).fit(module, datamodule)


@pytest.mark.parametrize("action_head", ["diffusion", "autoregressive"])
def test_heads_of_many_runs_are_refused_by_name(root, tmp_path, action_head):
    alone = action_head == "autoregressive"
    architecture = openvla_architecture(action_head=action_head, proprio_dim=None if alone else 8, size="tiny")
    write_random_checkpoint(tmp_path / "c", architecture=architecture)
    base = partial(
        load_base, checkpoint=tmp_path / "c", unnorm_key="libero_goal", views=["image"], use_proprio=not alone,
        chunk_length=1 if alone else 8, action_head=action_head, canaries=False,
    )  # fmt: skip
    module, datamodule = build(root, base)
    with pytest.raises(SettingError, match=rf"of one parallel pass, l1 or discrete; this model's is '{action_head}'"):
        trainer(tmp_path, 1).fit(module, datamodule)


def test_tokens_are_learned_through_their_probabilities(root, tmp_path):
    architecture = openvla_architecture(action_head="discrete", size="tiny")
    write_random_checkpoint(tmp_path / "c", architecture=architecture)
    base = partial(
        load_base, checkpoint=tmp_path / "c", unnorm_key="libero_goal", views=list(IMAGE_VIEWS), use_proprio=True,
        chunk_length=8, action_head="discrete", canaries=False,
    )  # fmt: skip
    module, datamodule = build(root, base)
    datamodule.collate = FrameCollate(image_size=56, views=IMAGE_VIEWS)
    run = trainer(tmp_path, 2)
    run.fit(module, datamodule)
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in module.parameters())
    assert run.callback_metrics["train/loss"] > 0
