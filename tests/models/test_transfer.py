"""A small model that starts from a trained one: old words keep their vectors wherever they stand, errors name both."""

import json

import pytest
import torch

from rsd.checkpoint import CheckpointError, load_checkpoint
from rsd.models.openvla.model import Architecture, OpenVLAOFT
from rsd.models.openvla.text import WordText
from rsd.models.openvla.transfer import start_from
from tests.data.demonstrations import write_dataset
from tests.data.tiny_base import save_tiny_base

EMBEDDING = "language_model.model.embed_tokens.weight"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("base") / "tiny"
    save_tiny_base(directory, write_dataset(tmp_path_factory.mktemp("data"), [12, 10]))
    return directory


def new_model(directory, words, **changes):
    """A model with other random weights and this vocabulary."""
    config = json.loads((directory / "checkpoint.json").read_text())["config"]
    architecture = Architecture.from_json(config["architecture"])
    llm = {**architecture.llm, "vocab_size": WordText(words).vocab_size, **changes}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return OpenVLAOFT(Architecture(**{**vars(architecture), "llm": llm}))


def test_everything_but_new_words_comes_from_the_checkpoint(trained):
    checkpoint = load_checkpoint(trained, kind="base", produce="")
    old = WordText(checkpoint.config["words"])
    text = WordText(sorted([*old.words, "aardvark", "zebra"]))
    model = new_model(trained, text.words)
    untouched = {word: model.state_dict()[EMBEDDING][text.ids[word]].clone() for word in ("aardvark", "zebra")}
    assert start_from(model, text, trained) == checkpoint.sha256
    weights = model.state_dict()
    for word in old.words:
        assert torch.equal(weights[EMBEDDING][text.ids[word]], checkpoint.weights[EMBEDDING][old.ids[word]]), word
    assert torch.equal(weights[EMBEDDING][: text.FIRST_WORD], checkpoint.weights[EMBEDDING][: text.FIRST_WORD])
    for word, row in untouched.items():
        assert torch.equal(weights[EMBEDDING][text.ids[word]], row), word
    tables = {EMBEDDING, "language_model.lm_head.weight"}
    for name in weights.keys() - tables:
        assert torch.equal(weights[name], checkpoint.weights[name]), name


def test_words_that_would_be_forgotten_are_named(trained):
    words = load_checkpoint(trained, kind="base", produce="").config["words"]
    with pytest.raises(CheckpointError, match=rf"knows words \['{words[0]}'\] that the new data set does not have"):
        start_from(new_model(trained, words[1:]), WordText(words[1:]), trained)


def test_another_architecture_is_refused(trained):
    words = load_checkpoint(trained, kind="base", produce="").config["words"]
    with pytest.raises(CheckpointError, match="is of another architecture"):
        start_from(new_model(trained, words, intermediate_size=64), WordText(words), trained)
