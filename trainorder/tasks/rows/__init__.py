"""rows: the user's own problems in the files they have: `tasks: {math: {data: rows.parquet}}`.

`schemas.py` knows how thirteen frameworks write a row, `files.py` what rows lie in, `reader.py` makes problems of them,
`surveys.py` keeps what they are. Each row has its graders (trainorder/graders), or one function of the user grades all.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from trainorder.graders import GRADERS, Answer, answer_of, grader
from trainorder.rewards import format
from trainorder.tasks.base import SPLITS, Problem, Reward, Split
from trainorder.tasks.lines import Dropped

LOADED: dict[str, str] = {
    "reader": "trainorder.tasks.rows.reader:Reader",
    "survey": "trainorder.tasks.rows.surveys:survey",
    "function": "trainorder.graders.function:call",
    "verse": "trainorder.tasks.verse:Verse",
}
"""By name, so that reading files is no part of the code that grades."""


JUDGED = "judge"
"""In place of a grader: the task's judges grade the rows."""


@dataclass(frozen=True)
class Rows:
    """Rows of files; what grades an answer stands in its row, in `grader`, or is the user's function `reward`."""

    data: str | dict[str, str]
    """A file (parquet, JSON lines, JSON), a folder, a data set on the hub, or one of these for each split."""
    columns: dict[str, str] = field(default_factory=dict)
    """Ours -> theirs, where the rows have no known schema: prompt, answer, grader, choices, task, split, system, think."""
    grader: str | dict[str, str] = ""
    """Grader of all rows, or what a name in the rows stands for: {openai/gsm8k: number}; `judge` leaves the grade to a judge, and
    the row's answer, if it has one, is the reference that it compares with."""
    reward: str = ""
    """`mine.py:score`: a function in the signature of TRL or verl that grades all rows."""
    source: str = ""
    """Only the rows of this task, where the file holds several."""
    system: str = ""
    """System turn in front of prompts that have none."""
    taste: Literal["", "verse"] = ""
    """Of rows that a judge grades: the taste of the simulated annotator, by which judges are trained and compared."""
    max_dropped: float = 0.05
    """Share of rows that may be bad, doubled or leaked; more refuse the build."""
    found: list[str] = field(default_factory=list)
    """The graders of the rows; written by the build."""
    taken: dict[str, int] = field(default_factory=dict)
    """Rows of each split that are taken at most; from `train`, `dev` and `test` of the task."""
    name: str = ""
    """Of the task; from params.yaml."""
    version: int = field(default=2, init=False)

    @property
    def rewarded_by(self) -> Literal["verifier", "judge"]:
        """What gives the rewards in RL."""
        return "judge" if self.grader == JUDGED else "verifier"

    @property
    def has_taste(self) -> bool:
        """Whether `grade` of judged rows is a taste; without one nothing but a judge grades them."""
        return bool(self.taste)

    def __post_init__(self) -> None:
        if not 0 <= self.max_dropped < 1:
            raise ValueError(f"max_dropped is a share in 0..1, got {self.max_dropped}")
        if not isinstance(self.data, str) and (not self.data or set(self.data) - set(SPLITS)):
            raise ValueError(
                f"data: a path, or one for each of {', '.join(SPLITS)}, got {self.data!r}"
            )
        if self.reward and not self.reward.rpartition(":")[0].endswith(".py"):
            raise ValueError(f"reward: write `file.py:function`, got {self.reward!r}")
        if self.reward and self.grader:
            raise ValueError("grader and reward: one of the two decides, take the other out")
        if self.taste and self.grader != JUDGED:
            raise ValueError("taste: only rows that a judge grades have one (`grader: judge`)")

    @property
    def files(self) -> tuple[Path, ...]:
        """What the build reads; empty for a data set on the hub."""
        return self._reader().files()

    @property
    def code(self) -> tuple[Path, ...]:
        """The user's file that grades."""
        return (Path(self.reward.rpartition(":")[0]),) if self.reward else ()

    @property
    def sandboxed(self) -> Literal["python", False]:
        """Whether a grader of the rows runs model-written programs."""
        if self.rewarded_by == "judge":
            return False
        known = self.reward or self.found or not self.name
        graders = self.found if known else self.survey(self.name)["graders"]
        return "python" if any(grader(name).sandboxed for name in graders) else False

    def loads(self, task: str, build: bool) -> set[str]:
        """What the rows load by name, as entries of a registry: graders, and what reads files if they are built."""
        named = {LOADED["reader"]} if build else set()
        if self.reward:
            return named | {LOADED["function"]}
        if self.rewarded_by == "judge":
            return named | ({LOADED[self.taste]} if self.taste else set())
        return named | {GRADERS[name] for name in self.found or self.survey(task)["graders"]}

    def card(self, problems: Iterable[Problem]) -> dict[str, Any]:
        """Options that the build adds: the graders of these problems."""
        return {"found": sorted({name for p in problems for name, _ in p.meta.get("checks", ())})}

    def read(
        self, task: str, reserved: Sequence[str] = ()
    ) -> tuple[dict[Split, list[Problem]], list[Dropped]]:
        """The problems of each split in file order, and the rows that were dropped.

        Raises:
            ParamsError: nothing there is read, no schema fits, or more than `max_dropped` of the rows are bad.
        """
        return self._reader().read(task, reserved)

    def survey(self, task: str, reserved: Sequence[str] = ()) -> dict[str, Any]:
        """What the rows are, from the user's cache folder where they were read before (surveys.py)."""
        return _loaded("survey")(self, task, reserved)

    def few(self, task: str, taken: Mapping[Split, int]) -> list[Problem]:
        """The first problems of each split, then the longest ones, of those that `taken` of the task allows."""
        return [Problem(**problem) for problem in self.survey(task)["few"]]

    def _reader(self) -> Any:
        return _loaded("reader")(self)

    def draw(self, rng: random.Random) -> Problem:
        """A random training row."""
        return rng.choice(self.read("rows")[0]["train"])

    def demonstrate(self, problem: Problem, rng: random.Random) -> str:
        """The right completion: the user's rows are all there is."""
        return problem.gold or ""

    def drill(self, rng: random.Random) -> str | None:
        """None."""
        return None

    def grade(self, completions: Sequence[str], problems: Sequence[Problem]) -> list[Reward]:
        """Mean over the row's graders, None where one of them cannot grade.

        Of rows that a judge grades: their taste, None without one. Parts: `format`, the form that the prompt asks for is kept (tags, a box, `####`); `strict`, the value if it is and 0
        if not. The form never decides the value.
        """
        pairs = zip(completions, problems, strict=True)
        if self.rewarded_by == "judge":
            taste = _loaded(self.taste).taste if self.taste else lambda *_: Reward(None)
            return [taste(text, problem) for text, problem in pairs]
        return [self._grade(text, problem) for text, problem in pairs]

    def corrupt(self, text: str, rng: random.Random) -> str:
        """A text damaged the way RL might damage it."""
        return _loaded(self.taste).corrupt(text, rng)

    def _grade(self, completion: str, problem: Problem) -> Reward:
        answer = answer_of(completion, problem.text)
        kept = float(keeps(problem.meta["form"], answer))
        value = self._value(answer, problem)
        if value is None:
            return Reward(None, {"format": kept})
        return Reward(value, {"format": kept, "strict": value * kept})

    def _value(self, answer: Answer, problem: Problem) -> float | None:
        meta = problem.meta
        if self.reward:
            call = _loaded("function")
            return call(self.reward, answer, problem.prompt, meta["label"], meta["columns"])
        if not format.visible(answer.text):
            return 0.0
        values = [grader(name).grade(answer, label) for name, label in meta["checks"]]
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if len(known) == len(values) else None


@cache
def _loaded(name: str) -> Any:
    module, _, attribute = LOADED[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def form_of(prompt: str) -> str:
    r"""The form that a prompt asks for: tags, box, hash or plain.

    >>> form_of(r"Put it in \boxed{}."), form_of('End with "#### 7".'), form_of("2 + 2?")
    ('box', 'hash', 'plain')
    """
    forms = {"<answer>": "tags", "boxed": "box", "####": "hash"}
    return next((form for mark, form in forms.items() if mark in prompt), "plain")


def render(form: str, answer: str, solution: str = "") -> str:
    r"""A completion of this form.

    >>> render("box", "4", "2 + 2 = 4"), render("tags", "4", "easy")
    ('2 + 2 = 4\n\\boxed{4}', '<think> easy </think> <answer> 4 </answer>')
    """
    if form == "tags":
        return format.render(solution, answer) if solution else f"<answer> {answer} </answer>"
    shown = {"box": f"\\boxed{{{answer}}}", "hash": f"#### {answer}"}.get(form, answer)
    return f"{solution}\n{shown}" if solution else shown


def keeps(form: str, answer: Answer) -> bool:
    """Whether a completion has the form that its prompt asks for."""
    text = answer.text
    if form == "tags":
        return "<answer>" in text and "</answer>" in text.rpartition("<answer>")[2]
    if form == "box":
        return "\\boxed{" in text and bool(answer.marked)
    return bool(answer.marked) and "####" in text if form == "hash" else format.visible(text)
