"""A judge that is not trained here is asked before it is trusted: how often does it agree with known preferences?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainorder.config import PreferenceConfig
from trainorder.device import device_of
from trainorder.judges import cached
from trainorder.judges.annotator import AgreementError, Bench, check_agreement
from trainorder.judges.pairs import read_pairs
from trainorder.registries import JUDGES, load


def appoint(bench: Bench, out: Path) -> dict[str, Any]:
    """Write the judge's card, after its agreement was measured: with own pairs, else with the annotator if there is a taste."""
    config = bench.config
    assert not isinstance(config, PreferenceConfig)
    judge, report = load(JUDGES, config.kind, "judges")(config), {}
    if config.pairs or bench.has_taste:
        report = _agreement(bench, cached(judge.to(device_of(bench.params.training.device))))
        check_agreement(bench.name, report["agreement"], config.min_agreement)
    judge.save(out)
    return report


def _agreement(bench: Bench, judge: Any) -> dict[str, Any]:
    """Share of pairs in which the judge prefers what the annotator or own pairs prefer; ties count half."""
    config = bench.config
    assert not isinstance(config, PreferenceConfig)
    most = config.heldout_prompts
    if config.pairs:
        data = read_pairs(f"judges.{bench.name}.pairs", config.pairs)[-most:]
    else:
        problems = bench.problems()[-most:]
        data, _ = bench.compare(problems, bench.answers(problems))
    asked = [(d.prompt, d.answers[w], d.answers[o]) for d in data for w, o in d.wins]
    values = judge.win_probability(*zip(*asked, strict=True)) if asked else []
    others: Sequence[float | None] = [0.5] * len(asked)
    if config.rubric is not None and asked:  # a score of each, in place of one comparison
        others = judge.win_probability(*zip(*((p, o, w) for p, w, o in asked), strict=True))
    both = [(v, o) for v, o in zip(values, others, strict=True) if v is not None and o is not None]
    known = [float(value > other) + (value == other) / 2 for value, other in both]
    if not known:
        why = judge.failures[0] if judge.failures else "no two answers differ"
        raise AgreementError(f"the judge {bench.name} gave no verdict: {why}")
    return {
        "heldout_comparisons": len(asked),
        "unscored": 1 - len(known) / len(asked),
        "agreement": sum(known) / len(known),
    }
