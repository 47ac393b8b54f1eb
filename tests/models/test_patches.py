"""The patch towers: a token stands where its patch is, words change what is seen, and files hold them."""

import json

import pytest
import torch

from rsd.diagnosis.features import patch_features
from rsd.diagnosis.saliency import saliency
from rsd.errors import SettingError
from rsd.models.openvla import load_base, save_base
from rsd.models.openvla.conv import ConvShape
from rsd.models.openvla.loading import own_inputs
from rsd.models.openvla.model import Architecture
from rsd.models.openvla.patches import PatchShape, PatchTower
from tests.models.openvla_tiny import observation
from tests.models.test_visual_tokens import patch_base

SHAPE = PatchShape(image_size=64, num_views=2, width=4, feature_dim=12)
LLM = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 9}


@pytest.mark.parametrize(("size", "expected"), [(16, 1), (32, 4), (224, 196), (31, 1), (100, 36)])
def test_a_tower_gives_as_many_tokens_as_its_shape_says(size, expected):
    shape = PatchShape(image_size=size, num_views=1, width=2, feature_dim=3)
    tokens = PatchTower(shape, language_dim=4)(torch.zeros(2, 3, size, size), torch.zeros(2, 4))
    assert tokens.shape == (2, expected, 3) and shape.num_patches == expected


@pytest.mark.parametrize(("row", "column"), [(0, 0), (2, 0), (1, 2), (3, 3)])
def test_a_change_of_the_picture_changes_most_the_token_that_stands_there(row, column):
    torch.manual_seed(0)
    tower = PatchTower(SHAPE, language_dim=16)
    for blocks in tower.stages:
        for block in blocks:
            torch.nn.init.zeros_(block.conv2.weight)  # their fields are wider than a patch
    plain, words = torch.randn(32, 3, 64, 64), torch.zeros(1, 16)
    spotted = plain.clone()
    spotted[..., 16 * row : 16 * row + 16, 16 * column : 16 * column + 16] *= -1
    moved = (tower(spotted, words) - tower(plain, words)).norm(dim=-1).mean(dim=0)
    assert moved.argmax().item() == 4 * row + column


def test_words_reach_the_towers_once_film_has_learned_and_not_without_film():
    torch.manual_seed(0)
    tower = PatchTower(SHAPE, language_dim=16)
    pixels, language = torch.randn(1, 3, 64, 64), torch.randn(2, 16)
    assert torch.equal(tower(pixels, language[:1]), tower(pixels, language[1:]))
    torch.nn.init.normal_(tower.stages[0][0].film.weight)
    assert not torch.equal(tower(pixels, language[:1]), tower(pixels, language[1:]))
    plain = PatchTower(PatchShape(image_size=64, num_views=2, width=4, feature_dim=12, film=False), language_dim=16)
    assert not [name for name, _ in plain.named_parameters() if "film" in name]
    assert torch.equal(plain(pixels, language[:1]), plain(pixels, language[1:]))


def test_an_architecture_survives_json_and_names_patches_only_where_there_are_some():
    architecture = Architecture(llm=LLM, action_dim=7, proprio_dim=8, patches=SHAPE, num_slots=56)
    assert Architecture.from_json(json.loads(json.dumps(architecture.to_json()))) == architecture
    assert (architecture.num_patches, architecture.vision_dim, architecture.channels_per_image) == (16, 12, 3)
    conv = ConvShape(image_size=32, num_views=2, width=8, num_keypoints=5, feature_dim=12)
    assert "patches" not in Architecture(llm=LLM, action_dim=7, proprio_dim=8, conv=conv).to_json()
    with pytest.raises(SettingError, match="conv and patches are both given, expected one kind"):
        Architecture(llm=LLM, action_dim=7, proprio_dim=8, conv=conv, patches=SHAPE)


def test_a_saved_model_is_loaded_as_it_was(tmp_path):
    base = patch_base()
    save_base(tmp_path, base, {})
    again = load_base(checkpoint=tmp_path, **own_inputs(tmp_path))
    assert again.model.architecture == base.model.architecture
    assert torch.equal(again.look([observation(0)]).chunk(), base.look([observation(0)]).chunk())


def test_what_it_looks_at_lies_on_the_grid_of_its_patches():
    base = patch_base()
    features = patch_features(base, observation(0))
    assert {name: {view: grid.shape for view, grid in views.items()} for name, views in features.items()} == {
        "patch tower": dict.fromkeys(base.views, (2, 2, 12)),
        "projector": dict.fromkeys(base.views, (2, 2, 32)),
    }
    found = saliency(base, observation(0))
    assert {view: heat.shape for view, heat in found.maps.items()} == dict.fromkeys(base.views, (2, 2))
    assert sum(found.shares.values()) == pytest.approx(1.0, abs=1e-5)
