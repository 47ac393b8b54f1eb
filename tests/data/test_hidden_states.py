"""The datamodule over the cache: split by episode, order by (seed, epoch), resume in the middle of an epoch."""

from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint

from rsd.data.cache import CacheError, CacheReader
from rsd.data.hidden_states import HiddenStateDataModule
from tests.data.fake_base import POINTS, A, LinearBase, T, ToyFrames, write

LENGTHS = (3, 5, 4, 6, 3, 4, 5, 3, 4, 7, 5)  # eleven episodes: number 9 is held out


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cache") / "toy"
    write(directory, frames=ToyFrames(LENGTHS))
    return directory


def datamodule(directory, **settings):
    defaults = {"cache": lambda points: CacheReader(directory, points), "points": [4], "batch_size": 8, "seed": 0}
    module = HiddenStateDataModule(**(defaults | settings))
    module.setup()
    return module


def test_held_out_episodes_are_those_of_every_other_phase(directory):
    module = datamodule(directory)
    assert set(module.cache.episodes[module.val.rows].tolist()) == {9}
    assert set(module.cache.episodes[module.train.rows].tolist()) == set(range(11)) - {9}
    assert len(module.train) + len(module.val) == len(module.cache) == sum(LENGTHS)
    assert (len(module.train_dataloader()), len(module.val_dataloader())) == (6, 1)


def test_the_split_counts_episodes_too_short_for_a_frame(tmp_path):
    frames = ToyFrames(LENGTHS)
    frames.rows = [(episode, step) for episode, step in frames.rows if episode != 2]
    write(tmp_path / "cache", frames=frames)
    module = datamodule(tmp_path / "cache")
    assert set(module.cache.episodes[module.val.rows].tolist()) == {9}


@pytest.mark.parametrize("memory_gb", [2.0, 0.0])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_hold_the_cached_rows_in_float32(directory, memory_gb, num_workers):
    module = datamodule(directory, memory_gb=memory_gb, num_workers=num_workers, points=[4, 2])
    (batch,) = module.val_dataloader()
    assert {point: (states.shape, states.dtype) for point, states in batch["hidden"].items()} == {
        "layer.2": ((7, T * A, 16), torch.float32),
        "layer.4": ((7, T * A, 16), torch.float32),
    }
    plain = CacheReader(directory).read(module.val.rows, POINTS)
    for point in POINTS:
        assert torch.equal(batch["hidden"][point], plain["hidden"][point].float())
    assert torch.equal(batch["actions"], plain["actions"])
    assert torch.equal(batch["base_actions"], plain["base_actions"])
    assert torch.equal(module.val[3]["hidden"]["layer.2"], batch["hidden"]["layer.2"][3])


def test_memory_and_mapped_files_give_the_same_epoch(directory):
    loaded, mapped = (datamodule(directory, memory_gb=size).train_dataloader() for size in (2.0, 0.0))
    for left, right in zip(loaded, mapped, strict=True):
        assert torch.equal(left["hidden"]["layer.4"], right["hidden"]["layer.4"])


def test_it_says_what_the_states_are_of(directory):
    module = datamodule(directory, points=[2])
    base, frames = LinearBase(), ToyFrames(LENGTHS)
    assert module.space == base.spec.space
    assert module.state_shape("layer.2") == base.spec.points["layer.2"]
    assert module.fingerprint == base.spec.fingerprint
    assert module.content_id() == frames.content_id()


def test_points_that_are_not_cached_are_named(directory):
    message = (
        r"toy is incomplete: 0 of 49 frames in layer.3; complete it with: make-the-cache \"layers=\[layer.3,layer.4\]"
    )
    with pytest.raises(CacheError, match=message):
        datamodule(directory, points=[3, 4])


def test_the_process_that_makes_the_cache_for_all_opens_it_once(directory):
    opened = []

    def open_cache(points):
        opened.append(points)
        return CacheReader(directory, points)

    module = HiddenStateDataModule(cache=open_cache, points=[2], batch_size=8, seed=0)
    module.trainer = SimpleNamespace(world_size=2)
    module.prepare_data()
    module.setup()
    assert opened == [["layer.2"]] and len(module.cache) == sum(LENGTHS)


def test_a_split_without_frames_is_refused(tmp_path):
    frames = ToyFrames((9, 9))
    frames.rows = frames.rows[:9]  # the held-out episode gives no frame
    write(tmp_path / "cache", frames=frames)
    with pytest.raises(CacheError, match=r"split 'val' of .* has no frame"):
        datamodule(tmp_path / "cache")


class Recorder(LightningModule):
    """Learns next to nothing and remembers what it was shown."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch["actions"][:, 0, 0].tolist())
        return (self.weight - batch["hidden"]["layer.4"].mean()) ** 2

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(directory, root, max_steps, ckpt_path=None):
    module = Recorder()
    checkpoint = ModelCheckpoint(root, save_last=True, save_top_k=0, every_n_train_steps=1)
    trainer = Trainer(
        max_steps=max_steps,
        accelerator="cpu",
        logger=False,
        callbacks=[checkpoint],
        enable_progress_bar=False,
        enable_model_summary=False,
        val_check_interval=None,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, datamodule(directory), ckpt_path=ckpt_path)
    return module


@pytest.mark.parametrize("stop", [2, 6, 8])
def test_a_run_goes_on_exactly_where_it_stopped(directory, tmp_path, stop):
    """An epoch has 6 batches: stopped in the first, between two, and in the second."""
    whole = fit(directory, tmp_path / "whole", 14)
    first = fit(directory, tmp_path / "parts", stop)
    rest = fit(directory, tmp_path / "parts", 14, ckpt_path=tmp_path / "parts" / "last.ckpt")
    assert first.seen + rest.seen == whole.seen
    assert torch.equal(rest.weight, whole.weight)
    assert whole.seen[:6] != whole.seen[6:12]  # a new order every epoch
