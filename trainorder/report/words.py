"""The result in words and rows: the same for the terminal, the flow's artifacts and the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trainorder.metrics import power
from trainorder.metrics.statistics import Verdict, side

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


def task(name: str, *, held_out: bool, recall: bool) -> str:
    """A task with what its score is not: trained, or asked about anything new.

    >>> task("qa", held_out=False, recall=True), task("constraints", held_out=True, recall=False)
    ('qa (recall)', 'constraints *')
    """
    return name + " (recall)" * recall + " *" * held_out


def task_names(bwt: Bwt) -> dict[str, str]:
    """Task -> how reports call it (`task`)."""
    return {
        name: task(name, held_out=name in bwt["held_out"], recall=name in bwt["recall"])
        for name in bwt["tasks"]
    }


def sentence(text: str) -> str:
    """With a capital and a full stop.

    >>> sentence("one seed says little"), sentence("")
    ('One seed says little.', '')
    """
    return text and f"{text[0].upper()}{text[1:].rstrip('.')}."


def listed(names: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def headline(bwt: Bwt) -> str:
    """Which arm is ahead, in one short sentence; with one seed nothing leads.

    >>> joint = {"verdict": "on these problems only", "best": "joint", "candidates": ["joint"], "lead": {"parts": None}}
    >>> headline({"winner": joint, "seeds": [0]})
    'joint is highest in this run (one seed)'
    """
    winner = bwt["winner"]
    if winner["lead"] is None:
        return f"{winner['best']} is the only arm"
    parts = winner["lead"]["parts"]
    judged = ", by tasks scored by a judge only" if parts and parts["judged_only"] else ""
    if winner["verdict"] == Verdict.SETTLED:
        return f"{winner['best']} leads{judged}"
    if winner["verdict"] == Verdict.PROBLEMS:
        return f"{winner['best']} is highest in this run (one seed){judged}"
    best, *others = winner["candidates"]
    rest = others if len(others) < 4 else [f"{len(others)} other arms"]
    return f"Open: {listed([best, *rest])} cannot be separated{one_seed(bwt['seeds'])}"


def one_seed(seeds: Sequence[int]) -> str:
    """` (one seed)` where there is one."""
    return " (one seed)" if len(seeds) == 1 else ""


def verdict(bwt: Bwt) -> str:
    """The verdict on the highest mean and what its lead is made of: the paragraph under the headline."""
    best, winner = leader(bwt), bwt["winner"]
    level = f"{bwt['settings']['level']:.0%}"
    text = f"{best['arm']} has the highest mean test score, {score(best['mean']['value'])}"
    text += f" ({level} interval {interval(best['mean'])})."
    lead = winner["lead"]
    if lead is None:
        return text
    pair = claim(
        winner["verdict"],
        best["arm"],
        lead["over"],
        lead["difference"],
        lead["parts"],
        bwt["seeds"],
        bwt["intervals"]["runs"],
    )
    return f"{text} {pair} {enough(bwt)}".rstrip()


def enough(bwt: Bwt) -> str:
    """What would decide more where the verdict is open; empty where it is not.

    >>> found = {"winner": {"verdict": "open"}, "seeds": [0, 1, 2], "power": {"more": {"difference": 0.03, "seeds": 7}}}
    >>> enough(found)
    'About 4 more seeds would detect a difference of 0.03: `trainorder run --seeds +4`.'
    """
    if bwt["winner"]["verdict"] != Verdict.OPEN or bwt["power"] is None:
        return ""
    seeds, more = len(bwt["seeds"]), bwt["power"]["more"]
    if seeds == 1:
        return "One seed measures no variance between runs: `trainorder run --seeds +2` does."
    if more is None:
        return f"An experiment of this size detects a difference of {power.DIFFERENCES[0]:g} with a power of {power.POWER:.0%}."
    wanted = f"a difference of {more['difference']:g}"
    if more["seeds"] is None:
        return f"More than {power.MAX_SEEDS} seeds would be needed to detect {wanted} on these problems: `trainorder power`."
    missing = max(more["seeds"] - seeds, 1)
    return f"About {missing} more seed{'s' * (missing > 1)} would detect {wanted}: `trainorder run --seeds +{missing}`."


SCOPE = {
    Verdict.SETTLED: "it holds over problems and {runs}",
    Verdict.PROBLEMS: "it holds over problems, not over training runs (one seed)",
    Verdict.OPEN: "the data cannot decide",
}
"""What each verdict means for a difference."""


def claim(
    found: str,
    a: str,
    b: str,
    difference: Mapping[str, Any],
    parts: Mapping[str, Any] | None,
    seeds: Sequence[int],
    runs: str,
) -> str:
    """The verdict on A minus B, with what the difference is made of; the same sentences wherever one is stated.

    `runs` are what the seeds are replicates of.

    >>> claim("settled", "x", "y", {"value": .02, "low": .01, "high": .03}, None, [0, 1], "training runs")
    'Settled: x minus y is +0.020 (+0.010 to +0.030); it holds over problems and training runs.'
    """
    of = f"{a} minus {b} is {with_interval(difference)}"
    text = f"{found.capitalize()}: {of}; {SCOPE[Verdict(found)].format(runs=runs)}"
    if found == Verdict.OPEN:
        text += one_seed(seeds)
    return f"{text}. {made_of(parts, found)}".rstrip()


PARTS = {
    "verified": "verified tasks",
    "judged": "tasks scored by a judge",
    "hidden_taste": "the hidden taste that the judge stands for",
}
"""Part of a difference -> what it is on."""


def made_of(parts: Mapping[str, Any] | None, found: str = Verdict.OPEN) -> str:
    """What a difference is made of, with a warning where judged tasks alone carry it; empty without judged tasks."""
    if parts is None:
        return ""
    shown = [f"{name} {with_interval(parts[key])}" for key, name in PARTS.items() if parts[key]]
    text = f"On {', '.join(shown)}."
    if parts["judged_only"] and found != Verdict.OPEN:
        text += " Warning: only tasks scored by a judge carry this difference"
        taste, judged = parts["hidden_taste"], parts["judged"]
        if taste and (not side(taste) or taste["value"] * judged["value"] < 0):
            text += ", and the hidden taste does not confirm it"
        text += "."
    return text


def split(parts: Mapping[str, Any] | None) -> str:
    """The parts of a difference without intervals: `verified +0.002, judged +0.156, hidden taste +0.005`."""
    if parts is None:
        return ""
    shown = [f"{k.replace('_', ' ')} {signed(parts[k]['value'])}" for k in PARTS if parts[k]]
    return ", ".join(shown)


def with_interval(difference: Mapping[str, Any]) -> str:
    """`+0.040 (+0.028 to +0.052)`."""
    return f"{signed(difference['value'])} ({interval(difference, sign=True)})"


def caveats(bwt: Bwt) -> list[str]:
    """What limits the verdict, sentence by sentence."""
    note = sentence(bwt["intervals"]["note"])
    selected = "Differences between arms are corrected for comparing all of them."
    several = len(bwt["ranking"]) > 2
    found = [note, selected if several else "", looks(bwt), unequal(bwt), same_judge(bwt)]
    return [*filter(None, [*found, over_optimisation(bwt)])]


def looks(bwt: Bwt) -> str:
    """How often the answer was looked at while seeds were added, and that the intervals hold over it; empty for one look.

    >>> looks({"settings": {"looks": [3, 4, 5], "level": 0.95, "level_of_differences": 0.9907}})
    'It was looked at 3 times (with 3, 4 and 5 seeds): differences between arms hold over all looks, each at 99.07% so that it is 95% together.'
    """
    found = bwt["settings"]
    if not found["looks"]:
        return ""
    times, numbers = len(found["looks"]), listed([str(n) for n in found["looks"]])
    often = {1: "once", 2: "twice"}.get(times, f"{times} times")
    return (
        f"It was looked at {often} (with {numbers} seeds): differences between arms hold over all looks, each at "
        f"{100 * found['level_of_differences']:.4g}% so that it is {100 * found['level']:.4g}% together."
    )


def unequal(bwt: Bwt) -> str:
    """Which arms cost another number of rollouts than most; empty where none does.

    >>> rows = [{"arm": a, "kind": "order", "cost": {"rollouts": n}} for a, n in (("x", 80), ("y", 80), ("z", 100))]
    >>> unequal({"ranking": [*rows, {"arm": "base", "kind": "base", "cost": {"rollouts": 0}}]})
    'Arms cost different numbers of rollouts: z 100, the others 80.'
    """
    costs = {row["arm"]: row["cost"] for row in bwt["ranking"] if row["kind"] != "base"}
    by_count: dict[float, list[str]] = {}
    for arm, cost in costs.items():
        if cost is None:
            return ""
        by_count.setdefault(cost["rollouts"], []).append(arm)
    if len(by_count) < 2:
        return ""
    most = max(by_count, key=lambda count: len(by_count[count]))
    told = [f"{listed(arms)} {_count(n)}" for n, arms in sorted(by_count.items()) if n != most]
    return f"Arms cost different numbers of rollouts: {', '.join(told)}, the others {_count(most)}."


def same_judge(found: Mapping[str, Any]) -> str:
    """That scores are not independent of training; empty where every judge of scores gave no rewards.

    >>> same_judge({"same_judge": ["verse"]})
    'On verse the judge that gave the rewards also gave these scores.'
    """
    tasks = found["same_judge"]
    return (
        f"On {listed(tasks)} the judge that gave the rewards also gave these scores."
        if tasks
        else ""
    )


def summary(bwt: Bwt) -> str:
    """Headline, verdict and caveats: what terminal, page, artifact and documents say about who is ahead."""
    return " ".join([f"{headline(bwt)}.", verdict(bwt), *caveats(bwt)])


OVER_OPTIMISED = 0.02
"""A fall of the hidden taste by more than this, while the judge's score rises, is named."""


def over_optimisation(bwt: Bwt) -> str:
    """Arms that please the judge and not the taste it stands for (Gao et al., arXiv 2210.10760); empty if there is none.

    >>> base = {"arm": "base", "kind": "base", "metrics": {"gold": {"verse": 0.55}, "score": {"verse": 0.45}}}
    >>> won = {"arm": "joint", "kind": "joint", "metrics": {"gold": {"verse": 0.43}, "score": {"verse": 0.77}}}
    >>> over_optimisation({"judged": ["verse"], "ranking": [won, base]})
    'Possible reward over-optimisation: on verse the judge scores joint 0.770 (base 0.450), the hidden taste 0.430 (base 0.550).'
    """
    base = next((row["metrics"] for row in bwt["ranking"] if row["kind"] == "base"), {})
    found = []
    for task in bwt["judged"]:
        if task not in base.get("gold", {}):
            continue
        taste, scored = base["gold"][task], base["score"][task]
        arms = [
            (row["metrics"]["gold"][task], row["metrics"]["score"][task], row["arm"])
            for row in bwt["ranking"]
        ]
        worse = sorted(a for a in arms if a[0] < taste - OVER_OPTIMISED and a[1] > scored)
        if worse:
            gold, judge, arm = worse[0]
            text = f"on {task} the judge scores {arm} {score(judge)} (base {score(scored)}), the hidden taste "
            text += f"{score(gold)} (base {score(taste)})"
            more = len(worse) - 1
            also = f"; likewise {more} other arm{'s' if more > 1 else ''}" if more else ""
            found.append(text + also)
    return f"Possible reward over-optimisation: {'. '.join(found)}." if found else ""


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


def beneath(bwt: Bwt) -> list[dict[str, str]]:
    """What the mean of an arm does not show: weakest task, problems gained and lost against the base, cost."""
    return [
        {
            "arm": row["arm"],
            "worst task": f"{row['worst']['task']} {score(row['worst']['score'])}",
            "gained": _count(row["turnover"] and row["turnover"]["gained"]),
            "lost": _count(row["turnover"] and row["turnover"]["lost"]),
            "rollouts": _count(row["cost"] and row["cost"]["rollouts"]),
            "rollouts per point": _count(row["rollouts_per_point"]),
        }
        for row in bwt["ranking"]
    ]


BENEATH = (
    "Gained and lost: test problems of the verified tasks that the most likely answer solves where the base's does not, and "
    "the other way round. Rollouts: of all training behind the arm under one seed, of a merge the checkpoints that it joins, of "
    "distillation its teachers; a point is .01 of the mean over the base's."
)
"""What the columns of `beneath` mean."""


def turnover(a: str, b: str, found: Mapping[str, Any]) -> str:
    """The problems beneath a difference.

    >>> turnover("x", "y", {"gained": 12.0, "lost": 9.0, "problems": 640})
    'Of 640 problems of verified tasks, x solves 12 that y does not, and y 9 that x does not (most likely answers).'
    """
    return (
        f"Of {_count(found['problems'])} problems of verified tasks, {a} solves {_count(found['gained'])} that {b} does not, "
        f"and {b} {_count(found['lost'])} that {a} does not (most likely answers)."
    )


def _count(value: float | None) -> str:
    """A number of problems or rollouts.

    >>> _count(20480.0), _count(1.5), _count(None)
    ('20,480', '1.5', '-')
    """
    return "-" if value is None else f"{round(value, 1):,.10g}"


def _difference(row: Mapping[str, Any], other: str) -> str:
    found = row["differences"][other]
    return "" if found is None else with_interval(found)
