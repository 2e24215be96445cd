"""What every method does on the embedded testbed, against GRPO on the same problems.

    python -m benchmarks.method_outcomes entropy            # trains what is missing, then prints the table
    python -m benchmarks.method_outcomes entropy --table    # the table of what is there; trains nothing
    python -m benchmarks.method_outcomes entropy --write    # also keeps the numbers; `python -m benchmarks.methods_page` writes them into the docs

`entropy` are the methods that control it, in a math and a creative phase; `others` all others, in the math phase; `several`
those for several tasks. Each method is a variant in a params file, each phase trained from the same base under three seeds:
an ordinary run (`trainorder run --params`), which goes on where it was ended. Creative answers are scored by the judge that
did not give their rewards. What a step of a method that controls entropy costs is measured afterwards, in turn with GRPO's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml

from benchmarks import measured, published
from stages.rl import rewarding
from trainorder import paths
from trainorder.config import DEFAULT, load_params
from trainorder.config.presets import Preset, presets
from trainorder.files import read_jsonl, write_json
from trainorder.measure.evidence import metric_means
from trainorder.rewards import grading
from trainorder.rl import catalog
from trainorder.rl.step import rl_step
from trainorder.rl.trainer import make_learner
from trainorder.rl.types import State

SEEDS = measured.SEEDS
REFERENCE = measured.REFERENCE
COSTS = Path("reports/entropy_costs.json")
COST_STEPS = 4
"""Steps of each method that are timed, after one that is not."""
LEFT_OUT = {"entropy_law": "changes nothing"}
"""Methods that are not measured, and why."""
MATH_ONLY = dict.fromkeys(
    ("rmt", "entropy_sft"), "on creative, whose problems have no worked answer"
)
"""Those that are in the math phase's table only, and why: the variant's creative phase is one step of GRPO."""
PHASES = {
    "math": "{kind: structured, tasks: {math: 1}, steps: 40}",
    "creative": "{kind: creative, tasks: {creative: 1}, steps: 40}",
    "math_qa": "{kind: structured, tasks: {math: 1, qa: 1}, steps: 40}",
}


@dataclass(frozen=True)
class Table:
    """Methods that one params file trains beside GRPO."""

    params: str
    title: str
    phases: tuple[str, ...]
    holds: Callable[[Preset], bool]
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Methods that the tables lack, in all phases or one, and why."""

    def methods(self, phase: str | None = None) -> list[Preset]:
        """The methods, or those that are measured in a phase, GRPO first."""
        out = LEFT_OUT | (MATH_ONLY if phase == "creative" else {})
        own = [p for p in presets().values() if self.holds(p) and p.name not in out]
        return [presets()[REFERENCE], *(p for p in own if p.name != REFERENCE)]


TABLES = {
    "entropy": Table(
        "configs/entropy_controls.yaml",
        "Every method that controls entropy beside GRPO: a math and a creative phase",
        ("math", "creative"),
        lambda preset: preset.family == "entropy",
        LEFT_OUT | MATH_ONLY,
    ),
    "others": Table(
        "configs/other_methods.yaml",
        "Every method that is not made to control entropy beside GRPO: a math phase",
        ("math",),
        lambda preset: preset.family != "entropy" and preset.tasks == 1,
    ),
    "several": Table(
        "configs/several_tasks.yaml",
        "Methods for several tasks beside GRPO: a phase of math and qa",
        ("math_qa",),
        lambda preset: preset.tasks > 1,
    ),
}


def params_text(name: str) -> str:
    """The params file of a table."""
    table = TABLES[name]
    variants = []
    for chosen in table.methods()[1:]:
        teacher = {"teacher": "s{seed}--math"} if catalog.asks_teacher(chosen) else {}
        rl = catalog.flow({"rl": {**teacher, "method": {"preset": chosen.name}}})
        only = f"{{phases: {{math: {rl}, creative: {{steps: 1}}}}}}"
        variants += [f"  {chosen.name}: {only if chosen.name in MATH_ONLY else rl}"]
    return "\n".join(
        [
            f"# {table.title} from the same bases, three seeds.",
            f"# Written by `python -m benchmarks.methods_page`; run and tabulated by `python -m benchmarks.method_outcomes {name}`.",
            measured.POLICY,
            "tasks:",
            "  math:     {train: 3000, dev: 64, test: 128, max_new_tokens: 48, demonstrations: 10000, drills: 8000}",
            "  code:     {train: 3000, dev: 64, test: 128, max_new_tokens: 48, demonstrations: 5000}",
            "  qa:       {train: 1500, dev: 64, test: 128, max_new_tokens: 48, demonstrations: 3500, drills: 2000, options: {distractors: 4}}",
            "  creative: {train: 3000, dev: 64, test: 128, max_new_tokens: 48, demonstrations: 2500}",
            "sft: {per_seed: true, steps: 750, gate: {math: 0.9, code: 0.85, qa: 0.7}}",
            "judge: {task: creative, prompts: 600, answers: 4}",
            "rl: {prompts_per_step: 8, group_size: 8, lr: 3.0e-4, method: {preset: grpo}}",
            "phases:",
            *(f"  {phase}: {PHASES[phase]}" for phase in table.phases),
            f"orders: {{{', '.join(f'{phase}: [{phase}]' for phase in table.phases)}}}",
            "variants:",
            *variants,
            *measured.ENDING,
        ]
    )


@dataclass(frozen=True)
class Outcome:
    """One trained checkpoint."""

    score: float
    """Mean test score of the tasks that were trained."""
    entropy: float
    """Change of the rollouts' entropy, nats per 100 steps, by least squares over the steps."""
    others: float
    """Mean over the other tasks of test score minus that of the base."""


def node_of(method: str, phase: str, seed: int) -> str:
    """The plan's name of the checkpoint.

    >>> node_of("grpo", "math", 0), node_of("siren", "math", 1)
    ('s0--math', 's1--siren--math')
    """
    return f"s{seed}--{phase}" if method == REFERENCE else f"s{seed}--{method}--{phase}"


def outcome(method: str, phase: str, seed: int) -> Outcome | None:
    """What evaluation and records of a checkpoint say; None where one is missing."""
    node, base = node_of(method, phase, seed), f"s{seed}"
    log = paths.run(node) / "metrics.jsonl"
    if not (log.is_file() and all(paths.evaluation(n).is_file() for n in (node, base))):
        return None
    after, before = scores(node), scores(base)
    steps = [row for row in read_jsonl(log) if row.get("rollout/entropy") is not None]
    at = np.array([[row["step"], row["rollout/entropy"]] for row in steps])
    slope = float(np.polyfit(at[:, 0], at[:, 1], 1)[0]) if len(at) > 1 else 0.0
    trained = yaml.safe_load(PHASES[phase])["tasks"]
    return Outcome(
        mean(after[task] for task in trained),
        100 * slope,
        mean(after[task] - before[task] for task in after if task not in trained),
    )


def scores(node: str) -> dict[str, float]:
    """Task -> mean test score."""
    table = pd.read_parquet(paths.evaluation(node))
    return metric_means(table, "test")[node]["score"]


def step_costs(table: Table, phase: str) -> dict[str, float]:
    """Method -> CPU time of a step against GRPO's, each method's steps in turn with GRPO's, all from the first base."""
    params, base = load_params(table.params), paths.checkpoint(f"s{SEEDS[0]}")
    grading.configure(params.grading)
    torch.set_num_threads(1)

    def stepper(method: str) -> Callable[[], float]:
        changed = params.variant(DEFAULT if method == REFERENCE else method)
        chosen, rl = changed.phases[phase], changed.phase_rl(phase)
        rl = rl.model_copy(update={"threads": 1})
        judges = rewarding(changed, chosen.tasks)
        learner = make_learner(base, phase, chosen, rl, SEEDS[0], judges=judges)
        state = State(total=chosen.steps, key=(SEEDS[0], phase))

        def step() -> float:
            start = time.process_time()
            rl_step(learner, state)
            return time.process_time() - start

        return step

    found: dict[str, float] = {}
    for chosen in table.methods(phase):
        pair = [stepper(REFERENCE), stepper(chosen.name)]
        times = [[step() for step in pair] for _ in range(1 + COST_STEPS)][1:]
        grpo, own = (median(column) for column in zip(*times, strict=True))
        found[chosen.name] = own / grpo
    return found


def numbers(table: Table) -> list[measured.Measured]:
    """What was measured of every method of a table in every phase that is there, for benchmarks/method_outcomes.csv."""
    rows = []
    costs = json.loads(COSTS.read_text(encoding="utf-8")) if COSTS.is_file() else {}
    for phase in table.phases:
        found: dict[str, dict[int, Outcome]] = {}
        for chosen in table.methods(phase):
            for seed in SEEDS:
                if one := outcome(chosen.name, phase, seed):
                    found.setdefault(chosen.name, {})[seed] = one
        for name, by_seed in found.items():
            cost = costs.get(phase, {}).get(name)
            rows.append(_compared(phase, name, by_seed, found.get(REFERENCE, {}), cost))
    return rows


def _compared(
    phase: str,
    name: str,
    by_seed: Mapping[int, Outcome],
    reference: Mapping[int, Outcome],
    cost: float | None,
) -> measured.Measured:
    """A method's means over seeds, and its differences to the reference of the same seed."""
    cells: dict[str, Any] = {}
    for key in measured.MEASURES:
        cells[key] = round(mean(getattr(one, key) for one in by_seed.values()), 3)
        pairs = [
            getattr(one, key) - getattr(reference[seed], key)
            for seed, one in by_seed.items()
            if name != REFERENCE and seed in reference
        ]
        cells[f"{key}_minus"], cells[f"{key}_se"] = measured.mean_and_error(pairs)
    cost = None if cost is None else round(cost, 2)
    cells |= {"version": version(), "grpo": cells["score"]}
    if reference:
        cells["grpo"] = round(mean(one.score for one in reference.values()), 3)
    return measured.Measured(phase=phase, method=name, seeds=len(by_seed), cost=cost, **cells)


def version() -> str:
    """The commit of this folder; empty where it has none."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()


def missing(table: Table) -> list[str]:
    """Checkpoints that are not trained and evaluated yet."""
    every = [
        (m.name, phase, s) for phase in table.phases for m in table.methods(phase) for s in SEEDS
    ]
    return [node_of(*one) for one in every if outcome(*one) is None]


def names(table: Table) -> set[tuple[str, str]]:
    """Phase and method of every row that a table keeps; GRPO's of a phase are kept by the first table that has the phase."""
    first = {phase: one for one in reversed(TABLES.values()) for phase in one.phases}
    return {
        (phase, chosen.name)
        for phase in table.phases
        for chosen in table.methods(phase)
        if chosen.name != REFERENCE or first[phase] is table
    }


def findings(page: str) -> str:
    """docs/findings.md with the tables of the kept numbers between their markers."""
    for title, chosen in {
        "entropy controls": ["entropy"],
        "other methods": ["others", "several"],
    }.items():
        own = set().union(*(names(TABLES[name]) for name in chosen))
        rows = [row for row in measured.read() if (row.phase, row.method) in own]
        text = measured.tables(rows, TABLES[chosen[0]].left_out)
        page = published.between(page, title, text)
    return page


def main() -> int:
    """Train what is missing, time a step of each method, print the table; the exit code of the run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("methods", choices=list(TABLES))
    parser.add_argument("--table", action="store_true", help="train nothing")
    parser.add_argument(
        "--write", action="store_true", help=f"keep the numbers in {measured.NUMBERS.name}"
    )
    arguments = parser.parse_args()
    table, code = TABLES[arguments.methods], 0
    if not arguments.table:
        code = published.train(table.params)
        if code == 0 and arguments.methods == "entropy":
            write_json(COSTS, {phase: step_costs(table, phase) for phase in table.phases})
    rows = numbers(table)
    print(measured.tables(rows, table.left_out))
    if left := missing(table):
        print(f"Not trained yet: {len(left)} checkpoints, the first {left[0]}.")
    elif arguments.write:
        own = names(table)
        others = [row for row in measured.read() if (row.phase, row.method) not in own]
        measured.write([*others, *(row for row in rows if (row.phase, row.method) in own)])
        print(
            f"{measured.NUMBERS}: written; `python -m benchmarks.methods_page` puts it into the docs"
        )
    return code


if __name__ == "__main__":
    sys.exit(main())
