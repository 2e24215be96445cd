"""What choosing the next task, or the next problem of a task, gives on the embedded testbed, against drawing evenly.

    python -m benchmarks.samplers            # trains what is missing, then prints the tables
    python -m benchmarks.samplers --table    # the tables of what is there; trains nothing
    python -m benchmarks.samplers --write    # also writes configs/samplers.yaml and the tables in docs/findings.md

Every task sampler and curriculum has a phase over math and code, every item sampler and level curriculum one over math, whose
problems have chains of two to six numbers; all begin at the same base, under three seeds, with as many rollouts for the updates.
Looks at the pool cost more: the tables say how many tokens were sampled. An ordinary run (`trainorder run --params`), which
goes on where it was ended.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import mean

import trainorder.rl.pieces  # noqa: F401  fills both registries
from benchmarks import measured, published
from benchmarks.method_outcomes import scores
from trainorder import paths
from trainorder.files import read_jsonl, write_text
from trainorder.rl.curricula import CURRICULA
from trainorder.rl.items import ITEMS
from trainorder.rl.samplers import SAMPLERS

PARAMS = Path("configs/samplers.yaml")
SEEDS = measured.SEEDS
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
LEVELS = ("h1", "r3")
"""Presets that change what a problem is, level by level."""
BY_TOPIC = ("blocked", "blocked_curriculum", "interleaved", "interleaved_curriculum")
LEFT_OUT = {
    "weights": "even weights: `uniform`",
    "together": "`uniform`",
    **dict.fromkeys(BY_TOPIC, "math has one topic"),
}
"""Samplers and curricula that are not in the tables, and why."""


def on_tasks() -> dict[str, str]:
    """What has a row in the table of two tasks -> its RL settings, the reference first."""
    rows = {name: f"{{sampler: {name}}}" for name in ["uniform", *SAMPLERS]}
    rows["tac"] = f"{{sampler: tac, method: {ALIGNED}}}"
    rows |= {name: f"{{curriculum: {name}}}" for name in CURRICULA}
    return {name: rl for name, rl in rows.items() if name not in LEFT_OUT}


def on_items() -> dict[str, str]:
    """What has a row in the table of math's problems -> its RL settings, the reference first."""
    rows = {}
    for name in ["shuffled", *(name for name in ITEMS if name not in LEFT_OUT)]:
        rows[name] = f"{{items: {f'{{{name}: {{by: {BY[name]}}}}}' if name in BY else name}}}"
    rows["learnability_gap"] = "{items: learnability_gap, teacher: 's{seed}--items_shuffled'}"
    return rows | {name: f"{{method: {{preset: {name}}}}}" for name in LEVELS}


def phases() -> Iterator[tuple[str, str]]:
    """Name and line of every phase."""
    for kind, tasks, rows in (
        ("tasks", "{math: 1, code: 1}", on_tasks()),
        ("items", "{math: 1}", on_items()),
    ):
        for name, rl in rows.items():
            line = f"{{kind: structured, tasks: {tasks}, steps: {STEPS}, rl: {rl}}}"
            yield f"{kind}_{name}", line


def params_text() -> str:
    """configs/samplers.yaml."""
    every = list(phases())
    return "\n".join(
        [
            "# Every sampler of tasks and curriculum on math and code, every sampler of problems on math, against drawing evenly; three seeds.",
            "# Written by `python -m benchmarks.samplers --write`.",
            measured.POLICY,
            "tasks:",
            "  math: {train: 600, dev: 16, test: 128, max_new_tokens: 48, demonstrations: 10000, drills: 8000}",
            "  code: {train: 3000, dev: 16, test: 128, max_new_tokens: 48, demonstrations: 5000}",
            "  qa:   {train: 1500, dev: 16, test: 128, max_new_tokens: 48, demonstrations: 3500, drills: 2000, options: {distractors: 4}}",
            "sft: {steps: 750, gate: {math: 0.9, code: 0.85, qa: 0.7}}",
            "rl: {prompts_per_step: 8, group_size: 8, lr: 3.0e-4, method: {preset: grpo}}",
            "phases:",
            *(f"  {name}: {line}" for name, line in every),
            "orders:",
            *(f"  {name}: [{name}]" for name, _ in every),
            *measured.ENDING,
        ]
    )


def table(kind: str, names: Iterable[str], trained: tuple[str, ...]) -> Iterator[str]:
    """A table in Markdown: every row against the first of the names, paired by seed."""
    first, *_ = names
    yield f"| {kind} | {' and '.join(trained)} | minus `{first}` | other tasks | minus `{first}` | tokens sampled |"
    yield "|---|---|---|---|---|---|"
    reference = _by_seed(f"{kind}_{first}", trained)
    for name in names:
        found = _by_seed(f"{kind}_{name}", trained)
        if not found:
            continue
        own, others, _ = (mean(column) for column in zip(*found.values(), strict=True))
        pairs = [(seen, reference[seed]) for seed, seen in found.items() if seed in reference]
        lead, kept = (_minus([a[i] - b[i] for a, b in pairs]) for i in (0, 1))
        tokens = f"{mean(a[2] / b[2] for a, b in pairs):.2f} x" if pairs else ""
        if name == first:
            lead = kept = ""
        yield f"| `{name}` | {own:.3f} | {lead} | {others:+.3f} | {kept} | {tokens} |"


def _minus(differences: Sequence[float]) -> str:
    difference, error = measured.mean_and_error(differences)
    spread = "" if error is None else f" (se {error:.3f})"
    return "" if difference is None else f"{difference:+.3f}{spread}"


def _by_seed(phase: str, trained: tuple[str, ...]) -> dict[int, tuple[float, float, float]]:
    """Seed -> test score of the trained tasks, change of the others from the base, tokens that were sampled."""
    found = {}
    for seed in SEEDS:
        node = f"s{seed}--{phase}"
        log = paths.run(node) / "metrics.jsonl"
        if not (log.is_file() and paths.evaluation(node).is_file()):
            continue
        after, before = scores(node), scores(paths.BASE)
        tokens = sum(row.get("rollout/tokens") or 0.0 for row in read_jsonl(log))
        others = mean(after[task] - before[task] for task in after if task not in trained)
        found[seed] = (mean(after[task] for task in trained), others, tokens)
    return found


def tables() -> str:
    """Both tables, and what is not in them."""
    lines = [*table("tasks", on_tasks(), ("math", "code")), ""]
    lines += [*table("items", on_items(), ("math",)), ""]
    names = ", ".join(f"`{name}` ({why})" for name, why in LEFT_OUT.items())
    lines += [
        f"Differences are paired by seed, with their standard error over seeds. Left out: {names}."
    ]
    return "\n".join(lines)


def main() -> int:
    """Train what is missing and print the tables; the exit code of the run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--table", action="store_true", help="train nothing")
    parser.add_argument(
        "--write", action="store_true", help=f"write {PARAMS} and {published.FINDINGS}"
    )
    arguments = parser.parse_args()
    if arguments.write:
        write_text(PARAMS, params_text())
    code = 0
    if not arguments.table:
        code = published.train(PARAMS)
    text = tables()
    print(text)
    if arguments.write and code == 0:
        published.publish("samplers", text)
    return code


if __name__ == "__main__":
    sys.exit(main())
