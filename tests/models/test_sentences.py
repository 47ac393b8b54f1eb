"""Instructions through a frozen sentence encoder: its vectors, where it is found, and a model that reads them."""

import dataclasses
import json
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from safetensors.torch import load_file, save_file

from rsd.checkpoint import CheckpointError
from rsd.models.openvla import load_base, save_base
from rsd.models.openvla.model import Architecture, SentenceShape
from rsd.models.openvla.sentences import MINILM, SentenceEncoder, find_encoder, load_encoder
from rsd.models.openvla.text import BOS, SentenceText, WordText, check_instructions
from rsd.models.openvla.transfer import start_from, stretched
from rsd.policy.description import stamp
from rsd.types import InstructionError
from tests.models.openvla_tiny import LONG, SHORT, build_base, observation
from tests.models.sentence_encoder import TOKENS, WIDTH, reading, write_encoder

ROOT = Path(__file__).parents[2]
WANTED = {"unnorm_key": None, "views": ("image", "wrist_image"), "use_proprio": True, "chunk_length": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder") / "small")


@pytest.fixture(scope="module")
def encoder(folder):
    return SentenceEncoder("small", folder)


def test_a_vector_is_the_mean_of_the_states_at_length_one(folder, encoder):
    from tokenizers import Tokenizer
    from transformers import BertConfig, BertModel

    config = BertConfig(**json.loads((folder / "config.json").read_text()))
    model = BertModel(config).eval()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    with torch.no_grad():
        states = model(input_ids=torch.tensor([tokenizer.encode("pick up the bowl").ids])).last_hidden_state[0]
    mean = states.sum(dim=0) / len(states)
    vector = encoder("pick up the bowl")
    torch.testing.assert_close(vector, mean / mean.square().sum().sqrt())
    assert vector.shape == (WIDTH,) and encoder(" pick  up the bowl ") is vector  # read once


@pytest.mark.parametrize("told", ["", "  ", "拾う \u2603", "word " * 80])
def test_what_it_cannot_read_is_refused_in_a_line(encoder, told):
    with pytest.raises(InstructionError) as caught:
        encoder(told)
    assert "small" in str(caught.value) and "\n" not in str(caught.value)


def test_it_is_found_as_folder_archive_and_package(folder, tmp_path, monkeypatch):
    package = tmp_path / "packed_words"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('a package is not run')")
    with zipfile.ZipFile(package / "model.zip", "w") as archive:
        for path in folder.rglob("*"):
            archive.write(path, path.relative_to(folder))
    open_package = tmp_path / "open_words"
    shutil.copytree(folder, open_package / "model")
    (open_package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    sources = [*map(str, (folder, package, package / "model.zip")), "packed-words", "packed_words", "open-words-model"]
    digests = {SentenceEncoder("any", find_encoder("any", source)).sha256 for source in sources}
    assert digests == {SentenceEncoder("small", folder).sha256}
    assert "packed_words" not in sys.modules


def test_nowhere_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setattr("rsd.models.openvla.sentences.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("rsd.models.openvla.sentences.PACKAGES", {MINILM: ("no_such_package",)})
    monkeypatch.setattr("rsd.models.openvla.sentences.snapshot_download", _nothing)
    with pytest.raises(
        CheckpointError, match=r"no sentence encoder '.*MiniLM.*hub could not be reached .*rsd\[words\]"
    ):
        find_encoder(MINILM)
    with pytest.raises(CheckpointError, match=r"no sentence encoder at '.*gone'.*text.sentences.source"):
        find_encoder(MINILM, str(tmp_path / "gone"))


def _nothing(*_args, **_options):
    raise FileNotFoundError("nothing is cached")


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("config.json", lambda one: {**one, "hidden_size": 24}, "does not fit config.json"),
        ("config.json", lambda one: {**one, "model_type": "no_such"}, "no model that transformers can build"),
        ("config.json", lambda one: {**one, "hidden_size": "wide"}, "hidden_size"),
        ("1_Pooling/config.json", lambda _: {"pooling_mode_cls_token": True}, "choose an encoder that averages"),
        ("tokenizer.json", lambda _: {}, "is no tokenizer"),
    ],
)
def test_a_damaged_encoder_is_named(folder, tmp_path, file, change, said):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    path = copy / file
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(CheckpointError, match=said) as caught:
        SentenceEncoder("copy", copy)
    assert "\n" not in str(caught.value)
    (copy / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no sentence encoder"):
        find_encoder("copy", str(copy))


def test_the_content_is_the_weights_and_not_where_they_came_from(folder, tmp_path, encoder):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "_name_or_path": "elsewhere", "transformers_version": "9"}))
    assert SentenceEncoder("copy", copy).sha256 == encoder.sha256
    weights = load_file(copy / "model.safetensors")
    weights["embeddings.LayerNorm.bias"][0] += 1e-3
    save_file(weights, copy / "model.safetensors")
    assert SentenceEncoder("copy", copy).sha256 != encoder.sha256


def test_the_prompt_has_placeholders_and_the_model_puts_the_projected_vector_there(encoder):
    base = reading(encoder)
    inputs = base.prompts([SHORT, "any words at all"])
    ids = [BOS, *[SentenceText.SENTENCE] * TOKENS, WordText.PROMPT_END]
    assert inputs["input_ids"][0, : TOKENS + 2].tolist() == ids and inputs["attention_mask"].all()
    torch.testing.assert_close(inputs["sentence"], torch.stack([encoder(SHORT), encoder("any words at all")]))
    model = base.model
    with torch.no_grad():
        text = model.text(inputs["input_ids"], inputs["sentence"])
        expected = model.sentence_projector(inputs["sentence"])
    torch.testing.assert_close(text[:, 1 : 1 + TOKENS], expected)
    plain = model.language_model.model.embed_tokens(inputs["input_ids"])
    torch.testing.assert_close(text[:, 1 + TOKENS :], plain[:, 1 + TOKENS :])


def test_instructions_decide_and_paraphrases_as_far_as_their_vectors_differ(encoder):
    base = reading(encoder)
    seen = [observation(instruction=one) for one in (SHORT, LONG, SHORT.upper(), "grasp the bowl")]
    chunks = base.look(seen).chunk()
    assert float((chunks[0] - chunks[1]).abs().max()) > 1e-3
    torch.testing.assert_close(chunks[0], chunks[2])  # the tokenizer knows no case
    alone = torch.cat([base.look([one]).chunk() for one in seen])
    torch.testing.assert_close(chunks, alone, atol=1e-5, rtol=1e-4)
    parts = base.look(seen)
    parts.at("layer.1")
    torch.testing.assert_close(parts.of(torch.tensor([1, 3])).chunk(), alone[[1, 3]], atol=1e-5, rtol=1e-4)


def test_two_instructions_of_one_vector_are_refused(encoder):
    text = SentenceText.of(encoder, TOKENS)
    check_instructions(text, ["push the cup", "Push the cup.", "push the lid"][::2])
    with pytest.raises(InstructionError, match="encode alike"):
        check_instructions(text, ["push the café", "push the cafe"])  # accents are taken off


def test_a_model_that_reads_words_takes_no_sentence_and_the_other_way_round(encoder):
    words, sentences = build_base(), reading(encoder)
    given = words.on_device(words.prepare([observation()]))
    with pytest.raises(ValueError, match="sentence="):
        words.model.text(given["input_ids"], torch.zeros(1, WIDTH))
    with pytest.raises(ValueError, match="sentence="):
        sentences.model.text(given["input_ids"])
    assert "sentence" not in given and "sentence" not in words.model.architecture.to_json()


def test_a_checkpoint_names_the_encoder_and_refuses_another(folder, encoder, tmp_path):
    base = reading(encoder)
    save_base(tmp_path / "base", base, {})
    config = json.loads((tmp_path / "base" / "checkpoint.json").read_text())["config"]
    assert config["sentences"] == {"encoder": "small", "sha256": encoder.sha256, "num_tokens": TOKENS}
    assert "words" not in config
    stored = load_file(tmp_path / "base" / "weights.safetensors")
    assert sum(value.numel() for value in stored.values()) == sum(p.numel() for p in base.model.parameters())
    loaded = load_base(checkpoint=tmp_path / "base", text_source=str(folder), **WANTED)
    seen = [observation(instruction="words of nobody")]
    torch.testing.assert_close(loaded.look(seen).chunk(), base.look(seen).chunk())
    assert loaded.fingerprint()["text"] == base.text.to_json()
    described = load_base(checkpoint=tmp_path / "base", device="meta", **WANTED)  # needs no encoder
    assert described.fingerprint()["text"] == base.text.to_json()
    with pytest.raises(CheckpointError, match="no sentence encoder 'small'"):
        described.check_instructions([SHORT])
    outlined = load_base(checkpoint=tmp_path / "base", device="meta", text_source=str(folder), **WANTED)
    outlined.check_instructions([SHORT, "words of nobody"])  # as a cache does with its data set
    with pytest.raises(InstructionError, match="empty"):
        outlined.check_instructions([SHORT, " "])
    other = write_encoder(tmp_path / "other", seed=1)
    with pytest.raises(CheckpointError, match="was trained with the sentence encoder 'small' of content"):
        load_base(checkpoint=tmp_path / "base", text_source=str(other), **WANTED)


def test_a_folder_that_reads_sentences_acts_where_its_encoder_is_named(folder, encoder, tmp_path):
    save_base(tmp_path / "policy" / "base" / "one", reading(encoder), {})
    overrides = [f"policy={tmp_path / 'policy'}", "text=sentence", f"text.sentences.source={folder}"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        named, unnamed = (
            compose("collect", ["demonstrator=policy", *one]).recipe.make_expert.make_policy
            for one in (overrides, overrides[:1])
        )
    stamp(tmp_path / "policy")
    instantiate(named)().check_instructions(["words of nobody"])
    with pytest.raises(CheckpointError, match="no sentence encoder 'small'"):
        instantiate(unnamed)()


def test_a_record_of_words_and_sentences_is_refused(encoder, folder, tmp_path):
    save_base(tmp_path / "base", reading(encoder), {})
    path = tmp_path / "base" / "checkpoint.json"
    record = json.loads(path.read_text())
    record["config"]["words"] = ["pick"]
    del record["checksum"]
    path.write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=r"'config\.words' or 'config\.sentences'"):
        load_base(checkpoint=tmp_path / "base", text_source=str(folder), **WANTED)


def test_a_start_from_words_says_what_the_words_said(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr("rsd.models.openvla.transfer.RIDGE", 1e-9)  # three sentences are solved for exactly
    words = build_base(seed=3)
    save_base(tmp_path / "words", words, {})
    new = reading(encoder)
    start_from(new.model, new.text, new.space, tmp_path / "words", {SHORT: ["grasp the bowl"]})
    table = words.model.language_model.model.embed_tokens.weight
    with torch.no_grad():
        got = new.model.sentence_projector(torch.stack([encoder(one) for one in (SHORT, "grasp the bowl", LONG)]))
    for told, one in zip((SHORT, SHORT, LONG), got, strict=True):
        expected = stretched(table[words.text.encode(told)[1:-1]].double(), TOKENS).float()
        assert float((one - expected.detach()).norm() / expected.detach().norm()) < 0.05, told
    weights = new.model.state_dict()
    for name, value in words.model.state_dict().items():
        if "embed_tokens" not in name and "lm_head" not in name:
            torch.testing.assert_close(weights[name], value)


def test_a_start_from_sentences_needs_the_same_encoder(encoder, tmp_path):
    save_base(tmp_path / "first", reading(encoder), {})
    second = reading(encoder, seed=1)
    start_from(second.model, second.text, second.space, tmp_path / "first")
    torch.testing.assert_close(second.model.state_dict(), reading(encoder).model.state_dict())
    other = SentenceEncoder("other", write_encoder(tmp_path / "other", seed=1))
    with pytest.raises(CheckpointError, match="was trained with the sentence encoder"):
        start_from(second.model, SentenceText.of(other, TOKENS), second.space, tmp_path / "first")
    words = build_base()
    with pytest.raises(CheckpointError, match="choose text=sentence"):
        start_from(words.model, words.text, words.space, tmp_path / "first")


def test_words_are_stretched_to_the_count_with_their_mean():
    words = torch.tensor([[1.0, 0.0], [0.0, 1.0], [4.0, 4.0]], dtype=torch.float64)
    torch.testing.assert_close(stretched(words, 6), words.repeat_interleave(2, dim=0))
    two = torch.tensor([[2 / 3, 1 / 3], [8 / 3, 3.0]], dtype=torch.float64)  # a half of the middle word each
    torch.testing.assert_close(stretched(words, 2), two)


def test_an_architecture_of_sentences_is_read_back():
    own = reading_architecture()
    assert Architecture.from_json(json.loads(json.dumps(own.to_json()))) == own


def reading_architecture() -> Architecture:
    own = build_base().model.architecture
    return dataclasses.replace(own, sentence=SentenceShape(WIDTH, TOKENS))


@pytest.mark.slow
def test_the_real_encoder_brings_paraphrases_together():
    try:
        encoder = load_encoder(MINILM)
    except CheckpointError as error:
        pytest.skip(f"all-MiniLM-L6-v2 is not installed: {error}")
    told, same, other = map(encoder, ("put the bowl on the stove", "place the bowl on the stove", "open the drawer"))
    assert float(told @ same) > 0.95 > 0.6 > float(told @ other)
