"""Sections about the tasks: problems, judges, grading."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, JsonValue

from trainorder.config.values import (
    Batch,
    Betas,
    Count,
    Name,
    OptimizerName,
    Positive,
    Rate,
    Section,
    Seed,
    Threads,
)

IsolationLevel = Literal["process", "filtered", "namespaces"]
"""How far the sandbox is cut off, weakest first; see trainorder/rewards/sandbox_isolation.py."""


ROWS_KEYS = ("data", "columns", "grader", "reward")
"""Keys of a task that are options of its kind `rows`."""


class TaskConfig(Section):
    """One learning task: which generator and verifier, how many problems, how long an answer may get."""

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

    def results(self) -> dict[str, Any]:
        """What can change a score; the keys of own rows only where they are used."""
        found = super().results()
        return {key: found[key] for key in found if found[key] or key not in ROWS_KEYS}


class DataConfig(Section):
    """What build_data does beside the tasks' own numbers."""

    seed: Seed = 0
    """Seed of all problems and demonstrations; the same for every training seed, so that all seeds meet one test set."""


class EndpointConfig(Section):
    """An OpenAI-compatible chat endpoint that judges; asked twice per pair, once in each position."""

    base_url: str = ""
    """Address up to and with the version, e.g. http://127.0.0.1:8000/v1."""
    model: str = ""
    """Model name the endpoint knows."""
    api_key_env: str | None = Field(default=None, pattern=r"^[A-Z][A-Z0-9_]{0,63}$")
    """NAME of the environment variable that holds the key, e.g. OPENAI_API_KEY; null for an endpoint without one."""
    timeout_seconds: float = Field(default=60.0, ge=0.01, le=3600)
    """Of one request."""
    retries: int = Field(default=5, ge=0, le=100)
    """Repetitions of a request that met an error of the server, with growing pauses."""
    outage_seconds: float = Field(default=600.0, ge=0, le=86400)
    """How long to wait for an endpoint that is away or says "too many requests"; then the stage stops, resumable."""
    concurrency: int = Field(default=8, ge=1, le=256)
    """Requests at the same time."""
    requests_per_minute: float | None = Field(default=None, ge=0.01, le=1e6)
    """Upper bound; null for none."""
    max_tokens: int = Field(default=8, ge=1, le=65536)
    """Of a reply; it is one word, but a model that thinks first needs more."""
    token_limit: str = Field(default="max_tokens", pattern=r"^[a-z][a-z0-9_]{0,63}$")
    """What the endpoint calls that limit; newer models want max_completion_tokens."""
    temperature: float | None = Field(default=0.0, ge=0, le=2)
    """null: not sent, for models that refuse it."""
    body: dict[str, JsonValue] = Field(default_factory=dict, max_length=32)
    """Further keys of the request's body, e.g. {reasoning_effort: low}."""
    same_in_both_roles: bool = False
    """Let this one model judge in training and in evaluation; then no score of a judged task is independent of training,
    and reports say so."""


class JudgeConfig(Section):
    """Two Bradley-Terry preference models: `reward` pays the creative phases, `evaluation` is used in no training."""

    changes_nothing = frozenset({"threads"})

    backend: Literal["local", "endpoint"] = "local"
    """local: two preference models trained here; endpoint: the model behind `endpoint` in both roles."""
    endpoint: EndpointConfig = Field(default_factory=EndpointConfig)
    """Used by the backend `endpoint` only."""
    task: Name = "creative"
    """The task whose answers are compared."""
    prompts: Count = 600
    """Prompts whose answers are compared, per judge; no prompt serves both judges."""
    answers: int = Field(default=4, ge=2, le=64)
    """Answers per prompt; the annotator compares all of them with one another: 4 answers, 6 comparisons."""
    heldout_prompts: Count = 150
    """Further prompts per judge, on which its agreement with the annotator is measured."""
    corrupted: float = Field(default=0.30, ge=0, le=1)
    """Share of answers that are damaged samples (stutter, cut, words swapped): what RL finds if nobody forbids it."""
    flat: float = Field(default=0.15, ge=0, le=1)
    """Share of answers with all words equally likely: a judge knows only words it has seen."""
    annotator_sharpness: Positive = 12.0
    """P(annotator prefers a to b) = sigmoid(sharpness * (taste(a) - taste(b)))."""
    epochs: int = Field(default=4, ge=1, le=10_000)
    """Passes over the pairs."""
    batch_size: Batch = 16
    """Prompts per update, with all their comparisons."""
    optimizer: OptimizerName = "adamw"
    """adamw, or muon for the weight matrices of the layers and AdamW for the rest."""
    lr: Rate = 2e-3
    """Peak learning rate of AdamW, decayed linearly to zero."""
    muon_lr: Rate = 1e-3
    """Peak learning rate of Muon (torch's default); it follows the same schedule. Unused by adamw."""
    betas: Betas = Field(default=[0.9, 0.999])
    """AdamW betas."""
    weight_decay: float = Field(default=0.05, ge=0, le=10)
    """AdamW weight decay."""
    min_agreement: float = Field(default=0.70, ge=0.5, le=1)
    """Held-out agreement with the annotator below which the stage fails: a bad judge ruins creative RL."""
    threads: Threads = 2
    """Judges trained side by side, one CPU thread each; changes the time, never the result."""


class GradingConfig(Section):
    """Bounds on graders. They skip an answer or stop a stage; the grade of an answer that keeps them never changes."""

    isolation: IsolationLevel = "filtered"
    """Least isolation of model-written programs: process, filtered or namespaces; a machine that offers less is refused."""
    seconds: float = Field(default=30.0, ge=0.01, le=3600)
    """Clock time a verifier may take for one answer; after that the answer has no grade."""
    max_unscored: float = Field(default=0.2, ge=0, le=1)
    """Share of a task's newest 256 answers that may have no grade (verifier or judge); above it the stage stops."""
