"""Run folders that 7eff0a3 wrote, kept as they were: read by reports and comparisons."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from rsd.commands.configured import policy_fields
from rsd.comparison.candidates import ComparisonError, check_comparable, group_by_seed, read_run
from rsd.comparison.comparison import build_comparison
from rsd.comparison.published import load_published
from rsd.evaluation.old_runs import derive_plan, read_plan
from rsd.evaluation.plan import PlanError, Stopping, keep_plan
from rsd.evaluation.report import write_report
from rsd.evaluation.results import RESULTS_FILE, read_results

RUNS = Path(__file__).parent / "runs_of_7eff0a3"
CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture
def old(tmp_path):
    """A copy of LIBERO's, to write into."""
    return Path(shutil.copytree(RUNS / "libero", tmp_path / "old"))


def old_config(name="libero", **changes):
    return OmegaConf.to_container(OmegaConf.load(RUNS / name / "config.yaml")) | changes


def test_a_plan_is_derived():
    results, _ = read_results(RUNS / "libero" / RESULTS_FILE)
    plan = read_plan(RUNS / "libero", results)
    (task,) = plan.tasks
    assert (task.suite, task.task_id, task.max_steps, task.control_hz) == ("libero_spatial", 4, 16, 20)
    assert task.instruction.startswith("pick up the black bowl") and task.versions["mujoco"] == "3.2.3"
    assert [(one.task_id, one.init_state_id, one.seed) for one in plan.episodes] == [(4, 0, results[0].seed)]
    assert plan.protocol.name == "openvla_oft-1"
    assert plan.protocol.values["num_wait_steps"] == 10 and plan.protocol.values["clip_actions"] is True
    assert (plan.policy.model, plan.policy.decoding, plan.policy.target) == ("oft_small", "speculative", "head")
    assert plan.policy.options == {"num_draft_stages": 2, "temperature": 0.0}
    assert plan.policy.checkpoints["head"].name == "oft_small-dct_d3-libero_suites_no_noops-t8"
    assert plan.policy.checkpoints["head"].sha256 is None


def test_ablation_stopping_and_an_accepted_version_are_derived():
    config = old_config(
        ablation={"_target_": "rsd.envs.ablations.BlackPictures", "_partial_": True},
        stopping={"_target_": "rsd.evaluation.sequential.StopWhenDecided", "rate": 0.9},
    )
    config["env"]["make"]["allow_mujoco_version"] = "3.3.0"
    plan = derive_plan(config, [])
    assert plan.ablation == "BlackPictures" and plan.stopping == Stopping("StopWhenDecided", {"rate": 0.9})
    assert plan.allowed_versions == {"mujoco": "3.3.0"}


def test_a_report_is_made(old):
    report = write_report(old)
    assert report["complete"] is True
    assert [caveat["title"] for caveat in report["caveats"]] == ["Not openvla_oft-1: max_steps 16 instead of 220."]
    assert report["plan"]["policy"]["decoding"] == "speculative"
    work = {counter["counter"]: counter["per_chunk"] for counter in report["work"]["counters"]}
    assert work["target_passes"] == 2.0 and work["base_layers"] is None and report["decoding"]["has_tokens"] is True


def test_two_old_runs_are_compared():
    run = read_run(RUNS / "libero")
    candidates = group_by_seed([run, dataclasses.replace(run, path=Path("b"))])
    comparison = build_comparison(candidates, margin=0.02, allow=(), published=load_published())
    assert comparison["comparisons"][0]["num_pairs"] == 1 and comparison["configuration"] == []


def new_plan(tasks, *overrides):
    """The plan that eval.py makes today of the command that made the old run."""
    given = ["experiment=released", "env=libero_spatial", "decoding=speculative", "tasks=[4]", "num_trials=1"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("eval", [*given, "env.max_steps=16", *overrides])
    return instantiate(cfg.plan)(tasks=tasks, policy=policy_fields(cfg, []))


def test_an_old_run_is_compared_with_a_new_one(old, tmp_path):
    results, _ = read_results(old / RESULTS_FILE)
    (task,) = read_plan(old, results).tasks
    tasks = [dataclasses.replace(task, task_id=task_id) for task_id in range(10)]
    pairs = []
    for name, overrides in (("same", []), ("smaller", ["env.image_size=128"])):
        (tmp_path / name).mkdir()
        shutil.copy(old / RESULTS_FILE, tmp_path / name)
        keep_plan(tmp_path / name, new_plan(tasks, *overrides))
        pairs.append(group_by_seed([read_run(old), read_run(tmp_path / name)]))
    assert check_comparable(*pairs[0]) == []
    with pytest.raises(ComparisonError, match=r"environments differ in protocol\.image_size: 256 → 128"):
        check_comparable(*pairs[1])


def test_the_plan_in_the_folder_comes_first(old, tmp_path):
    config = json.loads(json.dumps(old_config()))
    keep_plan(old, dataclasses.replace(derive_plan(config, []), seed=99))
    assert read_plan(old, []).seed == 99
    (old / "plan.json").write_text("{}")
    with pytest.raises(PlanError, match=r"plan\.json is no plan of an evaluation"):
        read_plan(old, [])


def test_a_config_of_something_else_is_refused(tmp_path):
    assert read_plan(tmp_path, []) is None
    (tmp_path / "config.yaml").write_text("phase: {name: rfsq}\n")
    with pytest.raises(PlanError, match=r"config\.yaml is not the config of an evaluation: KeyError\('env'\)"):
        read_plan(tmp_path, [])
