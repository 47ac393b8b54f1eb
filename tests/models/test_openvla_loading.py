"""Loading base models: both layouts, and one clear error for each way a checkpoint can be wrong."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, processors

from rsd.checkpoint import CheckpointError
from rsd.models.openvla import CanaryError, ObservationError, Robot, load_backbone, save_backbone
from rsd.models.openvla.canaries import check_canaries
from rsd.models.openvla.published import TIMM_SHAPES, merge_lora, read_architecture
from rsd.models.openvla.text import LlamaText, WordText
from rsd.normalization import UnknownKeyError
from tests.models.openvla_tiny import LONG, SHORT, UNNORM_KEY, build_backbone, observation, plain_observation

ROOT = Path(__file__).parents[2]
VIEWS = ("image", "wrist_image")
LIBERO = Robot(name="libero", chunk_length=8, action_dim=7, proprio_dim=8, bounds="quantiles")
WORDS = WordText.from_instructions([SHORT])


@pytest.fixture
def published(golden_dir, tmp_path) -> Path:
    """A copy of the golden checkpoint, free to be damaged."""
    return Path(shutil.copytree(golden_dir / "ckpt_tiny", tmp_path / "ckpt"))


@pytest.fixture
def own(tmp_path) -> Path:
    save_backbone(tmp_path / "own", build_backbone(), {"steps": 0})
    return tmp_path / "own"


def load(directory: Path, **changes):
    """Load with arguments that fit both layouts; the statistics of a golden set may hold several data sets."""
    statistics = directory / "dataset_statistics.json"
    key = next(iter(json.loads(statistics.read_text()))) if statistics.exists() else None
    arguments = {"unnorm_key": key, "views": VIEWS, "use_proprio": True, "chunk_length": 8, "text": WORDS}
    return load_backbone(checkpoint=directory, **{**arguments, **changes})


def edit_json(path: Path, change) -> None:
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


# --- what works


@pytest.mark.parametrize("view", VIEWS)
def test_black_and_white_pictures_give_different_actions(golden_dir, view):
    backbone = load(golden_dir / "ckpt_tiny")
    white = plain_observation(0)
    white.images[view] = np.full_like(white.images[view], 255)
    actions = backbone.forward(backbone.prepare([plain_observation(0), white]), layers=[]).actions
    assert (actions[0] - actions[1]).abs().max() > 1e-3


def test_published_layout_on_one_image_without_proprio(published):
    next(published.glob("proprio_projector--*")).unlink()
    backbone = load(published, views=["image"], use_proprio=False)
    inputs = backbone.prepare([observation()])
    assert "proprio" not in inputs
    assert inputs["pixel_values"].shape[1] == 6
    assert len(backbone.fingerprint()["weights_sha256"]) == 64
    assert not any(weight.requires_grad for weight in backbone.model.parameters())


def test_dataset_statistics_replace_those_of_the_config(published):
    key = load(published).unnorm_key
    assert key not in json.loads((published / "config.json").read_text())["norm_stats"]
    suite = key.removesuffix("_no_noops")
    assert load(published, unnorm_key=suite).unnorm_key == key


def test_sharded_weights_are_the_same_model(published):
    inputs = load(published).prepare([observation()])
    expected = load(published).forward(inputs, layers=[]).actions
    weights = load_file(published / "model.safetensors")
    names, weight_map = sorted(weights), {}
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: weights[name] for name in part}, published / f"model-{number}.safetensors")
        weight_map |= dict.fromkeys(part, f"model-{number}.safetensors")
    (published / "model.safetensors").unlink()
    (published / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert torch.equal(load(published).forward(inputs, layers=[]).actions, expected)
    (published / "model-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no model-1\.safetensors; copy the missing"):
        load(published)


def test_own_layout_round_trip(own):
    before = build_backbone()
    after = load(own, text=None, unnorm_key=UNNORM_KEY.removesuffix("_no_noops"))
    inputs = before.prepare([observation()])
    for name, value in after.prepare([observation()]).items():
        assert torch.equal(value, inputs[name]), name
    expected, got = before.forward(inputs, layers=[2]), after.forward(inputs, layers=[2])
    assert torch.equal(got.actions, expected.actions)
    assert torch.equal(got.hidden_states[2], expected.hidden_states[2])
    assert after.norm_stats == before.norm_stats


def test_published_shapes_are_those_of_the_7b_model(golden_dir, tmp_path):
    """Without the golden sets' extension, the ViTs and the language model have OpenVLA-7B's sizes."""
    shutil.copy(golden_dir / "ckpt_tiny" / "config.json", tmp_path)
    edit_json(tmp_path / "config.json", lambda record: record.pop("timm_model_kwargs"))
    edit_json(tmp_path / "config.json", lambda record: record.update(text_config={"vocab_size": 32064}))
    architecture = read_architecture(tmp_path, decoder="l1", action_dim=7, proprio_dim=8)
    assert (architecture.dino.embed_dim, architecture.dino.depth) == (1024, 24)
    assert (architecture.siglip.embed_dim, architecture.siglip.depth, architecture.siglip.mlp_dim) == (1152, 27, 4304)
    assert (architecture.action_dim, architecture.proprio_dim) == (7, 8)
    assert len(TIMM_SHAPES) == 2


# --- the Llama prompt


def llama_tokenizer(path: Path) -> None:
    """A tokenizer of Llama's kind that knows the pieces of one prompt under Llama's own ids (SPEC §5)."""
    pieces = {
        512: "▁In", 29901: ":", 1724: "▁What", 3158: "▁action", 881: "▁should", 278: "▁the", 19964: "▁robot",
        2125: "▁take", 304: "▁to", 5839: "▁pick", 701: "▁up", 4628: "▁black", 12580: "▁bow", 29880: "l",
        15284: "▁plate", 29973: "?", 3744: "Out", 29871: "▁", 0: "<unk>", 1: "<s>", 2: "</s>",
    }  # fmt: skip
    pieces |= {3 + byte: f"<0x{byte:02X}>" for byte in range(256)}
    vocabulary = [(pieces.get(index, f"<unused{index}>"), 0.0 if index in pieces else -100.0) for index in range(32000)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(path / "tokenizer.json"))


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
    edit_json(own / "checkpoint.json", lambda record: record["config"]["architecture"]["llm"].update(hidden_size=64))
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
        two.forward(one.prepare([observation()]), layers=[])


def test_proprio_to_a_model_without_projector_and_the_reverse(published):
    backbone = load(published)
    inputs = backbone.prepare([observation()])
    without = {name: value for name, value in inputs.items() if name != "proprio"}
    with pytest.raises(ValueError, match=r"has a proprio projector for \d+ dims, got no proprio"):
        backbone.forward(without, layers=[])
    next(published.glob("proprio_projector--*")).unlink()
    with pytest.raises(ValueError, match="proprio given to a model without proprio projector"):
        load(published, use_proprio=False).forward(inputs, layers=[])


@pytest.mark.parametrize("number", [0, 4])
def test_bad_views_are_refused(published, number):
    with pytest.raises(ValueError, match=r"expected 1 to 3 different ones"):
        load(published, views=[f"view{index}" for index in range(number)])


def test_another_robot_is_refused(published):
    aloha = Robot(name="aloha", chunk_length=25, action_dim=14, proprio_dim=14, bounds="extremes")
    with pytest.raises(CheckpointError, match="chunk_length is 25, asked for 8"):
        load(published, robot=aloha)
    with pytest.raises(CheckpointError, match=r"action has 7 dims in the weights and .* and 14 dims in robot=aloha"):
        load(published, robot=aloha, chunk_length=25)
    with pytest.raises(ValueError, match=r"bounds 'sigma' of robot 'x'.*\['extremes', 'quantiles'\]"):
        Robot(name="x", chunk_length=8, action_dim=7, proprio_dim=8, bounds="sigma")


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        ("diffusion", r"has no noisy_action_projector--.*decoder=diffusion"),
        ("discrete", r"holds action_head--.* but decoder 'discrete'.*set model.backbone.decoder"),
        ("autoregressive", r"chunk_length is 1, asked for 8"),
    ],
)
def test_a_head_of_another_kind(published, decoder, message):
    with pytest.raises(CheckpointError, match=message):
        load(published, decoder=decoder)


def test_a_diffusion_head_under_an_l1_config(published):
    path = next(published.glob("action_head--*"))
    head = torch.load(path, weights_only=True)
    renamed = {name.replace("module.model.", "module.noise_predictor.mlp_resnet."): head[name] for name in head}
    torch.save(renamed, path)
    with pytest.raises(CheckpointError, match=r"is not of decoder 'l1': it holds \['noise_predictor"):
        load(published)


def test_an_unknown_decoder_lists_the_known_ones(published):
    with pytest.raises(ValueError, match=r"decoder 'l2' is unknown; expected one of \['autoregressive', "):
        load(published, decoder="l2")


# --- damaged weights


def test_an_index_that_disagrees_with_its_shards(published):
    weights = load_file(published / "model.safetensors")
    weight_map = dict.fromkeys(weights, "model.safetensors")
    index = published / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map | {"more.weight": "model.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"index\.json disagree about \['more\.weight'\]"):
        load(published)
    index.write_text("{")
    with pytest.raises(CheckpointError, match=r"is not an index of weights"):
        load(published)


def test_weights_that_are_not_numbers_of_floating_point(published):
    weights = load_file(published / "model.safetensors")
    weights["projector.fc3.bias"] = weights["projector.fc3.bias"].to(torch.int16)
    save_file(weights, published / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"holds I16 in \['projector\.fc3\.bias'\], expected \('F32'"):
        load(published)


def test_every_flipped_byte_of_the_header_is_noticed_or_harmless(published):
    """Either a CheckpointError, or exactly the same weights (a byte of the header's padding or metadata)."""
    path = published / "model.safetensors"
    good = path.read_bytes()
    expected = shapes_and_offsets(path)
    size = 8 + int.from_bytes(good[:8], "little")
    noticed = 0
    positions = [*range(16), *range(16, size, max(1, size // 150))]
    for position in positions:
        damaged = bytearray(good)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        try:
            load(published, device="meta")
        except CheckpointError:
            noticed += 1
            continue
        assert shapes_and_offsets(path) == expected, position
    assert noticed > 0.9 * len(positions)


def shapes_and_offsets(path: Path) -> dict:
    """The header's tensors, as stored."""
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return {name: entry for name, entry in header.items() if name != "__metadata__"}


def test_meta_loading_reads_no_weights(published):
    backbone = load(published, device="meta")
    assert {value.device.type for value in backbone.model.parameters()} == {"meta"}
    path = next(published.glob("action_head--*"))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(published, device="meta")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_have_the_asked_dtype_and_no_tie_to_the_file(published, dtype):
    backbone = load(published, dtype=dtype)
    assert {value.dtype for value in backbone.model.parameters()} == {getattr(torch, dtype)}
    before = backbone.model.projector.fc1.weight.clone()
    path = published / "model.safetensors"
    path.write_bytes(b"\0" * path.stat().st_size)
    assert torch.equal(backbone.model.projector.fc1.weight, before)


MEASURE = """
import sys, torch
from pathlib import Path
from torch import nn
from rsd.models.openvla.streaming import read_headers, stream, weight_files

def status(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) * 1024

directory = Path(sys.argv[1])
found = read_headers(weight_files(directory))
with torch.device("meta"):
    module = nn.ParameterDict({name: nn.Parameter(torch.empty(shape)) for name, (_, shape) in found.items()})
before = status("VmRSS:")
stream(module, found, device="cpu", dtype=torch.bfloat16)
print(status("VmHWM:") - before)
"""


def test_the_host_holds_one_shard_beside_the_model(tmp_path):
    """Six shards of 48 MB: beside the 288 MB of the model, at most one shard and some overhead at any time."""
    shard_bytes, weight_map = 48 * 2**20, {}
    for number in range(6):
        name = f"model-{number}.safetensors"
        tensors = {f"w{number}{part}": torch.ones(shard_bytes // 6, dtype=torch.bfloat16) for part in "abc"}
        save_file(tensors, tmp_path / name)
        weight_map |= dict.fromkeys(tensors, name)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    peak = int(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout)
    assert peak < 6 * shard_bytes + 1.5 * shard_bytes


# --- other layouts


def original(published: Path) -> Path:
    """The golden base model as the original OpenVLA: no side files, statistics in config.json alone."""
    for path in (*published.glob("*checkpoint.pt"), published / "dataset_statistics.json"):
        path.unlink()
    return published


def load_original(directory: Path, **changes):
    key = next(iter(json.loads((directory / "config.json").read_text())["norm_stats"]))
    arguments = {"unnorm_key": key, "decoder": "autoregressive", "views": ["image"], "use_proprio": False}
    return load(directory, **{**arguments, "chunk_length": 1, **changes})


def test_the_original_openvla_generates_the_same_alone_and_in_a_batch(published):
    text = WordText.from_instructions([SHORT, LONG])
    backbone = load_original(original(published), text=text)
    observations = [observation(0, SHORT), observation(1, LONG)]
    inputs = backbone.prepare(observations)
    assert inputs["input_ids"].shape[1] == int(inputs["action_start"].max())  # nothing after the prompt
    together = backbone.forward(inputs, layers=[1, 2])
    assert together.actions.shape == (2, 1, 7) and together.hidden_states[1].shape == (2, 7, 48)
    for row, single in enumerate(observations):
        alone = backbone.forward(backbone.prepare([single]), layers=[1, 2])
        assert torch.equal(alone.actions[0], together.actions[row])
        for layer in (1, 2):
            expected = alone.hidden_states[layer][0]
            torch.testing.assert_close(together.hidden_states[layer][row], expected, atol=5e-5, rtol=0)


def test_the_original_openvla_sees_its_picture_at_the_first_token(published):
    """An empty cache object at step 0 must not hide the picture (openvla#346)."""
    backbone = load_original(original(published))
    black, white = (backbone.prepare([plain_observation(level)]) for level in (0, 255))
    states = [backbone.forward(inputs, layers=[2]).hidden_states[2][0, 0] for inputs in (black, white)]
    logits = [backbone.model.language_model.lm_head(state) for state in states]
    assert (logits[0] - logits[1]).abs().max() > 1e-3


def test_openvla_v01_has_one_tower_two_projector_layers_and_another_prompt(published, tmp_path):
    record = json.loads((original(published) / "config.json").read_text())
    record |= {
        "use_fused_vision_backbone": False,
        "vision_backbone_id": "siglip-vit-so400m",
        "llm_backbone_id": "vicuna-v15-7b",
        "timm_model_ids": record["timm_model_ids"][1:],
        "timm_model_kwargs": record["timm_model_kwargs"][1:],
        "image_sizes": record["image_sizes"][1:],
        "image_resize_strategy": "letterbox",
    }
    (published / "config.json").write_text(json.dumps(record))
    processor = json.loads((published / "preprocessor_config.json").read_text())
    for name in ("input_sizes", "interpolations", "means", "stds", "tvf_normalize_params"):
        processor[name] = processor[name][1:]
    (published / "preprocessor_config.json").write_text(json.dumps(processor | {"image_resize_strategy": "letterbox"}))
    weights = load_file(published / "model.safetensors")
    fused = "vision_backbone.fused_featurizer."
    single = {name.replace(fused, "vision_backbone.featurizer."): weights[name] for name in weights if fused in name}
    single |= {name: weights[name] for name in weights if name.startswith("language_model.")}
    width, vision = 48, weights[f"{fused}pos_embed"].shape[-1]
    for name, shape in (("fc1", (width, vision)), ("fc2", (width, width))):
        single |= {f"projector.{name}.weight": torch.randn(shape), f"projector.{name}.bias": torch.zeros(width)}
    save_file(single, published / "model.safetensors")
    llama_tokenizer(published)
    backbone = load_original(published, text=None)
    prompt = backbone.text.to_json()["prompt"]
    assert prompt.startswith("A chat between a curious user")
    assert prompt.endswith("USER: What action should the robot take to {instruction}? ASSISTANT:")
    assert backbone.processor.strategy == "letterbox"
    inputs = backbone.prepare([observation()])
    assert inputs["pixel_values"].shape[1] == 3
    assert torch.isfinite(backbone.forward(inputs, layers=[2]).hidden_states[2]).all()
    with pytest.raises(ValueError, match="a single vision tower takes one picture"):
        load_original(published, text=WORDS, views=VIEWS)


def test_unmerged_lora_in_a_vision_side_file_is_merged():
    """Rank 2, alpha 2 (the reference's alpha is min(rank, 16)): plain + B A; and rank 32: half of it."""
    for rank, scale in ((2, 1.0), (32, 0.5)):
        down, up, base = torch.randn(rank, 4), torch.randn(3, rank), torch.randn(3, 4)
        stem = "vision_backbone.featurizer.blocks.0.block.attn.qkv"
        stored = {
            f"{stem}.base_layer.weight": base,
            f"{stem}.base_layer.bias": torch.ones(3),
            f"{stem}.lora_A.default.weight": down,
            f"{stem}.lora_B.default.weight": up,
            "other": torch.zeros(1),
        }
        merged = merge_lora(stored)
        assert set(merged) == {f"{stem}.weight", f"{stem}.bias", "other"}
        torch.testing.assert_close(merged[f"{stem}.weight"], base + scale * up @ down)


# --- canaries


@torch.no_grad()
def test_a_blind_model_is_refused(published):
    weights = load_file(published / "model.safetensors")
    weights["projector.fc3.weight"] = torch.zeros_like(weights["projector.fc3.weight"])
    save_file(weights, published / "model.safetensors")
    with pytest.raises(CanaryError, match=r"a black and a white picture give different answers: states differ by 0"):
        load(published)
    assert load(published, canaries=False).model is not None


def test_weights_that_are_not_finite_are_refused(published):
    weights = load_file(published / "model.safetensors")
    weights["projector.fc3.bias"][0] = torch.nan
    save_file(weights, published / "model.safetensors")
    with pytest.raises(CanaryError, match=r"hidden states are finite: \d+ of \d+ numbers are not"):
        load(published)


def test_a_causal_oft_model_is_refused(published, monkeypatch):
    backbone = load(published)
    honest = backbone.model.decoder_states
    monkeypatch.setattr(
        backbone.model, "decoder_states", lambda *args, **kwargs: honest(*args, **(kwargs | {"causal": True}))
    )
    with pytest.raises(CanaryError, match=r"attention is bidirectional: a change of the last token moves .* by 0"):
        check_canaries(backbone)


def test_reversed_statistics_are_refused(published):
    def swap(record):
        for entry in record.values():
            entry["action"]["q01"], entry["action"]["q99"] = entry["action"]["q99"], entry["action"]["q01"]

    edit_json(published / "dataset_statistics.json", swap)
    with pytest.raises(CanaryError, match="statistics are present and ordered"):
        load(published)


def test_missing_head(published):
    next(published.glob("action_head--*")).unlink()
    with pytest.raises(CheckpointError, match=r"has no action_head--"):
        load(published)


def test_unknown_unnorm_key_lists_the_known_ones(published, own):
    for directory, known in ((published, load(published).unnorm_key), (own, UNNORM_KEY)):
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
