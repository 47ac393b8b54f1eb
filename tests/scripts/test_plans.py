"""Every command that demo.py and reproduce_small.py would run composes, and their tables say what is missing."""

import argparse
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir

ROOT = Path(__file__).parents[2]
CONFIGS = {
    "train.py": "train",
    "eval.py": "eval",
    "scripts/collect_demos.py": "collect",
    "scripts/cache_hidden_states.py": "cache",
}
demo, reproduce = (
    SimpleNamespace(**runpy.run_path(str(ROOT / "scripts" / f"{name}.py"))) for name in ("demo", "reproduce_small")
)
OPTIONS = argparse.Namespace(
    root=Path("small"),
    workers=16,
    base=None,
    suites_base=None,
    words=None,
    corrections_scale=0.1,
    corrected_steps=9,
    num_episodes=20,
    oft_steps=9,
    suites_scale=0.1,
    suites_steps=9,
    loss_units="quantiles",
    head_steps=9,
    num_trials=50,
    quantizer="dct_d3",
    gpus=2,
)
STEPS = [(size, step) for size in demo.SIZES for step in demo.plan(demo.SIZES[size], Path("demo"))]
STEPS += [("small", step) for step in reproduce.plan(OPTIONS)]
READING = argparse.Namespace(**{**vars(OPTIONS), "words": Path("given")})
STEPS += [("words", step) for step in reproduce.plan(READING)]
GIVEN = argparse.Namespace(**{**vars(OPTIONS), "base": Path("given")})


@pytest.mark.parametrize(("size", "step"), STEPS, ids=[f"{size}-{step.name}" for size, step in STEPS])
def test_every_command_composes(size, step):
    script, *overrides = step.command
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        compose(CONFIGS[script], overrides=overrides)


def test_names_are_unique():
    for size in {size for size, _ in STEPS}:
        names = [step.name for own, step in STEPS if own == size]
        assert len(set(names)) == len(names)


def test_a_given_base_model_is_gone_on_from():
    names, given = ([step.name for step in reproduce.plan(options)] for options in (OPTIONS, GIVEN))
    assert names == ["collect", "oft", *given]
    (step,) = (step for step in reproduce.plan(GIVEN) if step.name == "oft_suites")
    assert "phase.module.start_from=given" in step.command
    (step,) = (step for step in reproduce.plan(OPTIONS) if step.name == "oft_suites")
    assert f"phase.module.start_from=small/{reproduce.FIRST_BASE}" in step.command


def test_corrections_are_of_the_model_that_goes_on_with_them():
    whole = {step.name: step.command for step in reproduce.plan(OPTIONS)}
    options = argparse.Namespace(**{**vars(OPTIONS), "suites_base": Path("given")})
    given = {step.name: step.command for step in reproduce.plan(options)}
    before = {"collect", "oft", "oft_suites", *(f"collect_{suite}" for suite in reproduce.SUITES)}
    assert whole.keys() - given.keys() == before
    for commands, model, share in ((whole, "small/runs/oft_suites/checkpoint", 0.1), (given, "given", 0)):
        assert f"phase.module.start_from={model}" in commands["oft_corrected"]
        for suite, added in reproduce.CORRECTIONS.items():
            assert f"paths.base={model}" in commands[f"correct_{suite}"]
            count = round(share * reproduce.SUITES[suite]) + round(0.1 * added)
            assert f"num_episodes={count}" in commands[f"correct_{suite}"]
        for suite, task in reproduce.HARD_TASKS.items():
            even = round(share * reproduce.SUITES[suite]) + round(0.1 * reproduce.CORRECTIONS[suite])
            count = even // 10 + round(0.1 * reproduce.HARD_CORRECTIONS)
            command = commands[f"correct_{suite}_{task}"]
            assert {f"num_episodes={count}", f"tasks=[{task}]", f"paths.base={model}"} <= set(command)
    options = argparse.Namespace(**{**vars(OPTIONS), "corrections_scale": 0.0})
    assert not [step.name for step in reproduce.plan(options) if "correct" in step.name]


def test_a_policy_of_words_is_made_of_plain_and_exchanged_demonstrations_and_meets_every_perturbation():
    commands = {step.name: step.command for step in reproduce.plan(READING)}
    for suite, added in reproduce.EXCHANGED.items():
        plain, exchanged = commands[f"collect_{suite}"], commands[f"exchange_{suite}"]
        there = round(0.1 * reproduce.PLAIN[suite])
        assert f"num_episodes={there}" in plain and f"num_episodes={there + round(0.1 * added)}" in exchanged
        assert "exchanged=1" in exchanged and not [one for one in plain if one.startswith(("exchanged", "seed"))]
        for variant in ("lan", "task", "swap", "object"):
            assert {f"env.variant={variant}", "num_trials=10", "text=sentence"} <= {
                *commands[f"eval_l1_{suite}_{variant}"]
            }
    assert {"text=sentence", "phase.module.start_from=given", "data=libero_four"} <= {*commands["oft_words"]}
    assert "num_trials=50" in commands["eval_l1_libero_10"]


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
    lines = reproduce.table(results).splitlines()
    assert lines[2] == "| l1 | 90.0 % | 50.0–87.5 % | 10 | 100 |"
    assert lines[3] == "| parallel | 80.0 % | 50.0–87.5 % | 5, 1 crashed, of 10 planned | 100 |"
    assert lines[4] == "| swap | – | – | 2 crashed | – |"
    assert "| collect | 12 |" in lines and not any("task" in line for line in lines)
