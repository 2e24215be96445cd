"""build_data: problems of every task, SFT demonstrations and drills, and a tokenizer of exactly their words.

Imports no torch. The same params give the same bytes; every file is written whole, then renamed.
"""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from trainorder import paths
from trainorder.config import Params, PolicyConfig, TaskConfig
from trainorder.data.tokenizer import SPECIALS, pieces, write_tokenizer
from trainorder.files import write_json, write_jsonl
from trainorder.reading import ParamsError
from trainorder.rewards import format
from trainorder.sources import find, locate
from trainorder.streams import stream
from trainorder.tasks import kind_of, make_task, options_of
from trainorder.tasks.base import (
    SPLITS,
    OwnRows,
    Problem,
    Prompt,
    Split,
    Task,
    reveals,
    split_of,
    turns,
)
from trainorder.tasks.leaks import HeldOut
from trainorder.tasks.lines import Dropped

T = TypeVar("T")
DRAWN = 40
"""Problems of a generated task whose lengths are looked at."""
MOST_REDRAWS = 2000
"""Draws in a row that show dev or test content before the build gives up."""


class UntilClean(Protocol):
    """Draws until nothing leaks."""

    def __call__(self, draw: Callable[[], T], leaked: Callable[[T], str | None]) -> T:
        """The first clean draw."""
        ...


def build(params: Params) -> None:
    """Write data/tasks, data/sft, data/tokenizer and data/summary.json.

    Raises:
        ParamsError: a task cannot hold as many problems as asked for, or an answer is longer than max_new_tokens.
    """
    tasks = {name: make_task(name, config) for name, config in params.tasks.items()}
    seed = params.data.seed
    vocabulary = {*map(str, range(10)), *(f" {digit}" for digit in range(10))}
    summary: dict[str, Any] = {}
    demonstrations: list[dict[str, Any]] = []
    drills: list[dict[str, str]] = []
    built: dict[str, dict[Split, list[Problem]]] = {}
    dropped: dict[str, list[Dropped]] = {}
    for name, config in params.tasks.items():
        built[name], dropped[name] = _problems(name, tasks[name], config, seed, params.policy)
    held = HeldOut()
    for name, splits in built.items():
        for problem in (*splits["dev"], *splits["test"]):
            held.add(reveals(tasks[name], problem), problem.id)
    redrawn = dict.fromkeys(tasks, 0)
    for name, config in params.tasks.items():
        task, train = tasks[name], built[name]["train"]
        for problem in train:
            _refuse_leak(name, problem.question, held.match(*reveals(task, problem)))
        draw: UntilClean = partial(_until_clean, name, redrawn)  # pyrefly: ignore[bad-assignment]
        lines_of = (config.demonstrations, config.drills) if params.sft else (0, 0)
        own = list(_demonstrations(name, task, lines_of[0], seed, train, held, draw))
        lines = list(_drills(name, task, lines_of[1], seed, held, draw))
        summary[name] = _measure(
            name, config, built[name], own, lines, vocabulary, params.policy.path is None
        )
        if dropped[name]:
            print(
                f"warning: tasks.{name}: {len(dropped[name])} rows dropped, see {paths.TASK_DATA.parent}/summary.json",
                file=sys.stderr,
            )
            summary[name]["dropped"] = [str(row) for row in dropped[name]]
        demonstrations += own
        drills += lines
    for name, config in params.tasks.items():
        _write_task(name, tasks[name], config, built[name])
    _remove_others(paths.TASK_DATA, set(params.tasks))
    write_jsonl(paths.SFT_DATA / "demonstrations.jsonl", demonstrations)
    write_jsonl(paths.SFT_DATA / "drills.jsonl", drills)
    write_tokenizer(paths.TOKENIZER, vocabulary)
    for name, count in redrawn.items():
        summary[name]["redrawn"] = count
    leaks = {
        "held_out_texts": len(held),
        "checked": sum(len(splits["train"]) for splits in built.values())
        + len(demonstrations)
        + len(drills),
        "redrawn": sum(redrawn.values()),
        "found": 0,  # one that cannot be redrawn refuses the build
    }
    report = {"vocabulary": len(vocabulary) + len(SPECIALS), "leaks": leaks, "tasks": summary}
    write_json(paths.TASK_DATA.parent / "summary.json", report)


def _problems(
    name: str, task: Task, config: TaskConfig, seed: int, policy: PolicyConfig
) -> tuple[dict[Split, list[Problem]], list[Dropped]]:
    """Problems, drawn or read from the user's files, and the rows of these that were dropped."""
    if not isinstance(task, OwnRows):
        return draw_problems(name, task, config, seed), []
    found, dropped = task.read(name, reserved_tokens(policy))
    wanted = taken_rows(name, config, {split: len(problems) for split, problems in found.items()})
    return {s: problems[: wanted[s]] for s, problems in found.items()}, dropped


def taken_rows(name: str, config: TaskConfig, found: Mapping[Split, int]) -> dict[Split, int]:
    """How many of the user's rows are taken in each split: as many as `train`, `dev` and `test` say.

    Where one of them is not set, at most so many.

    Raises:
        ParamsError: there are fewer than asked for, or none.
    """
    wanted: dict[Split, int] = {}
    for split in SPLITS:
        count = getattr(config, split)
        wanted[split] = count if split in config.model_fields_set else min(count, found[split])
        if found[split] < max(1, wanted[split]):
            raise ParamsError(
                f"tasks.{name}.{split}: {max(1, count)} problems asked for, there are {found[split]} usable rows; "
                f"lower tasks.{name}.{split}, or add rows"
            )
    return wanted


def draw_problems(
    name: str, task: Task, config: TaskConfig, seed: int
) -> dict[Split, list[Problem]]:
    """Distinct problems, drawn until each split holds its count; their content decides the split.

    Gives up once 20 draws per problem already found (and 2000 more) in a row bring nothing new.
    """
    rng = stream("problems", seed, name)
    wanted: dict[Split, int] = {"train": config.train, "dev": config.dev, "test": config.test}
    found: dict[Split, dict[str, Problem]] = {split: {} for split in SPLITS}
    idle = 0
    while any(len(found[split]) < wanted[split] for split in SPLITS):
        problem = task.draw(rng)
        split = split_of(problem.id)
        known = len(found[split])
        if known < wanted[split]:
            found[split].setdefault(problem.id, _named(problem, name))
        idle = 0 if len(found[split]) > known else idle + 1
        if idle > 2000 + 20 * sum(map(len, found.values())):
            _explain_shortage(name, wanted, found)
    return {split: list(problems.values()) for split, problems in found.items()}


def few_problems(name: str, config: TaskConfig) -> tuple[Task, list[Problem]]:
    """A task, and what its problems look like: the first and the longest of the user's own rows, or some that are drawn."""
    task = make_task(name, config)
    if isinstance(task, OwnRows):
        return task, task.few(name, {split: getattr(config, split) for split in SPLITS})
    rng = random.Random(f"preflight {name}")
    return task, [dataclasses.replace(task.draw(rng), task=name) for _ in range(DRAWN)]


def reserved_tokens(policy: PolicyConfig) -> list[str]:
    """The special tokens of the tokenizer in use, which no text may hold; none for a model named on the hub."""
    if policy.path is None:
        return list(SPECIALS.values())
    if find(policy.path).kind == "hub":
        return []
    try:
        folder = locate(policy.path, weights=False)
        text = (folder / "tokenizer.json").read_text(encoding="utf-8")
        return [token["content"] for token in json.loads(text)["added_tokens"] if token["special"]]
    except (OSError, ValueError, KeyError, TypeError):  # the preflight says what a folder lacks
        return []


def _named(problem: Problem, name: str) -> Problem:
    """The problem under the name its task has in params.yaml; a kind may serve two tasks."""
    return dataclasses.replace(problem, task=name, id=f"{name}/{problem.id.rpartition('/')[2]}")


def _explain_shortage(
    name: str, wanted: dict[Split, int], found: dict[Split, dict[str, Problem]]
) -> None:
    short = [f"{split} asks for {wanted[split]}, {len(found[split])} exist" for split in SPLITS]
    short = [
        text for text, split in zip(short, SPLITS, strict=True) if len(found[split]) < wanted[split]
    ]
    raise ParamsError(
        f"tasks.{name}: too few distinct problems with these options: {'; '.join(short)}; "
        f"ask for fewer, or widen tasks.{name}.options"
    )


def _demonstrations(
    name: str,
    task: Task,
    count: int,
    seed: int,
    train: Sequence[Problem],
    held: HeldOut,
    until_clean: UntilClean,
) -> Iterator[dict[str, Any]]:
    """Noisy demonstrations of fresh problems of the train split; of the user's rows, these in turn.

    Drawn again where the problem, the thought or the answer is that of a dev or test problem.
    """
    rng = stream("demonstrations", seed, name)

    def draw() -> tuple[Problem, str]:
        while True:
            problem = task.draw(rng)
            if split_of(problem.id) == "train":
                return problem, task.demonstrate(problem, rng)

    def leaked(shown: tuple[Problem, str]) -> str | None:
        problem, completion = shown
        parts = format.parse(completion) or (completion,)
        return held.match(*reveals(task, problem), *parts)

    known = [problem for problem in train if problem.gold is not None]
    for number in range(count):
        if isinstance(task, OwnRows):
            if not known:
                return
            problem = known[number % len(known)]
            completion = problem.gold
        else:
            problem, completion = until_clean(draw, leaked)
        yield {"task": name, "prompt": problem.prompt, "completion": completion}


def _drills(
    name: str, task: Task, count: int, seed: int, held: HeldOut, until_clean: UntilClean
) -> Iterator[dict[str, str]]:
    """Textbook lines; drawn again where any part of one gives a dev or test problem away."""
    rng = stream("drills", seed, name)

    def draw() -> str:
        text = task.drill(rng)
        if text is None:
            raise ParamsError(
                f"tasks.{name}.drills: this task has no drills; set it to 0, got {count}"
            )
        return text

    for _ in range(count):
        yield {"task": name, "text": until_clean(draw, held.match_part)}


def _until_clean(
    name: str, redrawn: dict[str, int], draw: Callable[[], T], leaked: Callable[[T], str | None]
) -> T:
    """The first draw that gives no dev or test problem away; how many did is added to `redrawn`."""
    drawn = draw()
    for _ in range(MOST_REDRAWS):
        if leaked(drawn) is None:
            return drawn
        redrawn[name] += 1
        drawn = draw()
    _refuse_leak(name, str(drawn), leaked(drawn))
    return drawn


def _refuse_leak(name: str, text: str, problem: str | None) -> None:
    if problem is not None:
        raise ParamsError(
            f"tasks.{name}: what is trained on gives the dev or test problem {problem} away: {text[:200]!r}; ask for "
            f"fewer dev and test problems, or take it out of the training rows"
        )


def _measure(
    name: str,
    config: TaskConfig,
    splits: dict[Split, list[Problem]],
    demonstrations: list[dict[str, Any]],
    drills: list[dict[str, str]],
    vocabulary: set[str],
    built_in: bool,
) -> dict[str, Any]:
    """Count, add all pieces to the vocabulary, and check that answers fit if it is the built-in tokenizer's."""

    def longest(texts: Iterable[str]) -> int:
        most = 0
        for text in texts:
            cut = pieces(text)
            vocabulary.update(cut)
            most = max(most, len(cut))
        return most

    problems = [problem for split in SPLITS for problem in splits[split]]
    answer = longest(text for p in problems for text in {p.gold, p.reference} if text) + 1
    if built_in and answer > config.max_new_tokens:
        raise ParamsError(
            f"tasks.{name}.max_new_tokens: the longest right answer has {answer} tokens with its end token, "
            f"got {config.max_new_tokens}"
        )
    counts: dict[str, int] = {split: len(splits[split]) for split in SPLITS}
    prompts: list[Prompt] = [p.prompt for p in problems]
    prompts += [row["prompt"] for row in demonstrations]

    def framed(prompt: Prompt) -> int:
        return sum(longest([turn]) + 2 for turn in turns(prompt))

    return {
        **counts,
        "demonstrations": len(demonstrations),
        "drills": len(drills),
        "longest_prompt": max(map(framed, prompts)),
        "longest_answer": answer,
        "longest_demonstration": longest(row["completion"] for row in demonstrations) + 1,
        "longest_drill": longest(row["text"] for row in drills) + 1,
    }


def _write_task(
    name: str, task: Task, config: TaskConfig, splits: dict[Split, list[Problem]]
) -> None:
    folder = paths.TASK_DATA / name
    for split, problems in splits.items():
        write_jsonl(folder / f"{split}.jsonl", map(dataclasses.asdict, problems))
    own = getattr(task, "card", None)
    card = {
        "kind": kind_of(name, config),
        "version": task.version,
        "options": {
            **options_of(config),
            **(own(p for found in splits.values() for p in found) if own else {}),
        },
        "rewarded_by": task.rewarded_by,
        "max_new_tokens": config.max_new_tokens,
    }
    write_json(folder / "task.json", card)


def _remove_others(folder: Path, names: set[str]) -> None:
    """Tasks of an earlier params.yaml would otherwise look built."""
    for child in folder.iterdir():
        if (child / "task.json").is_file() and child.name not in names:
            shutil.rmtree(child)
