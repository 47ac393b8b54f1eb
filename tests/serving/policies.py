"""A policy whose actions say what it was given, and the bytes that a client would send it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from rsd.policy import IOContract
from rsd.serving.messages import ObservationReader, encode_array
from rsd.space import Space
from rsd.types import Chunk, Memory, Observation, Request

SIZE = 16  # pixels
UNIT = 256  # makes exact numbers of [-1, 1] out of pixels
READER = ObservationReader(views=("image", "wrist_image"), image_size=SIZE, proprio_dim=8)
TASK = {"name": "reach", "suite": "point_mass", "task_id": 3, "episode_idx": 5}


class TellingPolicy:
    """Action t of a chunk of 4 is (t, two pixels of each picture, the proprio's sum, 1) / UNIT; black pictures fail."""

    contract = IOContract(
        views=("image", "wrist_image"),
        proprio_dim=8,
        action_dim=7,
        chunk_length=4,
        decoding="Telling",
        action_head="none",
        unnorm_key="none",
    )

    def __init__(self, num_open_loop_steps: int = 3) -> None:
        self.num_open_loop_steps = num_open_loop_steps
        self.seen: list[Observation] = []
        self.seeds: list[int] = []

    def predict(self, requests: Sequence[Request]) -> list[Chunk]:
        self.seen += [request.observation for request in requests]
        self.seeds += [request.seed for request in requests]
        return [Chunk(self._chunk(one.observation), num_steps=self.num_open_loop_steps) for one in requests]

    def _chunk(self, observation: Observation) -> np.ndarray:
        pixels = []
        for picture in observation.images.values():
            if not picture.any():
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            pixels += [picture[0, 0, 0], picture[-1, 0, 0]]
        return np.array([[t, *pixels, observation.proprio.sum(), 1] for t in range(4)]) / UNIT


def png(picture: np.ndarray) -> dict[str, Any]:
    """A picture as the harness's clients send it by default."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return {"__image__": True, "format": "png", "data": buffer.getvalue(), "shape": list(picture.shape)}


def observation(first_pixel: int = 10) -> dict[str, Any]:
    """The payload of an observation; its pictures differ from each other and from their own reflections."""
    pictures = {}
    for index, camera in enumerate(("agentview", "wrist")):
        picture = np.arange(SIZE * SIZE * 3, dtype=np.uint32).reshape(SIZE, SIZE, 3) // 8
        pictures[camera] = png((picture + first_pixel + 100 * index).astype(np.uint8))
    return {"images": pictures, "states": encode_array(np.arange(8.0) / 8), "task_description": "reach"}


def message(kind: str, payload: Any = None, seq: int = 1) -> dict[str, Any]:
    return {"type": kind, "payload": {} if payload is None else payload, "seq": seq, "timestamp": 0.0}


HELLO = message("hello", {"harness_version": "0.8.0", "protocol_version": 1})
START = message("episode_start", {"task": TASK})
END = message("episode_end", {"metrics": {"success": True}, "steps": 2})


class SpacedPolicy(TellingPolicy):
    """The same with a Space: what it thinks in model space is t / 10 everywhere but for the gripper, 0.9 (open), and
    its commands are those of that."""

    space = Space.from_statistics(
        "reach_no_noops",
        {
            "action": {"q01": [-0.5] * 6 + [0], "q99": [0.5] * 6 + [1], "min": [-1] * 7, "max": [1] * 7}
            | {"mask": [True] * 6 + [False]},
        },
    )

    def predict(self, requests: Sequence[Request]) -> list[Chunk]:
        chunks = super().predict(requests)
        for chunk in chunks:
            mind = np.tile(np.arange(4.0)[:, None] / 10, (1, 7)).astype(np.float32)  # [T, A]
            mind[:, 0] = np.clip(chunk.actions[:, 1], -1, 1)  # tells the first pixel
            mind[:, -1] = 0.9
            chunk.actions, chunk.memory = self.space.to_robot(mind), Memory(mind)
        return chunks
