"""Git LFS pointers, packed files and web pages in the place of what is read back: one line, with the remedy."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import rsd
from rsd.checkpoint import content_sha256
from rsd.data.cache import read_index, read_record, shard_problem
from rsd.envs.suites import load_init_states
from rsd.errors import RSDError
from rsd.evaluation.plan import read_plan_file
from rsd.evaluation.results import read_results
from rsd.models.openvla.processor import PrismaticImageProcessor
from rsd.models.openvla.published import read_architecture, read_norm_stats, read_side_file, read_training
from rsd.models.openvla.streaming import read_headers, weight_files
from rsd.models.openvla.text import LlamaText
from rsd.record import read_json
from rsd.runs import read_provenance, read_yaml
from rsd.training.states import States, state_to_resume

ROOT = Path(__file__).parents[1]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123\n"
STRANGERS = {
    "git lfs pull": POINTER,
    "gunzip": gzip.compress(b'{"a": 1}'),
    "web page": b"<!DOCTYPE html>\n<html><body>Log in</body></html>",
}


@pytest.fixture(params=STRANGERS)
def other(request) -> tuple[str, bytes]:
    """What the message names, and the file's content."""
    return request.param, STRANGERS[request.param]


def refused(path: Path, remedy: str, read: Callable[[], object]) -> None:
    with pytest.raises(RSDError) as caught:
        read()
    said = str(caught.value)
    assert str(path) in said and remedy in said and "\n" not in said


@pytest.mark.parametrize("part", ["base", "draft", "head", "tokenizer", ""])
def test_in_a_policy_folder(tmp_path: Path, other: tuple[str, bytes], part: str):
    folder = Path(shutil.copytree(ROOT / "released", tmp_path / "policy", ignore=shutil.ignore_patterns("words")))
    for path in [one for one in (folder / part).rglob("*") if one.is_file()] if part else [folder / "policy.json"]:
        content = path.read_bytes()
        path.write_bytes(other[1])
        refused(path, other[0], lambda: rsd.load(folder, decoding="speculative"))
        path.write_bytes(content)


READERS: dict[str, Callable[[Path], object]] = {
    "model.safetensors": lambda path: read_headers(weight_files(path.parent)),
    "model.safetensors.index.json": lambda path: weight_files(path.parent),
    "action_head--5_checkpoint.pt": read_side_file,
    "tokenizer.json": lambda path: LlamaText(path.parent),
    "inputs.json": read_json,
    "config.yaml": read_yaml,
    "overrides.yaml": lambda path: read_yaml(path, list[str]),
    "provenance.json": read_provenance,
    "results.jsonl": read_results,
    "task.pruned_init": load_init_states,
    "last.ckpt": lambda path: States().load_checkpoint(path),
    "checkpoint.json": lambda path: content_sha256(path.parent),
    "config.json": lambda path: read_architecture(path.parent, action_head="l1", action_dim=7, proprio_dim=8),
    "dataset_statistics.json": lambda path: read_norm_stats(path.parent),
    "preprocessor_config.json": PrismaticImageProcessor.from_file,
    "training.json": lambda path: read_training(path.parent),
    "cache.json": lambda path: read_record(path.parent),
    "plan.json": lambda path: read_plan_file(path),
}


@pytest.mark.parametrize("name", READERS)
def test_in_the_place_of_a_file_of_a_model_or_run(tmp_path: Path, other: tuple[str, bytes], name: str):
    path = tmp_path / name
    path.write_bytes(other[1])
    refused(path, other[0], lambda: READERS[name](path))


def test_in_the_place_of_all_states(tmp_path: Path, other: tuple[str, bytes]):
    (tmp_path / "last.ckpt").write_bytes(other[1])
    refused(tmp_path / "last.ckpt", other[0], lambda: state_to_resume(tmp_path))


def test_in_the_place_of_a_caches_files(tmp_path: Path, other: tuple[str, bytes]):
    (tmp_path / "index.jsonl").write_bytes(other[1])
    entries, (problem,), _ = read_index(tmp_path)
    assert entries == [] and other[0] in problem and str(tmp_path / "index.jsonl") in problem
    (tmp_path / "shard").write_bytes(other[1])
    for size in (len(other[1]), 10**6):
        said = shard_problem(tmp_path, {"file": "shard", "start": 0, "rows": 1, "bytes": size, "sha256": "0" * 64})
        assert said is not None and other[0] in said and str(tmp_path / "shard") in said


@pytest.mark.parametrize("name", [name for name in READERS if name != "results.jsonl"])  # no episode is no damage
def test_an_empty_file_is_called_empty(tmp_path: Path, name: str):
    path = tmp_path / name
    path.write_bytes(b"")
    refused(path, "is damaged (it is empty, 0 bytes); ", lambda: READERS[name](path))


def test_an_empty_file_of_a_policy_is_called_empty(tmp_path: Path):
    folder = Path(shutil.copytree(ROOT / "released", tmp_path / "policy", ignore=shutil.ignore_patterns("words")))
    for path in [one for one in folder.rglob("*") if one.suffix in (".json", ".safetensors")]:
        reads: dict[str, str] = {"decoding": "speculative"}
        for part, asked in (("micro", {"decoding": "temporal"}), ("numbers", {"decoding": "exit", "draft": "numbers"})):
            reads = asked if part in path.parts else reads
        content = path.read_bytes()
        path.write_bytes(b"")
        refused(path, "is damaged (it is empty, 0 bytes); ", lambda one=reads: rsd.load(folder, **one))
        path.write_bytes(content)


@pytest.mark.parametrize("content", [b"{}", b"\xff\xfe"])
def test_other_damage_of_a_tokenizer_and_of_json_is_one_line(tmp_path: Path, content: bytes):
    (tmp_path / "tokenizer.json").write_bytes(content)
    refused(tmp_path / "tokenizer.json", "copy it again", lambda: LlamaText(tmp_path))
    if content != b"{}":
        refused(tmp_path / "tokenizer.json", "is not valid JSON", lambda: read_json(tmp_path / "tokenizer.json"))


def test_a_checkpoints_record_that_is_nested_too_deeply_is_one_line(tmp_path: Path):
    (tmp_path / "checkpoint.json").write_text("[" * 100_000)
    refused(tmp_path / "checkpoint.json", "copy the checkpoint again", lambda: content_sha256(tmp_path))
