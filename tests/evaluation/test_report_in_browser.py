"""The report in a real browser, opened from disk: its script runs, and nothing is fetched or complained about."""

import base64
import re
import subprocess

import pytest

from rsd.comparison.candidates import group_by_seed, read_run
from rsd.comparison.comparison import build_comparison
from rsd.comparison.comparison_page import render_comparison
from rsd.comparison.published import load_published
from rsd.evaluation.report import write_report
from tests.evaluation.browser import BROWSER, browser
from tests.evaluation.folders import make_run
from tests.evaluation.policies import EarlyExitPolicy, SeeingPolicy, StillPolicy

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on the PATH"),
]


def opened(page, profile, fragment=""):
    """The document after its scripts have run, and what the browser's console said."""
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    command += ["--enable-logging=stderr", "--virtual-time-budget=5000", "--dump-dom", f"{page.as_uri()}{fragment}"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return result.stdout, [line for line in result.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    pytest.importorskip("imageio_ffmpeg")
    run_dir = tmp_path_factory.mktemp("run")
    make_run(run_dir, SeeingPolicy(num_open_loop_steps=3), num_trials=2, save_videos=2)
    return run_dir


def test_the_player_shows_each_chunk_of_the_first_episode(run_dir, tmp_path):
    report = write_report(run_dir)
    document, complaints = opened(run_dir / "report.html", tmp_path)
    assert complaints == []
    assert len(re.findall(r'class="chunk( current)?"', document)) == -(-report["episodes"][0]["num_steps"] // 3)
    assert document.count('class="chunk current"') == 1
    assert re.search(r"Task 0, init state 0: <span class=\"good\">success</span>", document)


def test_the_player_says_where_a_chunk_ended(tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    make_run(tmp_path, EarlyExitPolicy(), num_trials=1, save_videos=1)
    write_report(tmp_path)
    document, complaints = opened(tmp_path / "report.html", tmp_path / "profile")
    assert complaints == [] and "nothing was proposed to a target" in document
    columns = re.findall(r'class="chunk(?: current)?"[^>]*title="([^"]*)"', document)
    early = [column for column in columns if "ended at: draft\nbase layers: 3" in column]
    whole = [column for column in columns if "ended at: whole\nbase layers: 6\ndraft − executed: 0." in column]
    assert early and whole and len(early) + len(whole) == len(columns)
    assert not any("executed" in column for column in early)


def test_a_link_opens_its_episode_and_a_click_on_the_timeline_seeks(run_dir, tmp_path):
    report = write_report(run_dir)
    clicking = """<script>
      const video = document.querySelector("video");
      const click = () => document.querySelectorAll(".chunk")[2].click();
      if (video.readyState) click(); else video.addEventListener("loadedmetadata", click);
    </script>"""
    page = run_dir / "clicked.html"
    page.write_text((run_dir / "report.html").read_text().replace("</body>", clicking + "</body>"))
    document, complaints = opened(page, tmp_path, "#task1-init1")
    assert complaints == []
    assert "Task 1, init state 1" in document
    (episode,) = [e for e in report["episodes"] if (e["task_id"], e["init_state_id"]) == (1, 1)]
    assert len(re.findall(r'class="chunk( current)?"', document)) == -(-episode["num_steps"] // 3)
    assert re.findall(r'class="chunk current" data-index="(\d+)"', document) == ["2"]
    assert '<dd class="">6 – 8</dd>' in document  # its control steps


def test_an_episode_without_a_trace_has_its_video_and_says_so(tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    make_run(tmp_path, StillPolicy(), num_trials=1, save_videos=1)
    for trace in (tmp_path / "traces").iterdir():
        trace.unlink()
    write_report(tmp_path)
    document, complaints = opened(tmp_path / "report.html", tmp_path / "profile")
    assert complaints == [] and 'class="chunk' not in document
    assert "No trace of this episode's chunks is there" in document
    assert re.search(r'<video [^>]*src="data:video/mp4', document)


@pytest.mark.parametrize("width", [380, 1400])
def test_nothing_is_wider_than_the_screen_and_the_keyboard_reaches_the_player(run_dir, tmp_path, width):
    write_report(run_dir)
    with browser(tmp_path / "profile") as page:
        page.open(run_dir / "report.html", width=width)
        assert page.value("innerWidth") == width
        assert page.value("document.documentElement.scrollWidth") <= width
        rate = "[...document.querySelectorAll('th')].find(one => one.textContent === 'Rate %')"
        assert page.value(f"{rate}.getBoundingClientRect().right") <= width  # seen without moving the table
        for _ in range(60):
            page.press("Tab", 9)
            if page.value("document.activeElement.classList.contains('timeline')"):
                break
        else:
            pytest.fail("Tab does not reach the timeline")
        page.wait_for("document.querySelector('video').readyState >= 1")
        page.press("ArrowRight", 39)
        page.wait_for("document.querySelector('.timeline').getAttribute('aria-valuenow') === '2'")
        assert page.complaints == []


@pytest.mark.parametrize("name", ["report.html", "comparison.html"])
def test_on_paper_no_table_is_cut_off_and_nothing_is_there_that_paper_cannot_do(run_dir, tmp_path, name):
    make_run(tmp_path / "still", StillPolicy(), num_trials=2, save_videos=1)
    write_report(tmp_path / "still")
    candidates = group_by_seed([read_run(run_dir), read_run(tmp_path / "still")])
    comparison = build_comparison(candidates, margin=0.02, allow=(), published=load_published())
    (tmp_path / "still" / "comparison.html").write_text(render_comparison(comparison, candidates))
    with browser(tmp_path / "profile") as page:
        dark = {"name": "prefers-color-scheme", "value": "dark"}
        page.call("Emulation.setEmulatedMedia", media="print", features=[dark])
        page.open(tmp_path / "still" / name, width=695)  # A4 between its margins
        tables = "[...document.querySelectorAll('table')].filter(one => one.offsetWidth)"
        assert page.value(f"{tables}.length") > 3
        assert page.value(f"{tables}.every(one => one.getBoundingClientRect().right <= innerWidth)")
        assert page.value("document.documentElement.scrollWidth") <= 695
        assert page.value("document.querySelectorAll('video').length") > 0
        assert page.value("[...document.querySelectorAll('video, button')].every(one => one.offsetWidth === 0)")
        assert page.value("getComputedStyle(document.documentElement).colorScheme") == "light"
        paper = page.call("Page.printToPDF", preferCSSPageSize=True)
        assert base64.b64decode(paper["data"]).startswith(b"%PDF") and page.complaints == []


def test_a_link_to_a_step_begins_with_its_chunk(run_dir, tmp_path):
    write_report(run_dir)
    with browser(tmp_path / "profile") as page:
        page.open(run_dir / "report.html", width=1400, fragment="#task1-init0@7")
        page.wait_for("document.querySelector('.timeline').getAttribute('aria-valuenow') === '3'")  # of steps 6, 7, 8
        assert "Task 1, init state 0" in page.value("document.querySelector('.title').textContent")
        assert page.complaints == []


@pytest.mark.parametrize("width", [380, 1400])
def test_a_comparison_plays_two_videos_side_by_side(run_dir, tmp_path, width):
    make_run(tmp_path / "still", StillPolicy(), num_trials=2, save_videos=1)
    candidates = group_by_seed([read_run(run_dir), read_run(tmp_path / "still")])
    comparison = build_comparison(candidates, margin=0.02, allow=(), published=load_published())
    (tmp_path / "comparison.html").write_text(render_comparison(comparison, candidates))
    with browser(tmp_path / "profile") as page:
        page.open(tmp_path / "comparison.html", width=width)
        assert page.value("document.documentElement.scrollWidth") <= width
        left, right = page.value("[...document.querySelectorAll('.filmed video')].slice(0, 2).map(v => v.offsetLeft)")
        assert left < right < width
        page.value("document.querySelector('.filmed button').click()")
        page.wait_for("[...document.querySelectorAll('.filmed video')].slice(0, 2).every(v => v.currentTime > 0)")
        assert page.complaints == []
