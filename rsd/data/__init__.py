"""Disk to tensors: RLDS data sets, action chunks, frames. Knows no model and never imports TensorFlow."""

from rsd.errors import RSDError


class DataError(RSDError, RuntimeError):
    """A data set is missing, damaged, or not what the caller needs; the message says which, where, and what to do."""
