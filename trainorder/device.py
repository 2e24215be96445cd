"""Where a model computes and in which precision: `training.device` and `training.dtype`, the same for every stage."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from trainorder.reading import NotHere


def device_of(wanted: str) -> str:
    """`auto` is a GPU where there is one.

    Raises:
        NotHere: cuda is asked for and there is none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise NotHere("training.device is cuda, and torch sees no GPU: set it to auto or cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted


def precision(device: torch.device | str, dtype: str) -> AbstractContextManager[Any]:
    """Forwards in bfloat16 within this block where `dtype` is bf16; weights keep their own type."""
    if dtype == "fp32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16)


def has_fused_adamw(device: torch.device | str) -> bool:
    """Whether torch's AdamW can update weights there by one fused operation."""
    return torch.device(device).type in ("cpu", "cuda")
