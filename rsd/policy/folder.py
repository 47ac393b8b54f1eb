"""A policy as a folder: policy.json names its parts by relative path and hash, its decodings, and its space.

    policy.json
        schema               int, this layout's version
        parts                part → {path, sha256}: base, tokenizer, head, draft, micro (a draft with eyes of its own),
                             numbers (a draft in numbers), earlier (a draft at an earlier point than the one that
                             drafts), correction (of late chunks), and visual_tokens where a scorer chooses them; the
                             hash is of its checkpoint.json, which holds that of the weights, or of a published base
                             model's files.json
        base                 arguments of `load_base` beside the checkpoint; visual_tokens as {kind, num_tokens, …},
                             robot as {name, chunk_length, …}
        space                digest of the base model's space
        num_open_loop_steps  actions of a chunk that are executed
        decoding             name of the one that is used unless another is asked for
        decodings            name → {kind, options, "target": "head" or "base", "draft": the part that drafts; "draft"
                             without a word}
        calibrations         name → what its threshold was found by, for which parts; absent where nothing was

A folder is data: nothing in it is code, and paths do not leave it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from rsd.checkpoint import JSON_FILE, CheckpointError, file_sha256
from rsd.decoding import DRAFT, EARLIER, KIND, TARGET, Decoding, asks_tokens, from_json, to_json
from rsd.differences import differences, told
from rsd.errors import SettingError
from rsd.files import stranger
from rsd.models.openvla.loading import load_base
from rsd.models.openvla.manifest import MANIFEST, check_manifest
from rsd.models.openvla.robots import Robot
from rsd.models.openvla.visual_tokens import from_json as tokens_from_json
from rsd.policy.assemble import IN_TOKENS, Checkpoints, assemble, in_numbers_alone
from rsd.policy.contract import PolicyError
from rsd.policy.folder_record import PolicyRecord
from rsd.policy.policy import VLAPolicy
from rsd.record import EntryError, arguments, conform, read, shown, write
from rsd.stages import Binder
from rsd.stages.correction import KIND as CORRECTION
from rsd.stages.files import NUMBERS, TOKENS
from rsd.tokenizer import ActionTokenizer

POLICY_FILE = "policy.json"
SCHEMA = 1
CALIBRATIONS, SUITES = "calibrations", "suites"
LONGEST = 250  # letters of a part's path; no file's name may be longer
SCORER = "visual_tokens"
DRAFTS = ("draft", "micro", NUMBERS)  # parts that can draft
PARTS = ("base", "tokenizer", "head", *DRAFTS, EARLIER, CORRECTION, SCORER)


def load_folder(
    folder: str | Path,
    *,
    decoding: str | Decoding | None = None,
    target: str | None = None,
    draft: str | Callable[[ActionTokenizer], Binder] | None = None,
    device: str = "cpu",
    num_open_loop_steps: int | None = None,
    num_threads: int | None = None,
    offered: Mapping[str, Any] | None = None,
    suite: str | None = None,
    **base_options: Any,
) -> VLAPolicy:
    """Load a policy.

    Args:
        folder: Holds policy.json.
        decoding: Name of one of the folder's decodings, or a decoding; None takes the folder's own choice.
        target: "head" or "base": who verifies; None takes what the folder says of the decoding (without a word, the
            head where there is one).
        draft: Who drafts: "draft", "micro", "numbers", or what makes a control of the tokenizer
            (rsd/stages/controls.py); None takes what the folder says of the decoding, the part "draft" without a word.
        device: Where the models run.
        num_open_loop_steps: Actions of a chunk that are executed; None takes the folder's.
        num_threads, offered: See `assemble`.
        suite: The task suite that it is to act in, with its variant; None where nobody knows. A threshold that was
            calibrated on others is refused.
        base_options: More for `load_base`, e.g. execution="captured", canaries=False.

    Raises:
        CheckpointError: policy.json is missing or damaged, a part is missing or not the one that it names.
        PolicyError: the parts do not fit together.
        SettingError: the folder decides on one of `base_options`, or there is no such option.
    """
    folder = Path(folder)
    record = read_record(folder)
    name, chosen, target = _choose(folder, record, decoding, target)
    paths = {name: _part(folder, record["parts"], name) for name in PARTS}
    options = base_arguments(_base_options(folder, record, base_options), paths[SCORER])
    if paths["base"] is None:
        raise CheckpointError(f"{folder / POLICY_FILE} names no base model")
    drafting = _drafting(folder, record, name, chosen, draft)
    steps = record["num_open_loop_steps"] if num_open_loop_steps is None else num_open_loop_steps
    if name == decoding or decoding is None:
        check_calibration(folder, record, name, drafting=drafting, num_open_loop_steps=steps, suite=suite)
    base = load_base(checkpoint=paths["base"], device=device, **options)
    if base.space.digest != record["space"]:
        raise CheckpointError(
            f"the base model of {folder} has the space {base.space.digest}, policy.json names {record['space']}; its "
            "statistics were changed: fetch the folder again, or write it anew with scripts/restamp.py"
        )
    return assemble(
        base=base,
        decoding=chosen,
        checkpoints=Checkpoints(
            tokenizer=paths["tokenizer"],
            head=None if target == "base" else paths["head"],
            draft=None if drafting is None else paths[drafting],
            earlier=paths[EARLIER],
            readout=_readout(drafting),
            control=draft if callable(draft) else None,
        ),
        num_open_loop_steps=steps,
        device=device,
        num_threads=num_threads,
        offered=offered,
    )


def describe_folder(folder: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """What `load_folder` with these options would give, in plain words and without loading it; see plan.json."""
    record = read_record(folder)
    name, decoding, target = _choose(folder, record, options.get("decoding"), options.get("target"))
    drafting = _drafting(folder, record, name, decoding, options.get("draft"))
    drafts = Checkpoints(
        draft=None if drafting is None else _part(folder, record["parts"], drafting),
        earlier=_part(folder, record["parts"], EARLIER) if EARLIER in decoding.needs else None,
    )
    in_tokens = bool(decoding.needs) and not in_numbers_alone(decoding, drafts)
    asked = {"base": True, "tokenizer": in_tokens, "head": TARGET in decoding.needs and target != "base"}
    asked |= {part: part == drafting for part in DRAFTS}
    asked |= {EARLIER: EARLIER in decoding.needs, CORRECTION: False}  # whether one is asked is the clock's to say
    asked[SCORER] = SCORER in record["base"]
    chosen = options.get(SCORER)
    asked_steps = options.get("num_open_loop_steps")
    steps = record["num_open_loop_steps"] if asked_steps is None else asked_steps
    if options.get("decoding") in (None, name):
        suite = options.get("suite")
        check_calibration(folder, record, name, drafting=drafting, num_open_loop_steps=steps, suite=suite)
    return {
        "model": folder.resolve().name,
        "decoding": name,
        "target": target if TARGET in decoding.needs else None,
        "unnorm_key": record["base"].get("unnorm_key"),
        "num_open_loop_steps": steps,
        "options": {name: value for name, value in to_json(decoding).items() if name != KIND},
        "base": record["base"] | ({} if chosen is None else {SCORER: chosen.to_json()}),
        "draft": _name_of(options["draft"]) if callable(options.get("draft")) else drafting,
        "checkpoints": {part: _part(folder, record["parts"], part) if asked[part] else None for part in PARTS},
    }


def _choose(
    folder: Path, record: Mapping[str, Any], decoding: str | Decoding | None, target: str | None
) -> tuple[str, Decoding, str | None]:
    """Name of the decoding, the decoding, and its target."""
    chosen = record["decoding"] if decoding is None else decoding
    has_head = "head" in record["parts"]
    if isinstance(chosen, str):
        if chosen not in record["decodings"]:
            raise CheckpointError(f"{folder} has no decoding {chosen!r}; it has {', '.join(record['decodings'])}")
        entry = record["decodings"][chosen]
        options = {option: value for option, value in entry.items() if option != "draft"}
        name, default = chosen, options.pop("target", None)
        target = target or default
        try:
            made = from_json(options)
        except SettingError as error:
            raise CheckpointError(f"{folder / POLICY_FILE}: decoding {chosen!r}: {error}") from error
    else:
        name, made = type(chosen).__name__, chosen
    if not hasattr(made, "run"):
        raise CheckpointError(f"decoding {name!r} of {folder} is a {type(made).__name__}, which decodes nothing")
    if target not in (None, "head", "base"):
        raise CheckpointError(f"target {target!r} of {folder}, expected 'head' or 'base'")
    if target == "head" and TARGET in made.needs and not has_head:
        raise PolicyError(f"decoding {name!r} asks for the target head, and {folder} has none; target=base has no need")
    return name, made, target or ("head" if has_head else "base")


def _drafting(folder: Path, record: Mapping[str, Any], name: str, decoding: Decoding, draft: object) -> str | None:
    """The part that drafts; None where nobody does, or a control."""
    if DRAFT not in decoding.needs or callable(draft):
        return None
    entry = record["decodings"].get(name)
    part = draft or (entry.get("draft") if isinstance(entry, dict) else None) or "draft"
    if part not in DRAFTS:
        raise CheckpointError(f"draft {part!r} of {folder}, expected one of {list(DRAFTS)}")
    if part == NUMBERS and (who := asks_tokens(decoding)) is not None:  # before one is trained in vain
        raise PolicyError(f"{who} asks the draft for tokens, and draft={NUMBERS} says numbers; {IN_TOKENS}")
    if part not in record["parts"]:
        command = "phase=draft" if part == "draft" else f"phase=draft draft={part}"
        raise PolicyError(
            f"decoding {type(decoding).__name__} needs a draft, the part {part!r}, and {folder} has "
            f"{sorted(record['parts'])}; train one with {command}, copy it into the folder "
            "and run scripts/restamp.py"
        )
    return str(part)


def _readout(drafting: str | None) -> Literal["tokens", "numbers"] | None:
    """What the part that drafts has to say."""
    if drafting is None:
        return None
    return NUMBERS if drafting == NUMBERS else TOKENS


def _name_of(control: Callable[..., object]) -> str:
    """Name of what makes a control, also where it is wrapped in a partial."""
    return str(getattr(control, "func", control).__name__)


def _base_options(folder: Path, record: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `load_base` beside checkpoint and device: the folder's, and the caller's where it is silent."""
    known = inspect.signature(load_base).parameters.keys() - {"checkpoint", "device"}
    if wrong := sorted(record["base"].keys() - known):
        raise CheckpointError(f"{folder / POLICY_FILE}: base has unknown entries {wrong}; it may have {sorted(known)}")
    free = known - record["base"].keys()
    if wrong := sorted(more.keys() - free):
        raise SettingError(f"options {wrong} of {folder}: unknown, or the folder's to decide; free are {sorted(free)}")
    return {**record["base"], **more}


def base_arguments(options: Mapping[str, Any], scorer: Path | None) -> dict[str, Any]:
    """Entry "base" as arguments of `load_base`: the selection of picture tokens and the robot made of what they say.

    Raises:
        CheckpointError: an entry is unknown, missing or of another type.
    """
    made = dict(options)
    if isinstance(options.get(SCORER), Mapping):
        made[SCORER] = tokens_from_json(options[SCORER], scorer)
    if isinstance(options.get("robot"), Mapping):
        try:
            made["robot"] = Robot(**arguments(Robot, options["robot"], POLICY_FILE, "base.robot"))
        except (EntryError, SettingError) as error:
            raise CheckpointError(f"{error}; write it anew with scripts/convert.py policy") from error
    return made


def read_record(folder: Path) -> dict[str, Any]:
    """Contents of policy.json, with every entry there and of the right kind; see `PolicyRecord`.

    Raises:
        CheckpointError: missing, not JSON, of another schema, or an entry is missing or of another kind.
    """
    path = folder / POLICY_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{folder} is no policy: {path} does not exist; scripts/restamp.py writes one over base/, tokenizer/, "
            "head/ and draft/, and without policy= the configuration composes one"
        )
    record: Any = read(path, Any, error=CheckpointError, remedy="copy it again")
    if not isinstance(record, dict) or type(record.get("schema")) is not int or record["schema"] != SCHEMA:
        found = shown(record.get("schema")) if isinstance(record, dict) else repr(type(record).__name__)
        raise CheckpointError(f"{path} has schema {found}, expected {SCHEMA}; it is of another version of rsd")
    try:
        conform(record, PolicyRecord, str(path))
    except EntryError as error:
        raise CheckpointError(f"{error}; copy it again, or write it anew with scripts/restamp.py") from error
    return record


def calibrated(folder: Path, name: str, threshold: float, found: Mapping[str, Any]) -> None:
    """Write a threshold into policy.json, with the evidence for it and what it holds for.

    Args:
        name: Of the decoding, which has a gate with a threshold.
        found: JSON types; see `rsd.policy.calibration.evidence`.
    """
    record = read_record(folder)
    entry = record["decodings"][name]
    entry["gate"]["threshold"] = threshold
    holds_for = _holds_for(record, name, entry.get("draft", "draft"), record["num_open_loop_steps"])
    write(folder / POLICY_FILE, {**record, CALIBRATIONS: record.get(CALIBRATIONS, {}) | {name: holds_for | {**found}}})


def check_calibration(
    folder: Path,
    record: Mapping[str, Any],
    name: str,
    *,
    drafting: str | None,
    num_open_loop_steps: int,
    suite: str | None = None,
) -> None:
    """See that a decoding's threshold, where it was calibrated, was so for this policy, this decoding and this suite.

    Args:
        drafting: The part that drafts now; None: nobody, or a control.
        num_open_loop_steps: Actions of a chunk that are executed now.
        suite: See `load_folder`.

    Raises:
        CheckpointError: it was for another policy or decoding.
        PolicyError: it was for other suites.
    """
    found = record.get(CALIBRATIONS, {}).get(name)
    if found is None:
        return
    now = _holds_for(record, name, drafting, num_open_loop_steps)
    kept = {key: found.get(key) for key in now if key in found or key in ("decoding", "parts")}
    where = f"{folder / POLICY_FILE}: the threshold of decoding {name!r} was calibrated for"
    by_hand = "or give a threshold by hand, which promises nothing: decoding.decode.gate.threshold="
    remedy = f"run scripts/calibrate.py again, take out entry {CALIBRATIONS}.{name}, {by_hand}"
    if different := differences(kept, {key: now[key] for key in kept}):
        raise CheckpointError(f"{where} another policy: {told(different)}; {remedy}")
    if suite is not None and suite not in found.get(SUITES, [suite]):
        raise PolicyError(
            f"{where} {', '.join(found[SUITES])}, not for {suite}; run scripts/calibrate.py with episodes "
            f"of that suite, too, {by_hand}"
        )


def _holds_for(record: Mapping[str, Any], name: str, drafting: str | None, num_steps: int) -> dict[str, Any]:
    """What a threshold of that decoding was found with: hashes of the parts that its gate goes by, and how they act."""
    parts = [part for part in ("base", "tokenizer", drafting) if part in record["parts"]]
    return {
        "decoding": record["decodings"][name],
        "parts": {part: record["parts"][part]["sha256"] for part in parts},
        "base": record["base"],
        "num_open_loop_steps": num_steps,
    }


def write_folder(
    folder: Path,
    *,
    parts: Mapping[str, Path],
    base: Mapping[str, Any],
    space: str,
    num_open_loop_steps: int,
    decoding: str,
    decodings: Mapping[str, tuple[Decoding, str | None]],
    drafts: Mapping[str, str] | None = None,
    calibrations: Mapping[str, Any] | None = None,
) -> None:
    """Write policy.json over parts that lie in the folder already.

    Args:
        parts: Part to its folder.
        base: Arguments of `load_base` beside checkpoint and device.
        space: Digest of the base model's space.
        num_open_loop_steps, decoding: See the head of this file.
        decodings: Name to a decoding and its target ("head", "base"; None where it has none).
        drafts: Name of a decoding to the part that drafts for it, where that is not "draft".
        calibrations: Those of an earlier policy.json; what they were made for is looked at when they are used.

    Raises:
        CheckpointError: a part lies outside of the folder.
    """
    record = {
        "schema": SCHEMA,
        "parts": {name: _named(folder, path) for name, path in parts.items()},
        "base": dict(base),
        "space": space,
        "num_open_loop_steps": num_open_loop_steps,
        "decoding": decoding,
        "decodings": {
            name: to_json(one) | ({} if target is None else {"target": target}) | _draft_entry(drafts or {}, name)
            for name, (one, target) in decodings.items()
        },
    } | ({CALIBRATIONS: dict(calibrations)} if calibrations else {})
    write(folder / POLICY_FILE, record)


def _draft_entry(drafts: Mapping[str, str], name: str) -> dict[str, str]:
    return {"draft": drafts[name]} if name in drafts else {}


def _named(folder: Path, path: Path) -> dict[str, str]:
    if not path.resolve().is_relative_to(folder.resolve()):
        raise CheckpointError(f"part {path} lies outside of the policy folder {folder}; copy it there")
    if not _record_of(path).is_file():
        raise CheckpointError(
            f"part {path} has no {JSON_FILE}: only what rsd has written can be a part of a policy, or a published base "
            "model that scripts/convert.py policy has put there"
        )
    relative = path.resolve().relative_to(folder.resolve())
    return {"path": relative.as_posix(), "sha256": file_sha256(_record_of(path))}


def _record_of(path: Path) -> Path:
    """The file that stands for a part."""
    published = (path / MANIFEST).is_file() and not (path / JSON_FILE).is_file()
    return path / (MANIFEST if published else JSON_FILE)


def parts_in(folder: Path) -> dict[str, Path]:
    """Part → its folder, of every part that policy.json names, whatever decoding uses it.

    Raises:
        CheckpointError: see `load_folder`.
    """
    parts = read_record(folder)["parts"]
    found = {name: _part(folder, parts, name) for name in PARTS}
    return {name: path for name, path in found.items() if path is not None}


def _part(folder: Path, parts: Mapping[str, Any], name: str) -> Path | None:
    """Folder of a part, checked; None when the policy has none."""
    if name not in parts:
        return None
    entry = parts[name]
    path = folder / entry["path"]
    if len(entry["path"]) > LONGEST:
        raise CheckpointError(f"{folder / POLICY_FILE}: part {name!r} has a path of {len(entry['path'])} letters")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise CheckpointError(f"{folder / POLICY_FILE}: part {name!r} lies outside of the folder, at {entry['path']}")
    record = _record_of(path)
    if not record.is_file():
        raise CheckpointError(f"{name} of {folder}: {record} does not exist; fetch the folder again")
    sha256 = file_sha256(record)
    if sha256 != entry["sha256"]:
        raise CheckpointError(
            stranger(record)
            or f"{name} of {folder} is not the one that policy.json names: SHA-256 {sha256[:12]}…, expected "
            f"{entry['sha256'][:12]}…; fetch the folder again, or write it anew with scripts/restamp.py"
        )
    if record.name == MANIFEST:
        check_manifest(path)
    return path
