"""Sections about judges: who gives the rewards of judged tasks, and who evaluates them.

`judges:` names them, each with its `kind`. `judge:` is the short form: two preference models, or one endpoint in both roles.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, ValidationError

from trainorder.config.values import (
    Batch,
    Betas,
    Count,
    Name,
    OptimizerName,
    Positive,
    Rate,
    Section,
)
from trainorder.reading import ParamsError, did_you_mean, explain, shown

Role = Literal["reward", "evaluation"]
ROLES: tuple[Role, ...] = ("reward", "evaluation")
"""Gives the rewards of a phase; scores what was trained."""


Digit = Annotated[int, Field(ge=0, le=9)]


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
    input_price: float = Field(default=0.0, ge=0, le=1e6)
    """Of a million tokens of what is asked, in any currency. 0: no cost is shown for them. A price changes no stage that trains."""
    output_price: float = Field(default=0.0, ge=0, le=1e6)
    """Of a million tokens of replies, thoughts included."""
    same_in_both_roles: bool = False
    """Let this one model judge in training and in evaluation; then no score of a judged task is independent of training,
    and reports say so."""

    def cost(self, input_tokens: float, output_tokens: float) -> float | None:
        """What so many tokens cost; None without a price.

        >>> EndpointConfig(input_price=2.0, output_price=10.0).cost(1_500_000, 20_000), EndpointConfig().cost(1, 1)
        (3.2, None)
        """
        if not self.input_price + self.output_price:
            return None
        return (input_tokens * self.input_price + output_tokens * self.output_price) / 1e6


class Compared(Section):
    """How a judge is compared with the simulated annotator, where the task that it judges has a taste."""

    task: Name | None = None
    """The task whose answers are compared; null: the only one that the judge serves."""
    pairs: str | None = None
    """Your own preferences in place of the annotator's: rows with prompt, chosen and rejected (parquet, JSON lines, a folder or
    a data set on the hub). A preference model learns from them; others are compared with them."""
    answers: int = Field(default=4, ge=2, le=64)
    """Answers per prompt; the annotator compares all of them with one another: 4 answers, 6 comparisons."""
    heldout_prompts: Count = 150
    """Prompts on which the judge's agreement with the annotator is measured."""
    temperatures: list[Positive] = Field(default=[0.7, 1.0, 1.4], min_length=1, max_length=16)
    """The base's answers are sampled at these in equal shares: below and above that of RL, which leaves its own distribution."""
    corrupted: float = Field(default=0.30, ge=0, le=1)
    """Share of answers that are damaged samples (stutter, cut, words swapped): what RL finds if the judge never saw it."""
    flat: float = Field(default=0.15, ge=0, le=1)
    """Share of answers with all words equally likely: a judge knows only words it has seen."""
    annotator_sharpness: Positive = 12.0
    """P(annotator prefers a to b) = sigmoid(sharpness * (taste(a) - taste(b)))."""
    min_agreement: float = Field(default=0.70, ge=0.5, le=1)
    """Held-out agreement with the annotator below which the stage fails: a bad judge ruins creative RL."""


class PreferenceSettings(Compared):
    """A Bradley-Terry preference model, trained on the choices of the simulated annotator or on own `pairs`."""

    prompts: Count = 600
    """Prompts whose answers are compared, per judge; no prompt serves two judges."""
    layers: Count | None = None
    """How many of the lowest layers of the base a judge begins with; null: all. A few are enough to see form, and much faster."""
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


class JudgeConfig(PreferenceSettings):
    """The short form of `judges`: two preference models named `reward` and `evaluation`, or the model of an endpoint."""

    backend: Literal["local", "endpoint"] = "local"
    """local: two preference models trained here; endpoint: the model behind `endpoint` in both roles."""
    endpoint: EndpointConfig = Field(default_factory=EndpointConfig)
    """Used by the backend `endpoint` only."""
    task: Name | None = "creative"
    """The task whose answers are compared."""


class Named(Section):
    """What every entry of `judges` has."""

    changes_nothing = frozenset({"role", "same_in_both_roles"})

    role: Role | None = None
    """Its role in judged tasks that name no judges themselves; null: the role that it is named after, if it is."""
    same_in_both_roles: bool = False
    """Let it judge in training and in evaluation where no other judge has one of these roles; then no score of that task is
    independent of training, and reports say so."""


class QuestionConfig(Section):
    """What a judge that reads text is asked."""

    instructions: str | None = None
    """What `better` means; added to the question which of two answers is better."""
    rubric: str | None = None
    """In place of a comparison: what a score means, e.g. `Is it vivid?`; the reference is not shown then."""
    scale: Annotated[list[Digit], Field(min_length=2, max_length=2)] = Field(default=[1, 5])
    """Lowest and highest score of the rubric, one digit each."""


class PreferenceConfig(Named, PreferenceSettings):
    """A preference model that is trained here (Bradley-Terry)."""

    kind: Literal["preference"] = "preference"
    """A preference model trained here."""


class EndpointJudgeConfig(Named, QuestionConfig, Compared, EndpointConfig):
    """A model behind an OpenAI-compatible endpoint."""

    changes_nothing = Named.changes_nothing | {"input_price", "output_price"}

    kind: Literal["endpoint"] = "endpoint"
    """A model behind an OpenAI-compatible endpoint."""
    heldout_prompts: Count = 32
    """Prompts on which the judge's agreement with the annotator is measured."""
    same_in_both_roles: bool = False
    """As of every judge."""


class ModelJudgeConfig(Named, QuestionConfig, Compared):
    """A language model on this machine."""

    kind: Literal["model"] = "model"
    """A language model that judges here: by its probabilities of A and B in both positions, or of the rubric's digits."""
    path: str = Field(min_length=1)
    """The model, in any form of `policy.path`: a folder, a name on the hub, a GGUF file, `package:NAME`."""
    chat_template_kwargs: dict[str, JsonValue] = Field(default_factory=dict, max_length=32)
    """Options of its chat template, e.g. {enable_thinking: false}."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """What it computes in; its weights are held in float32."""
    min_mass: float = Field(default=0.01, ge=0, le=1)
    """Least probability of all allowed replies together; below it the model would say something else, and there is no verdict."""
    heldout_prompts: Count = 32
    """Prompts on which the judge's agreement with the annotator is measured."""
    min_agreement: float = Field(default=0.55, ge=0.5, le=1)
    """Held-out agreement with the annotator below which the stage fails."""


AnyJudgeConfig = PreferenceConfig | ModelJudgeConfig | EndpointJudgeConfig
KINDS: dict[str, type[AnyJudgeConfig]] = {
    "preference": PreferenceConfig,
    "model": ModelJudgeConfig,
    "endpoint": EndpointJudgeConfig,
}
"""`judges.NAME.kind` -> its section; trainorder/registries.py has the code."""


def parse(name: str, given: Mapping[str, Any]) -> AnyJudgeConfig:
    """An entry of `judges`.

    Raises:
        ParamsError: no such kind, an unknown key or a bad value.
    """
    where, kinds = f"judges.{name}", ", ".join(KINDS)
    kind = given.get("kind")
    if kind is None:
        raise ParamsError(f"{where}.kind: this key is required; there are {kinds}")
    if not isinstance(kind, str) or kind not in KINDS:
        hint = did_you_mean(str(kind), list(KINDS))
        raise ParamsError(f"{where}.kind: no kind {shown(kind)}; there are {kinds}{hint}")
    try:
        return KINDS[kind].model_validate(given)
    except ValidationError as error:
        raise ParamsError(
            "; ".join(explain(where, KINDS[kind], e) for e in error.errors())
        ) from None


def expanded(short: JudgeConfig) -> dict[str, AnyJudgeConfig]:
    """What the section `judge` stands for."""
    given = short.model_dump(exclude={"backend", "endpoint"})
    if short.backend == "local":
        return {role: PreferenceConfig.model_validate(given) for role in ROLES}
    compared = {key: given[key] for key in Compared.model_fields}
    endpoint = short.endpoint.model_dump() | {"same_in_both_roles": True}  # plan/check/ asks
    return {"endpoint": EndpointJudgeConfig.model_validate(compared | endpoint)}


def having(role: Role, judges: Mapping[str, AnyJudgeConfig]) -> list[str]:
    """The judges that have a role by themselves: by `role` or name, else by `same_in_both_roles`.

    >>> taste, referee = PreferenceConfig(role="reward"), PreferenceConfig(role="evaluation")
    >>> having("reward", {"taste": taste, "referee": referee}), having("reward", {"referee": referee})
    (['taste'], [])
    """
    exact = [name for name, config in judges.items() if (config.role or name) == role]
    return exact or [name for name, config in judges.items() if config.same_in_both_roles]


def known(names: Iterable[str]) -> str:
    """For errors."""
    return ", ".join(names) or "none"
