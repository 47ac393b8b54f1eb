"""Loading base models: both layouts, and one clear error for each way a checkpoint can be wrong."""

import functools
import itertools
import json
import shutil
import socket
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file

from rsd.checkpoint import CheckpointError
from rsd.models.openvla import ObservationError, Robot, save_base
from rsd.models.openvla import published as fetching
from rsd.models.openvla.published import TIMM_SHAPES, read_architecture
from rsd.models.openvla.text import LlamaText
from rsd.space import Range, UnknownKeyError
from tests.hub_server import hub_of
from tests.models.openvla_tiny import UNNORM_KEY, build_base, observation, plain_observation
from tests.models.published_copy import LIBERO, VIEWS, edit_json, llama_tokenizer, load
from tests.records import edit


@pytest.fixture
def own(tmp_path) -> Path:
    save_base(tmp_path / "own", build_base(), {"steps": 0})
    return tmp_path / "own"


# --- what works


@pytest.mark.parametrize("view", VIEWS)
def test_black_and_white_pictures_give_different_actions(golden_dir, view):
    base = load(golden_dir / "ckpt_tiny")
    white = plain_observation(0)
    white.images[view] = np.full_like(white.images[view], 255)
    actions = base.look([plain_observation(0), white]).chunk()
    assert (actions[0] - actions[1]).abs().max() > 1e-3


def test_published_layout_on_one_image_without_proprio(published):
    next(published.glob("proprio_projector--*")).unlink()
    base = load(published, views=["image"], use_proprio=False)
    inputs = base.prepare([observation()])
    assert "proprio" not in inputs
    assert inputs["pixel_values"].shape[1] == 6
    assert len(base.fingerprint()["weights_sha256"]) == 64
    assert not any(weight.requires_grad for weight in base.model.parameters())


def test_dataset_statistics_replace_those_of_the_config(published):
    key = load(published).space.name
    assert key not in json.loads((published / "config.json").read_text())["norm_stats"]
    suite = key.removesuffix("_no_noops")
    assert load(published, unnorm_key=suite).space.name == key


def test_sharded_weights_are_the_same_model(published):
    inputs = load(published).prepare([observation()])
    expected = load(published).look(inputs).chunk()
    weights = load_file(published / "model.safetensors")
    names, weight_map = sorted(weights), {}
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: weights[name] for name in part}, published / f"model-{number}.safetensors")
        weight_map |= dict.fromkeys(part, f"model-{number}.safetensors")
    (published / "model.safetensors").unlink()
    (published / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert torch.equal(load(published).look(inputs).chunk(), expected)
    (published / "model-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no model-1\.safetensors; copy the missing"):
        load(published)


def test_own_layout_round_trip(own):
    before = build_base()
    after = load(own, text=None, unnorm_key=UNNORM_KEY.removesuffix("_no_noops"))
    inputs = before.prepare([observation()])
    for name, value in after.prepare([observation()]).items():
        assert torch.equal(value, inputs[name]), name
    expected, got = before.look(inputs), after.look(inputs)
    assert torch.equal(got.chunk(), expected.chunk())
    assert torch.equal(got.at("layer.2"), expected.at("layer.2"))
    assert after.space == before.space and after.space.statistics == before.space.statistics


def test_published_shapes_are_those_of_the_7b_model(golden_dir, tmp_path):
    """Without the golden sets' extension, the ViTs and the language model have OpenVLA-7B's sizes."""
    shutil.copy(golden_dir / "ckpt_tiny" / "config.json", tmp_path)
    edit_json(tmp_path / "config.json", lambda record: record.pop("timm_model_kwargs"))
    edit_json(tmp_path / "config.json", lambda record: record.update(text_config={"vocab_size": 32064}))
    architecture = read_architecture(tmp_path, action_head="l1", action_dim=7, proprio_dim=8)
    assert (architecture.dino.embed_dim, architecture.dino.depth) == (1024, 24)
    assert (architecture.siglip.embed_dim, architecture.siglip.depth, architecture.siglip.mlp_dim) == (1152, 27, 4304)
    assert (architecture.action_dim, architecture.proprio_dim) == (7, 8)
    assert len(TIMM_SHAPES) == 2


# --- the Llama prompt


def test_llama_prompt_ids(tmp_path):
    llama_tokenizer(tmp_path)
    head = [1, 512, 29901, 1724, 3158, 881, 278, 19964, 2125, 304]
    expected = [*head, 5839, 701, 278, 4628, 12580, 29880, 29973, 13, 3744, 29901, 29871]
    assert LlamaText(tmp_path).encode("Pick up the BLACK bowl") == expected


def test_missing_tokenizer_is_named(published):
    with pytest.raises(CheckpointError, match=r"tokenizer\.json does not exist; copy the tokenizer files"):
        load(published, text=None)


# --- what must be refused


def test_missing_folder_names_the_command(tmp_path):
    with pytest.raises(CheckpointError, match=r"no base checkpoint: .*nothing.* train.py phase=oft model=oft_tiny"):
        load(tmp_path / "nothing")


@pytest.mark.parametrize("offline", [True, False])
def test_missing_published_folder_names_what_to_download_and_where(tmp_path, monkeypatch, offline):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # refuses connections
    hub_id = "moojink/openvla-7b-oft-finetuned-libero-spatial"
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "spatial", hub_id=hub_id)
    message = str(caught.value)
    assert f"the hub could not be reached for {hub_id}" in message
    assert ("HF_HUB_OFFLINE is set" if offline else "Connection refused") in message
    assert f"put them into {tmp_path / 'spatial'}" in message
    assert not (tmp_path / "spatial").exists()


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    "answers",
    [[b"no http\r\n\r\n"], [OK + b"{}", b""], [OK + b"{}", OK + b"<p"], [OK + b"{}", OK + b"{}"], None],
    ids=["no http", "breaks off", "a page", "another service", "no address"],
)
def test_a_hub_that_answers_otherwise_is_one_line(tmp_path, monkeypatch, answers):
    """To the first question, whether it is there, and to those that follow it."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        for number in itertools.count():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                connection.sendall(answers[min(number, len(answers) - 1)])

    endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}" if answers else "nowhere"
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", endpoint)
    with listener:
        if answers:
            threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(CheckpointError, match=r"the hub could not be reached for a/b \(\w+: .*\); download all"):
            load(tmp_path / "base", hub_id="a/b")


def test_a_folder_that_is_no_interrupted_download_is_left_alone(tmp_path, monkeypatch):
    """And an interrupted one goes on, for the checkpoint that it is of."""
    content, base, partial = (tmp_path / name for name in ("hub", "base", "base.part"))
    for folder, name in ((content, "config.json"), (partial, "mine.txt")):
        folder.mkdir()
        (folder / name).write_text("{}")
    with hub_of({"models/a/b": content}) as (address, asked):
        monkeypatch.setattr(fetching, "constants", SimpleNamespace(HF_HUB_OFFLINE=False, ENDPOINT=address))
        with pytest.raises(CheckpointError, match=r"base\.part is there, and is no download of a/b .*; move it"):
            load(base, hub_id="a/b")
        assert not asked and [path.name for path in partial.iterdir()] == ["mine.txt"]
        shutil.rmtree(partial)

        def break_off(*_, local_dir, **__):
            (local_dir / "config.json").touch()
            raise ConnectionError("reset")

        monkeypatch.setattr(fetching, "snapshot_download", break_off)
        with pytest.raises(CheckpointError, match=r"could not be reached for a/b \(ConnectionError: reset\)"):
            load(base, hub_id="a/b")
        with pytest.raises(CheckpointError, match=r"base\.part is there, and is no download of c/d"):
            load(base, hub_id="c/d")
        monkeypatch.setattr(fetching, "snapshot_download", functools.partial(snapshot_download, endpoint=address))
        fetching.fetch(base, "a/b")
    assert (base / "config.json").read_text() == "{}" and not partial.exists() and not list(base.glob(".fetched"))


def test_folder_without_config(published):
    (published / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json does not exist; .* not a complete OpenVLA-OFT checkpoint"):
        load(published)


def test_truncated_weights(published):
    path = published / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged .* copy it again"):
        load(published)


def test_truncated_own_weights(own):
    path = own / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match=r"weights\.safetensors is damaged"):
        load(own)


def test_truncated_side_file(published):
    path = next(published.glob("action_head--*"))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"action_head--.* cannot be read .* copy it again"):
        load(published)


def test_missing_and_unexpected_weights_are_listed(published):
    weights = load_file(published / "model.safetensors")
    weights["extra.weight"] = weights.pop("projector.fc3.bias")
    save_file(weights, published / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"architecture: missing projector.fc3.bias; unexpected extra.weight"):
        load(published)


def test_head_of_another_width(published):
    path = next(published.glob("action_head--*"))
    head = torch.load(path, weights_only=True)
    head["module.model.fc1.weight"] = head["module.model.fc1.weight"][:, :-4]
    torch.save(head, path)
    with pytest.raises(CheckpointError, match=r"action_head\.model\.fc1\.weight has shape .* expected"):
        load(published)


def test_own_checkpoint_of_another_architecture(own):
    edit(own / "checkpoint.json", lambda record: record["config"]["architecture"]["llm"].update(hidden_size=64))
    with pytest.raises(CheckpointError, match=r"another architecture: .* has shape"):
        load(own)


def test_two_heads_in_one_folder(published):
    path = next(published.glob("action_head--*"))
    shutil.copy(path, published / "action_head--5_checkpoint.pt")
    with pytest.raises(CheckpointError, match=r"several action_head files: .* leave only one"):
        load(published)


def test_missing_proprio_projector(published):
    next(published.glob("proprio_projector--*")).unlink()
    with pytest.raises(CheckpointError, match=r"has no proprio_projector--.*use_proprio=false"):
        load(published)
    assert not load(published, use_proprio=False).use_proprio


def test_a_projector_that_would_not_be_used(published):
    with pytest.raises(CheckpointError, match=r"holds proprio_projector--.* would leave it out.*use_proprio=true"):
        load(published, use_proprio=False)


def test_one_image_to_a_checkpoint_of_two(published):
    with pytest.raises(CheckpointError, match="num_images is 2, asked for 1"):
        load(published, num_images=2, views=("image",))
    one, two = load(published, views=("image",)), load(published)
    with pytest.raises(ObservationError, match=r"pixel_values has 6 channels, the model's 2 pictures .* have 12"):
        two.look(one.prepare([observation()])).chunk()


def test_proprio_to_a_model_without_projector_and_the_reverse(published):
    base = load(published)
    inputs = base.prepare([observation()])
    without = {name: value for name, value in inputs.items() if name != "proprio"}
    with pytest.raises(ValueError, match=r"has a proprio projector for \d+ dims, got no proprio"):
        base.look(without).chunk()
    next(published.glob("proprio_projector--*")).unlink()
    with pytest.raises(ValueError, match="proprio given to a model without proprio projector"):
        load(published, use_proprio=False).look(inputs).chunk()


@pytest.mark.parametrize("number", [0, 4])
def test_bad_views_are_refused(published, number):
    with pytest.raises(ValueError, match=r"expected (1 to 3 different ones|a list .* of at least one entry)"):
        load(published, views=[f"view{index}" for index in range(number)])


def test_bounds_are_the_statistics_own_or_else_the_robots(published):
    """Statistics of published files do not say which of their numbers -1 and 1 stand for."""
    extremes = replace(LIBERO, bounds="extremes")
    stats = load(published, robot=extremes).space.statistics["proprio"]
    wide, narrow = (
        load(published, robot=robot).normalized_proprio([stats["q99"]]).numpy() for robot in (extremes, LIBERO)
    )
    np.testing.assert_allclose(
        wide[0], Range.from_entry(stats).normalize(np.array(stats["q99"]), zero_constant=False), atol=1e-6
    )
    np.testing.assert_allclose(narrow, 1.0, atol=1e-5)
    assert wide.max() < 1

    def say_it(record):
        for entry in record.values():
            entry["action"]["bounds"] = entry["proprio"]["bounds"] = "extremes"

    edit_json(published / "dataset_statistics.json", say_it)
    assert load(published, robot=LIBERO).space.bounds == "extremes"

    def misspell(record):
        for entry in record.values():
            entry["proprio"]["bounds"] = "extreme"

    edit_json(published / "dataset_statistics.json", misspell)
    with pytest.raises(CheckpointError, match=r"bounds \{'proprio': 'extreme'\}, expected one of \['extremes'"):
        load(published)


def test_another_robot_is_refused(published):
    aloha = Robot(name="aloha", chunk_length=25, action_dim=14, proprio_dim=14, bounds="extremes")
    with pytest.raises(CheckpointError, match="chunk_length is 25, asked for 8"):
        load(published, robot=aloha)
    with pytest.raises(CheckpointError, match=r"action has 7 dims in the weights and .* and 14 dims in robot=aloha"):
        load(published, robot=aloha, chunk_length=25)
    with pytest.raises(ValueError, match=r"bounds 'sigma' of robot 'x'.*\['extremes', 'quantiles'\]"):
        Robot(name="x", chunk_length=8, action_dim=7, proprio_dim=8, bounds="sigma")
    with pytest.raises(ValueError, match=r"gripper 'open' of robot 'x'.*\['inverted_sign', 'unchanged'\]"):
        Robot(name="x", chunk_length=8, action_dim=7, proprio_dim=8, bounds="quantiles", gripper="open")


def test_the_robot_names_the_gripper_s_rule(published):
    assert load(published).space.gripper == load(published, robot=LIBERO).space.gripper == "inverted_sign"
    assert load(published, robot=replace(LIBERO, gripper="unchanged")).space.gripper == "unchanged"


@pytest.mark.parametrize(
    ("action_head", "message"),
    [
        ("diffusion", r"has no noisy_action_projector--.*action_head=diffusion"),
        ("discrete", r"holds action_head--.* but action_head 'discrete'.*set model.backbone.action_head"),
        ("autoregressive", r"holds action_head--\w+\.pt, but action_head 'autoregressive' .* is l1 or diffusion"),
    ],
)
def test_a_head_of_another_kind(published, action_head, message):
    with pytest.raises(CheckpointError, match=message):
        load(published, action_head=action_head)


def test_a_diffusion_head_under_an_l1_config(published):
    path = next(published.glob("action_head--*"))
    head = torch.load(path, weights_only=True)
    renamed = {name.replace("module.model.", "module.noise_predictor.mlp_resnet."): head[name] for name in head}
    torch.save(renamed, path)
    with pytest.raises(CheckpointError, match=r"is not of action_head 'l1': it holds \['noise_predictor"):
        load(published)


def test_an_unknown_decoder_lists_the_known_ones(published):
    with pytest.raises(ValueError, match=r"action_head 'l2' is unknown; expected one of \['autoregressive', "):
        load(published, action_head="l2")


def test_missing_head(published):
    next(published.glob("action_head--*")).unlink()
    with pytest.raises(CheckpointError, match=r"has no action_head--"):
        load(published)


def test_unknown_unnorm_key_lists_the_known_ones(published, own):
    for directory, known in ((published, load(published).space.name), (own, UNNORM_KEY)):
        with pytest.raises(UnknownKeyError, match=rf"'libero_space' not in norm_stats; available: \['.*{known}"):
            load(directory, unnorm_key="libero_space")


def test_statistics_without_q01(published):
    def drop(record):
        for entry in record.values():
            del entry["action"]["q01"]

    edit_json(published / "dataset_statistics.json", drop)
    with pytest.raises(CheckpointError, match=r"lack \['action\.q01'\]"):
        load(published)


def test_statistics_of_another_robot(published):
    def shorten(record):
        for entry in record.values():
            entry["proprio"] = {name: values[:-1] for name, values in entry["proprio"].items()}

    edit_json(published / "dataset_statistics.json", shorten)
    with pytest.raises(CheckpointError, match=r"proprio has \d+ dims in the weights and \d+ dims in the statistics"):
        load(published)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunk_length": 16}, "chunk_length is 8, asked for 16"),
        ({"views": ("image",)}, r"views is \('image', 'wrist_image'\), asked for \('image',\)"),
        ({"use_proprio": False}, "use_proprio is True, asked for False"),
        ({"center_crop": False}, "center_crop is True, asked for False"),
    ],
)
def test_own_checkpoint_trained_for_something_else(own, changes, message):
    with pytest.raises(CheckpointError, match=message):
        load(own, **changes)


def test_published_checkpoint_trained_for_another_chunk(published):
    with pytest.raises(CheckpointError, match="chunk_length is 8, asked for 16"):
        load(published, robot=LIBERO, chunk_length=16)
