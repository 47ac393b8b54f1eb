"""How much memory streaming takes as data sets grow: data.stream.buffer_mb=…, a fresh process for each size.

    python scripts/benchmark_streaming.py --gb 1 10 100 --out /data/streaming

Writes one file of made-up episodes (256 px, two cameras, JPEG of LIBERO's size) and gives it as many names as it takes
(hard links), so a set of 100 GB takes 1 GB of disk. What surprises first: pages of files that the operating system
keeps in memory count for a process while it has them mapped, so even these are in the figures; the resident memory of
all processes is sampled while they work, and shared pages count once (PSS).
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from rsd.data.rlds_metadata import INFO_FILE
from rsd.options import Options, any_path, held, reported
from rsd.settings import Range

NAME = "libero_made_up_no_noops"
VIEWS = ("image", "wrist_image")
BATCHES, BATCH = 40, 32
GRAIN = 4.0  # standard deviation of the noise on each pixel: files of about LIBERO's size
Gigabytes = Annotated[float, Range(0, 10_000, above=True)]
Count = Annotated[int, Range(0, 64)]


def write_file(directory: Path, gigabytes: float) -> tuple[Path, int]:
    """One file of episodes of 120 steps; its path and how many it holds."""
    from rsd.data.libero_features import IMAGE_SHAPE
    from rsd.data.made_up import demonstration, picture
    from rsd.data.rlds_writer import RLDSWriter
    from rsd.jpeg import encode_jpeg

    random = np.random.default_rng(0)
    noisy = [(picture(random) + random.normal(0, GRAIN, IMAGE_SHAPE)).clip(0, 255) for _ in range(32)]
    jpegs = [encode_jpeg(one.astype(np.uint8)) for one in noisy]
    make = partial(demonstration, picture=lambda own: jpegs[own.integers(len(jpegs))])
    with RLDSWriter(directory, NAME) as writer:
        while writer.path.stat().st_size < gigabytes * 1e9:
            writer.write_episode(make(len(writer), 120))
        writer.finish()
        return writer.path, len(writer)


def link_set(source: Path, episodes: int, directory: Path, copies: int) -> None:
    """A data set whose files are all this one."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    shutil.copy(source.parent / "features.json", directory)
    info = json.loads((source.parent / INFO_FILE).read_text())
    info["splits"][0]["shardLengths"] = [str(episodes)] * copies
    (directory / INFO_FILE).write_text(json.dumps(info))
    for number in range(copies):
        os.link(source, directory / f"{NAME}-train.tfrecord-{number:05d}-of-{copies:05d}")


def family_mb() -> float:
    """Memory of this process and those that it started, shared pages once, MB."""
    own = os.getpid()
    pids = [own, *(int(one) for one in Path(f"/proc/{own}/task/{own}/children").read_text().split())]
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except (OSError, ProcessLookupError):
            continue  # has ended meanwhile
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


class Peak:
    """Most memory of the family of this process while it is entered, MB."""

    def __enter__(self) -> Peak:
        self.mb, self._over = family_mb(), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(0.5):
            self.mb = max(self.mb, family_mb())

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def of_epoch(loader: Any, epoch: int) -> Iterator[Any]:
    """The batches of one epoch."""
    loader.sampler.set_epoch(epoch)
    yield from loader


def measure(directory: Path, index_dir: Path, buffer_mb: float, num_workers: int) -> dict[str, float]:
    """Index a data set, open it again, and load batches of it; runs in a process of its own."""
    from rsd.data.datamodules import FrameDataModule
    from rsd.data.streaming import Stream
    from rsd.training.oft import FrameCollate

    def module() -> FrameDataModule:
        return FrameDataModule(
            root=str(directory.parent.parent),
            name=directory.parent.name,
            version=directory.name,
            chunk_length=8,
            views=VIEWS,
            batch_size=BATCH,
            num_workers=num_workers,
            seed=0,
            collate=FrameCollate(image_size=224, views=VIEWS),
            stream=Stream(index_dir=str(index_dir), buffer_mb=buffer_mb),
        )

    with Peak() as indexing:
        start = time.perf_counter()
        module().setup()
        indexing_s = time.perf_counter() - start
    with Peak() as loading:
        start = time.perf_counter()
        data = module()
        data.setup()
        opening_s = time.perf_counter() - start
        loader = data.train_dataloader()
        batches = (batch for epoch in itertools.count() for batch in of_epoch(loader, epoch))
        next(batches)
        start = time.perf_counter()
        for _ in range(BATCHES):
            next(batches)
        rate = BATCHES * BATCH / (time.perf_counter() - start)
    frames = sum(len(one.actions) for one in data.train.trajectories)
    return {
        "frames": frames,
        "indexing_s": indexing_s,
        "indexing_mb": indexing.mb,
        "opening_s": opening_s,
        "loading_mb": loading.mb,
        "rate": rate,
    }


def run(out: Path, sizes: list[float], file_gb: float, buffer_mb: float, num_workers: int) -> None:
    """Print the table."""
    source, episodes = write_file(out / "one" / "1.0.0", file_gb)
    gb = source.stat().st_size / 1e9
    print(f"{'GB':>6}{'frames':>10}{'index s':>9}{'MB':>7}{'open s':>8}{'load MB':>9}{'frames/s':>10}", flush=True)
    for wanted in sizes:
        copies = max(1, round(wanted / gb))
        directory = out / f"{NAME}_{copies}" / "1.0.0"
        link_set(source, episodes, directory, copies)
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            row = pool.submit(measure, directory, out / "index", buffer_mb, num_workers).result()
        print(
            f"{copies * gb:6.1f}{row['frames']:10.0f}{row['indexing_s']:9.0f}{row['indexing_mb']:7.0f}"
            f"{row['opening_s']:8.1f}{row['loading_mb']:9.0f}{row['rate']:10.0f}",
            flush=True,
        )


@reported
def main() -> None:
    parser = Options(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=held(Gigabytes), nargs="+", default=[1.0, 4.0], help="sizes, GB")
    parser.add_argument("--file-gb", type=held(Gigabytes), default=1.0, help="of the one file")
    parser.add_argument("--buffer-mb", type=held(Gigabytes), default=1000.0)
    parser.add_argument("--workers", type=held(Count), default=2, help="processes that load")
    parser.add_argument(
        "--out", type=any_path, default=Path("outputs/streaming"), help="on a disk with room for one file"
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.out) as folder:
        run(Path(folder), args.gb, args.file_gb, args.buffer_mb, args.workers)


if __name__ == "__main__":
    main()
