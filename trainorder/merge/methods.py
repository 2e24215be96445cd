"""What merges compute of one tensor: pure functions of the deltas from the base, listed by the name of the method."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Float

from trainorder.config import MergeConfig

if TYPE_CHECKING:
    from torch import Generator, Tensor

    Deltas = Float[Tensor, "parent *shape"]


@dataclass(frozen=True)
class Whole:
    """What is known of each parent beside the one tensor that is merged."""

    cuts: Sequence[float] = ()
    """TIES: the magnitudes from which on entries of the deltas stay (with `trim: tensor` the tensor's own are taken)."""
    factors: Sequence[float] = ()
    """RAM: on entries that this parent alone changed; empty: 1."""
    generators: Sequence[Generator] = ()
    """DARE: what draws the masks."""


def merge_tensors(
    base: Float[Tensor, "*shape"],
    parents: Sequence[Float[Tensor, "*shape"]],
    config: MergeConfig,
    whole: Whole = Whole(),
) -> Float[Tensor, "*shape"]:
    """One tensor of the merge, in the base's type; computed in float32."""
    import torch

    if config.method == "average":
        return torch.stack([parent.float() for parent in parents]).mean(0).to(base.dtype)
    deltas = torch.stack([parent.float() - base.float() for parent in parents])
    merged = MERGES[config.method](deltas, config, whole)
    assert isinstance(config.scale, float)
    return (base.float() + config.scale * merged).to(base.dtype)


def _sum(deltas: Deltas, config: MergeConfig, whole: Whole) -> Tensor:
    return deltas.sum(0)


def _ties(deltas: Deltas, config: MergeConfig, whole: Whole) -> Tensor:
    import torch

    cuts = whole.cuts
    if config.trim == "tensor":
        cuts = [cut_of(lambda d=d: [d], config.density) for d in deltas]
    return elect(torch.stack([trim(d, cut) for d, cut in zip(deltas, cuts, strict=True)]))


def _dare(deltas: Deltas, config: MergeConfig, whole: Whole) -> Tensor:
    return _kept(deltas, config, whole).sum(0)


def _dare_ties(deltas: Deltas, config: MergeConfig, whole: Whole) -> Tensor:
    return elect(_kept(deltas, config, whole))


def _kept(deltas: Deltas, config: MergeConfig, whole: Whole) -> Deltas:
    import torch

    pairs = zip(deltas, whole.generators, strict=True)
    return torch.stack([dare(d, density=config.density, generator=g) for d, g in pairs])


def _sce(deltas: Deltas, config: MergeConfig, whole: Whole) -> Tensor:
    return sce(deltas, density=config.density)


def _ram(deltas: Deltas, config: MergeConfig, whole: Whole) -> Tensor:
    factors = whole.factors or [1.0] * len(deltas)
    return ram(deltas, threshold=config.threshold, factors=factors)


MERGES: dict[str, Callable[[Deltas, MergeConfig, Whole], Tensor]] = {
    "task_arithmetic": _sum,
    "ties": _ties,
    "dare": _dare,
    "dare_ties": _dare_ties,
    "sce": _sce,
    "ram": _ram,
}
"""Method -> the merged delta of one tensor."""


def sce(deltas: Deltas, *, density: float) -> Float[Tensor, "*shape"]:
    """Select, calculate, erase (FuseChat, arXiv:2408.07990), as mergekit computes it.

    Select: of the entries in which the deltas differ, the `density` share with the largest variance (all of equal variance;
    at least one); with density 1 all entries. Calculate: a delta's weight is its sum of squares in the selected entries of
    this tensor. Erase: per entry the deltas whose sign is not that of their sum; what is left is averaged by weight.
    """
    import torch

    if density < 1:
        variance = deltas.var(0, unbiased=False)
        differing = variance[variance > 0]
        if len(differing):
            deltas = deltas * (variance >= cut_of(lambda: [differing], density))
    energy = deltas.double().square().flatten(1).sum(1).float()
    weight = energy.view(-1, *[1] * (deltas.dim() - 1)) * (deltas.sign() == deltas.sum(0).sign())
    total = weight.sum(0)
    return torch.where(total > 0, (deltas * weight).sum(0) / total, 0.0)


def ram(deltas: Deltas, *, threshold: float, factors: Sequence[float]) -> Float[Tensor, "*shape"]:
    """Reinforced agent merging (arXiv:2601.13572): what several changed is averaged over these, what one changed is kept.

    RL changes few entries, and in other places for other tasks: a mean over all deltas would shrink what one task alone
    changed. Each delta's own entries are multiplied by its factor (`unique_factors`).
    """
    import torch

    changed = deltas.abs() > threshold
    count = changed.sum(0)
    own = torch.tensor(list(factors)).view(-1, *[1] * (deltas.dim() - 1))
    share = torch.where(count == 1, own, 1 / count.clamp(min=1))
    return (deltas * changed * share).sum(0)


def unique_factors(
    shared: Sequence[int], unique: Sequence[int], unique_scale: float
) -> list[float]:
    """RAM's factor of each delta: 1 + (unique_scale - 1) min(1, shared / unique), counted over the whole model.

    The more of a delta is averaged away, the more its own entries make up for it. The rule is that of the authors' code
    (github.com/xiangchi-yuan/mrl); the paper has r clip(shared / unique, 0, alpha).

    >>> unique_factors([10, 30, 0], [20, 10, 5], 1.2)
    [1.1, 1.2, 1.0]
    """
    return [
        1 + (unique_scale - 1) * min(1.0, (s / u) if u else float(s > 0))
        for s, u in zip(shared, unique, strict=True)
    ]


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
