"""What a need of a piece costs: seconds of one batch's forward with it, beside a training forward and backward.

    python -m benchmarks.needs_cost                 # a random Llama of the default experiment's size, under a minute

Every need is timed in turn, several rounds, and the fastest of each counts, so that other work on the machine matters
little. `before` is the forward without grad that fills the roll; `live` what the training forward and backward take more.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from trainorder.rl.attention import attention_entropy
from trainorder.rl.facts import HEAD_FACTS
from trainorder.rl.forward import forward
from trainorder.rl.types import Roll
from trainorder.tasks.base import Problem

ROWS, GROUP, PROMPT, ANSWER, VOCABULARY, ROUNDS = 64, 8, 24, 32, 640, 7
ARGUMENTS = {"nucleus_entropy": ":0.8", "top_logps": ":5", "capped_forward_kl": ":reference:0.05"}


def model() -> Any:
    """A random Llama of the default experiment's shape."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=192,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def batch() -> Roll:
    """Random answers of equal length to random prompts."""
    noise = torch.Generator().manual_seed(0)
    ids = torch.randint(VOCABULARY, (ROWS, ANSWER), generator=noise)
    prompts = torch.randint(VOCABULARY, (ROWS // GROUP, PROMPT), generator=noise).tolist()
    mask = torch.ones(ROWS, ANSWER)
    return Roll(
        prompt_ids=[prompts[row // GROUP] for row in range(ROWS)],
        response_ids=ids,
        loss_mask=mask,
        group=torch.arange(ROWS) // GROUP,
        rewards=torch.zeros(ROWS),
        scored=torch.ones(ROWS, dtype=torch.bool),
        advantages=mask,
        weights=mask,
        problem=[Problem("none/0", "none", "?", None, None)] * ROWS,
        text=[""] * ROWS,
    )


def fastest(jobs: dict[str, Callable[[], None]], rounds: int = ROUNDS) -> dict[str, float]:
    """Job -> its shortest time in seconds, all in turn."""
    best = dict.fromkeys(jobs, float("inf"))
    for _ in range(rounds):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    policy, roll = model(), batch()
    models = {"reference": model()}

    def before(needs: list[str]) -> Callable[[], None]:
        def job() -> None:
            with torch.no_grad():
                forward(policy, roll, needs, models)

        return job

    def live(needs: list[str]) -> Callable[[], None]:
        def job() -> None:
            found = forward(policy, roll, needs, models)
            (found.logps.sum() + sum(values.sum() for values in found.facts.values())).backward()

        return job

    def watched() -> None:
        attention_entropy(policy, roll, 0.67)

    named = {
        f"{name}{ARGUMENTS.get(name, ':reference' if fact.other_model else '')}"
        for name, fact in HEAD_FACTS.items()
    }
    needs = [*sorted(named), "hidden"]
    jobs = {"train": live([]), "attention_entropy:0.67": watched}
    jobs |= {f"before {need}": before([need]) for need in needs}
    jobs |= {f"live {need}": live([need]) for need in needs if need != "hidden"}
    found = fastest(jobs)
    whole = found["train"]
    print("| need | before the update | live, on top |\n|---|---|---|")
    for need in needs:
        more = found.get(f"live {need}")
        on_top = "" if more is None else f"{max(0.0, more / whole - 1):.2f}"
        print(f"| `{need}` | {found[f'before {need}'] / whole:.2f} | {on_top} |")
    print(f"| `attention_entropy:0.67` | {found['attention_entropy:0.67'] / whole:.2f} | |")
    print(f"\nShares of a training forward and backward ({1000 * whole:.0f} ms for {ROWS} rows).")


if __name__ == "__main__":
    main()
