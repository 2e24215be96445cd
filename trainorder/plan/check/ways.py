"""The ways of `evaluation.ways`: known, with options that they take, each metric from one of them."""

from __future__ import annotations

from trainorder.config import EvaluationConfig
from trainorder.plan.check.method import check_piece
from trainorder.reading import ParamsError

OF_SAMPLES = {"majority": 4, "pass_at": 2}
"""Ways that take `k` of the samples, with their default: named once for each k."""


def check_ways(config: EvaluationConfig) -> None:
    """Refuse unknown ways and options, more samples than there are, and two ways with the same metrics.

    Raises:
        ParamsError: says which.
    """
    seen = set[str]()
    for way in config.ways:
        check_piece("evaluation.ways", "ways", way)
        name, options = (way, {}) if isinstance(way, str) else next(iter(way.items()))
        metric = name
        if name in OF_SAMPLES:
            k = options.get("k", OF_SAMPLES[name])
            if k > config.samples:
                raise ParamsError(
                    f"evaluation.ways.{name}.k: at most evaluation.samples ({config.samples}) answers can be taken, got {k}: "
                    f"lower k, or raise evaluation.samples"
                )
            metric = f"{name}_at_{k}" if name == "majority" else f"{name}_{k}"
        if metric in seen:
            raise ParamsError(f"evaluation.ways: {metric} stands there twice: leave one out")
        seen.add(metric)
