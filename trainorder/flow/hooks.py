"""What Prefect calls when a flow run did not end well."""

from __future__ import annotations

from typing import Any

from prefect.logging.loggers import flow_run_logger


def tell_how_to_go_on(flow: Any, run: Any, state: Any) -> None:
    """Say in the run's logs why it ended, and that another run goes on from there."""
    why = (state.message or "no reason given").strip().splitlines()[0]
    flow_run_logger(run, flow).error(
        "%s: %s. What was finished is kept; run it again and it goes on from the last step checkpoints",
        state.name,
        why,
    )
