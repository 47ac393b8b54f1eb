"""Reports of run folders that a stranger made: nothing from outside of the folder comes in, and nothing grows."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest

from rsd.comparison.candidates import group_by_seed, read_run
from rsd.comparison.comparison import build_comparison
from rsd.comparison.comparison_page import render_comparison
from rsd.comparison.published import load_published
from rsd.errors import RSDError
from rsd.evaluation.evaluate import resume_results
from rsd.evaluation.plan import PlanError, keep_plan
from rsd.evaluation.report import REPORT_HTML, log_report, write_report
from rsd.evaluation.results import ResultsError, append_result, read_results
from rsd.types import EpisodeResult
from tests.evaluation.folders import plan_of
from tests.fakes import point_mass_tasks

SECRET = b"root:x:0:0:secret"
GOOD = EpisodeResult("suite", 0, "lift", 0, 1, True, 10, stats={"num_chunks": 2}, video="videos/a.mp4")


def run_folder(folder, *results):
    folder.mkdir(exist_ok=True)
    for result in results:
        append_result(folder / "results.jsonl", result)
    return folder


@pytest.mark.parametrize("entry", ["video", "trace"])
@pytest.mark.parametrize("name", ["/etc/passwd", "../secret.mp4", "videos/../../secret.mp4", "", ".", "a\0.mp4"])
def test_a_path_that_leaves_the_folder_is_refused(tmp_path, entry, name):
    (tmp_path / "secret.mp4").write_bytes(SECRET)
    run = run_folder(tmp_path / "run", dataclasses.replace(GOOD, **{entry: name}))
    append_result(run / "results.jsonl", dataclasses.replace(GOOD, init_state_id=1))
    expected = "a text without NUL" if "\0" in name else "inside of"
    for read in (write_report, read_run):
        with pytest.raises(
            ResultsError, match=rf"results.jsonl, line 1 is damaged: it: entry '{entry}' is .*{expected}"
        ):
            read(run)


@pytest.mark.parametrize("linked", ["file", "folder", "circle"])
def test_a_link_that_leaves_the_folder_is_not_followed(tmp_path, linked):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "a.mp4").write_bytes(SECRET)
    run = run_folder(tmp_path / "run", dataclasses.replace(GOOD, trace="videos/a.mp4"))
    if linked == "folder":
        (run / "videos").symlink_to(tmp_path / "secret")
    else:
        (run / "videos").mkdir()
        target = tmp_path / "secret" / "a.mp4" if linked == "file" else run / "videos" / "a.mp4"
        (run / "videos" / "a.mp4").symlink_to(target)
    report = write_report(run)
    page = (run / REPORT_HTML).read_text()
    assert "data:video" not in page and "secret" not in page
    logged = []

    class Logger:
        log_hyperparams = log_metrics = log_table = log_made = close = staticmethod(lambda *_: None)
        log_files = staticmethod(logged.extend)

    log_report(Logger(), report, run)
    assert logged == [run / REPORT_HTML]


def test_a_part_that_was_never_timed_is_no_part(tmp_path):
    run = run_folder(tmp_path, dataclasses.replace(GOOD, latency_ms={"draft": [], "total": [2.0]}))
    latency = write_report(run)["latency"]
    assert latency["parts"] == [] and latency["total"]["mean"] == 2.0


def test_its_own_files_come_in_and_others_than_videos_do_not(tmp_path):
    run = run_folder(tmp_path / "run", GOOD, dataclasses.replace(GOOD, init_state_id=1, video="notes.txt"))
    (run / "videos").mkdir()
    (run / "videos" / "a.mp4").write_bytes(b"video")
    (run / "notes.txt").write_bytes(SECRET)
    write_report(run)
    page = (run / REPORT_HTML).read_text()
    assert page.count("data:video/mp4") == 1


def test_a_page_is_as_large_as_what_is_there(tmp_path):
    runs = [
        run_folder(tmp_path / name, *(dataclasses.replace(GOOD, init_state_id=state, task_id=task, video=None)
                                      for task, state in ((0, 10**7), (1, 0), (10**9, 3))))
        for name in ("a", "b")
    ]  # fmt: skip
    write_report(runs[0])
    assert (runs[0] / REPORT_HTML).stat().st_size < 100_000
    candidates = group_by_seed([read_run(run) for run in runs])
    comparison = build_comparison(candidates, margin=0.1, allow=[], published=load_published())
    assert len(render_comparison(comparison, candidates)) < 100_000


def test_many_tasks_with_init_states_of_their_own_share_no_columns(tmp_path):
    states = [dataclasses.replace(GOOD, task_id=n, init_state_id=n, video=None) for n in range(1500)]
    run = tmp_path / "run"
    run.mkdir()
    lines = [json.dumps(dataclasses.asdict(state)) + "\n" for state in states]
    (run / "results.jsonl").write_text("".join(lines))
    write_report(run)
    assert (run / REPORT_HTML).stat().st_size < 3_000_000


@pytest.mark.parametrize(
    "change",
    [{"task_id": -1}, {"init_state_id": 1.5}, {"init_state_id": -1}, {"success": "yes"}, {"num_steps": None},
     {"stats": []}, {"stats": {"num_chunks": "2"}}, {"latency_ms": {"total": ["x"]}}, {"wall_s": float("inf")},
     {"latency_ms": {"total": [1e308] * 5}}, {"latency_ms": {"total": [-1.0]}}, {"latency_ms": {"total": [5e-324]}},
     {"wall_s": -1.0}, {"wall_s": 1e300}, {"model_ms": -0.5}, {"time_s": {"policy": 1.0}}, {"seed": -1},
     {"time_s": dict.fromkeys(("reset", "physics", "rendering", "policy"), -1.0)}, {"stats": {"num_chunks": -1}},
     {"stats": {"num_chunks": 5e-324}}, {"stats": {"num_chunks": 10**400}}, {"stats": {"target_passes": [1]}},
     {"stats": {"accept_counts": 1}}, {"stats": {"accept_counts": [-1]}}, {"stats": {"mine": -0.5}},
     {"stats": {"num_chunks": 1, "checked_tokens": [1], "accepted_tokens": []}},
     {"video": 3}, {"versions": {"mujoco": 3}}, {"more": 1}, {"time_s": None}, {"error": 5}],
    ids=str,
)  # fmt: skip
def test_a_mistyped_line_is_named(tmp_path, change):
    run = run_folder(tmp_path / "run")
    record = dataclasses.asdict(GOOD) | change
    (run / "results.jsonl").write_text(json.dumps(record) + "\n" + json.dumps(dataclasses.asdict(GOOD)) + "\n")
    (entry,) = change
    with pytest.raises(RSDError, match=r"results.jsonl, line 1 is damaged") as error:
        write_report(run)
    assert re.search(f"entry '{entry}|Infinity is no number", str(error.value))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ((2, 1), r"verdict\.json: entry 'num_success' is 2, expected at most 'num_trials', 1; remove it"),
        ((0, 0), r"verdict\.json: entry 'num_trials' is 0, expected a whole number of at least 1; remove it"),
        ((1, 2), r"verdict\.json was decided after 2 episodes, but results\.jsonl holds 1 that did not crash; restore"),
        ((2**62, 2**63 - 1), r"verdict\.json: entry 'num_success' is 4611686018427387904, expected a whole number"),
    ],
)
def test_a_verdict_of_another_run_is_named(tmp_path, counts, message):
    run = run_folder(tmp_path, GOOD)
    verdict = {"verdict": "above", "num_success": counts[0], "num_trials": counts[1]}
    (run / "verdict.json").write_text(json.dumps(verdict))
    with pytest.raises(RSDError, match=message):
        write_report(run)


@pytest.mark.parametrize("name", ["config.yaml", "provenance.json", "plan.json", "verdict.json"])
@pytest.mark.parametrize(
    "content", ["", "[", "3", "[]", '{"a": ' * 3000, "null", '{"schema": 1}', '{"starts": 1}', "\x00"]
)
def test_a_damaged_file_beside_the_results_is_one_line(tmp_path, name, content):
    run = run_folder(tmp_path / "run", GOOD)
    (run / name).write_text(content)
    with pytest.raises(RSDError) as error:
        write_report(run)
    assert name in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 700


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"suite": "libero_object"}, "'suite' is 'libero_object', its plan has 'point_mass' of task 1, init state 0;"),
        (
            {"instruction": "lift"},
            "'instruction' is 'lift', its plan has 'move the point to goal 1' of task 1, init st",
        ),
        ({"seed": 5}, r"'seed' is 5, its plan has \d+ of task 1, init state 0; remove that line"),
        ({"protocol": "mine-1"}, "'protocol' is 'mine-1', its plan has 'point_mass-1' of task 1, init state 0;"),
        ({"num_steps": 61}, "'num_steps' is 61, above the step limit 60 in its plan of task 1, init state 0;"),
    ],
)
def test_a_sound_line_of_another_run_is_refused_by_whoever_reads_it(tmp_path, change, message):
    plan = plan_of(point_mass_tasks(num_tasks=2), num_trials=1)
    keep_plan(tmp_path, plan)
    lines = [
        EpisodeResult("point_mass", one.task_id, task.instruction, one.init_state_id, one.seed, True, 60)
        for one, task in zip(plan.episodes, plan.tasks, strict=True)
    ]
    run_folder(tmp_path, lines[0], dataclasses.replace(lines[1], **change))
    for read in (write_report, read_run, lambda folder: resume_results(folder, plan.episodes, plan.tasks)):
        with pytest.raises(PlanError, match=r"results\.jsonl, line 2 is not of this run: entry " + message):
            read(tmp_path)
    (tmp_path / "results.jsonl").unlink()
    dead = dataclasses.replace(lines[1], instruction="", success=False, error="WorkerDiedError: 3 workers died")
    assert write_report(run_folder(tmp_path, lines[0], dead))["complete"] is True


def test_lines_of_an_old_run_are_held_to_the_plan_that_its_config_stands_for(tmp_path):
    run = shutil.copytree(Path(__file__).parent / "runs_of_7eff0a3" / "libero", tmp_path / "run")
    (one,), _ = read_results(run / "results.jsonl")
    (run / "results.jsonl").unlink()
    run_folder(run, dataclasses.replace(one, suite="libero_object"))
    with pytest.raises(PlanError, match="'suite' is 'libero_object', its plan has 'libero_spatial' of task 4, init st"):
        write_report(run)
