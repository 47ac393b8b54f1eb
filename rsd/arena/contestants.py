"""The contestants by their names, each a fresh one: the project's own tokenizers, and those of others.

What surprises first: each is imported where it is made, so that a package that is missing costs its contestant alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rsd.arena import NOT_INSTALLED, ArenaError
from rsd.space import Space

if TYPE_CHECKING:  # --help, which names OTHERS, does not wait for torch
    from rsd.arena.contract import Contestant
    from rsd.tokenizer.loading import MakesTokenizer

OTHERS = ("fast", "bspline", "rvq")
FAMILIES = {"rfsq": "learned RFSQ", "dct": "transform RFSQ", "bins256": "OpenVLA's 256 bins"}


def configured(
    name: str, tokenizer: MakesTokenizer, space: Space, *, num_stages: int, max_steps: int, seed: int
) -> Contestant:
    """One of the project's own, of what builds its tokenizer.

    Args:
        num_stages: As it is told to people.
        max_steps: Optimizer steps; 0 of a tokenizer that is fitted.
        seed: Of its weights.
    """
    import torch

    from rsd.arena.blocks import Blocks
    from rsd.tokenizer.loading import for_space

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = for_space(tokenizer, space)
    idea = FAMILIES.get(name.partition("_")[0], type(made).__name__)
    return Blocks(name, f"{idea}, {num_stages} stages", made, max_steps)


def other(name: str, space: Space, *, chunk: int, seed: int) -> Contestant:
    """One of OTHERS, for chunks of so many steps.

    Raises:
        ArenaError: the package that it needs is not installed.
    """
    if name == "fast":
        try:
            from rsd.arena.byte_pairs import BytePairs
        except ModuleNotFoundError as error:
            raise ArenaError(f"the package tokenizers {NOT_INSTALLED} ({error}); pip install tokenizers") from error
        return BytePairs(chunk, len(space.action))
    if name == "bspline":
        from rsd.arena.splines import Splines

        return Splines(chunk, len(space.action), space.action.grippers)
    from rsd.arena.residual_vq import ResidualVQ

    return ResidualVQ(chunk, len(space.action), seed)
