"""Frames to a small h264 mp4 that every browser plays."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

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
        VideoError: ffmpeg is missing or failed.
    """
    check_ffmpeg()
    import imageio_ffmpeg

    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = (size - size % 2 for size in frames[0].shape[:2])  # yuv420p needs even sizes
    temporary = path.with_name(path.stem + ".tmp.mp4")
    writer = imageio_ffmpeg.write_frames(
        str(temporary),
        (width, height),
        fps=fps,
        codec="libx264",
        quality=None,
        macro_block_size=2,
        ffmpeg_log_level="error",
        output_params=["-crf", "26", "-preset", "veryfast", "-movflags", "+faststart"],
    )
    try:
        writer.send(None)
        for frame in frames:
            writer.send(np.ascontiguousarray(frame[:height, :width]))
        writer.close()
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise VideoError(f"ffmpeg could not write {path}: {error}") from error
    if not temporary.is_file():
        raise VideoError(f"ffmpeg wrote nothing for {path}; is the disk full?")
    os.replace(temporary, path)
