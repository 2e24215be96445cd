"""jsonl: the user's own problems, one JSON object per line, in a file per split.

    {"prompt": "2 + 3 = ?", "answer": "5"}
    {"prompt": "capital of peru ?", "answer": "lima", "choices": ["lima", "quito"], "think": "a fact", "id": 17}

Texts and numbers are kept as written; other keys than these are kept as meta. Rows are checked strictly: a bad one is
named with file, line, what came and what is allowed. None may be bad unless `max_dropped` says so.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from trainorder.reading import ParamsError
from trainorder.rewards import format
from trainorder.rewards.answers import numbers, same_expression, same_number, same_text
from trainorder.tasks.base import SPLITS, Problem, Reward, Split, content_id
from trainorder.tasks.leaks import normal_form
from trainorder.tasks.lines import (
    BadRow,
    Dropped,
    Written,
    lines,
    parse,
    plain,
    refuse_tokens,
    short,
)

KEYS = ("prompt", "answer", "choices", "think")
MAX_CHARS = 100_000
"""Of one text."""
OPERATION = re.compile(r"[/^%+*=\u00d7]|\w\s*[-\u2212]|frac|sqrt|times|cdot")
"""Something to work out."""
SHOWN = 5
"""Bad rows that an error names."""


@dataclass(frozen=True)
class Jsonl:
    """Rows `{"prompt": ..., "answer": ...}` of three files; the answer's text, number or choice is compared."""

    train: str = ""
    """Path of the training rows."""
    dev: str = ""
    """Path of the rows that choose the order."""
    test: str = ""
    """Path of the rows that are only reported."""
    match: Literal["exact", "text", "number", "math", "choice"] = "exact"
    """exact: same text but for runs of whitespace and the punctuation around it; text: case is free as well; number:
    same value, one literal (1,000 is 1000.0 is 1e3); math: same expression in algebra; choice: as text, and rows list
    `choices`."""
    answer: Literal["tags", "whole"] = "tags"
    """Where a completion holds its answer: in `<answer> ... </answer>`, a box or behind `answer is` (rewards/format.py),
    or all of it."""
    max_dropped: float = 0.0
    """Share of a file's rows that may be bad, doubled or leaked; more refuse the build."""
    version: int = field(default=3, init=False)
    rewarded_by: Literal["verifier", "judge"] = field(default="verifier", init=False)

    def __post_init__(self) -> None:
        for split in SPLITS:
            if not getattr(self, split):
                raise ValueError(f"{split}: name the JSONL file of this split, got nothing")
        try:  # a loop of links is no error here; it is one when the file is read
            paths = {os.path.realpath(getattr(self, split)) for split in SPLITS}
        except ValueError as error:  # NUL
            raise ValueError(f"train, dev and test: cannot look at these files ({error})") from None
        if len(paths) < len(SPLITS):
            raise ValueError("train, dev and test must be three different files")
        if not 0 <= self.max_dropped < 1:
            raise ValueError(f"max_dropped is a share in 0..1, got {self.max_dropped}")

    @property
    def files(self) -> tuple[Path, ...]:
        """What the build reads, in the order of the splits."""
        return tuple(Path(getattr(self, split)) for split in SPLITS)

    def read(
        self, task: str, reserved: Sequence[str] = ()
    ) -> tuple[dict[Split, list[Problem]], list[Dropped]]:
        """The problems of each split in file order, and the rows that were dropped.

        `reserved` are the special tokens of the model's tokenizer: in a text they would begin or end a message, so a
        row that holds one is bad.

        A prompt that test or dev holds too, in whatever spelling, is dropped from the split that trains or chooses
        (leakage). Within a split only the same prompt, character by character, is a duplicate.

        Raises:
            ParamsError: a file is missing or empty, or more than `max_dropped` of its rows are bad.
        """
        found: dict[Split, list[Problem]] = {}
        dropped: list[Dropped] = []
        seen: dict[str, tuple[str, int]] = {}
        for split in reversed(SPLITS):  # what test holds, dev and train may not
            file = Path(getattr(self, split))
            found[split], bad, rows = [], list[Dropped](), 0
            own: dict[str, tuple[str, int]] = {}
            prompts: dict[str, int] = {}
            for number, line in lines(f"tasks.{task}.options.{split}", file):
                rows += 1
                try:
                    problem = self._problem(task, line)
                    refuse_tokens(problem.texts, reserved)
                    if problem.text in prompts:
                        raise BadRow(f"duplicate: the prompt of line {prompts[problem.text]} again")
                    key = normal_form(problem.text)
                    if key in seen:
                        raise BadRow("leakage: the prompt of {}, line {}".format(*seen[key]))
                    prompts[problem.text] = number
                    own.setdefault(key, (str(file), number))
                    found[split].append(problem)
                except BadRow as error:
                    bad.append(Dropped(str(file), number, str(error)))
            seen |= own
            if not rows:
                raise ParamsError(f"tasks.{task}.options.{split}: {file} holds no row")
            if len(bad) > self.max_dropped * rows:
                raise ParamsError(_explain(task, file, bad, rows, self.max_dropped))
            dropped += bad
        return {split: found[split] for split in SPLITS}, dropped

    def few(self, task: str, taken: Mapping[Split, int]) -> list[Problem]:
        """The problems that are taken."""
        found, _ = self.read(task)
        return [problem for split, own in found.items() for problem in own[: taken[split]]]

    def draw(self, rng: random.Random) -> Problem:
        """A random training row."""
        return rng.choice(self.read("jsonl")[0]["train"])

    def demonstrate(self, problem: Problem, rng: random.Random) -> str:
        """The right completion: the user's rows are all there is."""
        return problem.gold or ""

    def drill(self, rng: random.Random) -> str | None:
        """None."""
        return None

    def grade(self, completions: Sequence[str], problems: Sequence[Problem]) -> list[Reward]:
        """1 for the right answer, else 0; part `format`: the format of `answer` is kept."""
        return [
            self._grade(text, problem.text, problem.meta)
            for text, problem in zip(completions, problems, strict=True)
        ]

    def _grade(self, completion: str, prompt: str, meta: dict[str, Any]) -> Reward:
        whole = self.answer == "whole"
        given = completion.strip() if whole else format.answer(completion)
        shaped = format.visible(given) if whole else format.parse(completion) is not None
        right = format.visible(given) and self._right(given, prompt, meta)
        return Reward(float(right), {"format": float(shaped), "answer": float(right)})

    def _right(self, given: str, prompt: str, meta: dict[str, Any]) -> bool:
        wanted: str = meta["answer"]
        if self.match in ("number", "math") and OPERATION.search(given):
            copied = normal_form(given)  # `1/2` is 0.5, but not the answer to `1/2 as a decimal`
            if copied != normal_form(wanted) and copied in normal_form(prompt):
                return False
        same: dict[str, Callable[[str, str], bool]] = {
            "exact": same_text,
            "text": partial(same_text, fold_case=True),
            "number": same_number,
            "math": same_expression,
            "choice": partial(
                same_text, fold_case=_differ_by_more_than_case(meta.get("choices", ()))
            ),
        }
        return same[self.match](given, wanted)

    def _problem(self, task: str, line: bytes) -> Problem:
        row = parse(line)
        prompt = _text(
            row | {"prompt": _only_turn(row.get("prompt"))} if "prompt" in row else row, "prompt"
        )
        answer = _text(row, "answer", number=True).strip()
        think = _text(row, "think") if "think" in row else "answer"
        meta: dict[str, Any] = plain({key: row[key] for key in row if key not in KEYS})
        meta["answer"] = answer
        if self.match == "number" and not numbers(answer):
            raise BadRow(f"answer: match is number, got {short(answer)}")
        if self.match == "choice":
            meta["choices"] = _choices(row, answer)
        gold = format.render(think.strip(), answer) if self.answer == "tags" else answer
        if self._grade(gold, prompt, meta) != Reward(1.0, {"format": 1.0, "answer": 1.0}):
            raise BadRow(f"answer: no completion could give it (tags inside?), got {short(answer)}")
        return Problem(content_id(task, prompt), task, prompt, gold, gold, meta)


def _only_turn(prompt: Any) -> Any:
    """The text of a prompt given as chat messages, if that is one turn of the user."""
    match prompt:
        case [{"role": "user", "content": str(content)}]:
            return content
        case [{"role": _}, *_]:
            raise BadRow(f"prompt: one message of the user is allowed, got {short(prompt)}")
        case _:
            return prompt


def _text(row: dict[str, Any], key: str, *, number: bool = False) -> str:
    if key not in row:
        raise BadRow(f"no key {key!r}; it has {', '.join(map(short, sorted(row))) or 'none'}")
    text = row[key]
    if not isinstance(text, str) or (isinstance(text, Written) and not number):
        raise BadRow(f"{key}: must be text, got {short(text)}")
    if len(text) > MAX_CHARS:
        raise BadRow(f"{key}: {len(text)} characters, at most {MAX_CHARS}")
    bad = next((c for c in text if c == "\0" or "\ud800" <= c <= "\udfff"), None)
    if bad is not None:
        raise BadRow(f"{key}: character U+{ord(bad):04X} is not allowed")
    if not format.visible(text):
        raise BadRow(f"{key}: must not be empty")
    return str(text)


def _choices(row: dict[str, Any], answer: str) -> list[str]:
    given = row.get("choices")
    if not isinstance(given, list) or len(given) < 2 or len(given) > 100:
        raise BadRow(f"choices: a list of 2 to 100 texts, got {short(given)}")
    choices = [_text({"choices": item}, "choices", number=True).strip() for item in given]
    if answer not in choices or len(set(choices)) < len(choices):
        raise BadRow(f"choices: each once and the answer among them, got {short(choices)}")
    return choices


def _differ_by_more_than_case(choices: Sequence[str]) -> bool:
    return len({choice.casefold() for choice in choices}) == len(choices)


def _explain(task: str, file: Path, bad: list[Dropped], rows: int, most: float) -> str:
    shown = "\n".join(f"  {row}" for row in bad[:SHOWN])
    more = f"\n  and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    return (
        f"tasks.{task}: {len(bad)} of {rows} rows of {file} cannot be used, options.max_dropped allows "
        f"{most:.0%}:\n{shown}{more}\ncorrect them, or raise tasks.{task}.options.max_dropped"
    )
