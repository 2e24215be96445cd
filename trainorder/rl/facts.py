"""What pieces may need: facts about each token, computed from the logits inside a chunk of the LM head.

A fact of the head is a function of logits and targets; a [row, token, vocabulary] tensor never exists. The engine computes
the union of what the pieces of a method need, once, and nothing else:

| slot | where its needs are | of which weights |
|---|---|---|
| plan, reward, edit, advantage, weight, metric | roll.token_facts | the policy's before the update |
| term | live.facts | those being trained, with grad |
| term, written `old.NAME` | roll.token_facts, as NAME | the policy's before the update |

`NAME:ARGUMENT` gives an argument: `nucleus_entropy:0.8`, `top_logps:5`. A fact that compares with a frozen model names it
first: `forward_kl:reference`, `capped_forward_kl:teacher:0.05`; `reference+gold` is that model after a prompt that holds the
problem's gold text. Beside the functions listed
here there are `ref_logps` (log p under the phase's parent, always in the roll), `hidden` (states after the last norm,
[row, token, size]: use them at once, they are large), `spans` (`char_start` and `char_end` of each token in roll.text),
`attention_entropy:DEPTH` (attention.py, of the policy before the update only). No facts of tokens are `answers:teacher`, the piece
has the phase's teacher answer some requests (Request.teacher), and `known`, it reads what is known of problems (rl/items.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from trainorder.reading import ParamsError, did_you_mean

Logits = Float[Tensor, "token vocabulary"]
Targets = Int[Tensor, " token"]
PerToken = Float[Tensor, " token"]

REFERENCE = "ref_logps"
HIDDEN = "hidden"
SPANS = "spans"
ATTENTION = "attention_entropy"
ANSWERS = "answers:teacher"
KNOWN = "known"
NOT_OF_THE_HEAD = frozenset({REFERENCE, SPANS, ANSWERS, KNOWN})
OLD = "old."
GOLD = "+gold"
"""Ends the name of a model that reads the problem's gold text in its prompt."""


@dataclass(frozen=True)
class HeadFact:
    """A listed fact."""

    function: Callable[..., Tensor]
    argument: Callable[[str], Any] | None = None
    """Parses the part after the name, or after the model's."""
    other_model: bool = False
    """Whether a frozen model is named, whose logits the function gets as well."""


HEAD_FACTS: dict[str, HeadFact] = {}


def head_fact(
    *, argument: Callable[[str], Any] | None = None, other_model: bool = False
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """List a fact of the head under the function's name."""

    def listed(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        HEAD_FACTS[function.__name__] = HeadFact(function, argument, other_model)
        return function

    return listed


@head_fact()
def entropy(logits: Logits, targets: Targets) -> PerToken:
    """H = -sum p ln p over the whole vocabulary, nats."""
    log_probs = logits.log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1)


@head_fact()
def varentropy(logits: Logits, targets: Targets) -> PerToken:
    """Variance of -ln p: sum p (ln p + H)^2."""
    log_probs = logits.log_softmax(-1)
    probs = log_probs.exp()
    mean = (probs * log_probs).sum(-1, keepdim=True)
    return (probs * (log_probs - mean) ** 2).sum(-1)


@head_fact()
def collision(logits: Logits, targets: Targets) -> PerToken:
    """Chance that two draws are the same token: sum p^2."""
    return (2 * logits.log_softmax(-1)).exp().sum(-1)


@head_fact()
def expected_discriminator(logits: Logits, targets: Targets) -> PerToken:
    """Sum p^2 (ln p + H): what the entropy's first-order change is compared with (Clip_V)."""
    log_probs = logits.log_softmax(-1)
    probs = log_probs.exp()
    mean = (probs * log_probs).sum(-1, keepdim=True)
    return (probs**2 * (log_probs - mean)).sum(-1)


@head_fact(argument=float)
def nucleus_entropy(logits: Logits, targets: Targets, top_p: float) -> PerToken:
    """Entropy of the fewest tokens that hold `top_p` of the probability, made to sum to 1 (SIREN, arXiv:2509.25133)."""
    ordered, order = logits.log_softmax(-1).sort(-1, descending=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()
    outside = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before >= top_p)
    kept = logits.masked_fill(outside, -torch.inf).log_softmax(-1)
    return -(kept.exp() * kept.masked_fill(outside, 0.0)).sum(-1)


@head_fact(argument=int)
def top_logps(logits: Logits, targets: Targets, count: int) -> Float[Tensor, "token count"]:
    """Log-probabilities of the `count` likeliest tokens, largest first."""
    return logits.log_softmax(-1).topk(count, -1).values


@head_fact(other_model=True)
def forward_kl(logits: Logits, targets: Targets, other: Logits) -> PerToken:
    """KL(other model || policy) over the whole vocabulary."""
    theirs = other.log_softmax(-1)
    return (theirs.exp() * (theirs - logits.log_softmax(-1))).sum(-1)


@head_fact(other_model=True)
def reverse_kl(logits: Logits, targets: Targets, other: Logits) -> PerToken:
    """KL(policy || other model) over the whole vocabulary."""
    return forward_kl(other, targets, logits)


@head_fact(other_model=True)
def jensen_shannon(logits: Logits, targets: Targets, other: Logits) -> PerToken:
    """Mean of both divergences from the even mixture; at most ln 2."""
    ours, theirs = logits.log_softmax(-1), other.log_softmax(-1)
    middle = torch.logaddexp(ours, theirs) - torch.tensor(2.0).log().to(ours)
    sides = [(side.exp() * (side - middle)).sum(-1) for side in (ours, theirs)]
    return (sides[0] + sides[1]) / 2


@head_fact(argument=float, other_model=True)
def capped_forward_kl(logits: Logits, targets: Targets, other: Logits, cap: float) -> PerToken:
    """KL(other model || policy) with what each entry of the vocabulary adds bounded by `cap` (PW-OPSD, arXiv:2605.21606)."""
    theirs = other.log_softmax(-1)
    return (theirs.exp() * (theirs - logits.log_softmax(-1))).clamp(max=cap).sum(-1)


def live(needs: Iterable[str]) -> frozenset[str]:
    """Of a term's needs: those of the forward being trained."""
    return frozenset(need for need in needs if not need.startswith(OLD) and need != REFERENCE)


def old(needs: Iterable[str]) -> frozenset[str]:
    """Of a term's needs: those that are in the roll."""
    return frozenset(
        need.removeprefix(OLD) for need in needs if need.startswith(OLD) or need == REFERENCE
    )


def models(needs: Iterable[str]) -> frozenset[str]:
    """Names of the frozen models that these needs compare with."""
    wanted = set(needs)
    compared = {
        name.removesuffix(GOLD) for need in wanted if (name := other_model(need)) is not None
    }
    compared |= {"reference"} if REFERENCE in wanted else set()
    return frozenset(compared | ({"teacher"} if ANSWERS in wanted else set()))


def reads_gold(needs: Iterable[str]) -> bool:
    """Whether one of these needs compares with a model that reads the gold text."""
    return any((other_model(need) or "").endswith(GOLD) for need in needs)


def check(needs: Iterable[str], allowed_models: Collection[str]) -> None:
    """Refuse what the engine cannot compute.

    Raises:
        ParamsError: there is no such fact, its argument is bad, or there is no such model.
    """
    for need in needs:
        if need in (*NOT_OF_THE_HEAD, HIDDEN):
            continue
        name, model, argument = _parts(need)
        if of_attention([need]):
            _check_depth(need)
            continue
        if name not in HEAD_FACTS:
            known = [*HEAD_FACTS, REFERENCE, HIDDEN, SPANS, ANSWERS, ATTENTION]
            raise ParamsError(
                f"a piece needs {need!r}; the engine knows {', '.join(known)}{did_you_mean(name, known)}"
            )
        fact = HEAD_FACTS[name]
        try:
            assert (fact.argument is None) == (argument == "")
            assert fact.other_model == (model is not None)
            _ = fact.argument is None or fact.argument(argument)
        except (AssertionError, ValueError):
            parts = ["MODEL"] * fact.other_model + ["ARGUMENT"] * bool(fact.argument)
            count = ("no argument", "one argument", "a model and an argument")[len(parts)]
            takes = f"{count}, {':'.join([name, *parts])}" if parts else count
            raise ParamsError(f"a piece needs {need!r}: {name} takes {takes}") from None
        if model is not None and model.removesuffix(GOLD) not in allowed_models:
            raise ParamsError(
                f"a piece needs {need!r}: there is no model {model!r}; there are {', '.join(sorted(allowed_models))}, each also "
                f"with {GOLD}"
            )


def _check_depth(need: str) -> None:
    try:
        fine = 0 <= depth_of(need) <= 1
    except ValueError:
        fine = False
    if not fine:
        raise ParamsError(
            f"a piece needs {need!r}: {ATTENTION} takes a depth from 0, the first layer, to 1, the last"
        )


def depth_of(need: str) -> float:
    """The depth that a need of attention names."""
    return float(need.partition(":")[2])


def of_attention(needs: Iterable[str]) -> list[str]:
    """Those needs that are entropies of attention."""
    return [need for need in needs if need.partition(":")[0] == ATTENTION]


def of_head(need: str) -> Callable[..., Tensor]:
    """The function that computes a need of the head, its plain argument bound: (logits, targets[, other logits]) -> [token]."""
    name, _, argument = _parts(need)
    fact = HEAD_FACTS[name]
    if fact.argument is None:
        return fact.function
    value = fact.argument(argument)
    return lambda *logits: fact.function(*logits, value)


def other_model(need: str) -> str | None:
    """Name of the frozen model whose logits the need's function takes."""
    return _parts(need)[1]


def _parts(need: str) -> tuple[str, str | None, str]:
    """Name, model and argument of a need."""
    name, _, rest = need.partition(":")
    if name not in HEAD_FACTS or not HEAD_FACTS[name].other_model or not rest:
        return name, None, rest
    model, _, argument = rest.partition(":")
    return name, model, argument
