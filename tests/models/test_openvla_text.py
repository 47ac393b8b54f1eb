"""Instructions of any script; one that says nothing, or the same as another one, is an error."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, models, normalizers, processors

from rsd.commands.configured import check_tasks
from rsd.models.openvla.text import (
    LlamaText,
    UnknownWordError,
    WordText,
    check_instructions,
    split_words,
)
from rsd.types import InstructionError


@pytest.mark.parametrize(
    ("instruction", "words"),
    [
        ("Pick up the BLACK bowl, now!", ["pick", "up", "the", "black", "bowl", "now"]),
        ("抓取左边的绝缘子", ["抓取左边的绝缘子"]),
        ("बाईं वस्तु उठाओ", ["बाईं", "वस्तु", "उठाओ"]),  # vowel signs are marks on letters
        ("cafe\u0301 1", ["caf\u00e9", "1"]),  # the same letter, composed or not
        ("⬅️", []),
        ("\u0301 --", []),
        ("", []),
    ],
)
def test_words_of_any_script(instruction, words):
    assert split_words(instruction) == words


@pytest.mark.parametrize("pair", [("抓取左边", "抓取右边"), ("возьми левый", "возьми правый"), ("कि", "की")])
def test_instructions_without_ascii_are_told_apart(pair):
    text = WordText.from_instructions(pair)
    left, right = (text.encode(one) for one in pair)
    assert left != right and len(left) > 2 and len(right) > 2


@pytest.mark.parametrize("nothing", ["", "  ", "←", "?!", "⬅️"])
def test_an_instruction_that_encodes_to_nothing(nothing):
    where = {nothing: "2 of 9 episodes: 3, 4"}
    with pytest.raises(InstructionError, match=r"has no word; .*\(2 of 9 episodes: 3, 4\)"):
        WordText.from_instructions(["lift it", nothing], where)
    with pytest.raises(InstructionError, match="has no word"):
        WordText(["lift"]).encode(nothing)


@pytest.mark.parametrize("pair", [("lift +1", "lift -1"), ("go ←", "go →"), ("a_b", "a b"), ("C#", "C++")])
def test_two_that_encode_alike(pair):
    with pytest.raises(InstructionError, match="encode alike"):
        WordText.from_instructions(pair)
    trained = WordText.from_instructions(pair[:1])
    with pytest.raises(InstructionError, match=r"encodes like .*which the model was trained on"):
        trained.encode(pair[1])


def test_case_spaces_and_the_end_of_the_sentence_are_no_difference():
    text = WordText.from_instructions(["Pick up the cup.", "pick up  the cup", "cafe\u0301", "caf\u00e9"])
    assert text.encode("PICK UP THE CUP!") == text.encode("pick up the cup")
    assert text.to_json() == {"words": ["café", "cup", "pick", "the", "up"]}


def test_all_that_is_wrong_is_said_at_once():
    text = WordText(["lift", "it"])
    with pytest.raises(UnknownWordError, match=r"words \['pull'\].*\(task 2\).*words \['push'\].*\(task 1\)"):
        check_instructions(text, ["lift it", "push it", "pull it"], {"pull it": "task 2", "push it": "task 1"})


def test_the_tasks_of_a_suite_are_held_to_the_vocabulary_before_the_first_episode():
    tasks = [SimpleNamespace(task_id=number, instruction=said) for number, said in enumerate(["lift it", "push it"])]
    policy = Reading(WordText(["lift", "it"]))
    check_tasks(policy, tasks[:1])
    with pytest.raises(UnknownWordError, match=r"words \['push'\] .*\(task 1\)"):
        check_tasks(policy, tasks)


class Reading:
    """The part of a policy that reads."""

    def __init__(self, text):
        self.text = text

    def check_instructions(self, instructions, where=None):
        check_instructions(self.text, instructions, where)


# --- a published model's tokenizer, from its file


@pytest.fixture
def letters(tmp_path) -> tuple[Tokenizer, Path]:
    """A BPE of Llama's special tokens that knows ASCII alone and drops accents, and the folder for its file."""
    vocabulary = {one: number for number, one in enumerate(["<unk>", "<s>", "</s>", *map(chr, range(32, 127)), "\n"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents()])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer, tmp_path


def saved(letters: tuple[Tokenizer, Path]) -> LlamaText:
    tokenizer, folder = letters
    tokenizer.save(str(folder / "tokenizer.json"))
    return LlamaText(folder)


def test_two_that_a_published_tokenizer_encodes_alike(letters):
    text = saved(letters)
    check_instructions(text, ["grasp the cafe", "grasp the bar", "Grasp the bar. "])
    with pytest.raises(InstructionError, match=r"'grasp the cafe' and 'grasp the café' encode alike \(episode 3\)"):
        check_instructions(text, ["grasp the cafe", "grasp the café"], {"grasp the café": "episode 3"})


@pytest.mark.parametrize(
    ("instruction", "message"),
    [
        (" \t", "is empty; say the task in words"),
        ("\u0301", "encodes to nothing; say the task in words"),
        ("抓取", r"encodes to \['<unk>'\], which is no word to the tokenizer"),
        ("grasp 抓取", r"encodes to \['<unk>'\], which is no word to the tokenizer"),
        ("grasp </s> it", r"encodes to \['</s>'\], which is no word to the tokenizer"),
        ("<S>", r"encodes to \['<s>'\], which is no word to the tokenizer"),
    ],
)
def test_what_tells_a_published_model_nothing(letters, instruction, message):
    with pytest.raises(InstructionError, match=message):
        saved(letters).encode(instruction)


def test_what_a_tokenizers_file_cuts_and_fills_to_is_not_done(letters):
    long = "grasp the insulator on the left"
    right = saved(letters).encode(long)
    letters[0].enable_truncation(12)
    letters[0].enable_padding(pad_id=2, length=400)
    assert saved(letters).encode(long) == right
