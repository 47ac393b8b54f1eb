"""Action tokenizers: learned RFSQ, transform RFSQ, and the bins that they are compared with."""

from rsd.tokenizer.base import ActionTokenizer
from rsd.tokenizer.bins import BinTokenizer
from rsd.tokenizer.loading import load_tokenizer, save_tokenizer
from rsd.tokenizer.rfsq import RFSQTokenizer
from rsd.tokenizer.transform import TransformTokenizer

__all__ = [
    "ActionTokenizer",
    "BinTokenizer",
    "RFSQTokenizer",
    "TransformTokenizer",
    "load_tokenizer",
    "save_tokenizer",
]
