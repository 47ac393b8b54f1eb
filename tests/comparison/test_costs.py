"""What candidates cost on the same episodes, whom nobody beats, and failures that an acceleration has brought."""

import math
import re
import shutil
import subprocess
from xml.etree import ElementTree

import pytest
from scipy.stats import binom

from rsd.comparison.candidates import ComparisonError, group_by_name, group_by_seed, read_run
from rsd.comparison.comparison import build_comparison
from rsd.comparison.comparison_page import pareto_plots, render_comparison, render_plots
from rsd.comparison.costs import pareto_front
from rsd.comparison.paired import upper_bound
from rsd.comparison.published import load_published
from rsd.evaluation.axes import Axis
from scripts.compare import compare
from tests.comparison.run_folders import planned, provenance, write_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WORK = {"num_chunks": 4, "vision_calls": 4, "base_layers": 24}
LESS = {"num_chunks": 4, "early_exits": 2, "vision_calls": 2, "base_layers": 12}


@pytest.fixture
def arms(tmp_path):
    """The reference solves 3 of 4; B as many with half of the base model, losing one and winning one; C 1 of 4."""
    given = {"l1": ("+++-", WORK, 8.0), "temporal": ("-+++", LESS, 3.0), "hold": ("+--- ", LESS, 4.0)}
    runs = [
        write_run(
            tmp_path / name, {0: row}, plan=planned(num_tasks=1, num_trials=5, policy={"decoding": name}),
            made_with=provenance(decoding=name), stats=stats, model_ms=ms, jerk=ms / 10,
        )
        for name, (row, stats, ms) in given.items()
    ]  # fmt: skip
    return group_by_seed([read_run(run) for run in runs])


def build(candidates):
    return build_comparison(candidates, margin=0.5, allow=(), published=load_published())


def test_the_upper_bound_is_that_of_clopper_and_pearson():
    assert upper_bound(0, 100) == pytest.approx(1 - 0.05 ** (1 / 100))  # the rule of three: 3.0 %
    bound = upper_bound(3, 200)
    assert binom.cdf(3, 200, bound) == pytest.approx(0.05) and 3 / 200 < bound < 0.04
    assert upper_bound(5, 5) == upper_bound(0, 0) == 1.0


def test_failures_that_only_the_acceleration_has_are_counted_with_their_bound(arms):
    b, c = build(arms)["comparisons"]
    assert b["induced_failures"] == {"count": 1, "num_pairs": 4, "share": 0.25, "bound": upper_bound(1, 4)}
    assert c["induced_failures"]["count"] == 2 and b["only_other"] == 1  # which sets nothing off
    assert b["work_shares"] == {"base_calls": 0.5, "base_layers": 0.5} and b["steps_where_both_solve"] == [20, 20]


def test_the_goal_is_half_of_the_work_and_no_worse(arms, monkeypatch):
    assert [pair["goal"] for pair in build(arms)["comparisons"]] == [False, False]  # 4 pairs show nothing
    monkeypatch.setattr("rsd.comparison.comparison.noninferiority", lambda *_: "non-inferior")
    assert [pair["goal"] for pair in build(arms)["comparisons"]] == [True, True]
    monkeypatch.setattr("rsd.comparison.comparison.GOAL", 0.49)
    assert [pair["goal"] for pair in build(arms)["comparisons"]] == [False, False]


def test_costs_are_those_of_a_solved_episode_on_the_episodes_that_all_have(arms):
    costs = build(arms)["costs"]
    assert costs["num_episodes"] == 4
    a, b, c = costs["candidates"]
    assert (a["model_ms"], b["model_ms"], c["model_ms"]) == (32 / 3, 4.0, 16.0)
    assert (a["base_calls"], b["base_calls"], c["base_calls"], a["calls"]) == (16 / 3, 8 / 3, 8.0, 16 / 3)
    assert a["early_exit_share"] is None and b["early_exit_share"] == 0.5
    assert a["jerk"] == pytest.approx(0.8) and a["steps_to_success"] == 20
    assert costs["fronts"] == {"model_ms": ["B"], "base_calls": ["B"], "base_layers": ["B"]}


def test_an_episode_that_crashed_in_one_of_them_is_in_no_ones_costs(tmp_path):
    runs = [write_run(tmp_path / name, {0: row}, stats=WORK) for name, row in (("a", "++"), ("b", "+!"))]
    costs = build(group_by_seed([read_run(run) for run in runs]))["costs"]
    assert costs["num_episodes"] == 1 and costs["candidates"][0]["base_calls"] == 4
    assert costs["candidates"][0]["model_ms"] is None and costs["candidates"][0]["jerk"] is None  # of old runs


def test_suites_are_pooled_by_the_names_of_their_folders(tmp_path):
    """Task 0 of two suites: the pairs are counted together, and the tasks told apart."""
    given = {"spatial": {"l1": "+++-", "hold": "-++-"}, "object": {"l1": "++", "hold": "+-"}}
    runs = []
    for suite, rows in given.items():
        (tmp_path / suite).mkdir()
        for name, row in rows.items():
            plan = planned(num_tasks=1, num_trials=len(row), suite=suite, policy={"decoding": name})
            stats = WORK if name == "l1" else LESS
            runs.append(write_run(tmp_path / suite / name, {0: row}, plan=plan, suite=suite, stats=stats, model_ms=1.0))
    candidates = group_by_name([read_run(run) for run in runs])
    assert [(c.letter, c.name, c.suites) for c in candidates] == [
        ("A", "l1 of 2 suites", ["object", "spatial"]), ("B", "hold of 2 suites", ["object", "spatial"])
    ]  # fmt: skip
    comparison = build(candidates)
    (pair,) = comparison["comparisons"]
    assert (pair["num_pairs"], pair["only_reference"], pair["both"], pair["neither"]) == (6, 2, 3, 1)
    assert pair["induced_failures"]["bound"] == upper_bound(2, 6) and pair["work_shares"]["base_calls"] == 0.5
    assert [(task["suite"], task["num_pairs"]) for task in pair["tasks"]] == [("object", 2), ("spatial", 4)]
    assert comparison["costs"]["num_episodes"] == 6 and comparison["candidates"][0]["seeds"] is None
    page = render_comparison(comparison, candidates)
    assert "Comparison on object, spatial" in page and "Task spatial 0" in page
    out = tmp_path / "out"
    told = compare(runs[1:] + runs[:1], margin=0.5, reference=runs[2], allow=(), out=out, pool=True)
    assert told["comparisons"] == comparison["comparisons"] and (out / "pareto_base_calls.svg").is_file()

    with pytest.raises(ComparisonError, match="hold is of spatial, l1 of object, spatial; expected the same suites"):
        group_by_name([read_run(run) for run in runs[:3]])
    with pytest.raises(ComparisonError, match="the folders have 1 names, l1; expected two or more"):
        group_by_name([read_run(run) for run in runs[::2]])
    (tmp_path / "more").mkdir()
    again = write_run(tmp_path / "more" / "l1", {0: "+"}, suite="spatial")
    with pytest.raises(ComparisonError, match="of the 3 runs named l1 two are of one suite; give one of them"):
        group_by_name([read_run(run) for run in [*runs, again]])
    plan = planned(num_tasks=1, num_trials=1, suite="goal", policy={"decoding": "exit"})
    other = write_run(tmp_path / "hold", {0: "+"}, suite="goal", plan=plan)
    (tmp_path / "goal").mkdir()
    baseline = planned(num_tasks=1, num_trials=1, suite="goal", policy={"decoding": "l1"})
    first = write_run(tmp_path / "goal" / "l1", {0: "+"}, suite="goal", plan=baseline)
    with pytest.raises(ComparisonError, match="are not of the same decoding: decoding: hold → exit"):
        group_by_name([read_run(run) for run in (runs[0], first, runs[1], other)])


def test_a_gate_that_becomes_surer_when_a_camera_fails_is_told(tmp_path):
    broken = {"ablation": "CameraOutage(views=['image'], start=16)"}
    runs = [
        write_run(tmp_path / name, {0: "++"}, plan=planned(num_tasks=1, num_trials=2, **plan), stats=LESS, **steps)
        for name, plan, steps in (
            ("clean", {}, {"chunk_steps": [0, 8, 16, 24], "exit_steps": [8, 24]}),
            ("broken", broken, {"chunk_steps": [0, 8, 16, 24, 32], "exit_steps": [16, 24, 32]}),
        )
    ]
    assert build(group_by_seed([read_run(run) for run in runs]))["notes"] == [
        "B, CameraOutage(views=['image'], start=16): from step 16 on 100.0% of the chunks were decided early, "
        "50.0% of A's on the same episodes"
    ]


def test_the_front_is_what_nobody_beats():
    rows = [
        {"letter": letter, "success_rate": success, "cost": cost}
        for letter, success, cost in [
            ("A", 0.98, 10), ("B", 0.97, 4), ("C", 0.97, 5), ("D", 0.9, 4), ("E", 0.5, 1), ("F", 0.98, 10),
            ("G", None, 1), ("H", 0.99, None),
        ]
    ]  # fmt: skip
    assert pareto_front(rows, "cost") == ["E", "B", "A", "F"]


def test_axes_have_round_ticks_inside():
    axis = Axis(0.0, 27.0, 44, 348)
    assert axis.ticks == [0, 10, 20] and axis.at(0) == 44 and axis.at(27) == 348 and axis.at(99) == 348
    assert Axis(0.83, 1.0, 212, 12).ticks == pytest.approx([0.85, 0.9, 0.95, 1.0])


def test_plots_have_a_point_for_each_candidate_and_milliseconds_only_where_comparable(arms):
    comparison = build(arms)
    plots = {plot["cost"]: plot for plot in pareto_plots(comparison)}
    assert list(plots) == ["model_ms", "base_calls", "base_layers"]
    points = plots["model_ms"]["points"]
    assert [(p["letter"], p["on_front"], p["is_reference"]) for p in points] == [
        ("A", False, True), ("B", True, False), ("C", False, False)
    ]  # fmt: skip
    assert points[1]["x"] < points[0]["x"] < points[2]["x"] and points[2]["y"] > points[0]["y"] == points[1]["y"]
    assert all(math.isfinite(p[key]) for p in points for key in ("x", "y", "y_low", "y_high"))
    comparison["latency_note"] = "Latencies are not comparable: why."
    assert [plot["cost"] for plot in pareto_plots(comparison)] == ["base_calls", "base_layers"]
    assert "Milliseconds are not plotted. Latencies are not comparable" in render_comparison(comparison, arms)


def test_a_plot_as_a_file_has_the_names_of_the_candidates(arms):
    comparison = build(arms)
    files = render_plots(comparison)
    assert list(files) == ["pareto_model_ms.svg", "pareto_base_calls.svg", "pareto_base_layers.svg"]
    tree = ElementTree.fromstring(files["pareto_model_ms.svg"])
    names = {"".join(text.itertext()) for text in tree.iter("{http://www.w3.org/2000/svg}text")}
    assert {"A: l1", "B: temporal", "C: hold", "model-milliseconds a solved episode"} <= names
    assert (
        len(list(tree.iter("{http://www.w3.org/2000/svg}circle"))) == 3
        and "svg.pareto .front" in files["pareto_model_ms.svg"]
    )
    assert "A: l1</text>" not in render_comparison(comparison, arms)  # the page has a table


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on the PATH")
def test_the_plot_in_a_browser(arms, tmp_path):
    page = tmp_path / "comparison.html"
    page.write_text(render_comparison(build(arms), arms))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--enable-logging=stderr", "--virtual-time-budget=5000", "--dump-dom", page.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert not [line for line in shown.stderr.splitlines() if "CONSOLE" in line]
    (plot,) = re.findall(r'<svg [^>]*class="pareto"[^>]*data-cost="model_ms">.*?</svg>', shown.stdout, re.DOTALL)
    assert plot.count("<circle") == 3 and plot.count('class="point reference"') == 1
    assert plot.count("on-front") == 1 and "B: 75.0 %, 4 model-milliseconds a solved episode" in plot
