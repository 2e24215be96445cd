"""params.yaml as frozen objects: every key is explained here, every other key is refused.

Imports neither torch nor any part of trainorder, so a typo is reported within the first second. What needs to know the
tasks and the pieces of the RL step (does an order name an existing phase? does `grpo` take this option?) is checked in
`plan.py`, on top of this.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

NAME = re.compile(r"[a-z][a-z0-9_]*")


class ParamsError(ValueError):
    """params.yaml asks for something impossible; the text names the key, what is allowed and what to do."""


class Section(BaseModel):
    """Base of all sections: frozen, strict types, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


def _check_name(name: Any) -> str:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(f"name {name!r} is not allowed: use a-z, 0-9 and _, beginning with a letter")
    return name


Name = Annotated[str, BeforeValidator(_check_name)]
"""Names become file names and DVC stage names, where other characters break every dvc command."""

Piece = str | dict[str, dict[str, Any]]
"""A piece of the RL step: `grpo`, or with options `{clipped_surrogate: {clip_high: 0.28}}`."""


class PolicyConfig(Section):
    """The model that is trained."""

    path: str | None = None
    """Folder or hub name of a causal LM to start from; null builds a tiny Llama from scratch with the sizes below."""
    hidden_size: int = Field(default=64, ge=8)
    """Width of the tiny model."""
    num_layers: int = Field(default=3, ge=1)
    """Layers of the tiny model."""
    num_heads: int = Field(default=2, ge=1)
    """Attention heads of the tiny model; divides hidden_size."""
    mlp_size: int = Field(default=192, ge=8)
    """Inner width of the tiny model's SwiGLU."""
    max_positions: int = Field(default=192, ge=16)
    """Longest prompt plus completion the tiny model can see, tokens."""


class TaskConfig(Section):
    """One learning task: which generator and verifier, how many problems, how long an answer may get."""

    kind: Name | None = None
    """Entry of trainorder/tasks/__init__.py::TASKS; null means the key itself. Two tasks may share a kind."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of that kind, the fields of its class (number range, distractors, ...)."""
    train: int = Field(default=3000, ge=1)
    """Training problems. Generators of small worlds may hold fewer; the build then fails and says how many exist."""
    dev: int = Field(default=256, ge=1)
    """Problems that choose the order."""
    test: int = Field(default=256, ge=1)
    """Problems that are only reported."""
    max_new_tokens: int = Field(default=48, ge=1)
    """Tokens an answer may have, in training and in evaluation."""
    demonstrations: int = Field(default=4000, ge=0)
    """Noisy demonstrations written for the SFT warm-up; 0 leaves the task out of it."""
    drills: int = Field(default=0, ge=0)
    """Clean textbook lines written for the SFT warm-up; 0 where the task offers none."""


class DataConfig(Section):
    """What build_data does beside the tasks' own numbers."""

    seed: int = Field(default=0, ge=0)
    """Seed of all problems and demonstrations; the same for every training seed, so that all seeds meet one test set."""


class SftConfig(Section):
    """Supervised warm-up from scratch until the skills that RL sharpens exist."""

    steps: int = Field(default=750, ge=1)
    """Updates before the gate is asked for the first time; the learning rate decays over these."""
    extension: int = Field(default=200, ge=1)
    """Further updates, with a new decay, each time the gate is not met."""
    extension_lr_fraction: float = Field(default=0.3, gt=0, le=1)
    """Extensions begin at this share of the peak learning rates: the full rate would undo what is learned."""
    max_steps: int = Field(default=1750, ge=1)
    """Updates after which a gate that is still shut stops the run with an error."""
    gate: dict[Name, float] = Field(default_factory=dict)
    """Greedy dev accuracy each named task must reach: RL on a skill the base lacks destroys it. Empty: no gate."""
    batch_size: int = Field(default=64, ge=1)
    """Demonstrations per update."""
    drill_batch_size: int = Field(default=45, ge=0)
    """Drill lines per update."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """muon: Muon for the weight matrices of the layers, AdamW for the rest; half the steps when training from scratch."""
    lr: float = Field(default=1.5e-2, gt=0)
    """Peak learning rate of AdamW."""
    muon_lr: float = Field(default=2e-2, gt=0)
    """Peak learning rate of Muon; it follows the same schedule. Unused by adamw."""
    final_lr_fraction: float = Field(default=0.05, ge=0, le=1)
    """The cosine decay ends at this share of lr."""
    warmup_steps: int = Field(default=20, ge=0)
    """Updates of linear warm-up."""
    betas: list[float] = Field(default=[0.9, 0.98], min_length=2, max_length=2)
    """AdamW betas."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradient norm bound."""
    prompt_weight: float = Field(default=0.1, ge=0, le=1)
    """Weight of prompt tokens in the loss, against 1 for the completion."""
    micro_batches: int = Field(default=4, ge=1)
    """Parts of a batch, by length; more of them take less memory. Part of the result (rounding), unlike threads."""
    threads: int = Field(default=2, ge=1)
    """Micro-batches computed side by side; changes the time, never the checkpoint."""


class JudgeConfig(Section):
    """Two Bradley-Terry preference models: `reward` pays the creative phases, `evaluation` is used in no training."""

    task: Name = "creative"
    """The task whose answers are compared."""
    prompts: int = Field(default=600, ge=1)
    """Prompts whose answers are compared, per judge; no prompt serves both judges."""
    answers: int = Field(default=4, ge=2)
    """Answers per prompt; the annotator compares all of them with one another: 4 answers, 6 comparisons."""
    heldout_prompts: int = Field(default=150, ge=1)
    """Further prompts per judge, on which its agreement with the annotator is measured."""
    corrupted: float = Field(default=0.30, ge=0, le=1)
    """Share of answers that are damaged samples (stutter, cut, words swapped): what RL finds if nobody forbids it."""
    flat: float = Field(default=0.15, ge=0, le=1)
    """Share of answers with all words equally likely: a judge knows only words it has seen."""
    annotator_sharpness: float = Field(default=12.0, gt=0)
    """P(annotator prefers a to b) = sigmoid(sharpness * (taste(a) - taste(b)))."""
    epochs: int = Field(default=4, ge=1)
    """Passes over the pairs."""
    batch_size: int = Field(default=16, ge=1)
    """Prompts per update, with all their comparisons."""
    lr: float = Field(default=2e-3, gt=0)
    """Peak learning rate, decayed linearly to zero."""
    weight_decay: float = Field(default=0.05, ge=0)
    """AdamW weight decay."""
    min_agreement: float = Field(default=0.70, ge=0.5, le=1)
    """Held-out agreement with the annotator below which the stage fails: a bad judge ruins creative RL."""
    threads: int = Field(default=2, ge=1)
    """Judges trained side by side, one CPU thread each; changes the time, never the result."""


class MethodConfig(Section):
    """The RL step as a row of named pieces (trainorder/rl/pieces.py), in the order they run."""

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
    terms: list[Piece] = Field(default_factory=lambda: list[Piece](["clipped_surrogate"]), min_length=1)
    """Loss terms, summed with their `coef` (default 1)."""
    reduction: Literal["token", "sequence", "constant", "prompt"] = "token"
    """How token losses become one number: mean over tokens, mean of sequence means, sum over batch x length, mean of prompt means."""
    denominator: Literal["mask", "weight"] = "mask"
    """Divide by all response tokens, or by the tokens that kept weight."""


class RlConfig(Section):
    """Defaults of every RL phase; a phase may override any of them under its own `rl:`."""

    prompts_per_step: int = Field(default=16, ge=1)
    """Prompts of one step."""
    group_size: int = Field(default=8, ge=2)
    """Rollouts per prompt. A lone rollout is its own baseline: zero advantage, nothing learned."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature."""
    lr: float = Field(default=3e-4, gt=0)
    """Learning rate after warm-up, constant (AdamW, fresh in every phase)."""
    warmup_steps: int = Field(default=5, ge=0)
    """Updates of linear warm-up at the start of every phase."""
    betas: list[float] = Field(default=[0.9, 0.95], min_length=2, max_length=2)
    """AdamW betas."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradient norm bound."""
    updates_per_batch: int = Field(default=1, ge=1)
    """Optimiser updates on each step's rollouts; above 1 the batch is split by prompt and ratios leave 1."""
    micro_batch_tokens: int = Field(default=2048, ge=64)
    """Padded tokens per forward; bounds memory, never changes the result beyond rounding."""
    method: MethodConfig = Field(default_factory=MethodConfig)
    """The pieces of the step."""
    threads: int = Field(default=1, ge=1)
    """CPU threads of a phase; with one each, two phases run side by side on two cores."""


class PhaseConfig(Section):
    """One named stretch of training on a weighted set of tasks."""

    kind: Literal["structured", "creative", "mixed"]
    """structured: all tasks have verifiers; creative: all are judged; mixed: any."""
    tasks: dict[Name, float] = Field(min_length=1)
    """Task -> weight; each step's prompts are split in proportion."""
    steps: int = Field(ge=1)
    """RL steps."""
    rl: dict[str, Any] = Field(default_factory=dict)
    """Overrides of the `rl` section for this phase, e.g. `{lr: 1.5e-4}`; nested sections merge key by key."""


class MergeConfig(Section):
    """A checkpoint merged from others, without training."""

    of: Literal["singles"] = "singles"
    """Which checkpoints: the single-phase nodes, each trained from the base on one phase of the orders."""
    method: Literal["average", "task_arithmetic", "ties", "dare"]
    """average of weights; base + scale * sum of deltas; TIES (arXiv 2306.01708); DARE (arXiv 2311.03099)."""
    density: float = Field(default=1.0, gt=0, le=1)
    """Share of each delta's entries kept by TIES (largest) and DARE (random)."""
    scale: float = Field(default=1.0, gt=0)
    """Factor on the merged delta; average ignores it."""
    seed: int = Field(default=0, ge=0)
    """Seed of DARE's random mask."""


class EvaluationConfig(Section):
    """How a checkpoint is scored, on every task, dev and test."""

    samples: int = Field(default=4, ge=1)
    """Answers sampled per problem at temperature 1; their mean is the main score, pass@k uses all."""
    seed: int = Field(default=0, ge=0)
    """Sampling seed; the same numbers for every checkpoint, so that differences are paired."""
    threads: int = Field(default=1, ge=1)
    """CPU threads."""


class MeasureConfig(Section):
    """Statistics of the comparison."""

    bootstrap: int = Field(default=2000, ge=100)
    """Resamples of seeds and prompts behind every interval."""
    level: float = Field(default=0.95, gt=0.5, lt=1)
    """Coverage of the intervals."""
    seed: int = Field(default=0, ge=0)
    """Seed of the resampling."""


class FlowConfig(Section):
    """How the Prefect flow runs the plan; changes speed, never results."""

    workers: int = Field(default=2, ge=1)
    """Nodes trained at the same time; workers x threads should not exceed the cores."""


Order = Annotated[list[Name], Field(min_length=1)] | Literal["recommended", "recommended_reverse"]


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
    phases: dict[Name, PhaseConfig] = Field(min_length=1)
    """Phase name -> what it trains."""
    orders: dict[Name, Order] = Field(min_length=1)
    """Order name -> phases in sequence, or `recommended` / `recommended_reverse`: filled in from the measured transfer."""
    merges: dict[Name, MergeConfig] = Field(default_factory=dict)
    """Merge name -> how to merge."""
    seeds: list[int] = Field(default_factory=lambda: [0], min_length=1)
    """Training seeds. Each has its own SFT warm-up, so replicates never share a checkpoint."""
    allow_unequal_budgets: bool = False
    """True: compare orders although they differ in steps or prompts."""
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    """Scoring."""
    measure: MeasureConfig = Field(default_factory=MeasureConfig)
    """Statistics."""
    flow: FlowConfig = Field(default_factory=FlowConfig)
    """Orchestration."""

    def phase_rl(self, phase: str) -> RlConfig:
        """The RL settings of one phase: the `rl` section with the phase's own overrides on top."""
        return phase_rl(self.rl, self.phases[phase])


def phase_rl(rl: RlConfig, phase: PhaseConfig) -> RlConfig:
    """`rl` with the phase's overrides; a bad override is an error under `rl`.

    >>> phase = PhaseConfig(kind="structured", tasks={"math": 1.0}, steps=1, rl={"lr": 1e-4})
    >>> phase_rl(RlConfig(), phase).lr
    0.0001
    """
    return RlConfig.model_validate(_merged(rl.model_dump(), phase.rl))


def load_params(path: Path | str = "params.yaml") -> Params:
    """Read and check params.yaml.

    Raises:
        ParamsError: the file is missing, is not YAML, or holds an unknown key or a bad value.
    """
    return parse_params(read_yaml(Path(path)), source=str(path))


def read_yaml(path: Path) -> Any:
    """YAML 1.2 as DVC reads it (`3e-4` is a number, a repeated key is an error)."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    if not path.is_file():
        raise ParamsError(f"{path} not found: run this in the project folder, where params.yaml lies")
    try:
        return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path} is not valid YAML: {error}") from None


def parse_params(data: Any, source: str = "params.yaml") -> Params:
    """Check the content of params.yaml; see `load_params`."""
    if not isinstance(data, dict):
        raise ParamsError(f"{source} must hold keys like `phases:` and `orders:`, got {type(data).__name__}")
    try:
        params = Params.model_validate(data)
        for name, phase in params.phases.items():
            _parse_phase_overrides(name, params.rl, phase)
    except ValidationError as error:
        raise ParamsError("\n".join(_explain(source, Params, data, e) for e in error.errors())) from None
    except ParamsError as error:
        raise ParamsError(f"{source}: {error}") from None
    return params


def _parse_phase_overrides(name: str, rl: RlConfig, phase: PhaseConfig) -> None:
    try:
        phase_rl(rl, phase)
    except ValidationError as error:
        merged = _merged(rl.model_dump(), phase.rl)
        text = "; ".join(_explain(f"phases.{name}.rl", RlConfig, merged, e) for e in error.errors())
        raise ParamsError(text) from None


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _merged(result[key], value) if both else value
    return result


def did_you_mean(word: str, allowed: list[str]) -> str:
    """` (did you mean 'x'?)` for the nearest allowed word, or nothing.

    >>> did_you_mean("ordres", ["orders", "phases"])
    " (did you mean 'orders'?)"
    """
    near = difflib.get_close_matches(str(word), allowed, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _explain(source: str, model: type[BaseModel], data: Any, error: Any) -> str:
    loc = [part for part in error["loc"] if _is_data_key(part)]
    where = f"{source}: " + ".".join(map(str, loc)) if loc else source
    if error["type"] == "extra_forbidden":
        allowed = sorted(_fields_at(model, loc[:-1]))
        return f"{where}: unknown key; allowed: {', '.join(allowed)}{did_you_mean(str(loc[-1]), allowed)}"
    if error["type"] == "missing":
        return f"{where}: this key is required"
    message = error["msg"].removeprefix("Value error, ")
    return f"{where}: {message[0].lower()}{message[1:]}, got {error['input']!r}"


def _is_data_key(part: Any) -> bool:
    return isinstance(part, int) or not re.search(r"[\[\(]|^(str|literal|list|dict)$", str(part))


def _fields_at(model: type[BaseModel], loc: list[Any]) -> dict[str, FieldInfo]:
    """The fields of the section that `loc` leads to, walking through dicts of sections."""
    current: Any = model
    for part in loc:
        if isinstance(current, type) and issubclass(current, BaseModel):
            current = current.model_fields[part].annotation
        else:
            current = get_args(current)[-1]
    return current.model_fields if isinstance(current, type) and issubclass(current, BaseModel) else {}
