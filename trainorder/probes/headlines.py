"""The few measures that the page shows and that are asked whether they predict forgetting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainorder.probes.base import ALL, mean

if TYPE_CHECKING:
    import pandas as pd


Measures = Mapping[tuple[str, str, str], Mapping[str, float]]
"""(probe, part, measure) -> task -> value, of one pair of checkpoints."""


@dataclass(frozen=True)
class Headline:
    """One measure, a mean over the tasks where a probe looks at tasks."""

    label: str
    probe: str
    part: str
    measure: str

    def by_task(self, found: Measures) -> Mapping[str, float]:
        """Task -> value of one pair."""
        return found.get((self.probe, self.part, self.measure), {})

    def value(self, found: Measures) -> float | None:
        """Over all tasks; None where the probe does not say."""
        own = self.by_task(found)
        return own.get(ALL, mean([*own.values()])) if own else None


def by_pair(table: pd.DataFrame) -> dict[tuple[str, str], Measures]:
    """(node, other) -> what the long table has of them."""
    found: dict[tuple[str, str], dict[tuple[str, str, str], dict[str, float]]] = {}
    columns = ("probe", "node", "other", "task", "part", "measure", "value")
    rows = zip(*(table[name].tolist() for name in columns), strict=True)
    for probe, node, other, task, part, measure, value in rows:
        pair = found.setdefault((node, other), {})
        pair.setdefault((probe, part, measure), {})[task] = value
    return dict(found)


HEADLINES = (
    Headline("weights unchanged (bf16)", "sparsity", ALL, "unchanged_bf16"),
    Headline("size of the update", "sparsity", ALL, "relative_norm"),
    Headline("its effective rank", "rank", ALL, "effective_rank"),
    Headline("overlap of top tenths", "overlap", ALL, "top_overlap"),
    Headline("cosine of updates", "cosine", ALL, "cosine"),
    Headline("KL from before", "kl", ALL, "forward"),
    Headline("KL to before", "kl", ALL, "reverse"),
    Headline("entropy of samples", "entropy_change", ALL, "own.change"),
    Headline("entropy on references", "entropy_change", ALL, "fixed.change"),
    Headline("gained", "turnover", ALL, "gained"),
    Headline("lost", "turnover", ALL, "lost"),
    Headline("change of forms", "formats", ALL, "distance"),
    Headline("gain by form", "format_only", ALL, "gain_form"),
    Headline("above a guess", "random_valid", ALL, "above.change"),
    Headline("different answers", "diversity", "within", "semantic_vendi.change"),
    Headline("length", "length_accuracy", ALL, "length.change"),
    Headline("rank of states", "plasticity", ALL, "state_rank.change"),
    Headline("gradients of tasks", "gradient_cosine", ALL, "cosine.before"),
    Headline("likeness of last states", "participation_ratio", "last", "similarity"),
    Headline("tasks that move alike", "perturbation", "update", "entanglement"),
)
