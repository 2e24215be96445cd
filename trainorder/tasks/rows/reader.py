"""Rows to problems: schema, graders, splits; what is bad, doubled or leaked is named, counted and bounded."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, cast

from trainorder.graders import GRADERS, BadLabel, answer_of, grader, refused
from trainorder.graders.names import resolve
from trainorder.reading import ParamsError, did_you_mean
from trainorder.rewards import format
from trainorder.rewards.answers import numbers
from trainorder.tasks.base import Problem, Split, content_id
from trainorder.tasks.leaks import normal_form
from trainorder.tasks.lines import BadRow, Dropped, Written, plain, refuse_tokens, short
from trainorder.tasks.rows import JUDGED, Rows, form_of, render
from trainorder.tasks.rows.files import RowSource, row_sources, split_of_name
from trainorder.tasks.rows.prompts import prompt_of
from trainorder.tasks.rows.schemas import ANSWERS, GUESSED, SCHEMAS, Row, at, own
from trainorder.tasks.rows.splits import in_splits, without_leaks

LOOKED_AT = 1000
"""Rows of a file whose columns decide the schema."""
SHOWN = 5
"""Bad rows that an error names, each for another reason."""
NUMERAL = re.compile(r"\d+")
SHORT_ANSWER = 200
"""Characters of an answer that is compared as text where no grader is named."""
MARK = re.compile(r"[<\[][^\s<>\[\]]{1,60}[>\]]")
"""What special tokens look like: `<eos>`, `<|im_end|>`, `[MASK]`."""
MOST_MARKS = 1000
"""Different ones that a survey keeps."""
COLUMNS = ("prompt", "answer", "grader", "choices", "task", "split", "system", "think")


@dataclass
class Facts:
    """What the rows are, for `trainorder check`."""

    format: str = ""
    rows: int = 0
    tasks: Counter[str] = field(default_factory=Counter)
    graders: Counter[str] = field(default_factory=Counter)
    named: Counter[str] = field(default_factory=Counter)
    """What the rows call their graders."""
    guessed: int = 0
    """Rows that name no grader: their answer decides."""
    without_answer: int = 0
    marks: set[str] = field(default_factory=set)
    """What looks like a special token in the prompts, MOST_MARKS at most."""


class Reader:
    """Reads the rows of one task."""

    def __init__(self, task: Rows) -> None:
        self.task = task

    def files(self) -> tuple[Path, ...]:
        """Every file that is read."""
        where = f"tasks.{self.task.name}.data" if self.task.name else "data"
        return tuple(path for source in self._sources(where) for path in source.paths)

    def read(
        self, name: str, reserved: Sequence[str] = ()
    ) -> tuple[dict[Split, list[Problem]], list[Dropped]]:
        """See `Rows.read`."""
        found, dropped, _ = self.read_with_facts(name, reserved)
        return found, dropped

    def _sources(self, where: str) -> list[RowSource]:
        return row_sources(where, cast(Any, self.task.data))

    def read_with_facts(
        self, name: str, reserved: Sequence[str]
    ) -> tuple[dict[Split, list[Problem]], list[Dropped], Facts]:
        """`read`, and what the rows are."""
        where = f"tasks.{name}"
        self._check_options(where)
        read_from, facts, bad = self._sources(f"{where}.data"), Facts(), list[Dropped]()
        streams = [source.rows() for source in read_from]
        heads = [list(islice(stream, LOOKED_AT)) for stream in streams]
        looked_at = [row for head in heads for _, _, row in head if isinstance(row, dict)]
        columns = {key for row in looked_at for key in row}
        facts.format, schema = self._schema(where, columns, looked_at)
        by_split: dict[Split | None, list[tuple[Problem, str, int]]] = {}
        for source, head, stream in zip(read_from, heads, streams, strict=True):
            for file, number, given in chain(head, stream):
                facts.rows += 1
                try:
                    if isinstance(given, BadRow):
                        raise given
                    row = schema(given)
                    if self.task.source and self.task.source != row.task:
                        facts.rows -= 1
                        facts.tasks[row.task] += 1
                        continue
                    problem = self._problem(name, row, given, reserved, facts)
                    split = source.split or self._split(row, given)
                    by_split.setdefault(split, []).append((problem, file, number))
                except BadRow as error:
                    bad.append(Dropped(file, number, str(error)))
        if not facts.rows:
            known = ", ".join(facts.tasks) or "none"
            missing = f"no row of task {self.task.source!r}; there are {known}{did_you_mean(self.task.source, list(facts.tasks))}"
            raise ParamsError(f"{where}.data: {missing if self.task.source else 'no row'}")
        found = without_leaks(in_splits(where, by_split), bad)
        if len(bad) > self.task.max_dropped * facts.rows:
            raise ParamsError(_explain(where, bad, facts, self.task.max_dropped))
        return found, bad, facts

    def _check_options(self, where: str) -> None:
        unknown = [key for key in self.task.columns if key not in COLUMNS]
        if unknown:
            hint = did_you_mean(unknown[0], list(COLUMNS))
            raise ParamsError(
                f"{where}.columns: no {unknown[0]!r}; there are {', '.join(COLUMNS)}{hint}"
            )
        named = self.task.grader
        for ours in [named] if isinstance(named, str) else named.values():
            if ours == JUDGED and isinstance(named, str):
                continue
            if ours and ours not in GRADERS:
                hint = did_you_mean(ours, list(GRADERS))
                raise ParamsError(
                    f"{where}.grader: no {ours!r}; there are {', '.join(sorted([*GRADERS, JUDGED]))}{hint}"
                )

    def _schema(
        self, where: str, columns: set[str], rows: Sequence[Mapping[str, Any]]
    ) -> tuple[str, Callable[[dict[str, Any]], Row]]:
        """The schema by the columns of the first rows."""
        if self.task.columns:
            mapping = self.task.columns
            if "prompt" not in mapping:
                raise ParamsError(
                    f"{where}.columns: say which column holds the prompt: {{prompt: ...}}"
                )
            for theirs in mapping.values():
                if columns and theirs not in columns and theirs.partition(".")[0] not in columns:
                    raise ParamsError(
                        f"{where}.columns: no column {theirs!r}; there are {', '.join(sorted(columns)[:30])}"
                        f"{did_you_mean(theirs, list(columns))}"
                    )
                if rows and all(at(row, theirs) is None for row in rows):
                    held = rows[0].get(theirs.partition(".")[0])
                    raise ParamsError(
                        f"{where}.columns: no row has anything in {theirs!r}; the first has {short(held)}"
                    )
            return "own columns", own(mapping)
        for title, schema in SCHEMAS.items():
            if schema.fits(columns):
                return title, schema.read
        if not columns:  # every row is bad: they say why
            return "trainorder", SCHEMAS["trainorder"].read
        raise ParamsError(
            f"{where}.data: the columns {', '.join(sorted(columns)[:20])} are of no known schema ({', '.join(SCHEMAS)}); "
            f"say which is what: {where}.columns: {{prompt: ..., answer: ...}}"
        )

    def _split(self, row: Row, given: Mapping[str, Any]) -> Split | None:
        said = row.split if row.split is not None else given.get("split")
        return split_of_name(said) if isinstance(said, str) else None

    def _problem(
        self, name: str, row: Row, given: Mapping[str, Any], reserved: Sequence[str], facts: Facts
    ) -> Problem:
        prompt = prompt_of(row.prompt, self.task.system)
        problem = Problem("", name, prompt, None, None)
        text = problem.text
        form = form_of(text)
        meta: dict[str, Any] = {"form": form}
        gold = None
        if self.task.reward:
            skip = {"prompt", "messages"}
            meta |= {
                "label": plain(row.answer),
                "columns": plain({k: v for k, v in given.items() if k not in skip}),
            }
            facts.graders[self.task.reward] += 1
        elif self.task.rewarded_by == "judge":
            gold = _reference(row)
            facts.graders[JUDGED] += 1
        else:
            checks = self._checks(row, {**given, **row.rest}, facts)
            meta["checks"] = checks
            gold = _gold(checks, form, row, text)
        if gold is None:
            facts.without_answer += 1
        facts.tasks[row.task or name] += 1
        turns = (
            [prompt] if isinstance(prompt, str) else [f"{m['role']} {m['content']}" for m in prompt]
        )
        key = content_id(name, normal_form(problem.question), variant=turns)
        label = _unwritten(meta.get("label"))
        reference = gold if gold or not isinstance(label, str) else label
        problem = Problem(key, name, prompt, gold, reference, meta)
        refuse_tokens(problem.texts, reserved)
        marks = (mark for text in problem.texts for mark in MARK.findall(text))
        facts.marks.update(islice(marks, MOST_MARKS - len(facts.marks)))
        return problem

    def _checks(self, row: Row, given: Mapping[str, Any], facts: Facts) -> list[list[Any]]:
        """[grader, label] of each of the row's graders."""
        several = isinstance(row.grader, list)
        names = row.grader if several else [row.grader]
        labels = row.answer if several else [row.answer]
        checks = []
        for name, label in zip(names, labels, strict=True):
            ours = self._grader(name, label, row, given, facts)
            try:
                checks.append([ours, plain(grader(ours).read(_unwritten(label), given))])
            except BadLabel as error:
                raise BadRow(f"answer: grader {ours}: {error}") from None
            facts.graders[ours] += 1
        return checks

    def _grader(
        self, name: Any, label: Any, row: Row, given: Mapping[str, Any], facts: Facts
    ) -> str:
        chosen = self.task.grader
        if chosen and isinstance(chosen, str):
            return chosen
        if isinstance(chosen, dict) and (ours := chosen.get(str(name)) or chosen.get(row.task)):
            return ours
        if isinstance(name, str) and name.strip():
            facts.named[name] += 1
            ours = resolve(name, GRADERS)
            if ours is not None:
                return ours
            if facts.format not in GUESSED:
                raise BadRow(refused(name))
        facts.guessed += 1
        return _guess(label, given)


def _unwritten(label: Any) -> Any:
    """Numbers as their text, deep inside too; a text that holds JSON stays one."""
    if isinstance(label, Written):
        return str(label)
    if isinstance(label, float) and label.is_integer() and abs(label) < 1e15:
        return str(int(label))
    if isinstance(label, int | float) and not isinstance(label, bool):
        return repr(label)
    return label


def _guess(label: Any, given: Mapping[str, Any]) -> str:
    """The grader that an answer without one asks for."""
    if given.get("choices") or given.get("options"):
        return "choice"
    label = _unwritten(label)
    if label is None or label == "":
        raise BadRow(
            f"no answer (looked for {', '.join(ANSWERS)}) and no grader; name a grader, a column or `reward: mine.py:score`"
        )
    first = label[0] if isinstance(label, list) and label else label
    if not isinstance(first, str) or (len(first) > SHORT_ANSWER and "####" not in first):
        raise BadRow(
            f"no grader is named, and the answer is no short text: {short(label)}; name one by `grader:`"
        )
    last = first.rpartition("####")[2].strip()
    if numbers(last):
        return "number"
    return "math" if "\\" in last or "^" in last else "text"


def _reference(row: Row) -> str | None:
    """What a judge compares with: the row's answer as it is written."""
    text = row.answer[0] if isinstance(row.answer, list) and row.answer else row.answer
    text = text if isinstance(text, str) else row.solution
    return text if isinstance(text, str) and format.visible(text) else None


def _gold(checks: Sequence[Sequence[Any]], form: str, row: Row, prompt: str) -> str | None:
    """A right completion in the form that the prompt asks for, if the graders know one."""
    if len(checks) != 1:
        return None
    name, label = checks[0]
    made = grader(name)
    right = made.gold(label)
    solution = row.solution if isinstance(row.solution, str) else ""
    if right is None:
        return solution or None
    if not solution and isinstance(row.answer, str) and "####" in row.answer:
        solution = row.answer.rpartition("####")[0].strip()
    gold = render(form, right, solution)
    if not made.costly and made.grade(answer_of(gold, prompt), label) != 1.0:
        raise BadRow(f"answer: grader {name}: no completion could give it, got {short(right)}")
    return gold


def _explain(where: str, bad: Sequence[Dropped], facts: Facts, most: float) -> str:
    """How many rows are bad for which reasons, and the first of each."""
    kinds: dict[str, list[Dropped]] = {}
    for row in bad:
        kinds.setdefault(NUMERAL.sub("N", _kind(row)), []).append(row)
    often = sorted(kinds.items(), key=lambda item: -len(item[1]))
    more = [f" (and {len(rows) - 1} more)" if len(rows) > 1 else "" for _, rows in often]
    shown = [f"  {rows[0]}{also}" for (_, rows), also in zip(often, more, strict=True)][:SHOWN]
    named = {k: _kind(rows[0]) if len({*map(_kind, rows)}) == 1 else k for k, rows in often[:3]}
    common = "; ".join(f"{len(kinds[key])} x {reason}" for key, reason in named.items())
    left = f"\n  and {len(often) - SHOWN} other reasons" if len(often) > SHOWN else ""
    lines = "\n".join(shown)
    return (
        f"{where}: {len(bad)} of {facts.rows} rows (read as {facts.format}) cannot be used, options.max_dropped allows "
        f"{most:.0%}: {common}\n{lines}{left}\ncorrect them, or raise {where}.options.max_dropped"
    )


def _kind(row: Dropped) -> str:
    return row.reason.partition(",")[0].partition(";")[0][:120]
