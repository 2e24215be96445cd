"""What `trainorder recommend` reads and adds to params.yaml, checked against what is asked of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainorder import results
from trainorder.config import params_file
from trainorder.measure.apply import apply
from trainorder.reading import ParamsError, did_you_mean


def recommendation(*, two_stage: bool, variant: str, rule: str) -> tuple[dict[str, Any], str]:
    """The measurement under a variant, and the key of the recommendation in it.

    Raises:
        ParamsError: no such variant or rule, or nothing was measured.
    """
    bwt = results.load()
    known = ["default", *bwt["variants"]]
    if variant not in known:
        raise ParamsError(
            f"no variant {variant!r} was measured; there are {', '.join(known)}{did_you_mean(variant, known)}"
        )
    chosen = bwt if variant == "default" else bwt["variants"][variant]
    key = "recommended_two_stage" if two_stage else "recommended"
    rules = list((chosen[key] or {}).get("rules", {}))
    if rules and rule not in rules:
        raise ParamsError(
            f"no rule {rule!r} for an order; there are {', '.join(rules)}{did_you_mean(rule, rules)}"
        )
    return chosen, key


def apply_order(found: Mapping[str, Any] | None, rule: str) -> str:
    """Add the rule's order to params.yaml; returns what was done, in a sentence.

    Raises:
        ParamsError: there is no order to add.
    """
    if found is None or found["order"] is None:
        raise ParamsError(
            f"no order to add: {found['run'] if found else 'no phase was trained alone'}"
        )
    name = "best" if rule == "exact" else rule
    name += "" if found["source"] == "from_base" else "_two_stage"
    file = params_file()
    name, changed = apply(file, name, found["rules"][rule]["order"])
    if not changed:
        return f"{file} has this order already: {name}"
    return f"{file}: order {name} added; `trainorder plan` shows what it costs"
