"""Pictures of a video at given times, in one pass from the key frame before the first of them.

What surprises first: a picture must be within a quarter of a frame of its time. Times that fall between two frames are
an error: no picture is shown twice, and none is taken from an episode beside the wanted one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rsd.data import DataError
from rsd.data.conversion import INSTALL
from rsd.files import stranger

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer

TOLERANCE = 0.25  # of the time from a frame to the next


def pictures_at(path: Path, times: np.ndarray, rate: float, where: str) -> Iterator[np.ndarray]:
    """The pictures at these times.

    Args:
        times: Ascending, from the beginning of the file, seconds, [n].
        rate: Frames a second.
        where: Episode and feature, for messages.

    Yields:
        [H, W, 3], uint8, RGB, n times.

    Raises:
        DataError: the file is damaged, or has no frame at one of the times.
    """
    try:
        import av
    except ImportError as error:
        raise DataError(f"reading videos needs av ({error}); install it with: {INSTALL}") from error
    try:
        with av.open(str(path)) as container:
            frames = _frames(container, float(times[0]), path, where)
            current, following = next(frames, None), next(frames, None)
            for step, time in enumerate(times.tolist()):
                while current is not None and following is not None and _closer(following, current, time):
                    current, following = following, next(frames, None)
                if current is None or abs(current[0] - time) > TOLERANCE / rate:
                    got = "none" if current is None else f"one at {current[0]:.4f}"
                    raise DataError(
                        f"{path}: {where}, step {step}: expected a frame at {time:.4f} (±{TOLERANCE / rate:.4f}) s, "
                        f"got {got}; the file was cut off or written at another rate: fetch or export it again"
                    )
                yield current[1].to_ndarray(format="rgb24")
    except av.FFmpegError as error:
        message = f"{path}: {where}: cannot be decoded: {error.strerror}; fetch or export the file again"
        raise DataError(stranger(path) or message) from error


def _closer(following: tuple[float, VideoFrame], current: tuple[float, VideoFrame], time: float) -> bool:
    return abs(following[0] - time) <= abs(current[0] - time)


def _frames(container: InputContainer, start: float, path: Path, where: str) -> Iterator[tuple[float, VideoFrame]]:
    """Time and frame, from the last key frame that is not after `start` on."""
    if not container.streams.video:
        raise DataError(f"{path}: {where}: the file has no video; fetch or export it again")
    stream = container.streams.video[0]
    if start > 0 and stream.time_base:
        container.seek(int(start / stream.time_base), stream=stream)
    for frame in container.decode(stream):
        if frame.time is not None:
            yield frame.time, frame
