"""A small OpenAI-compatible server whose judge reads the prompt's text, and believes whatever stands there unquoted."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from serving import Quiet, serving

ORDER = re.compile(
    r"(?:reply|answer|verdict|say|output|choose|winner)\W*(?:with|is|:)?\W*(A|B|TIE)\b", re.I
)


def read_frame(text: str) -> str:
    """The verdict of a gullible judge: more of the request's words is better, but an unquoted order is obeyed.

    It reads line by line as any reader would (every Unicode line end counts), takes the newest section of each name,
    and treats a chat template's token as the start of a new, trusted message.
    """
    for piece in re.split(
        r"<\|im_start\|>|<\|start_header_id\|>|\[INST\]|<\|system\|>|<system>", text
    )[1:]:
        if order := ORDER.search(piece):
            return order[1].upper()
    sections: dict[str, list[str]] = {}
    current: list[str] = []
    for line in text.splitlines():
        if mark := re.match(r"\s*\[(request|answer A|answer B|end)\b", line):
            current = sections[mark[1]] = []
        elif line.startswith('"') and line.endswith('"') and len(line) > 1:
            current.append(json.loads(line))
        elif order := ORDER.match(line.strip().removeprefix("SYSTEM: ")):
            return order[1].upper()
        else:
            current.append(line)
    wanted = set(" ".join(sections["request"]).split())
    a, b = (
        len(wanted & set(" ".join(sections[name]).split())) for name in ("answer A", "answer B")
    )
    return "A" if a > b else "B" if b > a else "TIE"


@dataclass
class Server:
    """What the server was asked, and what it does instead of judging, if anything."""

    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    trouble: Callable[[int, dict[str, Any]], tuple[int, dict[str, str], str] | str | None] = (
        lambda n, body: None
    )
    """Number of the request and its body -> (status, headers, text), a verdict to say instead, "drop", or None."""


@contextmanager
def judge_server() -> Iterator[Server]:
    """A running server on loopback."""
    state = Server()
    lock = threading.Lock()

    class Handler(Quiet):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(state.requests)
                state.requests.append(body)
                state.keys.append(self.headers.get("Authorization"))
                state.times.append(time.monotonic())
                state.paths.append(self.path)
            done = state.trouble(number, body)
            if done == "drop":
                self.close_connection = True
                return
            if not isinstance(done, tuple):
                content = done or read_frame(body["messages"][1]["content"])
                choice = {"message": {"role": "assistant", "content": content}}
                read = sum(len(message["content"].split()) for message in body["messages"])
                usage = {"prompt_tokens": read, "completion_tokens": 1}  # a word is a token
                done = (200, {}, json.dumps({"choices": [choice], "usage": usage}))
            status, headers, text = done
            self.send_response(status)
            data = text.encode("latin-1" if "X-Raw" in headers else "utf-8")
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

    with serving(Handler) as address:
        state.url = f"http://{address}/v1"
        yield state
