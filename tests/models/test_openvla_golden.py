"""The native model against arrays recorded from the reference implementation; sizes and seeds come from the files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rsd.models import action_tokens
from rsd.models.openvla import published
from rsd.models.openvla.model import CHANNELS_PER_IMAGE, select
from rsd.models.openvla.processor import PrismaticImageProcessor
from rsd.normalization import unnormalize

ATOL = 5e-5


def load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


@pytest.fixture(scope="module")
def models(golden_dir):
    """The tiny checkpoint with and without its proprio projector."""
    directory = golden_dir / "ckpt_tiny"
    arguments = {"device": "cpu", "dtype": torch.float32}
    return {use: published.build_model(directory, use_proprio=use, **arguments) for use in (True, False)}


def close(actual: torch.Tensor, expected: np.ndarray, name: str) -> None:
    assert tuple(actual.shape) == expected.shape, name
    np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=ATOL, err_msg=name)


def append_action_slots(arrays, num_action_tokens):
    """Prompt ids [1, L] → prompt + placeholders + stop, their mask, and where the actions begin."""
    ids = torch.from_numpy(arrays["input_ids"])
    tail = torch.tensor([[1] * num_action_tokens + [action_tokens.STOP_TOKEN]])
    mask = torch.cat([torch.from_numpy(arrays["attention_mask"]), torch.ones_like(tail)], dim=1)
    return torch.cat([ids, tail], dim=1), mask, torch.tensor([ids.shape[1]])


@torch.no_grad()
def check_prediction(golden_dir, models, name):
    arrays = load(golden_dir / f"{name}.npz")
    proprio = arrays.get("proprio_normalized")
    model = models[proprio is not None]
    chunk_length, action_dim = arrays["normalized_actions"].shape
    pixel_values = torch.from_numpy(arrays["pixel_values"])
    input_ids, mask, start = append_action_slots(arrays, chunk_length * action_dim)
    proprio = None if proprio is None else torch.from_numpy(proprio).reshape(1, -1)

    features = model.vision_backbone(pixel_values)
    close(features, arrays["vision_features"], "vision_features")
    patches = model.projector(features)
    close(patches, arrays["projected_patches"], "projected_patches")
    sequence = model.assemble(patches, input_ids, mask, start, chunk_length, proprio)
    close(sequence.embeds, arrays["lm_inputs_embeds"], "lm_inputs_embeds")
    np.testing.assert_array_equal(sequence.mask.long(), arrays["lm_attention_mask"])
    first, end = arrays["action_slice"]
    np.testing.assert_array_equal(sequence.slots[0], np.arange(first, end))
    last = model.llm_config.num_hidden_layers
    states = model.decoder_states(sequence.embeds, sequence.mask, {last})[last]
    close(states, arrays["last_hidden_states"], "last_hidden_states")

    inputs = {"pixel_values": pixel_values, "input_ids": input_ids, "attention_mask": mask, "action_start": start}
    hidden, actions = model(**inputs, chunk_length=chunk_length, layers=[last], proprio=proprio)
    close(hidden[last], arrays["action_hidden_states"], "action_hidden_states")
    close(actions[0], arrays["normalized_actions"], "normalized_actions")
    statistics = published.read_norm_stats(golden_dir / "ckpt_tiny")[str(arrays["unnorm_key"])]
    raw = unnormalize(actions[0].numpy(), statistics["action"])
    np.testing.assert_allclose(raw, arrays["actions"], rtol=0, atol=ATOL)

    logits = model.language_model.lm_head(hidden[last])[0]  # [K, vocabulary]
    close(logits[0], arrays["discrete_logits_first"], "discrete_logits_first")
    np.testing.assert_array_equal(logits.argmax(dim=-1), arrays["discrete_token_ids"])
    discrete = action_tokens.decode_actions(arrays["discrete_token_ids"]).reshape(chunk_length, action_dim)
    raw_discrete = unnormalize(discrete, statistics["action"])
    np.testing.assert_allclose(raw_discrete, arrays["discrete_actions"], rtol=0, atol=ATOL)
    return hidden[last].numpy(), raw


def test_golden_oft_1img_noproprio(golden_dir, models):
    check_prediction(golden_dir, models, "oft_1img_noproprio")


def test_golden_oft_1img_proprio(golden_dir, models):
    check_prediction(golden_dir, models, "oft_1img_proprio")


def test_golden_oft_2img_noproprio(golden_dir, models):
    check_prediction(golden_dir, models, "oft_2img_noproprio")


def test_golden_oft_2img_proprio(golden_dir, models):
    check_prediction(golden_dir, models, "oft_2img_proprio")


def test_golden_control_causal_2img_proprio(golden_dir, models):
    """The wrong answer of a causal model must be far away, and causal layers must reproduce it."""
    wrong = load(golden_dir / "control_causal_2img_proprio.npz")
    states, actions = check_prediction(golden_dir, models, "oft_2img_proprio")
    assert np.abs(states - wrong["action_hidden_states_if_causal"]).max() > 100 * ATOL
    assert np.abs(actions - wrong["actions_if_causal"]).max() > 100 * ATOL

    arrays, model = load(golden_dir / "oft_2img_proprio.npz"), models[True]
    embeds = torch.from_numpy(arrays["lm_inputs_embeds"])
    with torch.no_grad():
        causal = model.language_model.model(inputs_embeds=embeds, use_cache=False).last_hidden_state
    first, end = arrays["action_slice"]
    close(causal[:, first:end], wrong["action_hidden_states_if_causal"], "action_hidden_states_if_causal")


@torch.no_grad()
def test_golden_oft_train_batch(golden_dir, models):
    arrays = load(golden_dir / "oft_train_batch.npz")
    _, chunk_length, action_dim = arrays["actions"].shape
    labels = torch.from_numpy(arrays["labels"])
    current, later = action_tokens.action_masks(labels[:, 1:], action_dim)
    np.testing.assert_array_equal(current, arrays["current_action_mask"])
    np.testing.assert_array_equal(later, arrays["next_actions_mask"])

    model = models[True]
    pixel_values = torch.from_numpy(arrays["pixel_values"])
    input_ids = torch.from_numpy(arrays["input_ids"])
    mask = torch.from_numpy(arrays["attention_mask"])
    proprio = torch.from_numpy(arrays["proprio_normalized"])
    start = action_tokens.action_start(labels, chunk_length * action_dim)
    patches = model.projector(model.vision_backbone(pixel_values))
    sequence = model.assemble(patches, input_ids, mask, start, chunk_length, proprio)
    last = model.llm_config.num_hidden_layers
    states = model.decoder_states(sequence.embeds, sequence.mask, {last})[last]
    hidden = select(states, sequence.slots)
    close(hidden, arrays["action_hidden_states"], "action_hidden_states")
    predicted = model.action_head(hidden)
    close(predicted, arrays["predicted_actions"], "predicted_actions")
    loss = (predicted - torch.from_numpy(arrays["actions"])).abs().mean()
    np.testing.assert_allclose(loss, arrays["l1_loss"], rtol=0, atol=ATOL)

    inserted = patches.shape[1] + 1  # patches and the proprio token
    logits = model.language_model.lm_head(states[:, inserted:-1])  # [B, L - 1, vocabulary]: position t - 1 speaks for t
    real = mask[:, 1:].numpy()
    np.testing.assert_array_equal(logits.argmax(dim=-1).numpy()[real], arrays["predicted_token_ids"][real])
    cross_entropy = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
    np.testing.assert_allclose(cross_entropy, arrays["ce_loss"], rtol=0, atol=ATOL)


def test_golden_preprocess_tiny(golden_dir):
    arrays = load(golden_dir / "preprocess_tiny.npz")
    path = golden_dir / "ckpt_tiny" / "preprocessor_config.json"
    record = json.loads(path.read_text())
    size = record["input_sizes"][0][-1]
    processors = {
        "ckpt": PrismaticImageProcessor.from_file(path),
        "exactstats": PrismaticImageProcessor(sizes=[size, size]),
        "letterbox": PrismaticImageProcessor(sizes=[size, size], strategy="letterbox"),
        "resizecrop": PrismaticImageProcessor(sizes=[size, size], strategy="resize-crop"),
    }
    np.testing.assert_allclose(processors["ckpt"].means, arrays["bf16_mean"], rtol=0, atol=1e-7)
    np.testing.assert_allclose(processors["ckpt"].stds, arrays["bf16_std"], rtol=0, atol=1e-7)
    numbers = sorted(name.removeprefix("image_") for name in arrays if name.startswith("image_"))
    assert numbers
    for number in numbers:
        picture = torch.from_numpy(arrays[f"image_{number}"])[None]
        for name, processor in processors.items():
            close(processor(picture), arrays[f"pixel_values_{name}_{number}"], f"{name} {number}")
    for name in (name for name in arrays if name.startswith("resized_uint8_")):
        picture = torch.from_numpy(arrays[name.replace("resized_uint8", "image")])[None]
        np.testing.assert_array_equal(processors["ckpt"].resize(picture, size)[0], arrays[name])


def test_golden_preprocess_224(golden_dir):
    arrays = load(golden_dir / "preprocess_224.npz")
    tiny = PrismaticImageProcessor.from_file(golden_dir / "ckpt_tiny" / "preprocessor_config.json")
    size = arrays["pixel_values"].shape[-1]
    processor = PrismaticImageProcessor(sizes=[size, size], means=tiny.means, stds=tiny.stds)
    close(processor(torch.from_numpy(arrays["image"])[None]), arrays["pixel_values"], "pixel_values")


def test_golden_action_tokenizer(golden_dir):
    arrays = load(golden_dir / "action_tokenizer.npz")
    np.testing.assert_array_equal(action_tokens.BIN_EDGES, arrays["bins"])
    np.testing.assert_array_equal(action_tokens.BIN_CENTERS, arrays["bin_centers"])
    assert arrays["action_token_begin_idx"] == action_tokens.ACTION_TOKEN_BEGIN
    np.testing.assert_array_equal(action_tokens.encode_actions(arrays["actions"]), arrays["token_ids"])
    np.testing.assert_array_equal(action_tokens.decode_actions(arrays["token_ids"]), arrays["decoded"])
    np.testing.assert_array_equal(action_tokens.decode_actions(arrays["all_ids"]), arrays["all_ids_decoded"])


def test_number_of_images_comes_from_the_pixels(models):
    assert CHANNELS_PER_IMAGE == 6
    shape = models[False].architecture.dino
    for images in (1, 2, 3):
        pixels = torch.zeros(1, 6 * images, shape.image_size, shape.image_size)
        with torch.no_grad():
            assert models[False].vision_backbone(pixels).shape[1] == images * shape.num_patches
