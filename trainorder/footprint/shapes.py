"""A model of fake tensors: the bytes of its weights, and what lives while it is trained."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainorder import llama, paths
from trainorder.config import (
    VOCABULARY,
    PolicyConfig,
    RlConfig,
    TrainingConfig,
)
from trainorder.device import precision
from trainorder.footprint.machines import CPU, GPU
from trainorder.likelihood import likelihood
from trainorder.llama import training as own
from trainorder.llama.kernels import Kernels
from trainorder.optimizers import OptimizerConfig, make_optimizer
from trainorder.policy import tiny_config
from trainorder.prefix import Layout, recomputing_alike
from trainorder.pretrained import import_transformers
from trainorder.rl import facts, forward
from trainorder.rl.adapters import add_adapters
from trainorder.rl.backend import computing, trained
from trainorder.rl.head import chunk_entries_for
from trainorder.rl.method import MODELS, Method
from trainorder.rl.packing import computed_tokens, micro_batches
from trainorder.rl.types import Roll
from trainorder.sources import locate
from trainorder.texts import CHUNK_ENTRIES
from trainorder.workers import in_pieces, piece_tokens


def model_config(policy: PolicyConfig, known: Path | None = None) -> Any:
    """The config of the model of params.yaml; of a model from the hub, config.json alone is read.

    `known` is a folder of config.json files named `<model>.json`, for models that are not here.

    Raises:
        ParamsError: there is no such model here, in the cache, on the hub or in `known`.
    """
    if policy.path is None:
        tokenizer = paths.TOKENIZER / "tokenizer.json"
        vocabulary = VOCABULARY
        if tokenizer.is_file():
            from trainorder.pretrained import load_tokenizer

            vocabulary = len(load_tokenizer(paths.TOKENIZER))
        return tiny_config(policy, vocabulary)
    auto = import_transformers().AutoConfig
    file = known / f"{Path(policy.path).name}.json" if known else None
    if file is not None and file.is_file() and not Path(policy.path).is_dir():
        return auto.from_pretrained(str(file))
    return auto.from_pretrained(str(locate(policy.path, weights=False)))


@dataclass(frozen=True)
class Shapes:
    """A model of fake tensors, with adapters where the training has them."""

    model: Any
    mode: FakeTensorMode

    @classmethod
    def of(cls, config: Any, training: TrainingConfig) -> Self:
        """The causal LM of a config."""
        auto = import_transformers().AutoModelForCausalLM
        with torch.device("meta"):
            model = auto.from_config(config, dtype=torch.float32)
            if training.lora is not None:
                add_adapters(model, training.lora, 0)
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        _pretend_cpu(model, mode)
        return cls(model.eval(), mode)

    @property
    def weights(self) -> int:
        """Bytes of all weights and buffers, adapters included; tied ones once."""
        return tensor_bytes([*self.model.parameters(), *self.model.buffers()])

    @property
    def trained(self) -> int:
        """Bytes of the weights that are updated."""
        return tensor_bytes(trained(self.model).values())

    @property
    def base(self) -> int:
        """Bytes of the weights and buffers that are not adapters'."""
        adapted = any("lora_" in name for name, _ in self.model.named_parameters())
        return self.weights - (self.trained if adapted else 0)

    @property
    def whole_under_zero3(self) -> int:
        """Bytes of the weights that ZeRO-3 leaves whole on every rank: norms, biases and the head."""
        head = self.model.get_output_embeddings().weight
        small = [p for p in self.model.parameters() if p.dim() < 2]
        return tensor_bytes([*small, head])

    @property
    def vocabulary(self) -> int:
        """Rows of the head."""
        return self.model.get_output_embeddings().weight.shape[0]

    def cache_bytes(self) -> int:
        """Keys and values of a token, float32."""
        config = self.model.config.get_text_config()
        heads = config.num_attention_heads
        shared = getattr(config, "num_key_value_heads", None) or heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        return 2 * 4 * config.num_hidden_layers * shared * size

    def kernels(self, device: str, training: TrainingConfig) -> Any:
        """Kernels of trainorder/llama where they would compute this model, doing nothing; else None."""
        plain = device == CPU and training.dtype == "fp32" and not training.gradient_checkpointing
        return _NO_WORK if plain and llama.kernels_for(self.model) is not None else None


def _pretend_cpu(model: Any, mode: FakeTensorMode) -> None:
    """Put fake tensors that say they are on the CPU in the place of meta ones, which autocast and our kernels know nothing of."""
    made: dict[int, Any] = {}
    with mode:
        for module in model.modules():
            for named in (module._parameters, module._buffers):
                for name, old in named.items():
                    if old is None:
                        continue
                    if id(old) not in made:
                        new = torch.empty(old.shape, dtype=old.dtype)
                        if isinstance(old, torch.nn.Parameter):
                            new = torch.nn.Parameter(new, requires_grad=old.requires_grad)
                        made[id(old)] = new
                    named[name] = made[id(old)]


class _NoWork:
    """Every kernel, doing nothing: the tensors around it are allocated as ever."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


_NO_WORK: Any = _NoWork()


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of these tensors, of those that share memory once.

    >>> x = torch.zeros(3)
    >>> tensor_bytes([x, x[:2], torch.zeros(1)])
    16
    """
    storages = {t.untyped_storage()._cdata: t.untyped_storage() for t in tensors}
    return sum(storage.nbytes() for storage in storages.values())


def state_bytes(shapes: Shapes, config: OptimizerConfig) -> int:
    """Bytes of the state of the optimizer that `config` names, after one update of fake weights."""
    with shapes.mode:
        weights = list(trained(shapes.model).values())
        for weight in weights:
            weight.grad = torch.zeros_like(weight)
        optimizer = make_optimizer(shapes.model, config)
        optimizer.step()
        for weight in weights:
            weight.grad = None
    found = (value for state in optimizer.state.values() for value in state.values())
    return tensor_bytes(value for value in found if isinstance(value, Tensor))


class Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that are made inside of it, `now` and at their `peak`."""

    def __init__(self, before: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata: 0 for tensor in before}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for made in tree_leaves(out):
            if isinstance(made, Tensor):
                self._add(made.untyped_storage())
        return out

    def _add(self, storage: Any) -> None:
        place = storage._cdata
        if place in self._known:
            return
        self._known[place] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, place)

    def _drop(self, place: int) -> None:
        self.now -= self._known.pop(place, 0)


def micro_batch_peak(
    shapes: Shapes, roll: Roll, rl: RlConfig, training: TrainingConfig, device: str, gpu: int = 0
) -> int:
    """Bytes at most beside weights and gradients while the largest micro-batch of `roll` is trained.

    Args:
        shapes: the model.
        roll: a rank's rows.
        rl: its `micro_batch_tokens` and method.
        training: precision and checkpointing.
        device: cuda or cpu.
        gpu: bytes of the GPU's memory, which decide the size of the head's chunks.
    """
    model, needs = shapes.model, Method.from_config(rl.method).live_needs
    kernels = shapes.kernels(device, training)
    pieces = kernels is not None and in_pieces(model)
    chunk = chunk_entries_for(shapes.vocabulary, gpu if device == GPU else None, pieces=pieces)
    budget = piece_tokens(model, rl.micro_batch_tokens) if kernels else rl.micro_batch_tokens

    def run(shared: bool) -> int:
        model._shares_prefixes = shared
        batches = micro_batches(roll, budget, shared=shared or bool(kernels))
        largest = max(batches, key=lambda rows: computed_tokens(roll.rows(rows)))
        rows = roll.rows(largest)
        told = replace(rows, informed_ids=rows.prompt_ids)  # about as long
        targets = forward.Targets.of(told, torch.device(CPU), informed=facts.reads_gold(needs))
        targets.batch.layout(torch.device(CPU))
        models = dict.fromkeys(MODELS, model)

        def loss() -> Tensor:
            with computing(model, training):
                logps, found = forward.of_targets(model, targets, needs, models, kernels, chunk)
            return logps.sum() + sum(values.float().sum() for values in found.values())

        return _peak_of(shapes, loss)

    if training.gradient_checkpointing:
        model.gradient_checkpointing_enable(
            {"use_reentrant": False, "context_fn": recomputing_alike(model)}
        )
    try:
        return run(shared=bool(getattr(model, "_supports_attention_backend", False)))
    except NotImplementedError:  # this model's attention cannot be replaced
        return run(shared=False)
    finally:
        if training.gradient_checkpointing:
            model.gradient_checkpointing_disable()


def text_peak(
    shapes: Shapes, rows: int, length: int, training: TrainingConfig, device: str, *, head: bool
) -> int:
    """Bytes at most beside weights and gradients while whole texts are trained on, with the LM head or without (judges)."""
    plain = training.model_copy(update={"gradient_checkpointing": False})
    kernels = shapes.kernels(device, plain) if head else None
    model = shapes.model
    layout = Layout.of([length] * rows, [0], [0]) if kernels else None
    ids = torch.zeros(rows, length, dtype=torch.long)

    def loss() -> Tensor:
        with precision(CPU, training.dtype):
            return _text_loss(model, ids, layout, kernels, head)

    return _peak_of(shapes, loss)


def _text_loss(
    model: Any, ids: Tensor, layout: Layout | None, kernels: Kernels | None, head: bool
) -> Tensor:
    """As texts.log_probs computes it, and as judges.preference does."""
    if kernels is not None and layout is not None:
        flat = ids.flatten()
        states = own.hidden_states(model, kernels, flat, layout)
        weight = model.lm_head.weight
        return own.log_probs(kernels, states, weight, flat, 1.0, False, CHUNK_ENTRIES)[0].sum()
    if not head:
        return model.base_model(input_ids=ids, use_cache=False)[0].float().mean(1).sum()
    logits = model(input_ids=ids, use_cache=False).logits.flatten(0, 1)
    return likelihood(logits.float(), ids.flatten(), entropy=False)[0].sum()


def _peak_of(shapes: Shapes, loss: Callable[[], Tensor]) -> int:
    weights = [p for p in shapes.model.parameters() if p.requires_grad]
    with shapes.mode:
        for weight in weights:
            weight.grad = torch.zeros_like(weight)
        known = [*shapes.model.parameters(), *shapes.model.buffers()]
        alive = Alive([*known, *(w.grad for w in weights if w.grad is not None)])
        with alive:
            loss().backward()
        for weight in weights:
            weight.grad = None
    return alive.peak


def full_roll(prompts: int, samples: int, prompt: int, answer: int) -> Roll:
    """The largest rows that a step may sample: every answer at its limit, prompts as long as the longest."""
    rows = prompts * samples
    mask = torch.ones(rows, answer)
    group = torch.arange(rows) // samples
    fields: Any = {"problem": [None] * rows, "text": [""] * rows}
    return Roll(
        prompt_ids=[[number] + [0] * (prompt - 1) for number in group.tolist()],
        response_ids=torch.zeros(rows, answer, dtype=torch.long),
        loss_mask=mask,
        group=group,
        rewards=torch.zeros(rows),
        scored=torch.ones(rows, dtype=torch.bool),
        advantages=mask,
        weights=mask,
        **fields,
    )
