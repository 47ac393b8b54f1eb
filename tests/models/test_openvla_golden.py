"""The native model against arrays recorded from the reference implementation; sizes and seeds come from the files."""

import json
from functools import cache

import numpy as np
import pytest
import torch

from rsd.models.openvla import action_heads, action_tokens, published
from rsd.models.openvla.model import CHANNELS_PER_IMAGE, select
from rsd.models.openvla.processor import PrismaticImageProcessor
from rsd.models.openvla.token_loss import token_loss
from rsd.space import EXTREMES, QUANTILES, Range
from tests.golden_files import GOLDEN, compose_checkpoint, golden_tests, load

ATOL = 5e-5


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """build(robot, proprio, action_head, film): a model with the side files that a golden array was made with, kept."""

    @cache
    def build(robot="libero", proprio=True, action_head="l1", film=False):
        heads = {"libero": "ckpt_tiny", "aloha": "aloha_heads"}[robot]
        sources = {"dataset_statistics": heads}
        if action_head == "l1":
            sources["action_head"] = heads
        sources |= {"proprio_projector": heads} if proprio else {}
        sources |= {"vision_backbone": "film"} if film else {}
        directory = compose_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint", sources)
        arguments = {"device": "cpu", "dtype": torch.float32, "action_dim": 7}
        return published.build_model(directory, use_proprio=proprio, action_head=action_head, **arguments)

    return build


def robot_of(name: str) -> str:
    return "aloha" if "aloha" in name else "libero"


def raw_actions(name: str, unnorm_key: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Un-normalised with the statistics and the bounds of the array's robot."""
    folder, bounds = {"aloha": ("aloha_heads", EXTREMES), "libero": ("ckpt_tiny", QUANTILES)}[robot_of(name)]
    statistics = published.read_json(GOLDEN / folder, "dataset_statistics.json")[str(unnorm_key)]
    return Range.from_entry(statistics["action"] | {"bounds": bounds}).unnormalize(actions)


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
def check_prediction(build, name):
    arrays = load(name)
    proprio = arrays.get("proprio_normalized")
    model = build(robot_of(name), proprio is not None)
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
    for given in (sequence.mask, None):  # no pads: both say the same
        states = model.layer_states(sequence.embeds, given, {last})[last]
        close(states, arrays["last_hidden_states"], "last_hidden_states")

    inputs = {"pixel_values": pixel_values, "input_ids": input_ids, "attention_mask": mask, "action_start": start}
    inputs |= {"chunk_length": chunk_length, "layers": [last], "proprio": proprio}
    hidden, actions = model(**inputs)
    close(hidden[last], arrays["action_hidden_states"], "action_hidden_states")
    close(actions[0], arrays["normalized_actions"], "normalized_actions")
    raw = raw_actions(name, arrays["unnorm_key"], actions[0].numpy())
    np.testing.assert_allclose(raw, arrays["actions"], rtol=0, atol=ATOL)

    logits = model.language_model.lm_head(hidden[last])[0]  # [K, vocabulary]
    close(logits[0], arrays["discrete_logits_first"], "discrete_logits_first")
    np.testing.assert_array_equal(logits.argmax(dim=-1), arrays["discrete_token_ids"])
    patches = model.projector(features)
    prompt = action_heads.Prompt(input_ids, mask, start, chunk_length, proprio, None)
    _, discrete = action_heads.discrete(model, patches, prompt, [])
    raw_discrete = raw_actions(name, arrays["unnorm_key"], discrete[0].numpy())
    np.testing.assert_allclose(raw_discrete, arrays["discrete_actions"], rtol=0, atol=ATOL)
    return hidden[last].numpy(), raw


@torch.no_grad()
def check_film(build, name):
    arrays = load(name)
    model = build(robot_of(name), film=True)
    chunk_length, action_dim = arrays["actions"].shape
    input_ids, mask, start = append_action_slots(arrays, chunk_length * action_dim)
    is_word = torch.ones_like(input_ids[0], dtype=torch.bool)
    is_word[start : start + chunk_length * action_dim] = False
    words = model.language_model.model.embed_tokens(input_ids[:, is_word])
    close(words, arrays["film_language_embeddings"], "film_language_embeddings")
    pixels = torch.from_numpy(arrays["pixel_values"])
    features = model.vision_features(pixels, input_ids, mask, start, chunk_length)
    close(features, arrays["film_vision_features"], "film_vision_features")
    last = model.llm_config.num_hidden_layers
    hidden, actions = model(
        pixel_values=pixels,
        input_ids=input_ids,
        attention_mask=mask,
        action_start=start,
        chunk_length=chunk_length,
        layers=[last],
        proprio=torch.from_numpy(arrays["proprio_normalized"]).reshape(1, -1),
    )
    close(hidden[last], arrays["action_hidden_states"], "action_hidden_states")
    raw = raw_actions(name, arrays["unnorm_key"], actions[0].numpy())
    np.testing.assert_allclose(raw, arrays["actions"], rtol=0, atol=ATOL)


@torch.no_grad()
def check_autoregressive(build, name):
    arrays = load(name)
    model = build(action_head="autoregressive", proprio=False)
    pixels, ids, mask = (torch.from_numpy(arrays[key]) for key in ("pixel_values", "input_ids", "attention_mask"))
    start, last = torch.tensor([ids.shape[1]]), model.llm_config.num_hidden_layers
    patches = model.projector(model.vision_backbone(pixels))
    close(patches, arrays["projected_patches"], "projected_patches")
    sequence = model.assemble(patches, ids, mask, start, 1, None)
    states = model.layer_states(sequence.embeds, sequence.mask, {last}, causal=True)[last]
    close(states, arrays["last_hidden_states"], "last_hidden_states")
    close(model.language_model.lm_head(states[0, -1]), arrays["logits_step0"], "logits_step0")

    hidden, actions = model(
        pixel_values=pixels,
        input_ids=ids,
        attention_mask=mask,
        action_start=start,
        chunk_length=1,
        layers=[last],
    )
    logits = model.language_model.lm_head(hidden[last])[0]  # [7, vocabulary]
    np.testing.assert_array_equal(logits.argmax(dim=-1), arrays["generated_token_ids"])
    np.testing.assert_allclose(logits.amax(dim=-1), arrays["step_top1_logit"], rtol=0, atol=ATOL)
    close(logits[:, 31744:32000], arrays["step_action_logits"], "step_action_logits")
    np.testing.assert_allclose(actions[0, 0], arrays["normalized_actions"], rtol=0, atol=1e-6)
    # this array alone belongs to config.json's statistics
    statistics = published.read_json(GOLDEN / "ckpt_tiny", "config.json")["norm_stats"][str(arrays["unnorm_key"])]
    raw = Range.from_entry(statistics["action"]).unnormalize(actions[0, 0].numpy())
    np.testing.assert_allclose(raw, arrays["actions"], rtol=0, atol=ATOL)

    loss = token_loss(model, pixels, *(torch.from_numpy(arrays[key]) for key in ("train_input_ids", "train_labels")))
    np.testing.assert_allclose(loss, arrays["train_ce_loss"], rtol=0, atol=ATOL)


def check_control_causal(build, name):
    """The wrong answer of a causal model must be far away, and causal layers must reproduce it."""
    wrong, right = load(name), name.replace("control_causal", "oft")
    states, actions = check_prediction(build, right)
    assert np.abs(states - wrong["action_hidden_states_if_causal"]).max() > 100 * ATOL
    assert np.abs(actions - wrong["actions_if_causal"]).max() > 100 * ATOL

    arrays, model = load(right), build(robot_of(name), True)
    embeds, last = torch.from_numpy(arrays["lm_inputs_embeds"]), model.llm_config.num_hidden_layers
    first, end = arrays["action_slice"]
    for mask in (None, torch.from_numpy(arrays["lm_attention_mask"]).bool()):
        with torch.no_grad():
            causal = model.layer_states(embeds, mask, {last}, causal=True)[last]
        close(causal[:, first:end], wrong["action_hidden_states_if_causal"], "action_hidden_states_if_causal")


def train_forward(build, name):
    """The training forward of a recorded batch: (arrays, model, states of the whole sequence, at the slots, L1)."""
    arrays, model = load(name), build(robot_of(name), True)
    _, chunk_length, action_dim = arrays["actions"].shape
    labels, input_ids, mask, pixels, proprio = (
        torch.from_numpy(arrays[key])
        for key in ("labels", "input_ids", "attention_mask", "pixel_values", "proprio_normalized")
    )
    start = action_tokens.action_start(labels, chunk_length * action_dim)
    patches = model.projector(model.vision_backbone(pixels))
    sequence = model.assemble(patches, input_ids, mask, start, chunk_length, proprio)
    last = model.llm_config.num_hidden_layers
    states = model.layer_states(sequence.embeds, sequence.mask, {last})[last]
    hidden = select(states, sequence.slots)
    return arrays, model, states, hidden, (model.action_head(hidden) - torch.from_numpy(arrays["actions"])).abs().mean()


@torch.no_grad()
def check_train_batch(build, name):
    arrays, model, states, hidden, loss = train_forward(build, name)
    labels, mask = torch.from_numpy(arrays["labels"]), arrays["attention_mask"]
    current, later = action_tokens.action_masks(labels[:, 1:], arrays["actions"].shape[-1])
    np.testing.assert_array_equal(current, arrays["current_action_mask"])
    np.testing.assert_array_equal(later, arrays["next_actions_mask"])
    close(hidden, arrays["action_hidden_states"], "action_hidden_states")
    close(model.action_head(hidden), arrays["predicted_actions"], "predicted_actions")
    np.testing.assert_allclose(loss, arrays["l1_loss"], rtol=0, atol=ATOL)

    inserted = states.shape[1] - labels.shape[1]  # patches and the proprio token
    logits = model.language_model.lm_head(states[:, inserted:-1])  # [B, L - 1, vocabulary]: position t - 1 speaks for t
    real = mask[:, 1:]
    np.testing.assert_array_equal(logits.argmax(dim=-1).numpy()[real], arrays["predicted_token_ids"][real])
    cross_entropy = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
    np.testing.assert_allclose(cross_entropy, arrays["ce_loss"], rtol=0, atol=ATOL)


def check_train_grads(build, name):
    expected = load(name)
    _, model, _, _, loss = train_forward(build, name.replace("grads", "batch"))
    parts = {"model": model, "head": model.action_head, "proprio": model.proprio_projector}
    parameters = {
        array: dict(parts[array.partition(".")[0]].named_parameters())[array.partition(".")[2]] for array in expected
    }
    assert len(parameters) > 20
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    _, _, _, _, loss = train_forward(build, name.replace("grads", "batch"))
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    for (array, value), gradient in zip(expected.items(), gradients, strict=True):
        close(gradient, value, array)
        assert np.abs(value).max() > ATOL or np.abs(gradient.numpy() - value).max() < 1e-6, array
    for parameter in parameters.values():
        parameter.requires_grad_(False)


def test_golden_preprocess_tiny(golden_dir):
    arrays = load("preprocess_tiny")
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
    arrays = load("preprocess_224")
    tiny = PrismaticImageProcessor.from_file(golden_dir / "ckpt_tiny" / "preprocessor_config.json")
    size = arrays["pixel_values"].shape[-1]
    processor = PrismaticImageProcessor(sizes=[size, size], means=tiny.means, stds=tiny.stds)
    close(processor(torch.from_numpy(arrays["image"])[None]), arrays["pixel_values"], "pixel_values")


def test_golden_action_tokenizer(golden_dir):
    arrays = load("action_tokenizer")
    np.testing.assert_array_equal(action_tokens.BIN_EDGES, arrays["bins"])
    np.testing.assert_array_equal(action_tokens.BIN_CENTERS, arrays["bin_centers"])
    assert arrays["action_token_begin_idx"] == action_tokens.ACTION_TOKEN_BEGIN
    np.testing.assert_array_equal(action_tokens.encode_actions(arrays["actions"]), arrays["token_ids"])
    np.testing.assert_array_equal(action_tokens.decode_actions(arrays["token_ids"]), arrays["decoded"])
    np.testing.assert_array_equal(action_tokens.decode_actions(arrays["all_ids"]), arrays["all_ids_decoded"])


def test_number_of_images_comes_from_the_pixels(build):
    assert CHANNELS_PER_IMAGE == 6
    model = build(proprio=False)
    shape = model.architecture.dino
    for images in (1, 2, 3):
        pixels = torch.zeros(1, 6 * images, shape.image_size, shape.image_size)
        with torch.no_grad():
            assert model.vision_backbone(pixels).shape[1] == images * shape.num_patches


globals().update(
    golden_tests("build", "oft_[0-9]img_*", check_prediction)
    | golden_tests("build", "oft_aloha_[0-9]img_*", check_prediction)
    | golden_tests("build", "oft_film_*", check_film)
    | golden_tests("build", "base_ar_*", check_autoregressive)
    | golden_tests("build", "control_causal_*", check_control_causal)
    | golden_tests("build", "oft_*train_batch", check_train_batch)
    | golden_tests("build", "oft_*train_grads", check_train_grads)
)
