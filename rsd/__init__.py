"""rsd: residual speculative decoding of vision-language-action policies."""

__version__ = "0.1.0"
