"""Parts of `python scripts/reproduce_small.py`."""
