"""A Hugging Face folder that somebody brings: found, read without its weights, loaded, or refused in one line.

transformers accepts much that cannot be trained: it draws weights that are missing at random, leaves out weights that
the config does not name, and reports a bad setting when the model is saved. Everything here raises `ParamsError` instead.
"""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainorder.config import remote_code_allowed
from trainorder.reading import ParamsError, listed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SLOW_OPTIONAL_IMPORTS = ("sklearn", "scipy")
"""Packages that transformers imports if it finds them, for parts that trainorder never calls."""
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
FLOATS = ("F64", "F32", "F16", "BF16")
"""Types of weights that can be trained, as safetensors calls them."""
GENERATION = ("bos_token_id", "eos_token_id", "pad_token_id")
GENERATION_FLAGS = ("output_attentions", "output_hidden_states", "use_cache", "_from_model_config")
"""What is kept of a generation config: sampling is ours, so temperature and the like would only be saved again."""


def load_model(folder: Path, *, weights: bool = True) -> PreTrainedModel:
    """The causal LM of a folder in float32, in evaluation mode.

    Args:
        folder: a Hugging Face folder; safetensors only.
        weights: False reads the names and shapes of the weights alone; the model's tensors are on the meta device.

    Raises:
        ParamsError: no such model, its own code may not run, or its weights are not exactly those of its config.
    """
    import torch

    _check_config(folder)
    _check_weight_files(folder)
    transformers = import_transformers()
    options: dict[str, Any] = {} if weights else {"device_map": "meta"}
    with explained(folder, "the model"), silent():
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=_runs_own_code(folder),
            local_files_only=True,
            generation_config=generation_config_of(folder),
            ignore_mismatched_sizes=True,  # only so that the report names them; see check_report
            output_loading_info=True,
            **options,
        )
    check_report(folder, info)
    _check_kind(folder, model)
    for weight in model.parameters():
        # mapped from the file they are not aligned, and that decides last bits
        weight.data = weight.data.clone()
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if weights and head is not None and head.weight is not embedding.weight:
        # a file that holds two different matrices overrules its config, and the next reader has to know
        model.config.get_text_config().tie_word_embeddings = False
    return model.eval()


def load_hub_shapes(folder: Path) -> PreTrainedModel:
    """A model of the hub on the meta device: of the weights in the cache, or where these are still on the hub by its config alone.

    Raises:
        ParamsError: as `load_model`.
    """
    import torch

    if any(folder.glob("*.safetensors")):
        return load_model(folder, weights=False)
    _check_config(folder)
    transformers = import_transformers()
    own = _runs_own_code(folder)
    with explained(folder, "the model"), silent(), torch.device("meta"):
        config = transformers.AutoConfig.from_pretrained(
            str(folder), trust_remote_code=own, local_files_only=True
        )
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, trust_remote_code=own
        )
    model.generation_config = generation_config_of(folder)
    _check_kind(folder, model)
    return model.eval()


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder; what it saves does not tell how it was loaded.

    Raises:
        ParamsError: the folder holds none, or one that cannot be read.
    """
    if not (path / "tokenizer_config.json").is_file():
        raise ParamsError(
            f"{path} holds no tokenizer (no tokenizer_config.json): run the stage that makes it first, "
            f"or save the tokenizer beside the model"
        )
    auto = import_transformers().AutoTokenizer
    with explained(path, "the tokenizer"), silent():
        tokenizer = auto.from_pretrained(
            str(path), trust_remote_code=_runs_own_code(path), local_files_only=True
        )
    forget_how_loaded(tokenizer)
    return tokenizer


def forget_how_loaded(tokenizer: PreTrainedTokenizerBase) -> None:
    """Take out of what it saves how it was read: else HF_HUB_OFFLINE would change a checkpoint."""
    for how in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(how, None)


def import_transformers() -> Any:
    """transformers, quiet, and without the optional packages that take a third of its import time.

    The first import of its modelling code costs about 2.4 CPU seconds this way, 4.0 otherwise. The packages are hidden
    while that code asks whether they exist, and can be imported as usual afterwards.
    """
    if "transformers.modeling_utils" not in sys.modules:
        hidden = [name for name in SLOW_OPTIONAL_IMPORTS if name not in sys.modules]
        modules: dict[str, Any] = sys.modules
        modules.update(dict.fromkeys(hidden))
        try:
            importlib.import_module("transformers.models.llama.modeling_llama")
        finally:
            for name in hidden:
                del sys.modules[name]
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    if not torch.cuda.is_available():
        # or DeepSpeed, where it is installed, warns each user that it took the CPU
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    return importlib.import_module("transformers")


def _check_config(folder: Path) -> None:
    """Refuse a folder whose config.json does not describe a model that can be trained here."""
    names = sorted(file.name for file in folder.iterdir())
    if "adapter_config.json" in names:
        raise ParamsError(
            f"{folder} holds a LoRA adapter (adapter_config.json): merge it into its model "
            f"(peft's merge_and_unload) and save that"
        )
    if "config.json" not in names:
        raise ParamsError(
            f"{folder} is not a Hugging Face model folder (no config.json; it holds {listed(names)}): "
            f"make that checkpoint first, or convert the model to that format"
        )
    config = _read_json(folder / "config.json")
    if not isinstance(config.get("model_type"), str) and not config.get("auto_map"):
        raise ParamsError(
            f"{folder}/config.json names no model_type, so the model's architecture is unknown: "
            f"take the config.json that belongs to these weights"
        )
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "unknown method")
        raise ParamsError(
            f"{folder} holds quantized weights ({method}), which cannot be trained: take the model's unquantized version"
        )


def _check_weight_files(folder: Path) -> None:
    """Refuse a folder whose safetensors are missing, incomplete or damaged; reads their headers only."""
    from safetensors import SafetensorError, safe_open

    if (folder / WEIGHTS).is_file():
        files = [folder / WEIGHTS]
    elif (folder / INDEX).is_file():
        index = _read_json(folder / INDEX).get("weight_map")
        if not isinstance(index, dict) or not index:
            raise ParamsError(f"{folder / INDEX} has no weight_map: save the model again")
        files = [folder / name for name in sorted(set(map(str, index.values())))]
    else:
        raise ParamsError(_explain_no_weights(folder))
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise ParamsError(f"{folder} lacks {listed(absent)}, which its index names: copy it there")
    for file in files:
        try:
            with safe_open(file, framework="numpy") as tensors:
                kinds = {name: tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            with file.open("rb") as stream:
                pointer = stream.read(8) == b"version "
            what = (
                "is a Git LFS pointer: run `git lfs pull`" if pointer else f"is damaged ({error})"
            )
            way = "" if pointer else ": download or save it again"
            raise ParamsError(f"{file} {what}{way}") from None
        packed = [
            f"{name} ({kind})"
            for name, kind in kinds.items()
            if name.endswith(".weight") and kind not in FLOATS
        ]
        if packed:
            raise ParamsError(
                f"{file} holds quantized weights, {listed(packed)}, which cannot be trained: take the model's unquantized version"
            )


def _explain_no_weights(folder: Path) -> str:
    names = sorted(file.name for file in folder.iterdir() if file.is_file())
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles:
        return (
            f"{folder} holds pickled weights ({listed(pickles)}) and no {WEIGHTS}: a pickle can run any code, so only "
            f"safetensors are read; if you trust it, convert it with AutoModelForCausalLM.from_pretrained(...)"
            f".save_pretrained(...) of transformers"
        )
    others = [name for name in names if name.endswith((".safetensors", ".gguf", ".h5", ".msgpack"))]
    found = f" (it holds {listed(others)})" if others else ""
    return (
        f"{folder} has no {WEIGHTS} and no {INDEX}{found}: download the weights, or save the model with "
        f"save_pretrained of transformers"
    )


def check_report(folder: Path, info: dict[str, Any]) -> None:
    """What transformers says after loading: every weight must come from the file, and every weight in the file be used."""
    for key, problem in {
        "mismatched_keys": "weights of other shapes than config.json says",
        "missing_keys": "no weights for parts of its model, which would be random",
        "unexpected_keys": "weights that the model of config.json does not have, which would be lost",
    }.items():
        if info[key]:
            raise ParamsError(
                f"{folder} holds {problem}: {listed(_parameter(item) for item in info[key])}; "
                f"take the config.json and the weights that belong together"
            )


def _parameter(item: Any) -> str:
    """`name`, or `name (2, 3) instead of (4, 3)` for a mismatch."""
    if isinstance(item, str):
        return item
    name, found, wanted = item
    return f"{name} {tuple(found)} instead of {tuple(wanted)}"


def _check_kind(folder: Path, model: Any) -> None:
    """Refuse models that sampling and training could not run: no key/value cache, or not causal."""
    kind = type(model).__name__
    if model._is_stateful or "past_key_values" not in inspect.signature(model.forward).parameters:
        raise ParamsError(
            f"{folder} is a {kind}, whose state is not a cache of keys and values (Mamba, RWKV and hybrids of them): "
            f"that cannot be sampled here; take a Transformer"
        )
    looks_ahead = any(getattr(part, "is_causal", True) is False for part in model.modules())
    if looks_ahead and getattr(model.config, "is_decoder", True) is False:
        raise ParamsError(
            f"{folder} is a {kind} that looks ahead (is_decoder is false in config.json): take a causal language model"
        )


def generation_config_of(folder: Path) -> Any:
    """The special tokens of generation_config.json, or of config.json where there is none; nothing that fails to save."""
    file = folder / "generation_config.json"
    if file.is_file():
        given = _read_json(file)
    else:
        given = {**_read_json(folder / "config.json"), "_from_model_config": True}
    kept = {name: given[name] for name in GENERATION_FLAGS if isinstance(given.get(name), bool)}
    for name in GENERATION:
        ids = given.get(name)
        several = ids if isinstance(ids, list) else [ids]
        usable = [id_ for id_ in several if type(id_) is int and id_ >= 0]
        if usable:
            kept[name] = usable if isinstance(ids, list) else usable[0]
    return import_transformers().GenerationConfig.from_dict(kept)


def _runs_own_code(folder: Path) -> bool:
    """Whether a model's own code may run: it needs some, and params.yaml allows it.

    Raises:
        ParamsError: it needs some, and params.yaml does not.
    """
    found = [
        name
        for name in ("config.json", "tokenizer_config.json")
        if (folder / name).is_file() and _read_json(folder / name).get("auto_map")
    ]
    if not found:
        return False
    if not remote_code_allowed():
        raise ParamsError(
            f"{folder} brings its own code (auto_map in {', '.join(found)}), and loading it would run that code; "
            f"set `policy: {{trust_remote_code: true}}` only if you have read it"
        )
    print(f"warning: running code from {folder} (policy.trust_remote_code)", file=sys.stderr)
    return True


def _read_json(file: Path) -> dict[str, Any]:
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ParamsError(f"{file} cannot be read: {error}") from None
    if not isinstance(read, dict):
        raise ParamsError(f"{file} must hold a JSON object, got {type(read).__name__}")
    return read


@contextmanager
def explained(folder: Path, what: str) -> Iterator[None]:
    """Turn whatever transformers raises while it reads somebody's files into one line."""
    try:
        yield
    except (ParamsError, MemoryError):
        raise
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), "")
        raise ParamsError(
            f"{folder}: {what} cannot be loaded: {reason[:300]} ({type(error).__name__})"
        ) from error


@contextmanager
def silent() -> Iterator[None]:
    """Without transformers' own report: what matters in it is raised."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
