"""A hub on this machine, as far as fetching a repository asks: its files by name, and what they hash to."""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub_of(repositories: dict[str, Path]):
    """Its address, and the requests that it got; a repository is named "models/OWNER/NAME" or "datasets/OWNER/NAME"."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, body: bool) -> None:
            asked.append(f"{self.command} {self.path}")
            parts = self.path.partition("?")[0].strip("/").split("/")
            is_api = parts[0] == "api"
            parts = parts[1:] if is_api else parts if parts[0] == "datasets" else ["models", *parts]
            folder = repositories.get("/".join(parts[:3]))
            if folder is None:
                return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
            if is_api:
                files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
                named = [path.relative_to(folder).as_posix() for path in files]
                if parts[3:4] == ["tree"]:
                    listed = [
                        {"type": "file", "path": name, "size": path.stat().st_size, "oid": COMMIT}
                        for name, path in zip(named, files, strict=True)
                    ]
                    return self.send(200, json.dumps(listed).encode(), {"Content-Type": "application/json"}, body)
                record = {"id": "/".join(parts[1:3]), "sha": COMMIT, "private": False, "disabled": False, "tags": []}
                record |= {"siblings": [{"rfilename": name} for name in named], "downloads": 0, "likes": 0}
                return self.send(200, json.dumps(record).encode(), {"Content-Type": "application/json"}, body)
            content = (folder / "/".join(parts[5:])).read_bytes()
            etag = hashlib.sha256(content).hexdigest()
            return self.send(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, body)

        def send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def do_GET(self) -> None:
            self.answer(True)

        def do_HEAD(self) -> None:
            self.answer(False)

        def log_message(self, *_) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
