"""A stored run is data: what it may say to the command that continues it, and what it may not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from rsd.commands.run_folder import check_command
from rsd.commands.stored import check_stored
from rsd.runs import RunError, read_overrides, read_provenance, read_yaml, resume_arguments

CONFIG = Path(__file__).parents[2] / "conf" / "train.yaml"


def refuse(tmp_path, override, typed=()):
    (tmp_path / "overrides.yaml").write_text(json.dumps([override]))
    check_stored(tmp_path, CONFIG, [f"resume={tmp_path}", *typed])


@pytest.mark.parametrize(
    "override",
    [
        "phase=rfsq", "env=libero_spatial", "tasks=[0,1]", "+stopping.rate=0.9", "seed=7", "policy=../my released",
        "policy='/a b/c=d'", "resume_not=1", "phase.module.learning_rate=1e-3", "~logger", "checks=1",
        "~policy.delay_s", "data.name=check",
        "num_trials=${protocol.num_trials}", "data.name='naïve'", "experiment=null",
        "++paths.root=/tmp/x", "decoding.decode.gate.threshold=inf",
        "model.architecture={llm: {hidden_size: 32}}", "chunk=12",
    ],
)  # fmt: skip
def test_choices_and_plain_values_pass(tmp_path, override):
    refuse(tmp_path, override)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("check._target_=rsd.commands.pipeline.run_step", "names what is to be called"),
        ("+check={_target_: os.system, command: ls}", "names what is to be called"),
        ("+check={a: [{_target_: os.system}]}", "names what is to be called"),
        ("+check={'_target_': os.system}", "which is no override"),
        ("phase.module._partial_=true", "names what is to be called"),
        ("policy._target_=mine.Policy", "names what is to be called"),
        ("hydra.run.dir=/tmp/elsewhere", "a setting of Hydra"),
        ("+hydra/launcher=joblib", "a setting of Hydra"),
        ("hydra/job_logging=none", "a setting of Hydra"),
        ("+phase@hydra.launcher=rfsq", "a setting of Hydra"),
        ("resume=/elsewhere", "a setting of Hydra or of the command line"),
        ("~phase.check", "which changes what is checked before the start"),
        ("~check", "which changes what is checked before the start"),
        ("~env.check.suite", "which changes what is checked before the start"),
        ("~phase.check=null", "which changes what is checked before the start"),
        ("~phase.reads", "which changes what is checked before the start"),
        ("phase.reads={}", "which changes what is checked before the start"),
        ("++phase.reads.data=null", "which changes what is checked before the start"),
        ("check=null", "which changes what is checked before the start"),
        ("phase.check=null", "which changes what is checked before the start"),
        ("++env.check={}", "which changes what is checked before the start"),
        ("phase.check.checkpoint=/there", "which changes what is checked before the start"),
        ("+phase@check=rfsq", "which changes what is checked before the start"),
        ("++env={check: null}", "which changes what is checked before the start"),
        ("seed=1,2", "a sweep"),
        ("seed=range(1,3)", "a sweep"),
        ("data.name=${oc.env:HOME}", "asks the environment"),
        ("data.name='${oc.env:HOME}'", "asks the environment"),
        ("data.name=x${oc.${b}:HOME}", "which is no override"),
        ("data={name: ['${oc.env:HOME}']}", "asks the environment"),
        ("phase=../../tmp/evil", "whose choice lies elsewhere"),
        ("phase=/tmp/evil", "whose choice lies elsewhere"),
        ("phase=[rfsq,/tmp/evil]", "whose choice lies elsewhere"),
        ("+../../tmp/evil=cfg", "which is no override|whose key is none"),
        ("--config-dir=/tmp/evil", "which is no override|whose key is none"),
        ("-m", "which is no override|whose key is none"),
        ("", "which is no override"),
        ("x={" * 2000, "which is no override"),
    ],
)  # fmt: skip
def test_everything_else_is_refused_by_name(tmp_path, override, problem):
    with pytest.raises(RunError, match=problem) as error:
        refuse(tmp_path, override)
    line = str(error.value)
    assert str(tmp_path / "overrides.yaml") in line and "\n" not in line and ": ;" not in line


def test_what_is_typed_again_is_the_users_own(tmp_path):
    for override in ("+check._target_=mine.check", "~phase.check", "phase.check=null"):
        refuse(tmp_path, override, typed=[override])


@pytest.mark.parametrize(
    ("override", "sees"),
    [
        ("~phase.check", lambda cfg: "check" not in cfg.phase),
        ("+phase.mine=1", lambda cfg: cfg.phase.mine == 1),
        ("phase.check=null", lambda cfg: cfg.phase.check is None),
    ],
)
def test_what_is_typed_again_is_what_hydra_takes(tmp_path, override, sees):
    """It takes a deletion and an addition once."""
    (tmp_path / "overrides.yaml").write_text(json.dumps(["phase=head", override, "seed=3"]))
    typed = resume_arguments([override, f"resume={tmp_path}"])
    with initialize_config_dir(str(CONFIG.parent), version_base="1.3"):
        assert sees(compose("train", overrides=[one for one in typed if not one.startswith("hydra.")]))


@pytest.mark.parametrize(
    "content",
    ["", "null", "3", "a: 1", "[1]", "[null]", "[[a]]", "[a", "- &a x\n- *a", "!!python/object/apply:os.system [ls]",
     "[" * 5000, "- ${", "\x00"],
)  # fmt: skip
def test_a_damaged_list_is_one_line(tmp_path, content):
    (tmp_path / "overrides.yaml").write_text(content)
    with pytest.raises(RunError) as error:
        read_overrides(tmp_path)
    assert str(tmp_path / "overrides.yaml") in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["x: " + "{" * 100_000, "x: [" + "y," * 70_000 + "]", "? " * 2000])
def test_a_file_that_keeps_the_parser_busy_is_refused_before_it_is_parsed(tmp_path, content):
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(RunError, match=r"config.yaml (is nested|has 140005 bytes)"):
        read_yaml(tmp_path / "config.yaml")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("!!python/object/apply:os.system [ls]", "cannot be read"),
        ("phase: ${oc.env:HOME", "cannot be read"),
        ("phase: 1\nphase: 2", "duplicate key"),
        ("!!set {a, b}", "cannot be read"),
        ("[phase]", r"it is \['phase'\], expected an object"),
        ("a: &a [x]\nb: *a", "refers to parts of itself"),
        ("phase: " + "[" * 3000, "is nested more than 100 deep"),
        (b"\xff\xfe", "cannot be read"),
        ("", r"config.yaml is damaged \(it is empty, 0 bytes\); restore it as it was written"),
        ("a: 1", r"has none of \['phase', 'plan'\], so it is no run's"),
    ],
)
def test_whose_run_it_is_is_read_from_data(tmp_path, content, problem):
    (tmp_path / "config.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RunError, match=problem) as error:
        check_command([f"resume={tmp_path}"], CONFIG)
    assert str(tmp_path / "config.yaml") in str(error.value) and "\n" not in str(error.value)


def test_no_list_at_all(tmp_path):
    with pytest.raises(RunError, match=r"overrides.yaml does not exist, so there is no run"):
        read_overrides(tmp_path)


@pytest.mark.parametrize(
    ("content", "entry"),
    [
        ("phase: {a: '${oc.env:SECRET}'}", "'phase.a' is '${oc.env:SECRET}'"),
        ("phase: 1\na: [1, {b: ['x${unused:PWNED}']}]", "'a.1.b.0' is 'x${unused:PWNED}'"),
        ('phase: "\\u0024{plan}"', "'phase' is '${plan}'"),
        ("phase: '\\${plan}'", "'phase' is '\\\\${plan}'"),
    ],
)
def test_a_stored_config_refers_to_nothing(tmp_path, monkeypatch, content, entry):
    monkeypatch.setenv("SECRET", "abc")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(content)
    for read in (lambda: read_yaml(tmp_path / "config.yaml"), lambda: check_command([f"resume={tmp_path}"], CONFIG)):
        with pytest.raises(RunError) as error:
            read()
        assert f"{tmp_path / 'config.yaml'}: entry {entry}, expected a value" in str(error.value)
    assert "abc" not in str(error.value) and [one.name for one in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({}, "lacks entry 'starts'"),
        ({"starts": None}, "entry 'starts' is None, expected a list"),
        ({"starts": [1]}, "entry 'starts.0' is 1, expected an object"),
        ({"starts": [], "layout": "2"}, "entry 'layout' is '2', expected a whole number"),
        ({"starts": [], "choices": []}, r"entry 'choices' is \[\], expected an object"),
    ],
)
def test_a_damaged_provenance_is_named(tmp_path, record, problem):
    (tmp_path / "provenance.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match=f"provenance.json.* {problem}"):
        read_provenance(tmp_path / "provenance.json")
