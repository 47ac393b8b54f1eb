"""Frames kept in memory are the frames of the data set."""

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer

from rsd.data.datamodules import FrameDataModule
from rsd.data.resident_frames import ResidentFrameDataModule
from rsd.training.oft import FrameCollate
from tests.data.demonstrations import NAME, write_dataset

VIEWS = ("image", "wrist_image")


class Listener(LightningModule):
    """Keeps the batches that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches = []

    def training_step(self, batch, _):
        self.batches.append(batch)
        return self.weight * 0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_frames_on_disk(tmp_path, workers):
    write_dataset(tmp_path, [13, 11, 12])
    seen = []
    for kind in (FrameDataModule, ResidentFrameDataModule):
        datamodule = kind(
            root=str(tmp_path),
            name=NAME,
            version="1.0.0",
            chunk_length=8,
            views=VIEWS,
            batch_size=4,
            num_workers=workers,
            seed=3,
            collate=FrameCollate(image_size=28, views=VIEWS),
        )
        listener = Listener()
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = Trainer(accelerator="cpu", max_steps=4, enable_checkpointing=False, **quiet)
        trainer.fit(listener, datamodule)
        seen.append(listener.batches)
    assert len(seen[0]) == len(seen[1]) == 4
    for plain, resident in zip(*seen, strict=True):
        assert plain["instructions"] == resident["instructions"]
        for name in ("pictures", "proprio", "actions"):
            assert torch.equal(plain[name], resident[name]), name
