"""Memory and disk that an experiment takes, computed from its params and its model's config before anything trains.

The model is built on fake tensors (shapes on torch's meta device, no weight is read). Weights, gradients and optimizer
states are sums over its tensors. Activations are the largest number of bytes that live at one time while the library's own
forward and backward of one micro-batch run over these shapes. Caches, copies and what DeepSpeed keeps follow from the code
that allocates them. docs/performance.md compares all of this with measured bytes.
"""

from __future__ import annotations

from trainorder.config import Params
from trainorder.footprint.experiment import (
    disk,
    frozen_models,
    ranks_of,
    stages,
    training_parts,
)
from trainorder.footprint.machines import Machine, Part, Stage, peak, too_large
from trainorder.footprint.shapes import (
    Shapes,
    full_roll,
    micro_batch_peak,
    model_config,
    state_bytes,
    tensor_bytes,
)
from trainorder.reading import NotHere

__all__ = [
    "Machine", "Part", "Shapes", "Stage", "check", "disk", "frozen_models", "full_roll", "micro_batch_peak",
    "model_config", "peak", "ranks_of", "stages", "state_bytes", "tensor_bytes", "too_large", "training_parts",
]  # fmt: skip


def check(params: Params) -> None:
    """Refuse an experiment that cannot fit on this machine. Machines of a hostfile are not looked at.

    Only what is certain counts: weights, gradients, optimizer states, copies and the cache of sampling.

    Raises:
        NotHere: the stage, what it needs, what there is, and the setting to change.
    """
    if params.training.hostfile is not None:
        return
    machine = Machine.here(params.training)
    for stage in stages(params, machine, model_config(params.policy), activations=False):
        problem = too_large(stage, machine, sure=True)
        if problem:
            raise NotHere(f"{problem}. `python -m benchmarks.footprint` lists all of it")
