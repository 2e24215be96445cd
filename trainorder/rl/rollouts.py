"""What a step samples: problems become requests, requests answers, answers grades and rewards."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from trainorder.config import SOURCES
from trainorder.rl import facts
from trainorder.rl.attention import attention_entropy
from trainorder.rl.backend import in_order, slice_of
from trainorder.rl.forward import forward
from trainorder.rl.helpers import levelled
from trainorder.rl.learner import Learner
from trainorder.rl.method import Method
from trainorder.rl.spans import char_spans
from trainorder.rl.speed import timed
from trainorder.rl.types import ASKED, ASKED_PROMPT, Roll, State
from trainorder.rollout import Completions, Request
from trainorder.rollout.base import rows_of, with_prompts
from trainorder.streams import seed_of
from trainorder.tasks.base import Problem, Reward, in_template
from trainorder.tasks.posing import posed


@dataclass
class StepRollouts:
    """The rollouts of one step; see types.Rollouts."""

    learner: Learner
    state: State
    clock: dict[str, float]
    """Seconds of each part of the step."""
    sampled: list[Roll] = field(default_factory=list)
    """All that the policy sampled in this step, in order."""
    tokens: float = 0.0
    """Sampled so far."""
    prompt_tokens: float = 0.0
    """Read so far, a prompt once for all its answers."""
    asked: int = 0
    """Requests so far: the place of the next one, which seeds it and numbers its group."""
    look: Callable[[str, Sequence[Problem]], list[float]] | None = None
    """Measures problems for item samplers (looks.py)."""
    looked: int = 0
    """Requests of looks so far."""

    def requests(self, counts: Mapping[str, int]) -> list[Request]:
        """See Rollouts."""
        learner, config = self.learner, self.learner.config
        limits = learner.task_set.max_new_tokens
        problems = learner.task_set.draw(counts, self.state, learner.seed, self.look)
        requests = [
            Request(
                problem,
                samples=config.group_size,
                temperature=config.temperature,
                max_new_tokens=limits[problem.task],
            )
            for problem in problems
        ]
        for plan in learner.method.plan:
            requests = plan(requests, self.state)
        learner.task_set.asked(problems, [request.samples for request in requests])
        return requests

    def sample(self, requests: Sequence[Request], *, aside: bool = False) -> Roll:
        """See Rollouts."""
        mine = self.share(requests)
        with timed(self.clock, "generate"):
            part = self.answered(mine) if mine else None
        return self._finish(part, aside=aside)

    def pose(self, task: str, text: str) -> Problem | None:
        """See Rollouts."""
        return posed(self.learner.task_set.tasks[task], task, text)

    def answered(self, requests: Sequence[Request]) -> Roll:
        """Answers of the policy and of the teacher, in the order of the requests."""
        learner = self.learner
        if not any(request.teacher for request in requests):
            return _answers(requests, learner.engine.generate(requests))
        taught = [request for request in requests if request.teacher]
        assert learner.teacher is not None, (
            "the piece that asks the teacher does not say so in its needs"
        )
        done = learner.teacher.generate(taught)
        rows = zip(
            rows_of(taught), done.response_ids.tolist(), done.loss_mask.sum(1).tolist(), strict=True
        )
        given = [
            replace(taught[i], prefix_ids=ids[: len(taught[i].prefix_ids) + int(length)], samples=1)
            for i, ids, length in rows
        ]
        part = foreign(given, learner.policy.decode_batch, "teacher")
        part.row_facts["finished"] = done.finished.cpu().float()
        part.loss_mask[:, : done.loss_mask.shape[1]] *= done.loss_mask.cpu()
        own = [request for request in requests if not request.teacher]
        if not own:
            return part
        both = Roll.cat([_answers(own, learner.engine.generate(own)), part])
        places = {
            False: iter(range(len(both) - len(part))),
            True: iter(range(len(both) - len(part), len(both))),
        }
        return both.rows([next(places[requests[i].teacher]) for i in rows_of(requests)])

    def given(self, requests: Sequence[Request], texts: Sequence[str] | None, source: str) -> Roll:
        """See Rollouts."""
        policy = self.learner.policy
        answers: Sequence[Sequence[int]] = [request.prefix_ids for request in requests]
        if texts is not None:
            answers = policy.encode_completions(texts)
        whole = [
            replace(request, prefix_ids=answer, samples=1)
            for request, answer in zip(requests, answers, strict=True)
        ]
        mine = self.share(whole)
        for request in mine:
            policy.check_fits(len(request.prompt_ids), len(request.prefix_ids))
        return self._finish(foreign(mine, policy.decode_batch, source) if mine else None)

    def cut(self, roll: Roll, lengths: Int[Tensor, " row"]) -> Roll:
        """See Rollouts."""
        learner = self.learner
        shorter = (lengths < roll.lengths()).nonzero().flatten().tolist()
        if not shorter:
            return roll
        kept = torch.arange(roll.loss_mask.shape[1]) < lengths[:, None]
        answers = [roll.response_ids[row, : int(lengths[row])].tolist() for row in shorter]
        texts, finished = list(roll.text), roll.row_facts["finished"].clone()
        finished[shorter] = 0.0
        for row, text in zip(shorter, learner.policy.decode_batch(answers), strict=True):
            texts[row] = text
        grades = [
            Reward(float(grade) if scored else None, {"strict": float(strict)})
            for grade, strict, scored in zip(
                roll.row_facts["graded"], roll.row_facts["strict"], roll.scored, strict=True
            )
        ]
        with timed(self.clock, "grade"):
            backend = learner.backend
            mine = shorter[slice(*slice_of(len(shorter), backend.rank, backend.world))]
            found = learner.task_set.grade(
                [roll.problem[i] for i in mine], [texts[i] for i in mine]
            )
        again = [grade for share in backend.gather(found) for grade in share]
        for row, grade in zip(shorter, again, strict=True):
            grades[row] = grade
        roll = replace(
            roll,
            text=texts,
            loss_mask=roll.loss_mask * kept,
            row_facts={**roll.row_facts, "finished": finished},
        )
        return self._rewarded(roll, grades)

    def _rewarded(self, roll: Roll, grades: Sequence[Reward]) -> Roll:
        strict = [
            g.parts.get("strict", math.nan) if g.value is not None else math.nan for g in grades
        ]
        roll = replace(
            roll, row_facts={**roll.row_facts, "strict": roll.rewards.new_tensor(strict)}
        )
        task_set, floor = self.learner.task_set, self.learner.config.min_judged_spread
        floors = [floor if task_set.is_judged(problem.task) else 0.0 for problem in roll.problem]
        return add_rewards(
            roll,
            [grade.value for grade in grades],
            self.learner.method,
            self.state,
            floors=roll.rewards.new_tensor(floors),
        )

    def share(self, requests: Sequence[Request]) -> list[Request]:
        """This rank's share of the requests, each with its seed, its group and its prompt's tokens."""
        learner, first = self.learner, self.asked
        self.asked += len(requests)
        placed = [
            replace(
                request,
                seed=seed_of("rollout", learner.seed, learner.phase, self.state.step, place),
                group=place if request.group is None else request.group,
            )
            for place, request in enumerate(requests, first)
        ]
        own = slice(*slice_of(len(placed), learner.backend.rank, learner.backend.world))
        return with_prompts(learner.policy, placed[own])

    def _finish(self, part: Roll | None, *, aside: bool = False) -> Roll:
        """Grade this rank's rows, join those of all ranks, and add old log-probabilities, facts and rewards."""
        learner, task_set = self.learner, self.learner.task_set
        with timed(self.clock, "grade"):
            mine = [Reward(None)] * len(part or ())
            if part is not None and not aside:
                mine = task_set.grade(part.problem, part.text)
        with timed(self.clock, "generate"):
            parts, shares = zip(*learner.backend.gather((part, mine)), strict=True)
            roll = add_old_facts(add_informed(in_order(parts), learner), learner)
        roll = self._rewarded(roll, [grade for share in shares for grade in share])
        asked = zip(roll.group.tolist(), map(tuple, roll.prompt_ids), strict=True)
        self.prompt_tokens += sum(len(prompt) for _, prompt in set(asked))
        self.tokens += float(sampled_tokens(roll).sum())
        own = roll.is_from("policy")  # others say nothing about what the policy can
        if own.any() and not aside:
            self.sampled.append(roll if own.all() else roll.rows(own.nonzero().flatten().tolist()))
        return roll


def _answers(requests: Sequence[Request], done: Completions) -> Roll:
    """The engine's answers as rows that are not graded yet."""
    seen = torch.zeros_like(done.logps) if done.entropies is None else done.entropies
    return _rows(
        requests,
        done.response_ids.cpu(),
        done.loss_mask.cpu(),
        done.texts,
        {"finished": done.finished.cpu().float(), "source": torch.zeros(len(done.texts))},
        {"sampler_logps": done.logps.cpu(), "entropy": seen.cpu()},
    )


def foreign(requests: Sequence[Request], decode: Any, source: str) -> Roll:
    """Answers that are all prefix."""
    answers = [torch.tensor(list(request.prefix_ids)) for request in requests]
    ids = torch.nn.utils.rnn.pad_sequence(answers, batch_first=True)
    lengths = torch.tensor([len(answer) for answer in answers])
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).float()
    number = float(SOURCES.index(source))
    row_facts = {
        "finished": torch.ones(len(ids)),
        "source": torch.full((len(ids),), number),
    }
    texts = decode([answer.tolist() for answer in answers])
    unknown = {name: torch.zeros_like(mask) for name in ("sampler_logps", "entropy")}
    return _rows(requests, ids, mask, texts, row_facts, unknown)


def _rows(
    requests: Sequence[Request],
    ids: Tensor,
    mask: Tensor,
    texts: Sequence[str],
    row_facts: dict[str, Tensor],
    token_facts: dict[str, Tensor],
) -> Roll:
    asked = [requests[i] for i in rows_of(requests)]
    return Roll(
        prompt_ids=[list(row.prompt_ids) for row in asked],
        response_ids=ids,
        loss_mask=mask,
        group=torch.tensor([row.group for row in asked]),
        rewards=mask.new_zeros(len(asked)),
        scored=torch.zeros(len(asked), dtype=torch.bool),
        advantages=torch.zeros_like(mask),
        weights=torch.ones_like(mask),
        problem=[_problem(row) for row in asked],
        text=list(texts),
        row_facts={
            **row_facts,
            "age": mask.new_zeros(len(asked)),
            "given": mask.new_tensor([len(row.prefix_ids) for row in asked]),
            "temperature": mask.new_tensor([row.temperature for row in asked]),
            "limit": mask.new_tensor(
                [max(row.max_new_tokens, len(row.prefix_ids)) for row in asked]
            ),
            **_asked_facts(asked, mask),
        },
        token_facts=token_facts,
    )


def _asked_facts(asked: Sequence[Request], like: Tensor) -> dict[str, Tensor]:
    """What the requests brought, per row."""
    names = dict.fromkeys(name for request in asked for name in request.facts)
    return {
        f"{ASKED}{name}": like.new_tensor([row.facts.get(name, math.nan) for row in asked])
        for name in names
    }


def _problem(request: Request) -> Problem:
    assert request.problem is not None, "an answer without a problem cannot be graded"
    if not request.prompt or request.prompt == request.problem.prompt:
        return request.problem
    return replace(request.problem, meta={**request.problem.meta, ASKED_PROMPT: request.prompt})


def add_informed(roll: Roll, learner: Learner) -> Roll:
    """The prompts that were asked with the gold text, where a piece compares with a model that reads it.

    Raises:
        ParamsError: such a prompt and its answer are longer than the model's context.
    """
    method, policy = learner.method, learner.policy
    if not facts.reads_gold(method.needs | method.live_needs):
        return roll
    text = learner.config.informed_prompt
    told = [
        in_template(roll.prompt(row), text, gold=problem.gold or problem.reference or "")
        for row, problem in enumerate(roll.problem)
    ]
    prompts = policy.encode_prompts(told)
    policy.check_fits(max(map(len, prompts)), int(roll.lengths().max()))
    return replace(roll, informed_ids=prompts)


def add_old_facts(roll: Roll, learner: Learner) -> Roll:
    """The trainer's log-probabilities before the update, and the facts that pieces need.

    An exact engine has measured the tokens that it sampled; other tokens, and facts other than entropy, cost a forward.
    """
    known, needs = dict(roll.token_facts), learner.method.needs
    if facts.SPANS in needs:
        known |= char_spans(learner.policy, roll)
    head_needs = needs - facts.NOT_OF_THE_HEAD
    sampled, mine = sampled_tokens(roll), roll.loss_mask > 0
    measured = sampled & learner.exact
    if head_needs <= {"entropy"} and not (mine & ~measured).any():
        return replace(roll, token_facts={**known, "old_logps": roll.sampler_logps})
    scored = score(learner.policy.model, roll, learner, head_needs | {"entropy"})
    logps = scored.pop("logps")
    if measured.any():
        logps = torch.where(measured, roll.sampler_logps, logps)
        scored["entropy"] = torch.where(measured, known["entropy"], scored["entropy"])
    if (mine & ~sampled).any():
        known["sampler_logps"] = torch.where(sampled, roll.sampler_logps, logps)
    return replace(roll, token_facts={**known, **scored, "old_logps": logps})


def sampled_tokens(roll: Roll) -> Bool[Tensor, "row token"]:
    """Tokens that the engine sampled and that may learn: neither given nor padding."""
    places = torch.arange(roll.loss_mask.shape[1])
    return (places >= roll.row_facts["given"][:, None]) & (roll.loss_mask > 0)


def score(
    model: Any, roll: Roll, learner: Learner, needs: Collection[str] = ()
) -> dict[str, Tensor]:
    """`logps` of all tokens under `model`, and the needed facts of its head; each rank computes its share."""
    backend = learner.backend

    looked = facts.of_attention(needs)
    needs = set(needs) - set(looked)

    def score_rows(rows: list[int]) -> tuple[list[int], dict[str, Tensor]]:
        part = roll.rows(rows or longest_row(roll))
        with backend.computing():
            live = forward(model, part, needs, learner.models)
            found = {need: attention_entropy(model, part, facts.depth_of(need)) for need in looked}
        found |= {"logps": live.logps, **live.facts}
        return rows, {name: v.float() for name, v in found.items()}

    batches = backend.micro_batches(roll, learner.config.micro_batch_tokens)
    mine = [part for part in backend.map(score_rows, batches) if part[0]]
    whole: dict[str, Tensor] = {}
    for rows, values in (part for share in backend.gather(mine) for part in share):
        for name, value in values.items():
            if name not in whole:
                whole[name] = roll.loss_mask.new_zeros(*roll.loss_mask.shape, *value.shape[2:])
            whole[name][rows] = value.to(whole[name].dtype)
    return whole


def longest_row(roll: Roll) -> list[int]:
    """A row with a token, for a forward whose result is not used."""
    return [int(roll.lengths().argmax())]


def add_rewards(
    roll: Roll,
    grades: Sequence[float | None],
    method: Method,
    state: State,
    *,
    floors: Tensor | float = 0.0,
) -> Roll:
    """Fill in the grades and add up the reward channels; None leaves a row unscored.

    Rewards of a group that differ by less than `floors`, one number or one per row, are made equal, so that every piece
    takes the group as one without spread.
    """
    graded = roll.rewards.new_tensor([0.0 if value is None else value for value in grades])
    scored = torch.tensor([value is not None for value in grades])
    roll = replace(roll, scored=scored, row_facts={**roll.row_facts, "graded": graded})
    rewards = torch.zeros_like(graded)
    for channel in method.reward:
        rewards = rewards + channel.coef_at(state) * channel(roll, state)
    least = torch.as_tensor(floors, dtype=rewards.dtype).expand(len(roll))
    rewards = levelled(rewards, roll.group, scored, least)
    return replace(roll, rewards=torch.where(scored, rewards, 0.0))
