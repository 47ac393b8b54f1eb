"""Every figure in the tables of docs/tokenizer_arena.md is one of the raw report, and its rates are of its episodes."""

import json
import re
from pathlib import Path

import pytest

from rsd.arena.report import HEADER, REPLAYED, cells_of, replayed_cells, rows_of
from rsd.comparison.arms import summarize_arms

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "tokenizer_arena.md").read_text().split("## Measured")[1]


@pytest.fixture(scope="module")
def report():
    return json.loads((DOCS / "results" / "tokenizer_arena" / "two_h200.json").read_text())


def tables():
    """Header → rows of each table behind "Measured"."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in TEXT.splitlines() if line[:2] == "| "]
    found = {}
    for row in rows:
        if row[0] in ("contestant", "arm", "whole code"):
            own = found[tuple(row)] = []
        else:
            own.append(row)
    return found


def in_short(row):
    """A whole code in one cell."""
    _, _, _, bits, _, _, millimetres, degrees, *_ = cells_of(row)
    return f"{bits}, {millimetres}, {degrees.split(' / ')[0]}"


def test_every_row_of_the_tables_is_of_the_raw_report(report):
    rows = rows_of(report)
    known, replayed = [cells_of(row) for row in rows if row["suite"] == "libero_spatial"], replayed_cells(report)
    whole = {(row["suite"], row["contestant"]): in_short(row) for row in rows if row["depth"] == row["num_stages"]}
    found = tables()
    assert [len(found[header]) for header in (REPLAYED, HEADER)] == [17, 21] and len(found) == 3
    for header, own in found.items():
        for row in own:
            if header == HEADER:
                assert row in known
            elif header == REPLAYED:
                assert row in replayed
            else:
                suites = [name.split(":")[0] for name in header[1:]]
                assert row[1:] == [whole[suite, row[0]] for suite in suites]


def test_rates_are_of_the_episodes_and_what_is_lost_beyond_normalising_is_counted(report):
    episodes = [
        dict.fromkeys(one["solved"], True) | dict.fromkeys(one["not"], False)
        for own in report["outcomes"].values()
        for one in own.values()
    ]
    assert len(episodes) == 60
    assert {one["arm"]: one for one in summarize_arms(episodes, "raw")} == {one["arm"]: one for one in report["pooled"]}
    beyond = {one["arm"]: one for one in summarize_arms(episodes, "normalised")}
    stages = {name: len(one["depths"]) for name, one in report["suites"]["libero_goal"]["contestants"].items()}
    lost = {name: beyond[f"{name} {count}/{count}"]["lost"] for name, count in stages.items()}
    assert {name for name, count in lost.items() if not count} == {"dct_d3", "dct_d4", "rfsq_d4", "rfsq_d8"}
    said = re.search("Beyond normalising (.*) of the 57", " ".join(TEXT.split())).group(1)
    pairs = re.findall(r"`(\w+)` (?:loses )?(\d+)", said)
    assert {name: int(count) for name, count in pairs} == {name: count for name, count in lost.items() if count}
