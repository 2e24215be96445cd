"""What the last hour of a run needs, tried in its first seconds: the machine, the user's rows, the model.

`trainorder.plan.check` looks at params alone; this looks at the files and the machine they name.
"""

from __future__ import annotations

from collections.abc import Callable

from trainorder.config import Params
from trainorder.machine import ram_bytes
from trainorder.preflight import judges, machine, model, rows
from trainorder.reading import NotHere

__all__ = ["check", "judges", "lacking", "lines"]

MUCH = 100
"""No stage of the built-in model takes this many times the bytes of its weights."""


def check(params: Params) -> None:
    """Raise on the first thing that would stop a run of these params later.

    Raises:
        NotHere: a model, an endpoint, a package or the memory that this machine lacks.
        ParamsError: one line: what was found, what is needed and what to do.
    """
    for part in PARTS:
        part(params)


def lacking(params: Params) -> list[str]:
    """What this machine lacks for a run of these params, each in one line; parts that do not need it are checked all the same.

    Raises:
        ParamsError: as `check`, but for `NotHere`.
    """
    found = list[str]()
    for part in PARTS:
        try:
            part(params)
        except NotHere as error:
            found.append(str(error))
    return list(dict.fromkeys(found))


def lines(params: Params) -> list[str]:
    """What was recognised in rows and model, and is worth knowing before a run."""
    return [*rows.lines(params), *model.lines(params)]


def _harness(params: Params) -> None:
    if params.evaluation.harness:
        from trainorder.evaluation import harness  # and lm-eval: seconds

        harness.check(params.evaluation)


def _memory(params: Params) -> None:
    if params.policy.path is not None or MUCH * params.policy.tiny_bytes() > ram_bytes():
        from trainorder import footprint  # builds the model's shapes: seconds

        footprint.check(params)


PARTS: tuple[Callable[[Params], None], ...] = (
    lambda params: machine.check(),
    machine.check_backends,
    rows.check,
    model.check,
    _harness,
    _memory,
)
