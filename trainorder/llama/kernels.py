"""kernels.c, built once per machine with its C compiler and called through ctypes.

A machine without a compiler, or on which the built kernels do not agree with torch, works without them: every caller has
a way in plain torch. `TRAINORDER_KERNELS=0` turns them off.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Callable
from ctypes import c_float, c_long, c_void_p
from pathlib import Path
from typing import Any

import torch

from trainorder.machine import processor
from trainorder.paths import cache_folder

SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = [
    "-O3",
    "-march=native",
    "-fopenmp-simd",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fPIC",
    "-shared",
]
COMPILE_SECONDS = 60.0
"""What a compiler may take; then it works without kernels."""
LANES = 16
"""Floats that kernels.c takes at a time; some arrays have to be that much longer."""
TOLERANCE = 1e-5
"""Largest difference from torch, relative to the largest value, at which the kernels are used."""

_POINTERS = {  # name -> pointers, longs, floats, in the order of kernels.c
    "rms_norm": (6, 2, 1),
    "rms_norm_backward": (7, 2, 0),
    "swiglu": (3, 3, 0),
    "swiglu_backward": (3, 3, 0),
    "pack": (5, 7, 0),
    "unpack": (5, 7, 0),
    "softmax": (3, 4, 1),
    "softmax_backward": (5, 4, 1),
    "log_prob": (5, 2, 1),
    "log_prob_backward": (6, 2, 1),
    "sample": (6, 2, 1),
    "attend": (12, 8, 0),
    "text_attention": (7, 4, 1),
    "text_attention_backward": (8, 4, 1),
}


class Kernels:
    """The functions of kernels.c; a tensor is passed as itself, contiguous, float32 or int64, None as NULL."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        for name, (pointers, longs, floats) in _POINTERS.items():
            function = getattr(library, name)
            function.restype = None
            function.argtypes = [c_void_p] * pointers + [c_long] * longs + [c_float] * floats
            setattr(self, f"_{name}", function)

    def __getattr__(self, name: str) -> functools.partial[None]:
        if name not in _POINTERS:
            raise AttributeError(name)
        function, pointers = getattr(self, f"_{name}"), _POINTERS[name][0]
        call = functools.partial(_call, function, pointers)
        setattr(self, name, call)
        return call


def _call(function: Callable[..., None], pointers: int, *arguments: Any) -> None:
    function(
        *[None if a is None else a.data_ptr() for a in arguments[:pointers]],
        *arguments[pointers:],
    )


@functools.cache
def load() -> tuple[Kernels | None, str]:
    """The kernels and a line that says which, or None and why there are none. Built at the first call ever, about 1 s."""
    if os.environ.get("TRAINORDER_KERNELS") == "0":
        return None, "torch (TRAINORDER_KERNELS=0)"
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        return None, "torch (no C compiler: set CC or install gcc for about twice the speed)"
    try:
        kernels = _built(compiler)
    except (OSError, subprocess.SubprocessError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        return None, f"torch (kernels could not be built with {compiler}: {reason})"
    difference = _difference(kernels)
    if not difference <= TOLERANCE:
        return None, f"torch (kernels differ from it by {difference:.1e}, more than {TOLERANCE:g})"
    return kernels, f"C kernels (within {difference:.0e} of torch)"


def _built(compiler: str) -> Kernels:
    """From the cache, where nobody else can write; else built in a folder of this process and not kept."""
    machine = [compiler, *FLAGS, processor(features=True)]
    key = hashlib.sha256(SOURCE.read_bytes() + "\0".join(machine).encode()).hexdigest()[:16]
    cache = cache_folder().absolute()
    with contextlib.suppress(OSError):
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    library = cache / f"kernels-{key}.so"
    private = _private(cache)
    if private and _private(library):
        return Kernels(library)
    kept = private and os.access(cache, os.W_OK)
    with tempfile.TemporaryDirectory(dir=cache if kept else None) as scratch:
        new = Path(scratch) / library.name
        _compile(compiler, new)
        kernels = Kernels(new)
        if kept:
            new.rename(library)
        return kernels


def _private(path: Path) -> bool:
    """Whether only this user, or root, can change what `path` leads to; a sticky folder on the way (/tmp) is fine."""
    try:
        path = path.resolve(strict=True)
        found = [path.stat(), *(folder.stat() for folder in path.parents)]
    except (OSError, RuntimeError):
        return False
    owned = found[0].st_uid == os.geteuid() and not found[0].st_mode & 0o022
    return owned and all(
        s.st_uid in (0, os.geteuid()) and (not s.st_mode & 0o022 or s.st_mode & stat.S_ISVTX)
        for s in found[1:]
    )


def _compile(compiler: str, library: Path) -> None:
    command = [*shlex.split(compiler), *FLAGS, str(SOURCE), "-o", str(library), "-lm"]
    # Not captured: what a hanging compiler started would keep the pipe open after it was killed.
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=quiet, stderr=quiet, start_new_session=True) as process:
        try:
            code = process.wait(COMPILE_SECONDS)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if code:
        raise subprocess.CalledProcessError(code, compiler)


def _difference(kernels: Kernels) -> float:
    """Largest relative difference from torch on a small softmax, norm and gated unit, which use every building block."""
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(n, 48, generator=generator) * 3 for n in (7, 1))
    ids = torch.arange(7)
    logp, entropy, lse, r = (torch.empty(7) for _ in range(4))
    normed, gated = torch.empty_like(x), torch.empty_like(x)
    kernels.log_prob(x, ids, logp, entropy, lse, 7, 48, 0.7)
    kernels.rms_norm(x, None, w, None, normed, r, 7, 48, 1e-6)
    kernels.swiglu(x, normed, gated, 7, 48, 48)
    true = (x * 0.7).log_softmax(-1)
    pairs = [
        (logp, true[ids, ids]),
        (entropy, -(true.exp() * true).sum(-1)),
        (normed, torch.nn.functional.rms_norm(x, (48,), w[0], 1e-6)),
        (gated, torch.nn.functional.silu(x) * normed),
    ]
    return max(float((ours - theirs).abs().max() / theirs.abs().max()) for ours, theirs in pairs)
