"""A base model that is real in everything but its training: random weights in a checkpoint of our own layout."""

from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from rsd.data.datasets import Demonstrations
from rsd.models.openvla.base import OpenVLABase
from rsd.models.openvla.loading import save_base
from rsd.models.openvla.model import Architecture, OpenVLAOFT
from rsd.models.openvla.processor import PrismaticImageProcessor
from rsd.models.openvla.text import WordText
from rsd.models.openvla.vit import ViTShape
from rsd.space import Space

CONF = Path(__file__).parents[2] / "conf"


def save_tiny_base(directory: Path, dataset_dir: Path, seed: int = 0) -> None:
    """Write a checkpoint of conf/model/oft_tiny.yaml with the vocabulary and statistics of a data set."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        model = OmegaConf.to_container(compose("cache", overrides=["model=oft_tiny"]).model, resolve=False)
    demonstrations = Demonstrations(dataset_dir)
    text = WordText.from_instructions(demonstrations.instructions())
    shapes = model["architecture"]
    architecture = Architecture(
        dino=ViTShape(image_size=model["image_size"], **shapes["dino"]),
        siglip=ViTShape(image_size=model["image_size"], **shapes["siglip"]),
        llm={**shapes["llm"], "vocab_size": text.vocab_size, "pad_token_id": text.pad_id},
        action_dim=7,
        proprio_dim=8,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = OpenVLAOFT(architecture)
    base = OpenVLABase(
        model=network.eval(),
        processor=PrismaticImageProcessor(sizes=[model["image_size"]] * 2),
        text=text,
        space=Space.from_statistics(demonstrations.name, demonstrations.norm_stats),
        views=("image", "wrist_image"),
        chunk_length=8,
        center_crop=True,
        weights_sha256=lambda: "not saved yet",
    )
    save_base(directory, base, provenance={})
