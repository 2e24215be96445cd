"""What params.yaml can get wrong across its sections. Runs in the first second: no torch, nothing written."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from trainorder.config import MethodConfig, Params, ParamsError, PhaseConfig, Piece, did_you_mean
from trainorder.plan.compile import single_phases
from trainorder.tasks import make_task

PIECES = Path(__file__).parents[1] / "rl" / "pieces.py"
SLOT_OF = {
    "reward": "reward",
    "edit": "edit",
    "advantage": "advantage",
    "weight": "weight",
    "metric": "metric",
    "term": "terms",
}
"""Decorator in trainorder/rl/pieces.py -> key of `method:`."""
WITH_COEF = ("reward", "terms")
PAID_BY = {"structured": "verifier", "creative": "judge"}


def check(params: Params) -> None:
    """Raise on the first thing that cannot work.

    Raises:
        ParamsError: names the key, what is allowed and the nearest match.
    """
    rewarded_by = {
        name: make_task(name, config).rewarded_by for name, config in params.tasks.items()
    }
    _check_policy(params)
    _check_seeds(params.seeds)
    _check_sft(params)
    _check_judge(params, rewarded_by)
    _check_method("rl.method", params.rl.method)
    for name, phase in params.phases.items():
        _check_phase(params, name, phase, rewarded_by)
    _check_orders(params)
    _check_merges(params)
    if not params.allow_unequal_budgets:
        _check_budgets(params)


def _check_policy(params: Params) -> None:
    width, heads = params.policy.hidden_size, params.policy.num_heads
    if params.policy.path is None and (width % heads or (width // heads) % 2):
        raise ParamsError(
            f"policy: hidden_size {width} over num_heads {heads} gives no even head size; "
            f"take a hidden_size that is a multiple of {2 * heads}"
        )


def _check_seeds(seeds: Sequence[int]) -> None:
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ParamsError(f"seeds: each seed once and none below 0, got {list(seeds)}")


def _check_sft(params: Params) -> None:
    for task in params.sft.gate:
        _check_known("sft.gate", "task", task, params.tasks)
        if not params.tasks[task].demonstrations:
            raise ParamsError(
                f"sft.gate: task {task!r} has no demonstrations to learn from; "
                f"set tasks.{task}.demonstrations or take it out of the gate"
            )
    if params.sft.max_steps < params.sft.steps:
        raise ParamsError(
            f"sft.max_steps: {params.sft.max_steps} is below sft.steps {params.sft.steps}; raise it or lower steps"
        )


def _check_judge(params: Params, rewarded_by: Mapping[str, str]) -> None:
    task = params.judge.task
    _check_known("judge.task", "task", task, params.tasks)
    if rewarded_by[task] != "judge":
        judged = [name for name, payer in rewarded_by.items() if payer == "judge"]
        raise ParamsError(
            f"judge.task: {task!r} is graded by its verifier; judged tasks: {', '.join(judged) or 'none'}"
        )


def _check_phase(
    params: Params, name: str, phase: PhaseConfig, rewarded_by: Mapping[str, str]
) -> None:
    where = f"phases.{name}"
    for task, weight in phase.tasks.items():
        _check_known(f"{where}.tasks", "task", task, params.tasks)
        if not weight > 0:
            raise ParamsError(
                f"{where}.tasks.{task}: the weight must be above 0, got {weight}; leave the task out"
            )
        wanted = PAID_BY.get(phase.kind)
        if wanted and rewarded_by[task] != wanted:
            raise ParamsError(
                f"{where}: a {phase.kind} phase takes tasks rewarded by a {wanted}, and {task!r} is rewarded by a "
                f"{rewarded_by[task]}; set `kind: mixed` or move the task"
            )
        if rewarded_by[task] == "judge" and task != params.judge.task:
            raise ParamsError(
                f"{where}: the judge is trained for {params.judge.task!r} (judge.task), not for {task!r}"
            )
    rl = params.phase_rl(name)
    if rl.prompts_per_step < len(phase.tasks):
        raise ParamsError(
            f"{where}: {rl.prompts_per_step} prompts per step cannot serve {len(phase.tasks)} tasks; "
            f"raise rl.prompts_per_step"
        )
    if rl.updates_per_batch > rl.prompts_per_step:
        raise ParamsError(
            f"{where}: {rl.updates_per_batch} updates per batch of {rl.prompts_per_step} prompts; "
            f"a batch is split by prompt, so lower rl.updates_per_batch"
        )
    _check_method(f"{where}.rl.method", rl.method)


def _check_orders(params: Params) -> None:
    seen: dict[tuple[str, ...], str] = {}
    for name, order in params.orders.items():
        if isinstance(order, str):
            if len(single_phases(params)) < 2:
                raise ParamsError(
                    f"orders.{name}: {order!r} is chosen among the phases of the orders that list two or more, "
                    f"and there is no such order; add one"
                )
            continue
        for phase in order:
            _check_known(f"orders.{name}", "phase", phase, params.phases)
        if tuple(order) in seen:
            raise ParamsError(
                f"orders.{name}: the same phases as orders.{seen[tuple(order)]}; remove one"
            )
        seen[tuple(order)] = name


def _check_merges(params: Params) -> None:
    for name in params.merges:
        if name in params.phases:
            raise ParamsError(
                f"merges.{name}: a phase has this name too, and both would be node s0--{name}; rename one"
            )
    if params.merges and len(single_phases(params)) < 2:
        raise ParamsError(
            "merges: nothing to merge, no order lists two or more phases; add one or remove `merges`"
        )


def _check_known(where: str, what: str, name: str, allowed: Mapping[str, Any]) -> None:
    if name not in allowed:
        names = sorted(allowed)
        raise ParamsError(
            f"{where}: no {what} {name!r}; there are {', '.join(names)}{did_you_mean(name, names)}"
        )


def budget(params: Params, phases: Sequence[str]) -> dict[str, float]:
    """What training on these phases spends: updates, rollouts, and prompts of every task.

    A phase of weights w spends steps * prompts_per_step * w[task] / sum(w) prompts of a task.
    """
    spent: dict[str, float] = {"updates": 0, "rollouts": 0}
    for name in phases:
        phase, rl = params.phases[name], params.phase_rl(name)
        prompts = phase.steps * rl.prompts_per_step
        spent["updates"] += phase.steps * rl.updates_per_batch
        spent["rollouts"] += prompts * rl.group_size
        total = sum(phase.tasks.values())
        for task, weight in phase.tasks.items():
            key = f"prompts of {task}"
            spent[key] = round(spent.get(key, 0) + prompts * weight / total, 6)
    return spent


def _check_budgets(params: Params) -> None:
    orders = {
        name: single_phases(params) if isinstance(order, str) else order
        for name, order in params.orders.items()
    }
    first, *others = [(name, budget(params, phases)) for name, phases in orders.items()]
    for name, spent in others:
        quantities = list(dict.fromkeys([*first[1], *spent]))
        pairs = [(q, first[1].get(q, 0), spent.get(q, 0)) for q in quantities]
        different = [f"{q} {a:g} and {b:g}" for q, a, b in pairs if a != b]
        if different:
            raise ParamsError(
                f"orders: {first[0]} and {name} differ in budget: {', '.join(different)}; "
                f"an order effect could be a budget effect. Make them equal, or set `allow_unequal_budgets: true`"
            )


def _check_method(where: str, method: MethodConfig) -> None:
    for slot in SLOT_OF.values():
        for piece in getattr(method, slot):
            _check_piece(f"{where}.{slot}", slot, piece)


def _check_piece(where: str, slot: str, piece: Piece) -> None:
    if isinstance(piece, dict) and len(piece) != 1:
        raise ParamsError(
            f"{where}: a piece is one name with its options, got {sorted(piece)}; make each a list item of its own"
        )
    name, given = (piece, {}) if isinstance(piece, str) else next(iter(piece.items()))
    listed = pieces(PIECES)[slot]
    _check_known(where, "piece", name, listed)
    allowed = sorted(listed[name])
    for option, value in given.items():
        if option not in allowed:
            takes = f"it takes {', '.join(allowed)}" if allowed else "it takes none"
            raise ParamsError(
                f"{where}.{name}: no option {option!r}; {takes}{did_you_mean(option, allowed)}"
            )
        try:
            TypeAdapter(listed[name][option]).validate_python(value, strict=True)
        except ValidationError as error:
            message = error.errors()[0]["msg"]
            raise ParamsError(
                f"{where}.{name}.{option}: {message[0].lower()}{message[1:]}, got {value!r}"
            ) from None


@cache
def pieces(file: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Slot -> piece -> option -> its type, read from the source: importing it would import torch."""
    found: dict[str, dict[str, dict[str, Any]]] = {slot: {} for slot in SLOT_OF.values()}
    for item in ast.parse(file.read_text(encoding="utf-8")).body:
        if not isinstance(item, ast.FunctionDef):
            continue
        for decorator in item.decorator_list:
            called = decorator.func if isinstance(decorator, ast.Call) else decorator
            slot = SLOT_OF.get(called.id) if isinstance(called, ast.Name) else None
            if slot:
                options = {a.arg: _type(a.annotation) for a in item.args.kwonlyargs}
                found[slot][item.name] = options | ({"coef": float} if slot in WITH_COEF else {})
    return found


def _type(annotation: ast.expr | None) -> Any:
    """The type an annotation names, as far as plain values go; anything else is left to the piece."""
    known = {"float": float, "int": int, "bool": bool, "str": str, "list": list, "Literal": Literal}
    try:
        text = "Any" if annotation is None else ast.unparse(annotation)
        return eval(text, {"__builtins__": {}}, {**known, "Any": Any, "None": None})
    except (NameError, TypeError):
        return Any
