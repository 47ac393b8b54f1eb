"""arena.html in a real browser, with the figures of docs/results: what is wider than the window stays in its box."""

import json
from pathlib import Path

import pytest

from rsd.arena.report import page as page_of
from tests.evaluation.browser import BROWSER, browser

REPORT = Path(__file__).parents[2] / "docs" / "results" / "tokenizer_arena" / "two_h200.json"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on the PATH"),
]


@pytest.mark.parametrize("width", [1265, 360])  # a window of 1280 beside its scroll bar, and a telephone
def test_tables_fit_a_laptop_and_scroll_in_their_boxes_on_a_telephone(tmp_path, width):
    (tmp_path / "arena.html").write_text(page_of(json.loads(REPORT.read_text())))
    with browser(tmp_path / "profile") as page:
        page.open(tmp_path / "arena.html", width=width)
        assert page.value("document.documentElement.scrollWidth") <= width
        boxes = "[...document.querySelectorAll('.scroll')]"
        assert page.value(f"{boxes}.length") == 4
        assert page.value(f"{boxes}.every(one => one.scrollWidth <= one.clientWidth)") == (width > 1000)
        assert page.complaints == []
