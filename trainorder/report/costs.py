"""What steps on other tasks cost a task, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trainorder.metrics.statistics import side
from trainorder.report.words import Bwt, listed, orders, path, with_interval


def of_best(bwt: Bwt) -> str:
    """Of the best order every task's largest loss by a step that did not train it, where its interval excludes 0.

    >>> step = {"math": {"value": -0.07, "low": -0.09, "high": -0.05}, "qa": {"value": 0.1, "low": 0.0, "high": 0.2}}
    >>> order = {"phases": ["math", "qa"], "positions": [["math"], ["qa"]], "steps": [{}, step]}
    >>> of_best({"tasks": ["math", "qa"], "orders": {"a": order}, "ranking": [{"arm": "a"}]})
    'Cost: in a, the best order, math lost 0.070 by qa; qa lost nothing beyond chance.'
    """
    several = {name: order for name, order in orders(bwt).items() if len(order["phases"]) > 1}
    if not several:
        return ""
    name, order = next(iter(several.items()))
    worst: dict[str, tuple[float, str]] = {}
    for value, place, task, _ in _losses(order):
        worst[task] = min(worst.get(task, (0.0, "")), (value, order["phases"][place]))
    lost = [f"{task} lost {-value:.3f} by {phase}" for task, (value, phase) in worst.items()]
    kept = [task for task in bwt["tasks"] if task not in worst]
    parts = [*lost, *([f"{listed(kept)} lost nothing beyond chance"] if kept else [])]
    return f"Cost: in {name}, the best order, {'; '.join(parts)}."


def costliest(bwt: Bwt) -> str:
    """The step that cost another task most, of all orders; that none did where every interval includes 0.

    >>> step = {"math": {"value": -0.07, "low": -0.09, "high": -0.05}, "qa": {"value": 0.1, "low": 0.0, "high": 0.2}}
    >>> order = {"phases": ["math", "qa"], "positions": [["math"], ["qa"]], "steps": [{}, step]}
    >>> costliest({"orders": {"a": order}, "ranking": [{"arm": "a"}]})
    'The costliest step is qa after math (a): math -0.070 (-0.090 to -0.050).'
    """
    found = [
        (value, name, place, task, i)
        for name, order in orders(bwt).items()
        for value, place, task, i in _losses(order)
    ]
    if not found:
        return "No step took more from another task than chance explains."
    _, name, place, task, i = min(found, key=lambda item: item[:4])
    order = bwt["orders"][name]["phases"]
    after = f" after {path(order[:place])}" if place else ""
    return f"The costliest step is {order[place]}{after} ({name}): {task} {with_interval(i)}."


def _losses(order: Mapping[str, Any]) -> Iterator[tuple[float, int, str, Mapping[str, Any]]]:
    """Change, place of the step, task and interval where a step took from a task that it did not train."""
    for place, (own, step) in enumerate(zip(order["positions"], order["steps"], strict=True)):
        for task, i in step.items():
            if i is not None and task not in own and side(i) < 0:
                yield i["value"], place, task, i
