"""Sections about the experiment: phases, orders, variants, merges, scoring, statistics, orchestration."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from trainorder.config.model import SftPhaseConfig
from trainorder.config.rl import expanded
from trainorder.config.values import (
    Name,
    Piece,
    Positive,
    Samples,
    Section,
    Seed,
    Steps,
    Threads,
)

Overrides = Annotated[dict[str, Any], BeforeValidator(expanded)]
"""Settings of `rl` on top of others; a preset in them is replaced by what it stands for."""


class PhaseConfig(Section):
    """One named stretch of training on a weighted set of tasks."""

    kind: Literal["structured", "creative", "mixed", "sft", "distill"]
    """RL: structured: all tasks have verifiers; creative: all are judged; mixed: any. sft: supervised updates on rows.
    distill: on-policy distillation, each task from a teacher of its own (arXiv 2606.30406)."""
    tasks: dict[Name, Positive] = Field(min_length=1)
    """Task -> weight; each step's prompts are split in proportion. Of `kind: sft`: the tasks that its rows teach."""
    steps: Steps
    """RL steps, or supervised updates."""
    rl: Overrides = Field(default_factory=dict)
    """Overrides of the `rl` section for this phase, e.g. `{lr: 1.5e-4}`; nested sections merge key by key."""
    data: str | None = None
    """Rows of `kind: sft`: a file (JSONL, JSON, parquet), a folder or a data set on the hub, with `messages` of which the last
    one is learned, or with `prompt` and `completion`."""
    sft: SftPhaseConfig | None = None
    """Settings of the updates of `kind: sft`; null: the defaults."""
    teachers: dict[Name, Annotated[list[Name], Field(min_length=1)]] | None = None
    """Teachers of `kind: distill`: task -> the phases, from the base on, whose checkpoint teaches it, e.g. `{math: [math]}`. A
    task left out is taught by the single-phase checkpoint of the phase that trains it."""
    like: Name | None = None
    """A return to another phase, e.g. `math_again: {like: math, steps: 10}`: kind, tasks and settings are that phase's, other
    keys replace them. It is no phase of its own: no transfer is measured from the base, and no rule or merge takes it."""

    @property
    def supervised(self) -> SftPhaseConfig:
        """The settings of `kind: sft`."""
        return self.sft or SftPhaseConfig()

    def results(self) -> dict[str, Any]:
        """What can change a checkpoint; rows and teachers only where the kind has them."""
        if self.kind != "sft":
            other = {"data", "sft", "like"} | ({"teachers"} if self.kind != "distill" else set())
            return self.model_dump(exclude=other)
        own = self.model_dump(exclude={"rl", "like", "teachers"})
        return {**own, "sft": self.supervised.results()}


class PhaseOverride(Section):
    """What a variant changes in one phase."""

    steps: Steps | None = None
    """Another number of steps; null keeps the phase's own."""
    tasks: dict[Name, Positive] | None = Field(default=None, min_length=1)
    """Other tasks and weights, in place of the phase's own; null keeps them."""
    rl: Overrides = Field(default_factory=dict)
    """Overrides on top of the phase's own `rl`."""


class VariantConfig(Section):
    """The whole plan once more under other settings of the RL phases; data, SFT and judges are shared."""

    rl: Overrides = Field(default_factory=dict)
    """Overrides of the `rl` section, e.g. `{lr: 1.5e-4}`. A phase that sets the same key itself keeps its own."""
    phases: dict[Name, PhaseOverride] = Field(default_factory=dict)
    """Phase -> what is different there."""


class MergeConfig(Section):
    """A checkpoint merged from others, without training."""

    of: Literal["singles"] = "singles"
    """Which checkpoints: the single-phase nodes, each trained from the base on one phase of the orders."""
    method: Literal["average", "task_arithmetic", "ties", "dare", "dare_ties", "sce", "ram"]
    """average of weights; base + scale * sum of deltas; TIES (arXiv 2306.01708); DARE (arXiv 2311.03099); DARE's random
    deltas merged by TIES' elected signs; SCE (arXiv 2408.07990); RAM (arXiv 2601.13572)."""
    density: float = Field(default=1.0, ge=1e-6, le=1)
    """Share of each delta's entries kept by TIES (largest) and DARE (random); of SCE the share of entries in which the
    deltas differ that is kept (largest variance)."""
    trim: Literal["all", "tensor"] = "all"
    """What TIES takes the largest entries of: all tensors of a delta together, as in its paper, or each tensor by itself."""
    scale: Positive | Annotated[list[Positive], Field(min_length=1, max_length=100)] = 1.0
    """Factor on the merged delta; average ignores it. Of a list, the one with the best mean dev score is kept."""
    seed: Seed = 0
    """Seed of DARE's random mask."""
    threshold: float = Field(default=1e-5, ge=0, le=1e9)
    """RAM: an entry that changed by no more than this counts as unchanged."""
    unique_scale: float = Field(default=1.0, ge=1, le=100)
    """RAM: up to this factor on entries that one checkpoint alone changed, the more it shares with others the more. 1: RAM;
    1.2 is the authors' RAM+."""

    def results(self) -> dict[str, Any]:
        """What can change a checkpoint; RAM's settings only where it merges."""
        other = set[str]() if self.method == "ram" else {"threshold", "unique_scale"}
        return self.model_dump(exclude=other)


class Permutations(Section):
    """Every order of some phases, each an order of its own."""

    all: Annotated[list[Name], Field(min_length=2)]
    """Phases to permute; the order of `math` before `qa` is called `math_qa`."""


Order = (
    Annotated[list[Name], Field(min_length=1)]
    | Literal["recommended", "recommended_reverse", "cascade", "creative_last"]
    | Permutations
)


DEFAULT = "default"
"""The variant that is params.yaml as written."""


class EvaluationConfig(Section):
    """How a checkpoint is scored, on every task, dev and test."""

    changes_nothing = frozenset({"threads"})

    samples: Samples = 4
    """Answers sampled per problem; their mean is the main score, pass@k uses all."""
    temperature: float = Field(default=1.0, ge=0.01, le=100)
    """Of these answers. A small pretrained model is often far better below 1; `rl.temperature` is that of training."""
    answers: int = Field(default=8, ge=0, le=100_000)
    """Test problems of each task whose answers the table keeps, the most likely one and all samples: the page shows them, and
    `trainorder probe` reads them."""
    seed: Seed = 0
    """Sampling seed; the same numbers for every checkpoint, so that differences are paired."""
    ways: list[Piece] = Field(default_factory=list, max_length=100)
    """Further ways to use every checkpoint (trainorder/evaluation/ways/), whose values stand in the same long table:
    `[{majority: {k: 4}}, {pass_at: {k: 2}}, decompose, program, evidence, tiers]`. What they are: docs/how-to/evaluate.md."""
    harness: list[Annotated[str, Field(min_length=1, max_length=300)]] = Field(
        default_factory=list, max_length=64
    )
    """Tasks of lm-eval (extra `eval`) on every checkpoint: names and groups of lm-eval, or task files of your own
    (`mine/capitals.yaml`). They are never trained; the page shows them as base retention."""
    harness_limit: int | None = Field(default=None, ge=1, le=1_000_000)
    """Documents of each of these tasks, the first ones; null: all."""
    threads: Threads = 1
    """CPU threads, as in `rl.threads`."""

    def pieces(self) -> frozenset[tuple[str, str]]:
        """(slot, name) of the ways, for the fingerprint of evaluations."""
        return frozenset(
            ("ways", way if isinstance(way, str) else next(iter(way), "")) for way in self.ways
        )

    def results(self) -> dict[str, Any]:
        """What can change a table: of later keys only those that are not as usual, so that a new key changes no fingerprint."""
        usual = {"temperature": 1, "answers": 8, "ways": [], "harness": [], "harness_limit": None}
        plain = {key for key, value in usual.items() if getattr(self, key) == value}
        return self.model_dump(exclude=plain | self.changes_nothing)


class MeasureConfig(Section):
    """Statistics of the comparison."""

    bootstrap: int = Field(default=2000, ge=100, le=100_000)
    """Resamples of seeds and prompts behind every interval."""
    level: float = Field(default=0.95, gt=0.5, le=0.9999)
    """Coverage of the intervals."""
    seed: Seed = 0
    """Seed of the resampling."""
    looks: list[Annotated[int, Field(ge=1, le=10_000)]] = Field(
        default_factory=list, max_length=100
    )
    """Numbers of seeds at which the answer was looked at while seeds were added, as `trainorder run --until-settled` writes
    them: differences between arms then hold over all looks. Empty: one look, at the seeds that there are."""

    def results(self) -> dict[str, Any]:
        """What can change a measurement; the looks where there are any."""
        return self.model_dump(exclude=set() if self.looks else {"looks"})


class FlowConfig(Section):
    """How the Prefect flow runs the plan; changes speed, never results."""

    workers: int = Field(default=2, ge=1, le=64)
    """Nodes trained at the same time; workers x threads should not exceed the cores."""
    checkpoint_seconds: float = Field(default=60.0, ge=0, le=86_400)
    """Seconds of work between two step checkpoints of a stage: what a kill or a crash can cost. More where saving would
    take over 2 % of the time. 0: after every step."""
    pool: str | None = Field(default=None, min_length=1)
    """Prefect work pool whose workers train, judge and evaluate, each in a clone of its own (docs/how-to/share.md); `workers` is then how
    many stages they get at a time. It needs a Prefect server and a default DVC remote that all of them reach. Null: this folder."""
