"""Weights that are damaged, and what loading costs the host."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rsd.checkpoint import CheckpointError
from tests.models.published_copy import ROOT, load


def test_an_index_that_disagrees_with_its_shards(published):
    weights = load_file(published / "model.safetensors")
    weight_map = dict.fromkeys(weights, "model.safetensors")
    index = published / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map | {"more.weight": "model.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"index\.json disagree about \['more\.weight'\]"):
        load(published)
    index.write_text("{")
    with pytest.raises(CheckpointError, match=r"is not an index of weights"):
        load(published)


def test_weights_that_are_not_numbers_of_floating_point(published):
    weights = load_file(published / "model.safetensors")
    weights["projector.fc3.bias"] = weights["projector.fc3.bias"].to(torch.int16)
    save_file(weights, published / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"holds I16 in \['projector\.fc3\.bias'\], expected \('F32'"):
        load(published)


@pytest.mark.slow
def test_every_flipped_byte_of_the_header_is_noticed_or_harmless(published):
    """Either a CheckpointError, or exactly the same weights (a byte of the header's padding or metadata)."""
    path = published / "model.safetensors"
    good = path.read_bytes()
    expected = shapes_and_offsets(path)
    size = 8 + int.from_bytes(good[:8], "little")
    noticed = 0
    positions = [*range(16), *range(16, size, max(1, size // 150))]
    for position in positions:
        damaged = bytearray(good)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        try:
            load(published, device="meta")
        except CheckpointError:
            noticed += 1
            continue
        assert shapes_and_offsets(path) == expected, position
    assert noticed > 0.9 * len(positions)


def shapes_and_offsets(path: Path) -> dict:
    """The header's tensors, as stored."""
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return {name: entry for name, entry in header.items() if name != "__metadata__"}


def test_meta_loading_reads_no_weights(published):
    base = load(published, device="meta")
    assert {value.device.type for value in base.model.parameters()} == {"meta"}
    path = next(published.glob("action_head--*"))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(published, device="meta")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_fingerprint_needs_no_weights(published, dtype):
    assert load(published, device="meta", dtype=dtype).fingerprint() == load(published, dtype=dtype).fingerprint()


def test_the_fingerprint_follows_the_files(published):
    outline = load(published, device="meta")
    before = outline.fingerprint()
    path = published / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    after = outline.fingerprint()
    assert after.pop("weights_sha256") != before.pop("weights_sha256") and after == before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_have_the_asked_dtype_and_no_tie_to_the_file(published, dtype):
    base = load(published, dtype=dtype)
    assert {value.dtype for value in base.model.parameters()} == {getattr(torch, dtype)}
    before = base.model.projector.fc1.weight.clone()
    path = published / "model.safetensors"
    path.write_bytes(b"\0" * path.stat().st_size)
    assert torch.equal(base.model.projector.fc1.weight, before)


MEASURE = """
import sys, torch
from pathlib import Path
from torch import nn
from rsd.models.openvla.streaming import read_headers, stream, weight_files

def status(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) * 1024

directory = Path(sys.argv[1])
found = read_headers(weight_files(directory))
with torch.device("meta"):
    module = nn.ParameterDict({name: nn.Parameter(torch.empty(shape)) for name, (_, shape) in found.items()})
before = status("VmRSS:")
stream(module, found, device="cpu", dtype=torch.bfloat16)
print(status("VmHWM:") - before)
"""


@pytest.mark.slow
def test_the_host_holds_one_shard_beside_the_model(tmp_path):
    """Six shards of 48 MB: beside the 288 MB of the model, at most one shard and some overhead at any time."""
    shard_bytes, weight_map = 48 * 2**20, {}
    for number in range(6):
        name = f"model-{number}.safetensors"
        tensors = {f"w{number}{part}": torch.ones(shard_bytes // 6, dtype=torch.bfloat16) for part in "abc"}
        save_file(tensors, tmp_path / name)
        weight_map |= dict.fromkeys(tensors, name)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    peak = int(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout)
    assert peak < 6 * shard_bytes + 1.5 * shard_bytes
