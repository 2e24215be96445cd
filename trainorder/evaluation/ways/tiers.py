"""Temperature and length of an answer by how hard its problem seems."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from trainorder.config.values import Share, Tier
from trainorder.evaluation.scoring import mean
from trainorder.evaluation.sitting import Sitting, Values, way
from trainorder.evaluation.ways.votes import shares
from trainorder.streams import seed_of


@way(answers="samples")
def tiers(
    sitting: Sitting,
    *,
    by: Literal["agreement", "solved"] = "agreement",
    easy_from: Share = 0.9,
    hard_below: Share = 0.5,
    easy: Tier = [0.5, 0.4],  # noqa: B006  an option's default, never changed
    normal: Tier = [0.8, 1.0],  # noqa: B006
    hard: Tier = [0.4, 0.5],  # noqa: B006
) -> Values:
    """Each problem answered once more with the temperature and length of its tier: easy, normal, hard (DiffAdapt, arXiv:2510.19669).

    The tier is by the share of the evaluation's samples that give the most frequent answer (`agreement`, which looks at no
    right answer), or by the share that is right (`solved`: an upper bound, since it does); the paper trains a probe on
    hidden states to tell. A problem is easy from `easy_from` on and hard below `hard_below`. `tiers`: mean score of
    `evaluation.samples` answers; `tiers_tokens`: their mean length; `tiers_easy`, `tiers_hard`: 1 where it is so.
    """
    limit, k = sitting.exam.max_new_tokens, sitting.config.samples
    settings = {"easy": easy, "normal": normal, "hard": hard}
    if by == "solved":
        rates = [mean(values) for values in sitting.values]
    else:
        rates = [max(shares(texts).values(), default=0.0) for texts in sitting.texts]
    found = [tier(rate, easy_from, hard_below) for rate in rates]
    answers: list[Sequence[str]] = [()] * len(found)
    for name, (temperature, share) in settings.items():
        places = [i for i, own in enumerate(found) if own == name]
        asked = [
            sitting.request(
                sitting.problems[i],
                samples=k,
                temperature=temperature,
                max_new_tokens=max(1, min(limit, round(share * limit))),
                seed=seed_of("tiers", sitting.config.seed, sitting.exam.split, sitting.problems[i].id),
            )
            for i in places
        ]  # fmt: skip
        texts = sitting.say(asked)
        for number, i in enumerate(places):
            answers[i] = texts[number * k : (number + 1) * k]
    said = [text for own in answers for text in own]
    values = sitting.score(said, [p for p in sitting.problems for _ in range(k)])
    lengths = [min(limit, len(ids)) for ids in sitting.tokens(said)]
    groups = range(0, len(said), k)
    return {
        "tiers": [mean(values[i : i + k]) for i in groups],
        "tiers_tokens": [sum(lengths[i : i + k]) / k for i in groups],
        "tiers_easy": [float(own == "easy") for own in found],
        "tiers_hard": [float(own == "hard") for own in found],
    }


def tier(rate: float, easy_from: float = 0.9, hard_below: float = 0.5) -> str:
    """The tier of a problem; one of which nothing is known (nan) is normal.

    >>> [tier(rate) for rate in (0.95, 0.9, 0.5, 0.4, float("nan"))]
    ['easy', 'easy', 'normal', 'hard', 'normal']
    """
    if rate >= easy_from:
        return "easy"
    return "hard" if rate < hard_below else "normal"
