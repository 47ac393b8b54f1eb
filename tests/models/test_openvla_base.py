"""Observations through a small random model: inputs, batching, what the picture changes, and refusals."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from rsd.images import ImageError
from rsd.jpeg import jpeg_round_trip
from rsd.models.openvla import ObservationError
from rsd.models.openvla.action_tokens import action_start
from rsd.models.openvla.text import BOS, STOP, UnknownWordError, WordText
from rsd.types import Observation
from tests.models.openvla_tiny import LONG, SHORT, build_base, observation, plain_observation


@pytest.fixture(scope="module")
def base():
    return build_base()


def test_shapes_and_points(base):
    looked = base.look([observation(0), observation(1, LONG)])
    points = {"layer.1": (56, 32), "layer.2": (56, 32), "layer.3": (56, 32), "head": (8, 32)}
    assert base.spec.points == points and list(base.spec.points) == list(points)
    assert base.prepare([observation(0), observation(1, LONG)])["pixel_values"].shape == (2, 12, 28, 28)
    for point, shape in points.items():
        assert looked.at(point).shape == (2, *shape)
    assert looked.chunk().shape == (2, 8, 7) and looked.chunk().dtype == torch.float32 and len(looked) == 2
    spec = base.spec
    assert (spec.views, spec.proprio_dim, spec.chunk_length, spec.action_dim) == (("image", "wrist_image"), 8, 8, 7)
    assert (spec.action_head, spec.continuous, spec.space) == ("l1", True, base.space)
    assert not looked.chunk().requires_grad and not looked.at("layer.1").requires_grad


def test_prompt_layout(base):
    inputs = base.prompts([SHORT, LONG])
    short, long = inputs["input_ids"].tolist()
    start, longest = inputs["action_start"].tolist(), len(LONG.split()) + 2
    assert start == [len(SHORT.split()) + 2, longest]
    assert short[: start[0]] == base.text.encode(SHORT)
    assert short[start[0] : start[0] + 57] == [BOS] * 56 + [STOP]
    assert short[start[0] + 57 :] == [base.text.pad_id] * (longest - start[0])
    assert long[-1] == STOP
    assert inputs["attention_mask"].sum(dim=1).tolist() == [start[0] + 57, longest + 57]


def test_states_do_not_depend_on_what_else_is_asked_for(base):
    points = [*base.spec.points]
    every = base.look([observation(0)])
    states = {point: every.at(point) for point in points}
    for point in points:
        alone = base.look([observation(0)])
        assert torch.equal(alone.at(point), states[point]), point
        assert torch.equal(alone.chunk(), every.chunk())
    assert torch.equal(base.model.action_head.chunk(states["head"]), every.chunk())


def test_attention_is_bidirectional(base):
    """The stop token comes last; changing its embedding changes states before it."""
    model = base.model
    inputs = base.prepare([observation(0)])
    patches = model.projector(model.vision_backbone(inputs["pixel_values"]))
    arguments = (inputs["input_ids"], inputs["attention_mask"], inputs["action_start"], 8, inputs["proprio"])
    sequence = model.assemble(patches, *arguments)
    changed = sequence.embeds.clone()
    changed[:, -1] += 1
    before = model.layer_states(sequence.embeds, sequence.mask, {1})[1]
    after = model.layer_states(changed, sequence.mask, {1})[1]
    assert (before - after)[:, :-1].abs().amax(dim=-1).min() > 0


@pytest.mark.parametrize("view", ["image", "wrist_image"])
def test_a_black_and_a_white_picture_give_different_actions(base, view):
    black, white = plain_observation(0), plain_observation(0)
    white.images[view] = np.full((256, 256, 3), 255, dtype=np.uint8)
    actions = base.look([black, white]).chunk()
    assert (actions[0] - actions[1]).abs().max() > 1e-3


def test_instruction_and_proprio_change_the_actions(base):
    first, other = observation(0, SHORT), observation(0, LONG)
    moved = Observation(first.images, first.proprio + 0.1, SHORT)
    actions = base.look([first, other, moved]).chunk()
    assert (actions[0] - actions[1]).abs().max() > 1e-4
    assert (actions[0] - actions[2]).abs().max() > 1e-4


def test_proprio_uses_the_evaluation_formula(base):
    vector = np.array([-0.5, 0.5, 0.0, 9.0, -9.0, 0.25, 0.0, 0.0])
    normalized = base.normalized_proprio([vector])[0]
    np.testing.assert_allclose(normalized, [-1, 1, 0, 1, -1, 0.5, 0, 0], atol=1e-6)


def test_bad_observations_are_refused(base):
    good = observation(0)
    grey = {**good.images, "wrist_image": good.images["wrist_image"][..., 0]}
    with pytest.raises(ImageError, match=r"'wrist_image' has shape \(256, 256\)"):
        base.prepare([Observation(grey, good.proprio, SHORT)])
    floating = {**good.images, "image": good.images["image"] / 255}
    with pytest.raises(ImageError, match=r"'image'.*float64.*expected .* uint8"):
        base.prepare([Observation(floating, good.proprio, SHORT)])
    with pytest.raises(ObservationError, match=r"needs view 'wrist_image', the observation has \['image'\]"):
        base.prepare([Observation({"image": good.images["image"]}, good.proprio, SHORT)])
    with pytest.raises(ObservationError, match=r"proprio has shape \(7,\), the model's projector takes \(8,\)"):
        base.prepare([Observation(good.images, good.proprio[:7], SHORT)])
    with pytest.raises(UnknownWordError, match=r"words \['open', 'drawer'\].*known words: \['and'"):
        base.prepare([Observation(good.images, good.proprio, "open the drawer")])
    with pytest.raises(ObservationError, match=r"has 2502 tokens; .* longer than the model's 2048"):
        base.prepare([Observation(good.images, good.proprio, "bowl " * 2500)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"proprio": None}, r"proprio is None, expected 8 numbers"),
        ({"proprio": np.zeros((1, 8))}, r"proprio has shape \(1, 8\), the model's projector takes \(8,\)"),
        ({"proprio": [0, 0, np.inf, 0, 0, -np.inf, 0, np.nan]}, r"entries \{2: inf, 5: -inf, 7: nan\}"),
        ({"instruction": None}, r"instruction is None, expected the task in words"),
        ({"instruction": 3}, r"instruction is 3, expected the task in words"),
        ({"instruction": SHORT.encode()}, r"instruction is b'pick up the bowl', expected the task in words"),
    ],
)
def test_what_is_no_proprio_and_no_instruction_is_refused(base, change, message):
    with pytest.raises(ObservationError, match=message):
        base.prepare([observation(0), replace(observation(1), **change)])


def test_proprio_may_be_any_sequence_of_numbers(base):
    one, two = (base.prepare([replace(observation(0), proprio=kind([0] * 8))]) for kind in (list, np.array))
    assert torch.equal(one["proprio"], two["proprio"])


def test_word_vocabulary():
    text = WordText.from_instructions(["Pick up the Bowl.", "the bowl"])
    assert text.words == ("bowl", "pick", "the", "up")
    assert text.encode("the bowl, UP!") == [BOS, 6, 4, 7, WordText.PROMPT_END]
    assert text.vocab_size == 8
    with pytest.raises(UnknownWordError, match=r"words \['日本語', 'à'\] that the base model was not trained on"):
        text.encode("日本語 the à_bowl")


def test_a_live_cameras_picture_goes_through_jpeg_and_a_stored_one_does_not(base):
    live = observation(0)
    images = {view: jpeg_round_trip(picture) for view, picture in live.images.items()}
    stored = replace(live, images=images, stored=True)
    expected = base.prepare([live])["pixel_values"]
    assert torch.equal(base.prepare([stored])["pixel_values"], expected)
    assert not torch.equal(base.prepare([replace(live, stored=True)])["pixel_values"], expected)


def test_fingerprint_is_json_and_tells_models_apart(base):
    first, second = base.spec.fingerprint, build_base(seed=1).spec.fingerprint
    assert json.loads(json.dumps(first)) is not None
    assert first != second
    assert first["images"] == second["images"]
    assert build_base(gripper="unchanged").spec.fingerprint["space"] != first["space"]


def test_labels_must_hold_one_run_of_action_tokens():
    labels = torch.full((2, 12), -100)
    labels[0, 3:7], labels[1, 4:8] = 31900, 31744
    assert action_start(labels, 4).tolist() == [3, 4]
    labels[1, 6] = -100
    with pytest.raises(ValueError, match=r"rows \[1\] of labels hold \[3\] action tokens .* expected 4"):
        action_start(labels, 4)
