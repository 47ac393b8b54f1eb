"""Every figure in the tables of docs/tokenizer_arena.md is one of the raw reports."""

import json
from pathlib import Path

from rsd.arena.report import HEADER, REPLAYED, cells_of, replayed_cells, rows_of

DOCS = Path(__file__).parents[2] / "docs"
RAW = DOCS / "results" / "tokenizer_arena" / "twenty_a_suite.json"


def tables():
    """Header → rows of each table behind "Measured"."""
    lines = (DOCS / "tokenizer_arena.md").read_text().split("## Measured")[1].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
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


def test_every_row_of_the_tables_is_of_the_raw_report():
    reports = [*json.loads(RAW.read_text()).values()]
    rows = [row for report in reports for row in rows_of(report)]
    known = [cells_of(row) for row in rows]
    replayed = [cells for report in reports if "pooled" in report for cells in replayed_cells(report)]
    whole = {(row["suite"], row["contestant"]): in_short(row) for row in rows if row["depth"] == row["num_stages"]}
    found = tables()
    assert tuple(HEADER) in found and sum(map(len, found.values())) > 20
    for header, own in found.items():
        for row in own:
            if header == HEADER:
                assert row in known
            elif header == REPLAYED:
                assert row in replayed
            else:
                suites = [name.split(":")[0] for name in header[1:]]
                assert row[1:] == [whole.get((suite, row[0]), "–") for suite in suites]
