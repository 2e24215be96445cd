"""Log-probabilities of tokens, and entropies, from the logits of any model."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

WAYS = ("eager", "compiled")
"""One operation of torch after the other, or as torch.compile fuses them: half of the time, for half a minute of compiling per
machine and seconds per process. `machine.py` measures which is worth it; see `use_way`."""

Found = tuple[Float[Tensor, " token"], Float[Tensor, " token"] | None]
_way = WAYS[0]
_compiled: Callable[[Tensor, Tensor, bool], Found] | None = None


def likelihood(
    logits: Float[Tensor, "token vocabulary"],
    targets: Int[Tensor, " token"],
    *,
    entropy: bool = True,
) -> Found:
    """Log p of the targets, and the entropy of each distribution; None unless asked for.

    >>> logp, entropy = likelihood(torch.zeros(1, 4), torch.tensor([2]))
    >>> round(logp.item(), 3), round(entropy.item(), 3)
    (-1.386, 1.386)
    """
    return (_eager if _way == "eager" else _fused)(logits, targets, entropy)


def use_way(way: str) -> None:
    """Compute this way from now on; one of WAYS."""
    global _way
    _way = way


def _eager(logits: Tensor, targets: Tensor, entropy: bool) -> Found:
    scale = logits.logsumexp(-1)
    logps = logits.gather(-1, targets[:, None])[:, 0] - scale
    # H = logsumexp(z) - sum p z
    return logps, scale - (logits.softmax(-1) * logits).sum(-1) if entropy else None


def _fused(logits: Tensor, targets: Tensor, entropy: bool) -> Found:
    global _compiled
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what the compiler imports and looks at, not of ours
        if _compiled is None:
            _compiled = torch.compile(_eager, dynamic=True)
        return _compiled(logits, targets, entropy)
