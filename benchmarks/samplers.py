"""What choosing the next task, or the next problem of a task, gives on the embedded testbed, against drawing evenly.

    python -m benchmarks.samplers            # trains what is missing, then prints the tables
    python -m benchmarks.samplers --table    # the tables of what is there; trains nothing
    python -m benchmarks.samplers --write    # also writes configs/samplers.yaml and the tables in docs/findings.md

Every task sampler has a phase over math and code, every item sampler one over math, whose problems have chains of two to six
numbers; all begin at the same base, under three seeds, with as many rollouts. An ordinary run (`trainorder run --params`),
which goes on where it was ended.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

import trainorder.rl.pieces  # noqa: F401  fills both registries
from benchmarks.entropy_controls import scores
from benchmarks.measured import mean_and_error
from trainorder import paths
from trainorder.files import read_jsonl, write_text
from trainorder.rl.items import ITEMS
from trainorder.rl.samplers import SAMPLERS

PARAMS = Path("configs/samplers.yaml")
PAGE = Path("docs/findings.md")
BEGIN, END = "<!-- samplers -->", "<!-- end of samplers -->"
SEEDS = (0, 1, 2)
STEPS = 40
BY = {
    "in_order": "length",
    "open_levels": "chain",
    "sec_buckets": "chain",
    "dump_buckets": "chain",
    "alp_buckets": "chain",
}
"""What an item sampler sorts or divides by, where its default would not do here."""
ALIGNED = (
    "{advantage: [grpo], terms: [clipped_surrogate, {kl: {coef: 0.001}}], reduction: sequence, "
    "metric: [task_alignment]}"
)
"""The preset grpo with the metric that `tac` reads."""
LEFT_OUT = {
    "weights": "even weights: `uniform`",
    "learnability_gap": "needs a teacher",
}
"""Samplers that are not in the tables, and why."""


def task_samplers() -> list[str]:
    """Those of the first table, the reference first."""
    return ["uniform", *(n for n in SAMPLERS if n not in LEFT_OUT and n != "uniform")]


def item_samplers() -> list[str]:
    """Those of the second table, the reference first."""
    return ["shuffled", *(n for n in ITEMS if n not in LEFT_OUT and n != "shuffled")]


def phases() -> Iterator[tuple[str, str]]:
    """Name and line of every phase."""
    for name in task_samplers():
        rl = f"{{sampler: {name}{f', method: {ALIGNED}' if name == 'tac' else ''}}}"
        yield (
            f"tasks_{name}",
            f"{{kind: structured, tasks: {{math: 1, code: 1}}, steps: {STEPS}, rl: {rl}}}",
        )
    for name in item_samplers():
        piece = f"{{{name}: {{by: {BY[name]}}}}}" if name in BY else name
        yield (
            f"items_{name}",
            f"{{kind: structured, tasks: {{math: 1}}, steps: {STEPS}, rl: {{items: {piece}}}}}",
        )


def params_text() -> str:
    """configs/samplers.yaml."""
    every = list(phases())
    return "\n".join(
        [
            "# Every sampler of tasks on math and code, every sampler of problems on math, against drawing evenly; three seeds.",
            "# Written by `python -m benchmarks.samplers --write`.",
            "policy: {hidden_size: 64, num_layers: 3, num_heads: 2, mlp_size: 192, max_positions: 192}",
            "tasks:",
            "  math: {train: 3000, dev: 16, test: 128, max_new_tokens: 48, demonstrations: 10000, drills: 8000}",
            "  code: {train: 3000, dev: 16, test: 128, max_new_tokens: 48, demonstrations: 5000}",
            "  qa:   {train: 1500, dev: 16, test: 128, max_new_tokens: 48, demonstrations: 3500, drills: 2000, options: {distractors: 4}}",
            "sft: {steps: 750, gate: {math: 0.9, code: 0.85, qa: 0.7}}",
            "rl: {prompts_per_step: 8, group_size: 8, lr: 3.0e-4, method: {preset: grpo}}",
            "phases:",
            *(f"  {name}: {line}" for name, line in every),
            "orders:",
            *(f"  {name}: [{name}]" for name, _ in every),
            f"seeds: {list(SEEDS)}",
            "allow_unequal_budgets: true",
            "evaluation: {samples: 4}",
            "measure: {bootstrap: 200}",
            "flow: {workers: 2}",
            "",
        ]
    )


def table(kind: str, names: list[str], trained: tuple[str, ...]) -> Iterator[str]:
    """A table in Markdown: every sampler against the first of the names, paired by seed."""
    yield f"| {kind} sampler | {' and '.join(trained)} | minus `{names[0]}` | other tasks | minus `{names[0]}` | reward of rollouts |"
    yield "|---|---|---|---|---|---|"
    found = {name: _by_seed(f"{kind}s_{name}", trained) for name in names}
    for name in names:
        if not found[name]:
            continue
        own, others, reward = (mean(column) for column in zip(*found[name].values(), strict=True))
        cells = [f"`{name}`", f"{own:.3f}", "", f"{others:+.3f}", "", f"{reward:.3f}"]
        if name != names[0]:
            for at, column in ((2, 0), (4, 1)):
                pairs = [
                    seen[column] - found[names[0]][seed][column]
                    for seed, seen in found[name].items()
                    if seed in found[names[0]]
                ]
                difference, error = mean_and_error(pairs)
                spread = "" if error is None else f" (se {error:.3f})"
                cells[at] = "" if difference is None else f"{difference:+.3f}{spread}"
        yield f"| {' | '.join(cells)} |"


def _by_seed(phase: str, trained: tuple[str, ...]) -> dict[int, tuple[float, float, float]]:
    """Seed -> test score of the trained tasks, change of the others from the base, mean reward of the rollouts."""
    found = {}
    for seed in SEEDS:
        node = f"s{seed}--{phase}"
        log = paths.run(node) / "metrics.jsonl"
        if not (log.is_file() and paths.evaluation(node).is_file()):
            continue
        after, before = scores(node), scores(paths.BASE)
        rows = [row["reward/mean"] for row in read_jsonl(log) if row.get("reward/mean") is not None]
        others = mean(after[task] - before[task] for task in after if task not in trained)
        found[seed] = (mean(after[task] for task in trained), others, mean(rows))
    return found


def tables() -> str:
    """Both tables, and what is not in them."""
    lines = [*table("task", task_samplers(), ("math", "code")), ""]
    lines += [*table("item", item_samplers(), ("math",)), ""]
    names = ", ".join(f"`{name}` ({why})" for name, why in LEFT_OUT.items())
    lines += [
        f"Differences are paired by seed, with their standard error over seeds. Left out: {names}."
    ]
    return "\n".join(lines)


def main() -> int:
    """Train what is missing and print the tables; the exit code of the run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--table", action="store_true", help="train nothing")
    parser.add_argument("--write", action="store_true", help=f"write {PARAMS} and {PAGE}")
    arguments = parser.parse_args()
    if arguments.write:
        write_text(PARAMS, params_text())
    code = 0
    if not arguments.table:
        command = [sys.executable, "-m", "trainorder.cli", "run", "--params", str(PARAMS)]
        code = subprocess.run(command, check=False).returncode
    print(tables())
    if arguments.write and code == 0:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        write_text(PAGE, f"{before}{BEGIN}\n{tables()}\n{END}{after}")
    return code


if __name__ == "__main__":
    sys.exit(main())
