"""Small Llama models on a CPU, computed by ourselves: exact, and about twice as fast as their module code.

`kernels.c` does in one pass what torch does in several, `training.py` is the forward with gradient, `texts.py` loss and gradient of
whole texts without autograd, `decoder.py` samples.
Everything else in trainorder takes any model of transformers; this package is a faster way for one family, chosen by
`kernels_for`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from trainorder.llama import kernels
from trainorder.llama.kernels import Kernels


def is_plain_llama(model: Any) -> bool:
    """A float32 Llama on the CPU, a language model or a judge, with nothing changed.

    Neither adapters nor quantisation, and not split over ranks (ZeRO-3).
    """
    if type(model).__name__ not in ("LlamaForCausalLM", "LlamaForSequenceClassification"):
        return False
    modules = list(model.modules())  # walked once: this is asked several times in a step
    linear = [m for m in modules if isinstance(m, nn.Linear)]
    weights = [p for m in modules for p in m._parameters.values() if p is not None]
    return (
        model.config.hidden_act == "silu"
        and model.model.rotary_emb.rope_type in ("default", "linear", "llama3", "yarn")
        and all(type(m) is nn.Linear and m.bias is None for m in linear)
        and len(linear) == 1 + 7 * model.config.num_hidden_layers
        and all(p.dtype == torch.float32 and p.device.type == "cpu" for p in weights)
        and all(p.numel() == math.prod(getattr(p, "ds_shape", p.shape)) for p in weights)
    )


def kernels_for(model: Any) -> Kernels | None:
    """The kernels, where they can compute this model: float32 throughout, so not under autocast."""
    if torch.is_autocast_enabled("cpu"):
        return None
    found, _ = kernels.load()
    even = (
        found is not None
        and is_plain_llama(model)
        and model.model.layers[0].self_attn.head_dim % 2 == 0
    )
    return found if even and not getattr(model, "is_gradient_checkpointing", False) else None
