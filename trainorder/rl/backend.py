"""Who computes an update: this process alone, or DeepSpeed over several (deepspeed_backend.py).

The step is written once, for all ranks. Each rank holds the whole step batch, so whatever is computed over several rows is
the same everywhere; a rank samples, grades and trains its own share of the prompts. Token shares of the loss are fixed on
the whole batch beforehand, so the gradients of the ranks only have to be added.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from trainorder.config import RlConfig, TrainingConfig
from trainorder.optimizers import make_optimizer, set_lr
from trainorder.reading import ParamsError
from trainorder.rl.packing import micro_batches
from trainorder.rl.states import shares_prompts
from trainorder.rl.types import Roll
from trainorder.workers import piece_tokens, workers_for

STATE = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")
"""What AdamW and Muon keep of a weight."""
T = TypeVar("T")
R = TypeVar("R")


class Backend(Protocol):
    """Weights, optimiser and ranks behind one update. Every method is called by all ranks in the same order."""

    rank: int
    world: int
    optimizer: Any
    training: TrainingConfig

    @staticmethod
    def join(device: str) -> None:
        """Meet the other ranks; before the model is loaded."""
        ...

    def micro_batches(self, roll: Roll, budget: int) -> list[list[int]]:
        """This rank's micro-batches, rows of `roll`; all ranks get equally many, [] where one has nothing to do."""
        ...

    def computing(self) -> AbstractContextManager[Any]:
        """The context of a training forward: its precision and mode."""
        ...

    def zero_grad(self) -> None:
        """Before the first micro-batch of an update."""
        ...

    def map(self, function: Callable[[list[int]], R], batches: Sequence[list[int]]) -> Iterator[R]:
        """The results in order, without gradients."""
        ...

    def add_gradients(
        self, loss_of: Callable[[list[int]], tuple[Tensor, R]], batches: Sequence[list[int]]
    ) -> Iterator[R]:
        """Add the gradient of each micro-batch's loss, in order; gives what `loss_of` returned beside it."""
        ...

    def gradients(self) -> Mapping[str, Tensor]:
        """Weight -> its gradient so far; not with DeepSpeed, which splits them."""
        ...

    def step(self, lr: float) -> float:
        """Clip and update; the gradient's norm before clipping. One that is not finite was not applied."""
        ...

    def gather(self, mine: T) -> list[T]:
        """What each rank brought, in the order of ranks."""
        ...

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight, whole, adapters merged, under its Hugging Face name, without grad."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Weights and optimiser state, whole. The same names for every backend and any world.

        Of several ranks only the first has them.
        """
        ...

    def shard(self) -> dict[str, Tensor]:
        """What this rank holds of them: all that it needs to go on among as many ranks."""
        ...

    def restore_shard(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `shard` gave.

        Raises:
            ParamsError: they belong to another model or another number of ranks.
        """
        ...

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave.

        Raises:
            ParamsError: they belong to another model or optimiser.
        """
        ...


class LocalBackend:
    """One process and plain torch."""

    rank, world = 0, 1

    @staticmethod
    def join(device: str) -> None:
        """See Backend."""

    def __init__(self, model: Any, config: RlConfig, training: TrainingConfig) -> None:
        self.model, self.config, self.training = model, config, training
        self.trained = trained(model)
        with self.computing():
            self.workers = workers_for(model, config.threads)
        self.optimizer = make_optimizer(model, config)

    def micro_batches(self, roll: Roll, budget: int) -> list[list[int]]:
        """See Backend."""
        with self.computing():
            bound = piece_tokens(self.model, budget)
        return micro_batches(roll, bound, shared=shares_prompts(self.model, roll))

    def computing(self) -> AbstractContextManager[Any]:
        """See Backend."""
        return computing(self.model, self.training)

    def zero_grad(self) -> None:
        """See Backend."""
        for parameter in self.trained.values():
            parameter.grad = torch.zeros_like(parameter)

    def gradients(self) -> Mapping[str, Tensor]:
        """See Backend."""
        return {name: p.grad for name, p in self.trained.items() if p.grad is not None}

    def map(self, function: Callable[[list[int]], R], batches: Sequence[list[int]]) -> Iterator[R]:
        """See Backend."""

        def plain(rows: list[int]) -> R:
            with torch.no_grad():
                return function(rows)

        return self.workers.map(plain, batches)

    def add_gradients(
        self, loss_of: Callable[[list[int]], tuple[Tensor, R]], batches: Sequence[list[int]]
    ) -> Iterator[R]:
        """See Backend."""
        weights = list(self.trained.values())

        def part(rows: list[int]) -> tuple[Sequence[Tensor | None], R]:
            with torch.enable_grad():
                loss, facts = loss_of(rows)
                if self.workers.count > 1:
                    return torch.autograd.grad(loss, weights, allow_unused=True), facts
                loss.backward()
            return [], facts

        for gradients, facts in self.workers.map(part, batches):
            for weight, gradient in zip(weights, gradients, strict=False):
                if gradient is not None and weight.grad is not None:  # zero_grad made it
                    weight.grad.add_(gradient)
            yield facts

    def step(self, lr: float) -> float:
        """See Backend."""
        norm = torch.nn.utils.clip_grad_norm_(self.trained.values(), self.config.max_grad_norm)
        if norm.isfinite():
            set_lr(self.optimizer, lr)
            self.optimizer.step()
        return float(norm)

    def gather(self, mine: T) -> list[T]:
        """See Backend."""
        return [mine]

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """See Backend."""
        from trainorder.rl.adapters import merged

        yield from merged(self.model)

    def tensors(self) -> dict[str, Tensor]:
        """See Backend."""
        found = {}
        for name, parameter in self.trained.items():
            found[f"model/{name}"] = parameter.detach()
            for key, value in self.optimizer.state.get(parameter, {}).items():
                found[f"optimizer/{name}/{key}"] = value
        return found

    def shard(self) -> dict[str, Tensor]:
        """See Backend."""
        return self.tensors()

    def restore_shard(self, tensors: Mapping[str, Tensor]) -> None:
        """See Backend."""
        self.restore(tensors)

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """See Backend."""
        check_names(tensors, self.trained)
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(tensors[f"model/{name}"])
                self.optimizer.state[parameter] = {
                    key: tensors[f"optimizer/{name}/{key}"].clone()
                    for key in STATE
                    if f"optimizer/{name}/{key}" in tensors
                }


def holds_whole_weights(training: TrainingConfig) -> bool:
    """Whether the trained model has every weight whole, without adapters, and another can share its tensors."""
    return training.lora is None and not splits_weights(training)


def splits_weights(training: TrainingConfig) -> bool:
    """Whether a rank holds its share of each weight only (ZeRO-3)."""
    return training.backend == "deepspeed" and training.zero_stage == 3


def trained(model: Any) -> dict[str, torch.nn.Parameter]:
    """Name -> weight that is updated; tied ones once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@contextmanager
def computing(model: Any, training: TrainingConfig) -> Iterator[None]:
    """Autocast to bfloat16 where training.dtype says so; weights stay fp32, so small updates are not lost.

    transformers recomputes activations in training mode only, and cannot decode in it. There is no dropout in either.
    """
    device = next(model.parameters()).device.type
    # the cache would hold every weight whole in bfloat16 until the forward's end, which ZeRO-3 splits them to avoid
    keep = not splits_weights(training)
    model.train(training.gradient_checkpointing)
    try:
        bf16 = training.dtype == "bf16"
        with torch.autocast(device, torch.bfloat16, enabled=bf16, cache_enabled=keep):
            yield
    finally:
        model.eval()


def check_names(tensors: Mapping[str, Tensor], names: Mapping[str, Any]) -> None:
    """Refuse a saved state of another model."""
    saved = {key.removeprefix("model/") for key in tensors if key.startswith("model/")}
    if saved != set(names):
        other = sorted(saved ^ set(names))
        raise ParamsError(
            f"the saved state is of another model: {len(other)} weights differ, {other[0]} among them; "
            "delete it and train the node from its parent"
        )


def split_by_size(roll: Roll, world: int) -> list[list[int]]:
    """Rows of each rank: whole groups, the heaviest first, each to the rank with the fewest tokens so far.

    >>> from types import SimpleNamespace as Rows
    >>> lengths = torch.tensor([9, 1, 4, 3])
    >>> rows = Rows(prompt_ids=[[1]] * 4, group=torch.arange(4), lengths=lambda: lengths)
    >>> split_by_size(rows, 2)
    [[0], [1, 2, 3]]
    """
    rows_of: dict[int, list[int]] = {}
    for i, group in enumerate(roll.group.tolist()):
        rows_of.setdefault(group, []).append(i)
    lengths = roll.lengths().tolist()
    size = {
        g: sum(len(roll.prompt_ids[i]) + lengths[i] for i in rows) for g, rows in rows_of.items()
    }
    shares, loads = [list[int]() for _ in range(world)], [0] * world
    for group in sorted(rows_of, key=lambda g: (-size[g], g)):
        least = loads.index(min(loads))
        shares[least] += rows_of[group]
        loads[least] += size[group]
    return [sorted(share) for share in shares]


def slice_of(count: int, rank: int, world: int) -> tuple[int, int]:
    """First and end of a rank's part of `count` things in a row, parts as even as can be.

    >>> [slice_of(5, rank, 2) for rank in range(2)], slice_of(1, 0, 2)
    ([(0, 2), (2, 5)], (0, 0))
    """
    return count * rank // world, count * (rank + 1) // world


def in_order(rolls: Sequence[Roll | None]) -> Roll:
    """One roll of the parts that the ranks sampled."""
    return Roll.cat([roll for roll in rolls if roll is not None])
