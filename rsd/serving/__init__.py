"""The policy as a server: over a websocket for vla-evaluation-harness's benchmarks, over HTTP for robots and others."""
