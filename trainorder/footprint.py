"""Memory and disk that an experiment takes, computed from its params and its model's config before anything trains.

The model is built on fake tensors (shapes on torch's meta device, no weight is read). Weights, gradients and optimizer
states are sums over its tensors. Activations are the largest number of bytes that live at one time while the library's own
forward and backward of one micro-batch run over these shapes. Caches, copies and what DeepSpeed keeps follow from the code
that allocates them. docs/performance.md compares all of this with measured bytes.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainorder import llama, paths
from trainorder.config import (
    DEFAULT,
    VOCABULARY,
    Params,
    PolicyConfig,
    RlConfig,
    RolloutConfig,
    TrainingConfig,
)
from trainorder.data import few_problems, pieces
from trainorder.device import device_of, precision
from trainorder.evaluation.answering import CACHE_BYTES, MAX_ROWS
from trainorder.files import size_text
from trainorder.likelihood import likelihood
from trainorder.llama.kernels import Kernels
from trainorder.machine import ram_bytes
from trainorder.optimizers import OptimizerConfig, make_optimizer
from trainorder.policy import tiny_config
from trainorder.prefix import Layout, recomputing_alike
from trainorder.pretrained import import_transformers, locate
from trainorder.reading import ParamsError
from trainorder.rl import forward
from trainorder.rl.adapters import add_adapters
from trainorder.rl.backend import computing, holds_whole_weights, trained
from trainorder.rl.method import Method
from trainorder.rl.ranks import slots
from trainorder.rl.types import Roll
from trainorder.rollout.decoders import SMALL_MODEL_PARAMETERS
from trainorder.rollout.torch_engine import max_rows_on

PROCESS = 700 << 20
"""Resident memory of a stage's process without any tensor: Python, torch, transformers, MLflow."""
CONTEXT = 1 << 30
"""GPU memory of a process without any tensor: CUDA's context, cuBLAS, NCCL; about."""
TEMPLATE = 32
"""Tokens that a chat template puts around a prompt, about."""
BUCKET, LIVE = 500_000_000, 1_000_000_000
"""DeepSpeed's defaults, in elements: reduce_bucket_size, and stage3_max_live_parameters."""
FACTS = 4
"""Tensors [row, token] that a roll's facts hold: log-probabilities of trainer, sampler and reference, entropies."""
GPU, CPU = "cuda", "cpu"
LESS_STATE = "train adapters (training.lora), or split over ranks (training: {backend: deepspeed, zero_stage: 3, ranks: ...})"
SHORTER = "lower max_new_tokens of the tasks"


@dataclass(frozen=True)
class Machine:
    """What the hosts of an experiment have; each of them alike."""

    hosts: int
    gpus: int
    """Of a host that ranks use; 0 computes on the CPU."""
    gpu: int
    """Bytes of memory of each GPU."""
    ram: int
    disk: int
    """Bytes that are free."""

    @classmethod
    def here(cls, training: TrainingConfig) -> Self:
        """This machine.

        Raises:
            ParamsError: training.device is cuda, and there is none.
        """
        import shutil

        on_gpu = device_of(training.device) == GPU
        return cls(
            1,
            torch.cuda.device_count() if on_gpu else 0,
            torch.cuda.mem_get_info()[1] if on_gpu else 0,
            ram_bytes(),
            shutil.disk_usage(Path()).free,
        )

    @classmethod
    def parse(cls, text: str) -> Self:
        """A machine in words; GB are 10^9 bytes.

        Raises:
            ParamsError: it reads otherwise.

        >>> Machine.parse("2 hosts of 8 GPUs with 80 GB, 1000 GB RAM, 4000 GB disk").gpus
        8
        >>> Machine.parse("1 host of 0 GPUs, 16 GB RAM, 50 GB disk").gpu
        0
        """
        found = re.fullmatch(
            r"(\d+) hosts? of (\d+) GPUs?(?: with (\d+) GB)?, (\d+) GB RAM, (\d+) GB disk",
            text.strip(),
        )
        if found is None or (int(found[2]) and not found[3]):
            raise ParamsError(
                f"the machine {text.strip()!r} cannot be read: write e.g. "
                "`1 host of 8 GPUs with 80 GB, 1000 GB RAM, 2000 GB disk`"
            )
        hosts, gpus, gpu, ram, disk = (int(number or 0) for number in found.groups())
        return cls(hosts, gpus, gpu * 10**9, ram * 10**9, disk * 10**9)

    @property
    def device(self) -> str:
        """Where models compute."""
        return GPU if self.gpus else CPU


@dataclass(frozen=True)
class Part:
    """Something that takes memory."""

    what: str
    size: int
    when: str = ""
    """The moment that it is there; empty: all the time."""
    change: str = ""
    """The setting that makes it smaller."""
    sure: bool = True
    """False: an estimate that no refusal may rest on."""


@dataclass(frozen=True)
class Stage:
    """What one process (one rank) of a stage takes on its device and on its host; one host may run several."""

    name: str
    device: tuple[Part, ...]
    host: tuple[Part, ...] = ()
    processes: int = 1
    """Side by side on a host."""

    def total(self, machine: Machine) -> tuple[int, int]:
        """Bytes of a GPU at most (0 without one), and bytes of a host."""
        if machine.gpus:
            return peak(self.device), self.processes * peak(self.host)
        return 0, self.processes * peak((*self.device, *self.host))


@dataclass(frozen=True)
class Disk:
    """Bytes of a checkpoint: with full weights (bases, merges), of a trained phase, and of one step checkpoint."""

    full: int
    phase: int
    step: int


def peak(parts: Iterable[Part]) -> int:
    """What is there all the time and at the worst moment.

    >>> peak([Part("a", 5), Part("b", 3, "sampling"), Part("c", 2, "training"), Part("d", 2, "training")])
    9
    """
    moments: dict[str, int] = {"": 0}
    for part in parts:
        moments[part.when] = moments.get(part.when, 0) + part.size
    always = moments.pop("")
    return always + max(moments.values(), default=0)


def check(params: Params) -> None:
    """Refuse an experiment that cannot fit on this machine. Machines of a hostfile are not looked at.

    Only what is certain counts: weights, gradients, optimizer states, copies and the cache of sampling.

    Raises:
        ParamsError: the stage, what it needs, what there is, and the setting to change.
    """
    if params.training.hostfile is not None:
        return
    machine = Machine.here(params.training)
    for stage in stages(params, machine, model_config(params.policy), activations=False):
        problem = too_large(stage, machine, sure=True)
        if problem:
            raise ParamsError(f"{problem}. `python -m benchmarks.footprint` lists all of it")


def too_large(stage: Stage, machine: Machine, *, sure: bool = False) -> str:
    """Why a stage does not fit, in one line; empty where it does. `sure` leaves estimates out."""
    keep: Callable[[Part], bool] = (lambda part: part.sure) if sure else (lambda part: True)
    on_device, on_host = tuple(filter(keep, stage.device)), tuple(filter(keep, stage.host))
    kept = Stage(stage.name, on_device, on_host, stage.processes)
    for needed, have, parts, where in (
        (kept.total(machine)[0], machine.gpu, on_device, "each GPU's memory"),
        (
            kept.total(machine)[1],
            machine.ram,
            on_host if machine.gpus else (*on_device, *on_host),
            "RAM",
        ),
    ):
        if needed > have:
            largest = sorted(parts, key=lambda part: -part.size)
            listed = ", ".join(f"{part.what} {size_text(part.size)}" for part in largest[:4])
            change = next((part.change for part in largest if part.change), "")
            return (
                f"{stage.name} needs at least {size_text(needed)} of {where}, and there are {size_text(have)} "
                f"({listed})" + (f": {change}" if change else "")
            )
    return ""


# The model


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


# What lives during a forward and backward


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
    chunk = forward.chunk_entries_for(shapes.vocabulary, gpu if device == GPU else None)

    def run(shared: bool) -> int:
        model._shares_prefixes = shared
        batches = forward.micro_batches(roll, rl.micro_batch_tokens, shared=shared or bool(kernels))
        largest = max(batches, key=lambda rows: forward.computed_tokens(roll.rows(rows)))
        targets = forward.Targets.of(roll.rows(largest), torch.device(CPU))
        targets.batch.layout(torch.device(CPU))
        models = dict.fromkeys(("reference", "ema"), model)

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
    model, tokens = shapes.model, rows * length
    layout = Layout.of([length] * rows, [0], [0]) if kernels else None
    ids = torch.zeros(rows, length, dtype=torch.long)

    def loss() -> Tensor:
        with precision(CPU, training.dtype):
            return _text_loss(model, ids, layout, kernels, head)

    assert tokens
    return _peak_of(shapes, loss)


def _text_loss(
    model: Any, ids: Tensor, layout: Layout | None, kernels: Kernels | None, head: bool
) -> Tensor:
    """As texts.log_probs computes it, and as rewards.judge does."""
    if kernels is not None and layout is not None:
        from trainorder.llama import training as own
        from trainorder.texts import CHUNK_ENTRIES

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


# The stages


def stages(
    params: Params, machine: Machine, config: Any, *, activations: bool = True
) -> Iterator[Stage]:
    """What each stage takes. RL phases of equal settings, under all variants, are one: of the longest prompt and answer.

    `activations` False leaves out what has to be traced, which takes seconds.
    """
    prompts = {name: prompt_tokens(params, name) for name in params.tasks}
    plain = params.training.model_copy(update={"lora": None})
    whole = Shapes.of(config, plain)
    if params.sft.steps or params.sft.gate:
        yield _sft(params, machine, whole, prompts, activations)
    kinds = {name: few_problems(name, task)[0].rewarded_by for name, task in params.tasks.items()}
    judged = "judge" in kinds.values()
    if judged and params.judge.backend == "local":
        yield _judge(params, machine, whole, prompts, activations)
    adapted = whole if params.training.lora is None else Shapes.of(config, params.training)
    alike = list[tuple[RlConfig, dict[str, None], dict[str, None]]]()
    for variant in params.variant_names():
        changed = params.variant(variant)
        for name, phase in changed.phases.items():
            rl = changed.phase_rl(name)
            found = next((known for known in alike if known[0] == rl), None)
            if found is None:
                alike.append(found := (rl, {}, {}))
            found[1][name if variant == DEFAULT else f"{name} of variant {variant}"] = None
            found[2].update(dict.fromkeys(phase.tasks))
    for rl, names, tasks in alike:
        shown = (
            f"the RL phases {', '.join(names)}" if len(names) > 1 else f"the RL phase {min(names)}"
        )
        yield _phases(shown, params, list(tasks), rl, machine, adapted, prompts, activations)
    yield _evaluation(params, machine, whole, prompts, judged)


def prompt_tokens(params: Params, name: str) -> int:
    """Tokens of a task's longest prompt, about: pieces of text, and a chat template around them."""
    _, problems = few_problems(name, params.tasks[name])
    longest = max(len(pieces(problem.prompt)) for problem in problems)
    return longest + (2 if params.policy.path is None else TEMPLATE)


def _sft(
    params: Params, machine: Machine, shapes: Shapes, prompts: dict[str, int], activations: bool
) -> Stage:
    sft, training = params.sft, params.training
    gradients = shapes.trained
    parts = [
        Part("weights", shapes.weights),
        Part("gradients", gradients, change=_less_sft(params)),
        Part("gradients of the part being added", gradients, "training"),
        Part("optimizer states", state_bytes(shapes, sft), change=_less_sft(params)),
    ]
    if activations:
        side = sft.threads if machine.device == CPU else 1
        rows = -(-(sft.batch_size + sft.drill_batch_size) // sft.micro_batches)
        length = max(prompts[n] + params.tasks[n].max_new_tokens for n in params.tasks)
        size = text_peak(shapes, rows, length, training, machine.device, head=True)
        parts.append(Part("activations", side * size, "training", "raise sft.micro_batches", False))
        if side > 1:
            parts.append(Part("gradients of other threads", (side - 1) * gradients, "training"))
    return Stage("the SFT warm-up", (*_process(machine), *parts), _loading(machine, shapes.weights))


def _less_sft(params: Params) -> str:
    if params.policy.path is None:
        return "lower hidden_size, mlp_size or num_layers of policy"
    return "begin at RL (sft.steps: 0), or take a smaller model (policy.path)"


def _judge(
    params: Params, machine: Machine, shapes: Shapes, prompts: dict[str, int], activations: bool
) -> Stage:
    judge, training, task = params.judge, params.training, params.tasks[params.judge.task]
    head = shapes.model.get_output_embeddings().weight
    tied = head is shapes.model.get_input_embeddings().weight
    one = shapes.weights - (0 if tied else tensor_bytes([head]))
    side = min(2, judge.threads) if machine.device == CPU else 1
    states = state_bytes(shapes, judge)
    other = "ask a model behind an endpoint (judge.backend: endpoint)"
    parts = [
        Part("weights of the base", shapes.weights),
        Part("weights of both judges", 2 * one, change=other),
        Part("gradients and optimizer states", side * (one + states), "training", other),
        *_cache(shapes, machine, 1, prompts[judge.task], task.max_new_tokens, side),
    ]
    if activations:
        length = prompts[judge.task] + task.max_new_tokens
        rows = judge.batch_size * judge.answers
        size = text_peak(shapes, rows, length, training, machine.device, head=False)
        change = "lower judge.batch_size"
        parts.append(Part("activations", side * size, "training", change, sure=False))
    return Stage("the judges' training", (*_process(machine), *parts), _loading(machine, 3 * one))


def _phases(
    shown: str,
    params: Params,
    tasks: Sequence[str],
    rl: RlConfig,
    machine: Machine,
    shapes: Shapes,
    prompts: dict[str, int],
    activations: bool,
) -> Stage:
    training = params.training
    ranks, world = ranks_of(params.training, machine)
    prompt = max(prompts[task] for task in tasks)
    answer = max(params.tasks[task].max_new_tokens for task in tasks)
    share = -(-rl.prompts_per_step // world)
    samples = rl.group_size
    parts = [*_process(machine), *training_parts(shapes, training, rl, world)]
    engine, cached = _engine(params.rollout, training, machine, shapes, rl, prompt, answer, share)
    parts += [*engine, *cached, *_models(shapes, rl, training)]
    if any(few_problems(task, params.tasks[task])[0].rewarded_by == "judge" for task in tasks):
        parts += _judge_weights(params, shapes)
    if activations:
        roll = full_roll(share, samples, prompt, answer)
        kernels = shapes.kernels(machine.device, training)
        side = rl.threads if kernels else 1
        size = micro_batch_peak(shapes, roll, rl, training, machine.device, machine.gpu)
        change = "lower rl.micro_batch_tokens"
        if not training.gradient_checkpointing:
            change += ", or set training.gradient_checkpointing: true"
        parts.append(Part("activations of a micro-batch", side * size, "training", change, False))
        if side > 1:
            parts.append(Part("gradients of each thread", side * shapes.trained, "training"))
    host = [Part("rollouts of the step", rollout_bytes(rl, prompt, answer), sure=False)]
    if world > 1 or training.backend == "deepspeed":
        state = step_bytes(shapes, rl)
        host.append(Part("a step checkpoint, whole on the first rank", state // ranks, "saving"))
    host += _loading(machine, shapes.base)
    return Stage(shown, tuple(parts), tuple(host), ranks)


def ranks_of(training: TrainingConfig, machine: Machine) -> tuple[int, int]:
    """Ranks of a host, and of all hosts: of the hostfile where it is here, else of the machine."""
    if training.backend == "local":
        return 1, 1
    if training.hostfile is None:
        return training.ranks, training.ranks
    if Path(training.hostfile).is_file():
        each = slots(training.hostfile)
        return max(each), sum(each)
    return max(1, machine.gpus), machine.hosts * max(1, machine.gpus)


def training_parts(
    shapes: Shapes, training: TrainingConfig, rl: RlConfig, world: int
) -> list[Part]:
    """Weights, gradients and optimizer states of one rank (plain torch, or ZeRO: arXiv:1910.02054, section 5)."""
    if training.backend == "local":
        return [
            Part("weights", shapes.weights, change="take a smaller model (policy.path)"),
            Part("gradients", shapes.trained, change=LESS_STATE),
            Part("optimizer states", state_bytes(shapes, rl), change=LESS_STATE),
        ]
    stage = training.zero_stage
    count = sum(weight.numel() for weight in trained(shapes.model).values())
    shard = 4 * -(-count // world)
    whole = "raise training.zero_stage, or train on more ranks"
    parts = [
        Part("float32 masters", shard, change=whole),
        Part("gradients", shapes.trained if stage == 1 else shard, change=whole),
        Part("optimizer states", 2 * shard + 4, change=whole),
        Part("reduce bucket", 4 * BUCKET, "training", sure=False),
    ]
    if stage < 3:
        return [Part("weights", shapes.weights, change=whole), *parts]
    every = tensor_bytes(shapes.model.parameters())
    return [
        Part("weights, split", -(-every // world), change=whole),
        Part("weights that stay whole (norms, biases, head)", shapes.whole_under_zero3),
        *parts,
        Part("layers gathered", min(4 * LIVE, every), "training", sure=False),
        # gradients and moments come after that
        Part("more of the weights before they are split", max(0, every - 3 * shard), "loading"),
    ]


def _engine(
    rollout: RolloutConfig,
    training: TrainingConfig,
    machine: Machine,
    shapes: Shapes,
    rl: RlConfig,
    prompt: int,
    answer: int,
    share: int,
) -> tuple[list[Part], list[Part]]:
    """The weights of the engine's own, and its cache."""
    if rollout.backend == "vllm":
        if machine.gpus:
            size = int(rollout.gpu_memory_share * machine.gpu)
            change = "lower rollout.gpu_memory_share"
            return [Part("vLLM's weights and cache", size, change=change)], []
        wide = 2 if "bf16" in (rollout.dtype, training.dtype) and rollout.dtype != "fp32" else 4
        weights = shapes.base // 4 * wide
        cache = rollout.cpu_cache_gib << 30
        return [
            Part("vLLM's weights", weights),
            Part("vLLM's cache", cache, change="lower rollout.cpu_cache_gib"),
        ], []
    own = []
    if not holds_whole_weights(training):
        change = "let vLLM sample in bf16 (rollout.backend: vllm)"
        own.append(Part("the engine's own weights", shapes.base, change=change))
    side = rl.threads if shapes.kernels(machine.device, training) else 1
    return own, _cache(shapes, machine, rl.group_size, prompt, answer, side, share)


def _cache(
    shapes: Shapes,
    machine: Machine,
    samples: int,
    prompt: int,
    answer: int,
    side: int = 1,
    share: int | None = None,
) -> list[Part]:
    """Keys, values and logits of the rows that are decoded side by side."""
    prompts = max(1, max_rows_on(machine.device) // samples)
    prompts = prompts if share is None else min(prompts, share)
    rows, each = prompts * samples, shapes.cache_bytes()
    cache = each * (rows * answer + prompts * prompt)
    logits = 4 * rows * shapes.vocabulary
    parts = [Part("KV cache", side * cache, "sampling", SHORTER)]
    if shapes.kernels(machine.device, TrainingConfig()) is not None:
        count = sum(p.numel() for p in shapes.model.parameters())
        if count <= SMALL_MODEL_PARAMETERS:  # LlamaDecoder fuses copies
            parts.append(Part("fused copies of the weights", shapes.base, "sampling"))
        return [*parts, Part("logits", side * logits, "sampling", sure=False)]
    return [*parts, Part("logits", 4 * logits, "sampling", sure=False)]


def _models(shapes: Shapes, rl: RlConfig, training: TrainingConfig) -> list[Part]:
    """The frozen models that the method's pieces compare with."""
    split = training.backend == "deepspeed" and training.zero_stage == 3
    parts = []
    for name in sorted(Method.from_config(rl.method).models):
        size = shapes.weights
        if training.lora is not None:
            size = shapes.trained if name == "reference" and not split else shapes.base
        parts.append(Part(f"the model {name!r}", size, change="leave its piece out of rl.method"))
    return parts


def _judge_weights(params: Params, shapes: Shapes) -> list[Part]:
    if params.judge.backend != "local":
        return []
    return [Part("the judge", shapes.base, change="set judge.backend: endpoint")]


def _evaluation(
    params: Params, machine: Machine, shapes: Shapes, prompts: dict[str, int], judged: bool
) -> Stage:
    longest = max(task.max_new_tokens for task in params.tasks.values())
    gpu = machine.device == GPU
    rows = MAX_ROWS[0 if gpu else 1]
    least = shapes.cache_bytes() * rows * (longest + max(prompts.values()))
    parts = [
        *_process(machine),
        Part("weights", shapes.weights, change="take a smaller model (policy.path)"),
        *(2 * _judge_weights(params, shapes) if judged else ()),
        Part("KV cache", max(least, CACHE_BYTES[0 if gpu else 1]), "sampling", SHORTER, False),
    ]
    return Stage("the evaluation of a node", tuple(parts), _loading(machine, shapes.weights))


def rollout_bytes(rl: RlConfig, prompt: int, answer: int) -> int:
    """Bytes of a step's rows, which every rank holds twice: as sampled, and with credit."""
    rows = rl.prompts_per_step * rl.group_size
    return 2 * rows * (answer * (8 + 3 * 4 + 4 * FACTS) + 8 * prompt)


def _process(machine: Machine) -> list[Part]:
    if machine.gpus:
        return [Part("CUDA's context", CONTEXT, sure=False)]
    return []


def _loading(machine: Machine, weights: int) -> tuple[Part, ...]:
    """What a process has on its host beside the device's part."""
    process = Part("the process itself", PROCESS, sure=False)
    if machine.gpus:
        return process, Part("weights on their way to the GPU", weights, "loading")
    return (process,)


# Disk


def step_bytes(shapes: Shapes, rl: RlConfig) -> int:
    """Bytes of a step checkpoint of an RL phase: what is trained, its optimizer, and the average where a piece needs it."""
    ema = shapes.base if "ema" in Method.from_config(rl.method).models else 0
    return shapes.trained + state_bytes(shapes, rl) + ema


def disk(params: Params, config: Any) -> Disk:
    """Bytes of the checkpoints of an experiment."""
    whole = Shapes.of(config, params.training.model_copy(update={"lora": None}))
    full = tensor_bytes(whole.model.parameters())
    sft = 0
    if params.sft.steps or params.sft.gate:
        sft = full + state_bytes(whole, params.sft)
    lora = params.training.lora is not None
    shapes = Shapes.of(config, params.training) if lora else whole
    steps = [
        step_bytes(shapes, params.variant(variant).phase_rl(name))
        for variant in params.variant_names()
        for name in params.phases
    ]
    return Disk(full, shapes.trained, max(sft, *steps))
