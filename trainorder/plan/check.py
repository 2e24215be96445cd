"""What params.yaml can get wrong across its sections. Runs in the first second: no torch, nothing written."""

from __future__ import annotations

import ast
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import TypeAdapter, ValidationError

from trainorder import paths
from trainorder.config import (
    DEFAULT,
    ENGINE_OPTIONS,
    ROLES,
    AnyJudgeConfig,
    EndpointConfig,
    MethodConfig,
    ModelFolder,
    ModelJudgeConfig,
    Params,
    Permutations,
    PhaseConfig,
    Piece,
    PolicyConfig,
    PreferenceConfig,
    QuestionConfig,
    RlConfig,
    Role,
)
from trainorder.plan.compile import appointed
from trainorder.plan.orders import listed_orders, order_phases, single_phases
from trainorder.plan.pipeline import judge_files
from trainorder.reading import ParamsError, did_you_mean, found_at, shown
from trainorder.registries import SLOT_OF, listed
from trainorder.sources import GGUF, find
from trainorder.tasks import make_task

RL = Path(__file__).parents[1] / "rl"
SOURCES = [*sorted((RL / "pieces").glob("*.py")), RL / "samplers.py", RL / "curricula.py"]
"""Files that list pieces."""
MAX_PERMUTED = 5
"""Phases of `{all: [...]}`: one more would be 720 orders."""
MAX_OPTION = 1e9
"""Size of a number among a piece's options; what it means is the piece's."""
MAX_PARAMETERS = 2e9
"""Of a model that is trained from scratch here; 8 GB."""
MAX_CHECKPOINTS = 2000
"""Nodes of a plan; DVC looks at each one's stages before anything runs."""
MAX_NAME = 200
"""Bytes of a node's name: files may have 255, and DVC and we add `.parquet` and temporary endings."""
MAX_ROLLOUTS = 262_144
"""Rollouts of one step, all held in memory."""
HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})|[0-9A-Fa-f:.]{2,45}(%\w+)?")
VARIABLE = re.compile(r"[A-Za-z_]\w{0,63}")
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
            _check_kept(f"tasks.{name}", file)
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
    _check_judges(params, rewarded_by)
    _check_method("rl.method", params.rl.method)
    for variant in params.variant_names():
        changed = params.variant(variant)
        where = "" if variant == DEFAULT else f"variants.{variant}: "
        for name, phase in changed.phases.items():
            _check_phase(changed, f"{where}phases.{name}", name, phase, rewarded_by)
    _check_orders(params)
    _check_merges(params)
    _check_variants(params)
    _check_size(params)
    if not params.allow_unequal_budgets:
        for variant in params.variant_names():
            where = "" if variant == DEFAULT else f"variants.{variant}: "
            _check_budgets(params.variant(variant), where)


def _check_kept(where: str, path: Path | str) -> None:
    """What a stage or DVC removes and writes again can hold nothing of the user's."""
    inside = Path(os.path.relpath(Path(path).resolve(), Path.cwd().resolve()))
    first, node, *_ = *inside.parts, "", ""
    of_a_node = first in paths.OF_NODES and paths.NODE.fullmatch(node)
    if of_a_node or {inside, *inside.parents} & set(paths.REWRITTEN):
        raise ParamsError(
            f"{where}: {shown(str(path))} lies where a run removes and writes files; put it into a folder of your own"
        )


def _check_policy(policy: PolicyConfig) -> None:
    if policy.path is not None:
        _check_model_path(policy.path)
        _check_kept("policy.path", policy.path)
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


def _check_model_path(path: str, where: str = "policy.path") -> None:
    if path.startswith("~"):
        raise ParamsError(f"{where}: {shown(path)}: `~` is not expanded here, write the path out")
    try:
        source = find(path)
    except ParamsError as error:
        raise ParamsError(f"{where}: {error}") from None
    if source.kind == "folder" and found_at(source.path / "config.json") != "file":
        gguf = next((file.name for file in sorted(source.path.glob(f"*{GGUF}"))), "")
        way = f"name the file {Path(path) / gguf}" if gguf else "name a Hugging Face model folder"
        raise ParamsError(f"{where}: the folder {path} holds no config.json; {way}")
    if source.kind == "gguf" and find_spec("gguf") is None:
        raise ParamsError(f"{where}: reading {path} needs the package gguf: pip install gguf")


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
    for where, rl in [
        ("rl", params.rl),
        *((f"phases.{n}.rl", params.phase_rl(n)) for n in params.phases),
    ]:
        if rl.optimizer == "muon" and training.backend == "deepspeed":
            raise ParamsError(
                f"{where}.optimizer muon needs whole matrices, and training.backend deepspeed splits the weights as flat "
                "lists of numbers: set it to adamw, or training.backend: local"
            )
        for task in rl.task_lr:
            _check_known(f"{where}.task_lr", "task", task, params.tasks)


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
        _check_known("sft.gate", "task", task, params.tasks)
        if not params.tasks[task].demonstrations:
            raise ParamsError(
                f"sft.gate: task {task!r} has no demonstrations to learn from; "
                f"set tasks.{task}.demonstrations or take it out of the gate"
            )
    if params.sft.max_steps < params.sft.steps:
        raise ParamsError(
            f"sft.max_steps: {params.sft.max_steps} is below sft.steps {params.sft.steps}; raise it or lower steps"
        )


def _check_endpoint(where: str, config: EndpointConfig) -> None:
    try:
        url = urlsplit(config.base_url)
        host, _ = (url.hostname or "").encode("idna").decode(), url.port
    except ValueError:
        url, host = urlsplit(""), ""
    if url.scheme not in ("http", "https") or not HOST.fullmatch(host) or url.fragment:
        raise ParamsError(
            f"{where}.base_url: an address like http://127.0.0.1:8000/v1 is needed, got {shown(config.base_url)}"
        )
    if url.scheme == "http" and config.api_key_env and not is_loopback(host):
        raise ParamsError(
            f"{where}.base_url: http to {host} would send the key of {config.api_key_env} unencrypted; use https, or set "
            f"{where}.api_key_env to null if the endpoint needs no key"
        )
    if not config.model:
        raise ParamsError(f"{where}.model: name the model that judges, got nothing")


def is_loopback(host: str) -> bool:
    """Whether a host name is this machine by every resolver.

    >>> [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "127.evil.example")]
    [True, True, True, False]
    """
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _check_judges(params: Params, rewarded_by: Mapping[str, str]) -> None:
    judged = [name for name, by in rewarded_by.items() if by == "judge"]
    section = "judges" if params.judges else "judge"
    if params.judges and "judge" in params.model_fields_set:
        raise ParamsError(
            "judge: the short form of `judges`, which is given too; remove one of them"
        )
    for name, task in params.tasks.items():
        if task.judges and name not in judged:
            raise ParamsError(
                f"tasks.{name}.judges: {name!r} is graded by its verifier; remove the key"
            )
    if not judged:
        if section in params.model_fields_set:
            raise ParamsError(
                f"{section}: every task here is graded by its verifier ({', '.join(rewarded_by)}), so no judge is trained: "
                f"remove the section, add a task of kind creative, or let a judge grade own rows (`grader: judge`)"
            )
        return
    named = params.named_judges()
    for name, config in named.items():
        where = f"judges.{name}" if params.judges else "judge"
        if isinstance(config, EndpointConfig):
            _check_endpoint(where if params.judges else "judge.endpoint", config)
        for file in judge_files(config):
            _check_kept(where, file)
        if isinstance(config, QuestionConfig) and config.scale[0] >= config.scale[1]:
            raise ParamsError(
                f"{where}.scale: the lowest score comes first, got {config.scale}; write e.g. [1, 5]"
            )
        if isinstance(config, ModelJudgeConfig):
            _check_model_path(config.path, f"{where}.path")
        if config.task is None:
            continue
        _check_known(f"{where}.task", "task", config.task, params.tasks)
        if config.task not in judged:
            raise ParamsError(
                f"{where}.task: {config.task!r} is graded by its verifier; judged tasks: {', '.join(judged)}"
            )
    short = params.judge
    if not params.judges and short.backend == "endpoint" and not short.endpoint.same_in_both_roles:
        raise ParamsError(
            f"judge.endpoint: the model {short.endpoint.model!r} would be the judge that gives rewards and the one that "
            f"evaluates, so no score of task {short.task!r} would be independent of training; use judge.backend local, or "
            f"accept it by judge.endpoint.same_in_both_roles: true"
        )
    roles = {task: params.judges_of(task) for task in judged}
    for task, found in roles.items():
        _check_roles(task, found, named)
    for name, config in named.items():
        tasks = [task for task, found in roles.items() if name in found.values()]
        if not tasks:
            raise ParamsError(
                f"judges.{name}: it judges nothing; give it a role (`role: reward` or `role: evaluation`), name it in "
                f"tasks.{judged[0]}.judges, or remove it"
            )
        _check_prompts(params, name, config, roles)


def _check_roles(
    task: str, roles: Mapping[Role, str], judges: Mapping[str, AnyJudgeConfig]
) -> None:
    """The judge that gives the rewards is not the one that evaluates, under whatever name, unless that is allowed."""
    reward, evaluation = (judges[roles[role]] for role in ROLES)
    if reward.same_in_both_roles and evaluation.same_in_both_roles:
        return
    if roles["reward"] == roles["evaluation"] or _who(reward) == _who(evaluation) is not None:
        names = " and ".join(dict.fromkeys(roles.values()))
        raise ParamsError(
            f"judges: {names} would be the judge that gives rewards and the one that evaluates, so no score of task {task!r} "
            f"would be independent of training; name another judge for one of the roles, or accept it by "
            f"`same_in_both_roles: true` of {names}"
        )


def _who(config: AnyJudgeConfig) -> tuple[str, ...] | None:
    """What makes two judges the same one whatever they are called; None for a model that is trained from its own prompts."""
    match config:
        case EndpointConfig():
            return (config.kind, config.base_url, config.model)
        case ModelJudgeConfig():
            return (config.kind, config.path)
        case _:
            return None


def _check_prompts(
    params: Params, name: str, config: AnyJudgeConfig, roles: Mapping[str, Mapping[Role, str]]
) -> None:
    """A preference model learns from one task's training problems, and no problem teaches two of them."""
    if not isinstance(config, PreferenceConfig) or config.pairs:
        return
    judge = appointed(params, roles)[name]
    task = config.task or judge.tasks[0]
    others = [other for other in judge.tasks if other != task and params.judges]
    if others:
        raise ParamsError(
            f"judges.{name}: a preference model is trained for one task, here {task!r}, and it would judge {', '.join(others)} "
            f"too: add a judge for each task and name it in tasks.{others[0]}.judges"
        )
    if not getattr(make_task(task, params.tasks[task]), "has_taste", False):
        raise ParamsError(
            f"{f'judges.{name}' if params.judges else 'judge'}: nothing says which answers to {task!r} are better: give the judge own "
            f"`pairs`, give the rows a taste (tasks.{task}.options: {{taste: verse}}), or take a judge of kind model or endpoint"
        )
    needed, has = judge.first + config.prompts + config.heldout_prompts, params.tasks[task].train
    if needed > has:
        before = f", after {judge.first} of the judges before it," if judge.first else ""
        raise ParamsError(
            f"{f'judges.{name}' if params.judges else 'judge'}: prompts {config.prompts} + heldout_prompts "
            f"{config.heldout_prompts}{before} need {needed} training problems, task {task!r} has {has}: lower them, or raise "
            f"tasks.{task}.train"
        )


def _check_phase(
    params: Params, where: str, name: str, phase: PhaseConfig, rewarded_by: Mapping[str, str]
) -> None:
    if (phase.data is not None or phase.sft is not None) and phase.kind != "sft":
        raise ParamsError(f"{where}: `data` and `sft` are of `kind: sft`, and this is {phase.kind}")
    for task, weight in phase.tasks.items():
        _check_known(f"{where}.tasks", "task", task, params.tasks)
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
    _check_piece(f"{where}.rl.sampler", "sampler", rl.sampler)
    _check_piece(f"{where}.rl.curriculum", "curriculum", rl.curriculum)
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
    _check_method(f"{where}.rl.method", rl.method)
    _check_teacher(where, rl)


def _check_teacher(where: str, rl: RlConfig) -> None:
    """Its folder; whether a node of the plan is meant is checked when the plan is compiled."""
    if isinstance(rl.teacher, ModelFolder):
        _check_kept(f"{where}.rl.teacher", rl.teacher.path)
        _check_model_path(rl.teacher.path, f"{where}.rl.teacher.path")
    for slot, name in rl.pieces() if rl.teacher is None else ():
        if (slot, name) in asking_teachers():
            given = [piece.get(name, {}) for piece in _options(rl.method) if name in piece]
            if any(
                options.get("model", "teacher").startswith("teacher") for options in given or [{}]
            ):
                raise ParamsError(
                    f"{where}.rl: {name!r} needs a teacher, and there is none: set rl.teacher to a node of the plan "
                    "(`s{seed}--math`) or to {path: FOLDER}"
                )


def _options(method: MethodConfig) -> list[dict[str, Any]]:
    """All pieces with options, those of single terms included."""
    found = [
        p for slot in SLOT_OF.values() for p in getattr(method, slot, ()) if isinstance(p, dict)
    ]
    own = [w for term in found for options in term.values() for w in options.get("weight") or ()]
    return found + [piece for piece in own if isinstance(piece, dict)]


@cache
def asking_teachers() -> frozenset[tuple[str, str]]:
    """(slot, piece) of those that need `rl.teacher` unless an option `model` names another model, read from the source."""
    found = set()
    for file in SOURCES:
        for slot, function in listed(ast.parse(file.read_text(encoding="utf-8"))):
            options = zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
            defaults = {a.arg: ast.unparse(d) for a, d in options if d is not None}
            answers = any("answers:teacher" in ast.unparse(d) for d in function.decorator_list)
            if answers or defaults.get("model") == "'teacher'":
                found.add((slot, function.name))
    return frozenset(found)


def _check_supervised(params: Params, where: str, phase: PhaseConfig) -> None:
    if phase.data is None:
        raise ParamsError(
            f"{where}: `kind: sft` learns rows: name a file by data (rows with messages, or prompt and completion)"
        )
    if found_at(phase.data):
        _check_kept(f"{where}.data", phase.data)
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
            _check_known(f"orders.{name}", "phase", phase, params.phases)
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


def _check_variants(params: Params) -> None:
    for name in params.variants:
        for section in ("phases", "merges"):
            if name in getattr(params, section):
                raise ParamsError(
                    f"variants.{name}: an entry of {section} has this name too, and both would be node s0--{name}; "
                    f"rename one"
                )


def _check_merges(params: Params) -> None:
    for name in params.merges:
        if name in params.phases:
            raise ParamsError(
                f"merges.{name}: a phase has this name too, and both would be node s0--{name}; rename one"
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
    bases = 1 if params.sft is None else len(params.seeds)
    nodes = bases + each * len(params.seeds)
    if nodes > MAX_CHECKPOINTS:
        raise ParamsError(
            f"orders: {nodes} checkpoints ({each} of {len(params.orders)} orders, {len(params.merges)} merges and "
            f"{1 + len(params.variants)} variants, for {len(params.seeds)} seeds), at most {MAX_CHECKPOINTS} can be "
            f"planned; take fewer seeds, variants or orders"
        )


def _check_known(where: str, what: str, name: str, allowed: Mapping[str, Any]) -> None:
    if name not in allowed:
        names = sorted(allowed)
        raise ParamsError(
            f"{where}: no {what} {name!r}; there are {', '.join(names)}{did_you_mean(name, names)}"
        )


def budget(params: Params, phases: Sequence[str]) -> dict[str, float]:
    """What training on these phases spends: updates, rollouts, and prompts of every task.

    A phase of weights w spends steps * prompts_per_step * w[task] / sum(w) prompts of a task. Where the phase decides
    itself what to ask (a sampler or curriculum that looks at rewards), prompts are counted as `prompts of any task`.
    """
    spent: dict[str, float] = {"updates": 0, "rollouts": 0}
    for name in phases:
        phase, rl = params.phases[name], params.phase_rl(name)
        if phase.kind == "sft":
            rows = phase.steps * phase.supervised.batch_size
            for quantity, count in {"supervised updates": phase.steps, "rows": rows}.items():
                spent[quantity] = spent.get(quantity, 0) + count
            continue
        prompts = phase.steps * rl.prompts_per_step
        spent["updates"] += phase.steps * (
            len(phase.tasks) if rl.serial_tasks else rl.updates_per_batch
        )
        spent["rollouts"] += prompts * rl.group_size
        if not _is_fixed(rl):
            spent[ANY_TASK] = spent.get(ANY_TASK, 0) + prompts
            continue
        total = sum(phase.tasks.values())
        for task, weight in phase.tasks.items():
            key = f"prompts of {task}"
            spent[key] = round(spent.get(key, 0) + prompts * weight / total, 6)
    return spent


ANY_TASK = "prompts of any task"


def _is_fixed(rl: RlConfig) -> bool:
    """Whether a task's share of the prompts is known beforehand."""
    names = [next(iter(p)) if isinstance(p, dict) else p for p in (rl.sampler, rl.curriculum)]
    return names[0] == "weights" and names[1] in ("together", "in_turn")


def _comparable(first: dict[str, float], second: dict[str, float]) -> list[dict[str, float]]:
    """Prompts are compared task by task, unless one of the two decides about them while it trains."""
    if ANY_TASK not in {*first, *second}:
        return [first, second]
    kept = [{k: v for k, v in b.items() if not k.startswith("prompts")} for b in (first, second)]
    for short, full in zip(kept, (first, second), strict=True):
        short["prompts"] = sum(v for k, v in full.items() if k.startswith("prompts"))
    return kept


def _check_budgets(params: Params, where: str = "") -> None:
    asked = [name for name, order in params.orders.items() if isinstance(order, str)]
    orders = {**listed_orders(params), **dict.fromkeys(asked, single_phases(params))}
    first, *others = [(name, budget(params, phases)) for name, phases in orders.items()]
    for name, spent in others:
        one, other = _comparable(first[1], spent)
        quantities = list(dict.fromkeys([*one, *other]))
        pairs = [(q, one.get(q, 0), other.get(q, 0)) for q in quantities]
        different = [f"{q} {a:g} and {b:g}" for q, a, b in pairs if a != b]
        if different:
            raise ParamsError(
                f"{where}orders: {first[0]} and {name} differ in budget: {', '.join(different)}; "
                f"an order effect could be a budget effect. Make them equal, or set `allow_unequal_budgets: true`"
            )


def _check_method(where: str, method: MethodConfig) -> None:
    for slot in SLOT_OF.values():
        for piece in getattr(method, slot, ()):
            _check_piece(f"{where}.{slot}", slot, piece)


def _check_piece(where: str, slot: str, piece: Piece) -> None:
    if isinstance(piece, dict) and len(piece) != 1:
        raise ParamsError(
            f"{where}: a piece is one name with its options, got {sorted(piece)}; make each a list item of its own"
        )
    name, given = (piece, {}) if isinstance(piece, str) else next(iter(piece.items()))
    listed = pieces()[slot]
    _check_known(where, "piece", name, listed)
    allowed = sorted(listed[name])
    for option, value in given.items():
        if option not in allowed:
            takes = f"it takes {', '.join(allowed)}" if allowed else "it takes none"
            raise ParamsError(
                f"{where}.{name}: no option {option!r}; {takes}{did_you_mean(option, allowed)}"
            )
        if isinstance(value, int | float) and abs(value) > MAX_OPTION:
            raise ParamsError(
                f"{where}.{name}.{option}: at most {MAX_OPTION:g} is allowed, got {shown(value)}"
            )
        try:
            TypeAdapter(listed[name][option]).validate_python(value, strict=True)
        except ValidationError as error:
            message = error.errors()[0]["msg"]
            raise ParamsError(
                f"{where}.{name}.{option}: {message[0].lower()}{message[1:]}, got {shown(value)}"
            ) from None
        if (slot, option) == ("terms", "weight") and isinstance(value, list):
            for own in value:
                _check_piece(f"{where}.{name}.weight", "weight", own)


@cache
def pieces() -> dict[str, dict[str, dict[str, Any]]]:
    """Slot -> piece -> option -> its type, read from the source: importing it would import torch."""
    found: dict[str, dict[str, dict[str, Any]]] = {slot: {} for slot in SLOT_OF.values()}
    for file in SOURCES:
        for slot, function in listed(ast.parse(file.read_text(encoding="utf-8"))):
            options = {a.arg: _type(a.annotation) for a in function.args.kwonlyargs}
            found[slot][function.name] = options | ENGINE_OPTIONS.get(slot, {})
    return found


def _type(annotation: ast.expr | None) -> Any:
    """The type an annotation names, as far as plain values go; anything else is left to the piece."""
    known = {"float": float, "int": int, "bool": bool, "str": str, "list": list, "Literal": Literal}
    try:
        text = "Any" if annotation is None else ast.unparse(annotation)
        return eval(text, {"__builtins__": {}}, {**known, "Any": Any, "None": None})
    except (NameError, TypeError):
        return Any
