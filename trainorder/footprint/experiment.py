"""What every stage of an experiment takes: SFT, judges, RL phases, evaluation; and its checkpoints on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainorder.config import (
    DEFAULT,
    ModelJudgeConfig,
    Params,
    PhaseConfig,
    PreferenceConfig,
    RlConfig,
    RolloutConfig,
    SftConfig,
    TrainingConfig,
)
from trainorder.data import few_problems, pieces
from trainorder.evaluation.answering import CACHE_BYTES
from trainorder.footprint.machines import CPU, GPU, Machine, Part, Stage
from trainorder.footprint.shapes import (
    Shapes,
    full_roll,
    micro_batch_peak,
    state_bytes,
    tensor_bytes,
    text_peak,
)
from trainorder.plan.appointed import Appointed, appointed
from trainorder.plan.compile import Sizes
from trainorder.policy import Policy
from trainorder.reading import NotHere
from trainorder.registries import asks_base
from trainorder.rl.backend import holds_whole_weights, splits_weights, trained
from trainorder.rl.method import Method
from trainorder.rl.ranks import slots
from trainorder.rollout.decoders import FUSED_PARAMETERS
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
LESS_STATE = "train adapters (training.lora), or split over ranks (training: {backend: deepspeed, zero_stage: 3, ranks: ...})"
SHORTER = "lower max_new_tokens of the tasks"


def stages(
    params: Params, machine: Machine, config: Any, *, activations: bool = True
) -> Iterator[Stage]:
    """What each stage takes. RL phases of equal settings, under all variants, are one: of the longest prompt and answer.

    `activations` False leaves out what has to be traced, which takes seconds.
    """
    prompts = {name: prompt_tokens(params, name) for name in params.tasks}
    plain = params.training.model_copy(update={"lora": None})
    whole = Shapes.of(config, plain)
    if params.sft is not None:
        yield _sft(params, params.sft, machine, whole, prompts, activations)
    kinds = {name: few_problems(name, task)[0].rewarded_by for name, task in params.tasks.items()}
    roles = {name: params.judges_of(name) for name, by in kinds.items() if by == "judge"}
    judges = appointed(params, roles).values()
    trained = [j for j in judges if isinstance(j.config, PreferenceConfig)]
    for judge in {j.config.model_dump_json(): j for j in trained}.values():
        yield _judge(judge, params, machine, whole, prompts, activations)
    adapted = whole if params.training.lora is None else Shapes.of(config, params.training)
    alike = list[tuple[tuple[RlConfig, int], dict[str, None], dict[str, None]]]()
    for variant in params.variant_names():
        changed = params.variant(variant)
        for name, phase in changed.phases.items():
            if phase.kind == "sft":
                settings = phase.supervised.settings(phase.steps)
                stage = _sft(params, settings, machine, adapted, prompts, activations)
                yield replace(stage, name=f"the SFT phase {name}")
                continue
            rl, teachers = changed.phase_rl(name), _teachers(phase)
            found = next((known for known in alike if known[0] == (rl, teachers)), None)
            if found is None:
                alike.append(found := ((rl, teachers), {}, {}))
            found[1][name if variant == DEFAULT else f"{name} of variant {variant}"] = None
            found[2].update(dict.fromkeys(phase.tasks))
    for (rl, teachers), names, tasks in alike:
        shown = (
            f"the RL phases {', '.join(names)}" if len(names) > 1 else f"the RL phase {min(names)}"
        )
        args = (rl, teachers, machine, adapted, prompts, activations)
        yield _phases(shown, params, list(tasks), *args)
    held = {name for found in roles.values() for name in found.values()}
    yield _evaluation(params, machine, whole, prompts, _judge_weights(params, whole, held))


def prompt_tokens(params: Params, name: str) -> int:
    """Tokens of a task's longest prompt, about: pieces of text, and a chat template around them."""
    _, problems = few_problems(name, params.tasks[name])
    longest = max(len(pieces(problem.text)) for problem in problems)
    return longest + (2 if params.policy.path is None else TEMPLATE)


def _sft(
    params: Params,
    sft: SftConfig,
    machine: Machine,
    shapes: Shapes,
    prompts: dict[str, int],
    activations: bool,
) -> Stage:
    training = params.training
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
    return "begin at RL (sft: null), or take a smaller model (policy.path)"


def _judge(
    judge: Appointed,
    params: Params,
    machine: Machine,
    shapes: Shapes,
    prompts: dict[str, int],
    activations: bool,
) -> Stage:
    config, training, name = judge.config, params.training, judge.config.task or judge.tasks[0]
    assert isinstance(config, PreferenceConfig)
    task = params.tasks[name]
    head = shapes.model.get_output_embeddings().weight
    tied = head is shapes.model.get_input_embeddings().weight
    one = shapes.weights - (0 if tied else tensor_bytes([head]))
    states = state_bytes(shapes, config)
    other = "ask a model behind an endpoint (`kind: endpoint` in judges)"
    parts = [
        Part("weights of the base", shapes.weights),
        Part("weights of the judge", one, change=other),
        Part("gradients and optimizer states", one + states, "training", other),
        *_cache(shapes, machine, 1, prompts[name], task.max_new_tokens, 1),
    ]
    if activations:
        length = prompts[name] + task.max_new_tokens
        rows = config.batch_size * config.answers
        size = text_peak(shapes, rows, length, training, machine.device, head=False)
        change = "lower batch_size of the judge"
        parts.append(Part("activations", size, "training", change, sure=False))
    return Stage(
        "the training of a judge", (*_process(machine), *parts), _loading(machine, 2 * one)
    )


def _phases(
    shown: str,
    params: Params,
    tasks: Sequence[str],
    rl: RlConfig,
    teachers: int,
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
    parts += [*engine, *cached, *frozen_models(shapes, rl, training, teachers)]
    judged = (t for t in tasks if few_problems(t, params.tasks[t])[0].rewarded_by == "judge")
    parts += _judge_weights(params, shapes, {params.judges_of(task)["reward"] for task in judged})
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
    reads = "hidden" in Method.from_config(rl.method).needs
    states = shapes.model.get_output_embeddings().weight.shape[1] if reads else 0
    size = rollout_bytes(rl, prompt, answer, states)
    change = "leave pieces that need hidden states out of rl.method" if reads else ""
    host = [Part("rollouts of the step", size, change=change, sure=False)]
    if world > 1 or training.backend == "deepspeed":
        state = step_bytes(shapes, rl)
        host.append(Part("a rank's part of a step checkpoint", state // world, "saving"))
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
        if count <= FUSED_PARAMETERS:  # LlamaDecoder fuses copies
            parts.append(Part("fused copies of the weights", shapes.base, "sampling"))
        return [*parts, Part("logits", side * logits, "sampling", sure=False)]
    return [*parts, Part("logits", 4 * logits, "sampling", sure=False)]


def _teachers(phase: PhaseConfig) -> int:
    """How many teachers a phase of `kind: distill` has at most; 0: those of rl.teacher, if any."""
    if phase.kind != "distill":
        return 0
    named = phase.teachers or {}
    return len({tuple(named.get(task, [task])) for task in phase.tasks})


def frozen_models(
    shapes: Shapes, rl: RlConfig, training: TrainingConfig, teachers: int = 0
) -> list[Part]:
    """The frozen models that the method's pieces compare with; `teachers` many of `kind: distill`, which are nodes."""
    split = splits_weights(training)
    parts = []
    for name in sorted(Method.from_config(rl.method).models):
        size = shapes.weights
        on_base = name == "reference" or (name == "teacher" and teachers > 0)
        if training.lora is not None:
            size = shapes.trained if on_base and not split else shapes.base
        if name == "teacher" and teachers > 1:
            part = Part(
                f"{teachers} teachers", teachers * size, change="distil from fewer teachers"
            )
            parts.append(part)
            continue
        parts.append(Part(f"the model {name!r}", size, change="leave its piece out of rl.method"))
    return parts


def _judge_weights(params: Params, shapes: Shapes, names: set[str]) -> list[Part]:
    judges, change = params.named_judges(), "ask a model behind an endpoint (`kind: endpoint`)"
    parts = []
    for name in sorted(names):
        config = judges[name]
        if isinstance(config, PreferenceConfig):
            parts.append(Part(f"the judge {name}", shapes.base, change=change))
        elif isinstance(config, ModelJudgeConfig):
            try:
                model = Policy.load(config.path, weights=False).model
            except NotHere as error:
                raise NotHere(f"judges.{name}.path: {error}") from None
            size = 4 * sum(weight.numel() for weight in model.parameters())
            parts.append(
                Part(f"the judge {name}", size, change=f"{change}, or take a smaller model")
            )
    return parts


def _evaluation(
    params: Params, machine: Machine, shapes: Shapes, prompts: dict[str, int], judges: list[Part]
) -> Stage:
    longest = max(task.max_new_tokens for task in params.tasks.values())
    gpu = machine.device == GPU
    rows = max_rows_on(machine.device)
    least = shapes.cache_bytes() * rows * (longest + max(prompts.values()))
    parts = [
        *_process(machine),
        Part("weights", shapes.weights, change="take a smaller model (policy.path)"),
        *(
            [
                Part(
                    "weights of the base",
                    shapes.weights,
                    change="leave out decompose (evaluation.ways)",
                )
            ]
            if asks_base(params.evaluation.pieces())
            else []
        ),
        *judges,
        Part("KV cache", max(least, CACHE_BYTES[0 if gpu else 1]), "sampling", SHORTER, False),
    ]
    return Stage("the evaluation of a node", tuple(parts), _loading(machine, shapes.weights))


def rollout_bytes(rl: RlConfig, prompt: int, answer: int, states: int = 0) -> int:
    """Bytes of a step's rows, which every rank holds twice: as sampled, and with credit.

    `states` is the size of a token's hidden states, where a piece needs them.

    >>> few = RlConfig(prompts_per_step=2, group_size=4)
    >>> rollout_bytes(few, 10, 100, 64) - rollout_bytes(few, 10, 100) == 2 * 8 * 100 * 64 * 4
    True
    """
    rows = rl.prompts_per_step * rl.group_size
    return 2 * rows * (answer * (8 + 3 * 4 + 4 * (FACTS + states)) + 8 * prompt)


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


def step_bytes(shapes: Shapes, rl: RlConfig) -> int:
    """Bytes of a step checkpoint of an RL phase: what is trained, its optimizer, and the averages where there are any."""
    ema = shapes.base if "ema" in Method.from_config(rl.method).models else 0
    average = shapes.trained if rl.average else 0
    return shapes.trained + state_bytes(shapes, rl) + ema + average


def disk(params: Params, config: Any) -> Sizes:
    """Bytes of the checkpoints of an experiment."""
    whole = Shapes.of(config, params.training.model_copy(update={"lora": None}))
    full = tensor_bytes(whole.model.parameters())
    sft = 0
    if params.sft is not None:
        sft = full + state_bytes(whole, params.sft)
    lora = params.training.lora is not None
    shapes = Shapes.of(config, params.training) if lora else whole
    steps = [
        step_bytes(shapes, params.variant(variant).phase_rl(name))
        for variant in params.variant_names()
        for name, phase in params.phases.items()
        if phase.kind != "sft"
    ]
    supervised = [
        shapes.trained + state_bytes(shapes, phase.supervised.settings(1))
        for phase in params.phases.values()
        if phase.kind == "sft"
    ]
    layers = whole.model.config.num_hidden_layers
    return Sizes(full, shapes.trained, max([sft, *steps, *supervised]), layers)
