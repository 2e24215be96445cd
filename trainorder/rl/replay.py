"""`python -m trainorder.rl.replay DUMP`: compute a refused update again, and say in which rows it goes wrong.

A dump (trainorder/rl/guard.py) holds the rows, the weights they met (adapters merged, parts of all ranks joined) and the
settings, so nothing else is needed.
"""

from __future__ import annotations

import argparse
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from trainorder.config import RlConfig, TrainingConfig
from trainorder.policy import Policy
from trainorder.reading import ParamsError
from trainorder.rl.backend import LocalBackend
from trainorder.rl.guard import FACTS, broken, load_dump
from trainorder.rl.method import Method
from trainorder.rl.step import accumulate, task_factors
from trainorder.rl.types import Roll, State


def replay(place: Path) -> dict[str, Any]:
    """`not_finite` as recorded, `again` as computed now, and the `rows` that alone give a loss or gradient not finite.

    Raises:
        ParamsError: the folder is no dump.
    """
    if not (place / FACTS).is_file():
        raise ParamsError(f"{place} holds no dump of a refused update (no {FACTS})")
    roll, state, facts = load_dump(place)
    policy = Policy.load(place / "policy")
    rl = RlConfig.model_validate(facts["rl"])
    models = dict.fromkeys(Method.from_config(rl.method).models, policy.model)
    compute = partial(_numbers, policy, models, state=state, rl=rl, facts=facts)
    again = broken(compute(roll), roll)
    single = [roll.rows([i]) for i in range(len(roll))]
    rows = [i for i, row in enumerate(single) if broken(compute(row), row)]
    return {"not_finite": facts["not_finite"], "again": again, "rows": rows}


def _numbers(
    policy: Policy,
    models: dict[str, Any],
    roll: Roll,
    state: State,
    rl: RlConfig,
    facts: dict[str, Any],
) -> dict[str, float]:
    sums = accumulate(
        policy.model,
        roll,
        Method.from_config(rl.method),
        state,
        budget=rl.micro_batch_tokens,
        max_length=facts["max_length"],
        backend=LocalBackend(policy.model, rl, TrainingConfig(dtype=facts["dtype"])),
        factor=task_factors(roll, rl)[1],
        models=models,
    )
    grads = [p.grad for p in policy.model.parameters() if p.grad is not None]
    norm = math.sqrt(sum(float(torch.linalg.vector_norm(g.double())) ** 2 for g in grads))
    return {"loss": sums["loss"], "grad_norm": norm}


def main() -> int:
    """Print what is found; 2 for a folder that is no dump."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "dump", type=Path, help="folder that the message of the refused update names"
    )
    try:
        found = replay(parser.parse_args().dump)
    except ParamsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"recorded as not finite: {', '.join(found['not_finite'])}")
    print(f"computed again: {', '.join(found['again']) or 'all finite'}")
    print(f"rows that alone are not finite: {found['rows']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
