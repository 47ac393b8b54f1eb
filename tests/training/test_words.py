"""Training a small model that reads sentences: paraphrases by rule and seed, and going on with the same encoder."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file, save_file

from rsd.checkpoint import CheckpointError
from rsd.data.rlds import RLDSWriter
from rsd.models.openvla.sentences import Sentences, load_encoder
from rsd.runs import CONFIG_FILE, changed_since
from rsd.training.oft import FrameCollate, OFTModule
from rsd.training.paraphrases import HELD_OUT, paraphrases
from tests.data.demonstrations import NAME, demonstration, write_dataset
from tests.models.sentence_encoder import write_encoder
from tests.training.test_oft import CONV, VIEWS, build

BOWL, STOVE, DRAWER = (
    "pick up the black bowl on the stove and place it on the plate",
    "turn on the stove",
    "open the top drawer and put the bowl inside",
)


def test_paraphrases_are_decided_by_seed_and_the_first_do_not_change_with_their_number():
    few, many, other = (paraphrases([BOWL, STOVE], count, seed) for count, seed in ((4, 0), (12, 0), (12, 1)))
    assert many[BOWL][:4] == few[BOWL] and many == paraphrases([STOVE, BOWL, BOWL], 12, 0) != other
    assert len(many[BOWL]) == len(set(many[BOWL])) == 12
    assert paraphrases([BOWL], 0, 0) == {BOWL: []}


def test_a_sentence_stands_for_one_instruction_and_is_none_of_them():
    both = ["put the bowl on top of the cabinet", "put the bowl on the cabinet"]  # rules lead from one to the other
    found = paraphrases(both, 30, 0)
    assert not set(found[both[0]]) & set(found[both[1]]) and not {*both} & {*found[both[0]], *found[both[1]]}


def test_what_decides_the_task_stays_and_held_out_verbs_are_not_said():
    for instruction, kept in ((BOWL, ("bowl", "stove", "plate")), (STOVE, ("stove",)), (DRAWER, ("top", "bowl"))):
        said = paraphrases([instruction], 16, 3)[instruction]
        assert len(said) >= 8
        for sentence in said:
            assert all(word in sentence.split() or f"{word}," in sentence for word in kept), sentence
            assert not {*HELD_OUT} & {*sentence.split()}, sentence


@pytest.mark.sim
def test_no_paraphrase_is_a_sentence_of_libero_pro():
    from rsd.envs.suites import load_task
    from rsd.models.openvla.text import split_words

    suites = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
    told = [load_task(suite, task).instruction for suite in suites for task in range(10)]
    theirs = {tuple(split_words(load_task(f"{suite}_lan", task).instruction)) for suite in suites for task in range(10)}
    for seed in range(4):
        ours = {tuple(split_words(one)) for said in paraphrases(told, 32, seed).values() for one in said}
        assert len(ours) > 900 and not ours & theirs


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder") / "small", whole_words=("bowl", "cup", "the", "up"))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    write_dataset(directory, [13, 11, 12])
    return directory


def sentences(encoder: Path, **changes) -> Sentences:
    return Sentences(**{"encoder": "small", "source": str(encoder), "num_tokens": 2, "num_paraphrases": 3, **changes})


def test_training_draws_paraphrases_by_step_and_validation_none(root, encoder):
    module, datamodule = build(root, sentences=sentences(encoder))
    set_up(module, datamodule)
    told = [*module.instructions] * 40
    drawn = module.training_instructions(told)
    known = {text: {text, *module.paraphrases[text]} for text in module.instructions}
    assert all(one in known[text] for text, one in zip(told, drawn, strict=True))
    assert len(set(drawn)) > len(module.instructions) and drawn == module.training_instructions(told)
    prompts = module._prompts(drawn)
    load_encoder.cache_clear()
    expected = torch.stack([load_encoder("small", str(encoder))(one) for one in drawn])
    torch.testing.assert_close(prompts["sentence"], expected)
    plain, _ = build(root)
    set_up(plain, datamodule)
    assert plain.training_instructions(told) == told and "sentence" not in plain._prompts(told)


def set_up(module, datamodule) -> None:
    datamodule.setup()
    module._trainer = SimpleNamespace(datamodule=datamodule, global_step=0, global_rank=0)
    module.setup("fit")


ONE, OTHER = "put the wine bottle on the rack", "push the plate to the front of the stove"


@pytest.mark.slow
def test_it_learns_by_gradient_to_hear_the_task_and_not_the_wording(tmp_path):
    """Same pictures, same proprio, opposite motions: the words alone tell. The encoder is a bag of random words."""
    seen, more = (paraphrases([ONE, OTHER], count, seed) for count, seed in ((12, 0), (60, 7)))
    unseen = {told: [*{*more[told]} - {*seen[told]}] for told in (ONE, OTHER)}
    unseen[ONE].append("set the wine bottle on the rack")  # a verb that no training has seen
    said = {word for told in (ONE, OTHER) for text in [told, *seen[told], *unseen[told]] for word in text.split()}
    folder = bag_of_words(write_encoder(tmp_path / "bag", whole_words=sorted(said)))
    write_opposite(tmp_path)
    moved = {}
    for count, steps in ((12, 0), (12, 40), (0, 40)):
        module = taught(tmp_path, folder, count, steps)
        observation = module.trainer.datamodule.train[0]["observation"]
        chunk, other = (
            module.base.look([dataclasses.replace(observation, instruction=one)]).chunk()[0] for one in (ONE, OTHER)
        )
        again = module.base.look([dataclasses.replace(observation, instruction=one) for one in unseen[ONE]]).chunk()
        moved[count, steps] = (again - chunk).abs().mean(dim=(1, 2)) / (other - chunk).abs().mean()
        assert steps == 0 or float((other - chunk).abs().mean()) > 1  # of 2
    assert len(unseen[ONE]) >= 8 and moved[12, 0].mean() > 0.5  # untrained: other words are another task
    assert moved[12, 40].max() < 0.05
    assert moved[12, 40].mean() < 0.7 * moved[0, 40].mean()  # paraphrases teach that beyond the instructions


def bag_of_words(folder: Path) -> Path:
    """A random encoder without context: the sum of its words' vectors decides. With it, some vectors differ."""
    weights = load_file(folder / "model.safetensors")
    for name, value in weights.items():
        if "word_embeddings" not in name:
            weights[name] = torch.full_like(value, float(name.endswith("LayerNorm.weight")))
    save_file(weights, folder / "model.safetensors")
    return folder


def write_opposite(root: Path) -> None:
    with RLDSWriter(root / NAME / "1.0.0", NAME) as writer:
        for number in range(6):
            episode = demonstration(0, 12)
            episode["steps"]["language_instruction"] = (ONE, OTHER)[number % 2]
            episode["steps"]["action"][:] = np.linspace(-1, 1, 7) * (-1) ** number
            episode["episode_metadata"]["file_path"] = f"toy/demo_{number}"
            writer.write_episode(episode)
        writer.finish()


def taught(root: Path, encoder: Path, num_paraphrases: int, steps: int) -> OFTModule:
    """After so many steps of four frames of each instruction: the loss is flat where they are not as many."""
    said = sentences(encoder, num_tokens=4, num_paraphrases=num_paraphrases)
    loud = {**CONV, "llm": {**CONV["llm"], "initializer_range": 0.18}}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module, datamodule = build(root, sentences=said, architecture=loud, image_size=32, image_augmentation=False)
        set_up(module, datamodule)
    frames = [datamodule.train[row] for row in range(len(datamodule.train))]
    of = {told: [one for one in frames if one["observation"].instruction == told] for told in (ONE, OTHER)}
    random, collate = np.random.default_rng(0), FrameCollate(image_size=32, views=VIEWS)
    optimizer = torch.optim.AdamW(module.model.parameters(), lr=1e-3)
    module.log = lambda *_, **__: None
    module.train()
    for step in range(steps):
        module.trainer.global_step = step
        optimizer.zero_grad()
        batch = [own[int(row)] for own in of.values() for row in random.integers(len(own), size=4)]
        module.training_step(collate(batch), step).backward()
        optimizer.step()
    module.eval()
    return module


def test_a_resume_may_find_the_encoder_elsewhere(tmp_path):
    """By content it is held to the first, as the next test has it."""

    def composed(*overrides: str) -> DictConfig:
        with initialize_config_dir(str(Path(__file__).parents[2] / "conf"), version_base="1.3"):
            return compose("train", ["phase=oft", "text=sentence", *overrides])

    OmegaConf.save(composed("text.sentences.source=here"), tmp_path / CONFIG_FILE, resolve=True)
    assert changed_since(tmp_path, composed("text.sentences.source=there")) == []
    changed = changed_since(tmp_path, composed("text.sentences.source=there", "text.sentences.num_tokens=3"))
    assert {one.key for one in changed} == {"text.sentences.num_tokens", "phase.module.sentences.num_tokens"}


def test_a_state_of_another_encoder_is_refused(root, encoder):
    module, datamodule = build(root, sentences=sentences(encoder))
    set_up(module, datamodule)
    state: dict = {}
    module.on_save_checkpoint(state)
    module.on_load_checkpoint(state)
    with pytest.raises(CheckpointError, match="was begun with the sentence encoder"):
        module.on_load_checkpoint({"text": {**state["text"], "sha256": "0" * 64}})
    with pytest.raises(CheckpointError, match="was begun with the sentence encoder None"):
        module.on_load_checkpoint({})
