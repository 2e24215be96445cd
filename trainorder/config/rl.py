"""Sections about the RL step: the pieces of the method, sampling, rates, alarms."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from trainorder.config.presets import preset
from trainorder.config.values import (
    Batch,
    Betas,
    Denominator,
    GoldText,
    Name,
    OptimizerName,
    Piece,
    Positive,
    Rate,
    Reduction,
    Section,
    Share,
    Steps,
    Threads,
)


class MethodConfig(Section):
    """The RL step as a row of named pieces (trainorder/rl/pieces/), in the order they run.

    `preset: NAME` stands for a published method (`trainorder methods`); keys beside it replace the preset's own.
    """

    plan: list[Piece] = Field(default_factory=list)
    """Change what is asked before it is sampled: prompts, numbers of answers, temperatures, prefixes."""
    reward: list[Piece] = Field(default_factory=lambda: list[Piece](["graded"]))
    """Additive reward channels; `graded` is the reward of the task's verifier or judge."""
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
    """KL(sampler || trainer) per token (`rl/kl_old`) above this: the rollouts are no longer the policy's own."""
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


class AverageConfig(Section):
    """The weights of the last steps of a phase as one checkpoint (arXiv:2511.18903)."""

    last: int = Field(default=6, ge=2, le=1000)
    """Steps whose weights are averaged, the phase's last one among them; fewer where the phase has fewer."""
    every: Steps = 1
    """Steps from one to the next."""
    kind: Literal["mean", "ema"] = "mean"
    """mean: all count alike; ema: from the first of them on, average = alpha x weights + (1 - alpha) x average."""
    alpha: Share = 0.2
    """Of `ema`."""


class ModelFolder(Section):
    """A model that is no node of the plan."""

    path: str
    """What `policy.path` could be: a folder, a GGUF file, package:NAME or a name on the hub."""


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
    """Learning rate of AdamW after warm-up, constant unless `lr_end` says otherwise."""
    lr_end: Share = 1.0
    """Share of the learning rates that is left at the phase's last step, on a line from its first: 1 constant, .33 gentle, 0 none."""
    average: AverageConfig | None = None
    """The node is the average of the weights after the phase's last steps instead of the last ones alone; not with DeepSpeed. A
    constant rate with it takes the place of a decay (arXiv:2511.18903)."""
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
    items: Piece = "shuffled"
    """Which problem of a task comes next (item samplers, trainorder/rl/pieces/item_*.py): `shuffled`, `cures`, `{in_order: {by: length}}`, ..."""
    inherit_items: bool = False
    """True: an item sampler begins with what the parent's phase knew of problems (visits, grades), which such a phase leaves in
    its node as problems.json; false: with nothing."""
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
    teacher: str | ModelFolder | None = None
    """Frozen model that pieces of distillation compare with or ask: a node of the plan, `s{seed}--math` with the seed of the
    phase's own node, or `{path: FOLDER}`. It has the policy's vocabulary."""
    informed_prompt: GoldText = "{prompt}\nReference solution: {gold}"
    """What a model that reads the gold text is asked (`reference+gold`, `teacher+gold`): `{prompt}` is what the policy was
    asked, `{gold}` the problem's gold text."""
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

    @model_validator(mode="before")
    @classmethod
    def _without_presets(cls, data: Any) -> Any:
        return expanded(data)

    def teacher_node(self, seed: int) -> str | None:
        """The node of the plan that is the teacher of a phase's node of this seed, if it is one.

        >>> RlConfig(teacher="s{seed}--math").teacher_node(1)
        's1--math'
        """
        if not isinstance(self.teacher, str):
            return None
        return self.teacher.replace("{seed}", str(seed))

    def pieces(self) -> frozenset[tuple[str, str]]:
        """(slot, name) of all pieces that these settings name, samplers, curriculum and weights of terms included."""
        slots: dict[str, list[Piece]] = {"sampler": [self.sampler], "curriculum": [self.curriculum]}
        slots["items"] = [self.items]
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


def expanded(rl: Any) -> Any:
    """Settings of `rl` as they are, or with a method's preset replaced by what it stands for.

    Keys beside `preset`, and other keys of these settings, are kept; keys of `method` that neither gives have their
    defaults, so that an override by a preset is a whole method.

    >>> found = expanded({"lr": 0.1, "method": {"preset": "gspo", "reduction": "token"}})
    >>> found["method"]["terms"], found["method"]["reduction"], found["updates_per_batch"]
    (['gspo'], 'token', 4)

    Raises:
        ParamsError: there is no such preset.
    """
    method = rl.get("method") if isinstance(rl, dict) else None
    if not isinstance(method, dict) or "preset" not in method:
        return rl
    chosen = preset(method["preset"])
    given = {key: value for key, value in method.items() if key != "preset"}
    return {
        **chosen.settings,
        **rl,
        "method": {**MethodConfig().model_dump(), **chosen.method, **given},
    }
