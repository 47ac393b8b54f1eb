"""Small data sets in other formats: real files, made with the packages that read them."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

FPS = 10
HEIGHT, WIDTH = 48, 64
NAMES = ["shoulder.pos", "elbow.pos", "gripper.pos"]


def shade(episode: int, step: int, camera: int) -> int:
    """The grey of a frame, which tells it from all others of its video."""
    return 20 + 24 * episode + 8 * step + 3 * camera


def write_video(path: Path, shades: list[int], codec: str = "libx264", fps: int = FPS) -> None:
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options={"g": "2", "crf": "10"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index, value in enumerate(shades):
            pixels = np.full((HEIGHT, WIDTH, 3), value, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_lerobot(
    root: Path, lengths: tuple[int, ...] = (5, 4, 3), codec: str = "libx264", info: dict[str, Any] | None = None
) -> Path:
    """A set of format v3: camera front as video, the first two episodes in one file; camera wrist as pictures."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from rsd.data.rlds_record import encode_png

    def vector(dims: int) -> dict[str, Any]:
        return {"dtype": "float32", "shape": [dims], "names": NAMES[:dims]}

    index = {"dtype": "int64", "shape": [1], "names": None}
    features = {
        "observation.images.front": {
            "dtype": "video",
            "shape": [HEIGHT, WIDTH, 3],
            "names": ["height", "width", "channels"],
            "info": {"video.fps": FPS},
        },
        "observation.images.wrist": {"dtype": "image", "shape": [3, 8, 12], "names": None},
        "observation.state": {"dtype": "float64", "shape": [3], "names": {"motors": NAMES}},
        "observation.environment_state": {"dtype": "int32", "shape": [2, 2], "names": None},
        "action": vector(3),
        "next.reward": {"dtype": "float32", "shape": [1], "names": None},
        "next.done": {"dtype": "bool", "shape": [1], "names": None},
        "operator": {"dtype": "string", "shape": [1], "names": None},
        "observation.audio.mic": {"dtype": "audio", "shape": [1], "names": None},
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    } | dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), index)
    (root / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
    (root / "data" / "chunk-000").mkdir(parents=True)
    described = {
        "codebase_version": "v3.0",
        "robot_type": "toy",
        "fps": FPS,
        "features": features,
        "total_episodes": len(lengths),
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "splits": {"train": f"0:{len(lengths)}"},
    }
    (root / "meta" / "info.json").write_text(json.dumps(described | (info or {})))
    tasks = {"task_index": [0, 1], "__index_level_0__": ["lift the left one", "lift the right one"]}
    pq.write_table(pa.table(tasks), root / "meta" / "tasks.parquet")

    rows: list[dict[str, Any]] = []
    episodes = []
    clips: dict[int, list[int]] = {0: [], 1: []}
    for episode, length in enumerate(lengths):
        file = 0 if episode < 2 else 1
        episodes.append(
            {
                "episode_index": episode,
                "length": length,
                "tasks": ["lift"],
                "data/chunk_index": 0,
                "data/file_index": 0,
                "videos/observation.images.front/chunk_index": 0,
                "videos/observation.images.front/file_index": file,
                "videos/observation.images.front/from_timestamp": len(clips[file]) / FPS,
                "videos/observation.images.front/to_timestamp": (len(clips[file]) + length) / FPS,
                "stats/action/min": [0.0],
            }
        )
        for step in range(length):
            clips[file].append(shade(episode, step, 0))
            wrist = np.full((8, 12, 3), shade(episode, step, 1), np.uint8)
            rows.append(
                {
                    "observation.images.wrist": {"bytes": encode_png(wrist), "path": None},
                    "observation.state": [episode, step, 0.5],
                    "observation.environment_state": [[1, 2], [3, step]],
                    "action": [0.1 * episode, 0.1 * step, float(step >= length // 2)],
                    "next.reward": float(step == length - 1),
                    "next.done": step == length - 1,
                    "operator": "A",
                    "timestamp": step / FPS,
                    "frame_index": step,
                    "episode_index": episode,
                    "index": len(rows),
                    "task_index": (episode + step // 4) % 2,
                }
            )
    columns = pa.table({name: [row[name] for row in rows] for name in rows[0]})
    columns = columns.set_column(
        columns.column_names.index("action"),
        "action",
        pa.array([row["action"] for row in rows], pa.list_(pa.float32(), 3)),
    )
    pq.write_table(columns, root / "data" / "chunk-000" / "file-000.parquet", row_group_size=4)
    pq.write_table(pa.Table.from_pylist(episodes), root / "meta" / "episodes" / "chunk-000" / "file-000.parquet")
    for file, shades in clips.items():
        if shades:
            write_video(root / f"videos/observation.images.front/chunk-000/file-{file:03d}.mp4", shades, codec)
    return root


def libero_demo(number: int, steps: int = 6, side: int = 128) -> dict[str, np.ndarray]:
    """Of a file of LIBERO: step 2 and the last are idle, and at step 3 the gripper closes with the arm at rest."""
    random = np.random.default_rng(number)
    actions = random.uniform(0.2, 0.9, (steps, 7))
    actions[:, -1] = np.where(np.arange(steps) < 3, -1, 1)
    actions[[2, 3, steps - 1], :6] = 0
    pictures = random.integers(0, 256, (2, steps, side, side, 3), dtype=np.uint8)
    return {
        "actions": actions,
        "obs/agentview_rgb": pictures[0],
        "obs/eye_in_hand_rgb": pictures[1],
        "obs/ee_pos": random.normal(size=(steps, 3)),
        "obs/ee_ori": random.normal(size=(steps, 3)),
        "obs/gripper_states": random.normal(size=(steps, 2)),
        "obs/joint_states": random.normal(size=(steps, 7)),
        "states": random.normal(size=(steps, 5)),
    }


def write_hdf5(path: Path, demos: dict[str, dict[str, np.ndarray]], attributes: dict[str, Any] | None = None) -> Path:
    """A file of these demonstrations; attributes of the group data are written as JSON."""
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for name, value in (attributes or {}).items():
            data.attrs[name] = json.dumps(value)
        for name, demo in demos.items():
            for key, values in demo.items():
                data[f"{name}/{key}"] = values
    return path
