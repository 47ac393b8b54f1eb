"""The cache's format: what is written is read back, and nothing that is torn, missing or foreign passes."""

import errno
import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from rsd.data.cache import ROWS, CacheError, CacheReader, IncompleteCache, content_key, read_index
from rsd.data.fill_cache import cache_content, ensure_cache
from rsd.points import point_names
from rsd.record import sealed
from tests.data.fake_base import (
    BATCH,
    POINTS,
    A,
    LinearBase,
    LinearPass,
    T,
    ToyFrames,
    write,
    write_slowly,
)
from tests.records import edit

CONF = Path(__file__).parents[2] / "conf"


PARTS = [ROWS, *POINTS]


def shard_bytes(directory, parts=PARTS):
    return {(part, path.name): path.read_bytes() for part in parts for path in (directory / part).glob("shard-*")}


def modified(directory):
    """Every file and when it was written."""
    return {path: path.stat().st_mtime_ns for path in Path(directory).rglob("*") if path.is_file()}


def assert_same_cache(left, right, parts=PARTS):
    assert shard_bytes(left, parts) == shard_bytes(right, parts) != {}
    for part in parts:
        assert read_index(left / part)[0] == read_index(right / part)[0]


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
    base, frames = LinearBase(), ToyFrames()
    write(tmp_path / "cache", num_workers=num_workers)
    reader = CacheReader(tmp_path / "cache", verify=True)
    assert len(reader) == len(frames) == 47
    for first in range(0, len(frames), BATCH):
        items = [frames[row] for row in range(first, min(first + BATCH, len(frames)))]
        live = base.look([item["observation"] for item in items])
        cached = reader.read(torch.arange(first, first + len(items)), POINTS)
        for point in POINTS:
            assert torch.equal(cached["hidden"][point], live.at(point).bfloat16())
        assert torch.equal(cached["base_actions"], live.chunk())
        assert np.array_equal(cached["actions"], np.stack([item["actions"] for item in items]))
        assert cached["episode"].tolist() == [item["episode"] for item in items]
        assert cached["step"].tolist() == [item["step"] for item in items]


def test_the_batch_size_changes_nothing_beyond_rounding(whole, tmp_path):
    write(tmp_path / "ones", batch_size=1)
    rows = torch.arange(47)
    one, four = (CacheReader(path).read(rows, POINTS) for path in (tmp_path / "ones", whole))
    for point in POINTS:
        torch.testing.assert_close(one["hidden"][point], four["hidden"][point], rtol=2**-7, atol=1e-5)


def test_a_row_has_the_shapes_and_types_of_the_contract(whole):
    row = CacheReader(whole)[46]
    assert {point: (tuple(states.shape), states.dtype) for point, states in row["hidden"].items()} == {
        "layer.2": ((T * A, 16), torch.bfloat16),
        "layer.4": ((T * A, 16), torch.bfloat16),
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
        batch = reader.read(rows, ["layer.4"])
        assert list(batch["hidden"]) == ["layer.4"]
        for place, row in enumerate(rows.tolist()):
            assert torch.equal(batch["hidden"]["layer.4"][place], mapped[row]["hidden"]["layer.4"])
            assert (mapped.episodes[row], mapped.steps[row]) == (batch["episode"][place], batch["step"][place])
    assert loaded.num_bytes == mapped.num_bytes


def test_writing_again_writes_nothing(whole):
    before = modified(whole)
    base = LinearBase()
    write(whole, base=base)
    assert base.passes == 0
    assert modified(whole) == before


def test_one_more_point_is_computed_alone_and_rewrites_nothing(whole, tmp_path):
    directory = tmp_path / "cache"
    write(directory, points=["layer.2"])
    before = modified(directory)
    base = LinearBase()
    write(directory, points=["layer.2", "layer.4"], base=base)
    assert (base.passes, set(base.asked)) == (12, {4})  # 47 rows in batches of 4
    after = modified(directory)
    assert {path: after[path] for path in before} == before
    assert {path.parent.name for path in after.keys() - before.keys()} == {"layer.4"}
    assert_same_cache(whole, directory)


def test_points_that_are_missing_together_share_their_passes(whole, tmp_path):
    directory, base = tmp_path / "cache", LinearBase()
    write(directory, points=[], base=base)
    assert (base.passes, base.asked) == (12, [])
    shutil.copytree(whole / "layer.4", directory / "layer.4")
    (directory / "layer.4" / "shard-00001.safetensors").unlink()
    write(directory, base=base)
    assert base.passes == 24
    assert (base.asked.count(2), base.asked.count(4)) == (12, 2)  # a shard is two batches
    assert_same_cache(whole, directory)


def test_adding_a_point_does_not_ask_for_the_models_chunk(tmp_path):
    """So that a model that computes only what it is asked for stops at that layer."""

    class WithoutChunkPass(LinearPass):
        def chunk(self):
            raise AssertionError("the chunk is there already")

    class WithoutChunk(LinearBase):
        def look(self, observations):
            return WithoutChunkPass(self, observations)

    write(tmp_path / "cache", points=["layer.2"])
    write(tmp_path / "cache", points=["layer.4"], base=WithoutChunk())
    assert CacheReader(tmp_path / "cache", verify=True).points == POINTS


def test_a_point_can_be_read_while_another_is_incomplete(copy):
    (copy / "layer.4" / "shard-00002.safetensors").unlink()
    assert CacheReader(copy, ["layer.2"]).points == ["layer.2"]
    with pytest.raises(IncompleteCache, match=r"layer.4/shard-00002.safetensors is missing"):
        CacheReader(copy, POINTS)


@pytest.mark.parametrize("part", PARTS)
def test_a_torn_index_line_is_cut_and_its_shard_done_again(whole, copy, part):
    index = copy / part / "index.jsonl"
    index.write_bytes(index.read_bytes()[:-30])  # the last line loses its newline
    message = rf'is incomplete: 40 of 47 frames in {part}; complete it with: make-the-cache "layers=\[layer.2,layer.4'
    with pytest.raises(IncompleteCache, match=message):
        CacheReader(copy)
    write(copy)
    assert_same_cache(whole, copy)
    assert index.read_bytes() == (whole / part / "index.jsonl").read_bytes()


def test_shards_that_the_index_does_not_name_are_removed(whole, copy):
    folder = copy / "layer.4"
    (folder / "shard-00099.safetensors").write_bytes(b"orphan")
    (folder / "shard-00003.safetensors.tmp").write_bytes(b"half")
    (folder / "notes.txt").write_text("not ours")
    write(copy, points=["layer.2"])
    assert list(folder.glob("*99*"))  # nobody asked for this point
    write(copy)
    assert not list(folder.glob("*99*")) and not list(folder.glob("*.tmp"))
    assert (folder / "notes.txt").exists()
    assert_same_cache(whole, copy)


@pytest.mark.parametrize("part", PARTS)
def test_a_truncated_shard_is_refused_and_then_repaired(whole, copy, part):
    shard = copy / part / "shard-00001.safetensors"
    size = shard.stat().st_size
    os.truncate(shard, size - 5)
    message = rf"{part}/shard-00001.safetensors has {size - 5} bytes, expected {size}; repair it with"
    with pytest.raises(IncompleteCache, match=message):
        CacheReader(copy)
    base = LinearBase()
    write(copy, base=base)
    assert base.passes == 2  # 8 rows in batches of 4, and nothing else
    assert_same_cache(whole, copy)


def test_a_missing_shard_is_named(copy):
    (copy / "layer.2" / "shard-00002.safetensors").unlink()
    with pytest.raises(IncompleteCache, match=r"shard-00002.safetensors is missing; repair it with: make-the-cache"):
        CacheReader(copy)


def test_verify_finds_a_flipped_bit(copy):
    shard = copy / "layer.4" / "shard-00000.safetensors"
    data = bytearray(shard.read_bytes())
    data[-100] ^= 1
    shard.write_bytes(data)
    CacheReader(copy, verify=False)
    with pytest.raises(
        IncompleteCache, match=r"shard-00000\.safetensors has SHA-256 .*; repair it with: make-the-cache"
    ):
        CacheReader(copy)


def damage_index(copy, change):
    path = copy / "layer.4" / "index.jsonl"
    lines = path.read_text().splitlines()
    change(lines)
    path.write_text("\n".join(lines) + "\n")


def edited(**changes):
    def change(lines):
        lines[1] = json.dumps(sealed(json.loads(lines[1]) | changes))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines.append(lines[0]), r"layer\.4/index\.jsonl, line 7 names rows from 0 for a second time"),
        (lambda lines: lines.__setitem__(1, "{"), r"index\.jsonl, line 2 is not valid JSON"),
        (lambda lines: lines.__setitem__(1, "[]"), r"index\.jsonl, line 2: it is \[\], expected an object"),
        (lambda lines: lines.__setitem__(1, "{}"), r"index\.jsonl, line 2 lacks entry 'bytes'"),
        (edited(rows=None), r"line 2: entry 'rows' is None, expected a whole number"),
        (edited(start="8"), r"line 2: entry 'start' is '8', expected a whole number"),
        (edited(start=-1), r"line 2: entry 'start' is -1, expected a whole number from 0"),
        (edited(file="../rows/shard-00001.safetensors"), r"line 2: entry 'file' is '\.\./rows.* expected a name"),
        (edited(sha256="0" * 64), r"shard-00001\.safetensors has SHA-256 .*, expected 000000000000"),
        (edited(bytes=7), r"shard-00001\.safetensors has \d+ bytes, expected 7"),
        (edited(rows=7), r"is incomplete: 46 of 47 frames in layer\.4"),
        (lambda lines: lines.__setitem__(1, lines[1].replace('"start": 8', '"start": 0')), r"line 2 is damaged or was"),
    ],
)
def test_a_damaged_index_asks_for_a_command_that_repairs_it(whole, copy, change, message):
    damage_index(copy, change)
    with pytest.raises(IncompleteCache, match=message) as error:
        CacheReader(copy)
    assert "with: make-the-cache" in str(error.value) and "\n" not in str(error.value)
    write(copy)
    assert_same_cache(copy, whole)
    CacheReader(copy)


def test_the_command_repairs_a_changed_bit(whole, copy):
    shard = copy / "layer.4" / "shard-00002.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    write(copy)
    assert_same_cache(copy, whole)


@pytest.mark.parametrize("value", [None, -1, "x", [], {}, "missing"])
@pytest.mark.parametrize(
    "entry",
    ["format", "content", "content.base", "content.data", "content.data.num_episodes", "content.unnorm_key",
     "num_frames", "rows_per_shard", "norm_stats", "norm_stats.action", "norm_stats.action.q01", "command"],
)  # fmt: skip
def test_a_damaged_entry_of_the_record_is_one_line(copy, entry, value):
    def change(record):
        *parents, last = entry.split(".")
        for name in parents:
            record = record[name]
        record[last] = value
        if value == "missing":
            del record[last]

    before = json.loads((copy / "cache.json").read_text())
    edit(copy / "cache.json", change)
    if json.loads((copy / "cache.json").read_text()) == before or (entry, value) in FITTING:
        return
    with pytest.raises(CacheError) as error:
        CacheReader(copy)
    line = str(error.value)
    assert "cache.json" in line and "\n" not in line and len(line) < len(str(copy)) + 300


FITTING = [("content.unnorm_key", "x"), ("command", "x"), ("content.base", {})]  # values that the type allows


def test_a_changed_bound_is_found(copy):
    path = copy / "cache.json"
    record = json.loads(path.read_text())
    record["norm_stats"]["action"]["q01"][0] -= 0.25
    path.write_text(json.dumps(record))
    with pytest.raises(CacheError, match=r"cache\.json is damaged or was edited: its entry 'checksum'"):
        CacheReader(copy)


@pytest.mark.parametrize(
    ("base", "frames", "message"),
    [
        (LinearBase(seed=1), ToyFrames(), "base.weights: cache 'seed-0', configuration 'seed-1'"),
        (LinearBase(), ToyFrames((3, 4)), "data.content_id: cache 'toy-47', configuration 'toy-7'"),
    ],
)
def test_a_cache_of_something_else_is_refused_with_both_values(whole, base, frames, message):
    before = modified(whole)
    with pytest.raises(CacheError, match=message):
        CacheReader(whole, content=cache_content(base, frames))
    with pytest.raises(CacheError, match=message):
        write(whole, base=base, frames=frames)
    assert modified(whole) == before


def test_every_difference_is_listed(whole):
    wanted = cache_content(LinearBase(seed=1), ToyFrames((3,)))
    with pytest.raises(CacheError, match=r"weights: .*; data.content_id: "):
        CacheReader(whole, content=wanted)


def test_the_key_depends_on_everything_that_determines_the_numbers():
    frames, base = ToyFrames(), LinearBase()
    content = cache_content(base, frames)
    others = [
        cache_content(LinearBase(seed=1), frames),
        cache_content(base, ToyFrames((3,))),
        content | {"unnorm_key": "other"},
        content | {"chunk_length": 16},
    ]
    assert len({content_key(one) for one in [content, *others]}) == 5


def test_the_forecast_counts_what_is_missing_and_refuses_what_does_not_fit(tmp_path, monkeypatch):
    lines = []
    write(tmp_path / "fits", report=lines.append)
    assert lines[0].startswith(
        "to write, frames × bytes a frame: rows 47 × 464 bytes, layer.2 47 × 1792 bytes, layer.4 47 × 1792 bytes; 0.000"
    )
    (tmp_path / "fits" / "layer.2" / "shard-00005.safetensors").unlink()  # seven rows
    lines.clear()
    write(tmp_path / "fits", points=[*POINTS, "layer.1"], report=lines.append)
    assert lines[0].startswith(
        "to write, frames × bytes a frame: layer.2 7 × 1792 bytes, layer.1 47 × 1792 bytes; 0.000"
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    with pytest.raises(CacheError, match=r"does not fit: 0.000 GB to write and 0.067 GB in reserve, 0.001 GB free"):
        write(tmp_path / "full")
    assert not list((tmp_path / "full").rglob("shard-*"))


class DiskFillsUp(ToyFrames):
    """Makes the place of a shard 3 a device that is always full, once the frames of that shard are read."""

    def __init__(self, directory):
        super().__init__()
        self.directory = directory

    def __getitem__(self, row):
        if row == 24:
            os.symlink("/dev/full", self.directory / "layer.4" / "shard-00003.safetensors.tmp")
        return super().__getitem__(row)


def test_a_full_disk_loses_nothing_that_was_finished(whole, tmp_path):
    directory = tmp_path / "cache"
    message = r"the disk is full \(No space left on device\) after 24 of 47 frames in .*layer.4; they .*make-the-cache"
    with pytest.raises(CacheError, match=message) as caught:
        write(directory, frames=DiskFillsUp(directory))
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert {part: len(read_index(directory / part)[0]) for part in PARTS} == {ROWS: 4, "layer.2": 4, "layer.4": 3}
    base = LinearBase()
    write(directory, base=base)
    assert (base.asked.count(2), base.asked.count(4)) == (4, 6)  # rows 32..47, rows 24..47
    assert_same_cache(whole, directory)


def test_states_that_are_not_finite_name_their_frame(tmp_path):
    class DivergedPass(LinearPass):
        def at(self, point):
            states = super().at(point)
            if self._base.passes == 5 and point == "layer.4":  # rows 16..19
                states[2, 7, 3] = float("nan")
            return states

    class Diverged(LinearBase):
        def look(self, observations):
            return DivergedPass(self, observations)

    with pytest.raises(CacheError, match=r"states of layer.4 is not finite in episode 1, step 5"):
        write(tmp_path / "cache", base=Diverged())
    assert {part: len(read_index(tmp_path / "cache" / part)[0]) for part in PARTS} == dict.fromkeys(PARTS, 2)


def test_a_base_that_raises_raises(tmp_path):
    class Broken(LinearBase):
        def look(self, observations):
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        write(tmp_path / "cache", base=Broken())


def test_points_that_do_not_exist_are_named(tmp_path):
    message = r"points \['layer.9', 'rows'\] do not exist; the base model has layer.1, layer.2, layer.3, layer.4; set"
    with pytest.raises(CacheError, match=message):
        write(tmp_path / "cache", points=["layer.9", "layer.4", "rows"])


def test_no_cache_and_a_broken_record_are_named(tmp_path):
    with pytest.raises(CacheError, match=r"no hidden-state cache: .*cache.json does not exist; make it with"):
        CacheReader(tmp_path)
    (tmp_path / "cache.json").write_text("{")
    with pytest.raises(CacheError, match="is not valid JSON"):
        CacheReader(tmp_path)


def test_a_cache_of_an_older_format_is_refused_and_kept(copy):
    record = copy / "cache.json"
    record.write_text(record.read_text().replace('"format": 2', '"format": 1'))
    before = modified(copy)
    for attempt in (CacheReader, write, lambda directory: ensure(copy, LinearBase, directory=directory)):
        with pytest.raises(
            CacheError, match="is of cache format 1, expected 2, and is left as it is: remove the folder"
        ):
            attempt(copy)
    assert {path: time for path, time in modified(copy).items() if path in before} == before


def ensure(root, load, lines=None, **extra):
    arguments = {
        "root": root,
        "name": "linear-toy",
        "base": load,
        "dataset": ToyFrames,
        "points": POINTS,
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
        return LinearBase()

    first = ensure(tmp_path, load, outline=LinearBase)
    again = ensure(tmp_path, load, outline=LinearBase)
    assert len(loads) == 1 and first.directory == again.directory
    assert first.directory.name == f"linear-toy-{content_key(first.content)}"
    ensure(tmp_path, load)  # without an outline the model is asked
    assert len(loads) == 2


def test_a_sweep_over_the_drafts_layer_computes_nothing_twice(tmp_path):
    """What `train.py -m phase=draft draft.layer=2,3,2` asks of the cache, behind a caching of layer 2."""
    base = LinearBase()
    caches = [ensure(tmp_path, lambda: base, points=[2])]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for layer in (2, 3, 2):
            cfg = compose("train", ["phase=draft", f"draft.layer={layer}"])
            points = [cfg.phase.datamodule.points]
            assert points == [layer]  # and not the head's, nor the model's usual one
            caches.append(ensure(tmp_path, lambda: base, points=points))
    assert {layer: base.asked.count(layer) for layer in set(base.asked)} == {2: 12, 3: 12}
    assert base.passes == 24
    assert [cache.points for cache in caches] == [["layer.2"], ["layer.2"], ["layer.3"], ["layer.2"]]
    assert len({cache.directory for cache in caches}) == 1


class MovedFrames(ToyFrames):
    """Of which the base model's statistics cut off more than the data's own."""

    def cut_off(self, space):
        return [(0.02, 0.02), (0.15, 0.05)]


def test_a_base_model_of_old_data_says_what_it_cuts_off_and_is_refused_above_a_limit(tmp_path):
    said = "toy_no_noops holds now: they cut off, in % of each action dim's movement, 0: 2.0, 1: 15.0"
    lines = []
    ensure(tmp_path, LinearBase, lines, dataset=MovedFrames, max_clipped=0.11)
    assert lines[0].startswith("note: the base model has the statistics of other data (") and lines[0].endswith(said)
    limit = r"; 10\.0 more than the data set's own would, and max_clipped allows 9\.0: train the base model"
    with pytest.raises(CacheError, match=said + limit):
        ensure(tmp_path / "refused", LinearBase, dataset=MovedFrames, max_clipped=0.09)
    assert not (tmp_path / "refused").exists()
    lines = []
    ensure(tmp_path, LinearBase, lines, max_clipped=0.0)
    assert not any("statistics of other data" in line for line in lines)


def test_a_base_model_of_other_bounds_is_refused_with_both(tmp_path):
    with pytest.raises(CacheError, match=r"data\.bounds is 'extremes', .* was trained with 'quantiles'"):
        ensure(tmp_path, LinearBase, bounds="extremes")
    assert not list(tmp_path.iterdir())


def test_ensure_cache_refuses_a_model_that_is_not_the_configured_one(tmp_path):
    with pytest.raises(CacheError, match=r"base.weights: loaded 'seed-1', outlined 'seed-0'"):
        ensure(tmp_path, lambda: LinearBase(seed=1), outline=LinearBase)
    assert not list(tmp_path.iterdir())


def test_ensure_cache_takes_a_named_folder_only_if_it_is_the_right_one(whole, copy, tmp_path):
    assert ensure(tmp_path, LinearBase, directory=copy).directory == copy
    with pytest.raises(CacheError, match=r"base.weights: cache 'seed-0', configuration 'seed-1'"):
        ensure(tmp_path, lambda: LinearBase(seed=1), directory=copy)
    assert_same_cache(whole, copy)


@pytest.fixture(scope="module")
def processes():
    """Processes that start in milliseconds, with the imports done and no threads inherited."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "rsd.data.fill_cache"])
    return context


@pytest.mark.slow
def test_a_second_writer_waits_for_the_first(processes, whole, tmp_path):
    directory = tmp_path / "cache"
    started = processes.Event()
    first = processes.Process(target=write_slowly, args=(directory, 0.05, started))
    first.start()
    while not (directory / "layer.4" / "index.jsonl").exists() and first.is_alive():
        time.sleep(0.01)
    base = LinearBase()
    write(directory, base=base)  # returns when the other is done, having nothing to do itself
    first.join(30)
    assert first.exitcode == 0 and base.passes == 0
    assert_same_cache(whole, directory)


@pytest.mark.slow
@pytest.mark.parametrize("added", [False, True], ids=["at once", "point by point"])
def test_killed_at_random_points_and_resumed_it_equals_an_uninterrupted_cache(processes, whole, tmp_path, added):
    """16 kills at random points, of fresh and of resumed caches; then one run that completes."""

    def start(directory):
        if added and not directory.exists():
            write(directory, points=["layer.2"])
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
        indices = {part: read_index(directory / part)[0] for part in PARTS}
        seen.add(sum(map(len, indices.values())))
        for part, entries in indices.items():  # whatever an index names is whole
            for entry in entries:
                path = Path(part, entry["file"])
                assert (directory / path).read_bytes() == (whole / path).read_bytes()
        try:
            CacheReader(directory, POINTS)
        except IncompleteCache:
            continue
        assert_same_cache(whole, directory)
        shutil.rmtree(directory)  # start over
    write(directory)
    assert_same_cache(whole, directory)
    reader = CacheReader(directory, verify=True)
    assert list(zip(reader.episodes.tolist(), reader.steps.tolist(), strict=True)) == ToyFrames().rows
    assert len(seen) > 2  # the kills did hit different points


def test_points_as_users_write_them():
    assert point_names([12, "head", "layer.16", 16]) == ["layer.12", "head", "layer.16"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_several_devices_write_what_one_writes(whole, tmp_path, num_workers):
    """Shards are dealt out; each device has a model of its own."""
    bases = [LinearBase(), LinearBase()]
    write(tmp_path, bases=bases, num_workers=num_workers)
    assert_same_cache(tmp_path, whole)
    assert all(base.passes > 0 for base in bases)


def test_what_breaks_on_one_device_ends_the_others(tmp_path):
    class Broken(LinearBase):
        def look(self, observations):
            raise RuntimeError("no kernel for this card")

    with pytest.raises(RuntimeError, match="no kernel for this card"):
        write(tmp_path, bases=[LinearBase(), Broken()])
    write(tmp_path)  # the lock is free, and what was finished is kept
    assert len(CacheReader(tmp_path, POINTS)) == len(ToyFrames())


def test_each_device_gets_a_model_of_its_own(tmp_path):
    made = []

    def load(device="none"):
        made.append(device)
        return LinearBase()

    cache = ensure(tmp_path, load, devices=["cpu", "cuda:1"], outline=LinearBase)
    assert made == ["cpu", "cuda:1"] and len(cache) == len(ToyFrames())
    ensure(tmp_path / "other", load, devices="cpu", outline=LinearBase)
    assert made[2:] == ["none"]
