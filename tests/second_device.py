"""A second device without hardware: within `second_device()`, tensors on `meta` hold their numbers and compute on the CPU.

What CUDA refuses is refused here too: an operation on tensors of two devices, but for single numbers and indices, as CUDA
allows. It says nothing about CUDA's kernels, precision or speed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "meta"
CROSSING = ("aten::_to_copy", "aten::copy_", "aten::_local_scalar_dense")
INDEXING = ("aten::index", "aten::index_put_", "aten::index_put", "aten::_index_put_impl_")


class Far(torch.Tensor):
    """A tensor whose numbers lie in `inner`, on the CPU."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Far:
        make: Any = torch.Tensor._make_wrapper_subclass
        size, stride, offset = inner.size(), inner.stride(), inner.storage_offset()
        made = make(
            cls, size, strides=stride, storage_offset=offset, dtype=inner.dtype, device=NAME
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Lists(TorchFunctionMode):
    """`torch.tensor(list, device=...)` gives a tensor of `meta` no numbers: made on the CPU, then moved."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.tolist:  # torch refuses it for wrapped tensors
            return args[0].cpu().tolist()
        target = kwargs.get("device") if func in (torch.tensor, torch.as_tensor) else None
        if target is None or torch.device(target).type != NAME:
            return func(*args, **kwargs)
        return func(*args, **{**kwargs, "device": "cpu"}).to(NAME)


class _Mode(TorchDispatchMode):
    """Catches what makes tensors out of nothing, or moves them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextmanager
def second_device() -> Iterator[str]:
    """The device's name; within the block `.to` and factories reach it."""
    with _Lists(), _Mode():
        yield NAME


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    far = [x for x in given if isinstance(x, Far)]
    target = kwargs.get("device")
    ends_far = bool(far) if target is None else torch.device(target).type == NAME
    if not far and not ends_far:
        return func(*args, **kwargs)
    name = func._schema.name
    if far and name not in CROSSING:
        _check(name, args, given)
    if target is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    args_, kwargs_ = tree_map(lambda x: x.inner if isinstance(x, Far) else x, (args, kwargs))
    out = func(*args_, **kwargs_)
    if name == "aten::copy_":
        return args[0]
    known = {id(x.inner): x for x in far}  # what an operation in place returns
    if not ends_far:
        return out

    def wrapped(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        return known[id(x)] if id(x) in known else Far(x)

    return tree_map(wrapped, out)


def _check(name: str, args: Any, given: list[torch.Tensor]) -> None:
    checked = [args[0], *args[2:]] if name in INDEXING else given
    left = [x for x in checked if isinstance(x, torch.Tensor) and not isinstance(x, Far)]
    if any(x.dim() for x in left):
        raise RuntimeError(f"{name}: all tensors must be on one device, one is on the CPU")
