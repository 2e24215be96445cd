"""Sections about the tasks: problems, grading."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from trainorder.config.judges import Role
from trainorder.config.values import Count, Name, Section, Seed

IsolationLevel = Literal["process", "filtered", "namespaces"]
"""How far the sandbox is cut off, weakest first; see trainorder/rewards/sandbox_isolation.py."""


ROWS_KEYS = ("data", "columns", "grader", "reward")
"""Keys of a task that are options of its kind `rows`."""


class TaskConfig(Section):
    """One learning task: which generator and verifier, how many problems, how long an answer may get."""

    changes_nothing = frozenset(
        {"judges"}
    )  # of the build: phases and evaluations depend on their judges themselves

    kind: Name | None = None
    """Entry of trainorder/tasks/__init__.py::TASKS; null means the key itself. Two tasks may share a kind."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of that kind, the fields of its class (number range, distractors, ...)."""
    data: str | dict[Literal["train", "dev", "test"], str] | None = None
    """Your own rows (kind `rows`): a file (.parquet, .jsonl, .json), a folder, a data set on the hub, or one for each split."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Of rows in no known schema: which column is the prompt, answer, grader, choices, task, split, system, think."""
    grader: str | dict[str, str] = ""
    """Grader of all own rows (exact, number, math, ...), or what a name in the rows stands for."""
    reward: str = ""
    """`mine.py:score`: your own function that grades all rows, in the signature of TRL or verl."""
    train: Count = 3000
    """Training problems; of own rows, at most so many unless it is set. Generators of small worlds may hold fewer; the build then fails and says how many exist."""
    dev: Count = 256
    """Problems that choose the order."""
    test: Count = 256
    """Problems that are only reported."""
    max_new_tokens: int = Field(default=48, ge=1, le=1 << 17)
    """Tokens an answer may have, in training and in evaluation."""
    demonstrations: int = Field(default=4000, ge=0, le=10_000_000)
    """Noisy demonstrations written for the SFT warm-up; 0 leaves the task out of it."""
    drills: int = Field(default=0, ge=0, le=10_000_000)
    """Clean textbook lines written for the SFT warm-up; 0 where the task offers none."""
    judges: dict[Role, Name] = Field(default_factory=dict)
    """Of a judged task: `{reward: NAME, evaluation: NAME}`, entries of `judges:`; a role left out goes to the judge that has it
    by its own `role` or name."""

    def own_rows(self) -> dict[str, Any]:
        """What is set of ROWS_KEYS."""
        return {key: value for key in ROWS_KEYS if (value := getattr(self, key))}

    def results(self) -> dict[str, Any]:
        """What can change a score; the keys of own rows only where they are used."""
        found = super().results()
        return {key: found[key] for key in found if found[key] or key not in ROWS_KEYS}


class DataConfig(Section):
    """What build_data does beside the tasks' own numbers."""

    seed: Seed = 0
    """Seed of all problems and demonstrations; the same for every training seed, so that all seeds meet one test set."""


class GradingConfig(Section):
    """Bounds on graders. They skip an answer or stop a stage; the grade of an answer that keeps them never changes."""

    isolation: IsolationLevel = "filtered"
    """Least isolation of model-written programs: process, filtered or namespaces; a machine that offers less is refused."""
    seconds: float = Field(default=30.0, ge=0.01, le=3600)
    """Clock time a verifier may take for one answer; after that the answer has no grade."""
    max_unscored: float = Field(default=0.2, ge=0, le=1)
    """Share of a task's newest 256 answers that may have no grade (verifier or judge); above it the stage stops."""
