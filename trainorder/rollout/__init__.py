"""Engines that sample from the policy. A new one is a file here plus a line in ENGINES."""

from __future__ import annotations

import importlib
from typing import Any

from trainorder.policy import Policy
from trainorder.reading import ParamsError, did_you_mean
from trainorder.rollout.base import Completions, Engine
from trainorder.rollout.torch_engine import TorchEngine

ENGINES: dict[str, str] = {
    "torch": "trainorder.rollout.torch_engine:TorchEngine",
    "vllm": "trainorder.rollout.vllm_engine:VllmEngine",
}
"""Name -> class, called with the policy. By name, so that one engine's packages are no need of another."""

__all__ = ["ENGINES", "Completions", "Engine", "TorchEngine", "make_engine"]


def make_engine(name: str, policy: Policy, **options: Any) -> Engine:
    """The engine `name` over this policy, with the engine's own options.

    Raises:
        ParamsError: there is no such engine.
    """
    if name not in ENGINES:
        known = sorted(ENGINES)
        raise ParamsError(
            f"no engine {name!r}; there are {', '.join(known)}{did_you_mean(name, known)}"
        )
    module, _, attribute = ENGINES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)(policy, **options)
