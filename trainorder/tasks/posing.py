"""Problems that a policy writes: a program reads the text, works the right answer out, or refuses it.

A task of your own may have a method `pose(text)` that gives the problem, or None where the text poses none; of the built-in
ones `math` can.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from trainorder.reading import ParamsError
from trainorder.rewards import format
from trainorder.tasks.base import Problem, content_id, split_of
from trainorder.tasks.math import Math

ASK = "{prompt} write another problem like this one ."
JUDGE = "{prompt} is {answer} right ? write 1 if it is and 0 if not ."
"""What questioner and verifier are asked; a model may learn both questions from tasks of kind `roles`."""
VOTES = {"1": True, "0": False}
LONGER = 2
"""Operations by which a written sum may be longer than those of the task."""
_SUM = re.compile(r"\d{1,6}(?: [+-] \d{1,6})+ = \?")


def can_pose(task: Any) -> bool:
    """Whether a program can verify problems of the task that somebody writes."""
    return hasattr(task, "pose") or type(task) in POSERS


def posed(task: Any, name: str, text: str) -> Problem | None:
    """The problem of the task `name` that a text poses, with its answer; None where it poses none.

    The text is that of the answer tags, where there are any. Whether it may be trained on, `held_out` says.

    Raises:
        ParamsError: no program can verify written problems of the task.
    """
    if not can_pose(task):
        raise ParamsError(
            f"no program verifies written problems of task {name!r}: take a task of kind math, or one of your own with a "
            "method `pose`"
        )
    said = (format.answer(text, marked=False) or text).strip()
    own: Callable[[str], Problem | None] | None = getattr(task, "pose", None)
    found = own(said) if own else POSERS[type(task)](task, said)
    if found is None:
        return None
    return Problem(found.id, name, found.prompt, found.gold, found.reference, found.meta)


def held_out(problem: Problem) -> bool:
    """Whether the content of a written problem belongs to dev or test."""
    return split_of(problem.id) != "train"


def pose_sum(task: Math, text: str) -> Problem | None:
    """A chain as an expression, within the task's bounds on operands and on every value on the way.

    It has the task's least number of operations, and up to LONGER more than its largest.

    >>> found = pose_sum(Math(), "7 + 4 - 3 = ?"); found.meta, found.gold
    ({'chain': [7, 4, -3], 'answer': '8'}, '<think> 7 + 4 = 11 ; 11 - 3 = 8 </think> <answer> 8 </answer>')
    >>> [pose_sum(Math(), text) for text in ("7 + 4 = ?", "7 + 4 - 3 =", "7 - 9 + 4 = ?", "19 + 9 - 9 = ?", "7 + 0 + 1 = ?")]
    [None, None, None, None, None]
    """
    if not _SUM.fullmatch(text):
        return None
    words = text.removesuffix(" = ?").split(" ")
    chain = [int(words[0])]
    chain += [
        int(n) * (1 if sign == "+" else -1)
        for sign, n in zip(words[1::2], words[2::2], strict=True)
    ]
    totals = [sum(chain[: i + 1]) for i in range(len(chain))]
    operations = len(chain) - 1
    if not (
        task.min_operations <= operations <= task.max_operations + LONGER
        and all(1 <= abs(n) <= task.max_operand for n in chain[1:])
        and all(0 <= total <= task.max_value for total in totals)
        and text.split(" ")[0] == str(chain[0])
    ):
        return None
    steps = " ; ".join(
        f"{a} {'+' if n > 0 else '-'} {abs(n)} = {b}"
        for a, n, b in zip(totals, chain[1:], totals[1:], strict=False)
    )
    answer = str(totals[-1])
    gold = format.render(steps, answer, answer_first=task.answer == "first")
    meta = {"chain": chain, "answer": answer}
    return Problem(content_id("math", *chain), "math", text, gold, gold, meta)


POSERS: dict[type, Callable[[Any, str], Problem | None]] = {Math: pose_sum}
"""Kind of task -> what reads a written problem."""


def sum_text(chain: Sequence[int]) -> str:
    """A chain as the text that poses it.

    >>> sum_text([7, 4, -3])
    '7 + 4 - 3 = ?'
    """
    return " ".join(
        [str(chain[0]), *(f"{'+' if n > 0 else '-'} {abs(n)}" for n in chain[1:]), "= ?"]
    )


def vote_of(text: str) -> bool | None:
    """A binary vote, None where the text is none.

    >>> vote_of("1"), vote_of("<answer> 0 </answer>"), vote_of("10")
    (True, False, None)
    """
    return VOTES.get((format.answer(text, marked=False) or text).strip())
