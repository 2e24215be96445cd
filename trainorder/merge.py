"""Checkpoints merged without training: average, task arithmetic, TIES, DARE over the weights of one base.

One tensor is in memory at a time. A LoRA node is merged as the weights that its adapter makes of its base, one node at a
time in memory, and the result has full weights. With delta_i = theta_i - theta_0 of the merged checkpoints:

    average          mean_i theta_i
    task_arithmetic  theta_0 + scale * sum_i delta_i                                         arXiv 2212.04089
    ties             theta_0 + scale * mean of the trimmed deltas that agree with the sign   arXiv 2306.01708
    dare             theta_0 + scale * sum_i delta_i * keep / density, keep ~ Bernoulli      arXiv 2311.03099
    dare_ties        DARE's random deltas in place of TIES' trimmed ones

TIES keeps the `density` share of largest entries of a whole delta, as in its paper: a first reading of all tensors finds
the magnitude from which on entries stay (`cut_of`). With `trim: tensor` each tensor keeps that share of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Float

from trainorder.adapters import is_adapter_node, is_model_node
from trainorder.config import MergeConfig
from trainorder.files import writing_folder
from trainorder.policy import Policy
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
    cuts = [0.0] * len(parents)
    if config.method == "ties" and config.trim == "all":
        cuts = [_cut_of_folder(base, parent, config.density) for parent in parents]
    with writing_folder(out) as whole:
        ignore = shutil.ignore_patterns(WEIGHTS)
        shutil.copytree(base, whole, ignore=ignore, dirs_exist_ok=True)
        for shard in sorted(base.glob(WEIGHTS)):
            kept = work.file(
                shard.name,
                lambda file, shard=shard: _merge_shard(shard, parents, file, config, cuts),
            )
            if kept is None:
                _merge_shard(shard, parents, whole / shard.name, config, cuts)
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
    *,
    generators: Sequence[Generator] = (),
    cuts: Sequence[float] = (),
) -> Float[Tensor, "*shape"]:
    """One tensor of the merge, in the base's type; computed in float32.

    Of each parent, `generators` draw DARE's mask, and `cuts` are the magnitudes from which on entries of its delta stay
    in TIES (with `trim: tensor` this tensor's own are taken).
    """
    import torch

    if config.method == "average":
        return torch.stack([parent.float() for parent in parents]).mean(0).to(base.dtype)
    deltas = [parent.float() - base.float() for parent in parents]
    if config.method == "ties":
        if config.trim == "tensor":
            cuts = [cut_of(lambda d=d: [d], config.density) for d in deltas]
        merged = elect(torch.stack([trim(d, cut) for d, cut in zip(deltas, cuts, strict=True)]))
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


def elect(deltas: Float[Tensor, "*parents_shape"]) -> Float[Tensor, "*shape"]:
    """Per entry, the mean of the deltas other than 0 that have the sign of their sum."""
    from peft.utils.merge_utils import calculate_majority_sign_mask, disjoint_merge

    return disjoint_merge(deltas, calculate_majority_sign_mask(deltas, method="total"))


def trim(delta: Float[Tensor, "*shape"], cut: float) -> Float[Tensor, "*shape"]:
    """Zero all entries of a magnitude below `cut`."""
    return delta * (delta.abs() >= cut)


def cut_of(tensors: Callable[[], Iterable[Tensor]], density: float) -> float:
    """The smallest magnitude that the `density` share of largest entries of all `tensors` together has.

    At least one entry stays, and all entries of equal magnitude do, so the order of entries decides nothing. `tensors`
    is read twice, in float32: magnitudes are counted by the upper 16 bits of their pattern, which orders them, then
    within one such bin by the lower ones. Memory is that of the counts and of one chunk, whatever the tensors' size.

    >>> import torch
    >>> cut_of(lambda: [torch.tensor([10.0, 9.0]), torch.tensor([-0.1, 0.2])], 0.5)
    9.0
    """
    import torch

    upper, total = torch.zeros(HALF, dtype=torch.long), 0
    for patterns in _patterns(tensors()):
        upper += torch.bincount(patterns >> 16, minlength=HALF)
        total += len(patterns)
    bin_, larger = _reach(upper, max(1, round(density * total)), 0)
    lower = torch.zeros(HALF, dtype=torch.long)
    for patterns in _patterns(tensors()):
        lower += torch.bincount(patterns[patterns >> 16 == bin_] & (HALF - 1), minlength=HALF)
    place, _ = _reach(lower, max(1, round(density * total)), larger)
    pattern = torch.tensor([bin_ << 16 | place], dtype=torch.int32)
    return float(pattern.view(torch.float32))


HALF, CHUNK = 2**16, 2**22


def _patterns(tensors: Iterable[Tensor]) -> Iterable[Tensor]:
    """The bits of the entries' magnitudes as numbers, chunk by chunk; larger magnitudes have larger ones."""
    import torch

    for tensor in tensors:
        for chunk in tensor.float().flatten().split(CHUNK):
            yield chunk.abs().view(torch.int32).long()


def _reach(counts: Tensor, wanted: int, before: int) -> tuple[int, int]:
    """The bin that holds the `wanted`-th largest, `before` being larger than all bins; and how many lie above it."""
    above = before + counts.flip(0).cumsum(0).flip(0) - counts  # in larger bins
    bin_ = int((above < wanted).nonzero()[0])
    return bin_, int(above[bin_])


def dare(
    delta: Float[Tensor, "*shape"], *, density: float, generator: Generator
) -> Float[Tensor, "*shape"]:
    """Keep each entry with probability `density` and divide the kept by it: the expected delta is unchanged."""
    import torch

    keep = torch.rand(delta.shape, generator=generator) < density
    return torch.where(keep, delta / density, 0.0)


def _cut_of_folder(base: Path, parent: Path, density: float) -> float:
    """`cut_of` the delta of a parent, one tensor in memory at a time."""
    with ExitStack() as stack:
        ours, theirs = _Weights(stack, base), _Weights(stack, parent)
        return cut_of(
            lambda: (theirs.get(name).float() - ours.get(name).float() for name in ours.names),
            density,
        )


def _merge_shard(
    shard: Path, parents: Sequence[Path], out: Path, config: MergeConfig, cuts: Sequence[float]
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
        others = [_Weights(stack, folder) for folder in parents]
        stream = stack.enter_context(out.open("wb"))
        stream.write(raw)
        for name in names:
            tensors = [other.get(name) for other in others]
            masks = [torch_stream("merge", config.seed, folder.name, name) for folder in parents]
            merged = merge_tensors(
                base.get_tensor(name), tensors, config, generators=masks, cuts=cuts
            )
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

    @property
    def names(self) -> list[str]:
        return sorted(self._file_of)

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
