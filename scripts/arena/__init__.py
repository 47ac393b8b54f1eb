"""Parts of `python scripts/tokenizer_arena.py`."""
