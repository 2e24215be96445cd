"""Scores a checkpoint on every built task, dev and test: one long table, a row per problem and metric.

Per problem (`k` is `evaluation.samples`):

| metric | value |
|---|---|
| score | mean over the k samples at temperature 1: verifier value, or win rate against the reference by the evaluation judge |
| greedy | the same scorer on the most likely answer |
| pass_at_k | chance that one of k samples succeeds; success is a full verifier value, or a win rate above one half |
| entropy_own | nats per token on the k samples |
| entropy_fixed | nats per token on the problem's reference text, the same text for every checkpoint |
| length | mean tokens of the k samples |
| unscored | share of the k samples that could not be graded; they are left out of all means (nan if none is left) |
| reward_judge, gold | judged tasks: win rate by the judge that gives the rewards in RL (`score` again where that is the evaluation judge), and the hidden taste that both imitate |
| distinct_2, compression_ratio, vendi | judged tasks: variety among the k samples |

Judged tasks have the last three also with problem `*`: variety across problems, first sample of each.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from trainorder import paths
from trainorder.config import EvaluationConfig
from trainorder.policy import Policy
from trainorder.reading import ParamsError
from trainorder.resume import NOTHING, Saved, Work
from trainorder.rewards import grading
from trainorder.streams import seed_of
from trainorder.tasks import load_problems, load_task
from trainorder.tasks.base import Problem, Split, Task
from trainorder.workers import workers_for

if TYPE_CHECKING:
    import pandas as pd

    from trainorder.rollout import Completions, Engine

T = TypeVar("T")

POOLED = "*"
"""The `problem` of a value that belongs to a whole split."""

SPLITS: tuple[Split, ...] = ("dev", "test")

_TENSORS = ("response_ids", "loss_mask", "logps", "entropies", "finished")
"""The tensors of Completions."""

BATCH_TOKENS = 4096
BATCH_LOGITS = 2**23
"""Bounds of a teacher-forced batch: padded tokens, and tokens times vocabulary (32 MiB of float32)."""

Scorer = Callable[[Sequence[str], Sequence[Problem]], Sequence[float | None]]
"""Answers and the problems they answer -> values in [0, 1], None where there is none."""


class Judge(Protocol):
    """Compares answers; see rewards/judge.py."""

    def win_probability(
        self, prompts: Sequence[str], answers: Sequence[str], references: Sequence[str]
    ) -> Sequence[float | None]:
        """P(answer beats reference), per row."""
        ...


@dataclass(frozen=True)
class Exam:
    """One task's problems of one split."""

    name: str
    split: Split
    task: Task
    problems: Sequence[Problem]
    max_new_tokens: int


@dataclass(frozen=True)
class Answers:
    """What a policy answered in an exam, and how sure it was."""

    sampled: Completions
    """k rows per problem."""
    greedy: Sequence[str]
    entropy_fixed: Sequence[float]


def evaluate(
    node: str, checkpoint: Path, seed: int, config: EvaluationConfig, work: Work = NOTHING
) -> pd.DataFrame:
    """The long table of a checkpoint: columns node, seed, split, task, problem, metric, value.

    Every checkpoint is sampled with the same random numbers, keyed by (evaluation.seed, task, split, problem).

    Raises:
        ParamsError: no task is built, data/tasks was built by other code, or the checkpoint is missing.
    """
    exams = built_exams()
    policy = Policy.load(checkpoint)
    judged = any(exam.task.rewarded_by == "judge" for exam in exams)
    judges = _load_judges() if judged else {}
    return tabulate(node, seed, examine(policy, exams, judges, config, work))


DEV_SAMPLES = 2
"""Answers per dev problem where a scale is chosen: paired over scales, so few suffice."""


def dev_scorer(tasks: Sequence[str]) -> Callable[[Path], float]:
    """Checkpoint folder -> mean `score` over these tasks' dev problems: what choices are made by."""
    exams = [_load_exam(name, "dev") for name in tasks]
    judges = _load_judges() if any(e.task.rewarded_by == "judge" for e in exams) else {}
    config = EvaluationConfig(samples=DEV_SAMPLES)

    def score(checkpoint: Path) -> float:
        from trainorder.rollout.torch_engine import TorchEngine

        policy = Policy.load(checkpoint)
        engine = TorchEngine(policy)
        means = [
            _mean(
                main_scorer(exam, judges)(
                    sample(engine, exam, config).texts,
                    [problem for problem in exam.problems for _ in range(config.samples)],
                )
            )
            for exam in exams
        ]
        return math.fsum(means) / len(means)

    return score


def built_exams() -> list[Exam]:
    """Every task under data/tasks, in order of name, dev then test."""
    names = sorted(card.parent.name for card in paths.TASK_DATA.glob("*/task.json"))
    if not names:
        raise ParamsError(f"{paths.TASK_DATA} holds no task: run `dvc repro build_data`")
    return [_load_exam(name, split) for name in names for split in SPLITS]


Values = tuple[Exam, Mapping[str, Sequence[float]], Mapping[str, float]]
"""An exam with its metrics per problem, and those over all of it."""


def examine(
    policy: Policy,
    exams: Sequence[Exam],
    judges: Mapping[str, Judge],
    config: EvaluationConfig,
    work: Work = NOTHING,
) -> Iterator[Values]:
    """All metrics of each exam. `judges` has `reward` and `evaluation` where a task is judged."""
    for exam, answers in zip(exams, answer(policy, exams, config, work), strict=True):

        def score(exam: Exam = exam, answers: Answers = answers) -> Saved:
            single = per_problem(exam, answers, judges, config.samples)
            return Saved({}, {"single": single, "all": pooled(exam, answers, config.samples)})

        found = work.part(f"scores-{exam.name}-{exam.split}", score).state
        yield exam, found["single"], found["all"]


def tabulate(node: str, seed: int, results: Iterator[Values]) -> pd.DataFrame:
    """The long table of evaluated exams."""
    import pandas as pd

    rows = []
    for exam, metrics, over_all in results:
        for metric, values in metrics.items():
            rows += [
                (exam.split, exam.name, p.id, metric, v)
                for p, v in zip(exam.problems, values, strict=True)
            ]
        rows += [
            (exam.split, exam.name, POOLED, metric, value) for metric, value in over_all.items()
        ]
    table = pd.DataFrame(rows, columns=["split", "task", "problem", "metric", "value"])
    table.insert(0, "node", node)
    table.insert(1, "seed", seed)
    return table.astype({"value": "float64", "seed": "int64"})


def answer(
    policy: Policy, exams: Sequence[Exam], config: EvaluationConfig, work: Work = NOTHING
) -> list[Answers]:
    """Sampled and greedy answers to every exam, and the entropy on its references."""
    from trainorder.rollout import Request
    from trainorder.rollout.torch_engine import TorchEngine

    engine = TorchEngine(policy, workers_for(policy.model, config.threads))

    def sampling(exam: Exam) -> Saved:
        return _packed(sample(engine, exam, config))

    sampled = [
        _unpacked(work.part(f"sampled-{exam.name}-{exam.split}", partial(sampling, exam)))
        for exam in exams
    ]

    def most_likely() -> Saved:
        done = engine.generate(
            [
                Request(problem, max_new_tokens=exam.max_new_tokens, temperature=0.0)
                for exam in exams
                for problem in exam.problems
            ]
        )
        return Saved({}, {"texts": list(done.texts)})

    def forced() -> Saved:
        texts = [problem.reference for exam in exams for problem in exam.problems]
        references = [policy.encode_completion(text) for text in texts]
        prompts = [policy.encode_prompt(p.prompt) for exam in exams for p in exam.problems]
        return Saved({}, {"entropies": forced_entropies(policy, prompts, references)})

    greedy = work.part("greedy", most_likely).state["texts"]
    fixed = work.part("fixed", forced).state["entropies"]
    cuts = itertools.accumulate([0, *(len(exam.problems) for exam in exams)])
    spans = [slice(*cut) for cut in itertools.pairwise(cuts)]
    return [Answers(s, greedy[span], fixed[span]) for s, span in zip(sampled, spans, strict=True)]


def sample(engine: Engine, exam: Exam, config: EvaluationConfig) -> Completions:
    """`config.samples` answers per problem at temperature 1, drawn with the problem's own random numbers."""
    from trainorder.rollout import Request

    return engine.generate(
        [
            Request(
                problem,
                samples=config.samples,
                max_new_tokens=exam.max_new_tokens,
                seed=seed_of("evaluate", config.seed, exam.name, exam.split, problem.id),
            )
            for problem in exam.problems
        ]
    )


def main_scorer(exam: Exam, judges: Mapping[str, Judge]) -> Scorer:
    """Who decides the `score`: the task's verifier, or the judge that was used in no training."""
    judged = exam.task.rewarded_by == "judge"
    return _by_judge(judges["evaluation"]) if judged else _by_task(exam.task)


def _packed(done: Completions) -> Saved:
    tensors = {name: getattr(done, name) for name in _TENSORS}
    return Saved(tensors, {"texts": list(done.texts)})


def _unpacked(saved: Saved) -> Completions:
    from trainorder.rollout import Completions

    return Completions(**saved.tensors, texts=saved.state["texts"])


def forced_entropies(
    policy: Policy, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
) -> list[float]:
    """Mean entropy (nats) of the next-token distribution at temperature 1 along each given completion."""
    import torch

    rows = [
        [*prompt, *completion[:-1]] for prompt, completion in zip(prompts, completions, strict=True)
    ]
    means = [0.0] * len(rows)
    with torch.inference_mode():
        for batch in _batches([len(row) for row in rows], policy.model.config.vocab_size):
            width = len(rows[batch[-1]])
            ids = [rows[i] + [policy.pad_id] * (width - len(rows[i])) for i in batch]
            logits = policy.model(
                input_ids=torch.tensor(ids, device=policy.device), use_cache=False
            ).logits
            spans = [(i, slice(len(prompts[i]) - 1, len(rows[i]))) for i in batch]
            states = torch.cat([logits[row, span] for row, (_, span) in enumerate(spans)]).float()
            log_probs = states.log_softmax(-1)
            entropies = -torch.linalg.vecdot(log_probs.exp(), log_probs).double()
            for (i, _), own in zip(
                spans, entropies.split([len(completions[i]) for i in batch]), strict=True
            ):
                means[i] = own.mean().item()
    return means


def per_problem(
    exam: Exam, answers: Answers, judges: Mapping[str, Judge], samples: int
) -> dict[str, list[float]]:
    """Metric -> one value per problem."""
    sampled, problems = answers.sampled, exam.problems
    asked = [problem for problem in problems for _ in range(samples)]
    judged = exam.task.rewarded_by == "judge"
    main = main_scorer(exam, judges)
    grades = _grouped(main(sampled.texts, asked), samples)
    lengths = sampled.loss_mask.double().sum(1).view(-1, samples)
    assert sampled.entropies is not None  # the torch engine sees them
    entropies = sampled.entropies.double().sum(1).view(-1, samples)
    metrics = {
        "score": [_mean(values) for values in grades],
        "greedy": [_mean([value]) for value in main(answers.greedy, problems)],
        "pass_at_k": [
            _pass_at(values, samples, above=0.5 if judged else None) for values in grades
        ],
        "entropy_own": (entropies.sum(1) / lengths.sum(1)).tolist(),
        "entropy_fixed": list(answers.entropy_fixed),
        "length": lengths.mean(1).tolist(),
        "unscored": [values.count(None) / samples for values in grades],
    }
    if judged:
        same = judges["reward"] is judges["evaluation"]
        reward = (
            grades if same else _grouped(_by_judge(judges["reward"])(sampled.texts, asked), samples)
        )
        gold = _grouped(_by_task(exam.task)(sampled.texts, asked), samples)
        metrics |= {"reward_judge": [*map(_mean, reward)], "gold": [*map(_mean, gold)]}
        variety = [_variety(texts) for texts in _grouped(sampled.texts, samples)]
        metrics |= {name: [values[name] for values in variety] for name in variety[0]}
    return metrics


def pooled(exam: Exam, answers: Answers, samples: int) -> dict[str, float]:
    """Metric -> value over the whole exam."""
    return _variety(answers.sampled.texts[::samples]) if exam.task.rewarded_by == "judge" else {}


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Unbiased chance that one of k samples is correct: 1 - C(n - c, k) / C(n, k) (Chen et al., arXiv 2107.03374).

    >>> pass_at_k(4, 1, 1), pass_at_k(4, 1, 2), pass_at_k(4, 1, 4)
    (0.25, 0.5, 1.0)
    """
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def _load_exam(name: str, split: Split) -> Exam:
    card = json.loads((paths.TASK_DATA / name / "task.json").read_text(encoding="utf-8"))
    return Exam(
        name, split, load_task(name), load_problems(name, split), int(card["max_new_tokens"])
    )


def _load_judges() -> dict[str, Judge]:
    """By role; one object where one endpoint has both, so that it is asked once and the two win rates are equal."""
    from trainorder.rewards import ENDPOINT_FILE, load_judge

    folders = [paths.JUDGE / role for role in ("reward", "evaluation")]
    files = [folder / ENDPOINT_FILE for folder in folders]
    evaluation = load_judge(folders[1])
    same = all(file.is_file() for file in files) and files[0].read_bytes() == files[1].read_bytes()
    return {"reward": evaluation if same else load_judge(folders[0]), "evaluation": evaluation}


def _by_task(task: Task) -> Scorer:
    return lambda answers, problems: [
        reward.value for reward in grading.grade(task, answers, problems)
    ]


def _by_judge(judge: Judge) -> Scorer:
    def score(answers: Sequence[str], problems: Sequence[Problem]) -> Sequence[float | None]:
        prompts, references = [p.prompt for p in problems], [p.reference for p in problems]
        values = judge.win_probability(prompts, answers, references)
        if problems:
            grading.shared().unscored.note(problems[0].task, values, getattr(judge, "failures", ()))
        return values

    return score


def _grouped(values: Sequence[T], size: int) -> list[list[T]]:
    return [list(values[i : i + size]) for i in range(0, len(values), size)]


def _mean(values: Sequence[float | None]) -> float:
    """Mean of the values that exist; nan for none."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else math.nan


def _pass_at(values: Sequence[float | None], k: int, above: float | None) -> float:
    """pass@k over the graded values; success is a value of 1, or one `above` a bound."""
    known = [value for value in values if value is not None]
    if not known:
        return math.nan
    correct = sum(value >= 1.0 if above is None else value > above for value in known)
    return pass_at_k(len(known), correct, min(k, len(known)))


def _variety(texts: Sequence[str]) -> dict[str, float]:
    from trainorder.metrics.diversity import compression_ratio, distinct_n, vendi

    return {
        "distinct_2": distinct_n(texts, 2),
        "compression_ratio": compression_ratio(texts),
        "vendi": vendi(texts),
    }


def _batches(lengths: Sequence[int], vocabulary: int) -> Iterator[list[int]]:
    """Row numbers by length, cut by the padded size."""
    budget = min(BATCH_TOKENS, BATCH_LOGITS // vocabulary)
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batch and (len(batch) + 1) * lengths[i] > budget:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
