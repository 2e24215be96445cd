"""Rows that are trained on again: the good answers of past steps, and answers regenerated from a critical token."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from trainorder.rl.helpers import centred, gdeviation, gmean
from trainorder.rl.registry import advantage, edit, metric
from trainorder.rl.types import Roll, Rollouts, State
from trainorder.rollout import Request
from trainorder.tasks.base import Problem

KEY = "self_imitation"


@edit
def self_imitation(
    roll: Roll,
    state: State,
    rollouts: Rollouts,
    *,
    size: int = 2048,
    max_age: int = 10,
    baselines: int = 10240,
) -> Roll:
    """Keep rows that beat their group; once `size` are kept, train on them again as rows of source `replay` (SPEAR).

    Self-imitation (SPEAR, arXiv:2509.22601). A row with r above its group's mean is kept for `max_age` steps. When the
    buffer holds `size` rows they all join the step, and it starts empty again. Their credit (`self_imitation_credit`) is
    A = r - the median of the last `baselines` group means, and rows with A <= 0 stay out, so that what was good early is not
    imitated late. `old_logps` of a replayed row are those under which it was sampled. Values are those of the authors'
    code, which waits for 1.5 size rows: choose `size` below what max_age steps can keep, or nothing is ever replayed (a
    warning says so at step max_age). Its
    agents' condition of a tool call does not exist here, nor its reward of tool calls.
    """
    kept = _Kept.of(state)
    own = roll.is_from("policy") & roll.scored
    credit = centred(roll.rewards, roll.group, roll.scored)
    for row in (own & (credit > 0)).nonzero().flatten().tolist():
        kept.add(roll, row, state.step)
    means = gmean(roll.rewards, roll.group, roll.scored)
    first = {int(g): float(mean) for g, mean in zip(roll.group[own], means[own], strict=True)}
    past = state.tensors.get(f"{KEY}/baselines", torch.zeros(0, dtype=torch.float64))
    past = torch.cat([past, torch.tensor(list(first.values()), dtype=torch.float64)])[-baselines:]
    state.tensors[f"{KEY}/baselines"] = past
    kept.forget(state.step - max_age)
    again = None
    if len(kept.rows) >= size:
        baseline = float(past.quantile(0.5))
        better = [row for row in kept.rows if row.reward > baseline]
        kept.rows = []
        if better:
            again = _replayed(better, baseline, state.step, rollouts)
    elif state.step == max_age and KEY + "/used" not in state.mem:
        print(
            f"warning: method.edit.self_imitation: {len(kept.rows)} rows were kept in {max_age} steps, and nothing is replayed "
            f"below size {size}: lower size, or raise max_age or the prompts of a step",
            flush=True,
        )
    if again is not None:
        state.mem[KEY + "/used"] = True
    kept.store(state)
    return roll if again is None else Roll.cat([roll, again])


@advantage
def self_imitation_credit(roll: Roll, state: State) -> Float[Tensor, "row token"]:
    """Credit of replayed rows against the median of past group means, that of all others unchanged (arXiv:2509.22601).

    A shaper: it stands behind an estimator, which leaves replayed rows without credit as they are groups of one. The
    paper's estimator is `dr_grpo`.
    """
    known = roll.asked(KEY)[:, None].expand_as(roll.advantages)
    return torch.where(known.isnan(), roll.advantages, known.to(roll.advantages.dtype))


@metric
def self_imitation_buffer(roll: Roll, state: State) -> dict[str, float]:
    """Rows that `self_imitation` keeps now, and the share of this step's rows that are replayed (SPEAR, arXiv:2509.22601)."""
    kept = len(state.mem.get(KEY, []))
    return {
        "replay_kept": float(kept),
        "replay_share": float(roll.is_from("replay").double().mean()),
    }


@dataclass
class _Row:
    """A kept row."""

    prompt: Tensor
    answer: Tensor
    logps: Tensor
    reward: float
    step: int
    temperature: float
    problem: dict[str, Any]


@dataclass
class _Kept:
    """The buffer, oldest first, as State saves it: flat tensors, and the problems as plain data."""

    rows: list[_Row]

    @classmethod
    def of(cls, state: State) -> _Kept:
        problems = state.mem.get(KEY, [])
        if not problems:
            return cls([])
        found = {
            name: state.tensors[f"{KEY}/{name}"] for name in ("prompt", "answer", "logps", "facts")
        }
        facts = found["facts"].tolist()
        prompts = found["prompt"].split([int(fact[0]) for fact in facts])
        lengths = [int(fact[1]) for fact in facts]
        places = zip(
            prompts,
            found["answer"].split(lengths),
            found["logps"].split(lengths),
            facts,
            problems,
            strict=True,
        )
        return cls(
            [
                _Row(prompt, answer, logps, fact[2], int(fact[3]), fact[4], problem)
                for prompt, answer, logps, fact, problem in places
            ]
        )

    def add(self, roll: Roll, row: int, step: int) -> None:
        length = int(roll.lengths()[row])
        self.rows.append(
            _Row(
                torch.tensor(roll.prompt_ids[row]),
                roll.response_ids[row, :length].clone(),
                roll.old_logps[row, :length].clone(),
                float(roll.rewards[row]),
                step,
                float(roll.row_facts["temperature"][row]),
                asdict(roll.problem[row]),
            )
        )

    def forget(self, oldest: int) -> None:
        """Drop rows sampled before step `oldest`."""
        self.rows = [row for row in self.rows if row.step >= oldest]

    def store(self, state: State) -> None:
        names = ("prompt", "answer", "logps")
        for name in (*names, "facts"):
            state.tensors.pop(f"{KEY}/{name}", None)
        state.mem[KEY] = [row.problem for row in self.rows]
        if not self.rows:
            return
        for name in names:
            state.tensors[f"{KEY}/{name}"] = torch.cat([getattr(row, name) for row in self.rows])
        state.tensors[f"{KEY}/facts"] = torch.tensor(
            [
                [len(row.prompt), len(row.answer), row.reward, row.step, row.temperature]
                for row in self.rows
            ],
            dtype=torch.float64,
        )


def _replayed(rows: list[_Row], baseline: float, step: int, rollouts: Rollouts) -> Roll:
    requests = [
        Request(
            Problem(**row.problem),
            prompt_ids=row.prompt.tolist(),
            prefix_ids=row.answer.tolist(),
            temperature=row.temperature,
            facts={KEY: row.reward - baseline},
        )
        for row in rows
    ]
    roll = rollouts.given(requests, None, "replay")
    logps = pad_sequence([row.logps for row in rows], batch_first=True).to(roll.old_logps)
    roll.token_facts["old_logps"] = logps
    roll.row_facts["age"] = roll.rewards.new_tensor([step - row.step for row in rows])
    return roll


@edit
def highest_spread(roll: Roll, state: State, rollouts: Rollouts, *, share: float = 0.75) -> Roll:
    """Keep the `share` of groups whose rewards spread most, at least one (SPEAR's Dr.BoT base, arXiv:2509.22601).

    A group with fewer than two scored rows has no spread. share .75 is that of the authors' code.
    """
    spread = gdeviation(roll.rewards, roll.group, roll.scored)
    by_group = dict(zip(roll.group.tolist(), spread.tolist(), strict=True))
    ordered = sorted(by_group, key=lambda group: (-by_group[group], group))
    kept = set(ordered[: max(1, round(share * len(ordered)))])
    return roll.rows([i for i, group in enumerate(roll.group.tolist()) if group in kept])


@edit(needs=frozenset({"entropy", "spans"}))
def regenerate(
    roll: Roll,
    state: State,
    rollouts: Rollouts,
    *,
    samples: int = 3,
    candidates: int = 20,
    until: int = 300,
) -> Roll:
    """Answer again from a critical token of each answer, in the same group (CURE, arXiv:2508.11016).

    In every row one of its `candidates` tokens of highest entropy is drawn uniformly; special tokens and pieces of at most
    one visible character are left out. The answer is cut before it and `samples` more are sampled from there; tokens
    before the cut are given, not learned. Groups of n become groups of n (1 + samples): with `group_size: 4` the paper's 16.
    From step `until` on nothing is regenerated, which is the paper's second stage, plain DAPO. Values are those of the
    authors' code.
    """
    if state.step >= until or samples < 1:
        return roll
    stream, requests = state.stream("regenerate"), []
    for row in roll.is_from("policy").nonzero().flatten().tolist():
        places = critical(roll, row, candidates)
        if not places:
            continue
        cut = places[int(torch.randint(len(places), (1,), generator=stream))]
        requests.append(
            Request(
                roll.problem[row],
                prompt_ids=roll.prompt_ids[row],
                prefix_ids=roll.response_ids[row, :cut].tolist(),
                samples=samples,
                temperature=float(roll.row_facts["temperature"][row]),
                max_new_tokens=int(roll.row_facts["limit"][row]),
                group=int(roll.group[row]),
                facts=_asked(roll, row),
            )
        )
    return Roll.cat([roll, rollouts.sample(requests)]) if requests else roll


def critical(roll: Roll, row: int, candidates: int) -> list[int]:
    """Places of the row's learning tokens of highest entropy that show more than one character, highest first."""
    start, end = roll.token_facts["char_start"][row], roll.token_facts["char_end"][row]
    text, entropy = roll.text[row], roll.entropy[row].tolist()
    places = [
        place
        for place in (roll.loss_mask[row] > 0).nonzero().flatten().tolist()
        if len(text[int(start[place]) : int(end[place])].strip()) > 1
    ]
    return sorted(places, key=lambda place: (-entropy[place], place))[:candidates]


def _asked(roll: Roll, row: int) -> dict[str, float]:
    """The facts that the row's request brought."""
    found = {
        name: float(values[row])
        for name, values in roll.row_facts.items()
        if name.startswith("asked/")
    }
    return {name.removeprefix("asked/"): value for name, value in found.items() if value == value}
