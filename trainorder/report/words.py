"""The result in words and rows: the same for the terminal, the flow's artifacts and the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Bwt = Mapping[str, Any]
"""reports/bwt.json, as `trainorder.measure` writes it."""


def score(value: float | None) -> str:
    """A score with three digits, `-` where there is none.

    >>> score(0.72649), score(None)
    ('0.726', '-')
    """
    return "-" if value is None else f"{value:.3f}"


def signed(value: float | None) -> str:
    """A difference with its sign.

    >>> signed(0.04), signed(-0.0004), signed(None)
    ('+0.040', '+0.000', '-')
    """
    return "-" if value is None else f"{round(value, 3) + 0.0:+.3f}"


def interval(i: Mapping[str, Any] | None, *, sign: bool = False) -> str:
    """`0.69 to 0.76`.

    >>> interval({"value": 0.0, "low": -0.021, "high": 0.038}, sign=True)
    '-0.021 to +0.038'
    """
    if i is None or i["low"] is None:
        return "-"
    show = signed if sign else score
    return f"{show(i['low'])} to {show(i['high'])}"


def correlation(found: Mapping[str, Any] | None, n: int) -> str:
    """A correlation with its interval and the number of items.

    >>> correlation({"value": 0.5, "low": -0.1, "high": 0.8}, 24), correlation(None, 2)
    ('+0.50 (-0.10 to +0.80, n = 24)', '- (n = 2)')
    """
    if found is None or found["value"] is None:
        return f"- (n = {n})"
    if found["low"] is None:
        return f"{found['value']:+.2f} (n = {n})"
    return f"{found['value']:+.2f} ({found['low']:+.2f} to {found['high']:+.2f}, n = {n})"


def orders(bwt: Bwt) -> dict[str, Mapping[str, Any]]:
    """The orders, best first."""
    return {
        row["arm"]: bwt["orders"][row["arm"]]
        for row in bwt["ranking"]
        if row["arm"] in bwt["orders"]
    }


MANY = 9
"""Above this number of orders the page draws some of them and folds the rest."""


def shown(bwt: Bwt) -> dict[str, Mapping[str, Any]]:
    """The orders that are drawn, best first: all, or of MANY the best and worst, the recommended, its reverse, joint."""
    every = orders(bwt)
    if len(every) <= MANY:
        return every
    names = list(every)
    recommended = bwt["recommended"] or {"order": None, "reverse": None}
    chosen = {*names[:4], *names[-2:]}
    chosen |= {n for n in names if every[n]["kind"] == "joint"}
    for wanted in (recommended["order"], recommended["reverse"]):
        chosen |= set([n for n in names if every[n]["phases"] == wanted][:1])
    return {name: order for name, order in every.items() if name in chosen}


def phases(bwt: Bwt, names: Iterable[str]) -> list[str]:
    """Phases of one task in the order of the tasks, then those of several."""
    tasks = {name: [bwt["tasks"].index(task) for task in bwt["phases"][name]] for name in names}
    return sorted(tasks, key=lambda name: (len(tasks[name]), tasks[name], name))


def sentence(text: str) -> str:
    """With a capital and a full stop.

    >>> sentence("one seed says little"), sentence("")
    ('One seed says little.', '')
    """
    return text and f"{text[0].upper()}{text[1:].rstrip('.')}."


def listed(names: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def headline(bwt: Bwt) -> str:
    """Who leads, in one short sentence.

    >>> headline({"winner": {"verdict": "identified", "arm": "creative_first", "best": "creative_first"}})
    'creative_first leads'
    """
    winner = bwt["winner"]
    if winner["verdict"] == "identified":
        return f"{winner['arm']} leads"
    others = [arm for arm in winner["not_told_apart"] if arm != winner["best"]]
    rest = others if len(others) < 4 else [f"{len(others)} other arms"]
    return f"No winner identified: {listed([winner['best'], *rest])} are too close to tell apart"


def verdict(bwt: Bwt) -> str:
    """By how much, and how sure: the sentence under the headline."""
    best, rest = leader(bwt), [row for row in bwt["ranking"] if row["arm"] != bwt["winner"]["best"]]
    level = f"{bwt['settings']['level']:.0%}"
    text = f"{best['arm']} has the highest mean test score, {score(best['mean']['value'])}"
    text += f" ({level} interval {interval(best['mean'])})"
    rivals = [row for row in rest if row["arm"] not in best["same_as"]]
    if rivals:
        gap = bwt["differences"][best["arm"]][rivals[0]["arm"]]
        text += f", {signed(gap['value'])} ({interval(gap, sign=True)}) against the next arm, {rivals[0]['arm']}"
    if bwt["winner"]["verdict"] == "identified":
        text += ": the lead over every other arm is larger than its uncertainty."
    else:
        text += ": within the uncertainty of this measurement, so no arm is declared the winner."
    return f"{text} {over_optimisation(bwt)}".rstrip()


OVER_OPTIMISED = 0.02
"""A fall of the hidden taste by more than this, while the judge's score rises, is named in words."""


def over_optimisation(bwt: Bwt) -> str:
    """Arms that please the judge and not the taste it stands for (Gao et al., arXiv 2210.10760); empty if there is none.

    >>> base = {"arm": "base", "kind": "base", "metrics": {"gold": {"verse": 0.55}, "score": {"verse": 0.45}}}
    >>> won = {"arm": "joint", "kind": "joint", "metrics": {"gold": {"verse": 0.43}, "score": {"verse": 0.77}}}
    >>> over_optimisation({"judged": ["verse"], "ranking": [won, base]})
    'Beware of over-optimisation: on verse the judge scores joint 0.770 (base 0.450), the hidden taste 0.430 (base 0.550).'
    """
    base = next((row["metrics"] for row in bwt["ranking"] if row["kind"] == "base"), {})
    found = []
    for task in bwt["judged"] if "gold" in base else []:
        arms = []
        for row in bwt["ranking"]:
            gold, judge = (row["metrics"][m][task] for m in ("gold", "score"))
            if gold < base["gold"][task] - OVER_OPTIMISED and judge > base["score"][task]:
                arms.append(
                    f"{row['arm']} {score(judge)} (base {score(base['score'][task])}), the hidden taste "
                )
                arms[-1] += f"{score(gold)} (base {score(base['gold'][task])})"
        if arms:
            found.append(f"on {task} the judge scores {'; '.join(arms)}")
    return f"Beware of over-optimisation: {'. '.join(found)}." if found else ""


def leader(bwt: Bwt) -> Mapping[str, Any]:
    """The ranking's row of the best measured arm."""
    return next(row for row in bwt["ranking"] if row["arm"] == bwt["winner"]["best"])


def path(phases: list[str] | None) -> str:
    """`math > code > qa`."""
    return " > ".join(phases or [])


def arms(bwt: Bwt) -> list[dict[str, str]]:
    """The table of arms, best first."""
    return [
        {
            "arm": row["arm"],
            "phases": path(row["phases"]) or row["kind"],
            "mean": score(row["mean"]["value"]),
            "interval": interval(row["mean"]),
            "minus best": _difference(row, "best"),
            "minus joint": _difference(row, "joint"),
            "minus base": _difference(row, "base"),
        }
        for row in bwt["ranking"]
    ]


def _difference(row: Mapping[str, Any], other: str) -> str:
    found = row["differences"][other]
    return "" if found is None else f"{signed(found['value'])} ({interval(found, sign=True)})"


def recommendation(bwt: Bwt, key: str = "recommended") -> list[str]:
    """What a transfer matrix recommends and how sure that is, sentence by sentence."""
    found = bwt[key]
    if found is None:
        return []
    if found["order"] is None:
        return [sentence(found["run"])]
    gap, misfit = found["gap"], found["misfit"]
    sentences = [
        f"Recommended: {path(found['order'])} ({found['verdict']}).",
        f"It is the best order in {found['p_optimal']:.0%} of the resampled matrices; choosing it is expected to cost "
        f"{score(found['regret'])} against knowing the best one.",
        f"The matrix predicts {signed(gap['value'])} ({interval(gap, sign=True)}) against the reverse order.",
    ]
    if misfit["sd"] is not None:
        sentences.append(
            f"The {misfit['orders']} measured orders of all phases spread by {score(misfit['sd'])} around their "
            f"prediction, and this error of the model is in these numbers."
        )
    return [*sentences, *map(sentence, found["reasons"])]


def assumptions(bwt: Bwt) -> list[str]:
    """What the measurement says about Omni-Thinker's assumptions, one sentence each, with what to run where it is silent."""
    found = bwt["assumptions"]
    moved, again, third = found["transfer"], found["saturation"], found["triples"]
    lines = []
    if moved["n"]:
        told = sum(row["differs"] for row in moved["rows"])
        lines.append(
            f"Transfer does not depend on the start? After the target was trained a phase changes it by "
            f"{_shift(moved)} more than from the base; {told} of {moved['n']} pairs differ, {moved['flips']} change sign."
        )
    if moved["run"]:
        lines.append(f"Transfer from the base against after training: {moved['run']}.")
    if again["n"]:
        told = sum(row["differs"] for row in again["rows"])
        lines.append(
            f"Training restores the same score? Trained later, a phase brings its own tasks {_shift(again)} above where it "
            f"brings them from the base; {told} of {again['n']} phases differ."
        )
    if again["run"]:
        lines.append(f"Saturation from the base against from a later checkpoint: {again['run']}.")
    if third["n"]:
        told = sum(row["differs"] for row in third["rows"])
        lines.append(
            f"Pairs tell triples? A third phase shifts what one phase does to another by {_shift(third)} (root mean square "
            f"{score(third['rms'])}); {told} of {third['n']} differ."
        )
    if third["run"]:
        lines.append(f"Pairs against triples: {third['run']}.")
    slopes = found["slopes"]
    if slopes is not None:
        lines.append(
            f"Per point of the score a phase starts from, its change moves by {signed(slopes['own']['value'])} on its own "
            f"tasks ({interval(slopes['own'], sign=True)}; assumed -1) and by {signed(slopes['other']['value'])} on others "
            f"({interval(slopes['other'], sign=True)}; assumed 0)."
        )
    return lines


def _shift(found: Mapping[str, Any]) -> str:
    mean = found["mean_difference"]
    return f"{signed(mean['value'])} ({interval(mean, sign=True)})"
