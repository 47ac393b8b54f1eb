"""A video is whole or not there."""

import resource

import numpy as np
import pytest

from rsd.evaluation.video import VideoError, write_video


@pytest.fixture
def frames():
    pytest.importorskip("imageio_ffmpeg")
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (65, 64, 3), dtype=np.uint8) for _ in range(40)]


def test_a_video_plays_at_its_pace(tmp_path, frames):
    import imageio_ffmpeg

    path = tmp_path / "deep" / "a=b, ü.mp4"
    write_video(path, frames, 12.5)
    reader = imageio_ffmpeg.read_frames(str(path))
    about = next(reader)
    assert about["size"] == (64, 64) and about["fps"] == 12.5 and len(list(reader)) == len(frames)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("room", [0, 4096, 2**15])
def test_without_room_there_is_no_video_and_the_one_before_stays(tmp_path, frames, room):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"the one before")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))  # ffmpeg is stopped as on a full disk
    try:
        with pytest.raises(VideoError, match=r"ffmpeg could not write \S+a\.mp4: .+"):
            write_video(path, frames, 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b"the one before" and list(tmp_path.iterdir()) == [path]
