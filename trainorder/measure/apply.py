"""Add an order to params.yaml and leave every other byte of it, comments included, as it is."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainorder.config import parse_params
from trainorder.reading import ParamsError


def add_order(text: str, name: str, phases: Sequence[str]) -> tuple[str, str]:
    r"""(new text, name of the order): an order of these phases that is there already keeps its name.

    A taken name gets a number. The new line stands behind the last order; where `orders` is written in braces, the
    file is rewritten by ruamel.yaml, which keeps comments but not spacing.

    >>> new, name = add_order("orders:\n  a: [x, y]  # mine\n", "best", ["y", "x"])
    >>> print(new, end="")
    orders:
      a: [x, y]  # mine
      best: [y, x]
    """
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width = 4096
    yaml.preserve_quotes = True
    data: Any = yaml.load(text)
    orders = data["orders"]
    before = _orders(text) or {}
    for known, sequence in orders.items():
        if not isinstance(sequence, str) and list(sequence) == list(phases):
            return text, str(known)
    free = next(n for n in [name, *(f"{name}_{i}" for i in range(2, 100))] if n not in orders)
    wanted = {**before, free: list(phases)}
    if not orders.fa.flow_style():
        line, column = orders.lc.key(next(reversed(orders)))
        lines = text.splitlines(keepends=True)
        if not lines[line].endswith("\n"):
            lines[line] += "\n"
        entry = f"{' ' * column}{free}: [{', '.join(phases)}]\n"
        new = "".join([*lines[: line + 1], entry, *lines[line + 1 :]])
        if _orders(new) == wanted:
            return new, free
    orders[free] = list(phases)
    stream = io.StringIO()
    yaml.dump(data, stream)
    return stream.getvalue(), free


def apply(path: Path, name: str, phases: Sequence[str]) -> tuple[str, bool]:
    """Add the order to the params file, whole and then renamed; returns its name and whether the file changed.

    Raises:
        ParamsError: the file cannot take it, for instance because a phase is gone.
    """
    from ruamel.yaml import YAML

    text = path.read_text(encoding="utf-8")
    new, name = add_order(text, name, phases)
    params = parse_params(YAML(typ="safe", pure=True).load(new), source=str(path))
    unknown = [phase for phase in phases if phase not in params.phases]
    if unknown:
        raise ParamsError(
            f"{path} has no phase {', '.join(unknown)}: the transfer was measured with other params; run `trainorder run`"
        )
    if new == text:
        return name, False
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(new)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    return name, True


def _orders(text: str) -> dict[str, Any] | None:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe", pure=True).load(text)["orders"]
    except (YAMLError, TypeError):
        return None
