"""One stage of a plan as a flow run of its own, on a worker of the work pool that `flow.pool` names."""

from prefect import flow

from trainorder.flow.hooks import tell_how_to_go_on
from trainorder.flow.pool import FLOW, make


@flow(  # pyrefly: ignore[no-matching-overload]
    name=FLOW,
    flow_run_name="{stage}",
    on_failure=[tell_how_to_go_on],
    retries=0,
    persist_result=False,
)
def stage_flow(
    stage: str, params: str, resolved: dict[str, list[str]], project: dict[str, str]
) -> None:
    """Make a stage in this worker's clone, from what the DVC remote holds, and push it there."""
    make(stage, params, resolved, project)
