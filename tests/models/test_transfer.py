"""A small model that starts from a trained one: old words keep their vectors wherever they stand, errors name both."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from rsd.checkpoint import CheckpointError, load_checkpoint
from rsd.models.openvla import OpenVLABase, load_base
from rsd.models.openvla.model import Architecture, OpenVLAOFT
from rsd.models.openvla.text import WordText
from rsd.models.openvla.transfer import start_from
from rsd.space import Space, with_bounds
from tests.data.demonstrations import write_dataset
from tests.data.tiny_base import save_tiny_base
from tests.models.openvla_tiny import observation

VIEWS = ("image", "wrist_image")
EMBEDDING = "language_model.model.embed_tokens.weight"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("base") / "tiny"
    save_tiny_base(directory, write_dataset(tmp_path_factory.mktemp("data"), [12, 10]))
    return directory


def space(directory) -> Space:
    """The checkpoint's own."""
    ((name, stats),) = json.loads((directory / "checkpoint.json").read_text())["config"]["norm_stats"].items()
    return Space.from_statistics(name, stats)


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
    assert start_from(model, text, space(trained), trained) == checkpoint.sha256
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
        start_from(new_model(trained, words[1:]), WordText(words[1:]), space(trained), trained)


def test_another_architecture_is_refused(trained):
    words = load_checkpoint(trained, kind="base", produce="").config["words"]
    with pytest.raises(CheckpointError, match="is of another architecture"):
        start_from(new_model(trained, words, intermediate_size=64), WordText(words), space(trained), trained)


def test_the_robot_moves_as_before_with_other_statistics(trained):
    """Inside both statistics' bounds, where nothing is clipped."""
    old = load_base(checkpoint=trained, unnorm_key=None, views=VIEWS, use_proprio=True, chunk_length=8)
    stats = with_bounds(old.space.statistics, "extremes")
    stats["action"] = {name: _moved(values) for name, values in stats["action"].items()}
    stats["proprio"] = {name: _moved(values) for name, values in stats["proprio"].items()}
    model = new_model(trained, old.text.words).eval()
    moved = Space.from_statistics("new", stats)
    start_from(model, old.text, moved, trained)
    new = OpenVLABase(
        model=model, processor=old.processor, text=old.text, space=moved, views=VIEWS, chunk_length=8,
        center_crop=True, weights_sha256=lambda: "",
    )  # fmt: skip
    low, high = (np.array([getattr(one.space.proprio, side) for one in (old, new)]) for side in ("low", "high"))
    inside = (low.max(axis=0) + high.min(axis=0)) / 2
    assert (low.max(axis=0) <= inside).all() and (inside <= high.min(axis=0)).all()
    seen = replace(observation(), proprio=inside, instruction=" ".join(old.text.words))
    expected, got = (one.space.action.unnormalize(one.look([seen]).chunk().numpy()) for one in (old, new))
    np.testing.assert_allclose(got, expected, atol=1e-4)
    assert np.abs(got).max() > 1e-2


def _moved(values):
    """Statistics of a data set in which everything goes a little further."""
    if not isinstance(values, list) or isinstance(values[0], bool):
        return values
    return [1.5 * value + 0.01 * index for index, value in enumerate(values)]
