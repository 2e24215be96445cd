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

Found = tuple[Float[Tensor, " token"], Float[Tensor, " token"]]
_way = WAYS[0]
_compiled: Callable[[Tensor, Tensor], Found] | None = None


def likelihood(logits: Float[Tensor, "token vocabulary"], targets: Int[Tensor, " token"]) -> Found:
    """Log p of the targets, and the entropy of each distribution.

    >>> logp, entropy = likelihood(torch.zeros(1, 4), torch.tensor([2]))
    >>> round(logp.item(), 3), round(entropy.item(), 3)
    (-1.386, 1.386)
    """
    return _eager(logits, targets) if _way == "eager" else _fused(logits, targets)


def use_way(way: str) -> None:
    """Compute this way from now on; one of WAYS."""
    global _way
    _way = way


def _eager(logits: Tensor, targets: Tensor) -> Found:
    scale = logits.logsumexp(-1)
    # H = logsumexp(z) - sum p z
    entropy = scale - (logits.softmax(-1) * logits).sum(-1)
    return logits.gather(-1, targets[:, None])[:, 0] - scale, entropy


def _fused(logits: Tensor, targets: Tensor) -> Found:
    global _compiled
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what the compiler imports and looks at, not of ours
        if _compiled is None:
            _compiled = torch.compile(_eager, dynamic=True)
        return _compiled(logits, targets)
