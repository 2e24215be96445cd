"""The experiment as a Prefect flow. `trainorder run` runs it, `trainorder deploy` serves it, `trainorder_flow.deploy` ships it."""

from typing import Any

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from trainorder.flow.experiment import opened
from trainorder.flow.hooks import tell_how_to_go_on
from trainorder.flow.run import command
from trainorder.flow.tasks import THREADS, name_of_run

Orders = dict[str, list[str] | str | dict[str, Any]]


@flow(  # pyrefly: ignore[no-matching-overload]
    name="trainorder",
    flow_run_name=name_of_run,
    task_runner=ThreadPoolTaskRunner(max_workers=THREADS),
    on_failure=[tell_how_to_go_on],
    on_crashed=[tell_how_to_go_on],
    on_cancellation=[tell_how_to_go_on],
    retries=0,
    persist_result=False,
)
def trainorder_flow(
    params: str = "params.yaml",
    orders: Orders | None = None,
    seeds: list[int] | None = None,
    workers: int | None = None,
) -> None:
    """Train, measure and compare the orders of a params file; only what is new trains.

    `orders`, `seeds` and `workers` replace those of the file for this run.
    """
    with opened(params, orders, seeds, workers) as experiment:
        experiment.first_pass()
        experiment.second_pass()  # the recommended order is known now
        experiment.publish()


if __name__ == "__main__":
    command("trainorder.flow.run")
