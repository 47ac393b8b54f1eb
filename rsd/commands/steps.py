"""The steps of a pipeline: phases chained in one command, as an experiment of conf/ with a key `steps` names them.

    overrides: [quantizer=dct_d3]    # for every step that they belong to
    steps:
      head:                          # a name
        command: train.py            # one of COMMANDS
        arguments: [phase=head]      # of this step alone
        reads: [base, tokenizer]     # steps before, without which it cannot run; of compare.py the runs to compare
        if_missing: false            # true: what is there already, and not of this pipeline, is taken as it is

What surprises first: whoever types an override need not say for which step. It reaches those whose configuration asks
for that key, through however many interpolations: quantizer=dct_d3 the tokenizer, the heads and the evaluations, and
not the base model. `steps.NAME.KEY=VALUE` is for one step alone. All steps are composed and held to each other before
the first one starts.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from rsd.commands.publishing import check_publishable, names_of
from rsd.commands.quoting import quoted
from rsd.commands.requirements import check_chunk
from rsd.commands.settings import check_settings
from rsd.commands.trainer import require_devices
from rsd.commands.usage import check_choices
from rsd.differences import differences, told
from rsd.errors import SettingError
from rsd.record import EntryError, conform
from rsd.runs import json_types

TRAIN, EVAL, CACHE = "train.py", "eval.py", "scripts/cache_hidden_states.py"
COLLECT, COMPARE = "scripts/collect_demos.py", "scripts/compare.py"
COMMANDS = {TRAIN: "train", EVAL: "eval", CACHE: "cache", COLLECT: "collect"}  # to the root configuration in conf/
# Read where they are referred to
SHARED = ("paths", "data", "model", "text", "quantizer", "draft", "target", "visual_tokens")
READ_AS_THEY_ARE = {EVAL: ("model",), COLLECT: ("data",)}  # and by these commands' own code
PLACES_OF_ALL = ("paths.root", "paths.data", "paths.cache", "paths.checkpoints", "paths.runs")
OF_THE_PIPELINE = ("phase", "policy", "experiment", "resume")  # keys that only the pipeline's file decides on
MAX_STEPS = ("phase.max_steps", "trainer.max_steps")  # not of a tokenizer that is fitted
SAME = (  # keys that must be the same in a step and in those that read what it makes
    *("chunk", "data.name", "data.unnorm_key", "model.name", "model.architecture", "model.image_size"),
    *("visual_tokens.name", "text.name", "quantizer.num_stages", "quantizer.tokenizer"),
    *("draft.name", "draft.num_stages", "draft.layer", "draft.width", "draft.num_layers", "draft.num_heads"),
)
REFERENCE = re.compile(r"\$\{(?:oc\.select:)?([A-Za-z_][\w.]*)")
NAME = re.compile(r"[A-Za-z]\w*")


class Entry(TypedDict):
    """A step in the file."""

    command: str
    arguments: NotRequired[list[str]]
    reads: NotRequired[list[str]]
    if_missing: NotRequired[bool]


class File(TypedDict):
    """The file."""

    overrides: NotRequired[list[str]]
    steps: dict[str, Entry]


@dataclass(eq=False)
class Planned:
    """A step: what its file says of it, and the configuration composed of that and of what was typed for it.

    Attributes:
        arguments: Of its command.
        config: None of compare.py, which Hydra does not configure.
        is_given: What it makes is there and is taken as it is.
    """

    name: str
    command: str
    arguments: list[str]
    reads: list[str]
    if_missing: bool
    config: DictConfig | None = field(default=None, repr=False)
    is_given: bool = False

    def set(self, key: str, value: str) -> None:
        """Type a path for it."""
        assert self.config is not None
        self.arguments.append(quoted(f"{key}={value}"))
        OmegaConf.update(self.config, key, value)

    @property
    def products(self) -> list[Path]:
        """Where others find what it makes."""
        if self.command == TRAIN:
            assert self.config is not None
            return list(names_of(self.config.phase).values())
        return [dataset_dir(self.config)] if self.command == COLLECT and self.config is not None else []


def read_file(path: Path) -> File:
    """A pipeline's file.

    Raises:
        SettingError: it says something else than a pipeline has to.
    """
    try:
        held = json_types(OmegaConf.to_container(OmegaConf.load(path)))
        file = cast("File", conform(held, cast("Any", File), str(path)))
    except EntryError as error:
        raise SettingError(f"{error}; see docs/pipelines.md") from error
    before: list[str] = []
    for name, entry in file["steps"].items():
        known = [*COMMANDS, COMPARE]
        if not NAME.fullmatch(name) or entry["command"] not in known:
            raise SettingError(f"{path}: step {name!r} has the command {entry['command']!r}, expected one of {known}")
        if unknown := [one for one in entry.get("reads", []) if one not in before]:
            raise SettingError(f"{path}: step {name!r} reads {unknown}, expected steps before it: {before}")
        before.append(name)
    return file


def plan_steps(config: Path, name: str, typed: Sequence[str]) -> list[Planned]:
    """The steps with what was typed for them, each composed.

    Args:
        config: Root configuration of the command that was typed, beside which all others are.
        name: Of the experiment.
        typed: Overrides, without the experiment.

    Raises:
        SettingError: an override belongs to no step, or to the pipeline itself, or a choice does not exist.
        HydraException: a step cannot be composed.
    """
    file = read_file(config.parent / "experiment" / f"{name}.yaml")
    common, own = _dealt(typed, list(file["steps"]))
    if wrong := [f"steps.{one}.{own[one][0]}" for one in own if file["steps"][one]["command"] == COMPARE]:
        raise SettingError(
            f"{wrong[0]}: {COMPARE} takes no KEY=VALUE; its options stand in the pipeline's file alone, under "
            "arguments: copy that to conf/experiment/NAME.yaml (docs/pipelines.md)"
        )
    everyones = [*file.get("overrides", []), *common]
    steps, used = [], set[str]()
    with initialize_config_dir(str(config.parent.resolve()), version_base="1.3"):
        for step, entry in file["steps"].items():
            alone = [*entry.get("arguments", []), *own.get(step, [])]
            planned = Planned(step, entry["command"], alone, entry.get("reads", []), entry.get("if_missing", False))
            if planned.command in COMMANDS:
                used.update(_compose(planned, config.parent, everyones, own.get(step, [])))
            steps.append(planned)
    _check_choices_of_one(common, file)
    if unused := [one for one in common if one not in used]:
        raise SettingError(
            f"{unused[0]} belongs to no step of {name}: none asks for that key; see python train.py --help, and for a "
            f"key inside of one step's configuration: steps.NAME.KEY=VALUE with NAME one of {', '.join(file['steps'])}"
        )
    return steps


def _dealt(typed: Sequence[str], names: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """What was typed for all steps, and for single ones."""
    common: list[str] = []
    own: dict[str, list[str]] = {}
    for one in typed:
        sign, key, value = re.fullmatch(r"([+~]*)([^=]*)(.*)", one, re.S).groups()  # type: ignore[union-attr]
        _, step, rest = [*key.split(".", 2), "", ""][:3] if key.startswith("steps.") else ("", "", key)
        if step and rest in Entry.__annotations__:
            raise SettingError(
                f"{one}: {rest} stands in the pipeline's file alone; copy that to conf/experiment/NAME.yaml and change "
                "it there (docs/pipelines.md)"
            )
        if rest == "debug":
            raise SettingError(
                f"{one}: a trial publishes nothing, and the steps after it would find nothing; try one phase alone: "
                "python train.py phase=NAME debug=fast"
            )
        if rest in OF_THE_PIPELINE or rest.startswith(("hydra.", "hydra/")):
            raise SettingError(
                f"{one}: the pipeline decides on {rest}; leave it out, or give the pipeline another folder: "
                "hydra.run.dir=DIR"
            )
        if key.startswith("steps."):
            if step not in names or not rest:
                raise SettingError(f"{one}: expected steps.NAME.KEY=VALUE with NAME one of {', '.join(names)}")
            own.setdefault(step, []).append(f"{sign}{rest}{value}")
        else:
            common.append(one)
    return common, own


def _check_choices_of_one(common: Sequence[str], file: File) -> None:
    """See that no override for all steps changes a group that the file chooses for each step."""
    for one in common:
        key = key_of(one)
        chosen = {
            name: argument
            for name, entry in file["steps"].items()
            for argument in entry.get("arguments", [])
            if key_of(argument) == key and "." not in key
        }
        if len(set(chosen.values())) > 1:
            raise SettingError(
                f"{one}: the steps have choices of their own, {', '.join(f'{k}: {v}' for k, v in chosen.items())}; "
                f"choose for one of them: steps.{next(iter(chosen))}.{one}"
            )


def key_of(override: str) -> str:
    """ "quantizer" of "quantizer=dct_d3"."""
    return override.lstrip("+~").partition("=")[0]


def _compose(step: Planned, conf: Path, everyones: Sequence[str], last: Sequence[str]) -> Iterator[str]:
    """Compose a step, in place; those of everyone's overrides that belong to it.

    Args:
        last: What was typed for it alone; at the end of its arguments, too.
    """
    root = conf / f"{COMMANDS[step.command]}.yaml"
    first = step.arguments[: len(step.arguments) - len(last)]
    groups = {name for one in OmegaConf.load(root).defaults if isinstance(one, DictConfig) for name in one}
    groups = {str(name).removeprefix("override ").removeprefix("optional ") for name in groups}
    chosen = [one for one in everyones if _is_choice(one, conf) and key_of(one) in groups]
    check_choices(root, [*first, *chosen, *last])
    config, choices = _composed(root, [*first, *chosen, *last])
    inner = [one for one in everyones if _is_choice(one, conf) and key_of(one) in choices and one not in chosen]
    if inner:  # of groups that a choice has brought along
        config, _ = _composed(root, [*first, *chosen, *inner, *last])
    asked = units_asked(config, step.command)
    is_fitted = OmegaConf.select(config, "phase.max_steps") == 0
    dealt = []
    for one in everyones:
        key = key_of(one)
        if _is_choice(one, conf):
            belongs = (one in chosen or one in inner) and (key in asked or key not in config)
        elif is_fitted and key in MAX_STEPS:
            belongs = False
        else:
            belongs = (key in PLACES_OF_ALL or _unit(key) in asked) and _is_key(config, one)
        if belongs:
            dealt.append(one)
    values = [one for one in dealt if not _is_choice(one, conf)]
    own_keys = {key_of(one) for one in last}
    for override in OverridesParser.create().parse_overrides([one for one in values if key_of(one) not in own_keys]):
        if override.is_sweep_override():
            raise SettingError(f"{override.input_line}: a pipeline is no sweep; give one value")
        with open_dict(config):
            if override.is_delete():
                parent, _, name = str(override.key_or_group).rpartition(".")
                del (OmegaConf.select(config, parent) if parent else config)[name]
            else:
                OmegaConf.update(config, str(override.key_or_group), override.value(), merge=True)
    step.arguments[:] = _last_ones([*first, *dealt, *last])
    step.config = config
    yield from dealt


def _last_ones(overrides: Sequence[str]) -> list[str]:
    """Without those whose key is given once more later."""
    after = [{key_of(one) for one in overrides[index + 1 :]} for index in range(len(overrides))]
    return [one for one, later in zip(overrides, after, strict=True) if key_of(one) not in later]


def _composed(root: Path, overrides: Sequence[str]) -> tuple[DictConfig, dict[str, Any]]:
    config = compose(root.stem, _last_ones(overrides), return_hydra_config=True)
    choices = dict(config.hydra.runtime.choices)
    with open_dict(config):
        del config["hydra"]
    return config, choices


def _is_choice(override: str, conf: Path) -> bool:
    return (conf / key_of(override)).is_dir()


def _is_key(config: DictConfig, override: str) -> bool:
    """Whether a key is in a configuration, or may be added there."""
    parent, _, name = key_of(override).rpartition(".")
    node = OmegaConf.select(config, parent, throw_on_resolution_failure=False) if parent else config
    return isinstance(node, DictConfig) and (name in node or override.startswith("+"))


def units_asked(config: DictConfig, command: str) -> set[str]:
    """The parts of a configuration that a command reads: top-level keys, and keys of `paths` one by one.

    What is shared by all commands is read only where an interpolation leads there.
    """
    held = cast("dict[str, Any]", OmegaConf.to_container(config, resolve=False))
    shared = {*SHARED} - {*READ_AS_THEY_ARE.get(command, ())}
    waiting = [name for name in held if name not in shared]
    asked: set[str] = set()
    while waiting:
        unit = waiting.pop()
        if unit in asked:
            continue
        asked.add(unit)
        node: Any = held
        for part in unit.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        waiting += [_unit(key) for key in REFERENCE.findall(str(node))]
    return asked


def _unit(key: str) -> str:
    parts = key.split(".")
    return ".".join(parts[:2]) if parts[0] == "paths" else parts[0]


def check_steps(steps: Sequence[Planned]) -> None:
    """Hold the steps to their settings and to each other.

    Raises:
        SettingError: a setting is none, two steps do not go together, or what one reads is nowhere.
        PublishError: what one makes cannot be published.
    """
    for step in steps:
        if step.config is None:
            continue
        try:
            check_chunk(step.config)
            check_settings(step.config)
            _check_alone(step)
        except SettingError as error:
            raise SettingError(f"step {step.name!r}: {error}") from error
        if step.command == TRAIN and not step.if_missing:
            for name in step.products:
                check_publishable(name)
    for one, other in itertools.combinations(steps, 2):
        if both := {*one.products} & {*other.products}:
            raise SettingError(f"steps {one.name!r} and {other.name!r} both make {both.pop()}; give one another name")
        if other.reads and one.name in other.reads:
            _check_pair(one, other)


def _check_alone(step: Planned) -> None:
    """What a command would find out by itself, but after hours of the steps before."""
    config = step.config
    assert config is not None
    if step.command == TRAIN:
        require_devices(config)
    asked = units_asked(config, step.command)
    num_stages, of_draft, stop = (
        OmegaConf.select(config, key)
        for key in ("quantizer.num_stages", "draft.num_stages", "decoding.decode.num_draft_stages")
    )
    if not {"draft", "quantizer"} <= asked or num_stages is None:
        return
    for key, value in (("draft.num_stages", of_draft), ("decoding.decode.num_draft_stages", stop)):
        if value is not None and value > num_stages:
            raise SettingError(
                f"{key} is {value}, and the tokenizer has quantizer.num_stages={num_stages}; give {key}={num_stages}, "
                "or fewer, beside it"
            )
    layers = OmegaConf.select(config, "model.architecture.llm.num_hidden_layers")
    points = OmegaConf.select(config, "draft.layer")
    for point in [points] if isinstance(points, int) else []:
        if layers is not None and not 1 <= point <= layers:
            raise SettingError(f"draft.layer is {point}, and model={config.model.name} has layers 1..{layers}")


def _check_pair(maker: Planned, reader: Planned) -> None:
    """See that a step and one that reads what it makes agree on what they share.

    Raises:
        SettingError: they do not.
    """
    if maker.config is None or reader.config is None:
        return
    asked = units_asked(maker.config, maker.command) & units_asked(reader.config, reader.command)
    ours, theirs = (
        {key: _value(config, key) for key in SAME if key.partition(".")[0] in asked}
        for config in (maker.config, reader.config)
    )
    if different := differences(ours, theirs):
        raise SettingError(
            f"step {reader.name!r} reads what {maker.name!r} makes, and they differ in {told(different)}; "
            "give both the same"
        )


def _value(config: DictConfig, key: str) -> Any:
    value = OmegaConf.select(config, key)
    return json_types(OmegaConf.to_container(value, resolve=True)) if OmegaConf.is_config(value) else value


def dataset_dir(config: Any) -> Path:
    """Folder of a configuration's data set."""
    return Path(config.data.root) / config.data.name / config.data.version
