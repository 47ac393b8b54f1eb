"""The cache's format: what is written is read back, and nothing that is torn, missing or foreign passes."""

import errno
import multiprocessing
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from rsd.data.cache import CacheError, CacheReader, content_key, hidden_name, is_complete, read_index
from rsd.data.fill_cache import ensure_cache
from tests.data.fake_backbone import (
    BATCH,
    LAYERS,
    A,
    LinearBackbone,
    T,
    ToyFrames,
    content_of,
    write,
    write_slowly,
)


def shard_bytes(directory):
    return {path.name: path.read_bytes() for path in Path(directory).glob("shard-*")}


def assert_same_cache(left, right):
    assert shard_bytes(left) == shard_bytes(right)
    assert sorted(read_index(left)[0], key=str) == sorted(read_index(right)[0], key=str)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole") / "cache"
    write(directory)
    return directory


@pytest.fixture
def copy(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "copy"))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_cached_states_are_the_live_ones(tmp_path, num_workers):
    backbone, frames = LinearBackbone(), ToyFrames()
    write(tmp_path / "cache", num_workers=num_workers)
    reader = CacheReader(tmp_path / "cache", verify=True)
    assert len(reader) == len(frames) == 47
    for first in range(0, len(frames), BATCH):
        items = [frames[row] for row in range(first, min(first + BATCH, len(frames)))]
        live = backbone.forward(backbone.prepare([item["observation"] for item in items]), LAYERS)
        cached = reader.read(torch.arange(first, first + len(items)), LAYERS)
        for layer in LAYERS:
            assert torch.equal(cached["hidden"][layer], live.hidden_states[layer].bfloat16())
        assert torch.equal(cached["base_actions"], live.actions)
        assert np.array_equal(cached["actions"], np.stack([item["actions"] for item in items]))
        assert cached["episode"].tolist() == [item["episode"] for item in items]
        assert cached["step"].tolist() == [item["step"] for item in items]


def test_the_batch_size_changes_nothing_beyond_rounding(whole, tmp_path):
    write(tmp_path / "ones", batch_size=1)
    rows = torch.arange(47)
    one, four = (CacheReader(path).read(rows, LAYERS) for path in (tmp_path / "ones", whole))
    for layer in LAYERS:
        torch.testing.assert_close(one["hidden"][layer], four["hidden"][layer], rtol=2**-7, atol=1e-5)


def test_a_row_has_the_shapes_and_types_of_the_contract(whole):
    row = CacheReader(whole)[46]
    assert {layer: (tuple(states.shape), states.dtype) for layer, states in row["hidden"].items()} == {
        2: ((T * A, 16), torch.bfloat16),
        4: ((T * A, 16), torch.bfloat16),
    }
    assert row["actions"].shape == row["base_actions"].shape == (T, A)
    assert (int(row["episode"]), int(row["step"])) == (3, 10)
    with pytest.raises(IndexError, match="row 47 of a cache of 47 frames"):
        CacheReader(whole)[47]


def test_rows_come_in_the_order_asked_for_from_shards_and_from_memory(whole):
    rows = torch.tensor([46, 0, 8, 7, 46, 23])
    mapped, loaded = CacheReader(whole), CacheReader(whole)
    loaded.load_into_memory()
    for reader in (mapped, loaded):
        batch = reader.read(rows, [4])
        assert list(batch["hidden"]) == [4]
        for place, row in enumerate(rows.tolist()):
            assert torch.equal(batch["hidden"][4][place], mapped[row]["hidden"][4])
    assert loaded.num_bytes == mapped.num_bytes


def test_writing_again_writes_nothing(whole):
    before = {path: path.stat().st_mtime_ns for path in whole.glob("shard-*")}
    backbone = LinearBackbone()
    write(whole, backbone=backbone)
    assert backbone.forward_passes == 0
    assert {path: path.stat().st_mtime_ns for path in whole.glob("shard-*")} == before


def test_a_torn_index_line_is_cut_and_its_shard_done_again(whole, copy):
    index = copy / "index.jsonl"
    index.write_bytes(index.read_bytes()[:-30])  # the last line loses its newline
    with pytest.raises(CacheError, match=r"is incomplete: 40 of 47 frames; complete it with: make-the-cache"):
        CacheReader(copy)
    write(copy)
    assert_same_cache(whole, copy)
    assert index.read_bytes() == (whole / "index.jsonl").read_bytes()


def test_shards_that_the_index_does_not_name_are_removed(whole, copy):
    (copy / "shard-00099.safetensors").write_bytes(b"orphan")
    (copy / "shard-00003.safetensors.tmp").write_bytes(b"half")
    (copy / "notes.txt").write_text("not ours")
    write(copy)
    assert not list(copy.glob("*99*")) and not list(copy.glob("*.tmp"))
    assert (copy / "notes.txt").exists()
    assert_same_cache(whole, copy)


def test_a_truncated_shard_is_refused_and_then_repaired(whole, copy):
    shard = copy / "shard-00001.safetensors"
    size = shard.stat().st_size
    os.truncate(shard, size - 5)
    with pytest.raises(CacheError, match=rf"00001.safetensors has {size - 5} bytes, expected {size}; repair it with"):
        CacheReader(copy)
    backbone = LinearBackbone()
    write(copy, backbone=backbone)
    assert backbone.forward_passes == 2  # 8 rows in batches of 4, and nothing else
    assert_same_cache(whole, copy)


def test_a_missing_shard_is_named(copy):
    (copy / "shard-00002.safetensors").unlink()
    with pytest.raises(CacheError, match=r"shard-00002.safetensors is missing; repair it with: make-the-cache"):
        CacheReader(copy)
    assert not is_complete(copy)


def test_verify_finds_a_flipped_bit(copy):
    shard = copy / "shard-00000.safetensors"
    data = bytearray(shard.read_bytes())
    data[-100] ^= 1
    shard.write_bytes(data)
    CacheReader(copy)
    with pytest.raises(CacheError, match=r"shard-00000\.safetensors has SHA-256"):
        CacheReader(copy, verify=True)


@pytest.mark.parametrize(
    ("backbone", "frames", "layers", "message"),
    [
        (LinearBackbone(seed=1), ToyFrames(), LAYERS, "backbone.weights: cache 'seed-0', configuration 'seed-1'"),
        (LinearBackbone(), ToyFrames((3, 4)), LAYERS, "data.content_id: cache 'toy-47', configuration 'toy-7'"),
        (LinearBackbone(), ToyFrames(), [3], r"layers: cache \[2, 4\], configuration \[3\]"),
    ],
)
def test_a_cache_of_something_else_is_refused_with_both_values(whole, backbone, frames, layers, message):
    before = shard_bytes(whole)
    with pytest.raises(CacheError, match=message):
        CacheReader(whole, expected=content_of(backbone, frames, layers))
    with pytest.raises(CacheError, match=message):
        write(whole, backbone=backbone, frames=frames, layers=layers)
    assert shard_bytes(whole) == before


def test_every_difference_is_listed(whole):
    wanted = content_of(LinearBackbone(seed=1), ToyFrames((3,)))
    with pytest.raises(CacheError, match=r"weights: .*; data.content_id: "):
        CacheReader(whole, expected=wanted)


def test_the_key_depends_on_everything_that_determines_the_numbers():
    frames, backbone = ToyFrames(), LinearBackbone()
    base = content_of(backbone, frames)
    others = [
        content_of(LinearBackbone(seed=1), frames),
        content_of(backbone, ToyFrames((3,))),
        content_of(backbone, frames, [2]),
        base | {"unnorm_key": "other"},
        base | {"chunk_length": 16},
    ]
    assert len({content_key(content) for content in [base, *others]}) == 6
    assert content_key(content_of(backbone, frames, [4, 2, 2])) == content_key(base)


def test_the_forecast_names_all_numbers_and_refuses_what_does_not_fit(tmp_path, monkeypatch):
    lines = []
    write(tmp_path / "fits", report=lines.append)
    assert lines[0].startswith("47 frames × 112 states of 2 layers × 16 × 2 bytes = 0.000 GB")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    with pytest.raises(CacheError, match=r"does not fit: 0.000 GB to write and 0.067 GB in reserve, 0.001 GB free"):
        write(tmp_path / "full")
    assert not list((tmp_path / "full").glob("shard-*"))


class DiskFillsUp(ToyFrames):
    """Makes the place of shard 3 a device that is always full, once the frames of that shard are read."""

    def __init__(self, directory):
        super().__init__()
        self.directory = directory

    def __getitem__(self, row):
        if row == 24:
            os.symlink("/dev/full", self.directory / "shard-00003.safetensors.tmp")
        return super().__getitem__(row)


def test_a_full_disk_loses_nothing_that_was_finished(whole, tmp_path):
    directory = tmp_path / "cache"
    message = r"the disk is full \(No space left on device\) after 24 of 47 frames.*make-the-cache"
    with pytest.raises(CacheError, match=message) as caught:
        write(directory, frames=DiskFillsUp(directory))
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert len(read_index(directory)[0]) == 3
    backbone = LinearBackbone()
    write(directory, backbone=backbone)
    assert backbone.forward_passes == 6  # rows 24..47
    assert_same_cache(whole, directory)


def test_states_that_are_not_finite_name_their_frame(tmp_path):
    class Diverged(LinearBackbone):
        def forward(self, inputs, layers):
            output = super().forward(inputs, layers)
            if self.forward_passes == 5:  # rows 16..19
                output.hidden_states[4][2, 7, 3] = float("nan")
            return output

    with pytest.raises(CacheError, match=r"hidden.4 is not finite in episode 1, step 5"):
        write(tmp_path / "cache", backbone=Diverged())
    assert len(read_index(tmp_path / "cache")[0]) == 2


def test_a_backbone_that_raises_raises(tmp_path):
    class Broken(LinearBackbone):
        def forward(self, inputs, layers):
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        write(tmp_path / "cache", backbone=Broken())


def test_layers_that_do_not_exist_are_named(tmp_path):
    with pytest.raises(CacheError, match=r"layers \[0, 9\] do not exist; the base model has 1..4"):
        write(tmp_path / "cache", layers=[0, 4, 9])


def test_no_cache_and_a_broken_record_are_named(tmp_path):
    with pytest.raises(CacheError, match=r"no hidden-state cache: .*cache.json does not exist; make it with"):
        CacheReader(tmp_path)
    (tmp_path / "cache.json").write_text("{")
    with pytest.raises(CacheError, match="is not valid JSON"):
        CacheReader(tmp_path)


def ensure(root, load, lines=None, **extra):
    arguments = {
        "root": root,
        "name": "linear-toy",
        "backbone": load,
        "dataset": ToyFrames,
        "layers": LAYERS,
        "chunk_length": T,
        "unnorm_key": "toy_no_noops",
        "batch_size": BATCH,
        "shard_mb": 1,
        "command": "make-the-cache",
        "report": (lines if lines is not None else []).append,
    }
    return ensure_cache(**(arguments | extra))


def test_ensure_cache_loads_the_model_only_to_fill(tmp_path):
    loads = []

    def load():
        loads.append(1)
        return LinearBackbone()

    first = ensure(tmp_path, load, outline=LinearBackbone)
    again = ensure(tmp_path, load, outline=LinearBackbone)
    assert len(loads) == 1 and first.directory == again.directory
    assert first.directory.name == f"linear-toy-{content_key(first.content)}"
    ensure(tmp_path, load)  # without an outline the model is asked
    assert len(loads) == 2


def test_ensure_cache_refuses_a_model_that_is_not_the_configured_one(tmp_path):
    with pytest.raises(CacheError, match=r"backbone.weights: loaded 'seed-1', configuration 'seed-0'"):
        ensure(tmp_path, lambda: LinearBackbone(seed=1), outline=LinearBackbone)
    with pytest.raises(CacheError, match=r"unnorm_key: loaded 'toy_no_noops', configuration 'libero_10'"):
        ensure(tmp_path, LinearBackbone, unnorm_key="libero_10")


def test_ensure_cache_takes_a_named_folder_only_if_it_is_the_right_one(whole, copy, tmp_path):
    assert ensure(tmp_path, LinearBackbone, directory=copy).directory == copy
    with pytest.raises(CacheError, match=r"backbone.weights: cache 'seed-0', configuration 'seed-1'"):
        ensure(tmp_path, lambda: LinearBackbone(seed=1), directory=copy)
    assert_same_cache(whole, copy)


@pytest.fixture(scope="module")
def processes():
    """Processes that start in milliseconds, with the imports done and no threads inherited."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "rsd.data.fill_cache"])
    return context


def test_a_second_writer_waits_for_the_first(processes, whole, tmp_path):
    directory = tmp_path / "cache"
    started = processes.Event()
    first = processes.Process(target=write_slowly, args=(directory, 0.05, started))
    first.start()
    while not (directory / "index.jsonl").exists() and first.is_alive():
        time.sleep(0.01)
    backbone = LinearBackbone()
    write(directory, backbone=backbone)  # returns when the other is done, having nothing to do itself
    first.join(30)
    assert first.exitcode == 0 and backbone.forward_passes == 0
    assert_same_cache(whole, directory)


def test_killed_at_random_points_and_resumed_it_equals_an_uninterrupted_cache(processes, whole, tmp_path):
    """16 kills at random points, of fresh and of resumed caches; then one run that completes."""

    def start(directory):
        started = processes.Event()
        writer = processes.Process(target=write_slowly, args=(directory, 0.004, started))
        writer.start()
        assert started.wait(60)
        return writer

    random = np.random.default_rng(0)
    begun = time.monotonic()
    start(tmp_path / "uninterrupted").join(60)
    duration_s = time.monotonic() - begun
    assert_same_cache(whole, tmp_path / "uninterrupted")
    directory = tmp_path / "cache"
    kills, seen = 0, set()
    while kills < 16:
        writer = start(directory)
        writer.join(random.uniform(0.0, duration_s))
        killed = writer.is_alive()
        writer.kill()
        writer.join()
        kills += killed
        entries, _ = read_index(directory) if directory.exists() else ([], 0)
        seen.add(len(entries))
        for entry in entries:  # whatever the index names is whole
            assert (directory / entry["file"]).read_bytes() == (whole / entry["file"]).read_bytes()
        if is_complete(directory):  # start over
            assert_same_cache(whole, directory)
            shutil.rmtree(directory)
    write(directory)
    assert_same_cache(whole, directory)
    reader = CacheReader(directory, verify=True)
    assert list(zip(reader.episodes.tolist(), reader.steps.tolist(), strict=True)) == ToyFrames().rows
    assert len(seen) > 2  # the kills did hit different points


def test_hidden_names_are_stable():
    assert hidden_name(24) == "hidden.24"
