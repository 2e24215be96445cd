"""The LM head over response tokens: log p and facts of the logits, chunk by chunk, with the scalings that models have."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from trainorder import llama
from trainorder.likelihood import likelihood
from trainorder.prefix import shares_prefixes
from trainorder.rl import facts
from trainorder.rl.states import backbone, states_of
from trainorder.workers import WIDE_TOKENS, in_pieces

if TYPE_CHECKING:
    from trainorder.rl.forward import Targets


CHUNK_ENTRIES = 2**21
"""Logits alive at one time on a CPU (8 MiB in float32): about a cache, small beside the activations."""
CHUNK_TOKENS = 256
"""Tokens that a chunk has at least, so that a large vocabulary's head is not read once per few tokens."""


def chunk_entries_of(model: Any, device: torch.device) -> int:
    """Logits that exist at one time.

    It is of all memory, not of what is free: the size of a chunk changes last bits, and a resumed run must repeat them.
    """
    gpu = device.type == "cuda"
    memory = torch.cuda.get_device_properties(device).total_memory if gpu else None
    vocabulary = model.get_output_embeddings().weight.shape[0]
    return chunk_entries_for(vocabulary, memory, pieces=in_pieces(model))


def chunk_entries_for(vocabulary: int, gpu_memory: int | None, *, pieces: bool = False) -> int:
    """A GPU gives a 64th of its memory to logits and what softmax and backward hold beside them, 16 bytes an entry.

    With `pieces` (`workers.in_pieces`) a chunk holds all logits of a micro-batch, so that our kernels do not compute them twice.
    """
    tokens = WIDE_TOKENS if pieces else CHUNK_TOKENS
    return max(CHUNK_ENTRIES, tokens * vocabulary, (gpu_memory or 0) // 64 // 16)


@dataclass(frozen=True)
class Head:
    """The LM head over chunks of targets, with the facts that are computed from its logits."""

    model: Any
    functions: Mapping[str, Callable[..., Tensor]]
    """Need -> its function; `entropy` comes with log p."""
    others: Mapping[str, tuple[Any, Float[Tensor, "target hidden"]]]
    """Need -> the frozen model that it compares with, and this model's states."""
    entropy: bool

    @classmethod
    def of(
        cls, model: Any, needs: Collection[str], models: Mapping[str, Any], targets: Targets
    ) -> Head:
        """With the states of the frozen models that the needs name."""
        named = {need: name for need in needs if (name := facts.other_model(need)) is not None}
        states, others = (
            {},
            {name: models[name.removesuffix(facts.GOLD)] for name in named.values()},
        )
        with torch.no_grad():
            for name, other in others.items():
                batch, at = targets.batch, targets.at
                if name.endswith(facts.GOLD):
                    assert targets.informed is not None, (
                        "the roll has no prompts with the gold text"
                    )
                    batch, at = targets.informed
                states[name] = states_of(other, llama.kernels_for(other), batch, at.device)[at]
        return cls(
            model,
            {need: facts.of_head(need) for need in needs if need != "entropy"},
            {need: (others[name], states[name]) for need, name in named.items()},
            "entropy" in needs,
        )

    def __call__(
        self,
        states: Float[Tensor, "target hidden"],
        targets: Int[Tensor, " target"],
        temperature: float | Tensor,
        chunk_entries: int,
    ) -> tuple[Float[Tensor, " target"], dict[str, Tensor]]:
        """Log p of the targets, and the facts."""
        size = max(1, chunk_entries // self.model.get_output_embeddings().weight.shape[0])
        cuts = [slice(i, i + size) for i in range(0, max(1, len(targets)), size)]

        def piece(states: Tensor, cut: slice) -> dict[str, Tensor]:
            warmth = temperature[cut] if isinstance(temperature, Tensor) else temperature
            scores = _warmed(_logits(self.model, states), warmth)
            logps, entropies = likelihood(scores, targets[cut], entropy=self.entropy)
            found = {"": logps} if entropies is None else {"": logps, "entropy": entropies}
            for need, function in self.functions.items():
                others = []
                if need in self.others:
                    other, known = self.others[need]
                    with torch.no_grad():
                        others.append(_warmed(_logits(other, known[cut]), warmth))
                found[need] = function(scores, targets[cut], *others)
            return found

        if len(cuts) > 1 and torch.is_grad_enabled():
            done = [
                checkpoint(piece, states[cut], cut, use_reentrant=False, preserve_rng_state=False)
                for cut in cuts
            ]
        else:
            done = [piece(states[cut], cut) for cut in cuts]
        joined = {name: torch.cat([part[name] for part in done]) for name in done[0]}
        return joined.pop(""), joined


def check_forward(model: Any) -> None:
    """Compare with the model's own logits: an unknown kind of LM head cannot go unnoticed.

    Raises:
        ValueError: this model's head is more than a matrix and the known scalings.
    """
    with torch.no_grad():
        ids = torch.arange(4, device=model.get_input_embeddings().weight.device)[None]
        ours = _logits(model, backbone(model)(input_ids=ids, use_cache=False)[0])
        theirs = model(input_ids=ids, use_cache=False).logits.to(ours.dtype)
    _check_equal(model, ours, theirs)
    shares_prefixes(model, 1)  # tried now, while all weights are in this process


def check_head(model: Any) -> None:
    """`check_forward` for a model without weights: the same scalings over made-up states and a head of a few tokens.

    A model whose forward needs more weights than those of its backbone and head is not judged.

    Raises:
        ValueError: as `check_forward`.
    """
    from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

    body, head = backbone(model), model.get_output_embeddings()
    few, width = torch.nn.Linear(head.weight.shape[1], 8), head.weight.shape[1]
    states: Any = 10 * torch.randn(1, 4, width, generator=torch.Generator().manual_seed(0))
    body.forward = lambda *_, **__: BaseModelOutputWithPastAndCrossAttentions(
        last_hidden_state=states
    )
    model.set_output_embeddings(few)
    try:
        with torch.no_grad():
            theirs = model(input_ids=torch.arange(4)[None], use_cache=False).logits
            ours = _logits(model, states)
    except (RuntimeError, AttributeError):  # a tensor without values, another kind of output
        return
    finally:
        model.set_output_embeddings(head)
        del body.forward
    if not (ours.is_meta or theirs.is_meta):  # the forward met a weight without values
        _check_equal(model, ours, theirs.to(ours.dtype))


def _check_equal(model: Any, ours: Tensor, theirs: Tensor) -> None:
    if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3):
        raise ValueError(
            f"{type(model).__name__} computes its logits in a way trainorder/rl/head.py "
            f"does not know (off by {(ours - theirs).abs().max():.2g}): teach `_logits` its head"
        )


def _warmed(logits: Tensor, temperature: float | Tensor) -> Tensor:
    if isinstance(temperature, float) and temperature == 1:
        return logits
    return logits / temperature


def _logits(model: Any, states: Tensor) -> Tensor:
    """The LM head with the known scalings: Granite divides, Cohere multiplies, Gemma caps."""
    config = model.config
    logits = model.get_output_embeddings()(states)
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    if (divisor := getattr(config, "logits_scaling", None)) is not None:
        logits = logits / divisor
    if (factor := getattr(config, "logit_scale", None)) is not None:
        logits = logits * factor
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits
