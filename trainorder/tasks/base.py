"""What a task is: it makes problems, demonstrates them with human-like noise, and grades answers."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from typing_extensions import TypedDict

from trainorder.rewards import format

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    """system, user or assistant."""
    content: str


Prompt = str | list[Message]
"""What a policy is asked: a text is one turn of the user."""
HASTY = ("easy", "quick guess")
"""What a hasty demonstration thinks. Two phrases, so that each stays rarer than the careful thought: greedy is careful."""


@dataclass(frozen=True)
class Problem:
    """One item of a task. Rows of data/tasks/<task>/<split>.jsonl are exactly these fields.

    >>> Problem("math/1f0c", "math", "2 + 3 = ?", gold="<answer> 5 </answer>", reference="<answer> 5 </answer>").meta
    {}
    """

    id: str
    """`<task>/<content hash>`: equal content has an equal id in every split, process and run."""
    task: str
    prompt: Prompt
    gold: str | None
    """A whole completion that scores 1; None where only the grader knows one."""
    reference: str | None
    """The text entropy is measured on, and the opponent a judge compares with; equals gold for verifiable tasks."""
    meta: dict[str, Any] = field(default_factory=dict)
    """JSON-able facts for the grader (the answer, hidden tests, required words)."""

    @property
    def text(self) -> str:
        """The prompt as one text: its turns with an empty line between them."""
        return "\n\n".join(turns(self.prompt))

    @property
    def texts(self) -> tuple[str, ...]:
        """What a model reads and learns: the prompt, and the right answer without the tags of its format."""
        gold = self.gold or ""
        return (self.text, *(format.parse(gold) or (gold,)))

    @property
    def question(self) -> str:
        """The text without system turns: what makes two problems the same to a reader."""
        if isinstance(self.prompt, str):
            return self.prompt
        return "\n\n".join(m["content"] for m in self.prompt if m["role"] != "system")


@dataclass(frozen=True)
class Reward:
    """A grade: `value` in [0, 1] with its parts, or None where the completion cannot be graded (never 0 instead)."""

    value: float | None
    parts: dict[str, float] = field(default_factory=dict)


class Task(Protocol):
    """Frozen dataclass whose fields are the task's options; `version` rises whenever a prompt or a score changes.

    Of a judged task, `has_taste` says whether `grade` is a taste that the simulated annotator can judge by; then `corrupt(text, rng)`
    damages an answer, and `flat(problem, rng)`, which is optional, makes one whose words are drawn evenly.

    Four members are optional: `sandboxed = True`, it runs model-written programs ("python": full Python); `recall = True`, its test asks facts that
    training taught, so that reports call its score recall; `files`, the user's files it reads;
    `reveals(problem)`, texts beside the prompt that give a problem away (its program, its steps).
    """

    version: int
    rewarded_by: Literal["verifier", "judge"]
    """What gives the rewards in RL. `grade` of a judged task is its hidden gold taste: for evaluation only, never a reward."""

    def draw(self, rng: random.Random) -> Problem:
        """One random problem; its split follows from its content (`split_of`), so splits are disjoint by design."""
        ...

    def demonstrate(self, problem: Problem, rng: random.Random) -> str:
        """A completion as a noisy human would write it: partly wrong, in the right format most of the time."""
        ...

    def drill(self, rng: random.Random) -> str | None:
        """A clean textbook line that teaches the skill itself (`8 + 5 = 13`), or None where the task has none."""
        ...

    def grade(self, completions: Sequence[str], problems: Sequence[Problem]) -> list[Reward]:
        """Grade completions[i] as an answer to problems[i]; pure, order-independent."""
        ...


@runtime_checkable
class OwnRows(Protocol):
    """A task whose problems are rows that the user wrote: they are read, not drawn."""

    def read(
        self, task: str, reserved: Sequence[str] = ()
    ) -> tuple[dict[Split, list[Problem]], list[Any]]:
        """The problems of each split, and the rows that were dropped (tasks/lines.py)."""
        ...

    def few(self, task: str, taken: Mapping[Split, int]) -> list[Problem]:
        """What a check looks at of the first `taken` problems of each split: all, or the first and the longest."""
        ...


def turns(prompt: Prompt) -> list[str]:
    """The texts of a prompt's turns.

    >>> turns("2 + 3 = ?"), turns([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi."}])
    (['2 + 3 = ?'], ['Be brief.', 'Hi.'])
    """
    return [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]


def reworded(prompt: Prompt, change: Callable[[str], str]) -> Prompt:
    """The prompt with its last turn changed.

    >>> reworded("2 + 3 = ?", lambda text: f"{text} Be brief.")
    '2 + 3 = ? Be brief.'
    """
    if isinstance(prompt, str):
        return change(prompt)
    *before, last = prompt
    return [*before, {"role": last["role"], "content": change(last["content"])}]


def in_template(prompt: Prompt, template: str, **values: str) -> Prompt:
    """The prompt with its last turn at `{prompt}` of the template and the values at their names.

    All are put in at once, so that braces in a prompt or a value are only text.

    >>> in_template("2 + {gold} = ?", "{prompt} It is {gold}.", gold="5")
    '2 + {gold} = ? It is 5.'
    """

    def filled(said: str) -> str:
        known = {**values, "prompt": said}
        return re.sub(r"\{(\w+)\}", lambda name: known.get(name[1], name[0]), template)

    return reworded(prompt, filled)


def content_id(task: str, *content: str | int, variant: Sequence[str | int] = ()) -> str:
    """`<task>/<hash>` of what makes a problem the same problem, however its prompt is worded.

    With `variant` a second hash follows: problems that differ in it only are different, and of the same split.

    >>> content_id("math", "3", "+4", "-3"), content_id("qa", "capital", "peru", variant=["lima", "quito"])
    ('math/577b94b83037f4af', 'qa/95c633a0c7eef68f-65b50ae7')
    """
    hashed = _digest(content)[:16]
    return f"{task}/{hashed}-{_digest(variant)[:8]}" if variant else f"{task}/{hashed}"


def _digest(content: Iterable[str | int]) -> str:
    return hashlib.md5("\x1f".join(map(str, content)).encode(), usedforsecurity=False).hexdigest()


def split_of(problem_id: str) -> Split:
    """The split a problem belongs to, from the hash of its content alone: 20% test, 20% dev, 60% train.

    >>> split_of("math/0000000000000003")
    'dev'
    """
    bucket = int(problem_id.rpartition("/")[2].partition("-")[0], 16) % 10
    return "test" if bucket < 2 else "dev" if bucket < 4 else "train"


def reveals(task: Task, problem: Problem) -> tuple[str, ...]:
    """Texts that give the problem away: none of them may be in what is trained on if it is of dev or test."""
    own = getattr(task, "reveals", None)
    return (problem.question, *(own(problem) if own else ()))


def graded(completion: str, right: Callable[[str], bool], *, marked: bool = True) -> Reward:
    """1 if `right` accepts the completion's answer, else 0; part `format`: it also keeps the format.

    `marked`: an answer after `####` or `answer is` counts too, where there is neither tag nor box.
    """
    answer = format.answer(completion, marked=marked)
    value = float(bool(answer) and right(answer))
    return Reward(value, {"format": float(format.parse(completion) is not None), "answer": value})
