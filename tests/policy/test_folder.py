"""A policy as a folder: what is written comes back, wherever the folder is; everything else is refused."""

import json
import re
import shutil
import sys

import numpy as np
import pytest

import rsd
from rsd.checkpoint import CheckpointError
from rsd.decoding import L1, DepthAR, EarlyExit, Exit, MeanLogProb, Speculative
from rsd.errors import SettingError
from rsd.models.openvla import load_base, save_base
from rsd.models.openvla.loading import own_inputs
from rsd.models.openvla.visual_tokens import Grid
from rsd.policy import PolicyError, describe_folder, load_folder, write_folder
from rsd.types import Request
from scripts import restamp as restamp_script
from scripts.restamp import restamp
from tests.models.openvla_tiny import UNNORM_KEY, build_base, observation, statistics
from tests.models.test_visual_tokens import scorer_for
from tests.policy.policies import make_policy, save_parts
from tests.records import edit

PARTS = ("base", "tokenizer", "head", "draft")
DECODINGS = {
    "l1": (L1(), None),
    "depth_ar": (DepthAR(), "head"),
    "base_chunk": (DepthAR(), "base"),
    "speculative": (Speculative(num_draft_stages=2, temperature=0.5), "head"),
    "early_exit": (EarlyExit(gate=MeanLogProb(threshold=-1.5), full=L1(), num_draft_stages=2), None),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policies") / "tiny"
    save_base(folder / "base", build_base(), {"steps": 0})
    inputs = own_inputs(folder / "base")
    base = load_base(checkpoint=folder / "base", **inputs)
    save_parts(folder, base)
    write_folder(
        folder,
        parts={name: folder / name for name in PARTS},
        base=inputs,
        space=base.space.digest,
        num_open_loop_steps=5,
        decoding="early_exit",
        decodings=DECODINGS,
    )
    return folder


@pytest.fixture
def folder(written, tmp_path):
    """A copy at another place, free to be damaged."""
    return shutil.copytree(written, tmp_path / "moved")


@pytest.mark.parametrize("name", [None, *DECODINGS])
def test_it_is_the_policy_that_was_written(written, folder, name):
    policy = load_folder(folder, decoding=name)
    decoding, target = DECODINGS[name or "early_exit"]
    assert policy.decoding == decoding and policy.num_open_loop_steps == 5
    base = load_base(checkpoint=written / "base", **own_inputs(written / "base"))
    expected = make_policy(base, written, decoding, target=target or "head")
    request = Request(observation(0), 3)
    np.testing.assert_array_equal(policy.predict([request])[0].actions, expected.predict([request])[0].actions)


def test_what_the_caller_asks_for_goes_first(folder):
    policy = rsd.load(folder, decoding=Exit(num_draft_stages=1), num_open_loop_steps=2)
    assert policy.decoding == Exit(num_draft_stages=1) and policy.num_open_loop_steps == 2
    request = Request(observation(0), 0)
    own, head = (
        rsd.load(folder, decoding="depth_ar", target=target).predict([request])[0] for target in ("base", "head")
    )
    (expected,) = rsd.load(folder, decoding="base_chunk").predict([request])
    np.testing.assert_array_equal(own.actions, expected.actions)
    assert not np.array_equal(own.actions, head.actions)
    assert rsd.load(folder, decoding=DepthAR()).predict([request])[0].actions.tolist() == head.actions.tolist()


def test_a_description_needs_no_loading(folder):
    (folder / "base" / "weights.safetensors").unlink()
    described = describe_folder(folder, {"decoding": "base_chunk", "num_open_loop_steps": None})
    assert (described["decoding"], described["target"], described["num_open_loop_steps"]) == ("base_chunk", "base", 5)
    assert (described["unnorm_key"], described["options"]) == (UNNORM_KEY, {"temperature": 0.0})
    opened = {name for name, path in described["checkpoints"].items() if path is not None}
    assert opened == {"base", "tokenizer"}
    assert describe_folder(folder, {})["target"] is None  # l1 behind a draft verifies nothing


def test_a_policy_may_lack_parts_until_somebody_needs_them(folder):
    def drop(record):
        del record["parts"]["head"], record["parts"]["draft"]

    edit(folder / "policy.json", drop)
    assert load_folder(folder, decoding="base_chunk").tokens is not None
    with pytest.raises(PolicyError, match="decoding EarlyExit needs a draft"):
        load_folder(folder)
    edit(folder / "policy.json", lambda record: record["parts"].pop("base"))
    with pytest.raises(CheckpointError, match=r"policy\.json names no base model"):
        load_folder(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"decoding": "lottery"},
            "has no decoding 'lottery'; it has l1, depth_ar, base_chunk, speculative",
        ),
        ({"decoding": "depth_ar", "target": "oracle"}, r"target 'oracle' of .*, expected 'head' or 'base'"),
    ],
)
def test_wishes_that_cannot_be_are_refused(folder, options, message):
    with pytest.raises(CheckpointError, match=message):
        load_folder(folder, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.update(schema=2), "has schema 2, expected 1; it is of another version of rsd"),
        (lambda record: record.pop("space"), "lacks entry 'space'; copy it again"),
        (lambda record: record.update(num_open_loop_steps="8"), "entry 'num_open_loop_steps' is '8', expected a whole"),
        (lambda record: record.update(parts=[]), r"entry 'parts' is \[\], expected an object"),
        (lambda record: record.update(space="0" * 12), "has the space .*, policy.json names 000000000000; its statis"),
        (lambda record: record["parts"].update(head="head"), "entry 'parts.head' is 'head', expected an object"),
        (
            lambda one: one["parts"]["head"].update(path="../../elsewhere"),
            "part 'head' lies outside of the folder",
        ),
        (lambda one: one["parts"]["head"].update(path="/etc"), "part 'head' lies outside of the folder"),
        (lambda one: one["parts"]["head"].update(path="nowhere"), r"nowhere/checkpoint\.json does not exist"),
        (
            lambda one: one["parts"]["head"].update(path="draft"),
            "head of .* is not the one that policy.json",
        ),
        (
            lambda one: one["decodings"]["l1"].update(kind="exec"),
            "decoding of kind 'exec', expected one of",
        ),
    ],
)
def test_a_record_that_is_wrong_is_refused(folder, change, message):
    edit(folder / "policy.json", change)
    with pytest.raises((CheckpointError, ValueError), match=message):
        load_folder(folder, decoding="l1")


@pytest.mark.parametrize(("text", "message"), [("{", "is not valid JSON"), ("[]", "has schema 'list', expected 1")])
def test_a_file_that_is_no_record_is_refused(folder, text, message):
    (folder / "policy.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        load_folder(folder)


def test_a_folder_without_a_record_says_how_one_is_made(folder):
    (folder / "policy.json").unlink()
    with pytest.raises(CheckpointError, match=r"is no policy: .* does not exist; scripts/restamp\.py writes one"):
        load_folder(folder)


def test_another_checkpoint_in_a_parts_place_is_refused(folder):
    edit(folder / "draft" / "checkpoint.json", lambda record: record["provenance"].update(note="trained again"))
    for name in ("early_exit", "l1"):  # also where it is not asked for: the folder is not the one that was written
        with pytest.raises(CheckpointError, match=r"draft of .* is not the one that policy\.json names: SHA"):
            load_folder(folder, decoding=name)


def test_other_weights_in_a_parts_place_are_refused(folder):
    path = folder / "tokenizer" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match=r"weights\.safetensors is damaged"):
        load_folder(folder, decoding="depth_ar")


def test_parts_outside_of_the_folder_are_not_written_down(written, folder):
    with pytest.raises(CheckpointError, match=r"part .*tiny.base lies outside of the policy folder .*; copy it there"):
        write_folder(
            folder, parts={"base": written / "base"}, base={}, space="", num_open_loop_steps=1, decoding="l1",
            decodings={},
        )  # fmt: skip


def test_a_part_that_rsd_has_not_written_is_refused(folder):
    (folder / "head" / "checkpoint.json").unlink()
    with pytest.raises(CheckpointError, match=r"part .*head has no checkpoint\.json: only what rsd has written"):
        write_folder(
            folder, parts={"head": folder / "head"}, base={}, space="", num_open_loop_steps=1, decoding="l1",
            decodings={},
        )  # fmt: skip


def test_a_target_head_that_is_not_there_is_refused(folder):
    edit(folder / "policy.json", lambda record: record["parts"].pop("head"))
    with pytest.raises(PolicyError, match=r"decoding 'depth_ar' asks for the target head, and .* has none"):
        load_folder(folder, decoding="depth_ar", target="head")
    with pytest.raises(PolicyError, match="asks for the target head"):
        describe_folder(folder, {"decoding": DepthAR(), "target": "head"})
    assert describe_folder(folder, {"decoding": DepthAR()})["target"] == "base"


@pytest.mark.parametrize("steps", [0, -1, 2.5, True])
def test_steps_that_cannot_be_are_refused(folder, steps):
    with pytest.raises((PolicyError, SettingError), match=rf"(?i)steps (is )?{steps}, expected (1\.\.|a whole)"):
        load_folder(folder, num_open_loop_steps=steps)


@pytest.mark.parametrize("options", [{"center_crop": False}, {"foo": 1}])
def test_options_that_are_not_the_callers_are_refused(folder, options):
    with pytest.raises(
        SettingError, match=rf"options \['{next(iter(options))}'\] of .*: unknown, or the folder's to decide"
    ):
        load_folder(folder, **options)


def test_a_gate_is_no_decoding(folder):
    with pytest.raises(CheckpointError, match=r"decoding 'MeanLogProb' of .* is a MeanLogProb, which decodes"):
        load_folder(folder, decoding=MeanLogProb(threshold=-1.0))


# --- fewer picture tokens


def test_other_picture_tokens_than_its_heads_were_trained_with_are_refused(folder):
    changed = r"visual tokens changed after heads were trained: .* was trained with all, the base model reads {'kind': "
    fewer = Grid(num_tokens=3)
    for name in ("depth_ar", "speculative", "early_exit"):
        with pytest.raises(CheckpointError, match=changed + r"'grid', 'num_tokens': 3}; choose the same visual_tokens"):
            load_folder(folder, decoding=name, visual_tokens=fewer)
    policy = load_folder(folder, decoding="l1", visual_tokens=fewer)  # nobody was trained on what it reads
    assert policy.contract.visual_tokens == "grid, 3 of 4 a view"
    assert load_folder(folder, decoding="l1").contract.visual_tokens == "all"
    described = describe_folder(folder, {"decoding": "l1", "visual_tokens": fewer})
    assert described["base"]["visual_tokens"] == {"kind": "grid", "num_tokens": 3}
    assert "visual_tokens" not in describe_folder(folder, {"decoding": "l1"})["base"]
    with pytest.raises(SettingError, match=r"num_tokens is 5, and the model has 4 tokens a view"):
        load_folder(folder, decoding="l1", visual_tokens=Grid(num_tokens=5))


def test_a_folder_decides_on_its_picture_tokens_and_may_hold_their_scorer(tmp_path):
    folder = tmp_path / "few"
    save_base(folder / "base", build_base(), {"steps": 0})
    inputs = own_inputs(folder / "base")
    selection = scorer_for(load_base(checkpoint=folder / "base", **inputs), folder / "scorer", 2)
    base = load_base(checkpoint=folder / "base", **inputs, visual_tokens=selection)
    save_parts(folder, base)
    parts = {name: folder / name for name in PARTS} | {"visual_tokens": folder / "scorer"}
    write_folder(
        folder,
        parts=parts,
        base=inputs | {"visual_tokens": {"kind": "learned", "num_tokens": 2}},
        space=base.space.digest,
        num_open_loop_steps=5,
        decoding="depth_ar",
        decodings=DECODINGS,
    )
    policy, request = load_folder(folder), Request(observation(0), 3)
    expected = make_policy(base, folder, DepthAR())
    np.testing.assert_array_equal(policy.predict([request])[0].actions, expected.predict([request])[0].actions)
    assert policy.predict([request])[0].work["visual_tokens"] == 2 * 2
    assert describe_folder(folder, {})["checkpoints"]["visual_tokens"] == folder / "scorer"
    restamp(folder)
    assert load_folder(folder).contract.visual_tokens == "learned, 2 of 4 a view"
    with pytest.raises(SettingError, match=r"options \['visual_tokens'\] of .*: unknown, or the folder's to decide"):
        load_folder(folder, visual_tokens=Grid(num_tokens=2))
    edit(folder / "policy.json", lambda record: record["base"].update(visual_tokens={"kind": "learned"}))
    with pytest.raises(CheckpointError, match=r"visual_tokens of policy\.json is {'kind': 'learned'}, expected a kind"):
        load_folder(folder)
    edit(folder / "policy.json", lambda record: record["base"].pop("visual_tokens"))
    with pytest.raises(CheckpointError, match=r"trained with {'kind': 'learned', .*, the base model reads all; choose"):
        load_folder(folder)


# --- describing a folder anew


def as_an_earlier_version(folder):
    """Heads as they were before points and spaces: a layer, and other words for the same base model."""
    for kind in ("head", "draft"):

        def change(record):
            point, states = record["config"].pop("point"), record["config"]["states_per_step"]
            record["config"]["layer"] = 4 if states == 1 else int(point.removeprefix("layer."))
            base = record["provenance"]["base"]
            base["unnorm_key"] = base.pop("space")["name"]
            base["proprio_stats"] = statistics()["proprio"]
            base["images"]["jpeg_decoder"] = "simplejpeg, " + base["images"].pop("jpeg")

        edit(folder / kind / "checkpoint.json", change)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def message_of(folder, monkeypatch):
    """How the command ends; it must leave the folder as it was."""
    before = contents(folder)
    monkeypatch.setattr(sys, "argv", ["restamp", str(folder)])
    with pytest.raises(SystemExit) as raised:
        restamp_script.main()
    assert contents(folder) == before
    return str(raised.value)


@pytest.mark.parametrize("has_record", [True, False])
def test_heads_of_an_earlier_version_are_described_anew(written, folder, has_record, capsys):
    as_an_earlier_version(folder)
    for name in PARTS if not has_record else ():  # as before policy.json: each part in a folder of its own
        (folder / name).rename(folder / "part")
        (folder / name).mkdir()
        (folder / "part").rename(folder / name / "only")
    if not has_record:
        (folder / "policy.json").unlink()
    else:
        with pytest.raises(CheckpointError, match=r"head of .* is not the one|draft of .* is not the one"):
            load_folder(folder)
    restamp(folder)
    assert "decodings l1" in capsys.readouterr().out
    policy = load_folder(folder, decoding="speculative", target="head")
    assert (policy.tokens.target.point, policy.tokens.draft.point) == ("head", "layer.1")
    request = Request(observation(0), 0)
    expected = load_folder(written, decoding=policy.decoding)
    np.testing.assert_array_equal(policy.predict([request])[0].actions, expected.predict([request])[0].actions)
    assert policy.num_open_loop_steps == (5 if has_record else 8)
    if has_record:
        assert json.loads((folder / "policy.json").read_text())["decodings"].keys() == DECODINGS.keys()
        assert load_folder(folder).decoding == DECODINGS["early_exit"][0]


@pytest.mark.parametrize(
    ("entry", "value", "is_old"),
    [
        ("base.weights_sha256", "0", True),
        ("base.images.center_crop_area", None, True),
        ("base.images.center_crop_area", None, False),
        ("base.images.processor.sizes", [7], True),
        ("base.images.jpeg", "another", False),
        ("base.space.name", "other", False),
        ("base.space.digest", "0" * 12, False),
        ("base.unnorm_key", "other", True),
        ("base.proprio_stats.q01", [0.0], True),
        ("unnorm_key", "other", True),
        ("tokenizer", "0", True),
    ],
)
def test_heads_of_something_else_are_not_described_anew(folder, monkeypatch, entry, value, is_old):
    if is_old:
        as_an_earlier_version(folder)
    *parents, last = entry.split(".")

    def change(record):
        at = record["provenance"]
        for name in parents:
            at = at[name]
        at[last] = value

    edit(folder / "draft" / "checkpoint.json", change)
    message = message_of(folder, monkeypatch)
    assert re.match(rf"error: .*draft was made for something else: {re.escape(f'{entry} is {value!r}')}, exp", message)


def test_entries_that_were_never_renamed_may_not_be_missing(folder, monkeypatch):
    edit(folder / "head" / "checkpoint.json", lambda one: one["provenance"]["base"]["images"].pop("processor"))
    assert "base.images.processor is '(absent)', expected {" in message_of(folder, monkeypatch)


@pytest.mark.parametrize("part", PARTS)
def test_damaged_parts_are_not_described_anew(folder, monkeypatch, part):
    as_an_earlier_version(folder)
    path = folder / part / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert re.match(rf"error: .*{part}.weights\.safetensors is damaged: ", message_of(folder, monkeypatch))


@pytest.mark.parametrize(
    ("part", "entry", "value", "message"),
    [
        ("head", "code_shape", None, "config.code_shape' is None, expected an object"),
        ("head", "layer", None, "lacks entry 'config.point'"),
        ("draft", "num_stages", "2", "config.num_stages' is '2', expected a whole number"),
        ("draft", "width", [], "config.width' is [], expected a whole number"),
        ("tokenizer", "family", "os", "is of family 'os', expected one of"),
    ],
)
def test_entries_that_no_loader_would_take_are_not_sealed(folder, monkeypatch, part, entry, value, message):
    as_an_earlier_version(folder)
    edit(folder / part / "checkpoint.json", lambda record: record["config"].update({entry: value}))
    assert message in message_of(folder, monkeypatch)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_named_must_be_there(folder, monkeypatch, part):
    as_an_earlier_version(folder)
    shutil.rmtree(folder / part)
    message = message_of(folder, monkeypatch)
    assert re.match(rf"error: no {part} checkpoint: .*{part}.checkpoint\.json does not exist; make it", message)


def test_a_policy_without_heads_is_described_anew(folder):
    def drop(record):
        del record["parts"]["head"], record["parts"]["draft"]

    edit(folder / "policy.json", drop)
    restamp(folder)
    assert load_folder(folder, decoding="base_chunk").tokens is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: one["parts"].pop("base"), "holds no base model"),
        (lambda one: one["parts"].update(head="head"), "entry 'parts.head' is 'head', expected an object"),
        (lambda one: one["parts"]["head"].update(path="../.."), "lies outside of the policy folder"),
        (lambda one: one["decodings"]["l1"].update(kind="exec"), "decoding of kind 'exec', expected one of"),
        (lambda one: one.update(schema=2), "has schema 2, expected 1"),
    ],
)
def test_a_record_that_is_wrong_is_not_described_anew(folder, monkeypatch, change, message):
    as_an_earlier_version(folder)
    edit(folder / "policy.json", change)
    assert message in message_of(folder, monkeypatch)


def test_a_folder_that_is_no_policy_is_not_described_anew(tmp_path, monkeypatch):
    for folder in (tmp_path / "nowhere", tmp_path):
        assert re.match(r"error: .* holds no base model: ", message_of(folder, monkeypatch))
    (tmp_path / "policy.json").write_text("{")
    assert "is not valid JSON" in message_of(tmp_path, monkeypatch)
