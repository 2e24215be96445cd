"""Whether every judge answers, tried on one pair before anything trains: one that is away, slow or talks nonsense is named."""

from __future__ import annotations

from collections.abc import Collection

from trainorder.config import EndpointConfig, EndpointJudgeConfig, ModelJudgeConfig, Params
from trainorder.data import few_problems
from trainorder.judges.endpoint import EndpointJudge, JudgeOutage
from trainorder.judges.pairs import read_pairs
from trainorder.plan import compile_plan
from trainorder.reading import NotHere, ParamsError
from trainorder.sources import locate

PATIENCE, SLOW = 5.0, 60.0
"""Seconds that a judge may be away, and that one reply may take, before anything trains."""
LARGE = 1 << 30
"""Bytes of weights that are not loaded for one pair; the model's stage loads them."""
STATUS = "the judge answers "
"""How a failure begins that is a status of the server, not a reply of its model."""
PAIR = ("a lantern above the silver sea", "stone stone stone")


def check(params: Params, names: Collection[str] | None = None) -> list[str]:
    """Try the judges of these names, or all that a task has; a line about each that was asked.

    Raises:
        NotHere: an endpoint does not answer.
        ParamsError: one gave no verdict, cannot be asked, or its pairs cannot be read.
    """
    said = []
    for name, judge in compile_plan(params).judges.items():
        if names is not None and name not in names:
            continue
        where, config = f"judges.{name}" if params.judges else "judge", judge.config
        if config.pairs:
            count = len(read_pairs(f"{where}.pairs", config.pairs))
            said.append(f"{where}: own pairs about {count} prompts")
        _, problems = few_problems(judge.tasks[0], params.tasks[judge.tasks[0]])
        prompt = max((problem.text for problem in problems), key=len)
        if isinstance(config, EndpointJudgeConfig):
            said.append(f"{where}: {_try_endpoint(where, config, prompt)}")
        elif isinstance(config, ModelJudgeConfig):
            room = max(params.tasks[task].max_new_tokens for task in judge.tasks)
            said.append(f"{where}: {_try_model(where, config, prompt, room)}")
    return said


def _try_endpoint(where: str, config: EndpointJudgeConfig, prompt: str) -> str:
    changes = {
        "outage_seconds": min(config.outage_seconds, PATIENCE),
        "timeout_seconds": min(config.timeout_seconds, SLOW),
        "retries": min(config.retries, 1),
    }
    judge = EndpointJudge(config.model_copy(update=changes))
    try:
        [value] = judge.win_probability([prompt], PAIR[:1], PAIR[1:])
    except JudgeOutage as error:
        raise NotHere(f"{where}: tried on one pair, {error}") from None
    if value is None:
        said = judge.failures[0]
        way = "look there for why" if STATUS in said else _way(config)
        raise ParamsError(f"{where}: tried on one pair, it gave no verdict: {said}; {way}")
    return f"{config.model} at {config.base_url} answers ({value:g} on a trial pair)"


def _way(config: EndpointConfig) -> str:
    limit = f"raise max_tokens ({config.max_tokens}) if it thinks first"
    return f"{limit}, fit token_limit, temperature and body to it, or take another model"


def _try_model(where: str, config: ModelJudgeConfig, prompt: str, room: int) -> str:
    from trainorder.judges.model import ModelJudge
    from trainorder.policy import Policy

    judge = ModelJudge(config)
    try:
        judge.policy = Policy.load(config.path, weights=False)
        _ = judge.reply_ids  # raises where a reply has no token
    except ParamsError as error:
        raise type(error)(f"{where}: {str(error).removeprefix('judges: ')}") from None
    long = " ".join(["word"] * room)
    needed = max(map(judge.length, judge.question.chats(prompt, long, long + " more")))
    bound = judge.policy.context
    if bound is not None and needed > bound:
        raise ParamsError(
            f"{where}: the longest prompt with answers of {room} words needs {needed} positions, {config.path} has {bound}: lower "
            f"max_new_tokens, or take a model with a longer context"
        )
    folder = locate(config.path, weights=True)
    size = sum(file.stat().st_size for file in folder.glob("model*.safetensors"))
    if size > LARGE:
        return f"{config.path} can read what it is asked, {needed} of {bound} positions at most"
    judge = ModelJudge(config)
    [value] = judge.win_probability([prompt], PAIR[:1], PAIR[1:])
    if value is None:
        raise ParamsError(
            f"{where}: tried on one pair, it gave no verdict: {judge.failures[0]}; lower min_mass, set chat_template_kwargs, or "
            f"take an instruct model"
        )
    return f"{config.path} answers ({value:.3g} on a trial pair)"
