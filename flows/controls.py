"""`python -m flows.controls`: a planted conflict must show as harm, and a planted twin must show no order effect."""

from prefect import flow

from flows.pipeline import trainorder_flow
from trainorder.flow.run import command


@flow(name="trainorder-controls", retries=0, persist_result=False)
def controls_flow(params: str = "configs/controls.yaml") -> None:
    """An experiment whose outcome is known: its report says whether the method sees what was planted."""
    trainorder_flow(params)


if __name__ == "__main__":
    command("trainorder.flow.run", "flows.controls:controls_flow")
