"""Operations a second: counted as by hand, printed once, and named as a share where the card is known."""

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from rsd.training.throughput import CountedOperations, Throughput, describe, peak_flops

ROWS, WIDTH = 8, 16


class Small(LightningModule):
    def __init__(self, frozen: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.first.requires_grad_(not frozen)

    def training_step(self, batch, batch_idx):
        return self.second(self.first(batch)).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(module: LightningModule, steps: int, **options) -> Throughput:
    measured = Throughput()
    trainer = Trainer(
        accelerator="cpu", max_steps=steps, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[measured], **options,
    )  # fmt: skip
    trainer.fit(module, DataLoader(torch.ones(10 * ROWS, WIDTH), batch_size=ROWS))
    return measured


def test_operations_are_counted_as_by_hand():
    with CountedOperations() as counted:
        torch.ones(3, 4) @ torch.ones(4, 5)
    assert counted.flops == 2 * 3 * 4 * 5


@pytest.mark.parametrize(("frozen", "factor"), [(False, 3), (True, 2.5)])
def test_a_step_has_a_forward_and_a_backward_pass(frozen, factor, capsys):
    """Two layers forward; backward twice as much, but for the weights of a frozen half."""
    measured = fit(Small(frozen), 6, accumulate_grad_batches=2)
    assert measured.flops == factor * 2 * (2 * 2 * ROWS * WIDTH * WIDTH)
    assert measured.steps_per_s > 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("throughput: ")]
    assert len(lines) == 1 and "TFLOP/s (CPU)" in lines[0] and "MFU" not in lines[0]


def test_too_few_steps_say_nothing(capsys):
    assert fit(Small(), 3).steps_per_s is None
    assert "throughput" not in capsys.readouterr().out


def test_mfu_is_the_share_of_a_known_card(monkeypatch):
    line = describe(2.0, 100e12, 8, 989e12, "NVIDIA H100 80GB HBM3")
    said = "2 steps/s, 200 TFLOP/s in each of 8 processes, MFU 20.2 % of 989 TFLOP/s (NVIDIA H100 80GB HBM3)"
    assert line == f"throughput: {said}"
    assert "MFU 0.0172 %" in describe(30.0, 0.17e12 / 30, 1, 989e12, "NVIDIA H200"), "a small share is not rounded off"
    cards = {"NVIDIA H200": 989e12, "NVIDIA H100 PCIe": 756e12, "NVIDIA A100-SXM4-80GB": 312e12, "Tesla T4": None}
    for card, peak in cards.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, card=card: card)
        assert peak_flops(torch.device("cuda"), "bf16-mixed") == peak
    assert peak_flops(torch.device("cuda"), "32-true") is None and peak_flops(torch.device("cpu"), "bf16-mixed") is None
