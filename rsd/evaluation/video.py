"""Frames to a small h264 mp4 that every browser plays."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import IO, cast

import numpy as np

from rsd.errors import RSDError

REMEDY = "install it with: pip install 'rsd[libero]' (imageio-ffmpeg brings its own program), or set save_videos=0"


class VideoError(RSDError, RuntimeError):
    """A video cannot be written."""


def check_ffmpeg() -> None:
    """Find the ffmpeg program, before anything long starts.

    Raises:
        VideoError: imageio-ffmpeg or its program is missing.
    """
    try:
        import imageio_ffmpeg
    except ModuleNotFoundError as error:
        raise VideoError(f"videos need the package imageio-ffmpeg, which is not installed; {REMEDY}") from error
    try:
        imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise VideoError(f"no ffmpeg program was found; {REMEDY}") from error


def write_video(path: Path, frames: Sequence[np.ndarray], fps: float) -> None:
    """Write an mp4; the file appears whole or not at all.

    Args:
        path: The file; its folder is made.
        frames: At least one, each [H, W, 3], uint8, all alike. An odd height or width loses its last row or column.
        fps: Frames per second of the recording, so that it plays at the robot's pace.

    Raises:
        VideoError: ffmpeg is missing or failed, for want of room for example.
    """
    check_ffmpeg()
    import imageio_ffmpeg

    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = (size - size % 2 for size in frames[0].shape[:2])  # yuv420p needs even sizes
    temporary = path.with_name(path.stem + ".tmp.mp4")
    pace = str(Fraction(fps).limit_denominator())
    read = ["-f", "rawvideo", "-s", f"{width}x{height}", "-pix_fmt", "rgb24", "-r", pace, "-i", "-"]
    made = ["-vcodec", "libx264", "-pix_fmt", "yuv420p", "-crf", "26", "-preset", "veryfast", "-movflags", "+faststart"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", *read, *made, str(temporary)]
    try:
        with tempfile.TemporaryFile() as said, subprocess.Popen(command, stdin=subprocess.PIPE, stderr=said) as ffmpeg:
            with contextlib.suppress(BrokenPipeError):  # it has ended before; its exit code tells
                for frame in frames:
                    cast("IO[bytes]", ffmpeg.stdin).write(frame[:height, :width].tobytes())
            ffmpeg.communicate()
            if ffmpeg.returncode != 0:
                said.seek(0)
                lines = said.read().decode(errors="replace").splitlines() or [f"exit code {ffmpeg.returncode}"]
                raise VideoError(f"ffmpeg could not write {path}: {lines[0]}")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
