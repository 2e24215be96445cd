"""Other wordings of the same problem: templates drawn per visit, populations of prompts that share a group."""

from __future__ import annotations

import re
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from trainorder.config.values import PromptTexts
from trainorder.reading import ParamsError
from trainorder.rl.registry import plan, reward
from trainorder.rl.types import Roll, State
from trainorder.rollout import Request
from trainorder.tasks.base import in_template

TAGS = "template_tags"
"""Key in the meta of a problem that was asked in a template: the tags that it asks for."""
TAG = re.compile(r"</?[A-Za-z_]+>")
TEMPLATES = [
    "{prompt}",
    "{prompt} Think step by step.",
    "{prompt} First think, as <think> ... </think>, then answer, as <answer> ... </answer>.",
    "Answer as <answer> ... </answer>. {prompt}",
]


@plan
def prompt_templates(
    requests: list[Request], state: State, *, templates: PromptTexts | None = None
) -> list[Request]:
    """Ask every problem in one template, drawn uniformly per visit and shared by its group (arXiv:2602.03190).

    A template is a text with `{prompt}`; null takes four of ours. The paper has 13, some of which begin the answer, which
    a text in front of it cannot do. The tags that a template names are what `template_format` asks of the answer.
    """
    known = TEMPLATES if templates is None else templates
    drawn = torch.randint(len(known), (len(requests),), generator=state.stream("prompt_templates"))
    return [
        _in(request, known[i], "template", i)
        for request, i in zip(requests, drawn.tolist(), strict=True)
    ]


@reward
def template_format(roll: Roll, state: State) -> Float[Tensor, " row"]:
    """Share of the tags that the row's template names which the answer holds; 1 without any (arXiv:2602.03190).

    The paper adds it to the grade, both with coefficient 1.
    """
    found = []
    for text, problem in zip(roll.text, roll.problem, strict=True):
        tags = problem.meta.get(TAGS, [])
        found.append(sum(tag in text for tag in tags) / len(tags) if tags else 1.0)
    return roll.rewards.new_tensor(found)


@plan
def prompt_population(
    requests: list[Request], state: State, *, texts: PromptTexts | None = None
) -> list[Request]:
    """Ask each problem in K wordings, with an equal part of its answers each, in one group (FST, arXiv:2605.12484).

    Fast-slow training's slow part: rewards are normalised over all K wordings, so that weights learn what no wording
    gives. `texts` are the population, each with `{prompt}`; null is the bare problem, which changes nothing. The fast part,
    which rewrites the texts (GEPA), is not part of the piece: give it the texts that you have. From a third party's
    re-implementation; the paper itself was not read.

    Raises:
        ParamsError: K does not divide the answers per problem.
    """
    known = ["{prompt}"] if texts is None else texts
    if known == ["{prompt}"]:
        return requests
    asked = []
    for request in requests:
        if request.samples % len(known):
            raise ParamsError(
                f"method.plan.prompt_population: {request.samples} answers per problem cannot be split evenly over "
                f"{len(known)} texts: set rl.group_size to a multiple of {len(known)}"
            )
        group = request.group
        if group is None:  # below those that the engine gives, and never twice in a phase
            group = state.mem["prompt_population"] = state.mem.get("prompt_population", 0) - 1
        part = replace(request, samples=request.samples // len(known), group=group)
        asked += [_in(part, text, "text", i) for i, text in enumerate(known)]
    return asked


def _in(request: Request, template: str, fact: str, number: int) -> Request:
    """The request in a template, whose number and tags its rows know."""
    problem = request.problem
    if problem is None:
        return request
    tags = sorted(set(TAG.findall(template)))
    return replace(
        request,
        problem=replace(problem, meta={**problem.meta, TAGS: tags}) if tags else problem,
        prompt=in_template(request.prompt or problem.prompt, template),
        facts={**request.facts, fact: float(number)},
    )
