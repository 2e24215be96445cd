"""How many directions an answer's hidden states use, and credit from it (VERL, arXiv:2509.23808)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from trainorder.rl.registry import advantage, metric
from trainorder.rl.types import Roll, State

NAMES = ("effective_rank", "effective_rank_velocity", "effective_rank_acceleration")
NEEDS = frozenset({"hidden"})


@metric(needs=NEEDS)
def effective_rank(roll: Roll, state: State, *, stride: int = 40) -> dict[str, float]:
    """Effective rank (ER) of the answers' hidden states, its velocity (ERV) and acceleration (ERA), means over rows.

    ER = exp(entropy of the singular values over their sum) of the states after the last norm, [token, size], centred over
    tokens; it lies between 1 and the number of tokens. With m_j = ER of the first j * stride tokens, ERV is the mean of
    m_j - mean(m_<j), and ERA the mean of the successive differences of that (VERL, arXiv:2509.23808). 0 where an answer is too
    short for them. stride 40 is that of the authors' documents, their yaml has 20.
    """
    return dict(zip(NAMES, state.once(roll, ranks, stride).mean(0).tolist(), strict=True))


@advantage(scope="batch", needs=NEEDS)
def verl(
    roll: Roll,
    state: State,
    *,
    kappa: float = 2.0,
    stride: int = 40,
    ema: float = 0.7,
    low: float = 0.0,
    high: float = 1.0,
    place: Literal["all", "last"] = "all",
) -> Float[Tensor, "row token"]:
    """A + min(max(phi, 0), |A| / kappa): more credit for answers of unusual effective rank (VERL, arXiv:2509.23808).

    A shaper. Of x in (ER, ERV, ERA) of a row (`effective_rank`): d = clip((x - mu) / (|mu| + 1e-8), -5, 5) with mu the
    moving average of batch means; g = sigmoid(1.5 d_ERA); phi = (1 - perf) (g tanh d_ER + (1 - g) tanh d_ERV), perf the moving
    average of the mean reward, mapped from [low, high] to [0, 1]. kappa 2 and ema .7 are those of the authors' code (the
    paper .3). The code adds it to the last token only (`place: last`), the paper's formula to all.
    """
    found = state.once(roll, ranks, stride)
    means = found.mean(0).tolist()
    mu = found.new_tensor(
        [state.ema(f"verl/{name}", mean, beta=ema) for name, mean in zip(NAMES, means, strict=True)]
    )
    rate = (
        (float(roll.rewards[roll.scored].mean()) - low) / (high - low) if roll.scored.any() else 0.0
    )
    done = min(1.0, max(0.0, state.ema("verl/perf", rate, beta=ema)))
    er, erv, era = ((found - mu) / (mu.abs() + 1e-8)).clamp(-5, 5).T
    gate = (1.5 * era).sigmoid()
    phi = (1 - done) * (gate * er.tanh() + (1 - gate) * erv.tanh())
    return add_bonus(roll, phi, kappa, place)


def add_bonus(
    roll: Roll, phi: Float[Tensor, " row"], kappa: float, place: str = "all"
) -> Float[Tensor, "row token"]:
    """The bounded bonus, on all tokens or on the last of each row."""
    credit = roll.advantages
    bonus = torch.minimum(phi.clamp(min=0)[:, None].to(credit.dtype), credit.abs() / kappa)
    if place == "last":
        places = torch.arange(1, credit.shape[1] + 1)
        bonus = torch.where(places == roll.lengths()[:, None], bonus, 0.0)
    return credit + bonus


def ranks(roll: Roll, stride: int) -> Float[Tensor, "row 3"]:
    """ER, ERV and ERA of each row, float64."""
    return torch.stack(
        [
            torch.tensor(_of_row(states[mask > 0].double(), stride), dtype=torch.float64)
            for states, mask in zip(roll.token_facts["hidden"], roll.loss_mask, strict=True)
        ]
    )


def _of_row(states: Float[Tensor, "token size"], stride: int) -> tuple[float, float, float]:
    if not len(states):
        return 0.0, 0.0, 0.0
    products = states @ states.T
    prefixes = [rank_of(products[:n, :n]) for n in range(stride, len(states) + 1, stride)]
    return (rank_of(products), *velocity(prefixes))


def rank_of(products: Float[Tensor, "token token"]) -> float:
    """Effective rank of states, given their products; 1 where all are one.

    >>> round(rank_of(torch.diag(torch.tensor([3.0, 3.0, 0.0]).double())), 4)  # centred: sqrt(3) and 1
    1.9286
    """
    centred = (
        products - products.mean(0, keepdim=True) - products.mean(1, keepdim=True) + products.mean()
    )
    values = torch.linalg.eigvalsh(centred).clamp(min=0)
    noise = len(values) * torch.finfo(values.dtype).eps * values.max()
    return spread_of(torch.where(values > noise, values, 0.0).sqrt())


def spread_of(singular: Tensor) -> float:
    """Exponential of the entropy of the values' shares.

    >>> round(spread_of(torch.tensor([3.0, 1.0])), 4), spread_of(torch.zeros(2))
    (1.7548, 1.0)
    """
    total = singular.sum()
    if not total > 0:
        return 1.0
    shares = singular / total
    return float(torch.special.entr(shares).sum().exp())


def velocity(values: Sequence[float]) -> tuple[float, float]:
    """Mean of each value's distance from the mean of those before it, and mean change of this distance.

    >>> velocity([1, 2, 4]), velocity([1])  # 2 - 1, 4 - 1.5
    ((1.75, 1.5), (0.0, 0.0))
    """
    steps = [values[j] - sum(values[:j]) / j for j in range(1, len(values))]
    if not steps:
        return 0.0, 0.0
    changes = [after - before for before, after in pairwise(steps)]
    return sum(steps) / len(steps), sum(changes) / len(changes) if changes else 0.0
