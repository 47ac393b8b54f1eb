"""Random-weight models of oft_tiny's kind and observations for them."""

from __future__ import annotations

import numpy as np
import torch

from rsd.models.openvla.base import OpenVLABase
from rsd.models.openvla.model import Architecture, OpenVLAOFT
from rsd.models.openvla.processor import PrismaticImageProcessor
from rsd.models.openvla.text import WordText
from rsd.models.openvla.visual_tokens import VisualTokens
from rsd.models.openvla.vit import ViTShape
from rsd.space import LIBERO_GRIPPER, Space
from rsd.types import Observation

SHORT, LONG = "pick up the bowl", "pick up the black bowl on the plate and place it on the ramekin"
VIT = {"patch_size": 14, "embed_dim": 24, "depth": 3, "num_heads": 2, "mlp_ratio": 2.0, "attention_pool": False}
UNNORM_KEY = "libero_toy_no_noops"


def statistics() -> dict:
    """Made-up statistics of a seven-dim action and an eight-dim proprio."""
    result = {}
    for part, dims in (("action", 7), ("proprio", 8)):
        result[part] = {"q01": [-0.5] * dims, "q99": [0.5] * dims, "min": [-1.0] * dims, "max": [1.0] * dims}
    result["action"]["mask"] = [True] * 6 + [False]
    return result


def build_base(
    *,
    image_size: int = 28,
    views: tuple[str, ...] = ("image", "wrist_image"),
    use_proprio: bool = True,
    seed: int = 0,
    gripper: str = LIBERO_GRIPPER,
    visual_tokens: VisualTokens | None = None,
    pictures: str = "cpu",
) -> OpenVLABase:
    """A base model with three layers and the words of SHORT and LONG."""
    text = WordText.from_instructions([SHORT, LONG])
    architecture = Architecture(
        dino=ViTShape(image_size=image_size, reg_tokens=4, layer_scale=True, **VIT),
        siglip=ViTShape(image_size=image_size, reg_tokens=0, layer_scale=False, **VIT),
        llm={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "vocab_size": text.vocab_size,
            "pad_token_id": text.pad_id,
        },
        action_dim=7,
        proprio_dim=8 if use_proprio else None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = OpenVLAOFT(architecture).eval()
    return OpenVLABase(
        model=model,
        processor=PrismaticImageProcessor(sizes=[image_size] * 2),
        text=text,
        space=Space.from_statistics(UNNORM_KEY, statistics(), gripper=gripper),
        views=views,
        chunk_length=8,
        center_crop=True,
        weights_sha256=lambda: f"seed {seed}",
        visual_tokens=visual_tokens,
        pictures=pictures,
    )


def observation(seed: int = 0, instruction: str = SHORT) -> Observation:
    """Random pictures and proprio."""
    random = np.random.default_rng(seed)
    images = {view: random.integers(0, 256, (256, 256, 3), dtype=np.uint8) for view in ("image", "wrist_image")}
    return Observation(images, random.uniform(-0.4, 0.4, 8), instruction)


def plain_observation(level: int, instruction: str = SHORT) -> Observation:
    """Both pictures of one grey level."""
    images = {view: np.full((256, 256, 3), level, dtype=np.uint8) for view in ("image", "wrist_image")}
    return Observation(images, np.zeros(8), instruction)
