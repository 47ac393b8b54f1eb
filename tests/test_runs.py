"""Run folders: first start, resume, and what is refused."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from rsd.locks import TakenError, hold, let_go, opened_here
from rsd.runs import (
    CONFIG_FILE,
    LAYOUT,
    PLACES,
    RunError,
    open_run,
    read_yaml,
    resume_arguments,
    resume_command,
    unused_folder,
)


def hydra_config(run_dir: Path, overrides: list[str]):
    run_dir.mkdir(exist_ok=True)
    return OmegaConf.create(
        {
            "runtime": {"output_dir": str(run_dir), "choices": {"model": "tiny", "hydra/launcher": "basic"}},
            "overrides": {"task": overrides},
        }
    )


def test_first_start_writes_config_overrides_and_provenance(tmp_path):
    cfg = OmegaConf.create({"resume": None, "model": {"name": "tiny"}, "title": "${model.name}!"})
    assert open_run(cfg, hydra_config(tmp_path, ["model=tiny"])) == tmp_path
    assert OmegaConf.load(tmp_path / CONFIG_FILE).title == "tiny!"
    provenance = json.loads((tmp_path / "provenance.json").read_text())
    assert provenance["choices"] == {"model": "tiny"}
    assert len(provenance["starts"]) == 1 and "torch" in provenance["starts"][0]["packages"]


@pytest.mark.parametrize("policy", ["released", {"_target_": "my.Policy"}])
def test_groups_that_a_given_policy_does_not_use_are_no_choices(tmp_path, policy):
    unused = ("composed", "model", "quantizer", "draft", "target", "decoding", "data")
    hydra = hydra_config(tmp_path, [])
    hydra.runtime.choices = dict.fromkeys(unused, "default") | {"env": "libero_goal"}
    open_run(OmegaConf.create({"resume": None, "policy": policy}), hydra)
    assert json.loads((tmp_path / "provenance.json").read_text())["choices"] == {"env": "libero_goal"}


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path):
    cfg = OmegaConf.create({"resume": None, "seed": 1})
    open_run(cfg, hydra_config(tmp_path, ["seed=1"]))
    with pytest.raises(RunError, match="already holds a run; continue it with resume="):
        open_run(cfg, hydra_config(tmp_path, ["seed=2"]))
    assert OmegaConf.to_container(OmegaConf.load(tmp_path / "overrides.yaml")) == ["seed=1"]


def test_resume_with_the_same_config_adds_a_start(tmp_path):
    open_run(OmegaConf.create({"resume": None, "seed": 1, "logger": {"mode": "a"}}), hydra_config(tmp_path, ["seed=1"]))
    resumed = OmegaConf.create({"resume": str(tmp_path), "seed": 1, "logger": {"mode": "b"}})
    open_run(resumed, hydra_config(tmp_path, ["seed=1"]))
    assert len(json.loads((tmp_path / "provenance.json").read_text())["starts"]) == 2


@pytest.mark.parametrize("threshold", [float("inf"), float("-inf"), float("nan")])
def test_numbers_that_json_has_no_words_for_are_kept_as_words(tmp_path, threshold):
    """A report holds the configuration, and an evaluation with threshold=inf would have ended without one."""
    for resume in (None, str(tmp_path)):
        open_run(OmegaConf.create({"resume": resume, "gates": [{"threshold": threshold}]}), hydra_config(tmp_path, []))
    config = read_yaml(tmp_path / CONFIG_FILE)
    assert json.loads(json.dumps(config, allow_nan=False))["gates"] == [{"threshold": str(threshold)}]


def test_resume_with_another_config_names_the_keys(tmp_path):
    open_run(OmegaConf.create({"resume": None, "a": {"b": 1, "c": 2}}), hydra_config(tmp_path, []))
    cfg = OmegaConf.create({"resume": str(tmp_path), "a": {"b": 3, "c": 2}, "d": 4})
    with pytest.raises(RunError, match=r"a\.b: 1 → 3; d: \(absent\) → 4"):
        open_run(cfg, hydra_config(tmp_path, []))


@pytest.mark.parametrize(("layout", "age"), [({}, "an earlier"), ({"layout": LAYOUT + 1}, "a later")])
def test_a_run_of_another_version_is_refused_by_name(tmp_path, layout, age):
    (tmp_path / "overrides.yaml").write_text("[]\n")
    record = {**layout, "choices": {}, "starts": [{"rsd": "0.1.0", "revision": "7eff0a3dbc71"}]}
    (tmp_path / "provenance.json").write_text(json.dumps(record))
    message = f"cannot resume {tmp_path}: it was begun by {age} version of rsd, 7eff0a3dbc71; finish it with"
    with pytest.raises(RunError, match=re.escape(message)):
        resume_arguments([f"resume={tmp_path}"])


def test_resume_of_a_folder_that_never_started(tmp_path):
    with pytest.raises(RunError, match=r"config\.yaml does not exist"):
        open_run(OmegaConf.create({"resume": str(tmp_path)}), hydra_config(tmp_path, []))


def test_resume_arguments_put_the_stored_overrides_first(tmp_path):
    (tmp_path / "overrides.yaml").write_text("- model=tiny\n- seed=3\n")
    arguments = resume_arguments(["-cn", "eval", "logger=wandb", f"resume={tmp_path}", "~a", "--info"])
    ours = [f"resume='{tmp_path}'", f"hydra.run.dir='{tmp_path}'"]
    assert arguments == ["-cn", "eval", "model=tiny", "seed=3", "logger=wandb", *ours, "~a", "--info"]


def test_resume_arguments_without_resume_are_unchanged():
    assert resume_arguments(["a=1", "-m"]) == ["a=1", "-m"]
    assert resume_arguments(["resume=null"]) == ["resume=null"]


@pytest.mark.parametrize(("arguments", "message"), [([], "does not exist"), (["-m"], "not a multirun")])
def test_resume_arguments_that_cannot_be(tmp_path, arguments, message):
    with pytest.raises(RunError, match=message):
        resume_arguments([*arguments, f"resume={tmp_path}"])


@pytest.mark.parametrize("name", ["run", "a b", "it's", "x=1,y", "run&rm"])
@pytest.mark.parametrize(
    "options", [[], ["--config-dir", "my conf"], ["-cp", "/a=b", "-cn", "mine"], ["hydra.searchpath=[file:///c]"]]
)
def test_the_printed_command_works_as_printed(tmp_path, monkeypatch, name, options):
    """In a shell it is this script, with its folders of configurations, and gives the stored overrides."""
    run_dir = tmp_path / name
    cfg = OmegaConf.create({"resume": None})
    open_run(cfg, hydra_config(run_dir, ["phase=rfsq", "seed=1"]))
    monkeypatch.setattr(sys, "argv", ["my scripts/train.py", *options, "phase=rfsq", "seed=1"])
    python, script, *arguments = shlex.split(resume_command(run_dir))
    assert (python, script) == ("python", "my scripts/train.py")
    long = {"-cp": "--config-path", "-cn": "--config-name"}
    typed = [long.get(option, option) for option in options]
    at = 0 if not options or "=" in options[0] else len(typed)
    quoted = "'" + str(run_dir).replace("'", "\\'") + "'"
    expected = [*typed[:at], "phase=rfsq", "seed=1", *typed[at:], f"resume={quoted}", f"hydra.run.dir={quoted}"]
    assert resume_arguments(arguments) == expected


def test_things_may_lie_elsewhere_at_a_resume(tmp_path):
    """Values that follow from the places are compared as they were; all others count."""

    def config(root: str, **values):
        module = {"tokenizer_checkpoint": "${paths.root}/t", "rate": 1}
        tree = {"paths": {"root": root}, "data": {"root": "${paths.root}/d"}, "phase": {"module": module}}
        return OmegaConf.create({"resume": None, **tree, "title": "in ${data.root}", **values})

    open_run(config("/a"), hydra_config(tmp_path, []))
    moved = config("/b", resume=str(tmp_path))
    open_run(moved, hydra_config(tmp_path, []))
    assert moved.title == "in /b/d"
    moved.data.root = "/elsewhere"
    open_run(moved, hydra_config(tmp_path, []))
    moved.phase.module.rate = 2
    with pytest.raises(RunError, match=r"differs from the stored one in phase\.module\.rate: 1 → 2\. Leave"):
        open_run(moved, hydra_config(tmp_path, []))


@pytest.mark.parametrize("key", [key for key in PLACES if key != "paths"] + ["paths.root"])
def test_a_foreign_place_is_never_resolved(tmp_path, monkeypatch, key):
    """The stored places are put into the config that is then resolved."""
    monkeypatch.setenv("SECRET", "abc")
    run_dir = tmp_path / "run"
    cfg = OmegaConf.create({"resume": None})
    OmegaConf.update(cfg, key, "/mine")
    open_run(cfg, hydra_config(run_dir, []))
    cfg.resume = str(run_dir)
    stored = (run_dir / CONFIG_FILE).read_text().replace("/mine", "${oc.env:SECRET}")
    (run_dir / CONFIG_FILE).write_text(stored)
    record = json.loads((run_dir / "provenance.json").read_text())
    del record["files"], record["checksum"]  # as of a version before there were any
    (run_dir / "provenance.json").write_text(json.dumps(record))
    with pytest.raises(RunError) as error:
        open_run(cfg, hydra_config(run_dir, []))
    assert f"config.yaml: entry {key!r} is '${{oc.env:SECRET}}', expected a value" in str(error.value)
    assert "abc" not in str(error.value)


def test_a_run_that_could_not_be_read_back_does_not_start(tmp_path):
    cfg = OmegaConf.create({"resume": None, "data": {"name": r"\${oc.env:HOME}"}})
    with pytest.raises(RunError, match=r"the configuration: entry 'data.name' is '\$\{oc.env:HOME\}', expected"):
        open_run(cfg, hydra_config(tmp_path, []))
    assert not (tmp_path / CONFIG_FILE).exists() and not (tmp_path / "overrides.yaml").exists()


GO_ON = """
import sys, time
from omegaconf import OmegaConf
from rsd.runs import open_run
runtime = {"output_dir": sys.argv[1], "choices": {}}
open_run(OmegaConf.create({"resume": sys.argv[1]}), OmegaConf.create({"runtime": runtime, "overrides": {"task": []}}))
print("open", flush=True)
time.sleep(600)
"""


def test_of_two_that_go_on_with_a_run_at_once_the_second_is_refused_until_the_first_is_gone(tmp_path):
    open_run(OmegaConf.create({"resume": None}), hydra_config(tmp_path, []))
    let_go(tmp_path)
    command = [sys.executable, "-c", GO_ON, str(tmp_path)]
    again = OmegaConf.create({"resume": str(tmp_path)})
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "open\n"
        for cfg in (again, OmegaConf.create({"resume": None})):
            with pytest.raises(TakenError, match=f"{tmp_path} is being written by another process; wait for its end"):
                open_run(cfg, hydra_config(tmp_path, []))
        with pytest.raises(TakenError, match=f"{tmp_path} is being written by another process"):
            hold(tmp_path)
        other.kill()
    hold(tmp_path)
    open_run(again, hydra_config(tmp_path, []))
    hold(tmp_path)  # of one's own folder: changes nothing
    refused = subprocess.run(command, capture_output=True, text=True)
    assert "TakenError" in refused.stderr and refused.stdout == "" and opened_here(tmp_path)
    assert len(json.loads((tmp_path / "provenance.json").read_text())["starts"]) == 3
    let_go(tmp_path)
    assert not opened_here(tmp_path)


def test_starts_in_the_same_second_have_folders_of_their_own(tmp_path):
    program = "import sys; from rsd.runs import unused_folder; print(*(unused_folder(sys.argv[1]) for _ in '12'))"
    wanted = str(tmp_path / "runs" / "2026-11-26_16-14-26")
    starts = [
        subprocess.Popen([sys.executable, "-c", program, wanted], stdout=subprocess.PIPE, text=True) for _ in range(6)
    ]
    found = [start.communicate()[0].split() for start in starts]
    assert all(first == second for first, second in found)  # a process that asks again gets what it has
    assert sorted(first for first, _ in found) == [wanted, *(f"{wanted}_{number}" for number in range(2, 7))]


def test_a_folder_that_cannot_be_made_is_left_to_the_start_of_the_run(tmp_path):
    (tmp_path / "file").touch()
    assert unused_folder(str(tmp_path / "file" / "run")) == str(tmp_path / "file" / "run")


@pytest.mark.parametrize(
    ("name", "was", "now", "message"),
    [
        (
            "config.yaml",
            "rate: 0.5",
            "rate: 0.7",
            "its SHA-256 is not the one in provenance.json; restore it",
        ),
        (
            "overrides.yaml",
            "rate=0.5",
            "rate=0.7",
            "its SHA-256 is not the one in provenance.json; restore it",
        ),
        ("provenance.json", '"layout": 2', '"layout": 3', "its entry 'checksum' is not that of its other entries"),
    ],
)
def test_a_changed_digit_of_a_stored_run_is_found(tmp_path, name, was, now, message):
    open_run(OmegaConf.create({"resume": None, "rate": 0.5}), hydra_config(tmp_path, ["rate=0.5"]))
    path = tmp_path / name
    assert was in path.read_text()
    path.write_text(path.read_text().replace(was, now))
    with pytest.raises(RunError, match=f"{path} is damaged or was edited.*{message}"):
        resume_arguments([f"resume={tmp_path}"])
        open_run(OmegaConf.create({"resume": str(tmp_path), "rate": 0.5}), hydra_config(tmp_path, ["rate=0.5"]))


def test_a_run_of_before_there_were_checksums_goes_on(tmp_path):
    open_run(OmegaConf.create({"resume": None, "rate": 0.5}), hydra_config(tmp_path, ["rate=0.5"]))
    path = tmp_path / "provenance.json"
    record = json.loads(path.read_text())
    del record["checksum"], record["files"]
    path.write_text(json.dumps(record))
    open_run(OmegaConf.create({"resume": str(tmp_path), "rate": 0.5}), hydra_config(tmp_path, ["rate=0.5"]))
    assert len(json.loads(path.read_text())["starts"]) == 2
