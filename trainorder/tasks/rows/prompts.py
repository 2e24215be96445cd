"""Prompts and replies of rows: text, or messages that end with the user's turn or the assistant's."""

from __future__ import annotations

from typing import Any

from trainorder.rewards import format
from trainorder.tasks.base import Message, Prompt
from trainorder.tasks.lines import BadRow, Written, short
from trainorder.tasks.rows.schemas import messages

MAX_CHARS = 1_000_000
"""Of one prompt."""
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}


def prompt_of(given: Any, system: str) -> Prompt:
    """The prompt of a row; one turn of the user is a text. `system` is put in front of prompts without a system turn.

    Raises:
        BadRow: it is no such prompt.
    """
    given = messages(given)
    if isinstance(given, str):
        turns: list[Message] = [{"role": "user", "content": _text(given)}]
    elif isinstance(given, list) and given:
        turns = [_message(message) for message in given]
    else:
        raise BadRow(f"prompt: a text or a list of messages is needed, got {short(given)}")
    turns = [turn for turn in turns if turn["role"] != "system" or format.visible(turn["content"])]
    if not turns or turns[-1]["role"] != "user":
        raise BadRow("prompt: the last message must be the user's")
    if system and turns[0]["role"] != "system":
        turns = [{"role": "system", "content": system}, *turns]
    return turns[0]["content"] if len(turns) == 1 else turns


def reply_of(given: Any, where: str) -> tuple[list[Any], str]:
    """The messages before a reply, as they are, and its text.

    Raises:
        BadRow: it is neither text nor messages that end with the assistant's.
    """
    given = messages(given)
    if isinstance(given, str):
        return [], _text(given, where)
    last = _message(given[-1], where) if isinstance(given, list) and given else None
    if last is None or last["role"] != "assistant":
        raise BadRow(
            f"{where}: a text is needed, or messages of which the last one is the assistant's, got {short(given)}"
        )
    return given[:-1], last["content"]


def _message(given: Any, where: str = "prompt") -> Message:
    role = given.get("role", given.get("from")) if isinstance(given, dict) else None
    if role not in ROLES:
        raise BadRow(
            f"{where}: a message of {', '.join(dict.fromkeys(ROLES.values()))} is needed, got {short(given)}"
        )
    content = given.get("content", given.get("value"))
    if isinstance(content, list):  # parts
        texts = [part.get("text") if isinstance(part, dict) else part for part in content]
        if not all(isinstance(text, str) for text in texts):
            raise BadRow(f"{where}: only text can be read, got {short(content)}")
        content = "".join(map(str, texts))
    return {"role": ROLES[role], "content": _text(content, where, empty=ROLES[role] == "system")}


def _text(text: Any, where: str = "prompt", *, empty: bool = False) -> str:
    if not isinstance(text, str) or isinstance(text, Written):
        raise BadRow(f"{where}: must be text, got {short(text)}")
    if len(text) > MAX_CHARS:
        raise BadRow(f"{where}: {len(text)} characters, at most {MAX_CHARS}")
    if not text.isascii():
        bad = next((c for c in text if "\ud800" <= c <= "\udfff"), None)
        if bad is not None:
            raise BadRow(f"{where}: character U+{ord(bad):04X} is not allowed")
    if "\0" in text:
        raise BadRow(f"{where}: character U+0000 is not allowed")
    if not empty and not format.visible(text):
        raise BadRow(f"{where}: must not be empty")
    return text
