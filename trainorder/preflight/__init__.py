"""What the last hour of a run needs, tried in its first seconds: the machine, the user's rows, the model.

`trainorder.plan.check` looks at params alone; this looks at the files and the machine they name.
"""

from __future__ import annotations

from trainorder.config import Params
from trainorder.machine import ram_bytes
from trainorder.preflight import judges, machine, model, rows

__all__ = ["check", "judges", "rows"]

MUCH = 100
"""No stage of the built-in model takes this many times the bytes of its weights."""


def check(params: Params) -> None:
    """Raise on the first thing that would stop a run of these params later.

    Raises:
        ParamsError: one line: what was found, what is needed and what to do.
    """
    machine.check()
    rows.check(params)
    model.check(params)
    if params.evaluation.harness:
        from trainorder.evaluation import harness  # and lm-eval: seconds

        harness.check(params.evaluation)
    if params.policy.path is not None or MUCH * params.policy.tiny_bytes() > ram_bytes():
        from trainorder import footprint  # builds the model's shapes: seconds

        footprint.check(params)
