"""Instructions of any script; one that says nothing, or the same as another one, is an error."""

from types import SimpleNamespace

import pytest

from rsd.commands.configured import check_tasks
from rsd.models.openvla.text import UnknownWordError, WordText, check_instructions, split_words
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
