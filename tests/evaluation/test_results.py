"""results.jsonl: what is on disk stays, what is torn is kept aside."""

import errno
import json
import os
import resource
import signal

import pytest

from rsd.evaluation.evaluate import check_all_kept
from rsd.evaluation.plan import PlannedEpisode
from rsd.evaluation.results import ResultsError, append_result, read_results, set_torn_line_aside
from rsd.types import EpisodeResult


def episode(task_id: int, init_state_id: int, **values) -> EpisodeResult:
    fields = {"success": True, "num_steps": 10, "stats": {"counts": [1, 2]}, "latency_ms": {"total": [1.5]}, **values}
    return EpisodeResult("point_mass", task_id, "move", init_state_id, 0, **fields)


def test_append_and_read(tmp_path):
    results = [episode(0, 0), episode(0, 1, success=False, error="ValueError: ‘x’\nline"), episode(1, 0)]
    for result in results:
        append_result(tmp_path / "results.jsonl", result)
    assert read_results(tmp_path / "results.jsonl") == (results, b"")


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ([[0.1]], "entry 'bounds' has 1 entries, expected one for each of the 2 chunks, or none"),
        ([[0.1], [0.1, 0.2]], r"entry 'bounds' is of \[1, 2\] action dims, expected the same for each chunk"),
        ([[-0.1], None], "bounds"),
        ([0.1, 0.2], "bounds"),
    ],
)
def test_bounds_that_cannot_be_are_named(tmp_path, bounds, message):
    path = tmp_path / "results.jsonl"
    append_result(path, episode(0, 0, stats={"num_chunks": 2}, bounds=[[0.1, 0.2], None]))
    assert read_results(path)[0][0].bounds == [[0.1, 0.2], None]
    append_result(path, episode(0, 1, stats={"num_chunks": 2}, bounds=bounds))
    with pytest.raises(ResultsError, match=f"line 2 is damaged: .*{message}"):
        read_results(path, strict=True)


def test_a_missing_file_is_an_empty_run(tmp_path):
    assert read_results(tmp_path / "results.jsonl") == ([], b"")


@pytest.mark.parametrize("torn", [b'{"suite": "poi', b"\0\0\0\0", b'{"suite": 1}\n', b"not json\n"])
def test_a_torn_last_line_is_kept_aside(tmp_path, torn):
    path = tmp_path / "results.jsonl"
    append_result(path, episode(0, 0))
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert read_results(path) == ([episode(0, 0)], torn)
    aside = set_torn_line_aside(path)
    assert aside.name == "results.jsonl.torn-1" and aside.read_bytes() == torn and path.read_bytes() == whole
    assert set_torn_line_aside(path) is None
    path.write_bytes(whole + torn)
    assert set_torn_line_aside(path).name == "results.jsonl.torn-2"


def test_damage_before_the_last_line_is_an_error(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_bytes(b"garbage\n")
    append_result(path, episode(0, 0))
    with pytest.raises(ResultsError, match="line 1 is damaged"):
        read_results(path)


def test_an_episode_twice_is_an_error(tmp_path):
    path = tmp_path / "results.jsonl"
    append_result(path, episode(0, 3))
    append_result(path, episode(0, 3))
    with pytest.raises(ResultsError, match="lines 1 and 2 are both task 0, init state 3"):
        read_results(path)


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "results.jsonl"
    append_result(path, episode(0, 0))
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResultsError, match=r"No space left on device.*resume="):
        append_result(path, episode(0, 1))
    assert path.read_bytes() == before


def test_a_line_that_fits_only_in_part_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "results.jsonl"
    append_result(path, episode(0, 0))
    whole = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 20, limits[1]))
    try:
        with pytest.raises(ResultsError, match=r"only 20 of \d+ bytes were written; the disk is probably full"):
            append_result(path, episode(0, 1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == whole


def test_a_folder_that_was_removed_is_not_called_intact(tmp_path):
    with pytest.raises(ResultsError, match=r"gone/results\.jsonl: its folder was removed .* start anew"):
        append_result(tmp_path / "gone" / "results.jsonl", episode(0, 0))


@pytest.mark.parametrize("kept", [0, 1])
def test_episodes_that_are_not_on_disk_any_more_are_named(tmp_path, kept):
    results = [episode(0, 0), episode(1, 0)]
    for result in results[:kept]:
        append_result(tmp_path / "results.jsonl", result)
    append_result(tmp_path / "results.jsonl", episode(7, 0))  # not planned: it stands for no other
    plan = [PlannedEpisode(task_id, 0, 0, record=False) for task_id in (0, 1)]
    missing = r"\[\(0, 0\), \(1, 0\)\]" if not kept else r"\[\(1, 0\)\]"
    with pytest.raises(
        ResultsError, match=rf"holds {kept} of the 2 planned episodes; the others, .* {missing}, .* resume={tmp_path}"
    ):
        check_all_kept(tmp_path, plan)
    for result in results[kept:]:
        append_result(tmp_path / "results.jsonl", result)
    check_all_kept(tmp_path, plan)


def test_a_changed_digit_is_found_and_a_line_without_checksum_is_of_an_earlier_version(tmp_path):
    path = tmp_path / "results.jsonl"
    append_result(path, episode(0, 0))
    append_result(path, episode(0, 1))
    whole = path.read_text()
    path.write_text(whole.replace('"num_steps": 10', '"num_steps": 18', 1))
    with pytest.raises(ResultsError, match=r"results\.jsonl, line 1 is damaged.*'checksum'.*repair or remove"):
        read_results(path)
    lines = [json.loads(line) for line in whole.splitlines()]
    path.write_text("".join(json.dumps({k: v for k, v in one.items() if k != "checksum"}) + "\n" for one in lines))
    assert read_results(path) == ([episode(0, 0), episode(0, 1)], b"")
