"""The policy that a configuration asks for: a folder's, or one composed from the groups. Knows Hydra and the policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from rsd.checkpoint import CheckpointError
from rsd.clock import Clock
from rsd.decoding import DRAFT, EARLIER, KIND, L1, TARGET, Anytime, to_json
from rsd.errors import SettingError
from rsd.models.openvla import require_checkpoint
from rsd.points import draft_folder
from rsd.policy import Checkpoints, CorrectedPolicy, VLAPolicy, assemble, describe_folder, load_corrected, load_folder
from rsd.policy.assemble import in_numbers_alone
from rsd.policy.folder import CALIBRATIONS, parts_in, read_record
from rsd.settings import Count, Device, Processes, Text, checked
from rsd.space import LIBERO_GRIPPER
from rsd.stages.correction import KIND as CORRECTION
from rsd.stages.correction import PRODUCE
from rsd.types import ALL_TOKENS, Corrects, Policy, ReadsInstructions, Task

EXECUTION, PICTURES = "model.backbone.execution", "model.backbone.pictures"
FIXED = ("model", "quantizer", "chunk", "composed", "experiment")  # what a policy's folder decides on


@checked
def loader(config: DictConfig, **changes: Any) -> Callable[[], Any]:
    """What loads a configured model once it is called: a configuration instantiates its parts at once otherwise.

    Called with arguments, these are changes too: base(device="cuda:1").
    """
    return partial(_load, config, changes)


def _load(config: DictConfig, changes: Mapping[str, Any], **more: Any) -> Any:
    return instantiate(config, **{**changes, **more})


def configured_policy(cfg: DictConfig, overrides: Sequence[str], device: str | None = None) -> Policy:
    """The policy of eval.py, serve_policy.py and doctor.py.

    Args:
        cfg: With `policy` (a folder; null; or a node with the `_target_` of a policy of your own), `composed`, and the
            groups that it is composed from.
        overrides: What was typed. With policy=FOLDER the folder decides on decoding, target and steps, unless they
            were typed, and on its parts always.
        device: Instead of cfg.device.

    Raises:
        SettingError: a part was typed beside policy=FOLDER.
        CheckpointError: a part is missing or does not fit, the correction of async=corrected among them.
    """
    if device is not None:
        cfg = cast("DictConfig", OmegaConf.merge(cfg, {"device": device}))
    if isinstance(cfg.policy, DictConfig):
        return instantiate(cfg.policy)
    if cfg.policy is None:
        policy = instantiate(cfg.composed)(base=instantiate(cfg.model.backbone))
    else:
        policy = load_folder(cfg.policy, **folder_options(cfg, overrides))
    correction = correction_folder(cfg)
    return policy if correction is None else load_corrected(policy, correction, delay=cfg.delay)


def correction_folder(cfg: DictConfig) -> Path | None:
    """Where the correction of late chunks is; None where nothing is corrected.

    Raises:
        CheckpointError: the policy's folder has none.
    """
    clock = instantiate(cfg["async"]) if "async" in cfg else Clock()
    if not (clock.corrects and clock.delay):
        return None
    if cfg.policy is None:
        return Path(cfg.paths.correction)
    part = parts_in(Path(cfg.policy)).get(CORRECTION)
    if part is None:
        raise CheckpointError(
            f"async=corrected needs the part {CORRECTION!r}, and {cfg.policy} has none; make it with "
            f"{PRODUCE}, copy it into the folder and run scripts/restamp.py, or use async=naive or async=none"
        )
    return part


def configured_clock(cfg: DictConfig, overrides: Sequence[str]) -> Clock:
    """The clock of eval.py and serve_policy.py: `delay` and the group `async`, which is a word of Python's.

    Raises:
        SettingError: it is refused by name.
        DelayError: nothing of the policy's chunks would be left, as far as its length is known before it is loaded.
    """
    clock = cast("Clock", instantiate(cfg["async"]))
    if cfg.policy is None:
        clock.check(cfg.chunk)
    elif not isinstance(cfg.policy, DictConfig):
        clock.check(describe_folder(Path(cfg.policy), folder_options(cfg, overrides))["base"]["chunk_length"])
    return clock


def check_clock(policy: Policy, clock: Clock) -> None:
    """See that a clock suits the policy's chunks and its robot, as far as the policy tells them.

    Raises:
        DelayError: nothing of its chunks would be left.
        SettingError: nobody knows how its robot stands still, the clock corrects and the policy does not, or the
            decoding has a clock of its own.
        PolicyError: its correction is for another delay.
    """
    if not clock.delay:
        return
    if clock.corrects:
        if not isinstance(policy, Corrects):
            raise SettingError(
                f"async=corrected needs a policy with a correction, and a {type(policy).__name__} has none; use "
                "async=naive or async=none"
            )
        policy.check_delay(clock.delay)
    own = policy.policy if isinstance(policy, CorrectedPolicy) else policy
    if isinstance(own, VLAPolicy):
        if isinstance(own.decoding, Anytime):
            raise SettingError(
                f"delay={clock.delay} makes a chunk late, of which decoding=anytime takes the first steps from the "
                "draft so that none is: two clocks for one delay; set delay=0, or another decoding"
            )
        clock.check(own.base.spec.chunk_length)
        rule = own.base.spec.space.gripper
        if rule != LIBERO_GRIPPER:
            raise SettingError(
                f"delay={clock.delay} has the robot stand still at times, which is no movement and a gripper of -1 or "
                f"1: true of gripper {LIBERO_GRIPPER!r}, but this policy's space has {rule!r}; set delay=0"
            )


def check_tasks(policy: Policy, tasks: Sequence[Task]) -> None:
    """See that a policy that can tell understands the instructions of these tasks, before the first episode.

    Raises:
        InstructionError: it does not; the message names tasks and words.
    """
    if isinstance(policy, ReadsInstructions):
        instructions = [task.instruction for task in tasks]
        policy.check_instructions(instructions, {task.instruction: f"task {task.task_id}" for task in tasks})


def folder_options(cfg: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """Arguments of `load_folder` beside the folder.

    Raises:
        SettingError: something was typed that the folder decides on.
    """
    decoding_typed, draft_typed = is_typed(overrides, "decoding"), is_typed(overrides, "draft")
    free = (EXECUTION, PICTURES, "draft", *(("draft.num_stages",) if decoding_typed else ()))
    fixed = (*FIXED, "draft")
    typed = [one for one in overrides if one.partition("=")[0].lstrip("+~") not in free and is_typed([one], *fixed)]
    if not is_typed(overrides, "policy"):  # then an experiment has chosen it
        typed = [one for one in typed if not is_typed([one], "experiment")]
    if typed:
        raise SettingError(
            f"policy={cfg.policy} brings its own parts: leave out {', '.join(typed)}, or policy= to compose one"
        )
    steps_typed = is_typed(overrides, "num_open_loop_steps", "protocol")
    offered = cfg.composed.offered  # by recorded data nothing, before they are read
    calibrated = decoding_typed and _is_calibrated(cfg, overrides)
    decoding = cfg.decoding.name if calibrated else instantiate(cfg.decoding.decode) if decoding_typed else None
    return {
        "decoding": decoding,
        "draft": _drafting(cfg) if draft_typed or (decoding_typed and not calibrated) else None,
        "suite": _suite(cfg),
        "target": cfg.target.name if is_typed(overrides, "target") else None,
        "num_open_loop_steps": cfg.num_open_loop_steps if steps_typed else None,
        "device": cfg.device,
        "num_threads": cfg.composed.get("num_threads"),
        "offered": None if offered is None else OmegaConf.to_container(offered, resolve=True),
        **({"execution": cfg.model.backbone.execution} if is_typed(overrides, EXECUTION) else {}),
        **({"pictures": cfg.model.backbone.pictures} if is_typed(overrides, PICTURES) else {}),
        **({"text_source": text_source(cfg)} if is_typed(overrides, "text") else {}),
        **({"visual_tokens": instantiate(cfg.visual_tokens.select)} if is_typed(overrides, "visual_tokens") else {}),
    }


def text_source(cfg: DictConfig) -> str | None:
    """Where the files of a sentence encoder are, as far as the configuration says it."""
    source: str | None = OmegaConf.select(cfg, "text.sentences.source")
    return source


def _is_calibrated(cfg: DictConfig, overrides: Sequence[str]) -> bool:
    """Whether a decoding is asked for by its name alone, and the policy's folder has a calibrated one of that name.

    Raises:
        SettingError: it has, and something of the decoding was typed, but no gate: another threshold would be taken.
    """
    name = cfg.decoding.name
    if name not in read_record(Path(cfg.policy)).get(CALIBRATIONS, {}):
        return False
    more = [one for one in overrides if is_typed([one], "decoding", "draft.num_stages")]
    more = [one for one in more if not one.startswith("decoding=")]
    if more and not is_typed(more, "decoding.decode.gate"):
        raise SettingError(
            f"{', '.join(more)} beside decoding={name}, whose threshold {cfg.policy} has calibrated without it; leave "
            "it out, or give a threshold by hand, which promises nothing: decoding.decode.gate.threshold="
        )
    return not more


def _suite(cfg: DictConfig) -> str | None:
    """The suite that a command's episodes are of, with its variant; None where it has none."""
    suite, variant = (OmegaConf.select(cfg, f"env.{name}") for name in ("suite", "variant"))
    return suite if suite is None or variant is None else f"{suite}_{variant}"


def _drafting(cfg: DictConfig) -> Any:
    """The part of a policy's folder that the group `draft` stands for, or what makes a control."""
    return cfg.draft.part if cfg.draft.control is None else instantiate(cfg.draft.control)


def require_base(cfg: DictConfig) -> None:
    """Fetch a composed policy's base model where only the hub has it, before a run writes down what it reads.

    Raises:
        CheckpointError: it cannot be had.
    """
    if cfg.policy is None and "hub_id" in cfg.model.backbone:
        require_checkpoint(cfg.model.backbone.checkpoint, cfg.model.backbone.hub_id, published_layout=True)


def policy_fields(cfg: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """What plan.json says of the policy: fields of `rsd.evaluation.plan.PolicyDescription`, checkpoints as paths; not
    its clock."""
    if isinstance(cfg.policy, DictConfig):
        return {"model": str(cfg.policy._target_).rpartition(".")[2]}
    if cfg.policy is not None:
        named = {"decoding": cfg.decoding.name} if is_typed(overrides, "decoding") else {}
        fields = describe_folder(Path(cfg.policy), folder_options(cfg, overrides)) | named
        return fields | {"checkpoints": fields["checkpoints"] | {CORRECTION: correction_folder(cfg)}}
    decoding = instantiate(cfg.decoding.decode)
    scorer = OmegaConf.select(cfg, "visual_tokens.checkpoint")
    in_tokens = bool(decoding.needs) and not in_numbers_alone(decoding, instantiate(cfg.composed.checkpoints))
    asked = {"base": True, "tokenizer": in_tokens, "head": TARGET in decoding.needs}
    asked["draft"] = DRAFT in decoding.needs and cfg.draft.control is None
    asked[EARLIER] = EARLIER in decoding.needs and cfg.draft.earlier is not None
    asked["visual_tokens"], asked[CORRECTION] = scorer is not None, True
    paths = {"base": cfg.model.backbone.checkpoint, "tokenizer": cfg.paths.tokenizer}
    paths |= {
        "head": cfg.target.checkpoint,
        "draft": str(draft_folder(Path(cfg.paths.draft), cfg.draft.layer)),
        EARLIER: str(draft_folder(Path(cfg.paths.draft), cfg.draft.earlier)),
        "visual_tokens": scorer,
        CORRECTION: correction_folder(cfg),
    }
    base = cast("dict[str, Any]", OmegaConf.to_container(cfg.model.backbone, resolve=True))
    if OmegaConf.select(cfg, "visual_tokens.name", default=ALL_TOKENS) == ALL_TOKENS:
        base.pop("visual_tokens", None)
    if base.get("execution") != "fp8":
        base.pop("fp8", None)
    if base.get("pictures") == "cpu":
        base.pop("pictures")
    base.pop("text_source", None)  # a place, and no content
    return {
        "model": cfg.model.name,
        "decoding": cfg.decoding.name,
        "target": cfg.target.name if TARGET in decoding.needs else None,
        "unnorm_key": cfg.model.backbone.unnorm_key,
        "num_open_loop_steps": cfg.num_open_loop_steps,
        "options": {name: value for name, value in to_json(decoding).items() if name != KIND},
        "base": base,
        "draft": cfg.draft.name if DRAFT in decoding.needs else None,
        "checkpoints": {part: paths[part] if is_asked else None for part, is_asked in asked.items()},
    }


def is_typed(overrides: Sequence[str], *keys: str) -> bool:
    """Whether one of these keys or groups, or something inside of it, is among the overrides."""
    names = [one.lstrip("+~").partition("=")[0] for one in overrides]
    return any(name == key or name.startswith((f"{key}.", f"{key}@")) for name in names for key in keys)


@checked
def base_policy(
    *,
    policy: str | None,
    base: DictConfig,
    num_open_loop_steps: Count,
    device: Device,
    num_threads: Processes,
    offered: Mapping[str, Any],
    text_source: Text | None = None,
) -> VLAPolicy:
    """A base model that acts with its own head: of a policy's folder, or of a configuration (`model.backbone`)."""
    if policy is not None:
        options: dict[str, Any] = {"num_threads": num_threads, "offered": offered, "text_source": text_source}
        return load_folder(policy, decoding=L1(), device=device, **options)
    return assemble(
        base=instantiate(base),
        decoding=L1(),
        checkpoints=Checkpoints(),
        num_open_loop_steps=num_open_loop_steps,
        device=device,
        num_threads=num_threads,
        offered=offered,
    )
