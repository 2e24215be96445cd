"""What a need of a piece costs: of one batch beside a training forward and backward, or of a whole step beside one without it.

    python -m benchmarks.needs_cost                 # facts of the head, of attention, hidden states
    python -m benchmarks.needs_cost --steps         # the parent's log-probabilities, spans, what is known of problems, a teacher, looks
    python -m benchmarks.needs_cost --presets       # a step of every preset beside GRPO's, into benchmarks/step_costs.csv

A random Llama of the default experiment's size, one thread, two minutes of CPU time in all. Every need is timed in turn, several rounds; CPU seconds,
of which the fewest count, so that other work on the machine matters little. `before` is the forward without grad that fills the
roll; `live` what the training forward and backward take more. A step is timed with a metric that does nothing but
need, and a look at a batch of problems as an item sampler makes it.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks import measured
from trainorder.config import PhaseConfig, PolicyConfig, RlConfig, parse_params
from trainorder.config.presets import presets
from trainorder.data import build
from trainorder.files import write_text
from trainorder.policy import Policy
from trainorder.rewards import grading
from trainorder.rl.attention import attention_entropy
from trainorder.rl.catalog import asks_teacher, config_of
from trainorder.rl.facts import ANSWERS, HEAD_FACTS, KNOWN, REFERENCE, SPANS
from trainorder.rl.forward import forward
from trainorder.rl.learner import Learner
from trainorder.rl.looks import LOOKS, looking
from trainorder.rl.registry import METRICS, REWARDS, Entry
from trainorder.rl.rollouts import StepRollouts
from trainorder.rl.step import rl_step
from trainorder.rl.trainer import make_learner
from trainorder.rl.types import Roll, State
from trainorder.tasks.base import Problem

ROWS, GROUP, PROMPT, ANSWER, VOCABULARY, ROUNDS = 64, 8, 24, 32, 640, 7
PROMPTS, PROBLEMS, STEP_ROUNDS = 4, 32, 15
SIZE = PolicyConfig(hidden_size=64, num_layers=3, num_heads=2, mlp_size=192, max_positions=192)
PARENT = Path("checkpoints/s0")
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
    """Job -> its fewest CPU seconds, all in turn."""
    best = dict.fromkeys(jobs, float("inf"))
    for _ in range(rounds):
        for name, job in jobs.items():
            start = time.process_time()
            job()
            best[name] = min(best[name], time.process_time() - start)
    return best


def batches() -> None:
    """Print what the needs of one batch cost."""
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


def uneven(roll: Roll, state: State) -> Float[Tensor, " row"]:
    """Whether the first token's number is even: a random policy is never right, and equal rewards train nothing."""
    return (roll.response_ids[:, 0] % 2 == 0).to(roll.rewards)


def learner_of(needs: tuple[str, ...] = (), **method: Any) -> Learner:
    """One phase of math from the random parent, with a metric that needs `needs`; a teacher where one answers.

    The policy hardly moves, so that all learners sample the same answers.
    """
    METRICS["needing"] = Entry("metric", "needing", lambda roll, state: {}, frozenset(needs))
    REWARDS["uneven"] = Entry("reward", "uneven", uneven)
    chosen = {**method, "metric": ["needing"], "reward": ["uneven"]}
    rl = RlConfig.model_validate(
        {"prompts_per_step": PROMPTS, "group_size": GROUP, "lr": 1e-12, "method": chosen}
    )
    phase = PhaseConfig(kind="structured", tasks={"math": 1.0}, steps=99)
    teacher = PARENT if "plan" in method else None
    return make_learner(PARENT, "math", phase, rl, 0, teacher=teacher)


def steps() -> None:
    """Print what the needs of a whole step, and looks at problems, cost."""
    learners = {
        "none": learner_of(),
        **{need: learner_of((need,)) for need in (REFERENCE, SPANS, KNOWN)},
        ANSWERS: learner_of(plan=["ask_teacher"]),
    }
    asked = make_learner(
        PARENT,
        "math",
        PhaseConfig(kind="structured", tasks={"math": 1.0}, steps=99),
        RlConfig.model_validate({"prompts_per_step": PROMPTS, "group_size": GROUP, "items": "learnability_gap"}),
        0,
        teacher=PARENT,
    )  # fmt: skip
    states = {name: State(total=99, key=(0, "math")) for name in learners}
    problems = asked.task_set.problems["math"][:PROBLEMS]

    def look(name: str) -> Callable[[], None]:
        def job() -> None:
            with torch.no_grad():
                rollouts = StepRollouts(asked, State(total=99, key=(0, "math")), defaultdict(float))
                looking(asked, rollouts)(name, problems)

        return job

    def step(name: str) -> Callable[[], None]:
        def job() -> None:
            rl_step(learners[name], states[name])

        return job

    jobs = {name: step(name) for name in learners} | {name: look(name) for name in LOOKS}
    found = fastest(jobs, STEP_ROUNDS)
    whole = found["none"]
    print("| need | a step with it |\n|---|---|")
    for need in learners:
        if need != "none":
            print(f"| `{need}` | {found[need] / whole:.2f} |")
    print(f"\n| look | at {PROBLEMS} problems |\n|---|---|")
    for name in LOOKS:
        print(f"| `{name}` | {found[name] / whole:.2f} |")
    print(
        f"\nShares of a step without needs ({whole:.2f} CPU seconds, {PROMPTS} prompts x {GROUP} answers of at most {ANSWER} tokens)."
    )


def of_preset(name: str) -> Callable[[], None]:
    """A step of a preset at its own settings from the random parent, on two tasks where it weighs tasks."""
    chosen = presets()[name]
    rl = config_of(chosen)
    paid = ["uneven" if piece == "graded" else piece for piece in rl.method.reward]
    method = rl.method.model_copy(
        update={"reward": paid if "uneven" in paid else [*paid, "uneven"]}
    )
    size = rl.group_size if "group_size" in chosen.settings else GROUP
    changes = {"prompts_per_step": PROMPTS, "group_size": size, "lr": 1e-12, "method": method}
    tasks = {"math": 1.0, "qa": 1.0} if chosen.tasks > 1 else {"math": 1.0}
    phase = PhaseConfig(kind="structured", tasks=tasks, steps=99)
    teacher = PARENT if asks_teacher(chosen) else None
    learner = make_learner(PARENT, name, phase, rl.model_copy(update=changes), 0, teacher=teacher)
    state = State(total=99, key=(0, "math"))

    def job() -> None:
        rl_step(learner, state)

    return job


def step_costs() -> None:
    """Write what a step of every preset costs beside GRPO's: medians over rounds of the ratio to GRPO's step just before."""
    REWARDS["uneven"] = Entry("reward", "uneven", uneven)
    lines = ["method,cost"]
    for name in presets():
        pair, ratios = [of_preset(measured.REFERENCE), of_preset(name)], list[float]()
        for _ in range(STEP_ROUNDS // 3):
            times = []
            for job in pair:
                start = time.process_time()
                job()
                times.append(time.process_time() - start)
            ratios.append(times[1] / times[0])
        lines.append(f"{name},{median(ratios[1:]):.2f}")
        print(lines[-1], flush=True)
    write_text(measured.STEP_COSTS, "\n".join([*lines, ""]))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", action="store_true", help="whole steps and looks")
    parser.add_argument("--presets", action="store_true", help="a step of every preset")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not (arguments.steps or arguments.presets):
        batches()
        return
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        task = {"train": 64, "dev": 2, "test": 2, "demonstrations": 200, "max_new_tokens": ANSWER}
        phase = {"kind": "structured", "tasks": {"math": 1.0}, "steps": 1}
        params = parse_params(
            {
                "tasks": {"math": task, "qa": task},
                "phases": {"math": phase},
                "orders": {"one": ["math"]},
            }
        )
        build(params)
        grading.configure(params.grading)
        Policy.build_tiny(SIZE, "data/tokenizer", 0).save(PARENT)
        step_costs() if arguments.presets else steps()


if __name__ == "__main__":
    main()
