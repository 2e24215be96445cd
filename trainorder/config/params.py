"""The whole of params.yaml: read, checked, and with the overrides of a variant or a phase."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from trainorder import paths
from trainorder.config.experiment import (
    DEFAULT,
    EvaluationConfig,
    FlowConfig,
    MeasureConfig,
    MergeConfig,
    Order,
    PhaseConfig,
    VariantConfig,
)
from trainorder.config.judges import (
    ROLES,
    AnyJudgeConfig,
    JudgeConfig,
    Role,
    expanded,
    having,
    known,
    parse,
)
from trainorder.config.model import PolicyConfig, RolloutConfig, SftConfig, TrainingConfig
from trainorder.config.rl import RlConfig
from trainorder.config.rl import expanded as with_preset
from trainorder.config.tasks import DataConfig, GradingConfig, TaskConfig
from trainorder.config.values import (
    Name,
    Section,
    Seed,
)
from trainorder.reading import (
    MAX_NODES,
    MAX_PARAMS,
    ParamsError,
    check_plain,
    did_you_mean,
    explain,
    found_at,
    read_yaml,
)


class Params(Section):
    """The whole of params.yaml."""

    policy: PolicyConfig = Field(default_factory=PolicyConfig)
    """The model."""
    tasks: dict[Name, TaskConfig] = Field(min_length=1)
    """Task name -> its settings. All tasks are evaluated; those in no phase are held out."""
    data: DataConfig = Field(default_factory=DataConfig)
    """Data build."""
    sft: SftConfig | None = Field(default_factory=lambda: SftConfig(when="scratch"))
    """SFT warm-up; null: all seeds begin RL at the model of `policy.path` as it is. Left out, it is for the built-in model alone."""
    judge: JudgeConfig = Field(default_factory=JudgeConfig)
    """The judges in short form."""
    judges: dict[Name, dict[str, Any]] = Field(default_factory=dict)
    """Judge name -> its kind, role and settings (config/judges.py); in place of `judge`."""
    rl: RlConfig = Field(default_factory=RlConfig)
    """RL defaults."""
    rollout: RolloutConfig = Field(default_factory=RolloutConfig)
    """What samples: in RL phases, for judges and in evaluations."""
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    """What computes their updates."""
    phases: dict[Name, PhaseConfig] = Field(min_length=1)
    """Phase name -> what it trains."""
    orders: dict[Name, Order] = Field(min_length=1)
    """Order name -> phases in sequence; or `recommended` / `recommended_reverse`, filled in from the measured transfer; or
    `cascade` (creative phases first) / `creative_last`: the other phases in the sequence of `phases`; or `{all: [...]}`."""
    merges: dict[Name, MergeConfig] = Field(default_factory=dict)
    """Merge name -> how to merge."""
    variants: dict[Name, VariantConfig] = Field(default_factory=dict)
    """Variant name -> overrides; every order, single and merge is also trained under each. Comparisons stay within one."""
    seeds: list[Seed] = Field(default_factory=lambda: [0], min_length=1)
    """Training seeds: replicates that differ in rollouts, order of problems and new adapters. They share the checkpoint that
    RL begins at, unless `sft.per_seed` makes one for each."""
    allow_unequal_budgets: bool = False
    """True: compare orders although they differ in steps or prompts."""
    grading: GradingConfig = Field(default_factory=GradingConfig)
    """Bounds on verifiers, judges and the sandbox."""
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    """Scoring."""
    measure: MeasureConfig = Field(default_factory=MeasureConfig)
    """Statistics."""
    probes: list[str] = Field(default_factory=list, max_length=100)
    """Probes (`trainorder probe`) of every checkpoint against what it was trained from, and of every arm's end against its base:
    a table in reports/probes.parquet and a section of the page. `[all]`: every probe; empty: none, which costs nothing."""
    flow: FlowConfig = Field(default_factory=FlowConfig)
    """Orchestration."""

    @model_validator(mode="after")
    def _without_warm_up(self) -> Self:
        """No section `sft` where its `when` leaves the model out: what follows asks only whether there is one."""
        if self.policy.path is not None and self.sft is not None and self.sft.when == "scratch":
            object.__setattr__(self, "sft", None)
        return self

    def engine(self) -> dict[str, Any]:
        """The section `rollout` for what samples without training: nothing where the torch engine does."""
        return {} if self.rollout.backend == "torch" else {"rollout": self.rollout.results()}

    def base_of(self, seed: int) -> str:
        """The node that RL of a seed begins at."""
        return f"s{seed}" if self.sft is not None and self.sft.per_seed else paths.BASE

    def named_judges(self) -> dict[str, AnyJudgeConfig]:
        """Judge name -> its settings: `judges`, or what `judge` stands for."""
        if not self.judges:
            return expanded(self.judge)
        return {name: parse(name, given) for name, given in self.judges.items()}

    def judges_of(self, task: str) -> dict[Role, str]:
        """Role -> the judge that has it in a judged task.

        Raises:
            ParamsError: a role that no judge has, or more than one.
        """
        judges, own = self.named_judges(), self.tasks[task].judges
        found: dict[Role, str] = {}
        for role in ROLES:
            names = [own[role]] if role in own else having(role, judges)
            if len(names) != 1:
                has = "no judge has" if not names else f"{known(names)} all have"
                raise ParamsError(
                    f"judges: {has} the role {role} of task {task!r}: give one judge `role: {role}`, or name it in "
                    f"tasks.{task}.judges ({known(judges)})"
                )
            if names[0] not in judges:
                raise ParamsError(
                    f"tasks.{task}.judges.{role}: no judge {names[0]!r}; there are {known(judges)}"
                    f"{did_you_mean(names[0], list(judges))}"
                )
            found[role] = names[0]
        return found

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


DISTILL = with_preset({"method": {"preset": "on_policy_distillation"}})
"""What `kind: distill` lays over `rl`: reverse KL to the teacher at every token of the policy's own answers."""


def phase_rl(rl: RlConfig, phase: PhaseConfig) -> RlConfig:
    """`rl` with the phase's overrides; a bad override is an error under `rl`.

    >>> phase = PhaseConfig(kind="structured", tasks={"math": 1.0}, steps=1, rl={"lr": 1e-4})
    >>> phase_rl(RlConfig(), phase).lr
    0.0001
    """
    over = _merged(DISTILL, phase.rl) if phase.kind == "distill" else phase.rl
    return RlConfig.model_validate(_merged(rl.model_dump(), over))


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
        params = Params.model_validate({**data, "phases": _returns(data.get("phases"))})
        for name, phase in params.phases.items():
            _parse_phase_overrides(f"phases.{name}.rl", params.rl, phase)
        for name, variant in params.variants.items():
            _parse_variant(name, variant, params)
        params.named_judges()
    except ValidationError as error:
        raise ParamsError("\n".join(explain(source, Params, e) for e in error.errors())) from None
    except ParamsError as error:
        raise ParamsError(f"{source}: {error}") from None
    return params


def _returns(phases: Any) -> Any:
    """`phases` as written, each that is `like` another with what it takes from that one.

    >>> math = {"kind": "structured", "tasks": {"math": 1}, "steps": 40}
    >>> _returns({"math": math, "again": {"like": "math", "steps": 10}})["again"]
    {'kind': 'structured', 'tasks': {'math': 1}, 'steps': 10, 'like': 'math'}

    Raises:
        ParamsError: there is no such phase, it is like another itself, or kind or tasks are given too.
    """
    if not isinstance(phases, dict):
        return phases
    found = dict(phases)
    for name, phase in phases.items():
        like = phase.get("like") if isinstance(phase, dict) else None
        if not isinstance(like, str):
            continue
        plain = [
            other for other, p in phases.items() if isinstance(p, dict) and p.get("like") is None
        ]
        if like not in plain:
            raise ParamsError(
                f"phases.{name}.like: no phase {like!r} that stands for itself; there are {known(plain)}"
                f"{did_you_mean(like, plain)}"
            )
        taken = [key for key in ("kind", "tasks") if key in phase]
        if taken:
            raise ParamsError(
                f"phases.{name}.{taken[0]}: a phase that is like {like!r} has its kind and tasks; leave this out"
            )
        found[name] = _merged(phases[like], phase)
    return found


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
