"""Small files that are whole or not there."""

import errno
import os
import subprocess
import sys

import pytest

from rsd.files import WriteError, write_atomically
from rsd.record import read_json


def test_text_and_bytes_are_written_and_read_again(tmp_path):
    path = tmp_path / "file.json"
    assert read_json(path) is None
    write_atomically(path, '{"name": "→"}')
    assert read_json(path) == {"name": "→"} and path.read_bytes() == '{"name": "→"}'.encode()
    write_atomically(path, b"[1]")
    assert read_json(path) == [1] and list(tmp_path.iterdir()) == [path]


def test_text_that_cannot_be_encoded_touches_nothing(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \ud800")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, "old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"


def test_what_is_no_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "folder", "link"):
        with pytest.raises(WriteError, match=f"{name}: it is no file; make room, or choose"):
            write_atomically(tmp_path / name, "new")
    assert {path.name for path in tmp_path.iterdir()} == {"pipe", "folder", "link"}
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "link").is_symlink()


def test_file_and_folder_are_synced(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync

    def note(descriptor):
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    write_atomically(tmp_path / "file", "text")
    assert synced == [str(tmp_path / "file.tmp"), str(tmp_path)]


WRITE = """
import sys
from pathlib import Path
from rsd.files import write_atomically
for number in range(100):
    write_atomically(Path(sys.argv[1]), sys.argv[2] * 5000)
"""


def test_processes_that_write_the_same_file_at_once_do_not_fail_and_leave_nothing(tmp_path):
    (tmp_path / "file.tmp").write_text("left by a process that was killed")
    command = [sys.executable, "-c", WRITE, str(tmp_path / "file")]
    writers = [subprocess.Popen([*command, letter], stderr=subprocess.PIPE, text=True) for letter in "abcd"]
    assert [writer.communicate()[1] for writer in writers] == [""] * 4
    assert (tmp_path / "file").read_text() in [letter * 5000 for letter in "abcd"]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
