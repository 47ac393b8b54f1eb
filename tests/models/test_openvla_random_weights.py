"""Random checkpoints: the published names, shapes and files, loaded back by the loader of the real ones."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rsd.checkpoint import CheckpointError
from rsd.models.openvla import load_base
from rsd.models.openvla.model import OpenVLAOFT
from rsd.models.openvla.published_writer import plan_shards
from rsd.models.openvla.random_weights import openvla_architecture, random_model, write_random_checkpoint
from tests.models.openvla_tiny import observation, plain_observation

ROOT = Path(__file__).parents[2]
# SPEC §2, every row of its two tables that such a model has; {i} stands for a number
PUBLISHED_SHAPES = {
    "vision_backbone.featurizer.cls_token": [1, 1, 1024],
    "vision_backbone.featurizer.reg_token": [1, 4, 1024],
    "vision_backbone.featurizer.pos_embed": [1, 256, 1024],
    "vision_backbone.featurizer.patch_embed.proj.weight": [1024, 3, 14, 14],
    "vision_backbone.featurizer.blocks.{i}.norm1.weight": [1024],
    "vision_backbone.featurizer.blocks.{i}.attn.qkv.weight": [3072, 1024],
    "vision_backbone.featurizer.blocks.{i}.attn.qkv.bias": [3072],
    "vision_backbone.featurizer.blocks.{i}.attn.proj.weight": [1024, 1024],
    "vision_backbone.featurizer.blocks.{i}.mlp.fc1.weight": [4096, 1024],
    "vision_backbone.featurizer.blocks.{i}.mlp.fc2.weight": [1024, 4096],
    "vision_backbone.featurizer.blocks.{i}.ls1.scale_factor": [1024],
    "vision_backbone.featurizer.blocks.{i}.ls2.scale_factor": [1024],
    "vision_backbone.featurizer.norm.weight": [1024],
    "vision_backbone.fused_featurizer.pos_embed": [1, 256, 1152],
    "vision_backbone.fused_featurizer.patch_embed.proj.weight": [1152, 3, 14, 14],
    "vision_backbone.fused_featurizer.blocks.{i}.mlp.fc1.weight": [4304, 1152],
    "vision_backbone.fused_featurizer.norm.bias": [1152],
    "vision_backbone.fused_featurizer.attn_pool.latent": [1, 1, 1152],
    "vision_backbone.fused_featurizer.attn_pool.q.weight": [1152, 1152],
    "vision_backbone.fused_featurizer.attn_pool.kv.weight": [2304, 1152],
    "vision_backbone.fused_featurizer.attn_pool.mlp.fc1.weight": [4304, 1152],
    "projector.fc1.weight": [8704, 2176],
    "projector.fc2.weight": [4096, 8704],
    "projector.fc3.weight": [4096, 4096],
    "language_model.model.embed_tokens.weight": [32064, 4096],
    "language_model.model.layers.{i}.input_layernorm.weight": [4096],
    "language_model.model.layers.{i}.self_attn.q_proj.weight": [4096, 4096],
    "language_model.model.layers.{i}.mlp.gate_proj.weight": [11008, 4096],
    "language_model.model.layers.{i}.mlp.down_proj.weight": [4096, 11008],
    "language_model.model.norm.weight": [4096],
    "language_model.lm_head.weight": [32064, 4096],
    "action_head.model.layer_norm1.weight": [28672],
    "action_head.model.fc1.weight": [4096, 28672],
    "action_head.model.mlp_resnet_blocks.{i}.ffn.1.weight": [4096, 4096],
    "action_head.model.fc2.weight": [7, 4096],
    "proprio_projector.fc1.weight": [4096, 8],
    "proprio_projector.fc2.weight": [4096, 4096],
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("random") / "tiny"
    write_random_checkpoint(directory, architecture=openvla_architecture(size="tiny"), shard_bytes=10**6)
    return directory


def load(directory, **changes):
    arguments = {"views": ["image", "wrist_image"], "use_proprio": True, "chunk_length": 8, "num_images": 2}
    return load_base(checkpoint=directory, unnorm_key="libero_goal", **{**arguments, **changes})


def test_the_7b_model_has_the_published_names_and_shapes():
    with torch.device("meta"):
        state = OpenVLAOFT(openvla_architecture()).state_dict()
    shapes = {}
    for name, value in state.items():
        shapes.setdefault(re.sub(r"\.\d+\.(?!weight|bias)", ".{i}.", name, count=1), list(value.shape))
    for name, shape in PUBLISHED_SHAPES.items():
        assert shapes[name] == shape, name
    counts = {
        prefix: sum(name.startswith(prefix) and name.endswith("norm1.weight") for name in state)
        for prefix in ("vision_backbone.featurizer.", "vision_backbone.fused_featurizer.")
    }
    assert list(counts.values()) == [24, 27]
    assert sum(name.endswith("q_proj.weight") for name in state) == 32
    total = sum(value.numel() for name, value in state.items() if not name.startswith(("action_head", "proprio")))
    assert total == pytest.approx(7.54e9, rel=0.01)


def test_it_is_sharded_with_an_index_and_loads(directory):
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in directory.glob("model-*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert set(index["weight_map"].values()) == set(files)
    stored = torch.load(next(directory.glob("action_head--150000_checkpoint.pt")), weights_only=True)
    assert all(name.startswith("module.model.") and value.dtype == torch.bfloat16 for name, value in stored.items())
    base = load(directory)
    assert base.space.name == "libero_goal_no_noops" and base.text.encode("pick")[-1] == 29871
    chunk = base.look([observation(), plain_observation(9)]).chunk()
    assert chunk.shape == (2, 8, 7) and chunk.abs().max() < 100


def test_the_same_seed_gives_the_same_weights_in_memory(directory):
    model = random_model(openvla_architecture(size="tiny"), seed=0, device="cpu", dtype=torch.float32)
    loaded = load(directory).model.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded[name], value), name


def test_an_existing_folder_is_not_touched(directory):
    with pytest.raises(CheckpointError, match="exists already; move it away"):
        write_random_checkpoint(directory, architecture=openvla_architecture(size="tiny"))


@pytest.mark.slow
def test_the_original_openvla_and_the_command(tmp_path):
    script = [sys.executable, str(ROOT / "scripts" / "make_random_checkpoint.py"), "--out", str(tmp_path / "ar")]
    command = [*script, "--kind", "openvla", "--size", "tiny"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "GB of random weights in" in said
    arguments = {"action_head": "autoregressive", "views": ["image"], "use_proprio": False, "chunk_length": 1}
    base = load(tmp_path / "ar", num_images=1, **arguments)
    assert base.look([observation()]).chunk().shape == (1, 1, 7)
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 1 and again.stderr.startswith("error: ") and "exists already" in again.stderr


def test_shards_are_cut_before_they_are_too_large():
    shapes = {name: torch.Size([size]) for name, size in (("a", 3), ("b", 2), ("c", 9), ("d", 1))}
    assert plan_shards(shapes, 10) == [["a", "b"], ["c"], ["d"]]
    with pytest.raises(ValueError, match="size 'huge' is unknown; expected '7b' or 'tiny'"):
        openvla_architecture(size="huge")
