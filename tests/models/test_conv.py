"""The convolutional towers: keypoints are where the heat is, words change what is seen, and the seam is kept."""

import json

import pytest
import torch

from rsd.models.openvla.conv import ConvShape, ConvTower
from rsd.models.openvla.model import Architecture, OpenVLAOFT
from rsd.models.openvla.vit import ViTShape

SHAPE = ConvShape(image_size=32, num_views=2, width=8, num_keypoints=5, feature_dim=12)
LLM = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 9,
    "pad_token_id": 0,
}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return OpenVLAOFT(Architecture(llm=LLM, action_dim=7, proprio_dim=8, conv=SHAPE, num_slots=56)).eval()


def inputs(words=(1, 5, 6, 3)):
    torch.manual_seed(1)
    ids = torch.tensor([[*words, *[1] * 56, 2]])
    return {
        "pixel_values": torch.randn(1, 6, 32, 32),
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids, dtype=torch.bool),
        "action_start": torch.tensor([len(words)]),
        "proprio": torch.zeros(1, 8),
        "chunk_length": 8,
    }


def test_a_keypoint_is_where_the_heat_is():
    tower = ConvTower(SHAPE, language_dim=16)
    torch.nn.init.zeros_(tower.heat.weight)
    torch.nn.init.zeros_(tower.heat.bias)
    features = torch.zeros(1, 16, 9, 9)
    features[0, 0, 2, 6] = 1.0  # row 2, column 6 of 0..8
    tower.heat.weight.data[3, 0] = 100.0
    found, position = tower.keypoints(features)
    assert position[0, 3].tolist() == pytest.approx([0.5, -0.5], abs=1e-4)
    assert found[0, 3, 0].item() == pytest.approx(1.0, abs=1e-4)
    assert position[0, 0].tolist() == pytest.approx([0.0, 0.0], abs=1e-6)  # no heat anywhere: the middle


def test_states_and_chunk_have_the_shapes_that_heads_expect(model):
    states, actions = model(**inputs(), layers=[1, 2])
    assert {layer: tuple(value.shape) for layer, value in states.items()} == {1: (1, 56, 16), 2: (1, 56, 16)}
    assert actions.shape == (1, 8, 7)
    assert (model.architecture.num_patches, model.architecture.vision_dim) == (5, 12)


def test_the_action_slots_differ_from_the_start(model):
    states, _ = model(**inputs(), layers=[1])
    assert (states[1][0].unsqueeze(0) - states[1][0].unsqueeze(1)).abs().amax(dim=-1)[~torch.eye(56).bool()].min() > 0


def test_words_reach_the_towers_once_film_has_learned(model):
    tower = model.vision_backbone.towers[0]
    pixels, language = torch.randn(1, 3, 32, 32), torch.randn(2, 16)
    assert torch.equal(tower(pixels, language[:1]), tower(pixels, language[1:]))
    torch.nn.init.normal_(tower.stages[0][0].film.weight)
    assert not torch.equal(tower(pixels, language[:1]), tower(pixels, language[1:]))


def test_padding_changes_nothing(model):
    alone, padded = inputs(), inputs()
    padded["input_ids"] = torch.cat([padded["input_ids"], torch.zeros(1, 3, dtype=torch.int64)], dim=1)
    padded["attention_mask"] = torch.cat([padded["attention_mask"], torch.zeros(1, 3, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(model(**alone, layers=[])[1], model(**padded, layers=[])[1])


def test_architectures_survive_json():
    vit = {"patch_size": 14, "embed_dim": 24, "depth": 3, "num_heads": 2, "mlp_ratio": 2.0, "attention_pool": False}
    shapes = {
        "dino": ViTShape(image_size=28, reg_tokens=4, layer_scale=True, **vit),
        "siglip": ViTShape(image_size=28, reg_tokens=0, layer_scale=False, **vit),
    }
    for shape in (shapes, {"conv": SHAPE, "num_slots": 56}):
        architecture = Architecture(llm=LLM, action_dim=7, proprio_dim=8, **shape)
        assert Architecture.from_json(json.loads(json.dumps(architecture.to_json()))) == architecture
