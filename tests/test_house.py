"""What stands around the code agrees with it: versions, and the hosted checks with .ci/run."""

import re
from pathlib import Path

import yaml

import rsd

ROOT = Path(__file__).parents[1]


def test_version_changelog_and_citation_agree():
    newest = re.search(r"^## (\S+?),", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert newest is not None and newest[1] == rsd.__version__ == citation["version"]


def test_the_hosted_checks_are_those_of_the_repository():
    (job,) = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"].values()
    assert ".ci/run" in [step.get("run") for step in job["steps"]]


def test_whoever_reports_a_fault_is_asked_for_what_the_doctor_says():
    form = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE/bug.yml").read_text())
    asked = {field["id"]: field for field in form["body"]}
    assert "scripts/doctor.py" in asked["doctor"]["attributes"]["description"]
    assert all(field["validations"]["required"] for field in asked.values())


def test_hooks_run_what_is_installed():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [hook["entry"].split()[0] for hook in repository["hooks"]] == [".venv/bin/ruff"] * 2 + [".venv/bin/mypy"]
