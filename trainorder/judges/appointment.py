"""A judge that is not trained here is asked before it is trusted: how far does it agree with the annotator?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainorder.device import device_of
from trainorder.judges import keeping
from trainorder.judges.annotator import AgreementError, Bench, check_agreement
from trainorder.registries import JUDGES, load


def appoint(bench: Bench, out: Path) -> dict[str, Any]:
    """Write the judge's card, after its agreement with the annotator was measured where the task has a taste."""
    config = bench.config
    judge = load(JUDGES, config.kind, "judges")(config)
    report = (
        _agreement(bench, keeping(judge.to(device_of(bench.params.training.device))))
        if bench.has_taste
        else {}
    )
    if report:
        check_agreement(bench.name, report["agreement"], config.min_agreement)
    judge.save(out)
    return report


def _agreement(bench: Bench, judge: Any) -> dict[str, Any]:
    """Share of held-out comparisons of the base's answers in which the judge prefers what the annotator preferred."""
    problems = bench.problems()[-bench.config.heldout_prompts :]
    data, _ = bench.compare(problems, bench.answers(problems))
    asked = [(d.prompt, d.answers[w], d.answers[o]) for d in data for w, o in d.wins]
    verdicts = judge.win_probability(*zip(*asked, strict=True)) if asked else []
    known = [value for value in verdicts if value is not None]
    if not known:
        why = judge.failures[0] if judge.failures else "no two answers of the base differ"
        raise AgreementError(f"the judge {bench.name} gave no verdict: {why}")
    return {
        "heldout_comparisons": len(asked),
        "unscored": 1 - len(known) / len(asked),
        "agreement": sum(known) / len(known),
    }
