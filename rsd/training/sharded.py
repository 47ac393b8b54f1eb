"""trainer=fsdp: every process holds a share of each weight, of its gradient and of its optimizer state (FSDP2).

Weights are gathered layer by layer where a layer runs, and let go of behind it. What surprises first: a state to resume
from is a folder, into which each process writes its own share; it is made beside its name and renamed when it is whole,
so for a while there are three of them on the disk. Its numbers are not compared with a checksum, as a single file's
are: that would read as much as all processes wrote. Sizes are.
"""

from __future__ import annotations

import errno
import os
import shutil
import warnings
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from rsd.errors import SettingError
from rsd.files import TEMPORARY, WriteError, sync_directory
from rsd.models.openvla.model import OpenVLAOFT
from rsd.models.openvla.streaming import put
from rsd.models.openvla.vit import VisionTransformer
from rsd.record import write
from rsd.settings import checked
from rsd.training.ranks import require_ranks
from rsd.training.states import PREVIOUS, SHARDS_FILE

OLD = ".old"  # ending of a state that is about to be removed
ARCHIVE = "inline_container"  # torch's code that writes archives, in its complaints
NO_ROOM = 2**20  # bytes
NEVER_RUN = ("norm", "attn_pool")  # of a vision transformer, beside its last block


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, over all processes, with states that survive a kill and a full disk.

    Args:
        timeout: What a process waits for another one before it gives up.
    """

    @checked
    def __init__(self, *, timeout: timedelta) -> None:
        super().__init__(tensor_parallel_size=1, timeout=timeout)

    def _setup_distributed(self) -> None:
        super()._setup_distributed()
        self._data_parallel_size = self.world_size

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Write a state; all processes take part.

        Raises:
            WriteError: there is no room, or the folder is not writable; in every process. The state before is whole.
        """
        path = Path(filepath)
        temporary = path.with_name(path.name + TEMPORARY)
        if self.is_global_zero:
            shutil.rmtree(temporary, ignore_errors=True)
        self.barrier()
        checkpoint["world_size"] = self.world_size
        problem: OSError | None = None
        try:
            super().save_checkpoint(checkpoint, temporary, storage_options)
            if self.is_global_zero:
                sizes = {one.name: one.stat().st_size for one in sorted(temporary.iterdir())}
                write(temporary / SHARDS_FILE, sizes)
        except (OSError, RuntimeError, CheckpointException) as error:  # the last is no Exception
            problem = _refused(error, temporary)
            if problem is None:
                raise
        problems = self._of_all(problem)
        if self.is_global_zero:
            if problems:
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                _put_in_place(temporary, path)
        self.barrier()
        if problems:
            raise WriteError(path, problem or problems[0])

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a state; all processes take part, and nothing is unpickled but numbers, texts and tensors.

        Raises:
            RankError: another number of processes wrote it.
        """
        stored = torch.load(Path(checkpoint_path) / "meta.pt", map_location="cpu", weights_only=True)
        require_ranks(stored["world_size"], self.world_size)
        return super().load_checkpoint(checkpoint_path, weights_only=True)

    def _of_all(self, problem: OSError | None) -> list[OSError]:
        """What the system refused any of the processes."""
        found: list[tuple[int, str] | None] = [None] * self.world_size
        own = None if problem is None else (problem.errno or 0, problem.strerror or str(problem))
        torch.distributed.all_gather_object(found, own)
        return [OSError(*one) for one in found if one is not None]


def _refused(error: BaseException, folder: Path) -> OSError | None:
    """The system's own words in an error of torch's; None where it is another one.

    What another process was refused comes without them: torch's archive complains of its own end, and nothing more
    goes from one process to another. Then the room that is left tells.
    """
    if isinstance(error, CheckpointException):
        inside = [one[0] for one in error.failures.values()]
        return next((found for one in inside if (found := _refused(one, folder)) is not None), None)
    if isinstance(error, OSError):
        return error
    context = error.__cause__ or error.__context__
    if isinstance(context, OSError):
        return context
    if ARCHIVE not in str(error):
        return None
    number = errno.ENOSPC if shutil.disk_usage(folder.parent).free < NO_ROOM else errno.EIO
    return OSError(number, os.strerror(number))


def _put_in_place(temporary: Path, path: Path) -> None:
    """Rename a whole state to its name, and the one that it replaces to previous.ckpt."""
    previous = path.with_name(PREVIOUS)
    old = previous.with_name(PREVIOUS + OLD)
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        if previous.exists():
            os.replace(previous, old)
        os.replace(path, previous)
    os.replace(temporary, path)
    sync_directory(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def is_sharded(trainer: Trainer) -> bool:
    """Whether this training shares its weights out."""
    return isinstance(trainer.strategy, ShardedStrategy)


def require_shardable(trainer: Trainer, module: LightningModule) -> None:
    """See that a phase can share its weights out, before it reads data.

    Raises:
        SettingError: it cannot.
    """
    if not is_sharded(trainer):
        return
    if not getattr(module, "shardable", False):
        raise SettingError(
            "trainer=fsdp shares the weights of a base model out, for phase=oft, oft_gpu, oft_full and "
            "openvla_full; what this phase trains fits one GPU whole: use trainer=ddp, or gpu"
        )
    if (decay := getattr(module, "ema_decay", None)) is not None:
        raise SettingError(
            f"phase.module.ema_decay is {decay}, and trainer=fsdp keeps no second set of weights; set "
            "phase.module.ema_decay=null, or trainer=ddp"
        )
    if trainer.precision not in ("32-true", "bf16-mixed"):
        raise SettingError(f"trainer.precision is {trainer.precision!r}, expected bf16-mixed or 32-true with fsdp")


def shard(trainer: Trainer, model: OpenVLAOFT, weights: Iterable[tuple[str, Tensor]] | None = None) -> None:
    """Share a model out, in place, where the trainer does: each block of its towers and each layer by itself.

    Weights that no loss ever reaches are frozen: they would have no optimizer state, which loading one asks for.

    Args:
        model: Whole; or on device "meta" in part, and then no process ever holds it whole.
        weights: Names and values of what is on "meta".
    """
    if not is_sharded(trainer) or isinstance(model, FSDPModule):
        return
    for part in never_run(model):
        part.requires_grad_(False)
    own = {name: value.detach().clone() for name, value in model.named_parameters() if not value.is_meta}
    policy = MixedPrecisionPolicy()
    if trainer.precision == "bf16-mixed":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    warnings.filterwarnings(
        "ignore", message="FSDP2-wrapped module"
    )  # of ops in place on what it gives; there are none
    mesh = trainer.strategy.device_mesh["data_parallel"]  # type: ignore[attr-defined]
    units = [block for tower in towers(model) for block in tower.blocks]
    for unit in [*units, *model.language_model.model.layers]:
        fully_shard(unit, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    register_fsdp_forward_method(model, "token_logits")
    if weights is None:
        return
    device = trainer.strategy.root_device
    model.to_empty(device=device)
    named = dict(model.named_parameters())
    with torch.no_grad():
        for values in (own.items(), weights):
            for name, value in values:
                share = named[name]
                assert isinstance(share, DTensor)
                whole = value.to(device)
                own_part = distribute_tensor(whole, share.device_mesh, share.placements, src_data_rank=None)
                share.to_local().copy_(own_part.to_local())
    model.renew_frequencies(device)


def towers(model: OpenVLAOFT) -> list[VisionTransformer]:
    """Its vision transformers."""
    return [part for part in model.vision_backbone.children() if isinstance(part, VisionTransformer)]


def never_run(model: OpenVLAOFT) -> list[nn.Module]:
    """Parts that a checkpoint has and no loss reaches: behind the towers' tap, and token logits beside another head."""
    parts = [tower.blocks[-1] for tower in towers(model)]
    parts += [part for tower in towers(model) for name in NEVER_RUN if (part := getattr(tower, name, None)) is not None]
    return (
        parts
        if model.architecture.action_head in ("autoregressive", "discrete")
        else [*parts, model.language_model.lm_head]
    )


@torch.no_grad()
def gather(trainer: Trainer, module: LightningModule) -> None:
    """Make the first process's weights whole again, on the CPU, for the export; all processes take part.

    None returns before the first one has everything, of validations, too: what a process that has ended was still
    sending is lost.
    """
    if is_sharded(trainer):
        _gather_shares(trainer, module)
    trainer.strategy.barrier()


def _gather_shares(trainer: Trainer, module: LightningModule) -> None:
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()
    for name, share in list(module.named_parameters()):
        if isinstance(share, DTensor):
            whole = share.full_tensor()
            if trainer.is_global_zero:
                put(module, name, whole.cpu())
