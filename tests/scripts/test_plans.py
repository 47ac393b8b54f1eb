"""Every command that demo.py and reproduce_small.py would run composes, and their tables say what is missing."""

import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from rsd.commands.pipeline import Step
from rsd.policy.folder import parts_in
from scripts import calibrate, convert, reproduce_small
from scripts.reproduction import released, words
from scripts.reproduction.results import table
from tests.models.sentence_encoder import write_encoder

ROOT = Path(__file__).parents[2]
CONFIGS = {
    "train.py": "train",
    "eval.py": "eval",
    "scripts/collect_demos.py": "collect",
    "scripts/cache_hidden_states.py": "cache",
}
demo = SimpleNamespace(**runpy.run_path(str(ROOT / "scripts" / "demo.py")))
GIVEN = ROOT / "released" / "base" / released.NAME


def plan(*options: str) -> list[Step]:
    return reproduce_small.plan(reproduce_small.parser().parse_args(["--root", "small", *options]))


def commands(*options: str) -> dict[str, set[str]]:
    return {step.name: {*step.command} for step in plan(*options)}


PLANS = {
    "whole": plan(),
    "several_gpus": plan("--gpus", "2", "--scale", "0.1", "--base", str(GIVEN)),
    "words": plan("--words", str(GIVEN), "--encoder", "folder/model.zip", "--four-suites"),
    "cpu": plan("--device", "cpu", "--scale", "0.001", "--steps-scale", "0.001", "--num-trials", "1"),
}
STEPS = [(size, step) for size in demo.SIZES for step in demo.plan(demo.SIZES[size], Path("demo"))]
STEPS += [(name, step) for name, steps in PLANS.items() for step in steps]


@pytest.mark.parametrize(("size", "step"), STEPS, ids=[f"{size}-{step.name}" for size, step in STEPS])
def test_every_command_composes(size, step, monkeypatch):
    script, *overrides = step.command
    if script in CONFIGS:
        composed(step)
        return
    module = {"scripts/convert.py": convert, "scripts/calibrate.py": calibrate}[script]
    monkeypatch.setattr(module, "old_folder", Path)  # none is there yet
    monkeypatch.setattr(sys, "argv", step.command)
    _ = module.options() if module is calibrate else module.parser().parse_args(overrides)


def composed(step: Step) -> DictConfig:
    script, *overrides = step.command
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(CONFIGS[script], overrides=overrides)


def test_names_are_unique():
    for size in {size for size, _ in STEPS}:
        names = [step.name for own, step in STEPS if own == size]
        assert len(set(names)) == len(names)


def test_a_given_base_model_is_gone_on_from():
    whole, given = commands(), commands("--base", str(GIVEN))
    assert whole.keys() - given.keys() == {"collect", "oft"}
    assert f"phase.module.start_from={GIVEN}" in given["oft_suites"]
    assert "phase.module.start_from=small/runs/oft/checkpoint" in whole["oft_suites"]


def test_every_part_of_the_released_policy_is_made_with_what_it_was_made_with():
    whole = commands()
    (folder,) = (step for step in PLANS["whole"] if step.name == "released")
    assert {f"--{part}" for part in parts_in(ROOT / "released") if part != "base"} == {
        word for word in folder.command if word.startswith("--")
    }
    steps = {"head": 1500, "draft": 1500, "micro": 2500, "numbers": 2500, "oft_suites": 5000, "words_0": 2459}
    for name, count in steps.items():
        assert f"phase.max_steps={count}" in whole[name]
    assert {"draft.layer=2", "paths.data=small/visited"} <= whole["numbers"]
    assert {"seed=11", "num_episodes=450", "paths.data=small/next"} <= whole["collect_next_libero_spatial"]
    tasks = "tasks=[0,1,2,4,5,6,7,8,9]"  # task 3 of libero_goal has words that the base model does not know
    assert tasks in whole["eval_l1_libero_goal"] and tasks not in whole["eval_next_libero_goal"]
    parts = {**parts_in(ROOT / "released"), "words_0": parts_in(ROOT / "released" / "words")["base"]}
    for name in steps.keys() & parts.keys():
        record = json.loads((parts[name] / "checkpoint.json").read_text())
        assert f"phase.max_steps={steps[name]}" in record["provenance"]["command"]
    assert [step.name for step in PLANS["whole"]][-2:] == ["calibrate", "eval_temporal"]


def test_whatever_a_step_reads_an_earlier_one_has_made():
    there: set[str] = set()
    for step in PLANS["whole"]:
        reads, makes = reads_and_makes(step)
        assert reads <= there, step.name
        there |= makes


def reads_and_makes(step: Step) -> tuple[set[str], set[str]]:
    """Folders, as the configuration or the command line names them."""
    script = step.command[0]
    if script not in CONFIGS:
        own = {word for word in step.command if word.startswith("small/")}
        return own - {str(step.made)}, own & {str(step.made)}
    cfg = composed(step)
    data = f"{cfg.data.root}/{cfg.data.name}/1.0.0"
    if script == "train.py":
        reads = {one for one in cfg.phase.reads.values() if one is not None}
        return reads, {cfg.phase.checkpoint, f"small/runs/{step.name}/checkpoint"}
    if script == "eval.py":
        return {cfg.policy or cfg.model.backbone.checkpoint}, set()
    acting = {cfg.model.backbone.checkpoint}
    if script == "scripts/cache_hidden_states.py":
        return {data, *acting}, set()
    return acting if cfg.demonstrator.lead or "demonstrator=policy" in step.command else set(), {data}


def test_a_policy_of_words_is_made_of_plain_and_exchanged_demonstrations_and_meets_every_perturbation():
    source = "text.sentences.source=folder/model.zip"
    made = commands("--words", str(GIVEN), "--encoder", "folder/model.zip", "--scale", "0.1")
    for suite, added in words.EXCHANGED.items():
        plain, exchanged = made[f"collect_words_{suite}"], made[f"exchange_{suite}"]
        count = round(0.1 * words.PLAIN[suite])
        assert f"num_episodes={count}" in plain and f"num_episodes={count + round(0.1 * added)}" in exchanged
        assert "exchanged=1" in exchanged - plain and "paths.data=small/words" in plain & exchanged
        for variant in ("lan", "task", "swap", "object"):
            own = {f"env.variant={variant}", "num_trials=10", "text=sentence", source}
            assert own <= made[f"eval_words_{suite}_{variant}"]
        assert {"num_trials=50", "paths.base=small/checkpoints/words/seed0"} <= made[f"eval_words_{suite}"]
        assert {"num_trials=15", "paths.base=small/checkpoints/words/seed1"} <= made[f"eval_words_1_{suite}"]
    for seed in (0, 1):
        own = {f"seed={seed}", "phase.max_steps=2459", f"phase.module.start_from={GIVEN}", "text=sentence", source}
        assert own <= made[f"words_{seed}"]
    four = commands("--words", str(GIVEN), "--four-suites")
    assert "data=libero_four" in four["words_0"] and f"tasks={words.LONG_TASKS}" in four["eval_words_libero_10"]


REPORT = {
    "complete": True, "num_planned": 10, "config": {},
    "success": {"num_episodes": 10, "num_errors": 0, "success_rate": 0.9, "success_low": 0.5, "success_high": 1.0},
    "episodes": [{"task_id": 0, "init_state_id": 0, "success": True, "num_steps": 100}],
}  # fmt: skip


def test_an_interrupted_reproduction_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    """Each command but writes what it would have made."""
    ran: list[str] = []

    def run_command(name: str, command: list[str], _limit_s: float | None = None) -> int:
        ran.append(name)
        if name == stops_at:
            return 1
        (step,) = (step for step in steps if step.name == name)
        if step.made is not None:
            assert not step.made.exists()
            step.made.mkdir(parents=True)
        if step.finished is not None:
            folder = step.folder(tmp_path / "made")
            (folder / step.finished).parent.mkdir(parents=True, exist_ok=True)
            (folder / "overrides.yaml").write_text(yaml.safe_dump(command[2:-1]))
            (folder / step.finished).write_text("{}" if step.finished == "metrics.json" else json.dumps(REPORT))
        return 0

    monkeypatch.setattr("rsd.commands.pipeline.run_command", run_command)
    encoder = write_encoder(tmp_path / "encoder")
    options = ["--root", str(tmp_path / "made"), "--num-trials", "1", "--device", "cpu", "--encoder", str(encoder)]
    monkeypatch.setattr(sys, "argv", ["reproduce_small.py", *options])
    steps = reproduce_small.plan(reproduce_small.parser().parse_args(options))
    stops_at = "words_1"
    with pytest.raises(SystemExit, match="'words_1' failed; the same command goes on from here"):
        reproduce_small.main()
    told = capsys.readouterr().out
    assert ran[-1] == "words_1" and "| numbers | 90.0 % |" in told and "| words_libero" not in told
    before, stops_at = [*ran], ""
    ran.clear()
    reproduce_small.main()
    again = {step.name for step in steps if step.finished is None and step.made is None}  # they know what is left
    assert {*ran} == {step.name for step in steps} - {*before} | {"words_1"} | again & {*before}
    ran.clear()
    reproduce_small.main()
    assert {*ran} == again
    told = capsys.readouterr().out
    assert "| words_libero_spatial_lan | 90.0 % |" in told and "| all |" in told


def test_an_encoder_that_is_missing_is_said_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr("rsd.commands.pipeline.run_command", lambda *_: pytest.fail("a step was run"))
    options = ["--root", str(tmp_path / "made"), "--device", "cpu", "--encoder", str(tmp_path / "gone")]
    monkeypatch.setattr(sys, "argv", ["reproduce_small.py", *options])
    with pytest.raises(SystemExit, match=r"no sentence encoder at '.*gone'"):
        reproduce_small.main()


def record(num_success, num_trials, num_errors=0, complete=True):
    success = {"num_episodes": num_trials + num_errors, "num_errors": num_errors, "num_success": num_success}
    success |= {"success_rate": num_success / num_trials if num_trials else None, "success_low": 0.5}
    success |= {"success_high": 0.875}
    report = {"success": success, "complete": complete, "num_planned": 10}
    return {"report": report, "episodes": [[0, n, True, 100] for n in range(num_trials + num_errors)], "seconds": 61.7}


def test_the_table_names_crashed_and_missing_episodes():
    results = {
        "collect": {"seconds": 12.2},
        "eval_l1": record(9, 10),
        "eval_parallel": record(4, 5, num_errors=1, complete=False),
        "eval_swap": record(0, 0, num_errors=2),
        "eval_task": {"seconds": None},
    }
    lines = table(results).splitlines()
    assert lines[2] == "| l1 | 90.0 % | 50.0–87.5 % | 10 | 100 |"
    assert lines[3] == "| parallel | 80.0 % | 50.0–87.5 % | 5, 1 crashed, of 10 planned | 100 |"
    assert lines[4] == "| swap | – | – | 2 crashed | – |"
    assert "| collect | 12 |" in lines and not any("task" in line for line in lines)
