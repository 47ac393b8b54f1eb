"""A small server that answers wandb as far as a run needs it: python -m tests.training.wandb_server PORT_FILE

It takes every account, keeps nothing, and prints the name of each artifact with "made" or "read".
"""

import gzip
import json
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

RUN = {"id": "r", "name": "r", "displayName": "r", "config": "{}", "historyLineCount": 0}
PROJECT = {"id": "p", "name": "rsd", "entity": {"id": "e", "name": "me"}}
VIEWER = {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}


def answer(query: str, variables: dict[str, Any]) -> dict[str, Any]:
    """The data of a GraphQL operation."""
    found = re.search(r"(?:query|mutation)\s+(\w+)", query)
    operation = found[1] if found else ""
    if operation == "Viewer":
        return {"viewer": VIEWER}
    if operation == "UpsertBucket":
        return {"upsertBucket": {"bucket": {**RUN, "name": variables["name"], "project": PROJECT}, "inserted": True}}
    if operation == "CreateRunFiles":
        return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": []}}
    if operation == "CreateArtifact":
        name = variables["input"]["artifactCollectionName"]
        print(f"made {name}", flush=True)
        sequence = {"id": name, "name": name, "latestArtifact": {"id": name, "versionIndex": 0}}
        return {"createArtifact": {"artifact": {"id": name, "state": "COMMITTED", "artifactSequence": sequence}}}
    if operation == "UseArtifact":
        print(f"read {variables['input']['artifactID']}", flush=True)
        return {"useArtifact": {"artifact": {"id": variables["input"]["artifactID"]}}}
    return {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if not self.path.endswith("graphql"):
            return self._answer({})
        asked = json.loads(body)
        self._answer({"data": answer(asked["query"], asked.get("variables") or {})})

    def _answer(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Path(sys.argv[1]).write_text(str(server.server_port))
    server.serve_forever()
