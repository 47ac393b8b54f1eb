"""Law 8: every choice of every group composes, resolves, and names things that exist."""

import itertools
import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from rsd.commands.settings import check_settings
from rsd.commands.usage import is_pipeline
from rsd.decoding import Certificate, Levels
from rsd.decoding.accept import exact
from rsd.errors import SettingError

CONF = Path(__file__).parents[1] / "conf"
PHASES = {  # with the least that each needs
    "rfsq": [],
    "oft": [],
    "oft_gpu": [],
    "tokens": ["visual_tokens=learned"],
    "head": [],
    "draft": [],
    "correction": [],
    "oft_lora": ["model=oft_spatial"],
    "openvla_lora": ["model=openvla_spatial", "chunk=1"],
    "oft_full": ["model=oft_spatial"],
    "openvla_full": ["model=openvla_spatial", "chunk=1"],
}
RECIPES = ("finetune_openvla", "train_vla")  # experiments that are a whole training, phase and trainer with it
STUDIES = ("study", "study_released")  # experiments of eval.py alone: they choose its groups
READERS = {  # group of train.py to the phases that read it
    "data": ("rfsq", "oft", "head"),
    "visual_tokens": ("head", "draft"),
    "text": ("oft", "head"),
    "model": ("head",),  # fine-tuning of every published model: tests/training/test_finetune.py
    "quantizer": ("rfsq", "draft"),
    "draft": ("draft",),
    "trainer": ("oft",),
    "logger": ("rfsq",),
    "experiment": ("rfsq", "head"),
    "debug": ("rfsq", "oft"),
}
EVAL_GROUPS = (
    "env",
    "protocol",
    "data",
    "model",
    "text",
    "visual_tokens",
    "quantizer",
    "draft",
    "target",
    "decoding",
    "async",
    "ablation",
    "logger",
    "stopping",
    "experiment",
)


NEEDED = {  # beside a choice
    "env=replay": ["data=libero_spatial"],
    "env=widowx": ["protocol=openvla_bridge"],
    "data=rlds": ["data.name=insulator"],
    "protocol=openvla_bridge": ["env=widowx"],
}


def choices(group: str) -> list[str]:
    """Names of a group's choices; a leading underscore marks what they share."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml") if not path.stem.startswith("_"))


def pipelines() -> list[str]:
    """Experiments that are no configuration of one command, but of several steps: tests/commands/test_steps.py."""
    return [name for name in choices("experiment") if is_pipeline(CONF / "train.yaml", name)]


def alone(group: str) -> list[str]:
    """Choices of a group that one command composes."""
    return [name for name in choices(group) if group != "experiment" or name not in pipelines()]


def composed(name: str, overrides: list[str]) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(name, overrides)
    check_settings(cfg)
    if name in ("train", "eval"):
        OmegaConf.resolve(cfg)  # the scripts have no quantizer, and so no paths of tokenizers
        missing = OmegaConf.missing_keys(cfg)
        assert not missing, missing
    return cfg


def to_dict(node: DictConfig) -> dict:
    return OmegaConf.to_container(node, resolve=True)


def targets(node):
    """All _target_ names in a config."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield node["_target_"]
        for value in node.values():
            yield from targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from targets(value)


def check(node: DictConfig) -> None:
    names = set(targets(to_dict(node)))
    assert names
    for name in names:
        assert callable(get_object(name)), name


@pytest.mark.parametrize("phase", PHASES)
def test_phases(phase):
    check(composed("train", [f"phase={phase}", *PHASES[phase]]))


@pytest.mark.parametrize(
    ("phase", "group", "choice"),
    [
        (phase, group, choice)
        for group, phases in READERS.items()
        for phase in phases
        for choice in alone(group)
        if choice not in (*RECIPES, *STUDIES, "study_readouts")
    ],
)
def test_train(phase, group, choice):
    check(composed("train", [f"phase={phase}", f"{group}={choice}", *NEEDED.get(f"{group}={choice}", [])]))


@pytest.mark.parametrize("choice", ["oft_tiny", "oft_small", "oft_base"])
def test_base_models_that_are_trained_from_scratch(choice):
    check(composed("train", ["phase=oft", f"model={choice}"]))


@pytest.mark.parametrize("choice", RECIPES)
def test_recipes_of_whole_trainings(choice):
    """The published values: openvla @ c8f03f4, prismatic/conf/vla.py."""
    cfg = composed("train", [f"experiment={choice}"])
    check(cfg)
    assert (cfg.phase.name, cfg.model.name, cfg.chunk) == ("openvla_full", "openvla_7b", 1)
    module, trainer = cfg.phase.module, cfg.trainer
    assert (module.learning_rate, module.weight_decay, module.decay_step, module.warmup_steps) == (2e-5, 0, None, 0)
    assert (cfg.phase.datamodule.batch_size, trainer.gradient_clip_val, trainer.precision) == (32, 1.0, "bf16-mixed")
    assert module.rank is None and module.gradient_checkpointing and "Sharded" in trainer.strategy._target_
    assert module.center_crop == module.image_augmentation == (choice == "finetune_openvla")


@pytest.mark.parametrize(
    ("group", "choice"),
    [(group, name) for group in EVAL_GROUPS for name in alone(group) if name not in (*RECIPES, "study_readouts")],
)
def test_eval(group, choice):
    check(composed("eval", [f"{group}={choice}", *NEEDED.get(f"{group}={choice}", [])]))


@pytest.mark.parametrize("choice", [name for name in choices("decoding") if name not in ("exit", "early_exit")])
def test_every_full_decoding_behind_an_early_exit(choice):
    cfg = composed("eval", ["decoding=early_exit", f"decoding@decoding.full={choice}"])
    check(cfg)
    assert cfg.decoding.decode.full == cfg.decoding.full.decode


@pytest.mark.parametrize("choice", choices("accept"))
def test_every_rule_of_acceptance_reaches_the_decoding(choice):
    from hydra.utils import instantiate

    cfg = composed("eval", ["decoding=speculative", f"accept={choice}"])
    check(cfg)
    expected = {"exact": exact, "levels": Levels(r=1), "certificate": Certificate()}[choice]
    assert instantiate(cfg.decoding.decode).accept == expected


def test_a_rule_of_acceptance_that_nobody_reads_is_refused():
    composed("eval", ["decoding=temporal", "decoding@decoding.full=speculative", "accept=levels"])
    with pytest.raises(SettingError, match="accept=levels is given, and decoding=l1 accepts no tokens; choose"):
        composed("eval", ["decoding=l1", "+accept=levels"])


def test_a_policy_folder_for_the_composed_policy():
    check(composed("eval", ["policy=released"]))


def test_every_group_is_composed_somewhere():
    """A new folder of conf/ has to be named above."""
    groups = {path.name for path in CONF.iterdir() if path.is_dir()}
    elsewhere = {"accept", "composed", "demonstrator", "hidden_states", "hydra", "paths", "phase", "robot"}
    assert groups == {*READERS, *EVAL_GROUPS} | elsewhere


@pytest.mark.parametrize(("name", "node"), [("collect", "recipe"), ("cache", "cache"), ("replay_demos", "reader")])
def test_scripts(name, node):
    check(composed(name, [])[node])


@pytest.mark.parametrize("name", ["cache", "diagnose", "doctor", "eval", "serve", "train"])
@pytest.mark.parametrize("choice", choices("visual_tokens"))
def test_visual_tokens_reach_the_base_model(name, choice):
    more = {
        "train": ["phase=head"],
        "doctor": ["model=oft_small"],
        "diagnose": ["model=oft_small", "data=libero_spatial"],
    }.get(name, [])
    backbone = composed(name, [f"visual_tokens={choice}", *more]).model.backbone
    expected = {"all": "all_tokens", "grid": "Grid", "random": "Random", "learned": "Learned"}[choice]
    assert to_dict(backbone)["visual_tokens"]["_target_"] == f"rsd.models.openvla.visual_tokens.{expected}"


@pytest.mark.parametrize("choice", choices("demonstrator"))
def test_demonstrators(choice):
    check(composed("collect", [f"demonstrator={choice}"])["recipe"])


@pytest.mark.parametrize("name", ["eval", "doctor", "serve"])
def test_the_released_policy_is_chosen_as_a_whole(name):
    cfg = composed(name, ["experiment=released", "decoding=speculative"])
    for part in ("base", "tokenizer", "head", "draft"):
        assert (CONF.parent / cfg.paths[part]).is_dir(), part
    assert (cfg.model.name, cfg.quantizer.name) == ("oft_small", "dct_d3")


def test_data_choices_carry_suite_and_unnorm_key_together():
    for choice in choices("data"):
        if f"data={choice}" in NEEDED or choice in ("rlds", "mixture", "widowx"):  # of no suite
            continue
        data = composed("train", ["phase=rfsq", f"data={choice}"]).data
        assert data.suite == choice and data.name == data.unnorm_key == f"{choice}_no_noops"


@pytest.mark.parametrize("phase", ["rfsq", "oft", "oft_gpu", "oft_lora"])
def test_base_model_and_tokenizer_take_the_bounds_of_the_data(phase):
    for data, bounds in (("libero_spatial", "quantiles"), ("libero_suites", "extremes")):
        cfg = composed("train", [f"phase={phase}", f"data={data}", "model=openvla_7b"])
        assert cfg.phase.datamodule.bounds == bounds


def test_quantizers_instantiate_at_both_chunk_lengths():
    from hydra.utils import instantiate

    for quantizer in choices("quantizer"):
        for length in (8, 16):
            cfg = composed("train", ["phase=rfsq", f"quantizer={quantizer}", f"chunk={length}"])
            tokenizer = instantiate(cfg.quantizer.tokenizer)(action_dim=7)
            assert tokenizer.code_shape.chunk_length == length
            assert tokenizer.code_shape.num_stages == cfg.quantizer.num_stages


def test_folders_that_are_named_by_the_second_are_nobody_elses():
    for path in CONF.glob("*.yaml"):
        hydra = OmegaConf.to_container(OmegaConf.load(path).hydra, resolve=False)
        for kind in {"run", "sweep"} & set(hydra):
            assert hydra[kind]["dir"].startswith("${unused:"), f"{path.name}: hydra.{kind}.dir"


@pytest.mark.parametrize("name", choices("experiment"))
def test_an_experiment_says_its_command_hardware_time_and_what_to_expect(name):
    """A labelled line each, in this order, at the head of the file; what it is for may follow."""
    lines = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()
    header = "\n".join(itertools.takewhile(lambda line: line.startswith("#"), lines))
    said = re.findall(r"^# (command|hardware|time|expected): (\S.*)$", header, re.M | re.I)
    told = {label.lower(): what for label, what in said}
    assert list(told) == ["command", "hardware", "time", "expected"]
    assert re.match(r"python (train|eval|scripts/\w+)\.py", told["command"]) and name in header
    assert re.search(r"\b[CG]PUs?\b", told["hardware"])
    assert re.search(r"\b(second|minute|hour|day)s?\b|\bnot measured\b", told["time"])


SEARCHES = {  # with the command that takes it, and the least that it needs
    "search_tokenizer": ("train", ["phase=rfsq"]),
    "search_draft": ("train", ["phase=draft", "quantizer=dct_d3"]),
    "search_gate": ("eval", []),
}


@pytest.mark.parametrize("choice", SEARCHES)
def test_every_corner_of_a_search_composes(choice):
    pytest.importorskip("optuna", minversion="4")  # extra sweep, and dev
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from rsd.commands.search import corners, distribution

    name, least = SEARCHES[choice]
    typed = [f"experiment={choice}", *least]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        sweeper = compose(name, typed, return_hydra_config=True).hydra.sweeper
    assert sweeper._target_ == "hydra_plugins.rsd_sweepers.Search" and len(sweeper.objectives) > 1
    parsed = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in sweeper.params.items()])
    space = {one.key_or_group: distribution(one) for one in parsed if one.is_sweep_override()}
    fixed = [one.input_line for one in parsed if not one.is_sweep_override()]
    for corner in corners(space):
        composed(name, [*typed, *fixed, *corner])


@pytest.mark.parametrize(("choice", "num_cells", "num_controls"), [("study", 16, 5), ("study_released", 16, 4)])
def test_every_cell_of_a_study_composes(choice, num_cells, num_controls):
    from rsd.commands.study import Study

    with initialize_config_dir(str(CONF), version_base="1.3"):
        settings = to_dict(compose("eval", [f"experiment={choice}"], return_hydra_config=True).hydra.sweeper)
    assert settings.pop("_target_") == "hydra_plugins.rsd_sweepers.Study"
    cells = Study(**settings).cells()
    assert [bool(cell["signs"]) for cell in cells] == [True] * num_cells + [False] * num_controls
    for cell in cells:
        cfg = composed("eval", [f"experiment={choice}", *cell["typed"]])
        assert cfg.num_trials == (10 if cell["signs"] else 3)
        assert cfg.paths.draft.endswith(f"{cfg.visual_tokens.suffix}-{cfg.model.backbone.dtype}-t8")
    changed = composed("eval", [f"experiment={choice}", *cells[-num_controls - 1]["typed"]])  # four of five factors
    horizon = changed.decoding.decode
    assert horizon.full._target_ == "rsd.decoding.L1" and horizon.num_steps == 8 and changed.delay == 2


def test_what_a_study_reads_is_what_its_readouts_are_published_as():
    train = composed("train", ["experiment=study_readouts", "phase=draft"])
    study = composed("eval", ["experiment=study"])
    assert train.phase.checkpoint == study.paths.draft and study.draft.layer in train.draft.layer
    check(train)


def test_every_search_is_tried():
    assert {name for name in choices("experiment") if name.startswith("search_")} == set(SEARCHES)


@pytest.mark.parametrize("name", ["train", "eval"])
def test_sweeps_go_on_unless_another_sweeper_is_chosen(name):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for typed, sweeper in (([], "hydra_plugins.rsd_sweepers.Grid"), (["hydra/sweeper=basic"], "BasicSweeper")):
            cfg = compose(name, [*typed, *(["phase=rfsq"] if name == "train" else [])], return_hydra_config=True)
            assert cfg.hydra.sweeper._target_.endswith(sweeper)
