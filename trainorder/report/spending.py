"""What judges behind endpoints have cost: their calls and tokens as they were counted in this folder, at the prices of params.yaml."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from trainorder.config import EndpointJudgeConfig, load_params, params_file
from trainorder.judges.endpoint import identity_of
from trainorder.judges.questions import question
from trainorder.judges.verdicts import Spent
from trainorder.reading import found_at


@dataclass(frozen=True)
class Spending:
    """What one judge was asked, by all stages and commands in this folder."""

    judge: str
    calls: int
    input_tokens: int
    output_tokens: int
    unmetered: int
    """Replies that came without a count of tokens: their cost is not known."""
    cost: float | None
    """In the currency of the judge's prices; None where it has none."""

    @property
    def text(self) -> str:
        """One sentence.

        >>> Spending("referee", 1200, 300_000, 2400, 0, 0.62).text
        'Judge referee: 1,200 calls, 300,000 tokens asked, 2,400 replied; 0.62 at its prices.'
        """
        said = f"Judge {self.judge}: {self.calls:,} calls, {self.input_tokens:,} tokens asked, {self.output_tokens:,} replied"
        said += "" if self.cost is None else f"; {self.cost:,.2f} at its prices"
        if self.unmetered:
            said += f"; without {self.unmetered:,} replies whose tokens the endpoint did not count"
        return f"{said}."

    @property
    def metrics(self) -> dict[str, float]:
        """Name in MLflow -> value."""
        named = {name: getattr(self, name) for name in ("calls", "input_tokens", "output_tokens")}
        named |= {} if self.cost is None else {"cost": self.cost}
        return {f"judge/{self.judge}/{name}": float(value) for name, value in named.items()}


def spending() -> Iterator[Spending]:
    """Each endpoint that was asked in this folder; nothing in a folder without params.yaml."""
    if found_at(params_file()) != "file":
        return
    for name, config in load_params().named_judges().items():
        if not isinstance(config, EndpointJudgeConfig):
            continue
        total = Spent(identity_of(config, question(config))).total()
        if total:
            tokens = total["input_tokens"], total["output_tokens"]
            yield Spending(name, total["asked"], *tokens, total["unmetered"], config.cost(*tokens))
