"""Nodes without weights of their own: adapters on a full-weight node, and the model of the user that an experiment begins at.

A LoRA node's folder has the adapter in peft's own format, and the full-weight node that it belongs on:

    adapter_config.json  adapter_model.safetensors      as peft writes and reads them
    base.json                                           folder of the base, and the hash of its weights
    config.json, tokenizer files                        copies of the base's small files

The node of a model as it is (`sft: null`):

    model.json                                          its name as in policy.path, and the hash of its weights
    config.json, generation_config.json, tokenizer files

Neither copies weights: loading reads them where they lie, and refuses what has changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainorder.files import write_json
from trainorder.reading import ParamsError
from trainorder.sources import content_of, locate

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "base.json"
MODEL = "model.json"
DECIDING = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "*.py",
)
"""Files beside the weights that decide what a model reads and says."""
FILES = (CONFIG, WEIGHTS, BASE, MODEL)
PREFIX = "base_model.model."
"""What peft puts before the names of the adapted model."""


def is_adapter_node(folder: Path) -> bool:
    """Whether `save_adapter` wrote this folder; a bare adapter of peft names no base that could be checked."""
    return (folder / BASE).is_file()


def is_model_node(folder: Path) -> bool:
    """Whether `save_model_node` wrote this folder."""
    return (folder / MODEL).is_file()


def weights_of(folder: Path) -> Path:
    """The folder that holds the full weights below a node: its own, its base's, or that of the user's model.

    Raises:
        ParamsError: it is missing, or has other weights than it had.
    """
    base = base_of(folder)
    if not is_model_node(base):
        return base
    name, then = _record(base / MODEL, "model")
    place = locate(name, weights=True)
    if weights_hash(place) != then:
        raise ParamsError(
            f"{base} is the model {name}, whose weights in {place} have changed since: restore them, or delete {base}, and "
            f"`trainorder run` begins at the model as it is now"
        )
    return place


def base_of(folder: Path) -> Path:
    """The node that an adapter belongs on; any other node itself.

    Raises:
        ParamsError: the base is missing, or has other weights than the adapter was trained on.
    """
    if not is_adapter_node(folder):
        return folder
    name, then = _record(folder / BASE, "base")
    base = Path(name)
    if not base.is_dir():
        raise ParamsError(
            f"{folder} is an adapter on {base}, which is missing: restore that node first"
        )
    if weights_hash(base) != then:
        raise ParamsError(
            f"{folder} is an adapter on {base}, whose weights have changed since: restore them, or train the node again"
        )
    return base


def _record(file: Path, key: str) -> tuple[str, str]:
    """What a node without weights names, and the hash of its weights."""
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        return str(known[key]), str(known["weights"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ParamsError(
            f"{file} cannot be read ({error}): delete {file.parent}, and `trainorder run` makes it again"
        ) from None


def weights_hash(path: Path | str) -> str:
    """sha256 over a node's weights: model.safetensors, or its shards in the order of their names.

    Of a LoRA node: over its adapter and the record of its base. Of a user's model: as it was when its node was made.
    """
    folder = Path(path)
    if is_model_node(folder):
        return _record(folder / MODEL, "model")[1]
    files = sorted(folder.glob("model*.safetensors"))
    if not files and is_adapter_node(folder) and (folder / WEIGHTS).is_file():
        files = [folder / WEIGHTS, folder / BASE]
    if not files:
        raise ParamsError(f"{path} holds no model.safetensors: make that checkpoint first")
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def model_hash(folder: Path) -> str:
    """Hash of all in a node or model folder that decides what it reads and says: weights, architecture, tokenizer, template, code."""
    files = sorted({file for name in DECIDING for file in folder.glob(name) if file.is_file()})
    lines = [weights_hash(folder), *(f"{file.name} {content_of(file)}" for file in files)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def save_adapter(
    folder: Path, base: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]
) -> None:
    """Write an adapter's files into `folder`, which exists.

    Args:
        folder: the node's.
        base: the folder of the full weights.
        tensors: weights by their names in the adapted model, `<module>.lora_A.default.weight`.
        config: the fields of peft's LoraConfig.
    """
    from safetensors.torch import save_file

    named = {f"{PREFIX}{name.replace('.default.', '.')}": t for name, t in tensors.items()}
    save_file(
        {name: named[name].detach().cpu().contiguous() for name in sorted(named)},
        folder / WEIGHTS,
        {"format": "pt"},
    )
    fields = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base)}
    write_json(folder / CONFIG, {**fields, **config})
    write_json(folder / BASE, {"base": base.as_posix(), "weights": weights_hash(base)})


def save_model_node(folder: Path, name: str) -> None:
    """Record in `folder` which model it is: `name` as in policy.path, and the hash of its weights."""
    write_json(folder / MODEL, {"model": name, "weights": weights_hash(locate(name, weights=True))})


def load_adapter(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of `save_adapter` under the names of the adapted model, and the fields of its configuration.

    Raises:
        ParamsError: a file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        found = load_file(folder / WEIGHTS)
        tensors = {
            name.removeprefix(PREFIX).replace(".weight", ".default.weight"): tensor
            for name, tensor in found.items()
        }
        return tensors, {**config, "r": int(config["r"]), "lora_alpha": float(config["lora_alpha"])}
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ParamsError(
            f"{folder} holds a damaged adapter ({error}): delete it, and `trainorder run` restores or makes it again"
        ) from None


def add_to_weights(model: Any, folder: Path) -> None:
    """Add alpha / rank * B A of the adapter to the weights that it adapts.

    Raises:
        ParamsError: the adapter is damaged, or is of another model.
    """
    import torch

    tensors, config = load_adapter(folder)
    weights = dict(model.named_parameters())
    downs = {name for name in tensors if ".lora_A." in name}
    with torch.no_grad():
        for name in sorted(downs):
            module = name.partition(".lora_A.")[0]
            weight, up = (
                weights.get(f"{module}.weight"),
                tensors.get(name.replace("lora_A", "lora_B")),
            )
            if weight is None or up is None or weight.shape != (len(up), tensors[name].shape[1]):
                raise ParamsError(
                    f"{folder} holds an adapter of another model ({module}): train the node again"
                )
            # as peft merges: the product first, then the factor
            weight.add_((up @ tensors[name]) * (config["lora_alpha"] / config["r"]))
    if len(tensors) != 2 * len(downs) or not downs:
        raise ParamsError(f"{folder} holds a damaged adapter: train the node again")
