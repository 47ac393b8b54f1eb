"""Shuffling that can stop anywhere and go on exactly there.

The order of an epoch depends on (seed, epoch) and on nothing else, so the state of a loader is two numbers. What
surprises first: a loader counts the batches it has handed out, not those its workers have read ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

Fetch = Callable[[Sequence[int]], Any]  # rows of a batch → the batch


class EpochShuffle:
    """The order of the rows in each epoch, a permutation of 0..length-1.

    Attributes:
        length: Rows an epoch, of all processes.
    """

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed, self.epoch = length, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before every epoch."""
        self.epoch = epoch

    def order(self) -> np.ndarray:
        """Rows in the order of the current epoch, [length], int64."""
        return np.random.default_rng((self.seed, self.epoch)).permutation(self.length)

    def share(self, rank: int, num_ranks: int) -> np.ndarray:
        """The rows of one of several processes, in order; all get equally many, and up to num_ranks - 1 are left out.

        Args:
            rank, num_ranks: Which process, of how many.
        """
        whole = self.length // num_ranks * num_ranks
        return self.order()[rank:whole:num_ranks]


class _Batches(Dataset):
    def __init__(self, rows: np.ndarray, batch_size: int, fetch: Fetch) -> None:
        self.rows, self.batch_size, self.fetch = rows, batch_size, fetch

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __getitem__(self, index: int) -> Any:
        return self.fetch(self.rows[index * self.batch_size : (index + 1) * self.batch_size].tolist())


def _as_is(batch: Any) -> Any:
    return batch  # torch's default would turn arrays into tensors and tuples into lists


def batch_loader(rows: Sequence[int] | np.ndarray, fetch: Fetch, batch_size: int, num_workers: int = 0) -> DataLoader:
    """A loader of `fetch(rows of the batch)` in the given order; the last batch may be smaller."""
    batches = _Batches(np.asarray(rows, dtype=np.int64), batch_size, fetch)
    return DataLoader(batches, batch_size=None, num_workers=num_workers, collate_fn=_as_is)


def ranks(trainer: Any) -> dict[str, int]:
    """ShuffledLoader's arguments for a process of this Lightning trainer; none without a trainer."""
    return {} if trainer is None else {"rank": trainer.global_rank, "num_ranks": trainer.world_size}


class ShuffledLoader:
    """Training loader: a new order every epoch, resumable in the middle of one.

    Lightning saves `state_dict` with its checkpoints and calls `sampler.set_epoch`; without Lightning, do so yourself.

    Args:
        order: Which rows come when; a number of rows stands for all of them, shuffled.
        fetch: Makes a batch of the rows it is given; has to be picklable when there are workers.
        batch_size: Rows a batch; the last batch of an epoch may be smaller.
        seed: Of the order; only where `order` is a number.
        num_workers: Processes that fetch ahead; 0 fetches in this one.
        rank, num_ranks: This process among those that train together. Each gets every num_ranks-th row of the order,
            and all equally many: up to num_ranks - 1 rows of an epoch go to none.
    """

    def __init__(
        self,
        order: int | EpochShuffle,
        fetch: Fetch,
        *,
        batch_size: int,
        seed: int = 0,
        num_workers: int = 0,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        self.sampler = EpochShuffle(order, seed) if isinstance(order, int) else order
        self.fetch, self.batch_size, self.num_workers = fetch, batch_size, num_workers
        self.rank, self.num_ranks = rank, num_ranks
        self._handed_out = {"epoch": 0, "batches": 0}
        self._resuming = False

    def __len__(self) -> int:
        """Batches of a whole epoch, also while an epoch is being resumed."""
        return -(-(self.sampler.length // self.num_ranks) // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        epoch = self.sampler.epoch
        resume = self._resuming and self._handed_out["epoch"] == epoch
        self._handed_out = {"epoch": epoch, "batches": self._handed_out["batches"] if resume else 0}
        self._resuming = False
        rows = self.sampler.share(self.rank, self.num_ranks)
        rows = rows[self._handed_out["batches"] * self.batch_size :]
        for batch in batch_loader(rows, self.fetch, self.batch_size, self.num_workers):
            self._handed_out = {"epoch": epoch, "batches": self._handed_out["batches"] + 1}
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Epoch, and batches of it that were handed out."""
        return dict(self._handed_out)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration go on behind the batches that were handed out, if it is of the same epoch."""
        self._handed_out = dict(state)
        self._resuming = True
