"""The kinds of tasks that make their problems themselves."""

from __future__ import annotations

from trainorder.tasks import TASKS as KINDS

OTHERS = {"jsonl", "rows", "reasoning_gym", "verifiers", "transformed"}
"""Their problems are the user's, a package's or another task's."""
TASKS = tuple(kind for kind in KINDS if kind not in OTHERS)
