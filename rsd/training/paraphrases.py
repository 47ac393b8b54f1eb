"""Other ways to say an instruction, for training: the same task in other words, by rule and by seed.

Rules know the sentences of LIBERO and leave others nearly as they are: verbs and relations are exchanged for what means
the same, articles and "black" may go, and "pick up … and place it …" may become one clause. What surprises first: the
verbs by which LIBERO-PRO's suites `lan` differ (lift, grab, take, set, slide, switch, move) are left out on purpose, so
that those suites ask for words that no training has seen; none of their sentences is among ours, which a test holds.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence

import numpy as np

HELD_OUT = ("lift", "grab", "take", "set", "slide", "switch", "move")  # LIBERO-PRO's: never said here
PICK_AND_PLACE = re.compile(r"pick up (?P<what>.+?) and place it (?P<where>.+)")
CLAUSES = (  # of one that matches
    "pick up {what} and place it {where}",
    "fetch {what} and put it {where}",
    "get {what} and leave it {where}",
    "grasp {what}, then put it {where}",
    "put {what} {where}",
    "bring {what} over and put it {where}",
    "{what} should be placed {where}",
    "i want {what} to be {where}",
)
SYNONYMS: tuple[tuple[str, tuple[str, ...]], ...] = (  # pattern, and what may stand there
    (r"\bput the bowl inside\b", ("put the bowl inside", "put the bowl into it")),
    (r"\bput both\b", ("put both", "get both", "bring both", "collect both")),
    (r"\bput\b", ("put", "rest", "lay", "leave")),
    (r"\bplace\b", ("place", "put", "rest", "lay")),
    (r"\bpick up\b", ("pick up", "fetch", "get", "grasp", "collect")),
    (r"\bopen\b", ("open", "pull open")),
    (r"\bpush\b", ("push", "shove", "nudge")),
    (r"\bclose it\b", ("close it", "shut it", "push it shut")),
    (r"\bturn on\b", ("turn on", "start", "power on")),
    (r"\bnext to\b", ("next to", "near", "close to", "right by")),
    (r"\bon top of\b", ("on top of", "on", "on the top of")),
    (r"\bfrom table center\b", ("from table center", "in the middle of the table", "at the center of the table")),
    (r"\bin the bowl\b", ("in the bowl", "into the bowl")),
    (r"\bin the basket\b", ("in the basket", "into the basket", "inside the basket")),
    (r"\bto the front of\b", ("to the front of", "in front of")),
    (r"\bthe black bowl\b", ("the black bowl", "the bowl", "the dark bowl")),
    (r"\bin the top drawer of the wooden cabinet\b", ("in the top drawer of the wooden cabinet", "in the top drawer")),
    (r"\bthe wooden cabinet\b", ("the wooden cabinet", "the cabinet")),
    (r"\bthe cookie box\b", ("the cookie box", "the box of cookies")),
)
OPENINGS = ("", "", "", "please ", "now ")
ARTICLE_GOES = 0.25  # share of sentences that are said without "the"
TRIES = 40  # for each paraphrase that is wanted


def paraphrases(instructions: Sequence[str], count: int, seed: int) -> dict[str, list[str]]:
    """Instruction → up to `count` other sentences for it; fewer where the rules know no more.

    No sentence stands for two instructions, and none is one of the instructions. Each instruction's own depend on it
    and the seed, and the first ones do not change with `count`.
    """
    told = {*map(_plain, instructions)}
    found: dict[str, list[str]] = {}
    owner: dict[str, str] = {}
    for instruction in sorted({*instructions}):
        own: list[str] = []
        for sentence in itertools.islice(_drawn(instruction, seed), TRIES * count):
            if len(own) == count:
                break
            if _plain(sentence) not in told and owner.setdefault(_plain(sentence), instruction) == instruction:
                own += [sentence] if sentence not in own else []
        found[instruction] = own
    return found


def _plain(sentence: str) -> str:
    return " ".join(re.sub(r"[^\w ]", " ", sentence.lower()).split())


def _drawn(instruction: str, seed: int) -> Iterator[str]:
    """Sentences without end, some of them more than once."""
    random = np.random.default_rng([seed, *instruction.encode()])
    match = PICK_AND_PLACE.fullmatch(instruction)
    while True:
        sentence = instruction
        if match is not None:
            sentence = str(random.choice(CLAUSES)).format(**match.groupdict())
        for pattern, words in SYNONYMS:
            sentence = re.sub(pattern, lambda _, words=words: str(random.choice(words)), sentence)  # type: ignore[misc]
        if random.random() < ARTICLE_GOES:
            sentence = re.sub(r"\bthe ", "", sentence)
        yield " ".join((str(random.choice(OPENINGS)) + sentence).split())
