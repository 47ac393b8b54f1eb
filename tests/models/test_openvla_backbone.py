"""Observations through a small random model: inputs, batching, what the picture changes, and refusals."""

import numpy as np
import pytest
import torch

from rsd.images import ImageError
from rsd.models.action_tokens import action_start
from rsd.models.openvla import ObservationError
from rsd.models.openvla.text import BOS, STOP, UnknownWordError, WordText
from rsd.types import Observation
from tests.models.openvla_tiny import LONG, SHORT, build_backbone, observation, plain_observation


@pytest.fixture(scope="module")
def backbone():
    return build_backbone()


def test_shapes_and_layers(backbone):
    inputs = backbone.prepare([observation(0), observation(1, LONG)])
    output = backbone.forward(inputs, layers=[1, 3])
    assert inputs["pixel_values"].shape == (2, 12, 28, 28)
    assert list(output.hidden_states) == [1, 3]
    assert all(states.shape == (2, 56, 32) for states in output.hidden_states.values())
    assert output.actions.shape == (2, 8, 7)
    assert (backbone.num_layers, backbone.hidden_dim, backbone.action_dim, backbone.chunk_length) == (3, 32, 7, 8)
    assert not output.actions.requires_grad


def test_prompt_layout(backbone):
    inputs = backbone.prompts([SHORT, LONG])
    short, long = inputs["input_ids"].tolist()
    start, longest = inputs["action_start"].tolist(), len(LONG.split()) + 2
    assert start == [len(SHORT.split()) + 2, longest]
    assert short[: start[0]] == backbone.text.encode(SHORT)
    assert short[start[0] : start[0] + 57] == [BOS] * 56 + [STOP]
    assert short[start[0] + 57 :] == [backbone.text.pad_id] * (longest - start[0])
    assert long[-1] == STOP
    assert inputs["attention_mask"].sum(dim=1).tolist() == [start[0] + 57, longest + 57]


def test_batched_forward_equals_single_forward(backbone):
    observations = [observation(0, SHORT), observation(1, LONG), observation(2, SHORT)]
    together = backbone.forward(backbone.prepare(observations), layers=[2, 3])
    for row, single in enumerate(observations):
        alone = backbone.forward(backbone.prepare([single]), layers=[2, 3])
        torch.testing.assert_close(together.actions[row], alone.actions[0], atol=1e-5, rtol=0)
        for layer in (2, 3):
            expected = alone.hidden_states[layer][0]
            torch.testing.assert_close(together.hidden_states[layer][row], expected, atol=1e-5, rtol=0)


def test_layers_below_the_last_do_not_depend_on_what_else_is_asked_for(backbone):
    inputs = backbone.prepare([observation(0)])
    alone, both = backbone.forward(inputs, layers=[2]), backbone.forward(inputs, layers=[1, 2, 3])
    assert torch.equal(alone.hidden_states[2], both.hidden_states[2])
    assert torch.equal(alone.actions, both.actions)
    head = backbone.forward(inputs, layers=[4])  # one after the decoder's three: inside the L1 head
    assert backbone.state_shapes == {1: (56, 32), 2: (56, 32), 3: (56, 32), 4: (8, 32)}
    assert torch.equal(backbone.model.action_head.chunk(head.hidden_states[4]), both.actions)
    with pytest.raises(ValueError, match=r"layers \[0, 5\] do not exist; the model has layers 1..4"):
        backbone.forward(inputs, layers=[0, 2, 5])


def test_attention_is_bidirectional(backbone):
    """The stop token comes last; changing its embedding changes states before it."""
    model = backbone.model
    inputs = backbone.prepare([observation(0)])
    patches = model.projector(model.vision_backbone(inputs["pixel_values"]))
    arguments = (inputs["input_ids"], inputs["attention_mask"], inputs["action_start"], 8, inputs["proprio"])
    sequence = model.assemble(patches, *arguments)
    changed = sequence.embeds.clone()
    changed[:, -1] += 1
    before = model.decoder_states(sequence.embeds, sequence.mask, {1})[1]
    after = model.decoder_states(changed, sequence.mask, {1})[1]
    assert (before - after)[:, :-1].abs().amax(dim=-1).min() > 0


@pytest.mark.parametrize("view", ["image", "wrist_image"])
def test_a_black_and_a_white_picture_give_different_actions(backbone, view):
    black, white = plain_observation(0), plain_observation(0)
    white.images[view] = np.full((256, 256, 3), 255, dtype=np.uint8)
    actions = backbone.forward(backbone.prepare([black, white]), layers=[]).actions
    assert (actions[0] - actions[1]).abs().max() > 1e-3


def test_instruction_and_proprio_change_the_actions(backbone):
    first, other = observation(0, SHORT), observation(0, LONG)
    moved = Observation(first.images, first.proprio + 0.1, SHORT)
    actions = backbone.forward(backbone.prepare([first, other, moved]), layers=[]).actions
    assert (actions[0] - actions[1]).abs().max() > 1e-4
    assert (actions[0] - actions[2]).abs().max() > 1e-4


def test_proprio_uses_the_evaluation_formula(backbone):
    vector = np.array([-0.5, 0.5, 0.0, 9.0, -9.0, 0.25, 0.0, 0.0])
    normalized = backbone.normalized_proprio([vector])[0]
    np.testing.assert_allclose(normalized, [-1, 1, 0, 1, -1, 0.5, 0, 0], atol=1e-6)


def test_bad_observations_are_refused(backbone):
    good = observation(0)
    small = {**good.images, "wrist_image": good.images["wrist_image"][:128]}
    with pytest.raises(ImageError, match=r"'wrist_image' has shape \(128, 256, 3\)"):
        backbone.prepare([Observation(small, good.proprio, SHORT)])
    floating = {**good.images, "image": good.images["image"] / 255}
    with pytest.raises(ImageError, match=r"'image'.*float64.*expected .* uint8"):
        backbone.prepare([Observation(floating, good.proprio, SHORT)])
    with pytest.raises(ObservationError, match=r"needs view 'wrist_image', the observation has \['image'\]"):
        backbone.prepare([Observation({"image": good.images["image"]}, good.proprio, SHORT)])
    with pytest.raises(ObservationError, match=r"proprio has \[7\] dims, the model's projector takes 8"):
        backbone.prepare([Observation(good.images, good.proprio[:7], SHORT)])
    with pytest.raises(UnknownWordError, match=r"words \['open', 'drawer'\].*known words: \['and'"):
        backbone.prepare([Observation(good.images, good.proprio, "open the drawer")])
    with pytest.raises(ObservationError, match=r"has 2502 tokens; .* longer than the model's 2048"):
        backbone.prepare([Observation(good.images, good.proprio, "bowl " * 2500)])


def test_word_vocabulary():
    text = WordText.from_instructions(["Pick up the Bowl.", "the bowl"])
    assert text.words == ("bowl", "pick", "the", "up")
    assert text.encode("the bowl, UP!") == [BOS, 6, 4, 7, WordText.PROMPT_END]
    assert text.vocab_size == 8


def test_fingerprint_is_json_and_tells_models_apart(backbone):
    import json

    first, second = backbone.fingerprint(), build_backbone(seed=1).fingerprint()
    assert json.loads(json.dumps(first)) is not None
    assert first != second
    assert first["images"] == second["images"]


def test_labels_must_hold_one_run_of_action_tokens():
    labels = torch.full((2, 12), -100)
    labels[0, 3:7], labels[1, 4:8] = 31900, 31744
    assert action_start(labels, 4).tolist() == [3, 4]
    labels[1, 6] = -100
    with pytest.raises(ValueError, match=r"rows \[1\] of labels hold \[3\] action tokens .* expected 4"):
        action_start(labels, 4)
