"""Small real things for the tests of the RL step: rolls written by hand and tiny random models."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from trainorder.config import MethodConfig, RlConfig, TrainingConfig
from trainorder.rl import facts
from trainorder.rl.backend import LocalBackend
from trainorder.rl.forward import forward
from trainorder.rl.method import Bound, Method, bind
from trainorder.rl.registry import SLOTS
from trainorder.rl.step import accumulate, give_credit
from trainorder.rl.types import Roll, State
from trainorder.tasks.base import Problem


def make_roll(
    reward: Sequence[float | None],
    group: Sequence[int] | None = None,
    *,
    lengths: Sequence[int] | None = None,
    tasks: Sequence[str] | None = None,
    **fields: Any,
) -> Roll:
    """A float64 roll; one group and one token per row unless told otherwise, None = ungradable."""
    rows = len(reward)
    lengths = lengths or [1] * rows
    width = max(lengths)
    mask = torch.tensor([[1.0] * n + [0.0] * (width - n) for n in lengths], dtype=torch.float64)
    names = tasks or ["sums"] * rows
    values = torch.tensor([0.0 if r is None else r for r in reward], dtype=torch.float64)
    roll = Roll(
        prompt_ids=[[1, 2]] * rows,
        response_ids=torch.ones_like(mask, dtype=torch.long),
        loss_mask=mask,
        group=torch.tensor(group or [0] * rows),
        rewards=values,
        scored=torch.tensor([r is not None for r in reward]),
        advantages=torch.zeros_like(mask),
        weights=torch.ones_like(mask),
        problem=[Problem(f"{name}/{i}", name, "?", "1", "1") for i, name in enumerate(names)],
        text=["1"] * rows,
        row_facts={
            "graded": values,
            "finished": torch.ones_like(values),
            "temperature": torch.ones_like(values),
            "limit": torch.full_like(values, 8.0),
            "strict": torch.full_like(values, torch.nan),
        },
        token_facts={
            name: torch.zeros_like(mask)
            for name in ("old_logps", "sampler_logps", "entropy", "ref_logps")
        },
    )
    return replace(roll, **fields)


def variants(slot: str, name: str) -> list[Bound]:
    """A piece with its defaults, with every other value of a switch, and with every word of an option that is one of several."""
    function, bounds = SLOTS[slot][name].function, [bind(slot, name)]
    for key, hint in inspect.get_annotations(function, eval_str=True).items():
        words = [word for word in getattr(hint, "__args__", ()) if isinstance(word, str)]
        switched = [not bounds[0].options[key]] if hint is bool else []
        bounds += [bind(slot, {name: {key: value}}) for value in (*words, *switched)]
    return bounds


TEXTS = ["let me check <think> a </think> <answer> 7 </answer>", "Wait, 7", '{"answer": 7}', "7", "But </think> 8", "8"]  # fmt: skip
SPANS = ("char_start", "char_end")


def with_facts(roll: Roll, needs: Collection[str]) -> Roll:
    """The roll with random values of `needs` where it has none, texts that pieces read, and what requests asked."""
    noise = torch.Generator().manual_seed(4)
    shape = roll.loss_mask.shape

    def draw(*more: int) -> Tensor:
        return torch.rand(*shape, *more, generator=noise, dtype=torch.float64)

    known = {"old_logps": -2 * draw(), **roll.token_facts}
    known.setdefault("sampler_logps", known["old_logps"] + 0.01 * draw())
    for need in sorted(set(needs) - {facts.SPANS, facts.ANSWERS, facts.KNOWN}):
        count = need.partition(":")[2] if need.startswith("top_logps") else "3" * (need == "hidden")
        known.setdefault(need, draw(*([int(count)] if count else [])))
    if facts.SPANS in needs:
        start = torch.arange(shape[1]).expand(shape).contiguous() * 5
        known |= dict(zip(SPANS, (start, start + 5), strict=True))
    budget = {"asked/budget": torch.full_like(roll.rewards, 6.0)}
    return replace(
        roll,
        token_facts=known,
        row_facts={**roll.row_facts, **budget},
        text=[f"{TEXTS[i % 6]}{' ' * (i // 6)}" for i in range(len(roll))],
        informed_ids=[[*ids, 5] for ids in roll.prompt_ids],
        advantages=draw() - 0.5,
    )


def pad_more(roll: Roll, columns: int, junk: float = -1e30) -> Roll:
    """The same rollouts with more padding, filled with junk that must not matter."""
    rows = len(roll)

    def wide(values: Tensor, fill: float) -> Tensor:
        padding = torch.full((rows, columns, *values.shape[2:]), fill, dtype=torch.float64)
        return torch.cat([values, padding.to(values.dtype)], 1)

    return replace(
        roll,
        response_ids=wide(roll.response_ids, 3),
        loss_mask=wide(roll.loss_mask, 0),
        advantages=wide(roll.advantages, 0),
        weights=wide(roll.weights, 1),
        token_facts={name: wide(values, junk) for name, values in roll.token_facts.items()},
    )


def tiny_llama(vocab: int = 23, *, seed: int = 0, layers: int = 2, width: int = 16) -> Any:
    """A random Llama, of 10 thousand weights unless it is wider; the global generator is left alone."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def exact(model: Any) -> Any:
    """In float64 throughout: transformers' RMSNorm computes in float32, torch's does not."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                norm = torch.nn.RMSNorm(child.weight.shape, eps=child.variance_epsilon)
                norm.weight = child.weight
                setattr(module, name, norm)
    return model.double()


def model64() -> Any:
    """A random Llama in float64."""
    return exact(tiny_llama())


def off_policy_roll(model: Any) -> Roll:
    """Three groups (one flat, one with an ungradable row), old logps a little off the live ones."""
    reward = [1, 0, 0.5, 0, 0.25, 0.25, 0.25, 1, None, 0]
    lengths = [4, 1, 6, 3, 2, 2, 5, 3, 4, 1]
    roll = make_roll(reward, group=[0] * 4 + [1] * 3 + [2] * 3, lengths=lengths)
    noise = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 23, roll.loss_mask.shape, generator=noise)
    prompts = [[3 + g, *range(g + 1)] for g in roll.group.tolist()]
    roll = replace(roll, response_ids=ids, prompt_ids=prompts)
    roll.row_facts["finished"][3] = 0
    roll.row_facts["source"] = torch.tensor([0.0, 1, 0, 1, 0, 0, 1, 0, 0, 1])  # 1: an expert's
    with torch.no_grad():
        logp = forward(model, roll).logps
    shift = torch.randn(roll.loss_mask.shape, generator=noise, dtype=torch.float64) * roll.loss_mask
    return replace(
        roll,
        token_facts={
            "old_logps": logp + 0.2 * shift,
            "ref_logps": logp - 0.3 * shift,
            "entropy": logp.abs(),
        },
    )


def gradient(
    model: Any,
    roll: Roll,
    config: MethodConfig,
    *,
    budget: int = 10_000,
    models: Mapping[str, Any] | None = None,
) -> tuple[dict[str, float], list[Tensor]]:
    """Logged means and gradient of one update by these rows, in micro-batches of `budget` tokens."""
    method, state = Method.from_config(config), State(total=1)
    roll = give_credit(roll, method, state)
    log = accumulate(
        model,
        roll,
        method,
        state,
        budget=budget,
        max_length={"sums": 8},
        backend=LocalBackend(model, RlConfig(), TrainingConfig()),
        models=models,
    )
    return log, [p.grad.clone() for p in model.parameters()]
