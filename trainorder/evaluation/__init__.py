"""Scores a checkpoint on every built task, dev and test: one long table, a row per problem and metric.

Per problem (`k` is `evaluation.samples`):

| metric | value |
|---|---|
| score | mean over the k samples (at `evaluation.temperature`): verifier value, or win rate against the reference by the evaluation judge |
| greedy | the same scorer on the most likely answer |
| pass_at_k | chance that one of k samples succeeds; success is a full verifier value, or a win rate above one half |
| entropy_own | nats per token on the k samples, of the distributions that they were drawn from |
| entropy_fixed | nats per token on the problem's reference text, the same text for every checkpoint |
| length | mean tokens of the k samples |
| strict | of own rows: the score of answers in the form that the prompt asks for; 0 for the others |
| unscored | share of the k samples that could not be graded; they are left out of all means (nan if none is left) |
| reward_judge, gold | judged tasks: win rate by the judge that gives the rewards in RL (`score` again where that is the evaluation judge), and the hidden taste that both imitate |
| distinct_2, compression_ratio, vendi | judged tasks: variety among the k samples |
| those of `evaluation.ways` | see each in trainorder/evaluation/ways/; nan where a way has no value for a problem |

Judged tasks have the last three also with problem `*`: variety across problems, first sample of each. Tasks of lm-eval
(`evaluation.harness`) have the split `harness` and metrics of their own (harness.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd

from trainorder import paths
from trainorder.config import EvaluationConfig, Piece, Role, RolloutConfig, TrainingConfig
from trainorder.device import device_of, precision
from trainorder.evaluation import harness
from trainorder.evaluation.answering import SAMPLING, Answers, Exam, answer, engine_for, sample
from trainorder.evaluation.scoring import grouped, main_scorer, mean, per_problem, pooled
from trainorder.evaluation.sitting import WAYS, Sitting, Who, named
from trainorder.judges import CARD, AnyJudge, load_judge
from trainorder.judges.opponents import FILE as OPPONENTS
from trainorder.policy import Policy
from trainorder.reading import ParamsError
from trainorder.registries import asks_base
from trainorder.resume import NOTHING, Saved, Work
from trainorder.rollout import Completions, Engine, Request, make_engine
from trainorder.tasks import built_tasks, judged, load_problems, load_task
from trainorder.tasks.base import Split
from trainorder.tasks.harness import label

PLAIN = TrainingConfig()

Roles = Mapping[str, Mapping[Role, str]]
"""Judged task -> role -> name of the judge that has it."""
NO_ROLES: Roles = {}
Judges = Mapping[str, Mapping[Role, AnyJudge]]
"""The same with the judges themselves."""

POOLED = "*"
"""The `problem` of a value that belongs to a whole split."""

SPLITS: tuple[Split, ...] = ("dev", "test")

DEV_SAMPLES = 2
"""Answers per dev problem where a scale is chosen: paired over scales, so few suffice."""


@dataclass(frozen=True)
class Examined:
    """An exam as a checkpoint did it."""

    exam: Exam
    single: Mapping[str, Sequence[float]]
    """Metric -> value per problem."""
    over_all: Mapping[str, float]
    """Metric -> value of the whole exam."""
    greedy: Sequence[str]
    """Most likely answer to each problem."""
    sampled: Sequence[Sequence[str]]
    """The k samples of each problem."""
    grades: Sequence[Sequence[float | None]]
    """Their scores; None where a sample could not be graded."""


def evaluate(
    node: str,
    checkpoint: Path,
    seed: int,
    config: EvaluationConfig,
    work: Work = NOTHING,
    training: TrainingConfig = PLAIN,
    rollout: RolloutConfig = SAMPLING,
    roles: Roles = NO_ROLES,
    base: Path | None = None,
) -> pd.DataFrame:
    """The long table of a checkpoint: columns node, seed, split, task, problem, metric, value.

    `base` is the checkpoint that RL began at, where a way asks it.

    Every checkpoint is sampled with the same random numbers, keyed by (evaluation.seed, task, split, problem). Where
    another engine than torch samples, `attrs` (kept in the parquet file) has its settings as `rollout`: its answers may
    differ by rounding. `attrs["answers"]` are the greedy and the sampled answers to the first `config.answers` test problems of each task.

    Raises:
        ParamsError: no task is built, data/tasks was built by other code, the checkpoint is missing, or no `base` is given where
            a way asks it.
    """
    if base is None and asks_base(config.pieces()):
        raise ParamsError(
            "evaluation.ways: one of them asks the base, and the stage names none: take stages/evaluate.py of this version "
            "(`trainorder init --diff` shows it)"
        )
    exams = built_exams()
    device = device_of(training.device)
    policy = Policy.load(checkpoint).to(device)
    judges = _load_judges(_judged(exams), roles, device)
    other = None if base is None or base == checkpoint else Policy.load(base).to(device)
    found = list(examine(policy, exams, judges, config, work, training.dtype, rollout, other))
    for line in _calls(judges):
        print(line)
    guards = list(_guards(policy, config, work, training.dtype))
    table = tabulate(node, seed, found, guards)
    if guards:
        table.attrs["harness"] = harness.made_by()
    table.attrs["answers"] = [row for one in found for row in answers_kept(one, config.answers)]
    if rollout.backend != "torch":
        table.attrs["rollout"] = rollout.results()
    return table


def dev_scorer(
    tasks: Sequence[str],
    training: TrainingConfig = PLAIN,
    rollout: RolloutConfig = SAMPLING,
    roles: Roles = NO_ROLES,
) -> Callable[[Path], float]:
    """Checkpoint folder -> mean `score` over these tasks' dev problems: what choices are made by."""
    exams = [_load_exam(name, "dev") for name in tasks]
    device = device_of(training.device)
    judges = _load_judges(_judged(exams), roles, device)
    config = EvaluationConfig(samples=DEV_SAMPLES)
    started: list[Engine] = []

    def engine_of(policy: Policy) -> Engine:
        """The one engine with weights of its own, which takes each checkpoint's; or one that shares this policy's."""
        if rollout.backend == "torch":
            return engine_for(policy, exams)
        if started:
            started[0].push(policy.model.state_dict().items())
        else:
            started.append(make_engine(rollout, policy, training.dtype))
        return started[0]

    def score(checkpoint: Path) -> float:
        policy = Policy.load(checkpoint).to(device)
        engine = engine_of(policy)
        with precision(device, training.dtype):
            texts = [sample(engine, exam, config).texts for exam in exams]
        means = [
            mean(
                main_scorer(exam, judges.get(exam.name, {}))(
                    own, [problem for problem in exam.problems for _ in range(config.samples)]
                )
            )
            for exam, own in zip(exams, texts, strict=True)
        ]
        return math.fsum(means) / len(means)

    return score


def built_exams() -> list[Exam]:
    """Every task under data/tasks, in order of name, dev then test."""
    names = built_tasks()
    if not names:
        raise ParamsError(f"{paths.TASK_DATA} holds no task: run `dvc repro build_data`")
    return [_load_exam(name, split) for name in names for split in SPLITS]


def judged_tasks() -> list[str]:
    """The built tasks whose answers judges score."""
    return judged(built_tasks())


def examine(
    policy: Policy,
    exams: Sequence[Exam],
    judges: Judges,
    config: EvaluationConfig,
    work: Work = NOTHING,
    dtype: str = "fp32",
    rollout: RolloutConfig = SAMPLING,
    base: Policy | None = None,
) -> Iterator[Examined]:
    """All metrics of each exam. `judges` has `reward` and `evaluation` of every judged task.

    `base` is the policy that RL began at, where a way asks it and it is not `policy` itself.
    """
    engine = cache(partial(engine_for, policy, exams, config, rollout, dtype))
    found = answer(policy, exams, config, work, dtype, rollout, engine)
    say = _asking(engine, policy, base, exams, config, rollout, dtype)
    for exam, answers in zip(exams, found, strict=True):

        def score(exam: Exam = exam, answers: Answers = answers) -> Saved:
            single, grades = per_problem(exam, answers, judges.get(exam.name, {}), config.samples)
            over_all = pooled(exam, answers, config.samples)
            return Saved({}, {"single": single, "all": over_all, "grades": grades})

        scores = work.part(f"scores-{exam.name}-{exam.split}", score).state
        single = dict(scores["single"])
        sampled = grouped(answers.sampled.texts, config.samples)
        sitting = Sitting(
            exam,
            config,
            sampled,
            scores["grades"],
            answers.greedy,
            single["greedy"],
            score=main_scorer(exam, judges.get(exam.name, {})),
            ask=say,
            tokens=policy.encode_completions,
            is_base=base is None,
        )
        for number, piece in enumerate(config.ways):

            def use(piece: Piece = piece, sitting: Sitting = sitting) -> Saved:
                return Saved({}, {"values": used(piece, sitting)})

            single |= work.part(f"way-{number}-{exam.name}-{exam.split}", use).state["values"]
        yield Examined(exam, single, scores["all"], answers.greedy, sampled, scores["grades"])


def used(piece: Piece, sitting: Sitting) -> dict[str, list[float]]:
    """What a way of `evaluation.ways` finds; nothing where it does not apply to the exam."""
    import_module(f"{__name__}.ways")  # fills the registry
    name, options = named(piece)
    found = {metric: list(values) for metric, values in WAYS[name](sitting, **options).items()}
    assert all(len(values) == len(sitting.problems) for values in found.values()), name
    return found


def _asking(
    engine: Callable[[], Engine],
    policy: Policy,
    base: Policy | None,
    exams: Sequence[Exam],
    config: EvaluationConfig,
    rollout: RolloutConfig,
    dtype: str,
) -> Callable[[Sequence[Request], Who], Completions]:
    """What asks the checkpoint or the base: an engine each where they share the policy's weights, else one that takes both's."""
    own = cache(lambda: engine_for(base or policy, exams, config, rollout, dtype))

    def ask(requests: Sequence[Request], who: Who) -> Completions:
        with precision(policy.device, dtype):
            if who == "trained" or base is None:
                return engine().generate(requests)
            if rollout.backend == "torch":
                return own().generate(requests)
            engine().push(base.model.state_dict().items())
            done = engine().generate(requests)
            engine().push(policy.model.state_dict().items())
            return done

    return ask


def answers_kept(one: Examined, count: int) -> list[dict[str, Any]]:
    """The answers to an exam's first `count` test problems: the greedy one with its score, the samples with theirs; none of dev."""
    if one.exam.split != "test":
        return []
    kept = zip(
        one.exam.problems[:count],
        one.greedy,
        one.single["greedy"],
        one.sampled,
        one.grades,
        strict=False,
    )
    return [
        {
            "task": one.exam.name,
            "problem": problem.id,
            "prompt": problem.prompt,
            "answer": text,
            "score": None if math.isnan(score) else score,
            "sampled": list(samples),
            "scores": list(scores),
        }
        for problem, text, score, samples, scores in kept
    ]


def _guards(
    policy: Policy, config: EvaluationConfig, work: Work, dtype: str
) -> Iterator[tuple[str, list[harness.Row]]]:
    """Name and rows of each task of `evaluation.harness`."""
    for i, entry in enumerate(config.harness):

        def score(entry: str = entry) -> Saved:
            return Saved({}, {"rows": harness.examine(policy, entry, config, dtype)})

        yield label(entry), work.part(f"harness-{i}", score).state["rows"]


def tabulate(
    node: str,
    seed: int,
    results: Iterable[Examined],
    guards: Iterable[tuple[str, list[harness.Row]]] = (),
) -> pd.DataFrame:
    """The long table of evaluated exams and of tasks of lm-eval."""
    rows = []
    for one in results:
        exam = one.exam
        for metric, values in one.single.items():
            rows += [
                (exam.split, exam.name, p.id, metric, v)
                for p, v in zip(exam.problems, values, strict=True)
            ]
        rows += [
            (exam.split, exam.name, POOLED, metric, value) for metric, value in one.over_all.items()
        ]
    rows += [(harness.SPLIT, name, *row) for name, own in guards for row in own]
    table = pd.DataFrame(rows, columns=["split", "task", "problem", "metric", "value"])
    table.insert(0, "node", node)
    table.insert(1, "seed", seed)
    return table.astype({"value": "float64", "seed": "int64"})


def _load_exam(name: str, split: Split) -> Exam:
    card = json.loads((paths.TASK_DATA / name / "task.json").read_text(encoding="utf-8"))
    return Exam(
        name, split, load_task(name), load_problems(name, split), int(card["max_new_tokens"])
    )


def _calls(judges: Judges) -> Iterator[str]:
    """What judges that are asked cost."""
    each = {id(judge): judge for found in judges.values() for judge in found.values()}
    for judge in each.values():
        counts = getattr(judge, "counts", {})
        if counts:
            yield f"judge: asked {counts['asked']} times, {counts['kept']} verdicts were known"


def _judged(exams: Sequence[Exam]) -> list[str]:
    return [*dict.fromkeys(exam.name for exam in exams if exam.task.rewarded_by == "judge")]


def _load_judges(tasks: Sequence[str], roles: Roles, device: str) -> Judges:
    """The judges of judged tasks, each once.

    One object where two have equal cards and opponents, so that it is asked once and the two win rates are equal.
    """
    loaded: dict[tuple[bytes, ...] | str, AnyJudge] = {}

    def judge(name: str) -> AnyJudge:
        folder = paths.JUDGE / name
        files = [folder / CARD, folder / OPPONENTS]
        is_card = files[0].is_file()
        key = tuple(f.read_bytes() for f in files if f.is_file()) if is_card else name
        if key not in loaded:
            loaded[key] = load_judge(folder, device)
        return loaded[key]

    return {task: {role: judge(name) for role, name in roles[task].items()} for task in tasks}
