"""A published checkpoint in other forms: the same numbers, the same outputs, or one line about what is wrong."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rsd.checkpoint import CheckpointError
from rsd.models.openvla import conversions
from rsd.models.openvla.conversions import export, join, merge, split
from rsd.models.openvla.model import outline
from rsd.models.openvla.random_weights import openvla_architecture
from rsd.models.openvla.same_outputs import distance, load_network, outputs
from tests.models.published_copy import edit_json
from tests.models.tiny_checkpoints import FILM_LAYERS, LAYERS, LLM, adapter, random

STEM = "language_model.model.layers.0.self_attn.q_proj"


def said(directory: Path):
    return outputs(load_network(directory, device="cpu"))


def same(one: Path, other: Path) -> bool:
    return distance(said(one), said(other)) == 0.0


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".pt"}


@pytest.mark.parametrize("kind", ["l1", "diffusion"])
def test_side_files_join_and_split_without_a_change(tmp_path, kind):
    source = random(tmp_path / "source", kind)
    join(source, tmp_path / "joined", shard_bytes=2_000_000)
    assert not list((tmp_path / "joined").glob("*.pt")) and len(list((tmp_path / "joined").glob("model-*"))) > 2
    assert same(source, tmp_path / "joined")
    split(tmp_path / "joined", tmp_path / "back", step="150000")
    assert contents(source) == contents(tmp_path / "back")
    for path in source.glob("*.pt"):
        before, after = (torch.load(folder / path.name, weights_only=True) for folder in (source, tmp_path / "back"))
        assert before.keys() == after.keys()
        assert all(
            torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before
        )


def test_film_joins_and_splits_and_computes_the_same(tmp_path):
    source = random(tmp_path / "source", film=True)
    join(source, tmp_path / "joined")
    split(tmp_path / "joined", tmp_path / "back")
    assert same(source, tmp_path / "joined") and same(source, tmp_path / "back")
    plain = random(tmp_path / "plain")
    assert distance(said(source), said(plain)) > 0.01  # FiLM is read and does something
    assert "vision_backbone.featurizer.blocks.0.attn.qkv.weight" in load_file(tmp_path / "back" / "model.safetensors")


def test_what_cannot_be_joined_or_split_is_said_in_a_line(tmp_path):
    original = random(tmp_path / "original", "openvla")
    with pytest.raises(CheckpointError, match="nothing to join"):
        join(original, tmp_path / "out")
    with pytest.raises(CheckpointError, match="nothing to split"):
        split(original, tmp_path / "out")
    broken = random(tmp_path / "broken")
    torch.save({"module.fc1.weight": torch.zeros(2, 2)}, broken / "proprio_projector--150000_checkpoint.pt")
    for convert in (join, export):
        with pytest.raises(CheckpointError, match=r"missing proprio_projector\.fc1\.bias") as found:
            convert(broken, tmp_path / "out")
        assert "\n" not in str(found.value)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "checkpoint.json").write_text("{}")
    (tmp_path / "runs" / "checkpoints").mkdir(parents=True)
    for name, told in (("own", "rsd's own layout"), ("runs", "Prismatic's layout")):
        with pytest.raises(CheckpointError, match=told):
            join(tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("*.converting"))


def test_a_folder_that_is_there_is_left_alone_and_a_failure_leaves_none(tmp_path, monkeypatch):
    source = random(tmp_path / "source")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(CheckpointError, match="exists already and is not empty"):
        join(source, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(conversions, "write_stored", lambda folder, **_: (folder / "half").touch() or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            join(source, tmp_path / "empty")
    assert not list((tmp_path / "empty").iterdir()) and not list(tmp_path.glob("*.converting"))
    (tmp_path / "empty.converting").mkdir()  # of a process that was killed
    (tmp_path / "empty.converting" / "half").touch()
    join(source, tmp_path / "empty")
    assert not (tmp_path / "empty" / "half").exists() and not list(tmp_path.glob("*.converting"))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lora_alpha": 16},
        {"use_rslora": True},
        {"use_dora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"up_proj": 1, "q_proj": 6}, "ranks": {STEM: 2}},
    ],
)
def test_adapters_are_merged_into_what_they_were_trained_on(tmp_path, changes):
    base = random(tmp_path / "base", dtype=torch.float32)
    adapter(tmp_path / "tuned" / "lora_adapter", LAYERS, **changes)
    lines = merge(base, tmp_path / "tuned", tmp_path / "out")
    off, effect = map(
        float, re.search(r"differ by (\S+) of .* effect is (\S+)$", "\n".join(lines), re.MULTILINE).groups()
    )
    assert off < 1e-5 and effect > 1e-2
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    changed = {name.removesuffix(".weight") for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(LAYERS)
    weights = load_file(tmp_path / "tuned" / "lora_adapter" / "adapter_model.safetensors")
    down, up = (weights[f"base_model.model.{STEM}.lora_{part}.weight"] for part in "AB")
    if not changes.get("use_dora"):
        alpha, rank = changes.get("alpha_pattern", {}).get("q_proj", changes.get("lora_alpha", 4)), len(down)
        scale = alpha / (rank**0.5 if changes.get("use_rslora") else rank)
        torch.testing.assert_close(after[f"{STEM}.weight"], before[f"{STEM}.weight"] + scale * up @ down)


@pytest.mark.parametrize("changes", [{}, {"use_dora": True}, {"use_rslora": True, "lora_alpha": 8}])
def test_peft_merges_to_the_same_weights(tmp_path, changes):
    peft = pytest.importorskip("peft", reason="needs pip install -e '.[peft]'")
    base = random(tmp_path / "base", dtype=torch.float32)
    model = load_network(base, device="cpu")
    config = peft.LoraConfig(
        r=3, target_modules=list(LAYERS), rank_pattern={"q_proj": 5}, init_lora_weights=False, **changes
    )
    tuned = peft.get_peft_model(model, config)
    tuned.save_pretrained(tmp_path / "adapter")
    merge(base, tmp_path / "adapter", tmp_path / "out")
    after = load_file(tmp_path / "out" / "model.safetensors")
    theirs = tuned.merge_and_unload().state_dict()
    for name in LAYERS:
        torch.testing.assert_close(after[f"{name}.weight"], theirs[f"{name}.weight"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA', expected 'LORA'"),
        ({"bias": "all"}, "bias is 'all', which is not merged here"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is True"),
        ({"rank_pattern": {"q_proj": 2}}, "expected rank 2 as adapter_config.json says"),
        ({"rank_pattern": {"(": 2}}, "pattern '.' is none"),
        ({"r": 0}, "entry 'r' is 0"),
        ({"use_dora": None}, "entry 'use_dora'"),
    ],
)
def test_an_adapter_of_another_kind_is_refused_by_name(tmp_path, changes, told):
    base = random(tmp_path / "base")
    folder = adapter(tmp_path / "lora", LAYERS)
    edit_json(folder / "adapter_config.json", lambda record: record.update(changes))
    with pytest.raises(CheckpointError, match=told) as found:
        merge(base, folder, tmp_path / "out")
    assert "\n" not in str(found.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("layers", "told"),
    [
        ({f"{LLM}nosuch": (4, 4)}, "layers.0.nosuch.weight is not there, expected"),
        ({"projector.fc2": (48, 9)}, r"projector.fc2.weight is of shape \(48, 336\), expected \(48, 9\)"),
    ],
)
def test_an_adapter_of_another_checkpoint_is_refused(tmp_path, layers, told):
    base = random(tmp_path / "base")
    with pytest.raises(CheckpointError, match=told):
        merge(base, adapter(tmp_path / "lora", layers), tmp_path / "out")
    with pytest.raises(CheckpointError, match="holds no adapter"):
        merge(base, base, tmp_path / "out")


def test_convolutions_and_saved_modules_are_refused_by_name(tmp_path):
    folder = adapter(tmp_path / "lora", LAYERS)
    path = folder / "adapter_model.safetensors"
    whole = load_file(path)
    for name, value in (("lm_head.weight", torch.ones(2, 2)), ("conv.lora_A.weight", torch.ones(2, 3, 1, 1))):
        save_file({**whole, f"base_model.model.{name}": value}, path)
        with pytest.raises(CheckpointError, match=f"{re.escape(name)}.*no adapter of a linear layer"):
            merge(random(tmp_path / name), folder, tmp_path / "out")


def test_merged_weights_are_not_merged_again(tmp_path):
    base = random(tmp_path / "base")
    adapter(tmp_path / "tuned" / "lora_adapter", LAYERS)
    merge(base, tmp_path / "tuned", tmp_path / "out", check_outputs=False)
    with pytest.raises(CheckpointError, match="they are merged there already"):
        merge(tmp_path / "out", tmp_path / "tuned", tmp_path / "twice")
    other = adapter(tmp_path / "more", LAYERS, seed=1)  # of a training that went on from there
    merge(tmp_path / "out", other, tmp_path / "further", check_outputs=False)


def test_what_lies_beside_the_adapters_is_carried_along(tmp_path):
    base = random(tmp_path / "base", "openvla")
    tuned = random(tmp_path / "tuned", film=True, seed=1)
    (tuned / "model.safetensors").unlink()
    (tuned / "training.json").write_text('{"phase": "oft_lora"}')
    layers = {name: shape for name, shape in LAYERS.items() if not name.startswith("vision_backbone.")}
    adapter(tuned / "lora_adapter", layers)
    lines = merge(base, tuned, tmp_path / "out", check_outputs=False)
    names = {path.name for path in tuned.iterdir()}
    assert names <= {path.name for path in (tmp_path / "out").iterdir()}
    assert "vision_backbone--150000_checkpoint.pt" in lines[-1] and "training.json" in lines[-1]
    assert (tmp_path / "out" / "training.json").read_bytes() == (tuned / "training.json").read_bytes()
    assert (tmp_path / "out" / "lora_adapter" / "adapter_config.json").is_file()


def test_an_adapter_that_lies_among_the_other_files_brings_them_along(tmp_path):
    base = random(tmp_path / "base", "openvla")
    tuned = adapter(tmp_path / "tuned", LAYERS)
    for name in ("training.json", "dataset_statistics.json"):
        (tuned / name).write_text("{}")
    merge(base, tuned, tmp_path / "out", check_outputs=False)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"training.json", "lora_adapter"} <= names and not any(name.startswith("adapter_") for name in names)
    assert (tmp_path / "out" / "dataset_statistics.json").read_text() == "{}"


def test_a_folder_is_not_made_inside_of_what_it_is_made_of(tmp_path):
    source = random(tmp_path / "source")
    with pytest.raises(CheckpointError, match="which it is made of; choose a folder elsewhere"):
        join(source, source / "joined")


def test_what_a_killed_conversion_has_left_is_no_source_and_stays(tmp_path):
    source = random(tmp_path / "out.converting")
    with pytest.raises(CheckpointError, match=r"is what a killed conversion to .*out has left"):
        join(source, tmp_path / "out")
    assert (source / "model.safetensors").is_file()


@pytest.mark.parametrize("out", [".", ".."])
def test_a_folder_without_a_name_is_refused(tmp_path, monkeypatch, out):
    source = random(tmp_path / "source")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(CheckpointError, match=r"is no name for a folder that is to be made; give one, such as"):
        join(source, Path(out))


def test_safetensors_that_are_not_the_models_go_along(tmp_path):
    source = random(tmp_path / "source")
    (source / "ema.safetensors").write_bytes(b"mine")
    (source / "model-00001-of-00009.safetensors").write_bytes(b"of an earlier index, which nobody reads")
    join(source, tmp_path / "out")
    assert (tmp_path / "out" / "ema.safetensors").read_bytes() == b"mine"
    assert not (tmp_path / "out" / "model-00001-of-00009.safetensors").exists()


def test_adapters_of_towers_that_films_file_replaces_are_refused(tmp_path):
    base = random(tmp_path / "base", film=True)
    folder = adapter(tmp_path / "tuned", LAYERS)
    with pytest.raises(CheckpointError, match=r"adapters of towers without FiLM .*which nobody reads where there is"):
        merge(base, folder, tmp_path / "out", check_outputs=False)
    assert not (tmp_path / "out").exists()


def wrapped(film: dict, layers: dict, folder: Path) -> dict:
    """FiLM's file as training saves it: with the adapters of a folder beside its weights."""
    weights = load_file(folder / "adapter_model.safetensors")
    result = dict(film)
    for name in layers:
        stem = f"module.vision_backbone.{name}"
        for leaf in ("weight", "bias"):
            result[f"{stem}.base_layer.{leaf}"] = result.pop(f"{stem}.{leaf}")
        for part in "AB":
            own = weights[f"base_model.model.vision_backbone.vision_backbone.{name}.lora_{part}.weight"]
            result[f"{stem}.lora_{part}.default.weight"] = own
    return result


@pytest.mark.parametrize("alpha", [4, 16])
def test_films_adapters_are_understood_whatever_their_alpha(tmp_path, alpha):
    """alpha 4 is what readers of FiLM's file assume of rank 4; another one has to be written into its numbers."""
    base = random(tmp_path / "base", film=True, dtype=torch.float32)
    path = base / "vision_backbone--150000_checkpoint.pt"
    film = {name: value.float() for name, value in torch.load(path, weights_only=True).items()}
    (tmp_path / "tuned").mkdir()
    prefix = "vision_backbone.vision_backbone."
    folder = adapter(tmp_path / "tuned" / "lora_adapter", FILM_LAYERS, prefix=prefix, lora_alpha=alpha)
    torch.save(wrapped(film, FILM_LAYERS, folder), tmp_path / "tuned" / path.name)
    lines = merge(base, tmp_path / "tuned", tmp_path / "out")
    off, effect = map(
        float, re.search(r"differ by (\S+) of .* effect is (\S+)$", "\n".join(lines), re.MULTILINE).groups()
    )
    assert off < 1e-5 and effect > 1e-2 and ("rescaled" in lines[0]) == (alpha == 16)
    (tmp_path / "tuned" / path.name).unlink()
    torch.save(film, path)  # the same adapters, trained on plain towers of the base, come to the same
    merge(base, folder, tmp_path / "plain")
    assert distance(said(tmp_path / "plain"), said(tmp_path / "out")) < 1e-5


def test_films_file_is_never_dropped_or_guessed(tmp_path):
    base = random(tmp_path / "base")
    folder = adapter(tmp_path / "tuned" / "lora_adapter", FILM_LAYERS, prefix="vision_backbone.vision_backbone.")
    with pytest.raises(CheckpointError, match="FiLM's own weights; put it there"):
        merge(base, folder, tmp_path / "out")
    film = random(tmp_path / "film", film=True)
    shutil.copy(film / "vision_backbone--150000_checkpoint.pt", tmp_path / "tuned")
    with pytest.raises(CheckpointError, match="nobody can say whether they were merged"):
        merge(base, folder, tmp_path / "out")


def rows_of_the_spec() -> dict[str, tuple[int, ...]]:
    """Keys and shapes of SPEC §2 at 7B, written out by hand from its table."""
    shapes: dict[str, tuple[int, ...]] = {}
    dino, siglip = "vision_backbone.featurizer.", "vision_backbone.fused_featurizer."
    shapes |= {f"{dino}cls_token": (1, 1, 1024), f"{dino}reg_token": (1, 4, 1024)}
    for tower, width, hidden, patches, depth in ((dino, 1024, 4096, 256, 24), (siglip, 1152, 4304, 256, 27)):
        shapes |= {f"{tower}pos_embed": (1, patches, width), f"{tower}patch_embed.proj.weight": (width, 3, 14, 14)}
        shapes |= {f"{tower}patch_embed.proj.bias": (width,)}
        shapes |= {f"{tower}norm.{leaf}": (width,) for leaf in ("weight", "bias")}
        for i in range(depth):
            block = f"{tower}blocks.{i}."
            shapes |= {f"{block}norm{n}.{leaf}": (width,) for n in (1, 2) for leaf in ("weight", "bias")}
            shapes |= {f"{block}attn.qkv.weight": (3 * width, width), f"{block}attn.qkv.bias": (3 * width,)}
            shapes |= {f"{block}attn.proj.weight": (width, width), f"{block}attn.proj.bias": (width,)}
            shapes |= {f"{block}mlp.fc1.weight": (hidden, width), f"{block}mlp.fc1.bias": (hidden,)}
            shapes |= {f"{block}mlp.fc2.weight": (width, hidden), f"{block}mlp.fc2.bias": (width,)}
            if tower == dino:
                shapes |= {f"{block}ls{n}.scale_factor": (width,) for n in (1, 2)}
    pool = f"{siglip}attn_pool."
    shapes |= {f"{pool}latent": (1, 1, 1152), f"{pool}kv.weight": (2304, 1152), f"{pool}kv.bias": (2304,)}
    shapes |= {f"{pool}{name}.weight": (1152, 1152) for name in ("q", "proj")} | {f"{pool}norm.weight": (1152,)}
    shapes |= {f"{pool}{name}.bias": (1152,) for name in ("q", "proj", "norm")}
    shapes |= {f"{pool}mlp.fc1.weight": (4304, 1152), f"{pool}mlp.fc1.bias": (4304,)}
    shapes |= {f"{pool}mlp.fc2.weight": (1152, 4304), f"{pool}mlp.fc2.bias": (1152,)}
    for name, outputs_, inputs in (("fc1", 8704, 2176), ("fc2", 4096, 8704), ("fc3", 4096, 4096)):
        shapes |= {f"projector.{name}.weight": (outputs_, inputs), f"projector.{name}.bias": (outputs_,)}
    llm = "language_model."
    shapes |= {f"{llm}model.embed_tokens.weight": (32064, 4096), f"{llm}lm_head.weight": (32064, 4096)}
    shapes |= {f"{llm}model.norm.weight": (4096,)}
    for i in range(32):
        layer = f"{llm}model.layers.{i}."
        shapes |= {f"{layer}{name}.weight": (4096,) for name in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {f"{layer}self_attn.{name}_proj.weight": (4096, 4096) for name in "qkvo"}
        shapes |= {f"{layer}mlp.{name}_proj.weight": (11008, 4096) for name in ("gate", "up")}
        shapes |= {f"{layer}mlp.down_proj.weight": (4096, 11008)}
    return shapes


HEAD_OF_THE_SPEC = {
    "model.layer_norm1.weight": (28672,), "model.layer_norm1.bias": (28672,),
    "model.fc1.weight": (4096, 28672), "model.fc1.bias": (4096,),
    **{f"model.mlp_resnet_blocks.{i}.ffn.{j}.{leaf}": (4096, 4096) if (j, leaf) == (1, "weight") else (4096,)
       for i in (0, 1) for j in (0, 1) for leaf in ("weight", "bias")},
    "model.layer_norm2.weight": (4096,), "model.layer_norm2.bias": (4096,),
    "model.fc2.weight": (7, 4096), "model.fc2.bias": (7,),
}  # fmt: skip
PROPRIO_OF_THE_SPEC = {"fc1.weight": (4096, 8), "fc1.bias": (4096,), "fc2.weight": (4096, 4096), "fc2.bias": (4096,)}


def test_the_keys_of_an_export_are_those_of_the_spec(tmp_path):
    """The 7B network has the SPEC's keys and shapes, and a tiny export the same keys, but for the number of layers."""
    full = {n: tuple(v.shape) for n, v in outline(openvla_architecture(size="7b")).state_dict().items()}
    expected = rows_of_the_spec() | {f"action_head.{name}": shape for name, shape in HEAD_OF_THE_SPEC.items()}
    expected |= {f"proprio_projector.{name}": shape for name, shape in PROPRIO_OF_THE_SPEC.items()}
    assert full == expected
    join(random(tmp_path / "tiny"), tmp_path / "joined")
    export(tmp_path / "joined", tmp_path / "oft", step="50000")

    def kinds(names):
        return {re.sub(r"blocks\.\d+|layers\.\d+", "N", name) if "ffn" not in name else name for name in names}

    assert kinds(load_file(tmp_path / "oft" / "model.safetensors")) == kinds(rows_of_the_spec())
    head = torch.load(tmp_path / "oft" / "action_head--50000_checkpoint.pt", weights_only=True)
    assert head.keys() == {f"module.{name}" for name in HEAD_OF_THE_SPEC}
    assert {value.dtype for value in head.values()} == {torch.bfloat16}
    proprio = torch.load(tmp_path / "oft" / "proprio_projector--50000_checkpoint.pt", weights_only=True)
    assert proprio.keys() == {f"module.{name}" for name in PROPRIO_OF_THE_SPEC}
    assert {value.dtype for value in proprio.values()} == {torch.float32}
    config = json.loads((tmp_path / "oft" / "config.json").read_text())
    assert config["model_type"] == "openvla" and config["architectures"] == ["OpenVLAForActionPrediction"]
    assert (tmp_path / "oft" / "dataset_statistics.json").is_file() and same(tmp_path / "tiny", tmp_path / "oft")


def test_an_export_has_films_adapters_where_openvla_oft_wraps_its_layers(tmp_path):
    source = random(tmp_path / "source", film=True)
    export(source, tmp_path / "oft")
    film = torch.load(tmp_path / "oft" / "vision_backbone--150000_checkpoint.pt", weights_only=True)
    block = "module.vision_backbone.featurizer.blocks.3."
    for layer in ("block.attn.qkv", "block.attn.proj", "block.mlp.fc1", "block.mlp.fc2"):
        assert film[f"{block}{layer}.lora_A.default.weight"].shape[0] == 32
        assert f"{block}{layer}.base_layer.weight" in film and f"{block}{layer}.base_layer.bias" in film
    assert f"{block}scale.weight" in film and f"{block}scale.lora_A.default.weight" not in film
    assert "module.vision_backbone.fused_featurizer.attn_pool.kv.lora_B.default.weight" in film
    assert same(source, tmp_path / "oft")
