"""--help of every command that Hydra configures, as someone sees it who has read nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest

from rsd.commands.usage import check_choices, first_comment, read_groups, usage_page
from rsd.errors import SettingError

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
SCRIPTS = {
    "train.py": "train",
    "eval.py": "eval",
    "scripts/collect_demos.py": "collect",
    "scripts/replay_demos.py": "replay_demos",
    "scripts/cache_hidden_states.py": "cache",
    "scripts/doctor.py": "doctor",
    "scripts/inspect_data.py": "inspect",
    "scripts/diagnose.py": "diagnose",
    "scripts/serve_policy.py": "serve",
}
WITHOUT_WAITING = """
import runpy, sys
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    assert not {"torch", "scipy.stats"} & set(sys.modules)
"""


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_a_page_and_waits_for_no_large_package(script):
    code = WITHOUT_WAITING.replace("sys.argv[0]", f"{script!r}")
    result = subprocess.run([sys.executable, "-c", code, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and result.stderr == ""
    assert result.stdout == usage_page(CONF / f"{SCRIPTS[script]}.yaml") + "\n"


@pytest.mark.parametrize("name", SCRIPTS.values())
def test_a_page_says_what_choices_values_examples_and_places(name):
    page = usage_page(CONF / f"{name}.yaml")
    lines = page.splitlines()
    assert lines[0].endswith(".") and len(lines) < 95
    assert 2 <= sum(line.startswith("  python ") and "=…" not in line for line in lines) <= 6
    has_default = name != "diagnose"  # of a run's folder the run's own data
    assert "outputs/runs" in page and ("[libero_spatial]" in page) == has_default and "  chunk=8 " in page
    assert not any(word.startswith("_") for word in page.split()), "private choices are listed"


def test_the_page_of_training_lists_the_phases_with_their_first_lines():
    page = usage_page(CONF / "train.yaml")
    for phase in (CONF / "phase").glob("*.yaml"):
        line = first_comment(phase)
        assert f"\n  {phase.stem} " in page and " ".join(line.split()[:4]) in page
    assert "\n  python train.py phase=… [GROUP=CHOICE …] [KEY=VALUE …]\n" in page
    assert "  outputs/runs/<phase>/DATE_TIME" in page


def test_every_group_of_a_command_is_on_its_page():
    """But for folders, and what is fixed by the command."""
    for name in SCRIPTS.values():
        listed = {group.name for group in read_groups(CONF / f"{name}.yaml")}
        defaults = (CONF / f"{name}.yaml").read_text().split("\ndefaults:\n")[1].split("\n\n")[0]
        there = {line.split(":")[0].removeprefix("  - ") for line in defaults.splitlines() if ":" in line}
        fixed = {"paths", "hidden_states@cache", "phase@phases.rfsq", "phase@phases.oft", "override hydra/callbacks"}
        assert there - listed <= fixed


def test_the_first_line_of_every_choice_says_what_it_is():
    """Only an experiment begins with its command."""
    for group in {group.name for name in SCRIPTS.values() for group in read_groups(CONF / f"{name}.yaml")}:
        for file in (CONF / group).glob("[!_]*.yaml"):
            line = first_comment(file)
            assert line and (group == "experiment" or not line.startswith("python")), file


def test_a_required_choice_is_asked_for_in_one_line(tmp_path):
    (tmp_path / "size").mkdir()
    for name in ("small", "large", "_shared"):
        (tmp_path / "size" / f"{name}.yaml").write_text(f"# A {name} one\n")
    config = tmp_path / "root.yaml"
    config.write_text("# Make one.\n# python make.py size=small\ndefaults:\n  - size: ???  # how large:\n\nhydra: {}\n")
    with pytest.raises(SettingError, match=r"^choose a size: size=large size=small; --help says what each of them is$"):
        check_choices(config, ["seed=1", "-m"])
    for arguments in (["size=huge"], ["-m", "size=small,huge"]):
        with pytest.raises(
            SettingError, match=r"^there is no size 'huge'; choose a size: size=large size=small; --help"
        ):
            check_choices(config, arguments)
    passed = (["size=small"], ["-m", "size=small,large"], ["-m", "size=glob(*)"], ["size=_shared"], ["experiment=all"])
    for arguments in (*passed, ["--cfg", "job"], ["-cn", "b"], ["size=mine", "hydra.searchpath=[conf]"]):
        check_choices(config, arguments)


@pytest.mark.parametrize(
    ("name", "typed", "said"),
    [
        (
            "train",
            "logger=null",
            "logger is null, which is no choice; choose a logger: logger=csv logger=tensorboard logger=trackio "
            "logger=wandb; --help",
        ),
        (
            "train",
            "trainer=",
            "trainer is '', which is no choice; choose a trainer: trainer=cpu trainer=ddp trainer=finetune ",
        ),
        ("train", "phase=null", "phase is null, which is no choice; choose a phase: phase=correction phase=draft "),
        (
            "train",
            "paths=null",
            "paths is null, which is no choice; choose a paths: paths=default paths=scratch; --help",
        ),
        ("train", "hydra/launcher=null", "hydra/launcher is null, which is no choice; choose a hydra/launcher"),
        ("train", "experiment=null", "experiment is null, which is no choice; leave out experiment=null for none, or "),
        (
            "doctor",
            "model=null",
            "model is null, which is no choice; leave out model=null for none, or choose a model: ",
        ),
        ("cache", "hidden_states@cache=null", "hidden_states is null, which is no choice; choose a hidden_states: "),
        *(("train", typed, f"{typed} names no setting before its =") for typed in ("=3", "+=3", "~=3", "@=1")),
        *(
            ("train", typed, f"{group} is {one}, expected one choice; ")
            for typed, group, one in (
                ("phase=1", "phase", "1"),
                ("quantizer=true", "quantizer", "true"),
                ("data=1.5", "data", "1.5"),
                ("experiment=1", "experiment", "1"),
                ("experiment=[1]", "experiment", "[1]"),
                ("hydra/launcher=0", "hydra/launcher", "0"),
                ("hydra=3", "hydra", "3"),
            )
        ),
        ("eval", "decoding=[]", "decoding is [], expected one choice; choose a decoding: decoding=anytime "),
        (
            "train",
            "phase=[rfsq,oft]",
            "phase is ['rfsq', 'oft'], expected one choice; choose a phase: phase=",
        ),
        ("eval", "ablation=null,zero_proprio", "ablation is null, which is no choice; leave out ablation=null,zero_"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--cfg", "job"]])
def test_null_or_several_are_no_choice_of_a_group(name, typed, said, more):
    with pytest.raises(SettingError) as refused:
        check_choices(CONF / f"{name}.yaml", ["phase=rfsq", typed, *more])
    assert str(refused.value).startswith(said) and str(refused.value).count("\n") == 0


@pytest.mark.parametrize(
    "typed", ["experiment=[released,tokenizer_transform]", "policy=null", "phase.reads=null", "~logger"]
)
def test_several_experiments_are_and_null_is_a_value_of_what_is_no_group(typed):
    check_choices(CONF / "train.yaml", ["phase=rfsq", typed])


def test_comments_that_are_directives_are_passed_over(tmp_path):
    (tmp_path / "a.yaml").write_text("# @package _global_\n# What it is\n# more\n")
    (tmp_path / "b.yaml").write_text("name: b  # nothing said\n")
    assert [first_comment(tmp_path / name) for name in ("a.yaml", "b.yaml")] == ["What it is", ""]


def test_a_choice_that_another_group_would_take_over_exists_there():
    with pytest.raises(SettingError, match=r"^env=replay has no data of its own; choose a data: data=libero_10 "):
        check_choices(CONF / "eval.yaml", ["env=replay"])
    for more in (["data=libero_goal"], ["experiment=released"]):
        check_choices(CONF / "eval.yaml", ["env=replay", *more])
