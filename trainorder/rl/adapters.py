"""LoRA adapters inside the policy: added in place, so the model keeps its class, and merged where weights leave it."""

from __future__ import annotations

import copy
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainorder.adapters import FILES, base_of, load_adapter, save_adapter
from trainorder.config import LoraConfig
from trainorder.files import writing_folder
from trainorder.reading import ParamsError
from trainorder.streams import seed_of

BASE = ".base_layer."
ADAPTER = re.compile(r"\.lora_(?:A|B|embedding_A|embedding_B|magnitude_vector)\.")


def add_adapters(model: Any, config: LoraConfig, seed: int) -> None:
    """Freeze the weights and add adapters whose product begins at zero.

    Raises:
        ParamsError: no module of the model is called like one of `training.lora.target`.
    """
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    names = {
        name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, nn.Linear)
    }
    if config.target != "all-linear" and (unknown := sorted(set(config.target) - names)):
        raise ParamsError(
            f"training.lora.target: the model has no linear layer {', '.join(unknown)}; "
            f"it has {', '.join(sorted(names))}"
        )
    head = model.get_output_embeddings()
    targets = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module is not head
        and (config.target == "all-linear" or name.rpartition(".")[2] in config.target)
    ]
    if not targets:
        raise ParamsError(
            "training.lora.target names the head only, which takes no adapter: add another layer"
        )
    alpha: Any = config.alpha  # peft takes fractions too
    settings = PeftConfig(r=config.rank, lora_alpha=alpha, target_modules=targets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("lora", seed))
        inject_adapter_in_model(settings, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(ADAPTER.search(f".{name}") is not None)


def continue_adapters(model: Any, parent: Path, config: LoraConfig) -> None:
    """Put the adapter of a LoRA node into the one that `add_adapters` made.

    Raises:
        ParamsError: it has another rank, alpha or target than `config`, or is damaged.
    """
    tensors, known = load_adapter(parent)
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    same = {name: p.shape for name, p in own.items()} == {n: t.shape for n, t in tensors.items()}
    if not same or known["lora_alpha"] != config.alpha:
        raise ParamsError(
            f"{parent} holds an adapter of rank {known['r']} and alpha {known['lora_alpha']:g} on {len(tensors) // 2} layers, "
            f"training.lora asks for rank {config.rank} and alpha {config.alpha:g} on {len(own) // 2}: train {parent.name} "
            f"again, or give training.lora its settings"
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])


def sharing_base(model: Any) -> Any:
    """A frozen copy of an adapted model that shares all weights but the adapters'."""
    shared = [p for p in model.parameters() if not p.requires_grad]
    memo: dict[int, Any] = {id(tensor): tensor for tensor in [*shared, *model.buffers()]}
    return copy.deepcopy(model, memo).requires_grad_(False)


def with_adapter_of(model: Any, node: Path, config: LoraConfig) -> Any | None:
    """`sharing_base` with the adapter of another node on this base; None where that has another shape."""
    tensors, known = load_adapter(node)
    other = sharing_base(model)
    own = {n: p for n, p in other.named_parameters() if ADAPTER.search(f".{n}")}
    same = {n: p.shape for n, p in own.items()} == {n: t.shape for n, t in tensors.items()}
    if not same or known["lora_alpha"] != config.alpha:
        return None
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])
    return other


def save_node(out: Path, parent: Path, tensors: Mapping[str, Tensor], config: LoraConfig) -> None:
    """Write a LoRA node whole: the adapter, and the small files of its parent; then rename it into place."""
    targets = sorted({name.partition(".lora_A.")[0] for name in tensors if ".lora_A." in name})
    with writing_folder(out) as new:
        ignore = shutil.ignore_patterns("*.safetensors", "*.safetensors.index.json", *FILES)
        shutil.copytree(parent, new, ignore=ignore, dirs_exist_ok=True)
        fields = {"r": config.rank, "lora_alpha": config.alpha, "target_modules": targets}
        save_adapter(new, base_of(parent), tensors, fields)


def has_adapters(model: Any) -> bool:
    """Whether `add_adapters` was called on it."""
    return any(ADAPTER.search(f".{name}") for name, _ in model.named_parameters())


def merged(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Weights under their Hugging Face names, each adapter added to the weight that it adapts: W + alpha / rank * B A."""
    adapted = {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    for name, weight in model.state_dict(keep_vars=True).items():
        if ADAPTER.search(f".{name}"):
            continue
        weight = weight.detach()
        if BASE in name and name.endswith(".weight"):
            module = adapted[name.removesuffix(f"{BASE}weight")]
            weight = weight + module.get_delta_weight("default").detach().to(weight.dtype)
        yield name.replace(BASE, "."), weight
