"""What params.yaml can get wrong across its sections. Runs in the first second: no torch, nothing written."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from trainorder.config import (
    DEFAULT,
    Params,
    Permutations,
    PhaseConfig,
    PolicyConfig,
    RlConfig,
)
from trainorder.paths import BASE
from trainorder.plan.check.budgets import budget, check_budgets
from trainorder.plan.check.common import check_kept, check_known, check_model_path
from trainorder.plan.check.harness import check_harness
from trainorder.plan.check.judges import VARIABLE, check_judges
from trainorder.plan.check.method import (
    asking_teachers,
    check_method,
    check_piece,
    check_self_play,
    check_teacher,
    pieces,
)
from trainorder.plan.check.ways import check_ways
from trainorder.plan.orders import order_phases, single_phases
from trainorder.reading import ParamsError, found_at, shown
from trainorder.registries import chosen_probes
from trainorder.tasks import make_task

__all__ = ["MAX_NAME", "budget", "check", "pieces"]

MAX_PERMUTED = 5
"""Phases of `{all: [...]}`: one more would be 720 orders."""
MAX_PARAMETERS = 2e9
"""Of a model that is trained from scratch here; 8 GB."""
MAX_CHECKPOINTS = 2000
"""Nodes of a plan; DVC looks at each one's stages before anything runs."""
MAX_NAME = 200
"""Bytes of a node's name: files may have 255, and DVC and we add `.parquet` and temporary endings."""
MAX_ROLLOUTS = 262_144
"""Rollouts of one step, all held in memory."""
PAID_BY = {"structured": "verifier", "creative": "judge"}


def check(params: Params) -> None:
    """Raise on the first thing that cannot work.

    Raises:
        ParamsError: names the key, what is allowed and the nearest match.
    """
    tasks = {name: make_task(name, config) for name, config in params.tasks.items()}
    rewarded_by = {name: task.rewarded_by for name, task in tasks.items()}
    for name, task in tasks.items():
        for file in getattr(task, "files", ()):
            if found_at(file) != "file":
                raise ParamsError(
                    f"tasks.{name}.options: no file {shown(str(file))}; name a JSONL file of this project"
                )
            check_kept(f"tasks.{name}", file)
        for file in getattr(task, "code", ()):
            if found_at(file) != "file":
                raise ParamsError(
                    f"tasks.{name}.reward: no file {shown(str(file))}; write `file.py:function`"
                )
    _check_policy(params.policy)
    _check_lengths(params)
    _check_backends(params)
    _check_seeds(params.seeds)
    _check_sft(params)
    check_judges(params, rewarded_by)
    check_method("rl.method", params.rl.method)
    check_ways(params.evaluation)
    chosen_probes(params.probes)
    check_harness(params.evaluation)
    for variant in params.variant_names():
        changed = params.variant(variant)
        where = "" if variant == DEFAULT else f"variants.{variant}: "
        _check_rates(changed, where)
        for name, phase in changed.phases.items():
            _check_phase(changed, f"{where}phases.{name}", name, phase, rewarded_by)
    _check_orders(params)
    _check_merges(params)
    _check_arms(params)
    _check_variants(params)
    _check_size(params)
    if not params.allow_unequal_budgets:
        for variant in params.variant_names():
            where = "" if variant == DEFAULT else f"variants.{variant}: "
            check_budgets(params.variant(variant), where)


def _check_policy(policy: PolicyConfig) -> None:
    if policy.path is not None:
        check_model_path(policy.path)
        check_kept("policy.path", policy.path)
        template = policy.chat_template
        if template is not None and found_at(template) != "file":
            raise ParamsError(
                f"policy.chat_template: no file {shown(template)}; name one with a Jinja template"
            )
        bad = [name for name in policy.chat_template_kwargs if not VARIABLE.fullmatch(name)]
        if bad:
            raise ParamsError(
                f"policy.chat_template_kwargs: {shown(bad[0])} is no name of a template's variable; use letters, digits and _"
            )
        return
    for name in ("chat_template", "system", "chat_template_kwargs"):
        if getattr(policy, name):
            raise ParamsError(
                f"policy.{name} is of a model named by policy.path; the built-in one has its own template: remove it"
            )
    width, heads = policy.hidden_size, policy.num_heads
    if width % heads or (width // heads) % 2:
        raise ParamsError(
            f"policy: hidden_size {width} over num_heads {heads} gives no even head size; "
            f"take a hidden_size that is a multiple of {2 * heads}"
        )
    size = policy.num_layers * (4 * width**2 + 3 * width * policy.mlp_size)
    if size > MAX_PARAMETERS:
        raise ParamsError(
            f"policy: these sizes make a model of {size:.2g} parameters, and one trained from scratch may have "
            f"{MAX_PARAMETERS:.0g}; lower hidden_size, mlp_size or num_layers, or start from a model (policy.path)"
        )


def _check_lengths(params: Params) -> None:
    """An answer must leave room for a prompt: of two pieces beside what marks its beginning and end."""
    limits = {"policy.max_positions": None if params.policy.path else params.policy.max_positions}
    if params.rollout.backend == "vllm":
        limits["rollout.max_model_len"] = params.rollout.max_model_len
    for where, limit in limits.items():
        for name, task in params.tasks.items():
            if limit is not None and task.max_new_tokens + 4 > limit:
                raise ParamsError(
                    f"tasks.{name}.max_new_tokens: {task.max_new_tokens} leaves no room for a prompt within {where} "
                    f"{limit}; lower it or raise {where}"
                )


def _check_backends(params: Params) -> None:
    training = params.training
    if training.backend == "local" and (training.ranks > 1 or training.hostfile is not None):
        raise ParamsError(
            "training: several ranks need `backend: deepspeed`; set it, or ranks: 1 and no hostfile"
        )
    several = training.ranks > 1 or training.hostfile is not None
    if params.rollout.backend == "vllm" and training.backend == "deepspeed" and several:
        raise ParamsError(
            "rollout.backend vllm runs beside one training process, and training asks for several ranks: "
            "set rollout.backend: torch (each rank samples its share), or training.ranks: 1"
        )


def _check_rates(params: Params, variant: str) -> None:
    """What the training backend cannot do, and learning rates per task, of `rl` and of every phase."""
    backend = params.training.backend
    sections = {"rl": params.rl} | {f"phases.{n}.rl": params.phase_rl(n) for n in params.phases}
    for section, rl in sections.items():
        where = f"{variant}{section}"
        if rl.optimizer == "muon" and backend == "deepspeed":
            raise ParamsError(
                f"{where}.optimizer muon needs whole matrices, and training.backend deepspeed splits the weights as flat "
                "lists of numbers: set it to adamw, or training.backend: local"
            )
        for term in rl.method.terms if backend == "deepspeed" else ():
            for name, options in term.items() if isinstance(term, dict) else ():
                if options.get("layers") is not None:
                    raise ParamsError(
                        f"{where}.method.terms.{name}.layers needs whole gradients, and training.backend deepspeed splits "
                        "them: leave `layers` out, or set training.backend: local"
                    )
        for task in rl.task_lr:
            check_known(f"{where}.task_lr", "task", task, params.tasks)


def _check_seeds(seeds: Sequence[int]) -> None:
    if len(set(seeds)) < len(seeds):
        raise ParamsError(f"seeds: each seed once, got {shown(list(seeds))}")


def _check_sft(params: Params) -> None:
    if params.sft is None:
        if params.policy.path is None:
            raise ParamsError(
                "sft: null begins RL at the model of policy.path, and there is none: RL cannot sharpen random weights; name a "
                "model, or write a section `sft`"
            )
        return
    for task in params.sft.gate:
        check_known("sft.gate", "task", task, params.tasks)
        if not params.tasks[task].demonstrations:
            raise ParamsError(
                f"sft.gate: task {task!r} has no demonstrations to learn from; "
                f"set tasks.{task}.demonstrations or take it out of the gate"
            )
    if params.sft.max_steps < params.sft.steps:
        raise ParamsError(
            f"sft.max_steps: {params.sft.max_steps} is below sft.steps {params.sft.steps}; raise it or lower steps"
        )


def _check_phase(
    params: Params, where: str, name: str, phase: PhaseConfig, rewarded_by: Mapping[str, str]
) -> None:
    if (phase.data is not None or phase.sft is not None) and phase.kind != "sft":
        raise ParamsError(f"{where}: `data` and `sft` are of `kind: sft`, and this is {phase.kind}")
    if phase.teachers is not None and phase.kind != "distill":
        raise ParamsError(
            f"{where}.teachers: these are of `kind: distill`, and this is {phase.kind}; one teacher for all tasks is rl.teacher"
        )
    for task, weight in phase.tasks.items():
        check_known(f"{where}.tasks", "task", task, params.tasks)
        if not weight > 0:
            raise ParamsError(
                f"{where}.tasks.{task}: the weight must be above 0, got {weight}; leave the task out"
            )
        wanted = PAID_BY.get(phase.kind)
        if wanted and rewarded_by[task] != wanted:
            raise ParamsError(
                f"{where}: a {phase.kind} phase takes tasks rewarded by a {wanted}, and {task!r} is rewarded by a "
                f"{rewarded_by[task]}; set `kind: mixed` or move the task"
            )
        if rewarded_by[task] == "judge" and not params.judges and task != params.judge.task:
            raise ParamsError(
                f"{where}: the judge is trained for {params.judge.task!r} (judge.task), not for {task!r}"
            )
    if phase.kind == "sft":
        _check_supervised(params, where, phase)
        return
    rl = params.phase_rl(name)
    check_piece(f"{where}.rl.sampler", "sampler", rl.sampler)
    check_piece(f"{where}.rl.items", "items", rl.items)
    if rl.inherit_items and rl.items == "shuffled":
        raise ParamsError(
            f"{where}.rl.inherit_items: `items: shuffled` asks nothing of what is known of problems; name another item sampler "
            "(`trainorder methods` lists them) or leave inherit_items out"
        )
    check_piece(f"{where}.rl.curriculum", "curriculum", rl.curriculum)
    order = {} if isinstance(rl.curriculum, str) else next(iter(rl.curriculum.values()))
    if sorted(order.get("order") or phase.tasks) != sorted(phase.tasks):
        raise ParamsError(
            f"{where}.rl.curriculum: order must name each task of the phase once "
            f"({', '.join(phase.tasks)}), got {', '.join(order['order'])}"
        )
    if rl.serial_tasks and rl.updates_per_batch > 1:
        raise ParamsError(
            f"{where}: rl.serial_tasks makes one update per task, got updates_per_batch {rl.updates_per_batch}; "
            f"leave that at 1"
        )
    if rl.prompts_per_step * rl.group_size > MAX_ROLLOUTS:
        raise ParamsError(
            f"{where}: rl.prompts_per_step {rl.prompts_per_step} times rl.group_size {rl.group_size} is "
            f"{rl.prompts_per_step * rl.group_size} rollouts a step, at most {MAX_ROLLOUTS} are allowed; lower one"
        )
    if rl.prompts_per_step < len(phase.tasks):
        raise ParamsError(
            f"{where}: {rl.prompts_per_step} prompts per step cannot serve {len(phase.tasks)} tasks; "
            f"raise rl.prompts_per_step"
        )
    if rl.updates_per_batch > rl.prompts_per_step:
        raise ParamsError(
            f"{where}: {rl.updates_per_batch} updates per batch of {rl.prompts_per_step} prompts; "
            f"a batch is split by prompt, so lower rl.updates_per_batch"
        )
    check_method(f"{where}.rl.method", rl.method)
    if ("edit", "self_play") in rl.pieces():
        check_self_play(where, params, phase)
    if phase.kind == "distill":
        _check_distillation(params, where, phase, rl)
    else:
        check_teacher(where, rl)


def _check_distillation(params: Params, where: str, phase: PhaseConfig, rl: RlConfig) -> None:
    """Its teachers are checkpoints of the plan, and its method compares with them."""
    if rl.teacher is not None:
        raise ParamsError(
            f"{where}.rl.teacher: `kind: distill` has a teacher for each task, under teachers: leave this out"
        )
    for task, path in (phase.teachers or {}).items():
        check_known(f"{where}.teachers", "task of this phase", task, phase.tasks)
        for name in path:
            check_known(f"{where}.teachers.{task}", "phase", name, params.phases)
            if params.phases[name].kind == "distill":
                raise ParamsError(
                    f"{where}.teachers.{task}: {name!r} is distilled itself; a teacher is trained by other phases"
                )
    asked = {name for _, name in rl.pieces() & asking_teachers()}
    if not asked:
        raise ParamsError(
            f"{where}.rl.method: `kind: distill` needs a piece that compares with the teacher, e.g. the term `distillation`; leave "
            "rl.method out for the reverse KL on the policy's own answers"
        )
    if "ask_teacher" in asked:
        raise ParamsError(
            f"{where}.rl.method: ask_teacher has one teacher answer, and `kind: distill` learns from the policy's own answers; "
            "take it out of plan"
        )


def _check_supervised(params: Params, where: str, phase: PhaseConfig) -> None:
    if phase.data is None:
        raise ParamsError(
            f"{where}: `kind: sft` learns rows: name a file by data (rows with messages, or prompt and completion)"
        )
    if found_at(phase.data):
        check_kept(f"{where}.data", phase.data)
    if phase.rl:
        raise ParamsError(
            f"{where}.rl: `kind: sft` makes no RL updates; its settings are under sft"
        )
    if params.training.backend == "deepspeed":
        raise ParamsError(
            f"{where}: `kind: sft` trains in one process, and training.backend is deepspeed: set it to local"
        )


def _check_orders(params: Params) -> None:
    seen: dict[tuple[str, ...], str] = {}
    for name, order in params.orders.items():
        if isinstance(order, str):
            if len(single_phases(params)) < 2:
                raise ParamsError(
                    f"orders.{name}: {order!r} is chosen among the phases of the orders that list two or more, "
                    f"and there is no such order; add one"
                )
            continue
        phases = order.all if isinstance(order, Permutations) else order
        for phase in phases:
            check_known(f"orders.{name}", "phase", phase, params.phases)
        if isinstance(order, Permutations):
            _check_permutations(params, name, phases)
            continue
        if tuple(order) in seen:
            raise ParamsError(
                f"orders.{name}: the same phases as orders.{seen[tuple(order)]}; remove one"
            )
        seen[tuple(order)] = name


def _check_permutations(params: Params, name: str, phases: Sequence[str]) -> None:
    if len(set(phases)) < len(phases) or len(phases) > MAX_PERMUTED:
        raise ParamsError(
            f"orders.{name}.all: each phase once and at most {MAX_PERMUTED} of them "
            f"({MAX_PERMUTED} have 120 orders), got {', '.join(phases)}"
        )
    clash = sorted({"_".join(p) for p in itertools.permutations(phases)} & set(params.orders))
    if clash:
        raise ParamsError(
            f"orders.{clash[0]}: orders.{name} gives one of its orders this name; rename one"
        )


def _check_arms(params: Params) -> None:
    """Orders, merges and the base are arms of one ranking, which tells them apart by name."""
    orders = {*params.orders, *order_phases(params, {})}
    for name in sorted({*orders, *params.merges}):
        section = "orders" if name in orders else "merges"
        if name == BASE:
            raise ParamsError(
                f"{section}.{name}: every ranking calls the checkpoint before all phases so; rename it"
            )
        if name in orders and name in params.merges:
            raise ParamsError(f"{section}.{name}: a merge has this name too; rename one")


def _check_variants(params: Params) -> None:
    for name in params.variants:
        for section in ("phases", "merges"):
            if name in getattr(params, section):
                raise ParamsError(
                    f"variants.{name}: an entry of {section} has this name too, and both would be node s0--{name}; "
                    f"rename one"
                )


def _check_merges(params: Params) -> None:
    for name, merge in params.merges.items():
        if name in params.phases:
            raise ParamsError(
                f"merges.{name}: a phase has this name too, and both would be node s0--{name}; rename one"
            )
        for key in ("threshold", "unique_scale"):
            if merge.method != "ram" and key in merge.model_fields_set:
                raise ParamsError(
                    f"merges.{name}.{key} is of `method: ram`, and this is {merge.method}; remove it"
                )
    if params.merges and len(single_phases(params)) < 2:
        raise ParamsError(
            "merges: nothing to merge, no order lists two or more phases; add one or remove `merges`"
        )


def _check_size(params: Params) -> None:
    """Every node must be nameable as a file, and all of them plannable by DVC."""
    orders = list(order_phases(params, {}).values()) + [[p] for p in single_phases(params)]
    variant = max(map(len, params.variants), default=-2)
    root = len(f"s{max(params.seeds)}--") + variant + 2
    for phases in orders:
        length = root + len("--".join(phases))
        if length > MAX_NAME:
            raise ParamsError(
                f"orders: the checkpoint after {len(phases)} phases ({shown(' > '.join(phases))}) would have a name of "
                f"{length} characters, and files can have {MAX_NAME}; shorten the phases' names"
                f"{' and the variants' if params.variants else ''}, or the order"
            )
    prefixes = {tuple(phases[:n]) for phases in orders for n in range(1, len(phases) + 1)}
    each = (len(prefixes) + len(params.merges)) * (1 + len(params.variants))
    bases = len({params.base_of(seed) for seed in params.seeds})
    nodes = bases + each * len(params.seeds)
    if nodes > MAX_CHECKPOINTS:
        raise ParamsError(
            f"orders: {nodes} checkpoints ({each} of {len(params.orders)} orders, {len(params.merges)} merges and "
            f"{1 + len(params.variants)} variants, for {len(params.seeds)} seeds), at most {MAX_CHECKPOINTS} can be "
            f"planned; take fewer seeds, variants or orders"
        )
