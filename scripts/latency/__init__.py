"""Parts of `python scripts/benchmark_latency.py`."""
