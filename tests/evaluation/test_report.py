"""report.json, report.html and metrics.json from a run folder."""

import dataclasses
import json
import re
import sys

import numpy as np
import pytest

from rsd.comparison.candidates import read_run
from rsd.evaluation import report as report_module
from rsd.evaluation.plan import PlanError, keep_plan
from rsd.evaluation.player import first_rejection
from rsd.evaluation.report import build_report, report_tables, write_report
from rsd.evaluation.results import ResultsError, read_results, set_crashed_aside
from rsd.record import line_of, read_json
from tests.evaluation.folders import make_run, plan_of
from tests.evaluation.policies import EarlyExitPolicy, RaisingPolicy, SeeingPolicy, StillPolicy
from tests.fakes import point_mass_tasks


class CountedPolicy(SeeingPolicy):
    """As the base model's own head reports it, stopped early: work, and nothing of tokens."""

    def predict(self, requests):
        names = ("draft_passes", "target_passes", "proposed_stages", "accepted_stages")
        lists = ("proposed_tokens", "checked_tokens", "accepted_tokens", "accept_counts")
        stats = {"pictures_prepared": 2, "vision_calls": 1, "visual_tokens": 128, "base_layers": 3, "early_exits": 1}
        stats |= dict.fromkeys(names, 0) | {name: [] for name in lists}
        return [dataclasses.replace(one, work=stats) for one in super().predict(requests)]


def set_model_ms(run_dir, value):
    """As if every episode had been measured."""
    path = run_dir / "results.jsonl"
    lines = [json.loads(line) | {"model_ms": value} for line in path.read_text().splitlines()]
    path.write_bytes(b"".join(map(line_of, lines)))


def test_report_of_a_complete_run(tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    make_run(tmp_path, SeeingPolicy(), save_videos=1)
    report = write_report(tmp_path)
    assert report["complete"] is True and report["success"]["success_rate"] == 1.0 and len(report["tasks"]) == 3
    assert read_json(tmp_path / "report.json") == report
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["success_rate"] == 1.0 and metrics["num_errors"] == 0 and 0 < metrics["acceptance_rate"] < 1
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:video/mp4;base64,") == 3
    assert page.count("✓") == 12 + 1 + 3  # the grid, its legend, and the player's choices
    assert page.count('href="#task2-init0"') == 2 and "#task2-init1" not in page  # recorded, and not
    assert "Incomplete" not in page


def test_the_page_needs_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    make_run(tmp_path, RaisingPolicy(), save_videos=1)
    write_report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert not re.search(r"https?://", page)
    assert not re.search(r"<(link|img|iframe)\b|<script[^>]*src", page)
    assert "default-src 'none'" in page  # and the browser holds it to that


def test_report_from_results_alone(tmp_path, monkeypatch, capsys):
    make_run(tmp_path, SeeingPolicy(), has_plan=False)
    monkeypatch.setattr(sys, "argv", ["report", str(tmp_path)])
    report_module.main()
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["complete"] is None and report["config"] is None and report["success"]["num_success"] == 12
    assert "not known how many episodes were planned" in (tmp_path / "report.html").read_text()


def test_an_incomplete_run_says_so(tmp_path):
    make_run(tmp_path, SeeingPolicy(), num_run=2)
    report = write_report(tmp_path)
    assert report["complete"] is False
    page = (tmp_path / "report.html").read_text()
    assert "Incomplete: 6 of 12 episodes" in page
    assert "Missing: (task, init state) [(0, 2), (0, 3), (1, 2), (1, 3), (2, 2), (2, 3)]. Continue" in page


def test_an_episode_that_was_not_planned_does_not_stand_for_one_that_was(tmp_path):
    make_run(tmp_path, SeeingPolicy(), num_trials=1)
    path = tmp_path / "results.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_bytes(b"".join(map(line_of, [*lines[:2], lines[2] | {"init_state_id": 4}])))
    named = r"does not plan: \(task, init state\) \[\(2, 4\)\]; planned, and not there: \[\(2, 0\)\]; remove"
    for read in (write_report, read_run):
        with pytest.raises(PlanError, match=named):
            read(tmp_path)
    results = read_results(path)[0]
    plan = plan_of(point_mass_tasks(num_tasks=3), num_trials=1)
    assert build_report(results, plan=plan, config=None, provenance=None)["complete"] is False


def test_a_torn_last_line_does_not_stop_the_report_and_is_not_touched_but_named(tmp_path, caplog):
    make_run(tmp_path, SeeingPolicy())
    with open(tmp_path / "results.jsonl", "ab") as file:
        file.write(b'{"suite"')
    before = (tmp_path / "results.jsonl").read_bytes()
    assert write_report(tmp_path)["success"]["num_episodes"] == 12
    assert (tmp_path / "results.jsonl").read_bytes() == before
    assert "results.jsonl, line 13 is torn: it has no newline" in caplog.text


@pytest.mark.parametrize("has_plan", [True, False])
def test_one_bit_in_the_last_line_is_named_and_only_a_resume_sets_it_aside(tmp_path, caplog, has_plan):
    make_run(tmp_path, SeeingPolicy(), num_trials=1, has_plan=has_plan)
    path = tmp_path / "results.jsonl"
    whole = path.read_bytes()
    for place in (-2, -40, -200):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[len(whole) + place + 1 :])
        for read in (write_report, read_run):
            with pytest.raises(ResultsError, match=r"line 3 is damaged: .*, or run .*: python eval\.py resume="):
                read(tmp_path)
    (result,) = make_run(tmp_path, SeeingPolicy(), num_trials=1, has_plan=has_plan)
    assert result.task_id == 2 and "was torn or damaged; kept aside as" in caplog.text
    assert write_report(tmp_path)["success"]["num_success"] == 3


def test_crashed_episodes_are_listed_apart(tmp_path):
    make_run(tmp_path, RaisingPolicy())
    report = write_report(tmp_path)
    assert report["success"]["num_errors"] == 6 and report["success"]["success_rate"] == 1.0
    page = (tmp_path / "report.html").read_text()
    assert "6 of 12 episodes crashed" in page and page.count("illegal memory access") == 6 + 6  # tooltips and list


def test_a_decoding_without_tokens_says_so(tmp_path):
    make_run(tmp_path, StillPolicy(), num_trials=1)
    report = write_report(tmp_path)
    assert "acceptance_rate" not in json.loads((tmp_path / "metrics.json").read_text())
    assert report["decoding"] == {"has_tokens": False, "num_chunks": 24}
    assert "This decoding has no tokens" in (tmp_path / "report.html").read_text()


def test_a_run_without_an_episode_still_has_a_report(tmp_path):
    make_run(tmp_path, SeeingPolicy(), num_run=0)
    report = write_report(tmp_path)
    assert report["success"]["success_rate"] is None
    assert "Incomplete: 0 of 12" in (tmp_path / "report.html").read_text()


def test_instructions_and_errors_are_escaped(tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    make_run(tmp_path, SeeingPolicy(), num_trials=1, save_videos=1, has_plan=False)
    path = tmp_path / "results.jsonl"
    lines = path.read_text().replace("move the point", "<script>alert(1)</script>").splitlines()
    path.write_bytes(b"".join(line_of(json.loads(line)) for line in lines))
    write_report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page


def test_no_results_is_an_error(tmp_path):
    with pytest.raises(ResultsError, match=r"results\.jsonl does not exist"):
        write_report(tmp_path)


def test_work_is_shown_a_chunk_and_a_solved_episode(tmp_path):
    make_run(tmp_path, CountedPolicy(), num_trials=2)
    set_model_ms(tmp_path, 60.0)
    report = write_report(tmp_path)
    chunks = report["decoding"]["num_chunks"]
    work = {counter["counter"]: counter for counter in report["work"]["counters"]}
    assert (work["base_layers"]["per_chunk"], work["vision_calls"]["per_chunk"]) == (3.0, 1.0)
    assert work["base_layers"]["per_solved_episode"] == 3 * chunks / 6
    assert work["model_ms"] | {"label": ""} == {
        "counter": "model_ms", "label": "", "total": 360.0, "per_chunk": 360 / chunks, "per_solved_episode": 60.0
    }  # fmt: skip
    assert report["work"]["early_exit_share"] == 1.0 and report["decoding"]["has_tokens"] is False
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["base_layers_per_chunk"] == 3.0 and metrics["model_ms_per_solved_episode"] == 60.0
    page = (tmp_path / "report.html").read_text()
    assert "<h2>Work</h2>" in page and "100.0 % of chunks ended early" in page and "This decoding has no tokens" in page
    assert "busy machine" not in page


def test_chunks_that_end_at_the_draft_are_told_as_such(tmp_path):
    make_run(tmp_path, EarlyExitPolicy())
    report = write_report(tmp_path)
    num_chunks = report["work"]["num_chunks"]
    share = (num_chunks + 1) // 2 / num_chunks
    assert report["work"]["early_exit_share"] == share
    page = (tmp_path / "report.html").read_text()
    assert (
        f"{100 * share:.1f} % of chunks ended at the draft, unverified; the others ran to the base model's end. "
        f"0.00 target passes and 2.00 draft passes a chunk over {num_chunks} chunks; nothing was proposed to a target."
    ) in page
    assert "Nothing was drafted" not in page and "of drafted stages accepted" not in page


def write_inputs(run_dir, policy, choices):
    """The config and the provenance of a run with this policy=, as an earlier version recorded its groups."""
    start = {"time": "2026-01-01T00:00:00+00:00", "rsd": "0", "revision": None, "device": "cpu", "python": "3"}
    record = {"choices": choices, "starts": [start | {"packages": {}, "simulator": {}}]}
    (run_dir / "config.yaml").write_text(json.dumps({"policy": policy}))
    (run_dir / "provenance.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("released", {"model": "released", "decoding": "speculative", "env": "libero_goal"}),
        (None, {"model": "oft_tiny", "decoding": "l1", "quantizer": "rfsq_d8", "composed": "default"}),
    ],
)
def test_the_head_names_the_policy_that_ran(tmp_path, policy, expected):
    make_run(tmp_path, SeeingPolicy(), num_trials=1, has_plan=False)
    ran = {"model": expected["model"], "decoding": expected["decoding"], "options": {"gate": {"above": "-inf"}}}
    keep_plan(tmp_path, plan_of(point_mass_tasks(num_tasks=3), num_trials=1, policy=ran))
    groups = {"model": "oft_tiny", "quantizer": "rfsq_d8", "decoding": "l1", "composed": "default"}
    write_inputs(tmp_path, policy, groups | {"env": "libero_goal"})
    assert write_report(tmp_path)["plan"]["policy"]["options"] == {"gate": {"above": "-inf"}}
    chips = re.findall(r'<span class="chip"><b>(\w+)</b> (\w+)</span>', (tmp_path / "report.html").read_text())
    assert dict(chips) == {"env": "libero_goal"} | expected


def test_what_was_not_recorded_is_a_dash_and_in_no_metric(tmp_path):
    make_run(tmp_path, SeeingPolicy(), num_trials=1)
    report = write_report(tmp_path)
    missing = {counter["counter"] for counter in report["work"]["counters"] if counter["per_chunk"] is None}
    assert missing == {"base_layers", "vision_calls", "pictures_prepared", "visual_tokens", "model_ms"}
    assert "base_layers_per_chunk" not in json.loads((tmp_path / "metrics.json").read_text())
    page = (tmp_path / "report.html").read_text()
    assert '<td>Base model layers</td><td class="n">–</td>' in page and "base model layers a chunk" not in page


def test_milliseconds_of_a_busy_machine_are_called_so(tmp_path):
    make_run(tmp_path, SeeingPolicy(), has_plan=False)
    keep_plan(tmp_path, plan_of(point_mass_tasks(num_tasks=3), num_workers=4, max_batch=8))
    assert write_report(tmp_path)["busy"] == (
        "Milliseconds are those of a busy machine: 4 simulator processes ran beside the policy, and each of its calls "
        "answered up to 8 observations."
    )
    assert "those of a busy machine" in (tmp_path / "report.html").read_text()


class BoundedPolicy(SeeingPolicy):
    """The first chunk of every second call has no bound."""

    def predict(self, requests):
        own = np.array([0.02, 0.04, 0.06, 0.0, 0.0, 0.0, 0.0], dtype=np.float32)
        count = len(self.seen) % 2
        return [dataclasses.replace(one, bound=own * count if count else None) for one in super().predict(requests)]


class DraftedPolicy(BoundedPolicy):
    """Every chunk ended at the draft."""

    def predict(self, requests):
        return [dataclasses.replace(one, work=one.work | {"early_exits": 1}) for one in super().predict(requests)]


@pytest.mark.parametrize(("policy", "told"), [(BoundedPolicy, False), (DraftedPolicy, True)])
def test_the_page_says_that_a_bound_is_no_certificate_of_a_draft(tmp_path, policy, told):
    make_run(tmp_path, policy(), num_trials=1)
    write_report(tmp_path)
    assert ("of that it is no certificate" in (tmp_path / "report.html").read_text()) is told


def test_the_bound_reaches_results_trace_report_and_page(tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    results = make_run(tmp_path, BoundedPolicy(), num_trials=1, save_videos=1)
    report = write_report(tmp_path)
    num_chunks = report["work"]["num_chunks"]
    bounded = sum(bound is not None for result in results for bound in result.bounds)
    assert 0 < bounded < num_chunks
    expected = {"num_chunks": num_chunks, "num_bounded": bounded, "bounded_share": bounded / num_chunks, "max": 0.06}
    assert {name: report["bound"][name] for name in expected} == expected
    assert [one["dim"] for one in report["bound"]["dims"]][:3] == ["x", "y", "z"]
    assert report["bound"]["dims"][1] == {"dim": "y", "mean": pytest.approx(0.04), "max": 0.04}
    assert read_json(tmp_path / "report.json") == report
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["bounded_share"], metrics["bound_max"]) == (bounded / num_chunks, 0.06)
    tables = {name: (columns, rows) for name, columns, rows in report_tables(report)}
    assert tables["bound"][0] == ["dim", "mean", "max"] and len(tables["bound"][1]) == 7
    page = (tmp_path / "report.html").read_text()
    assert f"known for {bounded} of {num_chunks} chunks" in page and "<td>z</td><td" in page
    for result in results:
        trace = json.loads((tmp_path / result.trace).read_text())
        assert [chunk["bound"] for chunk in trace["chunks"]] == [
            None if bound is None else pytest.approx(bound, abs=1e-5) for bound in result.bounds
        ]


def test_where_nobody_certifies_there_is_no_bound(tmp_path):
    results = make_run(tmp_path, SeeingPolicy(), num_trials=1)
    assert [result.bounds for result in results] == [[]] * 3
    assert write_report(tmp_path)["bound"] is None
    assert "<h2>Bound</h2>" not in (tmp_path / "report.html").read_text()
    assert not {"bounded_share", "bound_max"} & set(json.loads((tmp_path / "metrics.json").read_text()))


def test_bounds_of_different_action_dims_are_named(tmp_path):
    results = make_run(tmp_path, BoundedPolicy(), num_trials=1)
    results[0].bounds = [[0.1]] * len(results[0].bounds)
    with pytest.raises(ResultsError, match=r"do not belong together: bounds are of \[1, 7\] action dims"):
        build_report(results, plan=None, config=None, provenance=None)


def test_tables_for_loggers(tmp_path):
    make_run(tmp_path, SeeingPolicy())
    report = write_report(tmp_path)
    tables = {name: (columns, rows) for name, columns, rows in report_tables(report)}
    assert list(tables) == ["tasks", "episodes", "latency_ms", "stages", "work", "time_s", "accept_counts"]
    assert all(len(row) == len(columns) for columns, rows in tables.values() for row in rows)
    columns, rows = tables["tasks"]
    assert [row[columns.index("success_rate")] for row in rows] == [1.0, 1.0, 1.0]
    columns, rows = tables["latency_ms"]
    assert [row[columns.index("part")] for row in rows] == ["vision", "llm", "total"]
    assert rows[2][columns.index("p90")] == report["latency"]["total"]["p90"]
    columns, rows = tables["accept_counts"]
    assert columns == ["accepted_stages", "proposals"] and [row[0] for row in rows] == [0, 1, 2, 3]
    assert sum(row[1] for row in rows) == report["decoding"]["num_chunks"]


def test_tables_of_a_run_without_tokens_and_times(tmp_path):
    make_run(tmp_path, StillPolicy(), num_trials=1)
    path = tmp_path / "results.jsonl"
    lines = [json.loads(line) | {"time_s": {}} for line in path.read_text().splitlines()]
    path.write_bytes(b"".join(map(line_of, lines)))
    report = write_report(tmp_path)
    assert [name for name, _, _ in report_tables(report)] == ["tasks", "episodes", "latency_ms"]
    assert "did not record where their time went" in (tmp_path / "report.html").read_text()


def test_failures_come_first_with_their_errors_and_what_was_run_again(tmp_path):
    make_run(tmp_path, RaisingPolicy(), num_trials=2)
    assert set_crashed_aside(tmp_path / "results.jsonl") > 0
    make_run(tmp_path, StillPolicy(), num_trials=2)  # goes on with the missing ones
    report = write_report(tmp_path)
    assert len(report["retried"]) == 3 and all("illegal memory" in one["error"] for one in report["retried"])
    page = (tmp_path / "report.html").read_text()
    assert page.index('<h2 id="failures">') < page.index("<h2>Success</h2>")
    assert page.count("run again after RuntimeError: CUDA error") == 3
    assert page.count('<span class="soft">not recorded</span>') == sum(not one["success"] for one in report["episodes"])


def test_a_run_without_failures_has_no_list_of_them(tmp_path):
    make_run(tmp_path, SeeingPolicy(), num_trials=1)
    assert write_report(tmp_path)["retried"] == [] and 'id="failures"' not in (tmp_path / "report.html").read_text()


def test_the_first_rejection_is_that_of_the_first_chunk_that_was_not_accepted_whole():
    trace = {"columns": ["step", "accepted"], "rows": [[0, 2], [3, None], [6, 1], [9, 0]]}
    assert first_rejection({"trace": trace}, 2) == 6
    assert first_rejection({"trace": trace}, 0) is first_rejection({"trace": None}, 2) is None
