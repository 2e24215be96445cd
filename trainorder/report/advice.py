"""What the measurement recommends and how sure that is, as sentences: the same for the terminal, documents and the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainorder.metrics.statistics import Verdict
from trainorder.order import MIN_ORDERS, Reason
from trainorder.report import words
from trainorder.report.words import Bwt


def certainty(bwt: Bwt) -> list[tuple[str, str]]:
    """What the answer holds over, in a few short pairs."""
    seeds, winner = len(bwt["seeds"]), bwt["winner"]
    excludes = winner["verdict"] != Verdict.OPEN
    found = bwt["recommended"]
    pairs = [
        ("over problems", "yes" if excludes else "no: the interval of the lead includes 0"),
        (
            f"over {bwt['intervals']['runs']}",
            "no: one seed says nothing about another run"
            if seeds == 1
            else f"{'yes' if excludes else 'no'} ({seeds} seeds)",
        ),
        (
            "cannot be separated from the highest",
            words.listed(winner["candidates"][1:]) or "no other arm",
        ),
    ]
    if looks := bwt["settings"]["looks"]:
        pairs.append(("looks, which the intervals account for", str(len(looks))))
    if found is not None and found["order"] is not None:
        pairs.append(
            (f"recommended: {words.path(found['order'])}", f"P(best order) {p_best(found)}")
        )
        pairs += [("next", _next(step)) for step in found["next"][:2]]
    return pairs


def _next(step: Mapping[str, Any]) -> str:
    orders = words.listed([words.path(order) for order in step["orders"]])
    return f"{step['run']}: {orders}" if orders else step["run"]


def recommendation(bwt: Bwt, key: str = "recommended") -> list[str]:
    """What a transfer matrix recommends and how sure that is, sentence by sentence."""
    found = bwt[key]
    if found is None:
        return []
    if found["order"] is None:
        return [words.sentence(found["run"])]
    sentences = [
        f"Recommended: {words.path(found['order'])}. {order_verdict(bwt, found)}",
        f"P(it is the best order) is {p_best(found)}; choosing it is expected to cost {words.score(found['regret'])} against "
        "knowing the best one.",
        f"The matrix predicts {words.with_interval(found['gap'])} against the reverse order.",
        misfit(found),
    ]
    return [*filter(None, sentences), *reasons(found)]


def p_best(found: Mapping[str, Any]) -> str:
    """P(the recommended order is the best); where few orders were measured, how far gains may be off is not known.

    >>> p_best({"p_optimal": 0.64, "reasons": []}), p_best({"p_optimal": 0.64, "reasons": ["few_orders"]})
    ('64%', '64% if gains add up, unknown if not')
    """
    unknown = " if gains add up, unknown if not" if Reason.FEW_ORDERS in found["reasons"] else ""
    return f"{found['p_optimal']:.0%}{unknown}"


ORDER_SCOPE = {
    Verdict.SETTLED: "this order is identified over problems and {runs}",
    Verdict.PROBLEMS: "this order stands out on these problems; with one seed nothing is known about other training runs",
    Verdict.OPEN: "the data do not single out an order",
}
"""What each verdict means for a recommended order."""


def order_verdict(bwt: Bwt, found: Mapping[str, Any]) -> str:
    """The verdict on a recommended order, in a sentence."""
    scope = ORDER_SCOPE[Verdict(found["verdict"])].format(runs=bwt["intervals"]["runs"])
    text = f"{found['verdict'].capitalize()}: {scope}"
    return f"{text}{words.one_seed(bwt['seeds']) if found['verdict'] == Verdict.OPEN else ''}."


def misfit(found: Mapping[str, Any]) -> str:
    """By how much the model that recommends was off on the measured orders; empty below two of them."""
    off = found["misfit"]
    if off["spread"] is None:
        return ""
    text = (
        f"Its predictions of the {off['orders']} measured orders are off by {words.signed(off['bias'])} on average "
        f"(an error common to all orders does not change which is best) and spread by {words.score(off['spread'])} around that"
    )
    if off["sd"] is not None:
        text += f"; {words.score(off['sd'])} of the spread is put down to the model, and is in these numbers"
    return f"{text}."


def reasons(found: Mapping[str, Any]) -> list[str]:
    """What speaks against a recommended order, one sentence each."""
    best = found["measured_best"] or {"name": "", "minus_recommended": None}
    ahead = best["minus_recommended"]
    likely = found["most_probable"]
    texts = {
        Reason.ONE_PHASE: "one phase has only one order",
        Reason.NOT_PROBABLE: f"the most likely best order is {words.path(likely['order'])}, with probability {likely['p']:.2f}",
        Reason.GAP_INCLUDES_0: (
            f"the interval of the predicted gap to the reverse order includes 0 ({words.interval(found['gap'], sign=True)})"
        ),
        Reason.COMMON_BY_CHANCE: (
            f"a gap this large is common where order has no effect (p = {found['p_no_order']:.2f})"
        ),
        Reason.FEW_ORDERS: (
            f"{found['misfit']['orders']} different orders of these phases were measured; how far the additive model is "
            f"off needs at least {MIN_ORDERS}"
        ),
        Reason.MEASURED_BETTER: ahead
        and f"{best['name']} was measured {words.with_interval(ahead)} better on dev",
    }
    return [words.sentence(texts[Reason(reason)] or "") for reason in found["reasons"]]


TESTED = {
    "transfer": (
        "Transfer does not depend on the start? Once the target has been trained, a phase's effect on it differs from its "
        "effect from the base by {shift}; {told} of {n} pairs differ, {flips} change sign.",
        "Transfer from the base against after training",
    ),
    "saturation": (
        "Training restores the same score? A phase's own tasks end {shift} higher when it is trained later than when it is "
        "trained first; {told} of {n} phases differ.",
        "Saturation from the base against from a later checkpoint",
    ),
    "triples": (
        "Do pairs predict triples? A third phase shifts what one phase does to another by {shift} (root mean square {rms}); "
        "{told} of {n} differ.",
        "Pairs against triples",
    ),
}
"""Assumption of Omni-Thinker -> what the measurement says of it, and what is to be run where it is silent."""


def assumptions(bwt: Bwt) -> list[str]:
    """What the measurement says about Omni-Thinker's assumptions, one sentence each, with what to run where it is silent."""
    lines = []
    for name, (says, silent) in TESTED.items():
        found = bwt["assumptions"][name]
        if found["n"]:
            facts = {key: found.get(key) for key in ("n", "flips")}
            facts |= {"told": sum(row["differs"] for row in found["rows"])}
            facts |= {"shift": words.with_interval(found["mean_difference"])}
            facts |= {"rms": words.score(found["rms"])} if "rms" in found else {}
            lines.append(says.format(**facts))
        if found["run"]:
            lines.append(f"{silent}: {found['run']}.")
    if (slopes := bwt["assumptions"]["slopes"]) is not None:
        own, other = slopes["own"], slopes["other"]
        lines.append(
            f"Starting one point higher changes a phase's gain by {words.signed(own['value'])} points on its own tasks "
            f"({words.interval(own, sign=True)}; assumed -1) and by {words.signed(other['value'])} on others "
            f"({words.interval(other, sign=True)}; assumed 0)."
        )
    return lines
