"""Every entry of every record that a policy is loaded from, damaged in turn: it loads, or one line names the file."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rsd.checkpoint import file_sha256
from rsd.decoding import Speculative
from rsd.errors import RSDError
from rsd.models.openvla import OpenVLABase, load_base, loading, published, save_base
from rsd.models.openvla.loading import own_inputs
from rsd.models.openvla.model import Architecture, OpenVLAOFT, outline
from rsd.policy import load_folder, write_folder
from tests.models.openvla_tiny import build_base
from tests.models.published_copy import load
from tests.policy.policies import save_parts
from tests.records import edit

KEY = "libero_spatial_no_noops"
LONGEST = 3000  # letters of a message
FEW = (-1, None)
MORE = (True, 0.5, "x", [], {}, [[]], {"x": None}, 10**30, "y" * 1000, "y" * 10**5, "missing")
VALUES = [pytest.param(FEW, id="few"), pytest.param(MORE, id="more", marks=pytest.mark.long)]


@pytest.fixture(autouse=True)
def network(monkeypatch) -> None:
    """The base model is loaded without numbers, and again only where it, or what it is made with, is damaged."""
    built: list[OpenVLAOFT] = []

    def built_once(architecture: Architecture) -> OpenVLAOFT:
        if not built:
            built.append(outline(architecture))
        return built[0] if repr(built[0].architecture) == repr(architecture) else outline(architecture)

    loaded: dict[tuple[str, str], OpenVLABase] = {}

    @functools.wraps(load_base)
    def loaded_once(*, checkpoint: Path, **options: Any) -> OpenVLABase:
        options["device"] = "meta"
        key = repr((checkpoint, options)), file_sha256(checkpoint / "checkpoint.json")
        if key not in loaded:
            loaded[key] = load_base(checkpoint=checkpoint, **options)
        return loaded[key]

    for module in (loading, published):
        monkeypatch.setattr(module, "outline", built_once)
    monkeypatch.setattr("rsd.policy.folder.load_base", loaded_once)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a record; of a list its first entry."""
    if path:
        yield path
    named = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for name, one in named:
        yield from places(one, (*path, name))


def at(record: Any, path: tuple[Any, ...]) -> Any:
    for name in path[:-1]:
        record = record[name]
    return record


def damage_each(file: Path, attempt, values: tuple[Any, ...], skip: tuple[str, ...] = ()) -> None:
    """Load it whole; then damage each place of a record with each value, and without a checksum, and try to load."""
    attempt()
    whole = file.read_text()
    record = json.loads(whole)
    record.pop("checksum", None)
    for path in places(record):
        if any(str(name) in skip for name in path):
            continue
        for value in values:
            changed = json.loads(json.dumps(record))
            if value == "missing":
                del at(changed, path)[path[-1]]
            else:
                at(changed, path)[path[-1]] = value
            file.write_text(json.dumps(changed))
            try:
                attempt()
            except RSDError as error:
                line = str(error)
                if "\n" in line or len(line) > LONGEST:
                    raise AssertionError(f"{path}, {str(value)[:20]}: {len(line)} letters: {line[:300]}") from None
            except Exception as error:
                raise AssertionError(
                    f"{file.name}, {path}, {str(value)[:20]}: {type(error).__name__}: {error}"
                ) from error
    file.write_text(whole)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    base = build_base()
    save_base(folder / "base", base, {})
    inputs = own_inputs(folder / "base")
    base = load_base(checkpoint=folder / "base", **inputs, canaries=False)
    save_parts(folder, base)
    write_folder(
        folder, parts={name: folder / name for name in ("base", "tokenizer", "head", "draft")}, base=inputs,
        space=base.space.digest, num_open_loop_steps=8, decoding="speculative",
        decodings={"speculative": (Speculative(num_draft_stages=2), "head")},
    )  # fmt: skip
    return folder


def load_all(folder: Path) -> None:
    load_folder(folder, canaries=False)


@pytest.mark.parametrize("values", VALUES)
def test_policy_json(folder, tmp_path, values):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    damage_each(copy / "policy.json", lambda: load_all(copy), values)


@pytest.mark.parametrize("part", ["base", "tokenizer", "head", "draft"])
@pytest.mark.parametrize("values", VALUES)
def test_checkpoint_json(folder, tmp_path, part, values):
    """With policy.json's hash of it put right, so that what it says is what is looked at."""
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))

    def attempt():
        sha256 = file_sha256(copy / part / "checkpoint.json")
        edit(copy / "policy.json", lambda record: record["parts"][part].update(sha256=sha256))
        load_all(copy)

    damage_each(copy / part / "checkpoint.json", attempt, values, skip=("levels",))


@pytest.mark.parametrize("name", ["config.json", "dataset_statistics.json", "preprocessor_config.json"])
@pytest.mark.parametrize("values", VALUES)
def test_published_checkpoints(golden_dir, tmp_path, name, values):
    copy = Path(shutil.copytree(golden_dir / "ckpt_tiny", tmp_path / "ckpt"))
    damage_each(copy / name, lambda: load(copy, unnorm_key=KEY, device="meta", canaries=False), values)
