"""Options of scripts: values held to the vocabulary of settings, places looked at before the work begins."""

import errno
import os
from pathlib import Path

import pytest

from rsd.errors import SettingError
from rsd.options import Options, any_path, held, new_file, new_folder, old_folder, reported
from rsd.settings import Count, Device, Positive, Seed, Share, Text


def read(kind, text, capsys):
    """The value of an option --x; the line of the refusal."""
    parser = Options(prog="script.py")
    parser.add_argument("--x", type=kind)
    try:
        return parser.parse_args([f"--x={text}"]).x
    except SystemExit as stop:
        assert stop.code == 2
        return capsys.readouterr().err


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [(Count, "8", 8), (Share, "0.02", 0.02), (Positive, "1", 1.0), (Device, "cuda:1", "cuda:1"), (Text, "a b", "a b")],
)
def test_a_value_in_range_has_its_type(annotation, text, value, capsys):
    found = read(held(annotation), text, capsys)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("annotation", "text", "told"),
    [
        (Count, "0", "is 0, expected a whole number of at least 1"),
        (Count, "-1", "is -1, expected"),
        (Count, "2.5", "is '2.5', expected"),
        (Count, "nan", "is 'nan', expected"),
        (Count, "", "is '', expected"),
        (Count, str(10**12), f"is {10**12}, expected"),
        (Seed, "-1", "is -1, expected a whole number from 0 to 4294967295"),
        (Share, "nan", "is nan, expected a number from 0 to 1"),
        (Share, "fast", "is 'fast', expected"),
        (Positive, "inf", "is inf, expected a number above 0"),
        (Device, "gpu0", "is 'gpu0', expected cpu, cuda or cuda:N"),
        (Text, "", "is '', expected text that is not empty"),
    ],
)
def test_another_one_is_refused_in_one_line(annotation, text, told, capsys):
    line = read(held(annotation), text, capsys)
    assert line.startswith(f"error: --x {told}") and line.endswith("; script.py --help names the options\n")
    assert line.count("\n") == 1


def test_places_are_looked_at_and_nothing_is_made(tmp_path, capsys):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    before = sorted(tmp_path.iterdir())
    for kind, place, told in (
        (any_path, "", "is '', expected a path"),
        (new_folder, "", "is '', expected a path"),
        (new_folder, tmp_path / "file", "file is not a folder"),
        (new_folder, tmp_path / "file" / "deep" / "er", "file is not a folder"),
        (new_folder, tmp_path / "loop" / "deep", os.strerror(errno.ELOOP)),
        (new_folder, tmp_path / ("a" * 300), os.strerror(errno.ENAMETOOLONG)),
        (new_file, tmp_path, "which is no file"),
        (new_file, "/dev/full", "which is no file"),
        (new_file, tmp_path / "file" / "a.json", "file is not a folder"),
        (new_file, tmp_path / "gone" / "a.json", f"where there is no folder; make {tmp_path / 'gone'}"),
        (old_folder, tmp_path / "gone", "where there is no folder"),
    ):
        line = read(kind, place, capsys)
        assert line.startswith("error: --x is ") and told in line and line.count("\n") == 1
    for kind, name in ((new_folder, "a=b, c ü/d"), (new_file, "a=b, c ü"), (new_file, "file"), (any_path, "gone")):
        assert read(kind, tmp_path / name, capsys) == tmp_path / name
    assert read(old_folder, tmp_path, capsys) == tmp_path
    assert sorted(tmp_path.iterdir()) == before


def test_expected_errors_end_in_one_line_and_defects_keep_their_traceback(tmp_path, capsys):
    def failing(error):
        @reported
        def main():
            raise error

        return main

    for error, line in (
        (SettingError("margin is 2"), "error: margin is 2"),
        (FileExistsError(errno.EEXIST, "File exists", "here"), "error: here: File exists; make room, or"),
        (OSError(errno.ENOSPC, "No space left on device"), "error: the output: No space left on device; make room, or"),
    ):
        with pytest.raises(SystemExit, match=f"^{line}"):
            failing(error)()
    for defect in (ValueError("unexpected"), OSError("unexpected")):
        with pytest.raises(type(defect), match="unexpected"):
            failing(defect)()
    with pytest.raises(SystemExit) as stop:
        failing(KeyboardInterrupt())()
    assert stop.value.code == 130 and capsys.readouterr().err == "\ninterrupted\n"


def test_no_command_line_is_read_past_these_checks():
    """Every script's numbers and paths have a type from here."""
    root = Path(__file__).parents[1]
    for file in (*root.glob("scripts/**/*.py"), *root.glob("rsd/**/*.py")):
        text = file.read_text()
        if "add_argument" in text and file.name not in ("options.py", "runs.py"):  # runs.py reads Hydra's own options
            assert "ArgumentParser(" not in text, file
            assert not [kind for kind in ("type=int,", "type=float,", "type=Path,") if kind in text], file
