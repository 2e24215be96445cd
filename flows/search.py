"""`python -m flows.search --budget 30`: look for the best order within a budget of trained phases; each round is a subflow."""

from prefect import flow

from flows.pipeline import trainorder_flow
from trainorder.flow.run import command
from trainorder.flow.search import Search


@flow(name="trainorder-search", retries=0, persist_result=False)
def search_flow(budget: int = 30, minutes: float | None = None, params: str = "params.yaml") -> str:
    """Singles first, then the order that they predict and its reverse, then what all measured steps predict."""
    return Search.of(params, budget, minutes).run(trainorder_flow)


if __name__ == "__main__":
    command("trainorder.flow.search")
