"""What a policy answers in an exam, and how sure it is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from torch import Tensor

from trainorder.config import EvaluationConfig, RolloutConfig
from trainorder.device import precision
from trainorder.llama import kernels_for
from trainorder.policy import Policy
from trainorder.resume import NOTHING, Saved, Work
from trainorder.rollout import Completions, Engine, Request, make_engine
from trainorder.rollout.torch_engine import max_rows_on
from trainorder.streams import seed_of
from trainorder.tasks.base import Problem, Split, Task
from trainorder.texts import log_probs
from trainorder.workers import ALONE, workers_for

SAMPLING = RolloutConfig()

_TENSORS = ("response_ids", "loss_mask", "logps", "entropies", "finished")
"""The tensors of Completions."""

BATCH_TOKENS, BATCH_LOGITS = 4096, 2**26
"""Bounds of a teacher-forced batch: padded tokens, and logits (256 MiB of float32)."""

CACHE_BYTES = (8 << 30, 64 << 20)
"""On a GPU and on a CPU: bytes of keys and values that more rows side by side than `max_rows_on` may take."""


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
    """nan for a problem without a reference."""


def answer(
    policy: Policy,
    exams: Sequence[Exam],
    config: EvaluationConfig,
    work: Work = NOTHING,
    dtype: str = "fp32",
    rollout: RolloutConfig = SAMPLING,
    engine: Callable[[], Engine] | None = None,
) -> list[Answers]:
    """Sampled and greedy answers to every exam, and the entropy on its references.

    Entropies that the engine does not see are computed by the policy. `engine` gives the one that samples, if there is one already.
    """
    # started by the first part that was not done before: an engine with weights of its own takes its time
    engine = engine or cache(partial(engine_for, policy, exams, config, rollout, dtype))

    def sampling(exam: Exam) -> Saved:
        done = sample(engine(), exam, config)
        return _packed(_with_entropies(policy, exam, done, config.temperature))

    def most_likely() -> Saved:
        done = engine().generate(
            [
                Request(problem, max_new_tokens=exam.max_new_tokens, temperature=0.0)
                for exam in exams
                for problem in exam.problems
            ]
        )
        return Saved({}, {"texts": list(done.texts)})

    def forced() -> Saved:
        problems = [problem for exam in exams for problem in exam.problems]
        known = [problem for problem in problems if problem.reference is not None]
        references = policy.encode_completions([problem.reference or "" for problem in known])
        prompts = policy.encode_prompts([problem.prompt for problem in known])
        found = iter(forced_entropies(policy, prompts, references))
        entropies = [math.nan if p.reference is None else next(found) for p in problems]
        return Saved({}, {"entropies": entropies})

    with precision(policy.device, dtype):
        sampled = [
            _unpacked(work.part(f"sampled-{exam.name}-{exam.split}", partial(sampling, exam)))
            for exam in exams
        ]
        greedy = work.part("greedy", most_likely).state["texts"]
        fixed = work.part("fixed", forced).state["entropies"]
    cuts = itertools.accumulate([0, *(len(exam.problems) for exam in exams)])
    spans = [slice(*cut) for cut in itertools.pairwise(cuts)]
    return [Answers(s, greedy[span], fixed[span]) for s, span in zip(sampled, spans, strict=True)]


def engine_for(
    policy: Policy,
    exams: Sequence[Exam],
    config: EvaluationConfig | None = None,
    rollout: RolloutConfig = SAMPLING,
    dtype: str = "fp32",
) -> Engine:
    """The engine that samples; torch's with as many rows side by side as their keys and values fit into CACHE_BYTES."""
    workers = workers_for(policy.model, config.threads) if config else ALONE
    sizes = policy.model.config.get_text_config()
    heads = getattr(sizes, "num_key_value_heads", None) or sizes.num_attention_heads
    size = getattr(sizes, "head_dim", None) or sizes.hidden_size // sizes.num_attention_heads
    room = max(exam.max_new_tokens for exam in exams)
    row = 2 * sizes.num_hidden_layers * heads * size * room * 4
    kind = policy.device.type
    least, bound = max_rows_on(kind, policy.model), CACHE_BYTES[kind == "cpu"]
    rows = max(least, bound // row // workers.count)
    return make_engine(rollout, policy, dtype, workers=workers, max_rows=rows, frozen=True)


def sample(engine: Engine, exam: Exam, config: EvaluationConfig) -> Completions:
    """`config.samples` answers per problem, drawn with the problem's own random numbers."""
    return engine.generate(
        [
            Request(
                problem,
                samples=config.samples,
                temperature=config.temperature,
                max_new_tokens=exam.max_new_tokens,
                seed=seed_of("evaluate", config.seed, exam.name, exam.split, problem.id),
            )
            for problem in exam.problems
        ]
    )


def forced_entropies(
    policy: Policy, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
) -> list[float]:
    """Mean entropy (nats) of the next-token distribution at temperature 1 along each given completion."""
    found = _entropies(policy, list(zip(prompts, completions, strict=True)))
    return [own.double().mean().item() for own in found]


def _with_entropies(
    policy: Policy, exam: Exam, done: Completions, temperature: float
) -> Completions:
    """The answers to an exam with the entropies of the distributions that they were drawn from."""
    if done.entropies is not None:
        return done
    lengths = done.loss_mask.sum(1).long().tolist()
    rows = [ids[:n] for ids, n in zip(done.response_ids.tolist(), lengths, strict=True)]
    prompts = policy.encode_prompts([problem.prompt for problem in exam.problems])
    samples = len(rows) // len(prompts)
    pairs = [(prompts[i // samples], row) for i, row in enumerate(rows)]
    entropies = torch.zeros_like(done.logps)
    for i, own in enumerate(_entropies(policy, pairs, temperature)):
        entropies[i, : len(own)] = own
    return replace(done, entropies=entropies)


def _entropies(
    policy: Policy, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], temperature: float = 1.0
) -> list[Tensor]:
    """Entropy (nats) of each token of each (prompt, completion)'s completion, on the CPU."""
    each, kernels = [torch.empty(0)] * len(pairs), kernels_for(policy.model)
    vocabulary = policy.model.config.get_text_config().vocab_size
    with torch.no_grad():
        for batch in _batches([(len(p), len(c)) for p, c in pairs], vocabulary):
            rows = [[*pairs[i][0], *pairs[i][1]] for i in batch]
            firsts = [len(pairs[i][0]) for i in batch]
            _, found = log_probs(
                policy.model, rows, firsts, entropy=True, kernels=kernels, temperature=temperature
            )
            assert found is not None
            for i, own in zip(
                batch, found.cpu().split([len(pairs[i][1]) for i in batch]), strict=True
            ):
                each[i] = own
    return each


def _packed(done: Completions) -> Saved:
    tensors = {name: getattr(done, name).cpu() for name in _TENSORS}
    return Saved(tensors, {"texts": list(done.texts)})


def _unpacked(saved: Saved) -> Completions:
    return Completions(**saved.tensors, texts=saved.state["texts"])


def _batches(lengths: Sequence[tuple[int, int]], vocabulary: int) -> Iterator[list[int]]:
    """Numbers of (prompt, completion) pairs in order of length, cut by their padded tokens and by their logits."""
    batch: list[int] = []
    longest = 0
    for i in sorted(range(len(lengths)), key=lambda i: (sum(lengths[i]), i)):
        rows, asked = len(batch) + 1, max(longest, lengths[i][1])
        if batch and (
            rows * sum(lengths[i]) > BATCH_TOKENS or rows * asked * vocabulary > BATCH_LOGITS
        ):
            yield batch
            batch, asked = [], lengths[i][1]
        batch.append(i)
        longest = asked
    if batch:
        yield batch
