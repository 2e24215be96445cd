"""Engines that sample from the policy. A new one is a file here plus a line in trainorder/registries.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trainorder.registries import ENGINES, load
from trainorder.rollout.base import Completions, Engine, Request

if TYPE_CHECKING:
    from trainorder.policy import Policy

__all__ = ["Completions", "Engine", "Request", "make_engine"]


def make_engine(name: str, policy: Policy, **options: Any) -> Engine:
    """The engine `name` over this policy, with the engine's own options.

    Raises:
        ParamsError: there is no such engine.
    """
    return load(ENGINES, name, "rollout.backend")(policy, **options)
