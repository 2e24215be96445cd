"""A model hub on loopback with what huggingface_hub asks of one: a revision, its tree, its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving import Quiet, serving

COMMIT = "c" * 40


@dataclass
class Hub:
    """Where it is, and the files that were fetched."""

    url: str = ""
    fetched: list[str] = field(default_factory=list)


@contextmanager
def hub_server(models: dict[str, Path]) -> Iterator[Hub]:
    """A hub of these folders by name, `owner/model`; weights are listed as files of its tree like all others."""
    hub = Hub()

    class Handler(Quiet):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def _answer(self, *, body: bool) -> None:
            path = self.path.partition("?")[0].strip("/")
            name = next((name for name in models if f"{name}/" in f"{path}/"), None)
            if name is None:
                self._send(b"{}", body, status=404)
            elif path.startswith("api/"):
                files = sorted(file for file in models[name].iterdir() if file.is_file())
                found: Any = {"id": name, "sha": COMMIT, "siblings": []}
                if "/tree/" in path:
                    found = [
                        {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0" * 40}
                        for f in files
                    ]
                self._send(json.dumps(found).encode(), body)
            else:
                file = models[name] / path.rpartition("/")[2]
                data = file.read_bytes()
                if body:
                    hub.fetched.append(file.name)
                self._send(data, body, ETag=f'"{hashlib.sha1(data).hexdigest()}"')

        def _send(self, data: bytes, body: bool, status: int = 200, **headers: str) -> None:
            self.send_response(status)
            sizes = {"Content-Length": str(len(data)), "X-Repo-Commit": COMMIT}
            for key, value in (sizes | headers).items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(data)

    with serving(Handler) as address:
        hub.url = f"http://{address}"
        yield hub
