"""Describing a policy folder: policy.json of the parts that lie in it, and in heads the words for their base model.

Heads and drafts carry the description (fingerprint) of the base model whose states they read. When a version of rsd
describes the same weights in other words, the heads would be refused; `stamp` writes the new words into them, and
policy.json with the hashes that follow. It changes no weights, and refuses heads that were made for another base model,
image pipeline, statistics or tokenizer than the folder's. All parts are checked before the first is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rsd.checkpoint import JSON_FILE, Checkpoint, CheckpointError, checkpoint_json, load_checkpoint
from rsd.decoding import (
    EARLIER,
    L1,
    Decoding,
    DepthAR,
    EarlyExit,
    Exit,
    MeanLogProb,
    Parallel,
    Speculative,
    Temporal,
    from_json,
)
from rsd.differences import ABSENT, differences
from rsd.files import write_atomically
from rsd.models.openvla import OpenVLABase, load_base
from rsd.models.openvla.loading import own_inputs
from rsd.models.openvla.manifest import MANIFEST
from rsd.policy.folder import (
    CALIBRATIONS,
    DRAFTS,
    PARTS,
    POLICY_FILE,
    SCORER,
    base_arguments,
    read_record,
    write_folder,
)
from rsd.record import shown
from rsd.stages.correction import KIND as CORRECTION
from rsd.stages.files import NUMBERS, as_stored, head_config, numbers_config, readout_in
from rsd.tokenizer import load_tokenizer
from rsd.types import CodeShape

RENAMED = (  # entries of a head's provenance that one version has and another lacks; all others must be there
    "base.images.jpeg",
    "base.images.jpeg_decoder",
    "base.proprio_stats",
    "base.space",
    "base.unnorm_key",
)
PHASES = {"head": "head", "draft": "draft", EARLIER: "draft", CORRECTION: "correction"}  # of train.py
PHASES |= {"micro": "draft draft=micro", NUMBERS: "draft draft=numbers"}
KINDS = {"micro": "draft", NUMBERS: "draft", EARLIER: "draft"}  # of a part's checkpoint, where it is another
THRESHOLD = -0.06  # nats a token, of early_exit: lets half of the chunks of libero_spatial end early; not calibrated
SKIPPED, MAX_UNVERIFIED = -0.1277, 2  # of temporal: see conf/decoding/temporal.yaml


def find_parts(folder: Path) -> dict[str, Path]:
    """The folder's parts: those that policy.json names, and else the only one in base/, tokenizer/, head/, … each.

    Raises:
        CheckpointError: there is no base model, several of one part, or policy.json names none or one elsewhere.
    """
    parts = {}
    if (folder / POLICY_FILE).is_file():
        for name, entry in read_record(folder)["parts"].items():
            if name not in PARTS:
                raise CheckpointError(f"{folder / POLICY_FILE}: part {name!r} is unknown, expected one of {PARTS}")
            parts[name] = folder / entry["path"]
            if not parts[name].resolve().is_relative_to(folder.resolve()):
                raise CheckpointError(f"part {parts[name]} lies outside of the policy folder {folder}; copy it there")
    for name in [name for name in PARTS if name not in parts]:
        kinds = [JSON_FILE, MANIFEST] if name == "base" else [JSON_FILE]
        found = sorted({path.parent for kind in kinds for path in (folder / name).glob(f"*/{kind}")})
        if len(found) > 1:
            raise CheckpointError(f"{folder / name} holds {len(found)} checkpoints; leave one, or write {POLICY_FILE}")
        if found:
            parts[name] = found[0]
    if "base" not in parts:
        raise CheckpointError(
            f"{folder} holds no base model: {folder / 'base'}/*/{JSON_FILE} does not exist, {POLICY_FILE} names none"
        )
    return parts


def load(directory: Path, kind: str) -> Checkpoint:
    """A part with its weights, checked against their hash."""
    return load_checkpoint(directory, kind=KINDS.get(kind, kind), produce=f"python train.py phase={PHASES[kind]}")


def made_for(base: OpenVLABase, tokenizer_sha256: str | None) -> dict[str, Any]:
    """What a head's provenance must say, in the present words and in those of the first version."""
    former = {"unnorm_key": base.space.name, "proprio_stats": base.space.statistics.get("proprio")}
    present = {"base": {**base.spec.fingerprint, **former}, "unnorm_key": base.space.name}
    return as_stored(present | ({} if tokenizer_sha256 is None else {"tokenizer": tokenizer_sha256}))


def restamped(
    directory: Path, kind: str, base: OpenVLABase, expected: dict[str, Any], code_shape: CodeShape | None
) -> str:
    """A head's checkpoint.json with the base model's present description.

    Args:
        expected: See `made_for`.
        code_shape: Of the tokenizer, where there is one.

    Raises:
        CheckpointError: the head is missing or damaged, or was made for something else.
    """
    loaded = load(directory, kind)
    provenance = loaded.provenance
    in_numbers = kind == NUMBERS or (kind == EARLIER and readout_in(directory) == NUMBERS)
    if in_numbers:
        expected = {name: value for name, value in expected.items() if name != "tokenizer"}
    stored = {name: provenance[name] for name in expected if name in provenance}
    different = [
        f"{one.key} is {shown(one.right)}, expected {shown(one.left)}"
        for one in differences(expected, stored)
        if one.key not in RENAMED or ABSENT not in (one.left, one.right)
    ]
    if different:
        raise CheckpointError(f"{directory} was made for something else: {'; '.join(different)}; train it again")
    remedy = f"copy it again, or make it again with: python train.py phase={PHASES[kind]}"
    own = {name: value for name, value in loaded.config.items() if name != "layer"}
    if in_numbers:
        numbers_config(loaded, directory, remedy)
    elif kind != CORRECTION:
        config, point = head_config(loaded, directory, remedy)
        if code_shape not in (None, config.code_shape):
            raise CheckpointError(f"{directory} speaks another code than the folder's tokenizer; {remedy}")
        own |= {"states_per_step": config.states, "point": point}
    return checkpoint_json(
        {
            "kind": loaded.kind,
            "config": own,
            "provenance": provenance | {"base": as_stored({"base": base.spec.fingerprint})["base"]},
            "sha256": loaded.sha256,
        }
    )


Decodings = dict[str, tuple[Decoding, str | None]]  # name → decoding and target


def decodings_of(folder: Path, parts: dict[str, Path]) -> tuple[str, Decodings, dict[str, str]]:
    """Name of the decoding in use, all of them, and who drafts: as policy.json says, else what the parts make possible.

    A part that policy.json does not name yet brings its decodings along.
    """
    possible, drafts = possible_decodings(parts)
    if not (folder / POLICY_FILE).is_file():
        return "l1", possible, drafts
    record = read_record(folder)
    named = {name: dict(options) for name, options in record["decodings"].items()}
    there = {name: (from_json(_without(one)), one.get("target")) for name, one in named.items()}
    there = {name: possible[name] for name, part in drafts.items() if part not in record["parts"]} | there
    drafts = {name: one["draft"] for name, one in named.items() if "draft" in one} | {
        name: part for name, part in drafts.items() if name not in named and name in there
    }
    return record["decoding"], there, drafts


def possible_decodings(parts: dict[str, Path]) -> tuple[Decodings, dict[str, str]]:
    """What these parts can do, and who drafts where that is not the draft."""
    decodings: Decodings = {"l1": (L1(), None)}
    if "tokenizer" in parts:
        target = "head" if "head" in parts else "base"
        decodings |= {"parallel": (Parallel(), target), "depth_ar": (DepthAR(), target)}
        if "draft" in parts:
            stages = load(parts["draft"], "draft").config["num_stages"]
            gate = MeanLogProb(threshold=THRESHOLD)
            decodings |= {
                "speculative": (Speculative(num_draft_stages=stages), target),
                "exit": (Exit(num_draft_stages=stages), None),
                "early_exit": (EarlyExit(gate=gate, full=L1(), num_draft_stages=stages), None),
            }
    if "tokenizer" in parts and "micro" in parts:
        open_gate = MeanLogProb(threshold=SKIPPED)
        skipping = Temporal(gate=open_gate, full=L1(), num_draft_stages=None, max_unverified=MAX_UNVERIFIED)
        decodings["temporal"] = (skipping, None)
    drafts = {"temporal": "micro"} if "temporal" in decodings else {}
    if NUMBERS in parts and "exit" not in decodings:
        decodings["exit"], drafts["exit"] = (Exit(num_draft_stages=None), None), NUMBERS
    return decodings, drafts


def _without(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in ("target", "draft")}


def stamp(folder: Path, inputs: Mapping[str, Any] | None = None) -> str:
    """Describe a policy folder anew; what it holds, in words.

    Args:
        inputs: Entry "base" of policy.json, where there is none yet; None takes what the base model says itself.

    Raises:
        RSDError: a part is missing, damaged, or made for something else; nothing has been written.
    """
    parts = find_parts(folder)
    before = read_record(folder) if (folder / POLICY_FILE).is_file() else {}
    inputs = before.get("base") or inputs or own_inputs(parts["base"])
    base, heads = described(parts, inputs)
    decoding, decodings, drafts = decodings_of(folder, parts)
    for path, text in heads.items():
        write_atomically(path, text)
    write_folder(
        folder,
        parts=parts,
        base=inputs,
        space=base.space.digest,
        num_open_loop_steps=before.get("num_open_loop_steps") or base.chunk_length,
        decoding=decoding,
        decodings=decodings,
        drafts=drafts,
        calibrations=before.get(CALIBRATIONS),
    )
    return f"{', '.join(parts)}; decodings {', '.join(decodings)}; space {base.space.digest}"


def described(parts: Mapping[str, Path], inputs: Mapping[str, Any]) -> tuple[OpenVLABase, dict[Path, str]]:
    """The base model without numbers, and what each head's checkpoint.json would say of it.

    Raises:
        RSDError: see `stamp`.
    """
    base = load_base(checkpoint=parts["base"], **base_arguments(inputs, parts.get(SCORER)), device="meta")
    tokenizer = None
    if "tokenizer" in parts:
        tokenizer = load_tokenizer(parts["tokenizer"], space=base.space)
    expected = made_for(base, None if tokenizer is None else tokenizer.sha256)
    code_shape = None if tokenizer is None else tokenizer.tokenizer.code_shape
    made = {kind: expected for kind in ("head", *DRAFTS, EARLIER)}
    made[CORRECTION] = {name: value for name, value in expected.items() if name != "tokenizer"}
    heads = {
        parts[kind] / JSON_FILE: restamped(parts[kind], kind, base, said, code_shape)
        for kind, said in made.items()
        if kind in parts
    }
    return base, heads
