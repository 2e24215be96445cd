"""What every piece of the RL step must hold to; a new piece is checked as soon as it is listed."""

from __future__ import annotations

import inspect
import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

import pytest
import torch
from rl_small import make_roll, pad_more, variants

from trainorder.rl import facts
from trainorder.rl.helpers import centred
from trainorder.rl.method import MODELS, Bound, bind
from trainorder.rl.registry import (
    ADVANTAGES,
    EDITS,
    METRICS,
    REWARDS,
    SLOTS,
    TERMS,
    WEIGHTS,
    Entry,
    advantage,
    weight,
)
from trainorder.rl.types import Live, Roll, State
from trainorder.rollout import Request

NONZERO_FOR_EQUAL_REWARDS: set[str] = set()
"""Estimators that document credit for a group of equal rewards."""

PAYS_ROLES = {"self_play"}
"""Edits that reward rows which are no answers to their problems."""

ALL = [(slot, name) for slot, listed in SLOTS.items() for name in listed]


def some_roll() -> Roll:
    """Two groups, rows of different lengths, one ungradable, facts drawn at random."""
    roll = make_roll([1, 0, 0.25, 0, 1, None], group=[0, 0, 0, 1, 1, 1], lengths=[3, 1, 4, 2, 2, 3])
    noise = torch.Generator().manual_seed(0)

    def draw() -> torch.Tensor:
        return (
            torch.randn(roll.loss_mask.shape, generator=noise, dtype=torch.float64) * roll.loss_mask
        )

    old = draw() - 2
    facts = {
        "old_logps": old,
        "sampler_logps": old + 0.01 * draw(),
        "entropy": draw().abs(),
        "ref_logps": draw() - 2,
        **needed_of(roll),
    }
    said = [str(row % 2) for row in range(len(roll))]
    return replace(roll, advantages=draw(), token_facts=facts, text=said)


@cache
def needed_by_pieces() -> frozenset[str]:
    bound = [bind(slot, name) for slot, name in ALL if slot != "terms"]
    return frozenset().union(*(piece.needs for piece in bound))


def needed_of(roll: Roll) -> dict[str, torch.Tensor]:
    """Facts that only some pieces need."""
    noise = torch.Generator().manual_seed(1)
    shape, known = roll.loss_mask.shape, {"entropy", "ref_logps", "hidden", "spans"}
    needs = sorted(needed_by_pieces() - known)
    return {
        **{
            need: torch.rand(shape, generator=noise, dtype=torch.float64)
            * (1 + 4 * roll.group[:, None])  # of another scale in every group
            for need in needs
        },
        "hidden": torch.randn(*shape, 3, generator=noise, dtype=torch.float64),
        "char_start": torch.zeros_like(roll.response_ids),
        "char_end": torch.zeros_like(roll.response_ids),
    }


def live_of(term: Bound, roll: Roll, logps: torch.Tensor) -> Live:
    """With whatever the term needs of the training forward."""
    return Live(logps, {need: logps.abs() for need in facts.live(term.needs)})


TERM_VARIANTS = [
    pytest.param(b, id=f"{name}-{b.options}") for name in TERMS for b in variants("terms", name)
]


@pytest.mark.parametrize(("slot", "name"), ALL)
def test_options_are_keyword_only_with_defaults(slot, name):
    function = SLOTS[slot][name].function
    positional = 3 if slot in ("edit", "terms") else 2
    parameters = list(inspect.signature(function).parameters.values())
    assert len([p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]) == positional
    for option in parameters[positional:]:
        assert option.kind is option.KEYWORD_ONLY
        assert option.default is not option.empty
    assert function.__doc__


@pytest.mark.parametrize(("slot", "name"), ALL)
def test_needs_are_known_to_the_engine(slot, name):
    for bound in variants(slot, name):
        known = bound.needs if slot != "terms" else facts.live(bound.needs) | facts.old(bound.needs)
        facts.check(known, MODELS)


@pytest.mark.parametrize("name", ADVANTAGES)
def test_equal_rewards_give_no_credit(name):
    # the mean of equal numbers is off by rounding for some of these, the credit must not be
    for dtype, count in itertools.product((torch.float32, torch.float64), range(2, 12)):
        roll = make_roll([0.1] * count)
        known = {**roll.token_facts, **needed_of(roll)}
        roll = replace(roll, rewards=roll.rewards.to(dtype), token_facts=known)
        credit = ADVANTAGES[name](roll, State(total=1))
        assert (credit == 0).all() != (name in NONZERO_FOR_EQUAL_REWARDS)


@pytest.mark.parametrize("name", ADVANTAGES)
def test_a_permuted_group_gets_permuted_credit(name):
    roll = some_roll()
    order = random.Random(1).sample(range(len(roll)), len(roll))
    credit = ADVANTAGES[name](roll, State(total=1))
    torch.testing.assert_close(ADVANTAGES[name](roll.rows(order), State(total=1)), credit[order])


def lopsided_roll() -> Roll:
    """A sure group of 80 tokens, one of them an outlier that is punished, and one of high entropy beside it."""
    rewards = [1, 0, 0, 1, 0, 0, 0, 1] * 2
    roll = make_roll(rewards, group=[0] * 8 + [1] * 8, lengths=[10] * 16)
    noise = torch.Generator().manual_seed(2)
    old = torch.rand(roll.loss_mask.shape, generator=noise, dtype=torch.float64) * -3
    entropy = old.abs() + 3
    old[:8], entropy[:8] = -0.01, 0.01
    old[1, 3], entropy[1, 3] = -1.0, 0.0
    known = {**needed_of(roll), "old_logps": old, "sampler_logps": old, "ref_logps": old}
    known |= {"entropy": entropy, "expected_discriminator": torch.zeros_like(old)}
    advantages = torch.tensor([[1.0 if r else -1.0] * 10 for r in rewards], dtype=torch.float64)
    sources = torch.arange(16, dtype=torch.float64) % 2  # every second row is an expert's
    kinds = {**roll.row_facts, "source": sources}
    return replace(roll, advantages=advantages, token_facts=known, row_facts=kinds)


def sees_other_groups(entry: Entry) -> bool:
    """Whether some row's advantage or weight is another one without the other groups of the batch."""
    rolls = (some_roll(), lopsided_roll(), two_tasks())
    parts = [part for roll in rolls for part in (roll, *(roll.rows(rows) for rows in groups(roll)))]
    assert any(entry(part, State(total=1)).any() for part in parts)  # of zeros nothing can differ
    return any(differs_alone(entry, roll) for roll in rolls)


def groups(roll: Roll) -> list[list[int]]:
    """Rows of each group."""
    return [(roll.group == group).nonzero().flatten().tolist() for group in roll.group.unique()]


def two_tasks() -> Roll:
    """Two tasks of a group each, of which one has a row without credit."""
    roll = some_roll()
    names = ["ab"[group] for group in roll.group.tolist()]
    problems = [replace(p, task=name) for p, name in zip(roll.problem, names, strict=True)]
    kept = torch.tensor([1.0, 1, 0, 1, 1, 1])[:, None]
    return replace(roll, problem=problems, advantages=roll.advantages * kept)


def differs_alone(entry: Entry, roll: Roll) -> bool:
    whole = spread(entry(roll, State(total=1)), roll)
    alone = torch.zeros_like(whole)
    for rows in groups(roll):
        part = roll.rows(rows)
        alone[rows] = spread(entry(part, State(total=1)), part).to(alone.dtype)
    return not torch.allclose(whole, alone)


@pytest.mark.parametrize("entry", [*ADVANTAGES.values(), *WEIGHTS.values()], ids=lambda e: e.name)
def test_the_scope_of_a_piece_is_what_it_says(entry: Entry):
    assert sees_other_groups(entry) == (entry.scope == "batch")


def reinforce_pp(roll: Roll, state: State) -> torch.Tensor:
    """Group baseline, then normalised over the batch (REINFORCE++, arXiv:2501.03262)."""
    credit = centred(roll.rewards, roll.group, roll.scored)
    return credit / (credit.std() + 1e-8)


def surest_half(roll: Roll, state: State) -> torch.Tensor:
    """1 for the half of the batch's tokens of highest entropy (arXiv:2506.01939)."""
    kept = roll.loss_mask > 0
    return ((roll.entropy >= roll.entropy[kept].median()) & kept).to(roll.loss_mask.dtype)


@pytest.mark.parametrize(
    ("decorator", "function"), [(advantage, reinforce_pp), (weight, surest_half)]
)
def test_a_method_over_the_batch_may_be_listed_as_what_it_is(decorator, function):
    slot = SLOTS[decorator.__name__]
    decorator(scope="batch")(function)
    entry = slot.pop(function.__name__)
    assert entry.scope == "batch"
    assert sees_other_groups(entry)


@pytest.mark.parametrize(("name", "listed"), [(n, s) for s in (REWARDS, WEIGHTS) for n in s])
def test_rewards_and_weights_are_finite_per_row_or_token(name, listed):
    roll = some_roll()
    values = listed[name](roll, State(total=1))
    assert values.shape in (roll.rewards.shape, roll.loss_mask.shape)
    assert values.isfinite().all()
    assert listed is REWARDS or (values >= 0).all()


@pytest.mark.parametrize("name", ADVANTAGES)
def test_advantages_are_blind_to_padding_and_finite_at_extreme_log_probabilities(name):
    roll = some_roll()
    whole = spread(ADVANTAGES[name](roll, State(total=1)), roll)
    padded = pad_more(roll, 2)
    wide = spread(ADVANTAGES[name](padded, State(total=1)), padded)
    torch.testing.assert_close(wide[:, : whole.shape[1]], whole)
    for logp in (-1e4, -1e-9):
        ends = {"old_logps": torch.full_like(roll.loss_mask, logp)}
        extreme = replace(roll, token_facts={**roll.token_facts, **ends})
        assert ADVANTAGES[name](extreme, State(total=1)).isfinite().all()


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_blind_to_padding(name):
    roll, state = some_roll(), State(total=1)
    whole = spread(WEIGHTS[name](roll, state), roll)
    padded = pad_more(roll, 2, junk=-torch.inf)
    torch.testing.assert_close(
        spread(WEIGHTS[name](padded, state), padded)[:, : whole.shape[1]], whole
    )


@pytest.mark.parametrize("name", WEIGHTS)
def test_extreme_log_probabilities_give_finite_weights(name):
    for logp, sampler in itertools.product((-1e4, -1e-9), repeat=2):
        roll = some_roll()
        ends = {
            "old_logps": torch.full_like(roll.loss_mask, logp),
            "sampler_logps": torch.full_like(roll.loss_mask, sampler),
        }
        values = WEIGHTS[name](
            replace(roll, token_facts={**roll.token_facts, **ends}), State(total=1)
        )
        assert values.isfinite().all()


def spread(values: torch.Tensor, roll: Roll) -> torch.Tensor:
    """Per token, 0 on padding."""
    values = values if values.dim() > 1 else values[:, None].expand_as(roll.loss_mask)
    return torch.where(roll.loss_mask > 0, values, 0.0)


@pytest.mark.parametrize("name", METRICS)
def test_metrics_are_finite_and_blind_to_padding(name):
    plain = METRICS[name](some_roll(), State(total=1))
    padded = METRICS[name](pad_more(some_roll(), 2), State(total=1))
    assert plain == pytest.approx(padded)
    assert all(torch.tensor(value).isfinite() for value in plain.values())


@pytest.mark.parametrize("name", EDITS)
def test_edits_give_rows_that_were_sampled_each_once_and_unchanged(name):
    # three groups of the step, the second flat; new ones behind them for whatever is refilled
    rewards = [1, 0, 0.5, 1, 1, 1, 0, 0.25, None]
    groups = [g for g in range(3) for _ in range(3)]
    roll = make_roll(rewards, group=groups, lengths=[3, 1, 4, 2, 2, 3, 1, 1, 5])
    known = {**roll.token_facts, **needed_of(roll)}
    roll = replace(roll, text=[f"first {i}" for i in range(9)], token_facts=known)
    sampled = {text: roll.rows([i]) for i, text in enumerate(roll.text)}

    class Sampling:
        """Answers every request with a group of mixed rewards."""

        def requests(self, counts: Mapping[str, int]) -> list[Request]:
            return [Request(roll.problem[0])] * sum(counts.values())

        def given(self, requests: Sequence[Request], texts: object, source: str) -> Roll:
            return self.sample(requests)

        def pose(self, task: str, text: str) -> None:
            return None

        def sample(self, requests: Sequence[Request], *, aside: bool = False) -> Roll:
            parts = []
            for _ in requests:
                number = len(sampled)
                part = make_roll([0, 1, 1], group=[number] * 3, lengths=[2, 6, 1])
                part = replace(
                    part,
                    text=[f"later {number + i}" for i in range(3)],
                    token_facts={**part.token_facts, **needed_of(part)},
                )
                sampled.update({text: part.rows([i]) for i, text in enumerate(part.text)})
                parts.append(part)
            return Roll.cat(parts)

    edited = EDITS[name](roll, State(total=1), Sampling())
    assert len(edited) > 0
    assert (
        len(set(edited.text)) == len(edited.text) == len(edited.prompt_ids) == len(edited.loss_mask)
    )
    for i, text in enumerate(edited.text):
        row, was = edited.rows([i]), sampled[text]
        n = int(was.lengths())
        paid = (row.rewards, row.scored) == (was.rewards, was.scored)
        assert row.group == was.group
        assert paid or name in PAYS_ROLES
        assert (row.prompt_ids, row.problem) == (was.prompt_ids, was.problem)
        assert torch.equal(row.response_ids[:, :n], was.response_ids[:, :n])
        # an edit may cut an answer, not lengthen it
        assert (row.loss_mask[:, :n] <= was.loss_mask[:, :n]).all()
        assert (row.loss_mask[:, n:] == 0).all()


def test_dynamic_sampling_drops_and_adds_whole_groups():
    roll = make_roll([1, 0, 0.5, 1, 1, 1], group=[0, 0, 0, 1, 1, 1])
    fresh = make_roll([0, 0, 0, 0, 1, None], group=[2, 2, 2, 3, 3, 3])

    class Sampling:
        def requests(self, counts: Mapping[str, int]) -> list[Request]:
            return []

        def sample(self, requests: Sequence[Request]) -> Roll:
            return fresh

    edited = EDITS["dynamic_sampling"](roll, State(total=1), Sampling())
    assert edited.group.tolist() == [0, 0, 0, 3, 3, 3]
    assert edited.rewards.tolist() == [1, 0, 0.5, 0, 1, 0]


@pytest.mark.parametrize("term", TERM_VARIANTS)
def test_padding_changes_neither_loss_nor_gradient(term):
    roll = some_roll()
    wide = pad_more(roll, 3)
    logp = (roll.old_logps + 0.1).requires_grad_(True)
    padded = torch.cat([logp, torch.full((len(roll), 3), -1e30, dtype=torch.float64)], 1)
    losses = term(live_of(term, roll, logp), roll, State(total=1))
    wide_losses = term(live_of(term, wide, padded), wide, State(total=1))
    torch.testing.assert_close(
        wide_losses[:, : roll.loss_mask.shape[1]] * roll.loss_mask, losses * roll.loss_mask
    )
    (grad,) = torch.autograd.grad((losses * roll.loss_mask).sum(), logp, retain_graph=True)
    (wide_grad,) = torch.autograd.grad((wide_losses * wide.loss_mask).sum(), logp)
    torch.testing.assert_close(grad, wide_grad)


@pytest.mark.parametrize(
    "term", [p for p in TERM_VARIANTS if p.values[0].entry.scales_with_advantage]
)
def test_no_advantage_means_no_loss_and_no_gradient(term):
    roll = replace(some_roll(), advantages=torch.zeros_like(some_roll().advantages))
    logp = (roll.old_logps + 0.7).requires_grad_(True)
    losses = term(live_of(term, roll, logp), roll, State(total=1))
    (grad,) = torch.autograd.grad(losses.sum(), logp)
    assert (losses == 0).all()
    assert (grad == 0).all()


@pytest.mark.parametrize("term", TERM_VARIANTS)
@pytest.mark.parametrize("logp", [-1e4, -1e-9, 0.0])
@pytest.mark.parametrize("other", [-1e4, -1e-9])
def test_extreme_log_probabilities_stay_finite(term, logp, other):
    roll = some_roll()
    extreme = torch.full_like(roll.loss_mask, other, dtype=torch.float32)
    roll = replace(
        roll,
        advantages=roll.advantages.float(),
        loss_mask=roll.loss_mask.float(),
        token_facts=dict.fromkeys(roll.token_facts, extreme),
    )
    live = torch.full_like(extreme, logp).requires_grad_(True)
    losses = term(live_of(term, roll, live), roll, State(total=1))
    (grad,) = torch.autograd.grad(losses.sum(), live)
    assert losses.isfinite().all()
    assert grad.isfinite().all()


@pytest.mark.parametrize("term", TERM_VARIANTS)
def test_junk_at_masked_positions_is_masked_before_exp(term):
    roll = pad_more(some_roll(), 1, junk=-torch.inf)
    logp = torch.where(roll.loss_mask > 0, -1.0, torch.inf).double().requires_grad_(True)
    losses = term(live_of(term, roll, logp), roll, State(total=1))
    (grad,) = torch.autograd.grad((losses * roll.loss_mask).sum(), logp)
    assert losses.isfinite().all()
    assert grad.isfinite().all()
