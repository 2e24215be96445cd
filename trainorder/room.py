"""Disk space that a plan needs, compared with what there is before it starts."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from trainorder import paths
from trainorder.files import size_of, size_text
from trainorder.plan.compile import Node, Plan, Sizes
from trainorder.plan.state import State
from trainorder.process import StageError
from trainorder.resume import KEPT

RECORDS_BYTES = 64 << 20
"""What evaluations, metrics, MLflow and Prefect may take beside the checkpoints."""
TOKENIZER_BYTES = 1 << 20
"""The tokenizer of the built-in model, and what else lies beside its weights; at most."""
OPTIMIZER_COPIES = 3
"""A step checkpoint holds the weights and AdamW's two moments."""


class DiskError(StageError):
    """The disk has less room than the plan needs."""


def check_room(current: Plan, states: Mapping[str, State]) -> None:
    """Compare what the plan needs with the free space, per file system.

    Raises:
        DiskError: too little; says how much is missing where, and what to do.
    """
    from dvc.repo import Repo

    with Repo(".") as repo:
        cache = Path(repo.cache.local.path)
    cache.mkdir(parents=True, exist_ok=True)
    here, cached = need(current, states)
    wanted: dict[int, tuple[Path, int]] = {}
    for place, size in ((Path(), here), (cache, cached)):
        device = place.stat().st_dev
        first, before = wanted.get(device, (place, 0))
        wanted[device] = (first, before + size)
    for place, size in wanted.values():
        free = shutil.disk_usage(place).free
        if size > free:
            raise DiskError(
                f"this plan needs about {size_text(size)} on the disk of {place.absolute()}, and {size_text(free)} are "
                f"free: make room (`trainorder gc` says what can go), or train fewer nodes"
            )


def need(
    current: Plan, states: Mapping[str, State], expected: Sizes | None = None
) -> tuple[int, int]:
    """Bytes that bringing the plan up to date takes: in this folder, and in DVC's cache.

    A node that trains is written twice, one that is restored once; each worker keeps step checkpoints meanwhile. `expected`
    None: `sizes` of the plan.
    """
    trained, restored = list[Node](), list[Node]()
    for node in current.nodes.values():
        state = states.get(node.stage, "stale")
        if state != "cached":
            (restored if state == "restorable" else trained).append(node)
    if not trained and not restored:
        return 0, 0
    known = expected or sizes(current)

    steps = current.params.flow.workers * (KEPT + 1) * known.step if trained else 0
    size = {
        state: sum(map(known.of, nodes))
        for state, nodes in (("trained", trained), ("restored", restored))
    }
    return size["trained"] + size["restored"] + steps + RECORDS_BYTES, size["trained"]


def sizes(current: Plan) -> Sizes:
    """Of the built-in model: as the largest checkpoint that is here, or as params.yaml lets expect; of another: by its config."""
    if current.params.policy.path is None:
        known = max((size_of(paths.checkpoint(node)) for node in current.nodes), default=0)
        size = known or current.params.policy.tiny_bytes() + TOKENIZER_BYTES
        return Sizes(size, size, OPTIMIZER_COPIES * size, current.params.policy.num_layers)
    from trainorder import footprint

    return footprint.disk(current.params, footprint.model_config(current.params.policy))
