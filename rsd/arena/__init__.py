"""The tokenizer arena: action tokenizers beside each other on the same chunks, whatever they write chunks as."""

from rsd.errors import RSDError

NOT_INSTALLED = "is not installed"  # of a package, in an ArenaError


class ArenaError(RSDError, RuntimeError):
    """A contestant cannot be had, or what lies in the arena's folder was measured otherwise."""
