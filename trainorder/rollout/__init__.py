"""Engines that sample from the policy. A new one is a file here plus a line in trainorder/registries.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trainorder.registries import ENGINES, load
from trainorder.rollout.base import Completions, Engine, Request

if TYPE_CHECKING:
    from trainorder.config import RolloutConfig
    from trainorder.policy import Policy

__all__ = ["Completions", "Engine", "Request", "make_engine"]


def make_engine(
    config: RolloutConfig, policy: Policy, dtype: str = "fp32", **sharing: Any
) -> Engine:
    """The engine that `rollout` of params.yaml names, over this policy.

    Args:
        config: names the engine.
        policy: what samples.
        dtype: `training.dtype`: the precision of an engine with weights of its own whose config leaves it open.
        sharing: options of the torch engine, which shares the policy's weights.

    Raises:
        ParamsError: there is no such engine, or it is not installed.
    """
    engine = load(ENGINES, config.backend, "rollout.backend")
    if config.backend == "torch":
        return engine(policy, **sharing)
    return engine(policy, config=config, dtype=dtype)
