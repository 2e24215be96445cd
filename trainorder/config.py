"""params.yaml as frozen objects: every key is explained here, every other key is refused.

Imports nothing heavy, so a typo is reported within the first second. What needs to know the tasks and the pieces of the RL
step (does an order name an existing phase? does `grpo` take this option?) is checked in `plan/check.py`, on top of this.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError

from trainorder.reading import (
    MAX_NODES,
    MAX_PARAMS,
    ParamsError,
    check_plain,
    did_you_mean,
    explain,
    found_at,
    read_yaml,
    shown,
)

NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


class Section(BaseModel):
    """Base of all sections: frozen, strict types, unknown keys refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )
    changes_nothing: ClassVar[frozenset[str]] = frozenset()
    """Keys that change how fast or how loud something runs, never what comes out."""

    def results(self) -> dict[str, Any]:
        """What can change a checkpoint or a score: stages depend on this, manifests record it."""
        return self.model_dump(exclude=set(self.changes_nothing))


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
Threads = Annotated[int, Field(ge=1, le=256)]

Piece = str | dict[str, dict[str, Any]]
"""A piece of the RL step: `grpo`, or with options `{clipped_surrogate: {clip_high: 0.28}}`."""


SOURCES = ("policy", "expert", "replay", "teacher")
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
ENGINE_OPTIONS: dict[str, dict[str, Any]] = {
    "reward": {"coef": Coef},
    "terms": {
        "coef": Coef,
        "weight": list[Piece],
        "reduction": Reduction | None,
        "denominator": Denominator | None,
        "source": Literal["policy", "expert", "replay", "teacher"] | None,
    },
}
"""Slot -> option that the engine gives all of its pieces -> its type. `source` are the rows that a term is of (null: all);
`weight` pieces multiply the method's weights for this term; null takes the method's `reduction` and `denominator`."""


IsolationLevel = Literal["process", "filtered", "namespaces"]
"""How far the sandbox is cut off, weakest first; see trainorder/rewards/sandbox_isolation.py."""


VOCABULARY = 1000
"""About how many tokens the data build's own tokenizer has."""


class PolicyConfig(Section):
    """The model that is trained."""

    path: str | None = None
    """Folder or hub name of a causal LM to start from; null builds a tiny Llama from scratch with the sizes below."""
    hidden_size: int = Field(default=64, ge=8, le=65_536)
    """Width of the tiny model."""
    num_layers: int = Field(default=3, ge=1, le=1000)
    """Layers of the tiny model."""
    num_heads: int = Field(default=2, ge=1, le=1024)
    """Attention heads of the tiny model; divides hidden_size."""
    mlp_size: int = Field(default=192, ge=8, le=262_144)
    """Inner width of the tiny model's SwiGLU."""
    max_positions: int = Field(default=192, ge=16, le=1 << 20)
    """Longest prompt plus completion the tiny model can see, tokens."""
    trust_remote_code: bool = False
    """True: run Python code that a model brings along (`auto_map` in its config.json). Recorded in the manifest."""

    def tiny_bytes(self, vocabulary: int = VOCABULARY) -> int:
        """Bytes of the tiny model's weights, in float32.

        >>> PolicyConfig(hidden_size=64, num_layers=3, mlp_size=192).tiny_bytes(500)
        768768
        """
        h = self.hidden_size
        per_layer = 4 * h * h + 3 * h * self.mlp_size + 2 * h
        return 4 * (vocabulary * h + self.num_layers * per_layer + h)


class TaskConfig(Section):
    """One learning task: which generator and verifier, how many problems, how long an answer may get."""

    kind: Name | None = None
    """Entry of trainorder/tasks/__init__.py::TASKS; null means the key itself. Two tasks may share a kind."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of that kind, the fields of its class (number range, distractors, ...)."""
    train: Count = 3000
    """Training problems. Generators of small worlds may hold fewer; the build then fails and says how many exist."""
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


class DataConfig(Section):
    """What build_data does beside the tasks' own numbers."""

    seed: Seed = 0
    """Seed of all problems and demonstrations; the same for every training seed, so that all seeds meet one test set."""


class SftConfig(Section):
    """Supervised warm-up from scratch until the skills that RL sharpens exist."""

    changes_nothing = frozenset({"threads"})

    steps: int = Field(default=750, ge=0, le=10_000_000)
    """Updates before the gate is asked for the first time; the learning rate decays over these. 0 with `policy.path`: RL
    begins at that model as it is."""
    extension: Steps = 200
    """Further updates, with a new decay, each time the gate is not met."""
    extension_lr_fraction: float = Field(default=0.3, ge=1e-6, le=1)
    """Extensions begin at this share of the peak learning rates: the full rate would undo what is learned."""
    max_steps: Steps = 1750
    """Updates after which a gate that is still shut stops the run with an error."""
    gate: dict[Name, Share] = Field(default_factory=dict)
    """Greedy dev accuracy each named task must reach: RL on a skill the base lacks destroys it. Empty: no gate."""
    batch_size: Batch = 64
    """Demonstrations per update."""
    drill_batch_size: int = Field(default=45, ge=0, le=65_536)
    """Drill lines per update."""
    optimizer: OptimizerName = "muon"
    """muon: Muon for the weight matrices of the layers, AdamW for the rest; half the steps when training from scratch."""
    lr: Rate = 1.5e-2
    """Peak learning rate of AdamW."""
    muon_lr: Rate = 2e-2
    """Peak learning rate of Muon; it follows the same schedule. Unused by adamw."""
    final_lr_fraction: Share = 0.05
    """The cosine decay ends at this share of lr."""
    warmup_steps: int = Field(default=20, ge=0, le=10_000_000)
    """Updates of linear warm-up."""
    betas: Betas = Field(default=[0.9, 0.98])
    """AdamW betas."""
    weight_decay: float = Field(default=0.01, ge=0, le=10)
    """AdamW weight decay."""
    max_grad_norm: Positive = 1.0
    """Gradient norm bound."""
    prompt_weight: float = Field(default=0.1, ge=0, le=1)
    """Weight of prompt tokens in the loss, against 1 for the completion."""
    micro_batches: Batch = 4
    """Parts of a batch, by length; more of them take less memory. Part of the result (rounding), unlike threads."""
    threads: Threads = 2
    """Micro-batches computed side by side; changes the time, never the checkpoint."""


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


class MethodConfig(Section):
    """The RL step as a row of named pieces (trainorder/rl/pieces/), in the order they run."""

    plan: list[Piece] = Field(default_factory=list)
    """Change what is asked before it is sampled: prompts, numbers of answers, temperatures, prefixes."""
    reward: list[Piece] = Field(default_factory=lambda: list[Piece](["graded"]))
    """Additive reward channels; `graded` is what the task's verifier or the judge paid."""
    edit: list[Piece] = Field(default_factory=list)
    """Drop, truncate or add rows, e.g. `dynamic_sampling`."""
    advantage: list[Piece] = Field(default_factory=lambda: list[Piece](["grpo"]), min_length=1)
    """First the estimator, then shapers."""
    weight: list[Piece] = Field(default_factory=list)
    """Token weights, multiplied together."""
    metric: list[Piece] = Field(default_factory=list)
    """Extra logged quantities; they change nothing."""
    terms: list[Piece] = Field(
        default_factory=lambda: list[Piece](["clipped_surrogate"]), min_length=1
    )
    """Loss terms, summed with their `coef` (default 1; a number or a schedule). Each may have a `reduction`, a
    `denominator`, more `weight` pieces, and a `source` (policy, expert, replay, teacher) of its own."""
    reduction: Reduction = "token"
    """How token losses become one number: mean over tokens, mean of sequence means, sum over batch x length, mean of prompt means."""
    denominator: Denominator = "mask"
    """Divide by all response tokens, or by the tokens that kept weight."""


class AlarmConfig(Section):
    """When a step looks like training that drifts off silently; alarms are shown and change nothing."""

    entropy_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Mean entropy below this share of the phase's start: the policy collapses onto few answers."""
    kl: float = Field(default=0.5, gt=0, le=1e9)
    """KL(sampler || trainer) per token above this: the rollouts are no longer the policy's own."""
    length_factor: float = Field(default=3.0, gt=1, le=1e9)
    """Mean length above this multiple of the phase's start, or below its inverse."""
    unscored: float = Field(default=0.25, ge=0, le=1)
    """Share of rollouts that could not be graded above this."""
    grad_norm: float = Field(default=100.0, gt=0, le=1e9)
    """Gradient norm before clipping above this."""
    credited: float = Field(default=0.0, ge=0, lt=1)
    """Share of rollouts with an advantage other than 0 at or below this: nothing is being learned."""
    patience: Steps = 3
    """Steps in a row beyond a bound before its alarm sounds."""


class RlConfig(Section):
    """Defaults of every RL phase; a phase may override any of them under its own `rl:`."""

    changes_nothing = frozenset({"alarms", "threads"})

    prompts_per_step: Batch = 16
    """Prompts of one step."""
    group_size: int = Field(default=8, ge=2, le=4096)
    """Rollouts per prompt. A lone rollout is its own baseline: zero advantage, nothing learned."""
    temperature: float = Field(default=1.0, ge=0.01, le=100)
    """Sampling temperature."""
    optimizer: OptimizerName = "adamw"
    """Fresh in every phase. muon: Muon for the weight matrices of the layers, AdamW for the rest; not with DeepSpeed."""
    lr: Rate = 3e-4
    """Learning rate of AdamW after warm-up, constant."""
    muon_lr: Rate = 1e-3
    """Learning rate of Muon (torch's default); it follows the same schedule. Unused by adamw."""
    warmup_steps: int = Field(default=5, ge=0, le=10_000_000)
    """Updates of linear warm-up at the start of every phase."""
    betas: Betas = Field(default=[0.9, 0.95])
    """AdamW betas."""
    weight_decay: float = Field(default=0.0, ge=0, le=10)
    """AdamW weight decay."""
    max_grad_norm: Positive = 1.0
    """Gradient norm bound."""
    updates_per_batch: Batch = 1
    """Optimiser updates on each step's rollouts; above 1 the batch is split by prompt and ratios leave 1."""
    micro_batch_tokens: int = Field(default=4096, ge=64, le=1 << 24)
    """Tokens per forward, padding included (a longer row is a forward of its own); bounds memory, never changes the result
    beyond rounding."""
    method: MethodConfig = Field(default_factory=MethodConfig)
    """The pieces of the step."""
    sampler: Piece = "weights"
    """Which task the next prompts come from, in a phase of several (trainorder/rl/samplers.py): `weights`, `dump`, ..."""
    curriculum: Piece = "together"
    """Which of the phase's tasks are open at a step (trainorder/rl/curricula.py): `together`, `{unlock: {...}}`, ..."""
    serial_tasks: bool = False
    """True: each step visits its tasks in random order, one optimiser update for each, instead of one for all."""
    min_judged_spread: float = Field(default=0.01, ge=0, le=1)
    """Rewards of a prompt's answers to a judged task that lie within less than this of each other count as equal: so small
    a difference is the judge's noise, which an advantage divided by the standard deviation turns into full credit.
    Rewards of verifiers are exact and have no floor. 0: every difference counts."""
    ema_decay: float = Field(default=0.99, ge=0, lt=1)
    """What a step leaves of the average of the weights, for pieces that compare the policy with it (model `ema`)."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """After an update whose loss, gradient or log-probabilities are not finite was refused: stop the phase, or go on without it."""
    alarms: AlarmConfig = Field(default_factory=AlarmConfig)
    """Bounds of the alarms; a changed bound retrains nothing and holds from the next training on."""
    task_lr: dict[Name, Positive] = Field(default_factory=dict)
    """Task -> factor on lr, 1 where not named. An update on one task's rows takes it as it is; one on rows of several
    tasks multiplies each task's share of the loss, which AdamW feels as a weight among tasks, not as a step size."""
    threads: Threads = 1
    """CPU threads of a phase: micro-batches and batches of rollouts of a small Llama side by side, which changes no byte;
    other models use them inside torch's operations. With one each, two phases run side by side on two cores."""

    def pieces(self) -> frozenset[tuple[str, str]]:
        """(slot, name) of all pieces that these settings name, sampler, curriculum and weights of terms included."""
        slots: dict[str, list[Piece]] = {"sampler": [self.sampler], "curriculum": [self.curriculum]}
        slots |= {k: v for k, v in self.method if isinstance(v, list)}
        terms = [term for term in self.method.terms if isinstance(term, dict)]
        own = [p for term in terms for options in term.values() for p in options.get("weight", [])]
        slots["weight"] = [*slots["weight"], *own]
        return frozenset(
            (slot, name)
            for slot, pieces in slots.items()
            for piece in pieces
            for name in ([piece] if isinstance(piece, str) else piece)
        )


class RolloutConfig(Section):
    """The engine that samples in RL phases, for judges and in evaluations. The gate of SFT uses the torch engine."""

    backend: Literal["torch", "vllm"] = "torch"
    """torch: in this process with the live weights. vllm: in this process too, weights pushed after every update."""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision vLLM computes in; auto is training.dtype. The torch engine samples in fp32."""
    max_model_len: int | None = Field(default=None, ge=16, le=1 << 20)
    """Longest prompt plus answer vLLM makes room for, tokens; null takes the model's own limit."""
    gpu_memory_share: float = Field(default=0.4, ge=0.01, lt=1)
    """Share of a GPU's memory for vLLM's weights and cache; the trainer needs the rest. Changes no result."""
    cpu_cache_gib: int = Field(default=1, ge=1, le=16_384)
    """Memory for vLLM's key/value cache where it runs on the CPU. Changes no result."""

    def results(self) -> dict[str, Any]:
        """What can change a checkpoint; vLLM's settings only where it samples."""
        if self.backend == "torch":
            return {"backend": "torch"}
        return self.model_dump(exclude={"gpu_memory_share", "cpu_cache_gib"})


class LoraConfig(Section):
    """Low-rank adapters (arXiv:2106.09685, by peft) in place of full weights; a node is its adapter on its base's weights."""

    rank: Batch = 16
    """Rank of the adapters."""
    alpha: Positive = 32.0
    """Their output is multiplied by alpha / rank."""
    target: list[str] | Literal["all-linear"] = "all-linear"
    """Module names that get an adapter, e.g. [q_proj, v_proj]; all-linear takes every linear layer but the head."""


class TrainingConfig(Section):
    """How RL phases compute updates. `device` and `dtype` hold for SFT, judges and evaluation too."""

    backend: Literal["local", "deepspeed"] = "local"
    """local: one process, plain torch. deepspeed: ZeRO over several ranks, started by the stage."""
    ranks: Threads = 1
    """Processes of the deepspeed backend on this machine, one per GPU; with a hostfile its slots count instead."""
    zero_stage: Literal[1, 2, 3] = 2
    """What ZeRO splits over the ranks: 1 optimiser state, 2 gradients too, 3 weights too (arXiv:1910.02054)."""
    hostfile: str | None = None
    """DeepSpeed hostfile (lines `host slots=8`): train on these machines, started by the deepspeed launcher."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """bf16: forward and backward in bfloat16 (autocast); weights, gradients and optimiser state stay fp32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where models compute; auto takes a GPU if there is one."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time, the same gradient."""
    lora: LoraConfig | None = None
    """Train adapters instead of all weights; null trains all."""

    def results(self) -> dict[str, Any]:
        """What can change a checkpoint; ZeRO's settings only where it trains."""
        machine = {"hostfile", "device", "gradient_checkpointing"}
        zero = {"ranks", "zero_stage"} if self.backend == "local" else set[str]()
        return self.model_dump(exclude=machine | zero)


class PhaseConfig(Section):
    """One named stretch of training on a weighted set of tasks."""

    kind: Literal["structured", "creative", "mixed"]
    """structured: all tasks have verifiers; creative: all are judged; mixed: any."""
    tasks: dict[Name, Positive] = Field(min_length=1)
    """Task -> weight; each step's prompts are split in proportion."""
    steps: Steps
    """RL steps."""
    rl: dict[str, Any] = Field(default_factory=dict)
    """Overrides of the `rl` section for this phase, e.g. `{lr: 1.5e-4}`; nested sections merge key by key."""


class PhaseOverride(Section):
    """What a variant changes in one phase."""

    steps: Steps | None = None
    """Another number of steps; null keeps the phase's own."""
    tasks: dict[Name, Positive] | None = Field(default=None, min_length=1)
    """Other tasks and weights, in place of the phase's own; null keeps them."""
    rl: dict[str, Any] = Field(default_factory=dict)
    """Overrides on top of the phase's own `rl`."""


class VariantConfig(Section):
    """The whole plan once more under other settings of the RL phases; data, SFT and judges are shared."""

    rl: dict[str, Any] = Field(default_factory=dict)
    """Overrides of the `rl` section, e.g. `{lr: 1.5e-4}`. A phase that sets the same key itself keeps its own."""
    phases: dict[Name, PhaseOverride] = Field(default_factory=dict)
    """Phase -> what is different there."""


class MergeConfig(Section):
    """A checkpoint merged from others, without training."""

    of: Literal["singles"] = "singles"
    """Which checkpoints: the single-phase nodes, each trained from the base on one phase of the orders."""
    method: Literal["average", "task_arithmetic", "ties", "dare", "dare_ties"]
    """average of weights; base + scale * sum of deltas; TIES (arXiv 2306.01708); DARE (arXiv 2311.03099); DARE's random
    deltas merged by TIES' elected signs."""
    density: float = Field(default=1.0, ge=1e-6, le=1)
    """Share of each delta's entries kept by TIES (largest) and DARE (random)."""
    trim: Literal["all", "tensor"] = "all"
    """What TIES takes the largest entries of: all tensors of a delta together, as in its paper, or each tensor by itself."""
    scale: Positive | Annotated[list[Positive], Field(min_length=1, max_length=100)] = 1.0
    """Factor on the merged delta; average ignores it. Of a list, the one with the best mean dev score is kept."""
    seed: Seed = 0
    """Seed of DARE's random mask."""


class EvaluationConfig(Section):
    """How a checkpoint is scored, on every task, dev and test."""

    changes_nothing = frozenset({"threads"})

    samples: int = Field(default=4, ge=1, le=1024)
    """Answers sampled per problem at temperature 1; their mean is the main score, pass@k uses all."""
    seed: Seed = 0
    """Sampling seed; the same numbers for every checkpoint, so that differences are paired."""
    threads: Threads = 1
    """CPU threads, as in `rl.threads`."""


class MeasureConfig(Section):
    """Statistics of the comparison."""

    bootstrap: int = Field(default=2000, ge=100, le=100_000)
    """Resamples of seeds and prompts behind every interval."""
    level: float = Field(default=0.95, gt=0.5, le=0.9999)
    """Coverage of the intervals."""
    seed: Seed = 0
    """Seed of the resampling."""


class FlowConfig(Section):
    """How the Prefect flow runs the plan; changes speed, never results."""

    workers: int = Field(default=2, ge=1, le=64)
    """Nodes trained at the same time; workers x threads should not exceed the cores."""
    checkpoint_seconds: float = Field(default=60.0, ge=0, le=86_400)
    """Seconds of work between two step checkpoints of a stage: what a kill or a crash can cost. More where saving would
    take over 2 % of the time. 0: after every step."""


class Permutations(Section):
    """Every order of some phases, each an order of its own."""

    all: Annotated[list[Name], Field(min_length=2)]
    """Phases to permute; the order of `math` before `qa` is called `math_qa`."""


Order = (
    Annotated[list[Name], Field(min_length=1)]
    | Literal["recommended", "recommended_reverse"]
    | Permutations
)
DEFAULT = "default"
"""The variant that is params.yaml as written."""


class Params(Section):
    """The whole of params.yaml."""

    policy: PolicyConfig = Field(default_factory=PolicyConfig)
    """The model."""
    tasks: dict[Name, TaskConfig] = Field(min_length=1)
    """Task name -> its settings. All tasks are evaluated; those in no phase are held out."""
    data: DataConfig = Field(default_factory=DataConfig)
    """Data build."""
    sft: SftConfig = Field(default_factory=SftConfig)
    """SFT warm-up."""
    judge: JudgeConfig = Field(default_factory=JudgeConfig)
    """Preference models."""
    rl: RlConfig = Field(default_factory=RlConfig)
    """RL defaults."""
    rollout: RolloutConfig = Field(default_factory=RolloutConfig)
    """What samples: in RL phases, for judges and in evaluations."""
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    """What computes their updates."""
    phases: dict[Name, PhaseConfig] = Field(min_length=1)
    """Phase name -> what it trains."""
    orders: dict[Name, Order] = Field(min_length=1)
    """Order name -> phases in sequence, or `recommended` / `recommended_reverse`: filled in from the measured transfer."""
    merges: dict[Name, MergeConfig] = Field(default_factory=dict)
    """Merge name -> how to merge."""
    variants: dict[Name, VariantConfig] = Field(default_factory=dict)
    """Variant name -> overrides; every order, single and merge is also trained under each. Comparisons stay within one."""
    seeds: list[Seed] = Field(default_factory=lambda: [0], min_length=1)
    """Training seeds. Each has its own SFT warm-up, so replicates never share a checkpoint."""
    allow_unequal_budgets: bool = False
    """True: compare orders although they differ in steps or prompts."""
    grading: GradingConfig = Field(default_factory=GradingConfig)
    """Bounds on verifiers, judges and the sandbox."""
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    """Scoring."""
    measure: MeasureConfig = Field(default_factory=MeasureConfig)
    """Statistics."""
    flow: FlowConfig = Field(default_factory=FlowConfig)
    """Orchestration."""

    def engine(self) -> dict[str, Any]:
        """The section `rollout` for what samples without training: nothing where the torch engine does."""
        return {} if self.rollout.backend == "torch" else {"rollout": self.rollout.results()}

    def phase_rl(self, phase: str) -> RlConfig:
        """The RL settings of one phase: the `rl` section with the phase's own overrides on top."""
        return phase_rl(self.rl, self.phases[phase])

    def variant(self, name: str) -> Params:
        """These params under a variant's overrides; `default` changes nothing.

        Raises:
            ParamsError: no such variant.
        """
        if name == DEFAULT:
            return self
        if name not in self.variants:
            names = [DEFAULT, *self.variants]
            raise ParamsError(
                f"no variant {name!r}; there are {', '.join(names)}{did_you_mean(name, names)}"
            )
        chosen = self.variants[name]
        phases = dict(self.phases)
        for phase, over in chosen.phases.items():
            old = phases[phase]
            changes = {k: v for k, v in (("steps", over.steps), ("tasks", over.tasks)) if v}
            phases[phase] = old.model_copy(update={**changes, "rl": _merged(old.rl, over.rl)})
        rl = RlConfig.model_validate(_merged(self.rl.model_dump(), chosen.rl))
        return self.model_copy(update={"rl": rl, "phases": phases})

    def variant_names(self) -> list[str]:
        """`default`, then the others."""
        return [DEFAULT, *self.variants]


def phase_rl(rl: RlConfig, phase: PhaseConfig) -> RlConfig:
    """`rl` with the phase's overrides; a bad override is an error under `rl`.

    >>> phase = PhaseConfig(kind="structured", tasks={"math": 1.0}, steps=1, rl={"lr": 1e-4})
    >>> phase_rl(RlConfig(), phase).lr
    0.0001
    """
    return RlConfig.model_validate(_merged(rl.model_dump(), phase.rl))


PARAMS_VARIABLE = "TRAINORDER_PARAMS"
"""Environment variable naming another file than params.yaml; `trainorder run --params` sets it for all its stages."""


def params_file() -> Path:
    """params.yaml, or the file that TRAINORDER_PARAMS names."""
    return Path(os.environ.get(PARAMS_VARIABLE) or "params.yaml")


def load_params(path: Path | str | None = None) -> Params:
    """Read and check params.yaml, or the file that takes its place (`params_file`).

    Raises:
        ParamsError: the file is missing, is not YAML, or holds an unknown key or a bad value.
    """
    file = params_file() if path is None else Path(path)
    return parse_params(read_yaml(file, MAX_PARAMS, MAX_NODES), source=str(file))


def remote_code_allowed() -> bool:
    """Whether params.yaml of this folder sets `policy.trust_remote_code`; without a params.yaml, no."""
    path = params_file()
    return found_at(path) == "file" and load_params(path).policy.trust_remote_code


def parse_params(data: Any, source: str = "params.yaml") -> Params:
    """Check the content of params.yaml; see `load_params`."""
    if not isinstance(data, dict):
        raise ParamsError(
            f"{source} must hold keys like `phases:` and `orders:`, got {type(data).__name__}"
        )
    check_plain(source, data)
    try:
        params = Params.model_validate(data)
        for name, phase in params.phases.items():
            _parse_phase_overrides(f"phases.{name}.rl", params.rl, phase)
        for name, variant in params.variants.items():
            _parse_variant(name, variant, params)
    except ValidationError as error:
        raise ParamsError("\n".join(explain(source, Params, e) for e in error.errors())) from None
    except ParamsError as error:
        raise ParamsError(f"{source}: {error}") from None
    return params


def _parse_phase_overrides(where: str, rl: RlConfig, phase: PhaseConfig) -> None:
    try:
        phase_rl(rl, phase)
    except ValidationError as error:
        text = "; ".join(explain(where, RlConfig, e) for e in error.errors())
        raise ParamsError(text) from None


def _parse_variant(name: str, variant: VariantConfig, params: Params) -> None:
    where, phases = f"variants.{name}", sorted(params.phases)
    if name == DEFAULT:
        raise ParamsError(f"{where}: {DEFAULT!r} is the params as written; take another name")
    for phase in variant.phases:
        if phase not in params.phases:
            raise ParamsError(
                f"{where}.phases: no phase {phase!r}; there are {', '.join(phases)}"
                f"{did_you_mean(phase, phases)}"
            )
    whole = PhaseConfig(kind="mixed", tasks={"any": 1.0}, steps=1, rl=variant.rl)
    _parse_phase_overrides(f"{where}.rl", params.rl, whole)
    changed = params.variant(name)
    for phase, config in changed.phases.items():
        _parse_phase_overrides(f"{where}.phases.{phase}.rl", changed.rl, config)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _merged(result[key], value) if both else value
    return result
