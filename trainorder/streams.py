"""Named random streams: every draw in trainorder comes from a key, never from the global generator.

A stream is a pure function of its key, so nothing has to be saved to resume it: the rollouts of step 7 of phase `math`
under seed 0 are seeded by `seed_of("rollout", 0, "math", 7, place)`, whatever ran before.
"""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy
    import torch


def seed_of(*key: str | int) -> int:
    """A 63-bit seed from a key; equal keys give equal seeds on every machine and Python version.

    >>> seed_of("rollout", 0, "math") == seed_of("rollout", 0, "math")
    True
    >>> seed_of("ab", "c") == seed_of("a", "bc")
    False
    """
    digest = hashlib.sha256("\x1f".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def stream(*key: str | int) -> random.Random:
    """A `random.Random` for this key."""
    return random.Random(seed_of(*key))


def numpy_stream(*key: str | int) -> numpy.random.Generator:
    """A numpy generator for this key."""
    import numpy

    return numpy.random.default_rng(seed_of(*key))


def torch_stream(*key: str | int) -> torch.Generator:
    """A torch CPU generator for this key."""
    import torch

    return torch.Generator().manual_seed(seed_of(*key))
