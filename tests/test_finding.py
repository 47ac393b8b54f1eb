"""Findings and their words."""

import pytest

from rsd.finding import FAILED, OK, WARNING, Finding, judged


@pytest.mark.parametrize(
    ("status", "passed", "text"),
    [(OK, True, "5 GB free"), (WARNING, True, "5 GB free; make room"), (FAILED, False, "5 GB free; make room")],
)
def test_the_remedy_is_said_where_it_is_needed(status, passed, text):
    finding = Finding("disk", status, "5 GB free", "make room")
    assert (finding.passed, finding.text) == (passed, text)
    assert Finding("disk", status, "5 GB free").text == "5 GB free"


def test_a_judgement_is_ok_or_failed():
    assert judged("disk", True, "all is well") == Finding("disk", OK, "all is well")
    assert judged("disk", False, "none", "make room") == Finding("disk", FAILED, "none", "make room")
