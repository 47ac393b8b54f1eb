"""phase=oft on a small data set: learning, resuming bit for bit, exporting what was trained."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from rsd.data.datamodules import FrameDataModule
from rsd.data.rlds import RLDSWriter
from rsd.errors import SettingError
from rsd.images import center_crop
from rsd.models.openvla import load_base
from rsd.models.openvla.model import Architecture
from rsd.models.openvla.vit import ViTShape
from rsd.space import BOUNDS
from rsd.training.oft import FrameCollate, OFTModule, check_architecture
from tests.data.demonstrations import NAME, demonstration, write_dataset

MOVED = np.array([0.01] * 6 + [0.0])  # robot units
SIZE, VIEWS, T = 28, ("image", "wrist_image"), 8
VIT = {"patch_size": 14, "embed_dim": 24, "depth": 3, "num_heads": 2, "mlp_ratio": 2.0, "attention_pool": False}
ARCHITECTURE = {
    "dino": {**VIT, "reg_tokens": 4, "layer_scale": True},
    "siglip": {**VIT, "reg_tokens": 0, "layer_scale": False},
    "llm": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2},
}


@pytest.fixture(autouse=True)
def one_thread():
    """A model this small is faster on one thread, by far when other processes use the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    write_dataset(directory, [13, 11, 12])
    return directory


CONV = {
    "conv": {"width": 8, "num_keypoints": 6, "feature_dim": 16},
    "llm": ARCHITECTURE["llm"],
    "learned_slots": True,
}


def build(root: Path, bounds: str = "quantiles", **changes) -> tuple[OFTModule, FrameDataModule]:
    arguments = {
        "architecture": ARCHITECTURE,
        "image_size": SIZE,
        "views": VIEWS,
        "use_proprio": True,
        "chunk_length": T,
        "learning_rate": 1e-3,
        "warmup_steps": 2,
        "weight_decay": 0.01,
        "image_augmentation": True,
        "seed": 0,
    }
    datamodule = FrameDataModule(
        root=str(root),
        name=NAME,
        version="1.0.0",
        chunk_length=T,
        views=VIEWS,
        batch_size=4,
        num_workers=0,
        seed=0,
        collate=FrameCollate(image_size=changes.get("image_size", SIZE), views=VIEWS),
        bounds=bounds,
    )
    return OFTModule(**{**arguments, **changes}), datamodule


class StopAfter(Callback):
    """Ends the run after some steps, as an interruption would; the schedule is still the whole run's."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer, *_) -> None:
        trainer.should_stop = trainer.global_step == self.steps


def fit(
    root: Path, folder: Path, steps: int, stop: int = -1, resume: Path | None = None, **changes
) -> tuple[OFTModule, Trainer]:
    module, datamodule = build(root, **changes)
    trainer = Trainer(
        default_root_dir=folder,
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[StopAfter(stop), ModelCheckpoint(folder, save_last=True, save_top_k=0, every_n_train_steps=2)],
    )
    trainer.fit(module, datamodule, ckpt_path=resume)
    return module, trainer


SMALL = {"architecture": CONV, "image_size": 32, "ema_decay": 0.9, "proprio_dropout": 0.5}


PATCHES = {
    "patches": {"width": 4, "feature_dim": 16, "film": True},
    "llm": ARCHITECTURE["llm"],
    "learned_slots": True,
}
BASE = {**SMALL, "architecture": PATCHES, "image_size": 48}


@pytest.mark.parametrize("changes", [{}, SMALL, BASE], ids=["transformers", "keypoints", "patches"])
def test_resumed_training_equals_uninterrupted_training(root, tmp_path, changes):
    """Three batches an epoch: the stop lies inside the first epoch, the end inside the second."""
    whole, _ = fit(root, tmp_path / "whole", 4, **changes)
    _, stopped = fit(root, tmp_path / "parts", 4, stop=2, **changes)
    assert stopped.global_step == 2
    torch.rand(7)  # the global random state must not matter
    parts, _ = fit(root, tmp_path / "parts", 4, resume=tmp_path / "parts" / "last.ckpt", **changes)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name


@pytest.mark.parametrize("changes", [SMALL, BASE], ids=["keypoints", "patches"])
@pytest.mark.parametrize("again", [False, True], ids=["trained", "resumed after its last step"])
def test_what_is_exported_is_the_average_rounded(root, tmp_path, changes, again):
    module, trainer = fit(root, tmp_path, 4, weights_dtype="bfloat16", **changes)
    if again:
        resume = tmp_path / "last.ckpt"
        module, trainer = fit(root, tmp_path, 4, resume=resume, weights_dtype="bfloat16", **changes)
    trainer.validate(module, trainer.datamodule, verbose=False)
    module.export(tmp_path / "base", {})
    base = load_base(
        checkpoint=tmp_path / "base", unnorm_key="libero_toy", views=VIEWS, use_proprio=True, chunk_length=T
    )
    for name, value in base.model.state_dict().items():
        assert torch.equal(value, module.average.state_dict()[name]), name
    assert not torch.equal(base.model.slots.weight, module.model.slots.weight)
    assert torch.equal(base.model.slots.weight, base.model.slots.weight.bfloat16().float())


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {**BASE, "proprio_dropout": 0.0}], ids=["transformers", "patches"])
def test_training_learns_which_task_it_is(tmp_path, changes):
    """Episode 0 moves one way and episode 1 the other: the instruction and the pictures tell which."""
    directory = tmp_path / NAME / "1.0.0"
    with RLDSWriter(directory, NAME) as writer:
        for number in range(3):
            episode = demonstration(number, 12)
            episode["steps"]["action"][:] = np.linspace(-1, 1, 7) * (-1) ** number
            writer.write_episode(episode)
        writer.finish()
    module, trainer = fit(tmp_path, tmp_path, 60, learning_rate=1e-3, **changes)
    batch = next(iter(trainer.datamodule.train_dataloader()))
    target = module._normalized(batch["actions"])
    with torch.no_grad():
        error = (module.eval()(batch, module.training_pictures(batch)) - target).abs().mean()
    assert error < 0.5 * (module.median_actions - target).abs().mean()


@pytest.mark.parametrize("bounds", ["quantiles", "extremes"])
def test_export_is_what_was_trained(root, tmp_path, bounds):
    module, trainer = fit(root, tmp_path, 3, bounds=bounds)
    trainer.validate(module, trainer.datamodule, verbose=False)
    metrics = module.export(tmp_path / "base", {"command": ["python", "train.py"]})
    statistics = json.loads((tmp_path / "dataset_statistics.json").read_text())
    assert statistics == {module.base.space.name: module.base.space.statistics}
    assert set(metrics) == {"l1", "l1_median_action", "gripper_accuracy", "gripper_majority"}
    base = load_base(
        checkpoint=tmp_path / "base", unnorm_key="libero_toy", views=VIEWS, use_proprio=True, chunk_length=T
    )
    assert base.space == trainer.datamodule.space
    dataset = trainer.datamodule.val
    items = [dataset[row] for row in range(len(dataset))]
    with torch.no_grad():  # validation's own image path against prepare's
        batch = FrameCollate(image_size=SIZE, views=VIEWS)(items)
        expected = module.eval()(batch, center_crop(batch["pictures"].flatten(0, 1)))
    assert torch.equal(base.look([item["observation"] for item in items]).chunk(), expected)
    targets = module._normalized(batch["actions"])
    trained = torch.cat([torch.from_numpy(dataset.trajectories[index].actions[:, -1]) for index in (0, 1)])
    majority = ((targets[..., -1] > 0.5) == (trained.mean() > 0.5)).float().mean().item()
    assert metrics["gripper_majority"] == pytest.approx(majority, abs=1e-6)
    assert (expected - targets).abs().mean().item() == pytest.approx(metrics["l1"], abs=1e-6)
    low, high = (np.asarray(base.space.statistics["action"][name]) for name in BOUNDS[bounds])
    raw = base.space.action.unnormalize(targets.numpy())
    inside = (raw[..., :-1] >= low[:-1] - 1e-6) & (raw[..., :-1] <= high[:-1] + 1e-6)
    assert inside.all()
    if bounds == "extremes":  # nothing that was demonstrated is cut off
        np.testing.assert_allclose(raw, batch["actions"], atol=1e-6)


def test_training_goes_on_from_an_exported_model(root, tmp_path):
    """At a learning rate of 0 it stays that model, also with other bounds."""
    module, trainer = fit(root, tmp_path, 2)
    trainer.validate(module, trainer.datamodule, verbose=False)
    module.export(tmp_path / "base", {})
    start = {"start_from": str(tmp_path / "base"), "learning_rate": 1e-30}
    again, _ = fit(root, tmp_path / "again", 1, **start)
    for name, value in module.model.state_dict().items():
        torch.testing.assert_close(again.model.state_dict()[name], value, atol=1e-6, rtol=1e-6)
    wide, _ = fit(root, tmp_path / "wide", 1, bounds="extremes", **start)
    assert wide.started_from == again.started_from
    last = "action_head.model.fc2.weight"
    ratio = wide.model.state_dict()[last] / module.model.state_dict()[last]  # [A, H]
    expected = 1 / wide.base.space.quantile_units()
    np.testing.assert_allclose(ratio.numpy(), np.broadcast_to(expected[:, None], ratio.shape), rtol=1e-4)


def test_augmentation_differs_from_step_to_step_and_from_camera_to_camera(root, tmp_path):
    module, trainer = fit(root, tmp_path, 1)
    batch = next(iter(trainer.datamodule.train_dataloader()))
    batch["pictures"][:, 1] = batch["pictures"][:, 0]
    first, again = module.training_pictures(batch), module.training_pictures(batch)
    assert torch.equal(first, again)
    assert not torch.equal(first[0], first[1])
    module.seed = 1
    assert not torch.equal(first, module.training_pictures(batch))


def test_the_loss_counts_ordinary_motions_alike_in_both_bounds(root, tmp_path):
    """A prediction that is off by the same robot motion costs the same, if nothing is cut off."""
    losses = {}
    for bounds, units in (("quantiles", "bounds"), ("extremes", "bounds"), ("extremes", "quantiles")):
        module, _ = fit(root, tmp_path, 1, bounds=bounds, loss_units=units)
        space = module.base.space
        mean = torch.tensor(space.statistics["action"]["mean"]).expand(2, T, 7)  # ordinary: inside the quantiles
        moved = space.to_model(mean + torch.as_tensor(MOVED))
        losses[bounds, units] = module.loss(moved, mean).item()
    assert losses["extremes", "quantiles"] == pytest.approx(losses["quantiles", "bounds"], rel=1e-4)
    assert losses["extremes", "bounds"] < 0.99 * losses["quantiles", "bounds"]
    with pytest.raises(ValueError, match=r"loss_units is 'metres', expected one of \['bounds', 'quantiles'\]"):
        build(root, loss_units="metres")


def test_learning_rate_schedule(root, tmp_path):
    module, _ = fit(root, tmp_path, 4, warmup_steps=2)
    expected = [0.5, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2, 0.0]
    assert [module._rate_factor(step) for step in range(5)] == pytest.approx(expected)


def test_a_published_model_is_refused(root):
    with pytest.raises(ValueError, match=r"model\.architecture is null.*choose model=oft_tiny"):
        build(root, architecture=None)


@pytest.mark.parametrize("towers", [{}, {**CONV, **PATCHES}, {"dino": ARCHITECTURE["dino"]}], ids=str)
def test_towers_of_no_kind_or_of_two_are_refused(towers):
    with pytest.raises(
        SettingError, match=r"architecture has the towers \[.*expected one kind: dino and siglip, conv,"
    ):
        check_architecture({**towers, "llm": ARCHITECTURE["llm"]}, SIZE)


@pytest.mark.parametrize("patch", [1, 7, 27])
def test_towers_that_see_other_numbers_of_patches_are_refused_by_training_and_by_loading(patch):
    towers = {name: {**ARCHITECTURE[name], "patch_size": size} for name, size in (("dino", 14), ("siglip", patch))}
    with pytest.raises(SettingError, match=rf"^model\.architecture\.siglip\.patch_size is {patch}, and dino's 14"):
        check_architecture({**ARCHITECTURE, **towers}, SIZE)
    shapes = {name: ViTShape(image_size=SIZE, **tower) for name, tower in towers.items()}
    with pytest.raises(SettingError, match=rf"patches of 14 pixels, siglip pictures of {SIZE} and patches of {patch};"):
        Architecture(llm={}, action_dim=7, proprio_dim=8, **shapes)
