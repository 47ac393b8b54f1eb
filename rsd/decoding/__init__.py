"""The decodings as pure functions; see `decodings` for the algorithm and `sampling` for the acceptance rule."""

from rsd.decoding.decodings import StageLogits, depth_ar, parallel, speculative

__all__ = ["StageLogits", "depth_ar", "parallel", "speculative"]
