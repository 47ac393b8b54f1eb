"""trainer=fsdp, here two processes on the CPU: what is trained, stored, gone on with, and refused."""

import errno
import os
import resource
import shutil
import signal
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.strategies import DDPStrategy
from torch.distributed.checkpoint import CheckpointException, FileSystemWriter

from rsd.errors import SettingError
from rsd.models.openvla.random_weights import openvla_architecture, random_model
from rsd.models.openvla.token_loss import token_rows
from rsd.training.divergence import StopWhenDiverged
from rsd.training.ranks import lost_rank
from rsd.training.sharded import ShardedStrategy, _refused, gather, never_run, require_shardable
from rsd.training.states import SHARDS_FILE, StateError, States, state_to_resume
from tests.data.demonstrations import write_dataset
from tests.models.openvla_tiny import build_base
from tests.training.several_ranks import run_ranks
from tests.training.test_oft import StopAfter, build

STEPS = 4
TINY = openvla_architecture(size="tiny", action_head="autoregressive", proprio_dim=None)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    write_dataset(directory, [13, 12, 14, 11])
    return directory


class Losses(Callback):
    def __init__(self) -> None:
        self.values = []

    def on_train_batch_end(self, trainer, module, outputs, *_) -> None:
        self.values.append(float(outputs["loss"]))


def strategy_of(kind: str):
    if kind == "fsdp":
        return ShardedStrategy(timeout=timedelta(seconds=20))
    return DDPStrategy(static_graph=True, process_group_backend="gloo") if kind == "ddp" else "auto"


def train(root: Path, folder: Path, kind: str, stop: int = -1, resume: Path | None = None, changes=None) -> dict:
    """Losses and whole weights, of the first process."""
    torch.set_num_threads(1)
    changes = {"image_augmentation": False, **(changes or {})}
    callbacks = [Losses(), StopWhenDiverged(), StopAfter(stop), *changes.pop("callbacks", [])]
    module, datamodule = build(root, **changes)
    datamodule.batch_size = 8 if kind == "one" else 4
    point = ModelCheckpoint(folder, save_last=True, save_top_k=0, every_n_train_steps=1, enable_version_counter=False)
    trainer = Trainer(
        accelerator="cpu", devices=int(os.environ["WORLD_SIZE"]), strategy=strategy_of(kind), max_steps=STEPS,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=folder,
        callbacks=[*callbacks, point], plugins=[States()], gradient_clip_val=1.0, use_distributed_sampler=False,
        check_val_every_n_epoch=None, max_epochs=-1, logger=False,
    )  # fmt: skip
    require_shardable(trainer, module)
    try:
        trainer.fit(module, datamodule, ckpt_path=resume, weights_only=True)
    except RuntimeError as error:
        raise lost_rank(trainer, error, go_on="resume=RUN") or error from error
    trainer.validate(module, datamodule, verbose=False)
    if trainer.is_global_zero:
        time.sleep(0.5)
        (folder / "first").touch()
    gather(trainer, module)
    assert (folder / "first").is_file()  # nobody leaves, and takes along what it sends, before the first one is there
    if not trainer.is_global_zero:
        return {}
    weights = {name: value.detach().clone() for name, value in module.model.state_dict().items()}
    return {"losses": callbacks[0].values, "weights": weights, "val": float(trainer.callback_metrics["val/l1"])}


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("runs")
    results = {kind: run_ranks(train, root, folder / kind, kind)[0] for kind in ("fsdp", "ddp")}
    return results | {"one": run_ranks(train, root, folder / "one", "one", num_ranks=1)[0], "folder": folder}


def apart(one: dict, other: dict) -> float:
    return max(float((other["weights"][name] - value).abs().max()) for name, value in one["weights"].items())


@pytest.mark.slow
def test_it_trains_what_ddp_and_one_process_train(trained):
    """The same weights up to rounding, with clipped gradients; one process has the batches of both."""
    assert trained["fsdp"]["weights"].keys() == trained["one"]["weights"].keys()
    assert apart(trained["fsdp"], trained["ddp"]) < 1e-5 and apart(trained["fsdp"], trained["one"]) < 1e-5
    assert trained["fsdp"]["losses"] == pytest.approx(trained["ddp"]["losses"], abs=1e-5)
    assert trained["fsdp"]["val"] == pytest.approx(trained["one"]["val"], abs=1e-5)
    assert len(trained["fsdp"]["losses"]) == STEPS


@pytest.mark.slow
def test_a_stopped_run_goes_on_as_if_it_had_not_been(root, trained, tmp_path):
    run_ranks(train, root, tmp_path, "fsdp", 2)
    state = state_to_resume(tmp_path)
    assert state == tmp_path / "last.ckpt" and state.is_dir() and (tmp_path / "previous.ckpt").is_dir()
    resumed = run_ranks(train, root, tmp_path, "fsdp", -1, state)[0]
    assert apart(resumed, trained["fsdp"]) == 0
    refused = run_ranks(train, root, tmp_path, "fsdp", -1, state, num_ranks=1)
    assert "was trained by 2 processes, and here are 1" in refused[0] and "set trainer.devices=2" in refused[0]


class DiskFull(Callback):
    """From a step on the second process has no room for its share."""

    def on_train_batch_start(self, trainer, *_) -> None:
        if trainer.global_step == 2 and trainer.global_rank == 1:
            FileSystemWriter.write_data = refuse


def refuse(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class TooLarge(Callback):
    """From a step on the system writes no file of the second process further than some bytes."""

    def on_train_batch_start(self, trainer, *_) -> None:
        if trainer.global_step == 2 and trainer.global_rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (60000, resource.RLIM_INFINITY))


class Killed(Callback):
    """The second process ends in the middle."""

    def on_train_batch_start(self, trainer, *_) -> None:
        if trainer.global_step == 2 and trainer.global_rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_full_disk_ends_all_of_them_and_leaves_the_state_before(root, tmp_path):
    said = run_ranks(train, root, tmp_path, "fsdp", -1, None, {"callbacks": [DiskFull()]})
    place = tmp_path / "last.ckpt"
    assert (
        said
        == [f"WriteError: cannot write {place}: No space left on device; make room, or choose a folder of yours"] * 2
    )
    assert state_to_resume(tmp_path) == place and not list(tmp_path.glob("*.tmp"))
    assert torch.load(place / "meta.pt", weights_only=True)["global_step"] == 2
    (shard,) = place.glob("__1_*")
    shard.write_bytes(shard.read_bytes()[:-1])
    assert state_to_resume(tmp_path) == tmp_path / "previous.ckpt"
    (tmp_path / "previous.ckpt" / SHARDS_FILE).unlink()
    with pytest.raises(StateError, match="bytes, expected"):
        state_to_resume(tmp_path)


@pytest.mark.slow
def test_what_the_system_refuses_in_the_middle_of_a_share_is_one_line_too(root, tmp_path):
    said = run_ranks(train, root, tmp_path, "fsdp", -1, None, {"callbacks": [TooLarge()]})
    place = tmp_path / "last.ckpt"
    assert said == [f"WriteError: cannot write {place}: File too large; make room, or choose a folder of yours"] * 2
    assert state_to_resume(tmp_path) == place and not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(("free", "words"), [(2**10, "No space left on device"), (2**30, "Input/output error")])
def test_the_room_that_is_left_tells_what_torch_does_not(tmp_path, monkeypatch, free, words):
    complaint = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=free))
    found = _refused(CheckpointException("", {1: (complaint, None)}), tmp_path / "last.ckpt.tmp")
    assert found is not None and found.strerror == words
    assert _refused(RuntimeError("CUDA out of memory"), tmp_path) is None


@pytest.mark.slow
def test_a_process_that_dies_ends_the_other_one(root, tmp_path):
    said = run_ranks(train, root, tmp_path, "fsdp", -1, None, {"callbacks": [Killed()]})
    assert said == ["RankError: rank 0 of 2 lost another one; go on with: resume=RUN", "ended with -9"]


def sharded_trainer(**changes) -> Trainer:
    options = {"accelerator": "cpu", "devices": 2, "strategy": strategy_of("fsdp"), "logger": False, **changes}
    return Trainer(enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **options)


def test_what_cannot_be_shared_out_is_refused_by_name(root):
    with pytest.raises(SettingError, match=r"trainer=fsdp shares the weights of a base model out.*use trainer=ddp"):
        require_shardable(sharded_trainer(), LightningModule())
    module, _ = build(root, ema_decay=0.9)
    with pytest.raises(SettingError, match=r"phase\.module\.ema_decay is 0\.9.*ema_decay=null"):
        require_shardable(sharded_trainer(), module)
    module, _ = build(root)
    require_shardable(sharded_trainer(), module)
    half = SimpleNamespace(strategy=strategy_of("fsdp"), precision="16-mixed")
    with pytest.raises(SettingError, match="expected bf16-mixed or 32-true"):
        require_shardable(half, module)


def test_frozen_is_what_no_loss_reaches():
    model = build_base().model
    proprio = torch.zeros(1, 8)
    ids = torch.tensor([[1, 3, *[0] * 56, 2]])
    pixels = torch.randn(1, 12, 28, 28)
    arguments = {"attention_mask": None, "action_start": torch.tensor([2]), "chunk_length": 8, "layers": []}
    model(pixel_values=pixels, input_ids=ids, proprio=proprio, **arguments)[1].sum().backward()
    tokens = random_model(TINY, seed=0, device="cpu", dtype=torch.float32).requires_grad_(True)
    rows = token_rows([[1, 512, 29871]], torch.zeros(1, 1, 7), 32000)
    tokens.token_logits(torch.randn(1, 6, 56, 56), *rows)[0].sum().backward()
    for each in (model, tokens):
        frozen = {id(weight) for part in never_run(each) for weight in part.parameters()}
        assert frozen == {id(weight) for weight in each.parameters() if weight.grad is None}
