"""Checkpoints merged without training: average, task arithmetic, TIES, DARE over the weights of one base.

One tensor is in memory at a time. With delta_i = theta_i - theta_0 of the merged checkpoints:

    average          mean_i theta_i
    task_arithmetic  theta_0 + scale * sum_i delta_i                                         arXiv 2212.04089
    ties             theta_0 + scale * mean of the trimmed deltas that agree with the sign   arXiv 2306.01708
    dare             theta_0 + scale * sum_i delta_i * keep / density, keep ~ Bernoulli      arXiv 2311.03099
    dare_ties        DARE's random deltas in place of TIES' trimmed ones
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Float

from trainorder.config import MergeConfig
from trainorder.files import writing_folder
from trainorder.resume import NOTHING, Work
from trainorder.streams import torch_stream

if TYPE_CHECKING:
    from torch import Generator, Tensor

WEIGHTS = "model*.safetensors"


def merge_folders(
    base: Path, parents: Sequence[Path], out: Path, config: MergeConfig, work: Work = NOTHING
) -> None:
    """Merge Hugging Face folders into `out`: base's files with merged weights, written whole, then renamed.

    DARE's random masks are keyed by config.seed, the parent folder's name and the tensor's name. Shards that a killed
    attempt finished are taken from `work`.

    `config.scale` is one number here (`tune_scale` chooses among several).

    Raises:
        ValueError: a folder holds no weights, or other tensors than the base.
    """
    _check_same_tensors(base, parents)
    with writing_folder(out) as whole:
        ignore = shutil.ignore_patterns(WEIGHTS)
        shutil.copytree(base, whole, ignore=ignore, dirs_exist_ok=True)
        for shard in sorted(base.glob(WEIGHTS)):
            kept = work.file(
                shard.name, lambda file, shard=shard: _merge_shard(shard, parents, file, config)
            )
            if kept is None:
                _merge_shard(shard, parents, whole / shard.name, config)
            else:
                os.link(kept, whole / shard.name)


def tune_scale(
    base: Path,
    parents: Sequence[Path],
    out: Path,
    config: MergeConfig,
    score: Callable[[Path], float],
) -> dict[float, float]:
    """Merge with each listed scale and leave the best by `score` as `out`; of equals, the first.

    Returns:
        Scale -> score, best first.
    """
    scales = config.scale if isinstance(config.scale, list) else [config.scale]
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.tuning.") as scratch:
        found = {}
        for scale in scales:
            folder = Path(scratch) / "merged"
            merge_folders(base, parents, folder, config.model_copy(update={"scale": scale}))
            found[scale] = score(folder)
    ranked = dict(sorted(found.items(), key=lambda item: -item[1]))
    best = next(iter(ranked))
    merge_folders(base, parents, out, config.model_copy(update={"scale": best}))
    return ranked


def merge_tensors(
    base: Float[Tensor, "*shape"],
    parents: Sequence[Float[Tensor, "*shape"]],
    config: MergeConfig,
    generators: Sequence[Generator] = (),
) -> Float[Tensor, "*shape"]:
    """One tensor of the merge, in the base's type; computed in float32. `generators` are DARE's, one per parent."""
    import torch

    if config.method == "average":
        return torch.stack([parent.float() for parent in parents]).mean(0).to(base.dtype)
    deltas = [parent.float() - base.float() for parent in parents]
    if config.method == "ties":
        merged = ties(deltas, density=config.density)
    elif config.method in ("dare", "dare_ties"):
        kept = [
            dare(d, density=config.density, generator=g)
            for d, g in zip(deltas, generators, strict=True)
        ]
        merged = (
            elect(torch.stack(kept)) if config.method == "dare_ties" else torch.stack(kept).sum(0)
        )
    else:
        merged = torch.stack(deltas).sum(0)
    assert isinstance(config.scale, float)
    return (base.float() + config.scale * merged).to(base.dtype)


def ties(deltas: Sequence[Float[Tensor, "*shape"]], *, density: float) -> Float[Tensor, "*shape"]:
    """Trim each delta to its largest entries, elect a sign per entry by their sum, average those that agree."""
    import torch

    return elect(torch.stack([trim(delta, density=density) for delta in deltas]))


def elect(deltas: Float[Tensor, "*parents_shape"]) -> Float[Tensor, "*shape"]:
    """Per entry, the mean of the deltas other than 0 that have the sign of their sum."""
    from peft.utils.merge_utils import calculate_majority_sign_mask, disjoint_merge

    return disjoint_merge(deltas, calculate_majority_sign_mask(deltas, method="total"))


def trim(delta: Float[Tensor, "*shape"], *, density: float) -> Float[Tensor, "*shape"]:
    """Zero all but the `density` share of largest entries; at least one stays, however small the tensor.

    On a tie the earlier entry stays, so that the result does not depend on how `topk` breaks it.
    """
    import torch

    kept = max(1, round(density * delta.numel()))
    order = delta.abs().flatten().argsort(descending=True, stable=True)
    mask = torch.zeros(delta.numel(), dtype=delta.dtype, device=delta.device)
    mask[order[:kept]] = 1
    return delta * mask.view_as(delta)


def dare(
    delta: Float[Tensor, "*shape"], *, density: float, generator: Generator
) -> Float[Tensor, "*shape"]:
    """Keep each entry with probability `density` and divide the kept by it: the expected delta is unchanged."""
    import torch

    keep = torch.rand(delta.shape, generator=generator) < density
    return torch.where(keep, delta / density, 0.0)


def _merge_shard(shard: Path, parents: Sequence[Path], out: Path, config: MergeConfig) -> None:
    """Write the merged shard behind the base's own header: same tensors, same types, same places."""
    import torch
    from safetensors import safe_open

    header, raw = _header(shard)
    names = sorted(
        (n for n in header if n != "__metadata__"), key=lambda n: header[n]["data_offsets"]
    )
    with ExitStack() as stack:
        base = stack.enter_context(safe_open(shard, framework="pt"))
        others = [_Weights(stack, folder) for folder in parents]
        stream = stack.enter_context(out.open("wb"))
        stream.write(raw)
        for name in names:
            tensors = [other.get(name) for other in others]
            masks = [torch_stream("merge", config.seed, folder.name, name) for folder in parents]
            merged = merge_tensors(base.get_tensor(name), tensors, config, masks)
            stream.write(merged.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        stream.flush()
        os.fsync(stream.fileno())


class _Weights:
    """The tensors of a folder by name, read one at a time, from one file or from shards."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        from safetensors import safe_open

        files = [
            stack.enter_context(safe_open(file, framework="pt"))
            for file in sorted(folder.glob(WEIGHTS))
        ]
        self._file_of: dict[str, Any] = {name: file for file in files for name in file.keys()}  # noqa: SIM118

    def get(self, name: str) -> Tensor:
        return self._file_of[name].get_tensor(name)


def _check_same_tensors(base: Path, parents: Sequence[Path]) -> None:
    wanted = _shapes(base)
    for parent in parents:
        found = _shapes(parent)
        different = sorted(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n))
        if different:
            first = different[0]
            raise ValueError(
                f"{parent} cannot be merged onto {base}: {first} is {found.get(first)} there and {wanted.get(first)} "
                f"in the base ({len(different)} tensors differ); merge checkpoints trained from this base"
            )


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape, from the headers of the weight files alone."""
    files = sorted(folder.glob(WEIGHTS))
    if not files:
        raise ValueError(f"{folder} holds no {WEIGHTS}: make that checkpoint first")
    return {
        name: tuple(entry["shape"])
        for file in files
        for name, entry in _header(file)[0].items()
        if name != "__metadata__"
    }


def _header(file: Path) -> tuple[dict[str, Any], bytes]:
    """A safetensors file's table of contents, parsed and as bytes: 8 bytes of length, then JSON."""
    with file.open("rb") as stream:
        length = stream.read(8)
        text = stream.read(int.from_bytes(length, "little"))
    return json.loads(text), length + text
