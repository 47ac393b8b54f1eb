"""phase=rfsq: learning, fitting, exporting, and law 10 (stop and resume is the same run)."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from rsd.data.datamodules import ChunkDataModule
from rsd.tokenizer import load_tokenizer
from rsd.training.tokenizer import TokenizerModule
from tests.data.demonstrations import NAME, write_dataset
from tests.tokenizer.test_tokenizers import rfsq, transform


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    write_dataset(directory, [30, 26, 28])
    return directory


def parts(root: Path, tokenizer) -> tuple[TokenizerModule, ChunkDataModule]:
    datamodule = ChunkDataModule(
        root=str(root), name=NAME, version="1.0.0", chunk_length=8, batch_size=16, num_workers=0, seed=0
    )
    return TokenizerModule(tokenizer=tokenizer, learning_rate=3e-3, prefix_weight=0.1, seed=0), datamodule


def trainer(folder: Path, max_steps: int, **options) -> Trainer:
    callbacks = [*options.pop("callbacks", []), ModelCheckpoint(folder, save_last=True, every_n_train_steps=1)]
    return Trainer(
        accelerator="cpu", max_epochs=-1, max_steps=max_steps, callbacks=callbacks, logger=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, deterministic=True, **options,
    )  # fmt: skip


class StopAfter(Callback):
    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer, *_) -> None:
        trainer.should_stop = trainer.global_step == self.steps


def test_two_steps_a_stop_and_two_more_are_four_steps(root, tmp_path):
    module, datamodule = parts(root, rfsq())
    trainer(tmp_path / "whole", 4).fit(module, datamodule)
    whole = {name: value.clone() for name, value in module.state_dict().items()}

    module, datamodule = parts(root, rfsq())
    trainer(tmp_path / "halves", 4, callbacks=[StopAfter(2)]).fit(module, datamodule)
    assert any(not torch.equal(whole[name], value) for name, value in module.state_dict().items())
    module, datamodule = parts(root, rfsq())
    trainer(tmp_path / "halves", 4).fit(module, datamodule, ckpt_path=tmp_path / "halves" / "last.ckpt")
    for name, value in module.state_dict().items():
        assert torch.equal(whole[name], value), name


def test_training_lowers_the_error_and_exports_what_was_trained(root, tmp_path):
    module, datamodule = parts(root, rfsq())
    run = trainer(tmp_path / "resume", 120)
    run.validate(module, datamodule, verbose=False)
    before = module.report["mse"][-1]
    run.fit(module, datamodule)
    run.validate(module, datamodule, verbose=False)
    metrics = module.export(tmp_path / "checkpoint", {"command": "test"})
    assert metrics["mse"][-1] < 0.2 * before
    assert metrics["bins256"]["mse"][0] < 1e-5 and len(metrics["mse"]) == 4
    assert (tmp_path / "codec.png").stat().st_size > 1000
    loaded = load_tokenizer(tmp_path / "checkpoint", expected=rfsq(), space=datamodule.space)
    assert loaded.bounds == "quantiles" and loaded.space == datamodule.space
    chunks = module._normalized(datamodule.val.actions)
    assert torch.equal(loaded.tokenizer.encode(chunks), module.tokenizer.encode(chunks))


def test_the_transform_is_fitted_without_a_step(root, tmp_path):
    unfitted = transform()
    module, datamodule = parts(root, type(unfitted)(**unfitted.config))
    run = trainer(tmp_path / "resume", 0)
    run.fit(module, datamodule)
    run.validate(module, datamodule, verbose=False)
    mse = module.export(tmp_path / "checkpoint", {})["mse"]
    assert all(later < 0.2 * earlier for earlier, later in pairwise(mse))
    fitted = load_tokenizer(tmp_path / "checkpoint", expected=type(unfitted)(**unfitted.config)).tokenizer
    chunks = module._normalized(datamodule.train.actions)
    largest = fitted.to_latents(chunks)[..., :6].abs().amax(dim=0)
    assert torch.allclose(fitted.ranges, 1.05 * largest, rtol=1e-5)
