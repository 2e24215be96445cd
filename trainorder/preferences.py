"""Preferences of a simulated annotator, and the two judges that are trained on them.

The annotator sees the hidden gold taste through noise, a judge sees the annotator's choices only. Both judges are
trained on answers to different prompts and from different first heads, so that one of them can watch the other.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import combinations
from pathlib import Path
from typing import Any

from trainorder import paths
from trainorder.config import JudgeConfig, Params
from trainorder.device import device_of, precision
from trainorder.files import write_json
from trainorder.policy import Policy
from trainorder.process import StageError, fail_point
from trainorder.reading import ParamsError
from trainorder.registries import JUDGES, load
from trainorder.resume import NOTHING, Saved, Work
from trainorder.rewards.judge import Comparisons, Judge, fit
from trainorder.rollout import Engine, Request, make_engine
from trainorder.streams import seed_of, stream
from trainorder.tasks import load_problems, load_task
from trainorder.tasks.base import Problem, Task
from trainorder.tasks.creative import Creative, corrupt, flat

ROLES: tuple[str, ...] = ("reward", "evaluation")
TEMPERATURES = (0.7, 1.0, 1.4)
"""The base's answers are sampled at these in equal shares: RL will leave the distribution at 1."""


class AgreementError(StageError):
    """A judge agrees too little with the annotator to be trusted with rewards."""


def train_judges(base: Path, out: Path, params: Params, work: Work = NOTHING) -> dict[str, Any]:
    """Train both judges from the checkpoint `base`; leaves out/reward, out/evaluation and out/report.json.

    Raises:
        AgreementError: held-out agreement below `judge.min_agreement`; no judge is saved.
        ParamsError: too few training problems, or a task that has no gold taste.
    """
    import torch

    config = params.judge
    torch.set_num_threads(1)
    task = load_task(config.task)
    if not isinstance(task, Creative):
        raise ParamsError(
            f"judge.task {config.task!r} has no taste to judge: name a task of kind creative"
        )
    shares = _prompt_shares(load_problems(config.task, "train"), config)
    device, dtype = device_of(params.training.device), params.training.dtype
    policy = Policy.load(base).to(device)
    if config.backend == "endpoint":
        return _appoint(policy, out, shares["reward"], task, params)
    card = json.loads((paths.TASK_DATA / config.task / "task.json").read_text(encoding="utf-8"))
    judges = {role: Judge.start(base, seed).to(device) for seed, role in enumerate(ROLES)}
    engine = cache(partial(make_engine, params.rollout, policy, dtype))

    def train(role: str) -> dict[str, float]:
        def answer() -> Saved:
            with precision(device, dtype):
                made = _answers(engine(), role, shares[role], card["max_new_tokens"], config)
            return Saved({}, {"answers": made})

        answers = work.part(f"answers-{role}", answer).state["answers"]
        fail_point("judge.answers")
        return _train(judges[role], role, shares[role], answers, task, config, work, dtype)

    # an engine with weights of its own answers one call at a time, and has threads itself
    apart = device == "cpu" and params.rollout.backend == "torch"
    with ThreadPoolExecutor(config.threads if apart else 1) as pool:
        report = dict(zip(ROLES, pool.map(train, ROLES), strict=True))
    check_agreement(report, config.min_agreement)
    for role, judge in judges.items():
        judge.save(out / role)
    write_json(out / "report.json", report)
    return report


def _appoint(
    policy: Policy, out: Path, problems: list[Problem], task: Task, params: Params
) -> dict[str, Any]:
    """The endpoint in both roles, after its agreement with the annotator was measured on the held-out prompts."""
    config = params.judge
    judge = load(JUDGES, "endpoint", "judge.backend")(config.endpoint)
    card = json.loads((paths.TASK_DATA / config.task / "task.json").read_text(encoding="utf-8"))
    heldout = problems[config.prompts :]
    engine = make_engine(params.rollout, policy, params.training.dtype)
    with precision(policy.device, params.training.dtype):
        texts = _answers(engine, "reward", heldout, card["max_new_tokens"], config)
    tastes, rng = _tastes(task, heldout, texts), stream("judge", "annotator", "reward")
    asked = [
        (problem.text, given[w], given[o])
        for problem, given, gold in zip(heldout, texts, tastes, strict=True)
        for w, o in compare(problem.text, given, gold, config.annotator_sharpness, rng).wins
    ]
    verdicts = judge.win_probability(*zip(*asked, strict=True)) if asked else []
    known = [value for value in verdicts if value is not None]
    if not known:
        raise AgreementError(
            f"the judge at {config.endpoint.base_url} gave no verdict: {judge.failures[:1]}"
        )
    facts = {
        "heldout_comparisons": len(asked),
        "unscored": 1 - len(known) / len(asked),
        "agreement": sum(known) / len(known),
    }
    report = dict.fromkeys(ROLES, facts)
    check_agreement(report, config.min_agreement)
    for role in ROLES:
        judge.save(out / role)
    write_json(out / "report.json", report)
    return report


def compare(
    prompt: str,
    answers: Sequence[str],
    tastes: Sequence[float],
    sharpness: float,
    rng: random.Random,
) -> Comparisons:
    """The annotator compares all answers with one another: P(a over b) = sigmoid(sharpness * (taste a - taste b)).

    Equal texts are not compared.
    """
    wins: list[tuple[int, int]] = []
    for a, b in combinations(range(len(answers)), 2):
        if answers[a] != answers[b]:
            chance = 0.5 * (1 + math.tanh(0.5 * sharpness * (tastes[a] - tastes[b])))  # no overflow
            wins.append((a, b) if rng.random() < chance else (b, a))
    return Comparisons(prompt, tuple(answers), tuple(wins))


def agreement(scores: Sequence[float], wins: Sequence[tuple[int, int]]) -> float:
    """Share of (preferred, other) pairs that the scores order the same way; a tie counts half.

    Raises:
        AgreementError: there are no pairs.

    >>> agreement([2.0, 1.0, 1.0], [(0, 1), (2, 0), (1, 2)])
    0.5
    """
    if not wins:
        raise AgreementError(
            "no two held-out answers differ, so a judge's agreement cannot be measured: the base writes one text "
            "whatever it is asked, or all its answers have the same taste; raise sft.steps, judge.heldout_prompts or "
            "judge.answers"
        )
    points = [0.5 if scores[w] == scores[o] else float(scores[w] > scores[o]) for w, o in wins]
    return sum(points) / len(points)


def check_agreement(report: dict[str, dict[str, float]], least: float) -> None:
    """Raise AgreementError where a judge's held-out agreement is below `least`."""
    weak = [
        f"{role} agrees on {facts['agreement']:.3f}"
        for role, facts in report.items()
        if facts["agreement"] < least
    ]
    if weak:
        raise AgreementError(
            f"the judge is too weak: {'; '.join(weak)} of held-out comparisons, judge.min_agreement is {least:.3f}. "
            "A bad judge ruins creative RL. In params.yaml raise judge.prompts, judge.answers or judge.epochs, or give "
            "the base a longer warm-up (sft.steps)"
        )


def _prompt_shares(problems: list[Problem], config: JudgeConfig) -> dict[str, list[Problem]]:
    """Disjoint training problems for each judge, held-out ones last."""
    each = config.prompts + config.heldout_prompts
    if len(problems) < each * len(ROLES):
        raise ParamsError(
            f"judge.prompts {config.prompts} + judge.heldout_prompts {config.heldout_prompts} for {len(ROLES)} judges "
            f"need {each * len(ROLES)} training problems, task {config.task!r} has {len(problems)}: lower them, or "
            f"raise tasks.{config.task}.train"
        )
    order = list(problems)
    stream("judge", "prompts").shuffle(order)
    return {role: order[i * each : (i + 1) * each] for i, role in enumerate(ROLES)}


def _train(
    judge: Judge,
    role: str,
    problems: list[Problem],
    answers: list[list[str]],
    task: Task,
    config: JudgeConfig,
    work: Work,
    dtype: str,
) -> dict[str, float]:
    """Train the judge in place; returns `_facts`."""
    tastes = _tastes(task, problems, answers)
    rng = stream("judge", "annotator", role)
    data = [
        compare(problem.text, texts, gold, config.annotator_sharpness, rng)
        for problem, texts, gold in zip(problems, answers, tastes, strict=True)
    ]
    fit(judge, data[: config.prompts], config, seed=ROLES.index(role), work=work, dtype=dtype)
    return _facts(judge, data, tastes, config)


def _answers(
    engine: Engine, role: str, problems: Sequence[Problem], room: int, config: JudgeConfig
) -> list[list[str]]:
    """`config.answers` texts per problem: samples of the base, some damaged, and some with flat vocabulary."""
    rng = stream("judge", "answers", role)
    slots = [problem for problem in problems for _ in range(config.answers)]
    texts = [""] * len(slots)
    kinds = rng.choices(
        ("flat", *TEMPERATURES), [config.flat, *[(1 - config.flat) / 3] * 3], k=len(slots)
    )
    for temperature in TEMPERATURES:
        rows = [i for i, kind in enumerate(kinds) if kind == temperature]
        sampled = engine.generate(
            [
                Request(
                    slots[i],
                    max_new_tokens=room,
                    temperature=temperature,
                    seed=seed_of("judge", "answers", role, i),
                )
                for i in rows
            ]
        )
        for i, text in zip(rows, sampled.texts, strict=True):
            texts[i] = text
    damaged = config.corrupted / (1 - config.flat) if config.flat < 1 else 0.0
    for i, kind in enumerate(kinds):
        if kind == "flat":
            texts[i] = flat(slots[i], rng)
        elif rng.random() < damaged:
            texts[i] = corrupt(texts[i], rng)
    return [texts[i : i + config.answers] for i in range(0, len(texts), config.answers)]


def _tastes(
    task: Task, problems: Sequence[Problem], answers: Sequence[Sequence[str]]
) -> list[list[float]]:
    return [
        [reward.value or 0.0 for reward in task.grade(texts, [problem] * len(texts))]
        for problem, texts in zip(problems, answers, strict=True)
    ]


def _facts(
    judge: Judge,
    data: Sequence[Comparisons],
    tastes: Sequence[Sequence[float]],
    config: JudgeConfig,
) -> dict[str, float]:
    """What is known about a judge, on its held-out prompts unless the name says otherwise."""
    heldout, gold = (
        data[config.prompts :],
        [taste for texts in tastes[config.prompts :] for taste in texts],
    )
    scores = judge.scores(
        [d.prompt for d in heldout for _ in d.answers],
        [text for d in heldout for text in d.answers],
    ).tolist()
    starts = [i * config.answers for i in range(len(heldout))]
    wins = [
        (start + w, start + o) for start, d in zip(starts, heldout, strict=True) for w, o in d.wins
    ]
    differ = [(w, o) if gold[w] > gold[o] else (o, w) for w, o in wins if gold[w] != gold[o]]
    return {
        "prompts": config.prompts,
        "comparisons": sum(len(d.wins) for d in data[: config.prompts]),
        "heldout_comparisons": len(wins),
        "agreement": agreement(scores, wins),
        "agreement_gold": agreement(scores, differ),
        "annotator_gold": agreement(gold, wins),
        "correlation_gold": _correlation(scores, gold),
    }


def _correlation(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Pearson's r; 0 where one side is constant.

    >>> round(_correlation([1, 2, 3], [2, 4, 6]), 6)
    1.0
    """
    import numpy

    if len(set(xs)) == 1 or len(set(ys)) == 1:
        return 0.0
    return float(numpy.corrcoef(xs, ys)[0, 1])
