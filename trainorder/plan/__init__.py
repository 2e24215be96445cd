"""Orders -> prefix tree of nodes -> plan.yaml, which dvc.yaml unrolls into stages.

    params.yaml --compile_plan--> Plan --write--> plan.yaml --dvc.yaml--> stages

`trainorder.plan.check` finds what params.yaml gets wrong across sections; `status` says what is
cached, what the DVC cache can restore and what must run; `repair` what a killed dvc left half-written; `trainorder.plan.show` prints it.
"""

from trainorder.plan.compile import (
    Node,
    Plan,
    Resolved,
    compile_plan,
    load,
    measured,
    stored,
    write,
)
from trainorder.plan.orders import pending
from trainorder.plan.repair import repair
from trainorder.plan.state import State, status

__all__ = [
    "Node",
    "Plan",
    "Resolved",
    "State",
    "compile_plan",
    "load",
    "measured",
    "pending",
    "repair",
    "status",
    "stored",
    "write",
]
