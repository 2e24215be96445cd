"""What params.yaml holds below its sections: names, bounded numbers, pieces of the RL step, schedules."""

from __future__ import annotations

import ast
import inspect
import math
import re
import textwrap
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from trainorder.reading import (
    shown,
)

NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


class Section(BaseModel):
    """Base of all sections: frozen, strict types, unknown keys refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
    )
    changes_nothing: ClassVar[frozenset[str]] = frozenset()
    """Keys that change how fast or how loud something runs, never what comes out."""

    def results(self) -> dict[str, Any]:
        """What can change a checkpoint or a score: stages depend on this, manifests record it."""
        return self.model_dump(exclude=set(self.changes_nothing))

    @classmethod
    def explained(cls) -> dict[str, str]:
        """Field -> the docstring below it.

        Pydantic's `use_attribute_docstrings` parses all sections whenever they are imported, which is half of the time
        that every process of a run takes to start.
        """
        found: dict[str, str] = {}
        for base in reversed([c for c in cls.__mro__ if issubclass(c, Section)]):
            (body,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
            assert isinstance(body, ast.ClassDef)
            for field, text in pairwise(body.body):
                if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                    found[ast.unparse(field.target)] = inspect.cleandoc(
                        ast.literal_eval(text.value)
                    )
        return found


def _check_name(name: Any) -> str:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(
            f"name {shown(name)} is not allowed: use a-z, 0-9 and _, beginning with a letter, at most 64"
        )
    return name


Name = Annotated[str, BeforeValidator(_check_name)]
"""Names become file names and DVC stage names, where other characters break every dvc command."""

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(ge=1e-6, le=1e6)]
"""A weight or a factor."""
Rate = Annotated[float, Field(ge=1e-12, le=10)]
"""A learning rate."""
Beta = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[list[Beta], Field(min_length=2, max_length=2)]
OptimizerName = Literal["adamw", "muon"]
"""As listed in trainorder/optimizers.py: AdamW for all weights, or Muon for the matrices of hidden layers and AdamW for the rest."""
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""As numpy takes them."""
Steps = Annotated[int, Field(ge=1, le=10_000_000)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
"""Problems, prompts, resamples: what is held in memory or written to one file."""
Batch = Annotated[int, Field(ge=1, le=65_536)]
Samples = Annotated[int, Field(ge=1, le=1024)]
"""Answers to one problem."""
Threads = Annotated[int, Field(ge=1, le=256)]

Piece = str | dict[str, dict[str, Any]]
"""A piece of the RL step: `grpo`, or with options `{clipped_surrogate: {clip_high: 0.28}}`."""


def _with(*names: str) -> AfterValidator:
    """A text that holds each of these names in braces."""

    def check(text: str) -> str:
        missing = [f"{{{name}}}" for name in names if f"{{{name}}}" not in text]
        if missing:
            raise ValueError(
                f"the text has no {' and no '.join(missing)}: add it, it is replaced by what is asked"
            )
        return text

    return AfterValidator(check)


def _check_pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"it is no regular expression: {error}") from None
    return text


PromptText = Annotated[str, _with("prompt")]
"""A text around a prompt (tasks.base.in_template)."""
BudgetText = Annotated[str, _with("prompt", "budget")]
StepsText = Annotated[str, _with("prompt", "steps")]
GoldText = Annotated[str, _with("prompt", "gold")]
VoteText = Annotated[str, _with("prompt", "answer")]
PromptTexts = Annotated[list[PromptText], Field(min_length=1)]
Pattern = Annotated[str, AfterValidator(_check_pattern)]
"""A regular expression."""


Source = Literal["policy", "expert", "replay", "teacher"]
SOURCES: tuple[Source, ...] = get_args(Source)
"""Where a row of the RL step comes from."""
Reduction = Literal["token", "sequence", "constant", "prompt"]
Denominator = Literal["mask", "weight"]


class Schedule(Section):
    """A coefficient that moves over the steps of a phase: `coef: {shape: cosine, start: 0.9, end: 0.05, steps: 200}`."""

    shape: Literal["linear", "cosine"]
    """linear: the same change every step; cosine: slow at both ends."""
    start: float = Field(ge=-1e9, le=1e9)
    """At the phase's first step."""
    end: float = Field(ge=-1e9, le=1e9)
    """At the last of the steps, and from then on."""
    steps: Steps | None = None
    """Steps from start to end, which holds from then on; null: the whole phase."""

    def at(self, step: int, total: int) -> float:
        """The value at a step (from 0) of a phase of `total` steps.

        >>> move = Schedule(shape="cosine", start=1.0, end=0.0)
        >>> [round(move.at(step, 5), 3) for step in range(5)]
        [1.0, 0.854, 0.5, 0.146, 0.0]
        """
        last = max(1, total - 1) if self.steps is None else self.steps
        share = min(1.0, step / last)
        if self.shape == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        return self.start + (self.end - self.start) * share


Coef = float | Schedule
Layers = Annotated[list[float], Field(min_length=2, max_length=2)]
Tier = Annotated[list[Positive], Field(min_length=2, max_length=2)]
"""Temperature of an answer, and the share of its task's limit of tokens that it may take."""
ENGINE_OPTIONS: dict[str, dict[str, Any]] = {
    "reward": {"coef": Coef},
    "terms": {
        "coef": Coef,
        "weight": list[Piece],
        "reduction": Reduction | None,
        "denominator": Denominator | None,
        "source": Source | None,
        "layers": Layers | None,
    },
}
"""Slot -> option that the engine gives all of its pieces -> its type. `source` are the rows that a term is of (null: all);
`layers: [first, last]` multiplies the term's gradient by a factor that goes on a line from the first to the last layer;
`weight` pieces multiply the method's weights for this term; null takes the method's `reduction` and `denominator`."""
