"""A judge behind an OpenAI-compatible endpoint: strict replies, and "no verdict" for every failure.

How a policy's text is framed, and why, is in questions.py.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import re
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from trainorder.config import EndpointConfig, EndpointJudgeConfig
from trainorder.judges import read_card, write_card
from trainorder.judges.questions import Chat, Pairwise, Question, question
from trainorder.process import StageError, is_loopback
from trainorder.reading import ParamsError
from trainorder.redact import SECRET

MAX_BODY = 1 << 20
"""Bytes of a response that are read."""
MAX_TOKENS = 10**9
"""Of one response; a higher count is none."""
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0
"""Seconds before the first retry, doubled each time."""
WAITING = {408, 425, 429, 502, 503, 504}
"""Statuses that mean: not now. 500 is different: it may be about this one text."""
BROKEN = {401, 403, 404, 405}
"""Statuses that every request would meet."""
DECIDES = ("base_url", "model", "max_tokens", "temperature", "body")
"""Settings that a reply depends on; the others say how it is asked for."""

_THOUGHT = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)


class JudgeOutage(StageError):
    """The endpoint is away, or refuses every request; the stage stops and can be resumed."""


class EndpointJudge:
    """Same calls as the local judge; knows nothing but its endpoint. Threads ask several pairs at a time."""

    def __init__(self, config: EndpointConfig) -> None:
        self.config = config
        self.question: Question = (
            question(config) if isinstance(config, EndpointJudgeConfig) else Pairwise()
        )
        self.failures: list[str] = []
        """Why rows of the last call have no verdict."""
        self.counts: Counter[str] = Counter()
        """`asked`, `retried`, `position` (the verdict followed the position: a tie), `input_tokens` and `output_tokens` as the
        endpoint counts them, `unmetered` (replies that came without a count) since the start."""
        self._key = _key(config)
        self._lock = threading.Lock()
        self._next = 0.0
        self._last_success = 0.0
        self._paused = False
        self._stop = threading.Event()

    @classmethod
    def load(cls, path: Path | str) -> EndpointJudge:
        """The judge that a folder's card names.

        Raises:
            ParamsError: the key's environment variable is not set.
        """
        return cls(EndpointJudgeConfig.model_validate(read_card(path)))

    def to(self, device: str) -> EndpointJudge:
        """Itself: the endpoint computes elsewhere."""
        return self

    def save(self, path: Path | str) -> None:
        """Write the address and the name of the key's variable; never the key."""
        write_card(path, "endpoint", self.config.results())

    @property
    def identity(self) -> str:
        """Hash of all that decides a verdict, as far as it is known here."""
        return identity_of(self.config, self.question)

    @property
    def at_once(self) -> int:
        """Pairs worth asking together: every connection has several in turn."""
        return 8 * self.config.concurrency

    def win_probability(
        self, prompts: Sequence[str], answers: Sequence[str], references: Sequence[str]
    ) -> list[float | None]:
        """Per row, whether the answer beats the reference, or its score by the rubric.

        1: in both positions; 0: in neither; 0.5: a tie, or the verdict follows the position; None: a reply is missing.

        Raises:
            JudgeOutage: nothing answered for `outage_seconds`, or the endpoint refuses every request.
        """
        question = self.question
        rows = list(zip(prompts, answers, references, strict=True))
        fresh = [row for row in dict.fromkeys(rows) if not _is_equal(question, row)]
        chats = [question.chats(*row) for row in fresh]
        places = [(i, n) for n in range(max(map(len, chats), default=0)) for i in range(len(fresh))]
        self.failures, self._stop = [], threading.Event()
        with (
            _Wire(self.config, self._headers()) as wire,
            ThreadPoolExecutor(self.config.concurrency) as pool,
        ):
            jobs: dict[tuple[int, int], Future[str | None]] = {
                place: pool.submit(self._ask, wire, chats[place[0]][place[1]]) for place in places
            }
            try:
                said = {place: job.result() for place, job in jobs.items()}
            except BaseException:
                self._stop.set()
                for job in jobs.values():
                    job.cancel()
                raise
        known: dict[tuple[str, str, str], float | None] = {}
        for i, row in enumerate(fresh):
            replies = [said[i, n] for n in range(len(chats[i]))]
            known[row] = self._value(replies)
            self.counts["position"] += len(replies) == 2 and replies[0] == replies[1] in ("A", "B")
        return [0.5 if _is_equal(question, row) else known[row] for row in rows]

    def _value(self, replies: Sequence[str | None]) -> float | None:
        if None in replies:
            return None
        return self.question.value(
            [[float(said == reply) for reply in self.question.replies] for said in replies]
        )

    def _ask(self, wire: _Wire, chat: Chat) -> str | None:
        """One reply, however often it has to be asked for; None where this chat gets none."""
        body: dict[str, Any] = {
            "model": self.config.model,
            "messages": chat,
            self.config.token_limit: self.config.max_tokens,
            **self.config.body,
        }
        if self.config.temperature is not None:
            body.setdefault("temperature", self.config.temperature)
        started, attempts = time.monotonic(), 0
        while not self._stop.is_set():
            self._pace()
            status, text, wait = wire.post(body)
            self._count(asked=1)
            if status == 200:
                self._last_success, self._paused = time.monotonic(), False
                return self._read(text)
            if status in BROKEN or 300 <= status < 400:
                raise JudgeOutage(
                    f"the judge at {self.config.base_url} answers {status} to model {self.config.model!r}: check "
                    f"base_url, model and api_key_env of the judge; nothing was scored{self._said(text)}"
                )
            attempts += 1
            away = status == 0 or status in WAITING
            if not away and (status < 500 or attempts > self.config.retries):
                return self._fail(f"the judge answers {status}{self._said(text)}")
            self._wait(attempts, wait, started, away=away)
        return None

    def _wait(self, attempts: int, asked: float, started: float, *, away: bool) -> None:
        """Back off; where the endpoint is away for too long, stop."""
        silent = time.monotonic() - max(self._last_success, started)
        if away and silent > self.config.outage_seconds:
            raise JudgeOutage(
                f"the judge at {self.config.base_url} gave no answer for {silent:.0f} s (outage_seconds "
                f"{self.config.outage_seconds:g}); nothing was scored: run the same command again when it is back"
            )
        if away and attempts > self.config.retries and not self._paused:
            self._paused = True
            print(
                f"warning: the judge at {self.config.base_url} is away; waiting up to "
                f"{self.config.outage_seconds:g} s",
                file=sys.stderr,
            )
        backoff = min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(attempts - 1, 10))
        left = max(0.0, self.config.outage_seconds - silent)
        self._count(retried=1)
        self._stop.wait(min(max(asked, backoff * random.uniform(0.5, 1.0)), left + 0.01))

    def _pace(self) -> None:
        """Keep to `requests_per_minute`."""
        if self.config.requests_per_minute is None:
            return
        with self._lock:
            now = time.monotonic()
            self._next = max(self._next, now)
            wait, self._next = self._next - now, self._next + 60 / self.config.requests_per_minute
        self._stop.wait(wait)

    def _read(self, text: str) -> str | None:
        """The reply in a response: the whole text of the one choice is one of the allowed replies, nothing else counts.

        A closed thought before it and a full stop after it do not count; the text may come in parts.
        """
        try:
            response = json.loads(text, object_pairs_hook=_once)
            self._count(**_usage(response))
            [choice] = response["choices"]
            content = choice["message"]["content"]
            if isinstance(content, list):
                content = "".join(part["text"] for part in content if part["type"] == "text")
            said = _THOUGHT.sub("", content, count=1).strip().removesuffix(".")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return self._fail("the judge's response is no chat completion")
        if said in self.question.replies:
            return said
        *others, last = self.question.replies
        return self._fail(f"the judge's reply is not {', '.join(others)} or {last}")

    def _count(self, **more: int) -> None:
        with self._lock:
            self.counts.update(more)

    def _fail(self, reason: str) -> None:
        self.failures.append(reason)

    def _said(self, text: str) -> str:
        """The server's own message, on one short line without anything secret."""
        try:
            error = json.loads(text)["error"]
            text = error["message"] if isinstance(error, dict) else error
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        if self._key:
            text = str(text).replace(self._key, "***")
        line = " ".join(
            SECRET.sub("***", "".join(c if c.isprintable() else " " for c in str(text))).split()
        )
        return f" (it says: {line[:200]})" if line else ""

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._key}"} if self._key else {}


def identity_of(config: EndpointConfig, question: Question) -> str:
    """Hash of all that decides a verdict."""
    asked = config.model_dump(include=set(DECIDES) & set(type(config).model_fields))
    return hashlib.sha256(json.dumps([asked, repr(question)]).encode()).hexdigest()[:16]


def _usage(response: Any) -> dict[str, int]:
    """The tokens of a response by the endpoint's own count; `unmetered` where it gives none.

    >>> _usage({"usage": {"prompt_tokens": 90, "completion_tokens": 2}}), _usage({"usage": None})
    ({'input_tokens': 90, 'output_tokens': 2}, {'unmetered': 1})
    """
    usage = response.get("usage") if isinstance(response, dict) else None
    named = {"input_tokens": "prompt_tokens", "output_tokens": "completion_tokens"}
    found = (
        {ours: usage.get(name) for ours, name in named.items()} if isinstance(usage, dict) else {}
    )
    known = {name: n for name, n in found.items() if type(n) is int and 0 <= n < MAX_TOKENS}
    return known if len(known) == len(named) else {"unmetered": 1}


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; with a key twice it could say two things."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key twice")
    return found


def _is_equal(question: Question, row: tuple[str, str, str]) -> bool:
    """Whether answer and reference are one text, which ties with itself."""
    return question.uses_reference and row[1] == row[2]


def _retry_after(value: str | None) -> float:
    """Seconds of a Retry-After header, which may be a number or a date; 0 without a usable one."""
    if not value:
        return 0.0
    try:
        return max(0.0, min(float(value), 3600.0))
    except ValueError:
        pass
    try:
        return max(0.0, min(parsedate_to_datetime(value).timestamp() - time.time(), 3600.0))
    except (ValueError, TypeError, IndexError, OverflowError):
        return 0.0


class _Wire:
    """The connection to an endpoint: each request ends at its deadline, whatever trickles in, and is bounded in bytes.

    A client's own timeouts hold for a single read only. So the requests run in one event loop, in a thread of its own,
    where a deadline cancels them wherever they wait.
    """

    def __init__(self, config: EndpointConfig, headers: dict[str, str]) -> None:
        import httpx

        base = httpx.URL(config.base_url)  # may have a query, such as ?api-version=...
        self._url = base.copy_with(path=f"{base.path.rstrip('/')}/chat/completions")
        self._seconds = config.timeout_seconds
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._client = httpx.AsyncClient(
            timeout=config.timeout_seconds,
            headers={**headers, "Accept-Encoding": "identity"},
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=config.concurrency),
            trust_env=not is_loopback(base.host),  # no proxy of the environment
        )

    def __enter__(self) -> _Wire:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        asyncio.run_coroutine_threadsafe(self._client.aclose(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def post(self, body: dict[str, Any]) -> tuple[int, str, float]:
        """Status (0: no answer in time), text, and the seconds that Retry-After asks for."""
        import httpx

        request = asyncio.wait_for(self._post(body), self._seconds)
        try:
            return asyncio.run_coroutine_threadsafe(request, self._loop).result()
        except (httpx.HTTPError, TimeoutError):
            return 0, "", 0.0

    async def _post(self, body: dict[str, Any]) -> tuple[int, str, float]:
        async with self._client.stream("POST", self._url, json=body) as response:
            data = b""
            async for chunk in response.aiter_raw():
                data += chunk
                if len(data) > MAX_BODY:
                    break
            if response.headers.get("content-encoding", "identity") != "identity":
                data = _inflated(data)
            wait = _retry_after(response.headers.get("retry-after"))
            return response.status_code, data.decode("utf-8-sig", errors="replace"), wait


def _inflated(data: bytes) -> bytes:
    """Up to MAX_BODY bytes of a body that was packed although it should not be; nothing of an unknown form."""
    try:
        return zlib.decompressobj(wbits=47).decompress(data, MAX_BODY)  # gzip or zlib
    except zlib.error:
        return b""


def _key(config: EndpointConfig) -> str | None:
    if config.api_key_env is None:
        return None
    key = os.environ.get(config.api_key_env, "").strip()
    if not key:
        raise ParamsError(
            f"api_key_env of the judge: the environment variable {config.api_key_env} is not set; "
            f"export it in the shell that runs trainorder"
        )
    if not key.isascii() or not key.isprintable():
        raise ParamsError(f"the environment variable {config.api_key_env} holds no usable key")
    return key
