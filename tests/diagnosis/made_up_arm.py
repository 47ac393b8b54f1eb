"""A made-up arm whose picture, word and proprio decide what it does, and policies that learn it in seconds.

A bright square's place in the camera says where to go (x, y), the word says on which side (z), and the gripper closes
when the hand is half-way, which proprio tells. A policy has to look, to listen and to feel. Broken ones see another
training set: black pictures, shuffled words, an inverted gripper, or a state that holds the next action.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rsd.data.datasets import FrameDataset, all_frames
from rsd.data.layout import Layout
from rsd.data.made_up import write_dataset
from rsd.decoding import L1
from rsd.images import center_crop, resize_lanczos3
from rsd.jpeg import encode_jpeg
from rsd.models.openvla.base import OpenVLABase
from rsd.policy import Checkpoints, VLAPolicy, assemble
from rsd.space import Space
from rsd.training.oft import small_base

NAME, T, NUM_EPISODES, NUM_STEPS = "made_up_arm_no_noops", 4, 40, 12
VIEWS = ("image",)  # of the two that LIBERO's features have
WORDS = ("stack it on the left side", "stack it on the right side")
CELLS, SIZE = 4, 256  # places of the square in each direction; pixels
VIT = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0, "attention_pool": False}
SIZES = {
    "dino": {**VIT, "reg_tokens": 1, "layer_scale": True},
    "siglip": {**VIT, "reg_tokens": 0, "layer_scale": False},
    "llm": {
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "initializer_range": 0.15,
    },
    "learned_slots": True,
}
IMAGE_SIZE = 32


@functools.cache
def square(column: int, row: int) -> bytes:
    """A bright square on grey, as JPEG."""
    picture = np.full((SIZE, SIZE, 3), 60, dtype=np.uint8)
    side = SIZE // (CELLS + 1)
    x, y = (side // 2 + place * side for place in (column, row))
    picture[y : y + side, x : x + side] = 250
    return encode_jpeg(picture)


def demonstration(number: int, num_steps: int, *, leaks: bool = False) -> dict[str, Any]:
    """Episode `number`. Nothing but the picture tells where the square is.

    Args:
        leaks: Whether the state holds the next action.
    """
    random = np.random.default_rng(number)
    word = (number + number // 10) % 2  # held-out episodes, every tenth, have both
    places = np.repeat(random.integers(0, CELLS, (1, 2)), num_steps, axis=0)  # [n, 2]
    wanted = places / (CELLS - 1) * 2 - 1  # [n, 2] in -1..1
    closing = num_steps // 2 + int(random.integers(-2, 3))
    actions = np.zeros((num_steps, 7), dtype=np.float32)
    actions[:, :2], actions[:, 2] = 0.8 * wanted, (0.8 if word else -0.8)
    actions[:, 3:6] = 0
    actions[:, 6] = np.where(np.arange(num_steps) < closing, -1, 1)
    state = 0.1 * random.normal(size=(num_steps, 8)).astype(np.float32)
    state[:, 2] = (closing - np.arange(num_steps)) / num_steps  # how far the hand is from its object
    width = np.where(actions[:, 6] < 0, 0.04, 0.01)
    state[:, 6], state[:, 7] = width, -width
    if leaks:
        state[:, [0, 1, 3, 6]] = actions[:, [0, 1, 2, 6]]
    return {
        "steps": {
            "observation": {
                "image": [square(*place) for place in places.tolist()],
                "wrist_image": [square(0, 0)] * num_steps,
                "state": state,
                "joint_state": np.zeros((num_steps, 7), dtype=np.float32),
            },
            "action": actions,
            "language_instruction": WORDS[word],
        },
        "episode_metadata": {"file_path": f"made_up_arm/demo_{number}"},
    }


LAYOUT = Layout(action=["action[0:3]", "action[6]"], proprio=["observation/state[0:4]", "observation/state[6:8]"])


def write(root: Path, *, leaks: bool = False) -> FrameDataset:
    """The data set on disk, and its frames."""
    directory = root / NAME / "1.0.0"
    write_dataset(directory, [NUM_STEPS] * NUM_EPISODES, functools.partial(demonstration, leaks=leaks))
    return all_frames(directory, T, VIEWS, LAYOUT)


def trained(frames: FrameDataset, broken: str = "", *, steps: int = 120, seed: int = 0) -> VLAPolicy:
    """A policy that has learned the training episodes.

    Args:
        broken: "", or what its training was broken by: "black", "shuffled", "inverted", "blind" (pictures and words
            are taken away: what is left is proprio), "constant" (all inputs are).
    """
    space = Space.from_statistics(frames.name, frames.norm_stats)
    base = small_base(
        SIZES, image_size=IMAGE_SIZE, views=VIEWS, use_proprio=True, chunk_length=T, space=space,
        instructions=frames.instructions(), seed=seed,
    )  # fmt: skip
    inputs, target = batch(base, frames, broken, seed)
    optimizer = torch.optim.AdamW(base.model.parameters(), lr=4e-3)
    generator = torch.Generator().manual_seed(seed)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randint(len(target), (24,), generator=generator)
        some = {name: value[rows] for name, value in inputs.items()}
        loss = (base.model(**some, chunk_length=T, layers=[])[1] - target[rows]).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    base.model.requires_grad_(False)
    return assemble(base=base, decoding=L1(), checkpoints=Checkpoints(), num_open_loop_steps=T, device="cpu")


def batch(base: OpenVLABase, frames: FrameDataset, broken: str, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """All frames of the training split as the model's inputs, and their chunks in model space."""
    random = np.random.default_rng(seed)
    rows = [row for row in range(len(frames)) if int(frames.episode[row]) % 10 != 9]
    items = [frames[row] for row in rows]
    seen = [item["observation"] for item in items]
    pictures = torch.from_numpy(np.stack([one.images["image"] for one in seen]))
    if broken in ("black", "blind", "constant"):
        pictures = torch.zeros_like(pictures)
    pictures = torch.cat([resize_lanczos3(part, IMAGE_SIZE) for part in pictures.split(64)])
    words = [one.instruction for one in seen]
    if broken == "shuffled":
        of_episode = {episode: WORDS[int(random.integers(2))] for episode in range(NUM_EPISODES)}
        words = [of_episode[item["episode"]] for item in items]
    if broken in ("blind", "constant"):
        words = [WORDS[0]] * len(words)
    proprio = np.stack([one.proprio for one in seen])
    if broken == "constant":
        proprio = np.zeros_like(proprio)
    actions = torch.stack([item["actions"] for item in items]).clone()
    if broken == "inverted":
        actions[..., -1] = 1 - actions[..., -1]
    if broken == "constant":
        actions[..., 2] = -0.7  # the hand goes down,
        actions[..., -1] = 1  # and never closes
    inputs = {"pixel_values": base.pixel_values(center_crop(pictures)), **base.prompts(words)}
    inputs["proprio"] = base.normalized_proprio([*proprio])
    return inputs, base.space.to_model(actions)
