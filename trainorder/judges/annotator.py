"""The simulated annotator of tasks that have a taste, and the answers of the base that it compares.

The annotator sees the hidden gold taste through noise, a judge sees the annotator's choices only. Every preference model is
trained on answers to prompts of its own and from a first head of its own, so that one of them can watch another.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

from trainorder import paths
from trainorder.adapters import model_hash
from trainorder.config import AnyJudgeConfig, Params
from trainorder.device import device_of, precision
from trainorder.files import write_json
from trainorder.judges import Comparisons
from trainorder.judges.opponents import FILE, read_opponents, write_opponents
from trainorder.policy import Policy
from trainorder.process import StageError
from trainorder.registries import JUDGE_MAKERS, load
from trainorder.resume import NOTHING, Work
from trainorder.rollout import Engine, Request, make_engine
from trainorder.streams import seed_of, stream
from trainorder.tasks import load_problems, load_task
from trainorder.tasks.base import SPLITS, Problem, Task


class AgreementError(StageError):
    """A judge agrees too little with the annotator to be trusted with rewards."""


@dataclass(frozen=True)
class Bench:
    """What a judge is made from."""

    name: str
    config: AnyJudgeConfig
    tasks: Sequence[str]
    """The judged tasks that it serves."""
    base: Path
    """Whose answers the annotator compares."""
    params: Params
    seed: int = 0
    """Its number among the preference models of its task."""
    first: int = 0
    """Its first prompt in the shuffled training problems: the models before it have those before."""
    work: Work = NOTHING

    @cached_property
    def task(self) -> Task:
        """The task whose answers are compared."""
        return load_task(self.compared)

    @property
    def compared(self) -> str:
        """Name of the task whose answers are compared."""
        return self.config.task or self.tasks[0]

    @property
    def has_taste(self) -> bool:
        """Whether the simulated annotator can compare answers to the task."""
        return getattr(self.task, "has_taste", False)

    def problems(self) -> list[Problem]:
        """The training problems, shuffled: the same for every judge."""
        order = load_problems(self.compared, "train")
        stream("judge", "prompts").shuffle(order)
        return order

    def answers(self, problems: Sequence[Problem]) -> list[list[str]]:
        """The base's answers to be compared."""
        room, config = self.params.tasks[self.compared].max_new_tokens, self.config
        with self._sampling() as engine:
            return _answers(engine, self.name, problems, room, config, self.task)

    def opponents(self) -> dict[str, str]:
        """Prompt -> the base's most likely answer, for every problem of its tasks without a reference.

        Kept beside the verdicts under what decides them, so that judges of the same problems share them.
        """
        if getattr(self.config, "rubric", None) is not None:
            return {}
        missing = [
            (problem, self.params.tasks[task].max_new_tokens)
            for task in self.tasks
            for split in SPLITS
            for problem in load_problems(task, split)
            if not problem.reference
        ]
        if not missing:
            return {}
        rows = [[problem.prompt, room] for problem, room in missing]
        settings = [self.params.rollout.results(), self.params.training.dtype]
        decides = json.dumps([model_hash(self.base), settings, rows])
        kept = paths.VERDICTS / f"opponents-{hashlib.sha256(decides.encode()).hexdigest()[:16]}"
        if not (kept / FILE).is_file():
            with self._sampling() as engine:
                asked = [Request(p, max_new_tokens=room, temperature=0.0) for p, room in missing]
                texts = engine.generate(asked).texts
            answers = {p.text: text for (p, _), text in zip(missing, texts, strict=True)}
            write_opponents(kept, answers)
        return read_opponents(kept)

    @contextmanager
    def _sampling(self) -> Iterator[Engine]:
        training = self.params.training
        policy = Policy.load(self.base).to(device_of(training.device))
        with precision(policy.device, training.dtype):
            yield make_engine(self.params.rollout, policy, training.dtype)

    def compare(
        self, problems: Sequence[Problem], answers: Sequence[Sequence[str]]
    ) -> tuple[list[Comparisons], list[list[float]]]:
        """The annotator's choices, and the tastes that they follow from."""
        tastes = [
            [reward.value or 0.0 for reward in self.task.grade(texts, [problem] * len(texts))]
            for problem, texts in zip(problems, answers, strict=True)
        ]
        rng, sharpness = stream("judge", "annotator", self.name), self.config.annotator_sharpness
        data = [
            compare(problem.text, texts, gold, sharpness, rng)
            for problem, texts, gold in zip(problems, answers, tastes, strict=True)
        ]
        return data, tastes


Maker = Callable[[Bench, Path], dict[str, Any]]


def make_judge(bench: Bench, out: Path) -> dict[str, Any]:
    """Make the judge in the folder `out`; what is known about it goes into `out`.json.

    Raises:
        AgreementError: held-out agreement below `min_agreement`; nothing is saved.
        ParamsError: too few training problems, or a task that has no gold taste.
    """
    make: Maker = load(JUDGE_MAKERS, bench.config.kind, f"judges.{bench.name}.kind")
    opponents = bench.opponents()
    report = make(bench, out)
    if opponents:
        write_opponents(out, opponents)
        report = {**report, "opponents": len(opponents)}
    write_json(out.with_suffix(".json"), report)
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
            "whatever it is asked, or all its answers have the same taste; raise sft.steps, or heldout_prompts or answers "
            "of the judge"
        )
    points = [0.5 if scores[w] == scores[o] else float(scores[w] > scores[o]) for w, o in wins]
    return sum(points) / len(points)


def check_agreement(name: str, found: float, least: float) -> None:
    """Raise AgreementError where a judge's held-out agreement is below `least`."""
    if found < least:
        raise AgreementError(
            f"the judge {name} is too weak: it agrees on {found:.3f} of held-out comparisons, its min_agreement is {least:.3f}. "
            "A bad judge ruins creative RL. In params.yaml raise its prompts, answers or epochs, take another one, or give "
            "the base a longer warm-up (sft.steps)"
        )


def _answers(
    engine: Engine,
    name: str,
    problems: Sequence[Problem],
    room: int,
    config: AnyJudgeConfig,
    task: Any,
) -> list[list[str]]:
    """`config.answers` texts per problem: samples of the base, some damaged, and some with flat vocabulary if the task has such."""
    share = config.flat if hasattr(task, "flat") else 0.0
    rng = stream("judge", "answers", name)
    slots = [problem for problem in problems for _ in range(config.answers)]
    texts = [""] * len(slots)
    temperatures = config.temperatures
    weights = [share, *[(1 - share) / len(temperatures)] * len(temperatures)]
    kinds = rng.choices(("flat", *temperatures), weights, k=len(slots))
    for temperature in dict.fromkeys(temperatures):
        rows = [i for i, kind in enumerate(kinds) if kind == temperature]
        sampled = engine.generate(
            [
                Request(
                    slots[i],
                    max_new_tokens=room,
                    temperature=temperature,
                    seed=seed_of("judge", "answers", name, i),
                )
                for i in rows
            ]
        )
        for i, text in zip(rows, sampled.texts, strict=True):
            texts[i] = text
    damaged = config.corrupted / (1 - share) if share < 1 else 0.0
    for i, kind in enumerate(kinds):
        if kind == "flat":
            texts[i] = task.flat(slots[i], rng)
        elif rng.random() < damaged:
            texts[i] = task.corrupt(texts[i], rng)
    return [texts[i : i + config.answers] for i in range(0, len(texts), config.answers)]
