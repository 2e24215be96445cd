"""How a preference model is trained: the annotator's choices among answers of the base, and its agreement with them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from trainorder.config import PreferenceConfig
from trainorder.device import device_of
from trainorder.judges import Comparisons
from trainorder.judges.annotator import Bench, agreement, check_agreement
from trainorder.judges.pairs import heldout, read_pairs
from trainorder.judges.preference import Judge, fit
from trainorder.process import fail_point
from trainorder.reading import ParamsError
from trainorder.resume import Saved
from trainorder.tasks.base import Problem


def train(bench: Bench, out: Path) -> dict[str, float]:
    """Train the preference model `bench.name` from the base and save it as `out`; returns `_facts`."""
    import torch

    torch.set_num_threads(1)
    config, training = bench.config, bench.params.training
    assert isinstance(config, PreferenceConfig)
    judge = Judge.start(bench.base, bench.seed, config.layers).to(device_of(training.device))
    if config.pairs:
        pairs = read_pairs(f"judges.{bench.name}.pairs", config.pairs)
        last = heldout(len(pairs), config.heldout_prompts)
        fit(judge, pairs[:-last], config, bench.seed, work=bench.work, dtype=training.dtype)
        report = _facts(judge, pairs[:-last], pairs[-last:])
        check_agreement(bench.name, report["agreement"], config.min_agreement)
        judge.save(out)
        return report
    if not bench.has_taste:
        raise ParamsError(
            f"judges: task {bench.compared!r} has no taste that a preference model could learn: name a task of kind creative, give "
            f"own rows a `taste`, or the judge `pairs`"
        )
    problems = _prompts(bench, bench.problems(), config)

    def answer() -> Saved:
        return Saved({}, {"answers": bench.answers(problems)})

    answers = bench.work.part(f"answers-{bench.name}", answer).state["answers"]
    fail_point("judge.answers")
    data, tastes = bench.compare(problems, answers)
    fit(
        judge,
        data[: config.prompts],
        config,
        seed=bench.seed,
        work=bench.work,
        dtype=training.dtype,
    )
    count = config.prompts
    report = _facts(judge, data[:count], data[count:], tastes[count:])
    check_agreement(bench.name, report["agreement"], config.min_agreement)
    judge.save(out)
    return report


def _prompts(bench: Bench, problems: list[Problem], config: PreferenceConfig) -> list[Problem]:
    """The model's own training problems, held-out ones last."""
    last = bench.first + config.prompts + config.heldout_prompts
    if len(problems) < last:
        raise ParamsError(
            f"judges: prompts {config.prompts} + heldout_prompts {config.heldout_prompts} of {bench.name!r}, after {bench.first} of "
            f"the judges before it, need {last} training problems, task {bench.compared!r} has {len(problems)}: lower them, or "
            f"raise tasks.{bench.compared}.train"
        )
    return problems[bench.first : last]


def _facts(
    judge: Judge,
    learned: Sequence[Comparisons],
    left: Sequence[Comparisons],
    tastes: Sequence[Sequence[float]] | None = None,
) -> dict[str, float]:
    """What is known about a judge, on its held-out prompts unless the name says otherwise; `tastes` are those of their answers."""
    scores = judge.scores(
        [d.prompt for d in left for _ in d.answers], [text for d in left for text in d.answers]
    ).tolist()
    starts = [0, *accumulate(len(d.answers) for d in left)]
    wins = [(s + w, s + o) for s, d in zip(starts, left, strict=False) for w, o in d.wins]
    found = {
        "prompts": len(learned),
        "comparisons": sum(len(d.wins) for d in learned),
        "heldout_comparisons": len(wins),
        "agreement": agreement(scores, wins),
    }
    if tastes is None:
        return found
    gold = [taste for texts in tastes for taste in texts]
    differ = [(w, o) if gold[w] > gold[o] else (o, w) for w, o in wins if gold[w] != gold[o]]
    return {
        **found,
        "agreement_gold": agreement(scores, differ),
        "annotator_gold": agreement(gold, wins),
        "correlation_gold": _correlation(scores, gold),
    }


def _correlation(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Pearson's r; 0 where one side is constant.

    >>> round(_correlation([1, 2, 3], [2, 4, 6]), 6)
    1.0
    """
    import numpy

    if len(set(xs)) == 1 or len(set(ys)) == 1:
        return 0.0
    return float(numpy.corrcoef(xs, ys)[0, 1])
