"""The steps of a pipeline: what was typed reaches those that it belongs to, and what is wrong is told before the first.

Composing takes most of the time, so the small pipelines have two steps, and the whole one is composed once.
"""

from pathlib import Path

import pytest

from rsd.commands.chain import check_reads, place_checkpoints
from rsd.commands.step_content import digits_of
from rsd.commands.steps import check_steps, plan_steps, read_file
from rsd.errors import SettingError

CONF = Path(__file__).parents[2] / "conf"
NAMES = ["demonstrations", "tokenizer", "base", "cache", "head", "draft", "l1", "speculative", "compare"]
SMALL = """
overrides: [quantizer=dct_d3]
steps:
  tokenizer: {command: train.py, arguments: [phase=rfsq]}
  draft: {command: train.py, arguments: [phase=draft, phase.max_steps=5], reads: [tokenizer]}
"""


@pytest.fixture
def conf(tmp_path) -> Path:
    """conf/ with an experiment of its own: train.yaml's path."""
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    for path in CONF.iterdir():
        if path.name != "experiment":
            (tmp_path / "conf" / path.name).symlink_to(path)
    (tmp_path / "conf" / "experiment" / "small.yaml").write_text(SMALL)
    return tmp_path / "conf" / "train.yaml"


@pytest.fixture(scope="module")
def whole():
    """The pipeline that comes along, with something typed for many of its steps."""
    typed = ["quantizer=rfsq_d2", "phase.max_steps=7", "draft.width=64", "chunk=16", "num_episodes=3", "num_trials=2"]
    typed += ["steps.head.phase.max_steps=9", "paths.root=elsewhere"]
    return {step.name: step for step in plan_steps(CONF / "train.yaml", "pipeline_small", typed)}


def those_with(steps, override):
    return [name for name, step in steps.items() if override in step.arguments]


@pytest.mark.parametrize("path", sorted((CONF / "experiment").glob("pipeline_*.yaml")), ids=lambda path: path.stem)
def test_the_steps_of_every_pipeline_compose_and_find_what_they_read(path, tmp_path):
    steps = plan_steps(CONF / "train.yaml", path.stem, [])
    place_checkpoints(steps, tmp_path, [])
    check_reads(steps)
    assert all(name in [step.name for step in steps] for step in steps for name in step.reads)


def test_an_override_reaches_the_steps_that_ask_for_its_key(whole):
    assert list(whole) == NAMES
    evaluations = ["l1", "speculative"]
    assert those_with(whole, "quantizer=rfsq_d2") == ["tokenizer", "head", "draft", *evaluations]
    assert those_with(whole, "quantizer=dct_d3") == []  # the file's own
    assert those_with(whole, "phase.max_steps=7") == ["tokenizer", "base", "draft"]
    assert those_with(whole, "phase.max_steps=9") == ["head"]
    assert those_with(whole, "draft.width=64") == ["draft", *evaluations]
    assert those_with(whole, "chunk=16") == NAMES[:-1]
    assert those_with(whole, "num_episodes=3") == ["demonstrations"]
    assert those_with(whole, "num_trials=2") == evaluations
    assert those_with(whole, "paths.root=elsewhere") == NAMES[:-1]
    assert whole["head"].config.trainer.max_steps == 9 and whole["draft"].config.trainer.max_steps == 7
    assert whole["draft"].config.phase.module.width == 64


def test_every_step_reads_what_is_there_or_what_one_before_makes(whole, tmp_path):
    steps = list(whole.values())
    place_checkpoints(steps, tmp_path, [])
    check_reads(steps)
    with pytest.raises(SettingError, match=r"step 'head' reads its tokenizer at .*rfsq_d2.*, where there is nothing"):
        check_reads([step for step in steps if step.name != "tokenizer"])
    assert whole["head"].products[0].is_relative_to(tmp_path / "checkpoints")


def test_steps_of_training_do_not_reach_a_tokenizer_that_is_fitted(conf):
    steps = {step.name: step for step in plan_steps(conf, "small", ["trainer.max_steps=7"])}
    assert those_with(steps, "trainer.max_steps=7") == ["draft"]
    assert steps["tokenizer"].config.trainer.max_steps == 0 and steps["draft"].config.trainer.max_steps == 7


def test_a_step_is_known_by_what_reaches_it_and_not_by_places(conf):
    elsewhere = ["paths.root=elsewhere", "logger=tensorboard", "seed=0"]
    digits, moved, other = (
        {step.name: digits_of(step, {}) for step in plan_steps(conf, "small", typed)}
        for typed in ([], elsewhere, ["draft.num_stages=1"])
    )
    assert digits == moved and len(set(digits.values())) == 2
    assert [name for name in digits if digits[name] == other[name]] == ["tokenizer"]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("quantizer.num_stages=1", "step 'draft': draft.num_stages is 2, and the tokenizer has quantizer.num_stages=1"),
        ("steps.tokenizer.chunk=16", "step 'draft' reads what 'tokenizer' makes, and they differ in chunk: 16 → 8"),
        ("draft.width=-1", "step 'draft': draft.width is -1"),
        ("draft.layer=9", "draft.layer is 9, and model=oft_tiny has layers 1..4"),
        ("quantizer=nope", "there is no quantizer 'nope'"),
        ("phase=head", "the pipeline decides on phase"),
        ("steps.head.resume=x", "the pipeline decides on resume"),
        ("steps.tokenizer.hydra.run.dir=x", "the pipeline decides on hydra.run.dir"),
        ("steps.head.reads=[cache]", "steps.head.reads=[cache]: reads stands in the pipeline's file alone"),
        ("steps.head.debug=fast", "a trial publishes nothing, and the steps after it would find nothing"),
        ("debug=fast", "debug=fast: a trial publishes nothing"),
        ("nobodys.key=1", "nobodys.key=1 belongs to no step"),
        ("steps.nobody.seed=1", "expected steps.NAME.KEY=VALUE with NAME one of tokenizer, draft"),
        ("seed=1,2", "a pipeline is no sweep"),
    ],
)
def test_what_is_wrong_is_told_before_the_first_step(conf, typed, said):
    with pytest.raises(SettingError) as told:
        check_steps(plan_steps(conf, "small", [typed]))
    assert said in str(told.value)


def test_a_comparison_takes_no_overrides():
    conf = Path(__file__).parents[2] / "conf" / "train.yaml"
    with pytest.raises(SettingError, match=r"steps.compare.margin=0.1: scripts/compare.py takes no KEY=VALUE"):
        plan_steps(conf, "pipeline_small", ["steps.compare.margin=0.1"])


def test_a_choice_that_the_steps_make_each_is_made_for_one(conf):
    with pytest.raises(SettingError, match=r"choose for one of them: steps\.one.trainer=cpu"):
        text = SMALL.replace("tokenizer:", "one:").replace("[tokenizer]", "[one]")
        text = text.replace("phase=rfsq", "phase=rfsq, trainer=cpu").replace("phase=draft", "phase=draft, trainer=gpu")
        (conf.parent / "experiment" / "small.yaml").write_text(text)
        plan_steps(conf, "small", ["trainer=cpu"])


@pytest.mark.parametrize(
    ("was", "said"),
    [
        ("reads: [tokenizer]", "step 'draft' reads ['other'], expected steps before it: ['tokenizer']"),
        ("command: train.py", "step 'tokenizer' has the command 'rm', expected one of ['train.py'"),
        ("overrides: [quantizer=dct_d3]", "entry 'overrides' is"),
    ],
)
def test_a_file_that_is_no_pipeline_is_refused(tmp_path, was, said):
    becomes = {"r": "reads: [other]", "c": "command: rm", "o": "overrides: 3"}[was[0]]
    (tmp_path / "small.yaml").write_text(SMALL.replace(was, becomes, 1))
    with pytest.raises(SettingError) as told:
        read_file(tmp_path / "small.yaml")
    assert said in str(told.value)


def test_what_is_there_already_is_taken_as_it_is(conf, tmp_path):
    (conf.parent / "experiment" / "small.yaml").write_text(
        SMALL.replace("[phase=rfsq]", "[phase=rfsq], if_missing: true")
    )
    root, pipeline = f"paths.root={tmp_path}", tmp_path / "pipeline"
    tokenizer, draft = plan_steps(conf, "small", [root])
    place = tokenizer.products[0]
    assert place == tmp_path / "checkpoints/tokenizer/dct_d3-libero_spatial_no_noops-t8"
    place.mkdir(parents=True)
    place_checkpoints([tokenizer, draft], pipeline, [])
    assert tokenizer.is_given and draft.config.phase.module.tokenizer_checkpoint == str(place)
    (pipeline / "tokenizer").mkdir(parents=True)  # the pipeline has begun one of its own
    tokenizer, draft = plan_steps(conf, "small", [root])
    place_checkpoints([tokenizer, draft], pipeline, [])
    assert not tokenizer.is_given and str(place) not in " ".join(draft.arguments)
