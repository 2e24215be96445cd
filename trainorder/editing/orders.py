"""Add a recommended order to params.yaml."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainorder.config import params_file, parse_params
from trainorder.editing.text import with_value
from trainorder.files import write_text
from trainorder.reading import ParamsError, did_you_mean, parse_yaml


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


def check_rule(found: Mapping[str, Any] | None, rule: str) -> None:
    """Refuse a rule for an order that there is not.

    Raises:
        ParamsError: names those there are.
    """
    rules = list((found or {}).get("rules", {}))
    if rules and rule not in rules:
        raise ParamsError(
            f"no rule {rule!r} for an order; there are {', '.join(rules)}{did_you_mean(rule, rules)}"
        )


def apply(path: Path, name: str, phases: Sequence[str]) -> tuple[str, bool]:
    """Add the order to the params file; returns its name and whether the file changed.

    Raises:
        ParamsError: the file cannot take it, for instance because a phase is gone.
    """
    text = path.read_text(encoding="utf-8")
    new, name = add_order(text, name, phases)
    params = parse_params(parse_yaml(new, str(path)), source=str(path))
    unknown = [phase for phase in phases if phase not in params.phases]
    if unknown:
        raise ParamsError(
            f"{path} has no phase {', '.join(unknown)}: the transfer was measured with other params; run `trainorder run`"
        )
    if new != text:
        write_text(path, new)
    return name, new != text


def add_order(text: str, name: str, phases: Sequence[str]) -> tuple[str, str]:
    r"""(new text, name of the order): an order of these phases that is there already keeps its name.

    A taken name gets a number.

    >>> new, name = add_order("orders:\n  a: [x, y]  # mine\n", "best", ["y", "x"])
    >>> print(new, end="")
    orders:
      a: [x, y]  # mine
      best: [y, x]
    """
    orders = parse_yaml(text, "params.yaml")["orders"]
    for known, sequence in orders.items():
        if sequence == list(phases):
            return text, str(known)
    free = next(n for n in [name, *(f"{name}_{i}" for i in range(2, 100))] if n not in orders)
    return with_value(text, f"+orders.{free}", f"[{', '.join(phases)}]"), free
