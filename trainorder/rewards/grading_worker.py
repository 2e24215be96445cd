"""The verifiers' own process: reads batches of answers, grades some at a time, writes one line per grade.

Run as `python -m trainorder.rewards.grading_worker`; grading.py is the other end. Pickles come from there only, and
nothing but plain JSON goes back.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import resource
import sys
from typing import Any

from trainorder.process import die_with_parent
from trainorder.rewards.sandbox import shared_sandbox
from trainorder.tasks.base import Problem, Task

MEMORY = 16 << 30
"""Address space, bytes: a verifier that expands an expression without end gets a MemoryError."""


def main() -> None:
    """Serve until the parent closes the pipe."""
    die_with_parent(int(sys.argv[1]))
    shared_sandbox().minimum = sys.argv[2]  # type: ignore[assignment]
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)  # what a verifier prints is no grade
    tasks: dict[str, Task] = {}
    for line in requests:
        request = json.loads(line)
        name = request["task"]
        if "pickle" in request:
            tasks[name] = pickle.loads(base64.b64decode(request["pickle"]))
            replies.write(b'{"row": -1}\n')  # started, and the task's code is imported
            replies.flush()
            continue
        rows, together = request["rows"], request["together"]
        for start in range(0, len(rows), together):
            some = rows[start : start + together]
            grades = grade(tasks[name], [row for _, row in some])
            for (number, _), found in zip(some, grades, strict=True):
                replies.write(json.dumps({"row": number, **found}).encode() + b"\n")
            replies.flush()


def grade(task: Task, rows: list[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """The grade of each (answer, problem), or what the verifier raised for it."""
    try:
        rewards = task.grade([text for text, _ in rows], [Problem(**p) for _, p in rows])
        if len(rewards) != len(rows):
            raise ValueError(f"{len(rewards)} grades for {len(rows)} answers")
        return [{"value": reward.value, "parts": dict(reward.parts)} for reward in rewards]
    except Exception as error:
        if len(rows) > 1:
            return [found for row in rows for found in grade(task, [row])]
        return [{"error": f"{type(error).__name__}: {error}"[:300]}]


if __name__ == "__main__":
    main()
