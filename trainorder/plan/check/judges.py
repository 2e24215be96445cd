"""Judges and endpoints: who judges what, in which role, and with how many prompts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from trainorder.config import (
    ROLES,
    AnyJudgeConfig,
    EndpointConfig,
    ModelJudgeConfig,
    Params,
    PreferenceConfig,
    QuestionConfig,
    Role,
)
from trainorder.plan.appointed import appointed
from trainorder.plan.check.common import check_kept, check_known, check_model_path
from trainorder.plan.pipeline import judge_files
from trainorder.process import is_loopback
from trainorder.reading import ParamsError, shown
from trainorder.tasks import make_task

HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})|[0-9A-Fa-f:.]{2,45}(%\w+)?")
VARIABLE = re.compile(r"[A-Za-z_]\w{0,63}")


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


def check_judges(params: Params, rewarded_by: Mapping[str, str]) -> None:
    """Refuse judges that judge nothing, tasks without a judge, and settings of judges that cannot work."""
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
            check_kept(where, file)
        if isinstance(config, QuestionConfig) and config.scale[0] >= config.scale[1]:
            raise ParamsError(
                f"{where}.scale: the lowest score comes first, got {config.scale}; write e.g. [1, 5]"
            )
        if isinstance(config, ModelJudgeConfig):
            check_model_path(config.path, f"{where}.path")
        if config.task is None:
            continue
        check_known(f"{where}.task", "task", config.task, params.tasks)
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
