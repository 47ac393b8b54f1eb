"""Time and memory of OpenVLA-OFT at 7B shapes; `python scripts/benchmark_7b --help`."""
