"""Checkpoints merged without training: average, task arithmetic, TIES, DARE, SCE, RAM over the weights of one base.

One tensor is in memory at a time. A LoRA node is merged as the weights that its adapter makes of its base, one node at a
time in memory, and the result has full weights. With delta_i = theta_i - theta_0 of the merged checkpoints:

    average          mean_i theta_i
    task_arithmetic  theta_0 + scale * sum_i delta_i                                         arXiv 2212.04089
    ties             theta_0 + scale * mean of the trimmed deltas that agree with the sign   arXiv 2306.01708
    dare             theta_0 + scale * sum_i delta_i * keep / density, keep ~ Bernoulli      arXiv 2311.03099
    dare_ties        DARE's random deltas in place of TIES' trimmed ones
    sce              theta_0 + scale * weighted mean of the deltas that have the elected sign, in the entries where they differ
                     most; a delta's weight is its energy in the tensor                            arXiv 2408.07990
    ram              theta_0 + scale * mean of the deltas that changed an entry, an entry that one alone changed
                     whole and times its factor                                                    arXiv 2601.13572

TIES keeps the `density` share of largest entries of a whole delta, as in its paper: a first reading of all tensors finds
the magnitude from which on entries stay (`cut_of`). With `trim: tensor` each tensor keeps that share of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainorder.adapters import is_adapter_node, is_model_node
from trainorder.config import MergeConfig
from trainorder.files import writing_folder
from trainorder.merge.methods import Whole, cut_of, merge_tensors, unique_factors
from trainorder.policy import Policy
from trainorder.resume import NOTHING, Work
from trainorder.streams import torch_stream

if TYPE_CHECKING:
    from torch import Tensor

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
    with ExitStack() as stack:
        base, *parents = [_whole(folder, out, stack) for folder in (base, *parents)]
        _merge(base, parents, out, config, work)


def _whole(folder: Path, out: Path, stack: ExitStack) -> Path:
    """The folder itself, or of a node without full weights a passing copy of them beside `out`."""
    if not is_adapter_node(folder) and not is_model_node(folder):
        return folder
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.whole.")
    whole = Path(stack.enter_context(scratch)) / folder.name  # the name keys DARE's mask
    Policy.load(folder).save(whole)
    return whole


def _merge(base: Path, parents: Sequence[Path], out: Path, config: MergeConfig, work: Work) -> None:
    _check_same_tensors(base, parents)
    whole = Whole()
    if config.method == "ties" and config.trim == "all":
        whole = Whole(cuts=[_cut_of_folder(base, parent, config.density) for parent in parents])
    elif config.method == "ram":
        whole = Whole(factors=_factors_of_folders(base, parents, config))
    with writing_folder(out) as folder:
        ignore = shutil.ignore_patterns(WEIGHTS)
        shutil.copytree(base, folder, ignore=ignore, dirs_exist_ok=True)
        for shard in sorted(base.glob(WEIGHTS)):
            kept = work.file(
                shard.name,
                lambda file, shard=shard: _merge_shard(shard, parents, file, config, whole),
            )
            if kept is None:
                _merge_shard(shard, parents, folder / shard.name, config, whole)
            else:
                os.link(kept, folder / shard.name)


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


def _cut_of_folder(base: Path, parent: Path, density: float) -> float:
    """`cut_of` the delta of a parent, one tensor in memory at a time."""
    with ExitStack() as stack:
        ours, theirs = Weights(stack, base), Weights(stack, parent)
        return cut_of(
            lambda: (theirs.get(name).float() - ours.get(name).float() for name in ours.names),
            density,
        )


def _factors_of_folders(base: Path, parents: Sequence[Path], config: MergeConfig) -> list[float]:
    """`unique_factors` of the parents' deltas, one tensor of each in memory at a time."""
    import torch

    shared, unique = (torch.zeros(len(parents), dtype=torch.long) for _ in range(2))
    with ExitStack() as stack:
        ours, *theirs = (Weights(stack, folder) for folder in (base, *parents))
        for name in ours.names:
            before = ours.get(name).float()
            changed = torch.stack(
                [(t.get(name).float() - before).abs() > config.threshold for t in theirs]
            ).flatten(1)
            count = changed.sum(0)
            unique += (changed & (count == 1)).sum(1)
            shared += (changed & (count > 1)).sum(1)
    return unique_factors(shared.tolist(), unique.tolist(), config.unique_scale)


def _merge_shard(
    shard: Path, parents: Sequence[Path], out: Path, config: MergeConfig, whole: Whole
) -> None:
    """Write the merged shard behind the base's own header: same tensors, same types, same places."""
    import torch
    from safetensors import safe_open

    header, raw = _header(shard)
    names = sorted(
        (n for n in header if n != "__metadata__"), key=lambda n: header[n]["data_offsets"]
    )
    with ExitStack() as stack:
        base = stack.enter_context(safe_open(shard, framework="pt"))
        others = [Weights(stack, folder) for folder in parents]
        stream = stack.enter_context(out.open("wb"))
        stream.write(raw)
        for name in names:
            tensors = [other.get(name) for other in others]
            masks = [torch_stream("merge", config.seed, folder.name, name) for folder in parents]
            of_tensor = replace(whole, generators=masks)
            merged = merge_tensors(base.get_tensor(name), tensors, config, of_tensor)
            stream.write(merged.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        stream.flush()
        os.fsync(stream.fileno())


class Weights:
    """The tensors of a folder of full weights by name, read one at a time, from one file or from shards."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        from safetensors import safe_open

        files = [
            stack.enter_context(safe_open(file, framework="pt"))
            for file in sorted(folder.glob(WEIGHTS))
        ]
        self._file_of: dict[str, Any] = {name: file for file in files for name in file.keys()}  # noqa: SIM118

    @property
    def names(self) -> list[str]:
        """Of all tensors, sorted."""
        return sorted(self._file_of)

    def get(self, name: str) -> Tensor:
        """One tensor, as it is stored."""
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
