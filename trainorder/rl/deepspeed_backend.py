"""DeepSpeed ZeRO (arXiv:1910.02054) behind one update, on one or several machines; the only file that knows it.

DeepSpeed averages gradients over ranks and counts on equally many backward calls on each. Here a rank's loss is its share of
a sum, so it is multiplied by the number of ranks, and a rank that has fewer micro-batches adds some of loss zero.
"""

from __future__ import annotations

import datetime
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor

from trainorder.config import RlConfig, TrainingConfig
from trainorder.optimizers import make_optimizer, set_lr
from trainorder.reading import ParamsError
from trainorder.rl.adapters import merged
from trainorder.rl.backend import check_names, computing, split_by_size, trained
from trainorder.rl.packing import micro_batches
from trainorder.rl.ranks import INSTALL, launched
from trainorder.rl.states import shares_prompts
from trainorder.rl.types import Roll

T = TypeVar("T")
R = TypeVar("R")

HELD = -1
"""The user of a weight that must stay whole, in DeepSpeed's books; its own are numbered from 0."""
STATE = ("exp_avg", "exp_avg_sq")
"""AdamW's moments; its step counter is kept apart."""


class DeepSpeedBackend:
    """ZeRO 1, 2 or 3; one object per rank. The process group must be there (`join`)."""

    @staticmethod
    def join(device: str) -> None:
        """See Backend."""
        join(device)

    def __init__(self, model: Any, config: RlConfig, training: TrainingConfig) -> None:
        deepspeed = _deepspeed()
        self.model, self.config, self.training = model, config, training
        self.rank, self.world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self.trained = trained(model)
        assert config.optimizer == "adamw", "ZeRO splits flat weights: Muon needs matrices"
        optimizer = make_optimizer(model, config, fused=False)
        settings = {
            "train_batch_size": self.world,  # ours is counted in tokens: the loss carries its own shares
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": config.max_grad_norm,
            "zero_optimization": {
                "stage": training.zero_stage,
                "overlap_comm": False,
                # norms and biases stay whole on every rank, matrices are split
                "stage3_param_persistence_threshold": 1
                + max([p.numel() for p in model.parameters() if p.dim() < 2], default=0),
            },
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 10**9,
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.engine, self.optimizer, _, _ = deepspeed.initialize(
                model=model, optimizer=optimizer, config=settings, dist_init_required=False
            )

    def micro_batches(self, roll: Roll, budget: int) -> list[list[int]]:
        """See Backend."""
        shared, shares = shares_prompts(self.model, roll), []
        for rows in split_by_size(roll, self.world):
            batches = micro_batches(roll.rows(rows), budget, shared=shared)
            shares.append([[rows[i] for i in batch] for batch in batches])
        longest = max(1, *map(len, shares))
        return shares[self.rank] + [[]] * (longest - len(shares[self.rank]))

    def computing(self) -> AbstractContextManager[Any]:
        """See Backend."""
        if self.training.zero_stage == 3:
            self._keep_head()
        return computing(self.model, self.training)

    def zero_grad(self) -> None:
        """See Backend. DeepSpeed drops its sums at an update only, and the one before may have been refused."""
        self.optimizer.zero_grad()
        self.optimizer.averaged_gradients = {}
        if self.training.zero_stage < 3:
            self.optimizer.all_grad_tensors = {}

    def map(self, function: Callable[[list[int]], R], batches: Sequence[list[int]]) -> Iterator[R]:
        """See Backend."""
        for rows in batches:
            with torch.no_grad():
                found = function(rows)
            yield found

    def add_gradients(
        self, loss_of: Callable[[list[int]], tuple[Tensor, R]], batches: Sequence[list[int]]
    ) -> Iterator[R]:
        """See Backend."""
        for i, rows in enumerate(batches):
            with torch.enable_grad():
                loss, facts = loss_of(rows)
                self.engine.set_gradient_accumulation_boundary(i == len(batches) - 1)
                # rows go through the inner module, so DeepSpeed sees no forward; without this ZeRO-3
                # would overwrite the gradient of the micro-batch before instead of adding to it
                self.optimizer.clear_backward_seen_flag()
                self.engine.backward(loss * self.world)
            yield facts

    def gradients(self) -> Mapping[str, Tensor]:
        """See Backend."""
        raise NotImplementedError("a method with factors per layer was let through to DeepSpeed")

    def step(self, lr: float) -> float:
        """See Backend. DeepSpeed itself skips an update that is not finite."""
        set_lr(self.optimizer, lr)
        self.engine.step()
        if not self.engine.was_step_applied():
            return float("nan")
        return float(self.engine.get_global_grad_norm())

    def gather(self, mine: T) -> list[T]:
        """See Backend."""
        found: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(found, mine)
        return found

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """See Backend. With ZeRO-3 one layer is whole at a time, unless adapters must be merged."""
        if self.training.zero_stage < 3:
            yield from merged(self.model)
            return
        if self.training.lora is not None:
            with _whole(list(self.model.parameters())):
                found = [(name, weight.clone()) for name, weight in merged(self.model)]
            yield from found
            return
        for name, weight in self.model.state_dict(keep_vars=True).items():
            with _whole([weight]):
                found = weight.detach().clone()
            yield name, found

    def tensors(self) -> dict[str, Tensor]:
        """See Backend. Only the first rank keeps them, in its host's memory: whole they may not fit any GPU."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        found, step = dict[str, Tensor](), self._steps()

        def keep(name: str, whole: Any) -> None:
            if self.rank == 0:
                found[name] = whole.detach().to("cpu", copy=True)

        for name, parameter in self.trained.items():
            keep(f"model/{name}", safe_get_full_fp32_param(parameter))
            for key in STATE:
                whole = safe_get_full_optimizer_state(parameter, key)
                if whole is not None:
                    keep(f"optimizer/{name}/{key}", whole)
                    keep(f"optimizer/{name}/step", step)
        return found

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """See Backend."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        check_names(tensors, self.trained)
        self._make_moments()
        for name, parameter in self.trained.items():
            safe_set_full_fp32_param(parameter, tensors[f"model/{name}"])
            for key in STATE:
                safe_set_full_optimizer_state(parameter, tensors[f"optimizer/{name}/{key}"], key)
            for state in self._inner().state.values():
                state["step"] = tensors[f"optimizer/{name}/step"].clone()
        self._spread()

    def shard(self) -> dict[str, Tensor]:
        """See Backend. Flat parts of weights in float32, each with its moments, as ZeRO splits them."""
        found = dict[str, Tensor]()
        for i, flat in enumerate(self._flats()):
            found[f"shard/{i}/weights"] = flat.detach()
            for key, value in self._inner().state.get(flat, {}).items():
                found[f"shard/{i}/{key}"] = torch.as_tensor(value)
        return found

    def restore_shard(self, tensors: Mapping[str, Tensor]) -> None:
        """See Backend."""
        flats = self._flats()
        known = [tensors.get(f"shard/{i}/weights") for i in range(len(flats))]
        if not all(k is not None and k.shape == f.shape for k, f in zip(known, flats, strict=True)):
            raise ParamsError(
                "the step checkpoint is of another model or another number of ranks: remove its folder under .resume"
            )
        if f"shard/0/{STATE[0]}" in tensors:  # an update was made
            self._make_moments()
        for i, flat in enumerate(flats):
            flat.data.copy_(tensors[f"shard/{i}/weights"])
            for key, value in self._inner().state.get(flat, {}).items():
                value.copy_(tensors[f"shard/{i}/{key}"])
        self._spread()

    def _spread(self) -> None:
        """Give the model's weights what the flat parts of all ranks hold."""
        if self.training.zero_stage < 3:
            self.optimizer.update_lp_params()
        else:
            for group in range(len(self.optimizer.fp32_partitioned_groups_flat)):
                self.optimizer._reassign_or_swap_out_partitioned_parameters(group)
            held = [p for p in self.optimizer.persistent_parameters if p.ds_tensor is not None]
            if held:
                held[0].all_gather(held)

    def _flats(self) -> list[Tensor]:
        """This rank's parts of the weights."""
        zero = self.optimizer
        if self.training.zero_stage == 3:
            return list(zero.fp32_partitioned_groups_flat)
        return list(zero.single_partition_of_fp32_groups)

    def _make_moments(self) -> None:
        """Let AdamW's moments exist before the first step."""
        zero = self.optimizer
        split = self.training.zero_stage == 3
        for flat in self._flats():
            moments = {key: torch.zeros_like(flat) for key in STATE}
            self._inner().state[flat] = {"step": torch.tensor(0.0), **moments}
        if not split:
            zero._lazy_init_hp_params_optimizer_state()

    def _keep_head(self) -> None:
        """Keep the LM head whole: the chunked head reads its weight outside of the module's forward."""
        head = self.model.get_output_embeddings().weight
        if not head.ds_persist:
            head.ds_persist = True
            self.optimizer.persistent_parameters.append(head)
        if head.ds_status != _deepspeed().zero.partition_parameters.ZeroParamStatus.AVAILABLE:
            head.all_gather([head])
        head.ds_active_sub_modules.add(HELD)  # or a tied embedding's forward would split it again

    def _inner(self) -> torch.optim.Optimizer:
        return self.optimizer.optimizer

    def _steps(self) -> Tensor:
        states = [state for state in self._inner().state.values() if "step" in state]
        return torch.as_tensor(states[0]["step"] if states else 0.0).cpu()


def join(device: str) -> tuple[int, int]:
    """Enter the process group that the launcher's environment describes; this rank and the number of ranks.

    Raises:
        ParamsError: deepspeed is not installed.
    """
    deepspeed = _deepspeed()
    if not launched():
        raise ParamsError(
            "training.backend deepspeed needs a launcher: run the stage (`dvc repro`, `python -m stages.rl`), which starts one"
        )
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    if not torch.distributed.is_initialized():
        backend = "nccl" if device == "cuda" else "gloo"
        if device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        deepspeed.init_distributed(
            backend, verbose=False, timeout=datetime.timedelta(minutes=30), auto_mpi_discovery=False
        )
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def leave() -> None:
    """Leave the process group."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _whole(weights: list[Any]) -> AbstractContextManager[Any]:
    """ZeRO-3: these weights whole, and split again afterwards, but for those that are whole anyway."""
    zero = _deepspeed().zero
    split = [
        weight
        for weight in weights
        if hasattr(weight, "ds_status")
        and weight.ds_status != zero.partition_parameters.ZeroParamStatus.AVAILABLE
    ]
    return zero.GatheredParameters(split)


def _deepspeed() -> Any:
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import deepspeed
    except ImportError:
        raise ParamsError(INSTALL) from None
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # an optional all-reduce for CPUs: compiled at first use, and a killed build leaves a lock that blocks all later ones
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
