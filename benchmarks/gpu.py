"""The RL step, sampling, evaluation, SFT and a judge on a GPU, beside TRL and vLLM where they are installed.

    python -m benchmarks.gpu                        # random Llamas of the sizes of Qwen2.5-0.5B and 1.5B
    python -m benchmarks.gpu --models 0.5B --sides ours,trl
    python -m benchmarks.gpu --tiny                 # the same code on a CPU, with a model of a few thousand weights

Work: 64 prompts x 8 answers, 256 + 512 tokens, all of them drawn (the end token is out of reach), bfloat16 over float32 weights.
Every side runs in a process of its own. One JSON line per measured repeat: seconds by the clock with the device idle before and
after, tokens per second, the most memory that torch held, and the share of what this device reached in bfloat16 products of
8,192 x 8,192 just before. Useful arithmetic is 2 FLOP per weight of a matrix and token forward and 4 more backward; padding,
attention and recomputing do not count. At the end the ratios of medians, theirs / ours.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainorder.config import EvaluationConfig, RlConfig, RolloutConfig, SftConfig, TrainingConfig
from trainorder.device import precision
from trainorder.policy import Policy
from trainorder.pretrained import import_transformers
from trainorder.tasks.base import Problem

EOS, PAD, WARM_UP = 1, 0, 1


@dataclass(frozen=True)
class Work:
    """Shapes of a model (width, layers, heads, key/value heads, mlp), and what it is given."""

    model: tuple[int, int, int, int, int]
    vocabulary: int = 151_936
    prompts: int = 64
    group: int = 8
    prompt: int = 256
    answer: int = 512
    micro_batch_tokens: int = 16_384
    lines: int = 32
    """Texts of an update of SFT, of prompt + answer tokens."""
    edge: int = 8192
    """Rows and columns of the products that measure the peak."""


WORKS = {
    "0.5B": Work((896, 24, 14, 2, 4864)),
    "1.5B": Work((1536, 28, 12, 2, 8960)),
    "tiny": Work((32, 2, 4, 2, 64), 128, 2, 2, 8, 8, 64, 4, 128),
}
NEEDS = {
    "ours vllm": ["vllm"],
    "trl": ["trl"],
    "trl vllm": ["trl", "vllm"],
    "vllm": ["vllm"],
}
"""Packages of a side beyond ours."""
RATIOS = [
    ("step", "trl", "ours"),
    ("step", "trl vllm", "ours vllm"),
    ("step", "trl vllm", "ours"),
    ("generate", "hf generate", "ours"),
    ("generate", "vllm", "ours"),
]


def main(arguments: list[str] | None = None) -> int:
    """Exit code 2 where there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU: does it run?")
    parser.add_argument("--models", default="0.5B,1.5B", help="of 0.5B and 1.5B")
    parser.add_argument("--sides", default=",".join(SIDES), help="only these")
    parser.add_argument("--repeats", type=int, default=3, help="measured, after one that is not")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if not given.tiny and not torch.cuda.is_available():
        print(
            "error: no GPU was found (torch.cuda.is_available() is false), so nothing was measured: run this on a machine "
            "with one, or `python -m benchmarks.gpu --tiny`, which only shows that it runs",
            file=sys.stderr,
        )
        return 2
    unknown = [side for side in given.sides.split(",") if side not in SIDES]
    models = ["tiny"] if given.tiny else given.models.split(",")
    if unknown or not {*models} <= {*WORKS}:
        parser.error(f"--sides are of {', '.join(SIDES)}; --models of 0.5B, 1.5B")
    if given.side:
        for line in measured(given.side, WORKS[models[0]], given.folder, given.repeats):
            print(json.dumps(line), flush=True)
        return 0
    for model in models:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / model
            write_model(WORKS[model], folder)
            compare(model, folder, given)
    return 0


def compare(model: str, folder: Path, given: argparse.Namespace) -> None:
    """Every side on one model, then the ratios."""
    device = "cpu" if given.tiny else torch.cuda.get_device_name()
    about = {"model": model, "device": device, "torch": torch.__version__}
    taken: dict[str, list[dict[str, Any]]] = {}
    for side in given.sides.split(","):
        missing = [name for name in NEEDS.get(side, []) if importlib.util.find_spec(name) is None]
        if missing or (given.tiny and side in NEEDS):
            why = f"not installed: {', '.join(missing)}" if missing else "not on a CPU"
            print(json.dumps({**about, "side": side, "left_out": why}), flush=True)
            continue
        if given.tiny:  # a process each would mostly import
            lines = list(measured(side, WORKS[model], folder, given.repeats))
        else:
            lines = _in_a_process(side, model, folder, given.repeats)
        taken[side] = lines
        for line in lines:
            print(json.dumps({**about, "side": side, **line}), flush=True)
    for part, theirs, ours in RATIOS:
        sides = [[x[part] for x in taken.get(side, []) if part in x] for side in (theirs, ours)]
        if all(sides):
            ratio = statistics.median(sides[0]) / statistics.median(sides[1])
            line = {"ratio": f"{part}: {theirs} / {ours}", "value": round(ratio, 2)}
            print(json.dumps({**about, **line}), flush=True)


def _in_a_process(side: str, model: str, folder: Path, repeats: int) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "benchmarks.gpu", "--side", side, "--models", model]
    command += ["--folder", str(folder), "--repeats", str(repeats)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return [*lines, {"failed": done.stderr[-2000:]}] if done.returncode else lines


def measured(side: str, work: Work, folder: Path, repeats: int) -> Iterator[dict[str, Any]]:
    """A line per repeat of a side."""
    device = "cuda" if torch.cuda.is_available() and work is not WORKS["tiny"] else "cpu"
    peak = peak_flops(device, work.edge)
    if device == "cuda":  # what the products above held is not the side's
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    runs = SIDES[side](work, folder, device, repeats + WARM_UP)
    for number, line in enumerate(runs):
        if number >= WARM_UP:
            flop, seconds = line.pop("flop", 0.0), line.get("step", line.get("generate", 0.0))
            line["peak_tflops"] = round(peak / 1e12, 4)
            line["share_of_peak"] = round(flop / seconds / peak, 4) if flop else None
            if device == "cuda":
                line["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
            yield line


def peak_flops(device: str, edge: int) -> float:
    """FLOP per second of the fastest of ten bfloat16 products of edge x edge matrices."""
    a, b = (torch.randn(edge, edge, device=device, dtype=torch.bfloat16) for _ in range(2))
    a @ b
    return 2 * edge**3 / min(_seconds(device, lambda: a @ b) for _ in range(10))


def _seconds(device: str, function: Callable[[], Any]) -> float:
    """By the clock, the device idle before and after."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def write_model(work: Work, folder: Path) -> None:
    """A random Llama whose end token is never drawn, and a tokenizer of numbered words.

    Qwen2 would be that with biases; transformers gives a Qwen2's folder its own tokenizer, whatever lies there.
    """
    transformers = import_transformers()
    from tokenizers import Tokenizer, models, pre_tokenizers

    names = {_word(i): i for i in range(work.vocabulary)}
    words = Tokenizer(models.WordLevel(names, unk_token=_word(2)))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokens = {"pad_token": _word(PAD), "eos_token": _word(EOS), "unk_token": _word(2)}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, padding_side="left", **tokens
    ).save_pretrained(folder)
    width, layers, heads, shared, mlp = work.model
    config = transformers.LlamaConfig(
        vocab_size=work.vocabulary, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=shared, intermediate_size=mlp, tie_word_embeddings=False,
        max_position_embeddings=4 * (work.prompt + work.answer), pad_token_id=PAD, eos_token_id=EOS, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():  # the first entry of every state is alike and decides about the end
        model.model.embed_tokens.weight[:, 0] = 1.0
        model.lm_head.weight[:, 0] = 0.0
        model.lm_head.weight[[PAD, EOS]] = 0.0
        model.lm_head.weight[[PAD, EOS], 0] = -100.0
    model.save_pretrained(folder)


def _texts(work: Work, count: int, length: int, seed: int) -> list[str]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, work.vocabulary, (count, length), generator=generator)
    return [" ".join(map(_word, row)) for row in ids.tolist()]


def _word(number: int) -> str:
    """Of one length: none is part of another."""
    return f"w{number:06d}"


def _problems(work: Work, steps: int = 1) -> list[Problem]:
    prompts = _texts(work, steps * work.prompts, work.prompt, 0)
    answers = _texts(work, steps * work.prompts, work.answer - 1, 1)
    pairs = enumerate(zip(prompts, answers, strict=True))
    return [Problem(f"bench/{i}", "bench", a, None, b) for i, (a, b) in pairs]


def _weights(policy: Policy) -> int:
    """Weights that a token is multiplied with."""
    table = policy.model.get_input_embeddings().weight.numel()
    return sum(p.numel() for p in policy.model.parameters() if p.dim() > 1) - table


def _ours(
    work: Work, folder: Path, device: str, repeats: int, backend: str = "torch"
) -> Iterator[dict[str, Any]]:
    from benchmarks.rl_step_sides import Counting
    from trainorder.rl.learner import Learner
    from trainorder.rl.method import Method
    from trainorder.rl.problems import TaskSet
    from trainorder.rl.step import rl_step
    from trainorder.rl.trainer import make_backend
    from trainorder.rl.types import State
    from trainorder.rollout import make_engine

    policy, training = Policy.load(folder).to(device), TrainingConfig(dtype="bf16")
    config = RlConfig(
        prompts_per_step=work.prompts, group_size=work.group, lr=1e-6, micro_batch_tokens=work.micro_batch_tokens
    )  # fmt: skip
    tasks = TaskSet(
        {"bench": 1.0},
        {"bench": Counting()},
        {"bench": _problems(work, repeats)},
        {"bench": work.answer},
    )
    engine: Any = make_engine(RolloutConfig(backend=backend), policy, training.dtype)
    spent = [0.0]
    generate = engine.generate

    def timed(*given: Any, **named: Any) -> Any:
        found = []
        spent[0] += _seconds(device, lambda: found.append(generate(*given, **named)))
        return found[0]

    engine.generate = timed
    backend_of = make_backend(policy.model, config, training)
    method = Method.from_config(config.method)
    learner = Learner(
        policy, engine, tasks, method, config, backend_of, {}, "bench", 0, exact=False
    )
    state, weights = State(total=repeats), _weights(policy)
    read = work.prompts * work.prompt
    for _ in range(repeats):
        spent[0], log = 0.0, dict[str, float]()
        seconds = _seconds(device, lambda log=log: log.update(rl_step(learner, state)))
        flop = 8 * weights * (read + log["rollout/tokens"])
        yield {
            "step": seconds, "generate": spent[0], "tokens_per_second": log["rollout/tokens"] / seconds,
            "mean_length": log["rollout/tokens"] / (work.prompts * work.group), "flop": flop,
        }  # fmt: skip


def _trl(
    work: Work, folder: Path, device: str, repeats: int, vllm: bool = False
) -> Iterator[dict[str, Any]]:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from benchmarks.rl_step_sides import reward

    transformers, lines = import_transformers(), list[dict[str, Any]]()
    read, drawn = work.prompts * work.prompt, work.prompts * work.group * work.answer

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            torch.cuda.synchronize()
            self.start = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            torch.cuda.synchronize()
            seconds = time.perf_counter() - self.start
            lines.append({"step": seconds, "tokens_per_second": drawn / seconds})

    rows = 16
    options = GRPOConfig(
        output_dir=str(folder / "trl"), per_device_train_batch_size=rows, num_generations=work.group,
        gradient_accumulation_steps=work.prompts * work.group // rows, max_completion_length=work.answer, max_steps=repeats,
        bf16=True, beta=0.0, report_to=[], save_strategy="no", learning_rate=1e-6, optim="adamw_torch_fused",
        gradient_checkpointing=False, disable_tqdm=True, logging_steps=10**6, use_vllm=vllm,
        **({"vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.3} if vllm else {}),
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=str(folder), reward_funcs=lambda completions, **_: [reward(c) for c in completions], args=options,
        train_dataset=Dataset.from_list([{"prompt": p.text} for p in _problems(work, repeats)]), callbacks=[Clock()],
    )  # fmt: skip
    trainer.train()
    weights = _weights(Policy.load(folder))
    yield from ({**line, "flop": 8 * weights * (read + drawn)} for line in lines)


def _hf_generate(work: Work, folder: Path, device: str, repeats: int) -> Iterator[dict[str, Any]]:
    policy = Policy.load(folder).to(device)
    policy.model.to(torch.bfloat16)
    options = {"max_new_tokens": work.answer, "do_sample": True, "top_k": 0, "pad_token_id": PAD}
    ids = torch.tensor(policy.encode_prompts([p.prompt for p in _problems(work)]), device=device)
    rows = ids.repeat_interleave(work.group, 0)
    for _ in range(repeats):
        with torch.no_grad():
            seconds = _seconds(device, lambda: policy.model.generate(rows, **options))
        drawn = len(rows) * work.answer
        yield _sampling(work, seconds, drawn, _weights(policy))


def _vllm(work: Work, folder: Path, device: str, repeats: int) -> Iterator[dict[str, Any]]:
    from vllm import LLM, SamplingParams

    engine, weights = LLM(str(folder), dtype="bfloat16"), _weights(Policy.load(folder))
    asked = [p.text for p in _problems(work)]
    for seed in range(repeats):
        sampling = SamplingParams(n=work.group, max_tokens=work.answer, logprobs=0, seed=seed)
        seconds = _seconds(
            device, lambda sampling=sampling: engine.generate(asked, sampling, use_tqdm=False)
        )
        yield _sampling(work, seconds, len(asked) * work.group * work.answer, weights)


def _sampling(work: Work, seconds: float, drawn: int, weights: int) -> dict[str, Any]:
    flop = 2 * weights * (work.prompts * work.prompt + drawn)
    return {"generate": seconds, "tokens_per_second": drawn / seconds, "flop": flop}


def _evaluation(work: Work, folder: Path, device: str, repeats: int) -> Iterator[dict[str, Any]]:
    """Two answers and the likeliest to each problem, and the entropy along its reference."""
    from benchmarks.rl_step_sides import Counting
    from trainorder.evaluation.answering import Exam, answer

    policy, problems = Policy.load(folder).to(device), _problems(work)
    exam: Any = Exam("bench", "test", Counting(), problems, work.answer)  # type: ignore[arg-type]
    config = EvaluationConfig(samples=2)
    tokens = len(problems) * (3 * work.answer + work.prompt + work.prompt + work.answer)
    for _ in range(repeats):
        seconds = _seconds(device, lambda: answer(policy, [exam], config, dtype="bf16"))
        yield {
            "step": seconds,
            "tokens_per_second": tokens / seconds,
            "flop": 2 * _weights(policy) * tokens,
        }


def _sft(work: Work, folder: Path, device: str, repeats: int) -> Iterator[dict[str, Any]]:
    """Updates of AdamW on texts of prompt + answer tokens."""
    from trainorder.sft.lines import demonstration_lines
    from trainorder.sft.updates import Run
    from trainorder.workers import ALONE

    policy = Policy.load(folder).to(device)
    config = SftConfig(optimizer="adamw", lr=1e-6, micro_batches=max(1, work.lines // 4))
    run = Run(policy, config, ALONE, "bf16")
    pairs = [{"prompt": p.prompt, "completion": p.reference} for p in _problems(work)]
    lines = demonstration_lines(policy, pairs[: work.lines], 0.1)  # type: ignore[arg-type]
    tokens = sum(len(line.ids) for line in lines)
    for _ in range(repeats):
        seconds = _seconds(device, lambda: run.update(lines, 1.0))
        flop = 6 * _weights(policy) * tokens
        yield {"step": seconds, "tokens_per_second": tokens / seconds, "flop": flop}


def _judge(work: Work, folder: Path, device: str, repeats: int) -> Iterator[dict[str, Any]]:
    """Win probabilities of the group's answers to each prompt against its reference."""
    from trainorder.judges.preference import Judge

    judge = Judge.start(folder, 0).to(device)
    problems = [p for p in _problems(work) for _ in range(work.group)]
    answers = _texts(work, len(problems), work.answer - 1, 2)
    prompts, references = [p.text for p in problems], [p.reference or "" for p in problems]
    rows = work.prompts * (work.group + 1)
    matrices = sum(p.numel() for p in judge.model.base_model.layers.parameters() if p.dim() > 1)
    tokens = rows * (work.prompt + work.answer)
    for _ in range(repeats):
        with precision(device, "bf16"):
            seconds = _seconds(device, lambda: judge.win_probability(prompts, answers, references))
        yield {
            "step": seconds,
            "tokens_per_second": tokens / seconds,
            "flop": 2 * matrices * tokens,
        }


SIDES: dict[str, Callable[..., Iterator[dict[str, Any]]]] = {
    "ours": _ours,
    "ours vllm": lambda *given: _ours(*given, backend="vllm"),
    "trl": _trl,
    "trl vllm": lambda *given: _trl(*given, vllm=True),
    "hf generate": _hf_generate,
    "vllm": _vllm,
    "evaluation": _evaluation,
    "sft": _sft,
    "judge": _judge,
}


if __name__ == "__main__":
    sys.exit(main())
