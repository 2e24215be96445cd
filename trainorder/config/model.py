"""Sections about the model: what it is, what trains it, what samples from it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, JsonValue

from trainorder.config.values import (
    Batch,
    Betas,
    Name,
    OptimizerName,
    Positive,
    Rate,
    Section,
    Share,
    Steps,
    Threads,
)

VOCABULARY = 1000
"""About how many tokens the data build's own tokenizer has."""


class PolicyConfig(Section):
    """The model that is trained."""

    path: str | None = None
    """A causal LM to start from: a Hugging Face folder, a name on the hub, a GGUF file (`models/x.gguf`), or `package:NAME`, an
    installed Python package that holds one of these; null builds a tiny Llama from scratch with the sizes below."""
    hidden_size: int = Field(default=64, ge=8, le=65_536)
    """Width of the tiny model."""
    num_layers: int = Field(default=3, ge=1, le=1000)
    """Layers of the tiny model."""
    num_heads: int = Field(default=2, ge=1, le=1024)
    """Attention heads of the tiny model; divides hidden_size."""
    mlp_size: int = Field(default=192, ge=8, le=262_144)
    """Inner width of the tiny model's SwiGLU."""
    max_positions: int = Field(default=192, ge=16, le=1 << 20)
    """Longest prompt plus completion the tiny model can see, tokens."""
    trust_remote_code: bool = False
    """True: run Python code that a model brings along (`auto_map` in its config.json). Recorded in the manifest."""
    chat_template: str | None = None
    """File with a Jinja template in place of the tokenizer's own; null keeps that."""
    system: str | None = Field(default=None, min_length=1)
    """System message before prompts that have none; null: what the template says without one."""
    chat_template_kwargs: dict[str, JsonValue] = Field(default_factory=dict, max_length=32)
    """Variables of the template, e.g. `{enable_thinking: false}`. Template, system message and these are saved in every
    checkpoint's chat template, so that it is asked alike wherever it is loaded."""
    generation_config: Literal["end_tokens", "ignore"] = "end_tokens"
    """What of the model's generation_config.json counts. end_tokens: each end token that it lists ends an answer; ignore: the
    tokenizer's alone does. Its temperature, top_p and penalties never count: see rl.temperature and evaluation.temperature."""

    def results(self) -> dict[str, Any]:
        """What can change a checkpoint; how a model of the user's is asked only where params.yaml says something of it."""
        asked = ("chat_template", "system", "chat_template_kwargs", "generation_config")
        plain = {name for name in asked if getattr(self, name) == getattr(PLAIN_POLICY, name)}
        return self.model_dump(exclude=plain)

    def tiny_bytes(self, vocabulary: int = VOCABULARY) -> int:
        """Bytes of the tiny model's weights, in float32.

        >>> PolicyConfig(hidden_size=64, num_layers=3, mlp_size=192).tiny_bytes(500)
        768768
        """
        h = self.hidden_size
        per_layer = 4 * h * h + 3 * h * self.mlp_size + 2 * h
        return 4 * (vocabulary * h + self.num_layers * per_layer + h)


PLAIN_POLICY = PolicyConfig()


class SftConfig(Section):
    """Supervised warm-up from scratch until the skills that RL sharpens exist."""

    changes_nothing = frozenset({"threads", "per_seed", "when"})

    when: Literal["scratch", "always"] = "always"
    """scratch: only the built-in model is warmed up, and a model that `policy.path` names begins RL as it is, as where this section
    is left out; always: such a model too, at rates that fit it."""
    per_seed: bool = False
    """False: all seeds begin RL at one checkpoint, so that replicates are other runs from the same base: rollouts, order of
    problems, optimizer. True: a warm-up for each seed, so that they differ in their base too, at its cost per seed."""
    steps: Steps = 750
    """Updates before the gate is asked for the first time; the learning rate decays over these."""
    extension: Steps = 200
    """Further updates, with a new decay, each time the gate is not met."""
    extension_lr_fraction: float = Field(default=0.3, ge=1e-6, le=1)
    """Extensions begin at this share of the peak learning rates: the full rate would undo what is learned."""
    max_steps: Steps = 1750
    """Updates after which a gate that is still shut stops the run with an error."""
    gate: dict[Name, Share] = Field(default_factory=dict)
    """Greedy dev accuracy each named task must reach: RL on a skill the base lacks destroys it. Empty: no gate."""
    batch_size: Batch = 64
    """Demonstrations per update."""
    drill_batch_size: int = Field(default=45, ge=0, le=65_536)
    """Drill lines per update."""
    optimizer: OptimizerName = "muon"
    """muon: Muon for the weight matrices of the layers, AdamW for the rest; half the steps when training from scratch."""
    lr: Rate = 1.5e-2
    """Peak learning rate of AdamW."""
    muon_lr: Rate = 2e-2
    """Peak learning rate of Muon; it follows the same schedule. Unused by adamw."""
    final_lr_fraction: Share = 0.05
    """The cosine decay ends at this share of lr."""
    warmup_steps: int = Field(default=20, ge=0, le=10_000_000)
    """Updates of linear warm-up."""
    betas: Betas = Field(default=[0.9, 0.98])
    """AdamW betas."""
    weight_decay: float = Field(default=0.01, ge=0, le=10)
    """AdamW weight decay."""
    max_grad_norm: Positive = 1.0
    """Gradient norm bound."""
    prompt_weight: float = Field(default=0.1, ge=0, le=1)
    """Weight of prompt tokens in the loss, against 1 for the completion."""
    micro_batches: Batch = 4
    """Parts of a batch, by length; more of them take less memory. Part of the result (rounding), unlike threads."""
    threads: Threads = 2
    """Micro-batches computed side by side; changes the time, never the checkpoint."""


class SftPhaseConfig(Section):
    """Updates of a phase of `kind: sft`; the optimizer is fresh, the learning rate warms up and decays within the phase."""

    changes_nothing = frozenset({"threads"})

    batch_size: Batch = 16
    """Rows per update."""
    optimizer: OptimizerName = "adamw"
    """adamw, or muon for the weight matrices of the layers and AdamW for the rest."""
    lr: Rate = 1e-5
    """Peak learning rate of AdamW; adapters (training.lora) take about ten times as much."""
    muon_lr: Rate = 1e-3
    """Peak learning rate of Muon. Unused by adamw."""
    final_lr_fraction: Share = 0.1
    """The cosine decay ends at this share of lr."""
    warmup_steps: int = Field(default=5, ge=0, le=10_000_000)
    """Updates of linear warm-up."""
    betas: Betas = Field(default=[0.9, 0.95])
    """AdamW betas."""
    weight_decay: float = Field(default=0.0, ge=0, le=10)
    """AdamW weight decay."""
    max_grad_norm: Positive = 1.0
    """Gradient norm bound."""
    prompt_weight: float = Field(default=0.0, ge=0, le=1)
    """Weight of prompt tokens in the loss, against 1 for the completion."""
    micro_batches: Batch = 4
    """Parts of a batch, by length; more of them take less memory. Part of the result (rounding)."""
    threads: Threads = 1
    """Micro-batches computed side by side; changes the time, never the checkpoint."""

    def settings(self, steps: int) -> SftConfig:
        """The same as those of a warm-up of so many steps, without drills and without a gate."""
        return SftConfig(
            **self.model_dump(), steps=steps, max_steps=steps, drill_batch_size=0, gate={}
        )


class RolloutConfig(Section):
    """The engine that samples in RL phases, for judges and in evaluations. The gate of SFT uses the torch engine."""

    backend: Literal["torch", "vllm"] = "torch"
    """torch: in this process with the live weights. vllm: in this process too, weights pushed after every update."""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision vLLM computes in; auto is training.dtype. The torch engine samples in fp32."""
    max_model_len: int | None = Field(default=None, ge=16, le=1 << 20)
    """Longest prompt plus answer vLLM makes room for, tokens; null takes the model's own limit."""
    gpu_memory_share: float = Field(default=0.4, ge=0.01, lt=1)
    """Share of a GPU's memory for vLLM's weights and cache; the trainer needs the rest. Changes no result."""
    cpu_cache_gib: int = Field(default=1, ge=1, le=16_384)
    """Memory for vLLM's key/value cache where it runs on the CPU. Changes no result."""

    def results(self) -> dict[str, Any]:
        """What can change a checkpoint; vLLM's settings only where it samples."""
        if self.backend == "torch":
            return {"backend": "torch"}
        return self.model_dump(exclude={"gpu_memory_share", "cpu_cache_gib"})


class LoraConfig(Section):
    """Low-rank adapters (arXiv:2106.09685, by peft) in place of full weights; a node is its adapter on its base's weights."""

    rank: Batch = 16
    """Rank of the adapters."""
    alpha: Positive = 32.0
    """Their output is multiplied by alpha / rank."""
    target: list[str] | Literal["all-linear"] = "all-linear"
    """Module names that get an adapter, e.g. [q_proj, v_proj]; all-linear takes every linear layer but the head."""


class TrainingConfig(Section):
    """How RL phases compute updates. `device` and `dtype` hold for SFT, judges and evaluation too."""

    backend: Literal["local", "deepspeed"] = "local"
    """local: one process, plain torch. deepspeed: ZeRO over several ranks, started by the stage."""
    ranks: Threads = 1
    """Processes of the deepspeed backend on this machine, one per GPU; with a hostfile its slots count instead."""
    zero_stage: Literal[1, 2, 3] = 2
    """What ZeRO splits over the ranks: 1 optimiser state, 2 gradients too, 3 weights too (arXiv:1910.02054)."""
    hostfile: str | None = None
    """DeepSpeed hostfile (lines `host slots=8`): train on these machines, started by the deepspeed launcher."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """bf16: forward and backward in bfloat16 (autocast); weights, gradients and optimiser state stay fp32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where models compute; auto takes a GPU if there is one."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time, the same gradient."""
    lora: LoraConfig | None = None
    """Train adapters instead of all weights; null trains all."""

    def results(self) -> dict[str, Any]:
        """What can change a checkpoint; ZeRO's settings only where it trains."""
        machine = {"hostfile", "device", "gradient_checkpointing"}
        zero = {"ranks", "zero_stage"} if self.backend == "local" else set[str]()
        return self.model_dump(exclude=machine | zero)
