"""Orders -> prefix tree of nodes -> plan.yaml, which says what is compared, and the pipeline files of plan/, the stages that make it.

    params.yaml --compile_plan--> Plan --write--> plan.yaml, plan/dvc.yaml, plan/<node>/dvc.yaml

`trainorder.plan.check` finds what params.yaml gets wrong across sections; `status` says what is
cached, what the DVC cache can restore and what must run; `repair` what a killed dvc left half-written; `trainorder.plan.show` prints it.
"""

from trainorder.plan.compile import Node, Plan, Resolved, compile_plan, load
from trainorder.plan.compiled import measured, stale_files, stored, write
from trainorder.plan.orders import pending, waiting
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
    "stale_files",
    "status",
    "stored",
    "waiting",
    "write",
]
