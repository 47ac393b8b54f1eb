"""Putting a policy together from a loaded base model and checkpoints, held to one contract."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from rsd.checkpoint import JSON_FILE, CheckpointError, file_sha256, load_checkpoint
from rsd.decoding import DRAFT, EARLIER, TARGET, Decoding, asks_tokens, relaxed, stages_of_draft
from rsd.files import stranger
from rsd.models.openvla.base import OpenVLABase
from rsd.models.openvla.loading import load_own
from rsd.points import draft_folder, point_name, points_of_drafts
from rsd.policy.contract import PolicyError
from rsd.policy.policy import Tokens, VLAPolicy
from rsd.settings import Device, Point, Processes, checked, require_device
from rsd.stages import Absent, BaseChunk, Binder, HeadAt, NumbersAt, OwnLook, TwoExits
from rsd.stages.controls import check_moved_on
from rsd.stages.files import EYES, NUMBERS, TOKENS, load_numbers, load_stage_head, readout_in
from rsd.tokenizer import ActionTokenizer, load_tokenizer
from rsd.tokenizer.loading import LoadedTokenizer, MakesTokenizer
from rsd.types import BaseModel, BaseSpec

MICRO = "python train.py phase=draft draft=micro"
IN_TOKENS = (
    "use a draft in tokens (draft=early), decoding=exit, or decoding=early_exit decoding.decode.gate=null with a "
    "decoding.decode.tolerance and draft.earlier"
)
REMEDY = "or ask for fewer (decoding.decode.num_draft_stages, quantizer)"


@checked
@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """Folders of what a decoding over tokens may need; only those that it needs are opened.

    Attributes:
        tokenizer: Of the tokenizer; nobody opens it where drafts say numbers and nobody else is asked.
        head: Of the target head; None makes the base model's own chunk the target.
        draft: Of the draft; see `draft_folder`, where it is one of several.
        draft_point: Point that the draft has to read, as `point_name` takes it; None for whatever it was trained at.
        earlier: Of a draft at an earlier point, which some decodings hold the draft against; None takes the one at
            `earlier_point` that was trained with `draft`.
        earlier_point: Point that it has to read; None for whatever it was trained at.
        readout: What the draft has to say, "tokens" or "numbers"; None for whatever it was trained for.
        control: Makes a draft that nobody trained from the tokenizer (rsd/stages/controls.py), instead of `draft`.
    """

    tokenizer: Path | str | None = None
    head: Path | str | None = None
    draft: Path | str | None = None
    draft_point: Point | None = None
    earlier: Path | str | None = None
    earlier_point: Point | None = None
    readout: Literal["tokens", "numbers"] | None = None
    control: Callable[[ActionTokenizer], Binder] | None = None


@checked
def assemble(
    *,
    base: BaseModel,
    decoding: Decoding,
    checkpoints: Checkpoints,
    num_open_loop_steps: int,
    device: Device,
    tokenizer: ActionTokenizer | MakesTokenizer | None = None,
    num_threads: Processes | None = None,
    offered: Mapping[str, Any] | None = None,
) -> VLAPolicy:
    """Put a policy together.

    Args:
        base: Loaded base model.
        decoding: One of `rsd.decoding`; its `needs` say which checkpoints are opened.
        checkpoints: Where they are.
        num_open_loop_steps, device: As in VLAPolicy.
        tokenizer: Freshly built from a configuration, or what builds it, which the checkpoint has to agree with; None
            takes the file's.
        num_threads: Computing threads of this process on the CPU; None leaves them as they are.
        offered: What the environment offers, as arguments of `IOContract.check`; None checks nothing.

    Raises:
        CheckpointError: a part is missing, damaged, or was made for another part.
        PolicyError: a part that the decoding needs is not named, or the policy and what is offered do not fit.
    """
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    require_device(device)
    where = torch.device(device)
    tokens = None
    if decoding.needs:
        tokens = _tokens(base, decoding, checkpoints, where, tokenizer)
        steps = {"chunk_length": base.spec.chunk_length, "num_open_loop_steps": num_open_loop_steps}
        check_moved_on(tokens.draft, decoding, **steps)
    policy = VLAPolicy(
        base=base, decoding=decoding, tokens=tokens, num_open_loop_steps=num_open_loop_steps, device=where
    )
    if offered is not None:
        policy.contract.check(**offered)
    return policy


def _tokens(
    base: BaseModel,
    decoding: Decoding,
    checkpoints: Checkpoints,
    where: torch.device,
    expected: ActionTokenizer | MakesTokenizer | None,
) -> Tokens:
    """Tokenizer, target and draft, as far as the decoding needs them."""
    name = type(decoding).__name__
    loaded: LoadedTokenizer | None = None
    if not in_numbers_alone(decoding, checkpoints):
        if checkpoints.tokenizer is None:
            raise PolicyError(f"decoding {name} writes tokens, and there is no tokenizer; see phase=rfsq")
        loaded = load_tokenizer(Path(checkpoints.tokenizer), expected=expected, space=base.spec.space)
    tokenizer = None if loaded is None else loaded.tokenizer.to(where)
    if tokenizer is not None and (rule := relaxed(decoding)) is not None:
        check_relaxed(rule, tokenizer)
    target: Binder = Absent(TARGET)
    draft: Binder = Absent(DRAFT)
    training = f"python train.py phase=draft{' draft=numbers' if checkpoints.readout == NUMBERS else ''}"

    def head_at(
        kind: str, role: str, folder: Path | str, num_stages: int | None, eyes: BaseModel | None = None
    ) -> HeadAt:
        assert loaded is not None and tokenizer is not None  # only drafts in numbers do without
        head, point = load_stage_head(
            Path(folder),
            kind=kind,
            code_shape=tokenizer.code_shape,
            tokenizer_sha256=loaded.sha256,
            base=base.spec,
            eyes=None if eyes is None else eyes.spec,
        )
        if num_stages is not None and num_stages > head.num_stages:
            raise PolicyError(
                f"{kind} {folder} was trained for {head.num_stages} stages, but {num_stages} are asked of it; train "
                f"one for {num_stages} with python train.py phase={kind}, {REMEDY}"
            )
        return HeadAt(head.to(where), point, role)

    def draft_at(role: str, path: Path | str, point: Point | None, remedy: str) -> HeadAt | NumbersAt | OwnLook:
        folder = draft_folder(Path(path), point)
        gone = not (folder.exists() or folder.is_symlink())
        if gone and point is not None and (others := points_of_drafts(Path(path))):
            raise CheckpointError(
                f"no {role} at {point_name(point)}: {folder} does not exist, and beside it are those at "
                f"{', '.join(others)}; choose one of them, or train all at once with {training} "
                f"draft.layer=[{','.join([*others, point_name(point)])}]"
            )
        says = _readout(folder, checkpoints.readout)
        if role == DRAFT and checkpoints.readout not in (None, says):
            raise CheckpointError(
                f"{role} {folder} says {says}, and one that says {checkpoints.readout} is asked for; use "
                f"draft={'numbers' if says == NUMBERS else 'early'}"
            )
        eyes: BaseModel | None = None
        trained: HeadAt | NumbersAt
        if says == NUMBERS:
            if role == DRAFT and (who := asks_tokens(decoding)) is not None:
                raise PolicyError(f"{who} asks the draft for tokens, and {role} {folder} says numbers; {IN_TOKENS}")
            numbers, read = load_numbers(folder, base=base.spec)
            trained = NumbersAt(numbers.to(where), read, role)
        else:
            assert tokenizer is not None
            stages = stages_of_draft(decoding, tokenizer.code_shape.num_stages, DRAFT if role == DRAFT else EARLIER)
            eyes = load_eyes(folder, base.spec, device=str(where), run_as=base)
            trained = head_at("draft", role, folder, stages, eyes)
        wanted = trained.point if point is None else point_name(point)
        if trained.point != wanted:
            raise CheckpointError(f"{role} {folder} reads {trained.point}, and {wanted} is asked for; {remedy}")
        return OwnLook(eyes, trained) if eyes is not None and isinstance(trained, HeadAt) else trained

    if TARGET in decoding.needs:
        assert tokenizer is not None
        if checkpoints.head is not None:
            target = head_at("head", TARGET, checkpoints.head, tokenizer.code_shape.num_stages)
        elif base.spec.continuous:
            target = BaseChunk(tokenizer)
        else:
            raise PolicyError(
                f"the base model makes its chunk with {base.spec.action_head!r}, and only a continuous head's chunk "
                "can be the target itself; train a target head (phase=head) and set target=head"
            )
    if DRAFT in decoding.needs and checkpoints.control is not None:
        assert tokenizer is not None
        draft = checkpoints.control(tokenizer)
    elif DRAFT in decoding.needs:
        if checkpoints.draft is None:
            raise PolicyError(f"decoding {name} needs a draft, and the policy has none; train one with phase=draft")
        at = "" if checkpoints.draft_point is None else f" draft.layer={checkpoints.draft_point}"
        remedy = f"give its own draft.layer, or train one with {training}{at}"
        draft = draft_at(DRAFT, checkpoints.draft, checkpoints.draft_point, remedy)
    if EARLIER in decoding.needs:
        if not isinstance(draft, HeadAt | NumbersAt):
            raise PolicyError(
                f"decoding {name} has a tolerance, which compares two drafts that read the base model, and this draft "
                "does not read it; use draft=early or draft=numbers, or set decoding.decode.tolerance=null"
            )
        point = checkpoints.earlier_point
        path = checkpoints.draft if checkpoints.earlier is None and point is not None else checkpoints.earlier
        if path is None:
            raise PolicyError(
                f"decoding {name} has a tolerance, which compares two drafts, and no earlier one is named; set "
                "draft.earlier to its layer (a policy's folder: add the part 'earlier'), or "
                "decoding.decode.tolerance=null"
            )
        remedy = f"train both at once with {training} draft.layer=[{point},{draft.point}]"
        earlier = draft_at("earlier draft", path, point, remedy)
        draft = two_exits(earlier, draft, base.spec, tokenizer)
    return Tokens(tokenizer, target, draft)


def check_relaxed(rule: object, tokenizer: ActionTokenizer) -> None:
    """See that a tokenizer's code lets a relaxed rule keep what it promises.

    Raises:
        PolicyError: the gripper has no bit of its own.
        SettingError: its stages leave gaps, and nothing bounds what greedy refinement leaves over.
    """
    tokenizer.hand_over_bound()
    bits = [row[dim] for row in tokenizer.code_shape.levels for dim in tokenizer.grippers]
    if not all(bit[0] == 2 and set(bit[1:]) <= {1} for bit in bits):
        raise PolicyError(
            f"accept {type(rule).__name__} keeps the gripper exact, and tokenizer {type(tokenizer).__name__} has no "
            "bit of its own for it; choose quantizer=dct_d3, or accept=exact"
        )


def in_numbers_alone(decoding: Decoding, checkpoints: Checkpoints) -> bool:
    """Whether whoever a decoding asks says numbers, so that nobody needs a tokenizer."""
    if TARGET in decoding.needs or checkpoints.control is not None or checkpoints.draft is None:
        return False
    path = checkpoints.earlier or checkpoints.draft
    drafts = {DRAFT: draft_folder(Path(checkpoints.draft), checkpoints.draft_point)}
    drafts |= {EARLIER: draft_folder(Path(path), checkpoints.earlier_point)}
    return all(_readout(drafts[role], checkpoints.readout) == NUMBERS for role in decoding.needs)


def _readout(folder: Path, asked: str | None) -> str:
    """What a draft says; where that cannot be told, what it is asked to."""
    return readout_in(folder) or asked or TOKENS


def two_exits(
    earlier: HeadAt | NumbersAt | OwnLook,
    later: HeadAt | NumbersAt,
    base: BaseSpec,
    tokenizer: ActionTokenizer | None,
) -> TwoExits:
    """Both drafts as one.

    Raises:
        PolicyError: the earlier one does not read the policy's base model at an earlier point.
    """
    points = list(base.points)
    if isinstance(earlier, OwnLook) or points.index(earlier.point) >= points.index(later.point):
        reads = "a model of its own" if isinstance(earlier, OwnLook) else earlier.point
        raise PolicyError(
            f"the earlier draft reads {reads}, expected a point before {later.point}, where the draft reads; the base "
            f"model has {', '.join(points)}"
        )
    return TwoExits(earlier, later, tokenizer, base.space.action.grippers, base.space.between)


def load_eyes(
    draft: Path,
    base: BaseSpec,
    *,
    device: str,
    kind: str = DRAFT,
    produce: str = MICRO,
    run_as: BaseModel | None = None,
) -> OpenVLABase | None:
    """The base model that a draft has of its own; None for a draft that reads the policy's.

    Args:
        draft: Its folder.
        base: Of the policy's base model.
        device: Where it runs.
        kind, produce: Of the checkpoint, where it is no draft's, and what makes one.
        run_as: The policy's base model: graphs and pictures on the device serve both. Eight bits are its own.

    Raises:
        CheckpointError: it is damaged, is not the one that the draft was trained with, or sees what the policy's base
            model does not.
    """
    folder = draft / EYES
    if not folder.is_dir():
        return None
    provenance = load_checkpoint(draft, kind=kind, produce=produce).provenance
    record, remedy = folder / JSON_FILE, f"fetch it again, or run {produce}"
    if not record.is_file():
        raise CheckpointError(f"{record} does not exist; {remedy}")
    if provenance.get(EYES) != file_sha256(record):
        another = f"{folder} is not what {kind} {draft} was trained with; {remedy}"
        raise CheckpointError(stranger(record, remedy) or another)
    execution, pictures, source = "eager", "cpu", None
    if isinstance(run_as, OpenVLABase):
        execution = "compiled" if run_as.execution == "fp8" else run_as.execution
        pictures, source = run_as.pictures_on, getattr(run_as.text, "source", None)  # of sentences alone
    eyes = load_own(folder, device=device, execution=execution, pictures=pictures, text_source=source)
    more = sorted(set(eyes.spec.views) - set(base.views))
    if more or eyes.spec.proprio_dim not in (None, base.proprio_dim):
        raise CheckpointError(
            f"{kind} {draft} sees {list(eyes.spec.views)} and proprio of {eyes.spec.proprio_dim} dims, the base model "
            f"{list(base.views)} and {base.proprio_dim}; train it again with {produce}"
        )
    return eyes
