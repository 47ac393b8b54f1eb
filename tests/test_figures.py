"""Figures that README, guide and pages repeat are those of the raw results in docs/results."""

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
STRICT = ["README.md", "docs/guide.md"]
DECODINGS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/decodings/*.md"))
NUMBER = r"[+−]?\d+\.\d"
PAIRED = re.compile(
    rf"({NUMBER}) \(({NUMBER}) … ({NUMBER})\)(?: of (\d+))?(?: episodes of three suites)?"
    r"(?:: \**(non-inferior|inferior|undecided))?"
)
SOLVED = re.compile(r"\b(\d+)(?:/| of )(\d+)(?= \|| of libero| episodes|$)", re.M)
FASTER = re.compile(r"\| (\d+\.\d+) \| (\d\.\d\d) \((\d\.\d\d) … (\d\.\d\d)\)")
ROW = re.compile(r"^\| `[^|]* \| (\d+)/(\d+) \| [^|]* \|([^|(]*)[^|]*\| (\d+) % \| (\d+) % \| (\d+) \|$", re.M)


def points(share: float) -> str:
    """A share as it stands in a text: points with their sign."""
    rounded = f"{100 * share:+.1f}".replace("-", "−")
    return rounded[1:] if rounded[1:] == "0.0" else rounded


@cache
def records() -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(RESULTS.rglob("*.json"))]


@cache
def paired() -> list[tuple[tuple[str, str, str], int, str]]:
    pairs = [one for record in records() if "comparisons" in record for one in record["comparisons"]]
    keys = ("difference", "low", "high")
    return [((*(points(one[key]) for key in keys),), one["num_pairs"], one["verdict"]) for one in pairs]


def successes(value: Any) -> Iterator[tuple[int, int]]:
    """(solved, episodes) of every account of successes in a record."""
    if isinstance(value, dict):
        if "num_success" in value and "num_errors" in value:
            yield value["num_success"], value["num_episodes"] - value["num_errors"]
        for one in value.values():
            yield from successes(one)
    elif isinstance(value, list):
        for one in value:
            yield from successes(one)


@pytest.mark.parametrize("page", [*STRICT, *DECODINGS])
def test_paired_differences(page):
    for found in PAIRED.finditer((ROOT / page).read_text(encoding="utf-8")):
        triple, count, verdict = found.groups()[:3], found[4], found[5]
        same = [one for one in paired() if one[0] == triple]
        if not same and page not in STRICT:  # of before there were such records: told with its command
            assert "({} … {})".format(*triple[1:]) in (RESULTS / "README.md").read_text(encoding="utf-8"), found[0]
            continue
        assert same, f"{found[0]}: no comparison in docs/results has it"
        assert count is None or int(count) in [one[1] for one in same], found[0]
        assert verdict is None or verdict in [one[2] for one in same], found[0]


def test_solved_episodes_of_the_readme_and_the_guide():
    known = {pair for record in records() for pair in successes(record)}
    for page in STRICT:
        found = SOLVED.findall((ROOT / page).read_text(encoding="utf-8"))
        assert found, page
        for solved, episodes in found:
            assert (int(solved), int(episodes)) in known, f"{page}: {solved} of {episodes}"


def test_the_table_of_the_readme():
    """Calls and layers of the same episodes; milliseconds a solved episode, of those that all rows have."""
    rows = ROW.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(rows) == 5
    record = json.loads((RESULTS / "closed_loop/three_suites_h200.json").read_text())
    pairs = {one["other"]: one for one in record["comparisons"]}
    costs = {one["letter"]: one for one in record["costs"]["candidates"]}
    for solved, episodes, difference, calls, layers, ms in rows:
        (own,) = (
            one for one in record["candidates"]
            if (one["success"]["num_success"], one["success"]["num_episodes"]) == (int(solved), int(episodes))
        )  # fmt: skip
        assert f"{costs[own['letter']]['model_ms']:.0f}" == ms, solved
        if own["letter"] == "A":
            assert (difference.strip(), calls, layers) == ("", "100", "100")
            continue
        pair = pairs[own["letter"]]
        assert points(pair["difference"]) == difference.strip()
        shares = pair["work_shares"]
        assert (f"{100 * shares['base_calls']:.0f}", f"{100 * shares['base_layers']:.0f}") == (calls, layers), solved


def test_times_of_the_guide():
    rows = FASTER.findall((ROOT / "docs/guide.md").read_text(encoding="utf-8"))
    runs = json.loads((RESULTS / "latency.json").read_text())["runs"]
    arms = [arm for run in runs if run["section"] == "policy" for arm in run["arms"].values()]
    assert len(rows) >= 9
    for ms, *ratio in rows:
        digits = len(ms.partition(".")[2])
        own = [arm for arm in arms if f"{arm['wall_ms']['mean']:.{digits}f}" == ms]
        told = [[f"{one:.2f}" for one in (arm["over_l1"]["ratio"], *arm["over_l1"]["interval"])] for arm in own]
        assert ratio in told, f"{ms} ms: {ratio}, expected one of {told}"


@cache
def study(name: str) -> dict[str, Any]:
    """What docs/study.md tells of a policy: the study, and every episode."""
    return json.loads((RESULTS / "study" / f"{name}.json").read_text())


def told(page: str, row: str) -> None:
    """See that a row, or a piece of text, stands in a page, wherever its lines break."""
    assert row in " ".join((ROOT / page).read_text(encoding="utf-8").split()), f"{page} lacks {row}"


def between(one: dict[str, Any], low: str, high: str) -> str:
    return f"{points(one[low])} … {points(one[high])}"


def test_effects_of_the_studies():
    both = [study(name)["study"]["effects"] for name in ("oft_base", "released")]
    for mine, other in zip(*both, strict=True):
        cells = [
            f"{points(one['value'])} ({between(one, 'low', 'high')}; {between(one, 'all_low', 'all_high')})"
            for one in (mine, other)
        ]
        told("docs/study.md", f"| {mine['letters']} | {cells[0]} | {cells[1]} | {mine['alias'].replace('-', '−')} |")


def cell_row(row: dict[str, Any]) -> str:
    """A cell as it stands in the tables of docs/study.md, but for its name and what it changes."""
    pair = induced = mm = ""
    if row["difference"] is not None:
        pair = f"{points(row['difference'])} ({between(row, 'difference_low', 'difference_high')})"
        induced = f"{row['induced_failures']}, ≤ {100 * row['induced_bound']:.1f} %"
    if row["open_drift_mm"] is not None:
        mm = f"{row['open_translation_mm']:.1f} / {row['open_drift_mm']:.0f}"
    work = [f"{row['steps_to_success']:.0f}", f"{row['calls']:.1f}", f"{row['base_layers']:.0f}"]
    cells = [f"{row['num_success']}/{row['num_episodes']}", pair, induced, *work, mm]
    return re.sub(" +", " ", " | ".join(cells)).strip()


@pytest.mark.parametrize("name", ["oft_base", "released"])
def test_cells_of_the_studies(name):
    """The rows of the tables are the file's, and these are what its episodes give."""
    page = " ".join((ROOT / "docs/study.md").read_text(encoding="utf-8").split())
    for row in study(name)["study"]["rows"]:
        episodes = study(name)["episodes"][row["cell"]]
        assert (len(episodes), sum(one[2] for one in episodes)) == (row["num_episodes"], row["num_success"])
        if row["num_success"]:
            shown = rf"\| `{re.escape(row['cell'])}` \| (?:[^|]* \| )?{re.escape(cell_row(row))}"
            assert re.search(shown, page), f"{row['cell']} of {name}: no row with {cell_row(row)}"


def test_correlations_of_the_study():
    records = study("oft_base")["study"]["predictors"]
    found = {(one["cells"], one["error"]): one for one in records if one["loss"] == "success"}
    for error in dict.fromkeys(error for _, error in found):
        cells = [found[group, error] for group in ("all", "tokens all", "tokens grid")]
        row = (f"{one['value']:.2f} ({one['low']:.2f} … {one['high']:.2f})" for one in cells)
        told("docs/study.md", f"| {' | '.join(row)} |".replace("-", "−"))


def test_times_of_the_study():
    runs = json.loads((RESULTS / "study" / "latency_h200.json").read_text())["runs"]
    assert [one["policy"] for one in runs] == ["oft_base", "oft_base", "released"]
    shown = [{(arm["name"], arm["execution"]): arm for arm in runs[number]["arms"]} for number in (0, 2)]
    for name in dict.fromkeys(name for name, _ in shown[0]):
        cells = []
        for arms in shown:
            for how in ("eager", "compiled"):
                arm = arms.get((name, how))
                cells.append("" if arm is None else f"{arm['median_ms']:.1f} ({arm['base_ms']:.1f})")
                if arm and how == "compiled" and name != "(1)":
                    cells[-1] += f", {arm['ratio']:.2f} ({arm['low']:.2f} … {arm['high']:.2f})"
        told("docs/study.md", re.sub(" +", " ", f"| {' | '.join(cells)} |"))


def test_times_of_solved_episodes_and_of_the_readme():
    """Calls of a solved episode times ms of a call: of the reference, of `cd`, of the protocol's own eight steps."""
    arms = json.loads((RESULTS / "study" / "latency_h200.json").read_text())["runs"][0]["arms"]
    ms = {(one["name"], one["execution"]): one for one in arms}
    calls = {row["cell"]: row["calls"] for row in study("oft_base")["study"]["rows"]}
    whole = ms["(1)", "compiled"]["median_ms"]
    cd, reference, eight = (
        calls["cd"] * ms["cd", "compiled"]["median_ms"],
        calls["(1)"] * whole,
        calls["eight_steps"] * whole,
    )
    eager = calls["(1)"] * ms["(1)", "eager"]["median_ms"]
    told("docs/study.md", f"is {cd:.0f} ms of calls a solved episode, the compiled reference {reference:.0f}")
    told("docs/study.md", f"and the eager one {eager:.0f}, each with 98 of 100 solved")
    told("docs/study.md", f"the compiled whole model is {eight:.0f} ms. Of the factor {reference / cd:.1f}")
    told("docs/study.md", f"that is {reference / eight:.1f}; what the two changes save")
    told("docs/study.md", f"what the two changes save beyond the protocol is bfloat16's {eight / cd:.1f}.")
    told("README.md", f"is [{ms['cd', 'compiled']['ratio']:.2f} times as fast in bfloat16](docs/study.md)")
    told("README.md", f"with half the depth {ms['ad', 'compiled']['ratio']:.2f} times.")


def test_depth_and_delay_of_the_released_policy():
    cells = study("released")["episodes"]

    def solved(names: list[str], *tasks: int) -> int:
        return sum(one[2] for name in names for one in cells[name] if not tasks or one[0] in tasks)

    late, early = ["ae", "abce", "abde", "acde"], ["ab", "ac", "ad", "abcd"]
    rest = ["(1)", "bc", "bd", "cd"], ["be", "ce", "de", "bcde"]
    told("docs/study.md", f"{solved(early)} against {solved(rest[0])} of 400 without a delay")
    told("docs/study.md", f"{solved(late)} against {solved(rest[1])} with one")
    told("docs/study.md", f"{80 - solved(late, 4, 9)} of their {400 - solved(late)} failures are in tasks 4 and 9")
    earlier = study("released")["earlier_episodes"]
    now = {name: {(one[0], one[1]): one[2] for one in cells[name]} for name in earlier}
    other = [sum(now[name][one[0], one[1]] != one[2] for one in rows) for name, rows in earlier.items()]
    told("docs/study.md", "other in {}, {} and {} of 100 episodes".format(*other))
    drift = [f"{one['drift_mm']:.0f}" for one in study("released")["earlier_open_loop"].values()]
    told("docs/study.md", f"a drift of {', '.join(drift[:-1])} and {drift[-1]} mm (`ab`, `ac`, `bc`, `ad`, `bd`)")
    assert list(study("released")["earlier_open_loop"]) == ["ab", "ac", "bc", "ad", "bd"]


def test_the_table_of_words():
    """Success, interval and tasks, of every row, and no row of docs/results/words is left out."""
    raw = json.loads((RESULTS / "words/first.json").read_text())
    table = (ROOT / "docs/words.md").read_text(encoding="utf-8").partition("## What came out")[2].partition("\n## ")[0]
    row = re.compile(
        r"^\| (?:seed (\d): )?(\w+)(?:, ten tasks)?(?:, `(\w+)`)? \| "
        r"\**(\d+)/(\d+)\**, ([\d.]+) % \| ([\d.]+–[\d.]+) % \| (.*) \|$",
        re.M,
    )
    found = set()
    for seed, suite, variant, solved, episodes, percent, interval, tasks in row.findall(table):
        name = f"eval_seed{seed or 0}_{suite}" + f"_{variant}" * bool(variant)
        found.add(name)
        own = raw[name]["report"]["success"]
        low, high = (f"{100 * own[key]:.1f}".replace("100.0", "100") for key in ("success_low", "success_high"))
        assert (own["num_success"], own["num_episodes"], own["num_errors"]) == (int(solved), int(episodes), 0), name
        assert float(percent) == round(100 * own["success_rate"], 1) and interval == f"{low}–{high}", name
        by_task = [sum(one[2] for one in raw[name]["episodes"] if one[0] == task) for task in range(10)]
        assert tasks == " ".join(map(str, by_task)), name
    assert found == {name for name in raw if name.startswith("eval_seed")}
