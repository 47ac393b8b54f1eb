"""The policy as a server for vla-evaluation-harness, whose benchmarks then drive it over a websocket."""
