"""What this machine does best, measured once, cached and logged.

On some processors torch's default float32 product takes half of the speed that oneDNN's reaches, on others oneDNN's computes
in bfloat16 under the same setting. So the path is chosen by a probe of about a second: the faster one, if it is clearly
faster and about as exact. The choice is cached per machine, because it decides the last bits of every checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainorder.reading import ParamsError

PATHS = ("default", "onednn")
ROWS = (1632, 1024, 128)
"""Rows of the products that are timed: micro-batches of training, and a step of decoding."""
ROUNDS = 15
"""Times each path is timed, in turns; the best counts, so that what else runs on the machine hardly matters."""
CLEARLY = 1.05
"""How many times faster oneDNN must be to be chosen."""
NARROW = 128
"""Below this width products take little of the time: the default, so that no run of a tiny model hangs on a close call."""
UNKNOWN = 1024
"""Width that a checkpoint has which does not say it."""
PRECISION = 3.0
"""How many times larger than the default's its error against float64 may be."""

_chosen: dict[str, Any] = {}


def prepare(threads: int, checkpoint: Path) -> dict[str, Any]:
    """Set torch up for a stage: threads, and the path of float32 products of a model as wide as the checkpoint.

    `TRAINORDER_GEMM=default` or `onednn` overrides the probe, e.g. to get the bytes of another machine.

    Returns:
        What was chosen and measured; `chosen` gives the same to the manifest.
    """
    import torch

    torch.set_num_threads(threads)
    found = dict(measured(_width(checkpoint)))
    found["gemm"] = os.environ.get("TRAINORDER_GEMM") or found["gemm"]
    if found["gemm"] not in PATHS:
        raise ParamsError(
            f"TRAINORDER_GEMM is {found['gemm']!r}, allowed are {' and '.join(PATHS)}"
        )
    _use(found["gemm"])
    _chosen.update(found)
    return found


def chosen() -> dict[str, Any]:
    """What the last `prepare` of this process returned; empty before."""
    return dict(_chosen)


def measured(width: int) -> dict[str, Any]:
    """`gemm` (default or onednn) and `peak_gflops` of one thread, from the cache or by measuring now."""
    cache = cache_folder() / f"machine-{_key(width)}.json"
    try:
        return json.loads(cache.read_text(encoding="utf-8"))
    except OSError:
        pass
    except ValueError:
        cache.unlink(missing_ok=True)
    found = _probe(width)
    cache.parent.mkdir(parents=True, exist_ok=True)
    temporary = cache.with_name(f".{cache.name}.{os.getpid()}")
    temporary.write_text(json.dumps(found), encoding="utf-8")
    try:
        os.link(temporary, cache)  # the first of two that measured at once decides for both
    except FileExistsError:
        found = json.loads(cache.read_text(encoding="utf-8"))
    finally:
        temporary.unlink()
    return found


def _width(checkpoint: Path) -> int:
    try:
        config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return UNKNOWN
    return int(config.get("hidden_size") or UNKNOWN)


def cache_folder() -> Path:
    """Where facts about this machine are kept: $XDG_CACHE_HOME/trainorder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trainorder"


def processor(*, features: bool = False) -> str:
    """The CPU's name; with `features` also what decides which instructions there are."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("model name", *(("model\t", "flags", "Features") if features else ()))
    found = dict.fromkeys(line for line in lines if line.startswith(wanted))
    if features:
        return "\n".join(found)
    return next((line.partition(":")[2].strip() for line in found), platform.machine())


def _key(width: int) -> str:
    import torch

    facts = [
        torch.__version__,
        width,
        ROWS,
        ROUNDS,
        CLEARLY,
        PRECISION,
        NARROW,
        processor(features=True),
    ]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _probe(width: int) -> dict[str, Any]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    speed: dict[str, float] = dict.fromkeys(PATHS, 0.0)
    error: dict[str, float] = {}
    try:
        for _ in range(ROUNDS):
            for path in PATHS:
                _use(path)
                speed[path] = max(speed[path], _speed(width))
        for path in PATHS:
            _use(path)
            error[path] = _error()
    finally:
        _use("default")
        torch.set_num_threads(threads)
    gemm, peak = choose(speed, error), max(speed.values())
    gemm = "default" if width < NARROW else gemm
    return {"gemm": gemm, "peak_gflops": peak, "width": width, "speed": speed, "error": error}


def choose(speed: Mapping[str, float], error: Mapping[str, float]) -> str:
    """The path to take: oneDNN if it is clearly faster and exact.

    >>> choose({"default": 110.0, "onednn": 255.0}, {"default": 4.6e-5, "onednn": 8e-5})
    'onednn'
    >>> choose({"default": 110.0, "onednn": 525.0}, {"default": 4.6e-5, "onednn": 3e-3})
    'default'
    """
    faster = speed["onednn"] >= CLEARLY * speed["default"]
    exact = error["onednn"] <= PRECISION * error["default"]
    return "onednn" if faster and exact else "default"


def _use(path: str) -> None:
    import torch

    # what oneDNN calls "bf16" allows its fast float32 path, and on processors with AMX really bfloat16: see `_error`
    torch.backends.mkldnn.matmul.fp32_precision = "bf16" if path == "onednn" else "none"  # type: ignore[attr-defined]


def _speed(width: int) -> float:
    """GFLOP/s over all shapes, into and out of an inner layer, once."""
    import torch

    inner = 3 * width
    pairs = [
        (torch.ones(rows, a), torch.ones(a, b))
        for rows in ROWS
        for a, b in ((width, inner), (inner, width))
    ]
    start = time.thread_time()
    for a, b in pairs:
        torch.mm(a, b)
    spent = time.thread_time() - start
    return round(sum(4e-9 * rows * width * inner for rows in ROWS) / max(spent, 1e-9), 1)


def _error() -> float:
    """Largest error of a product of 768 terms against float64, relative to the largest entry."""
    import torch

    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(64, 768, generator=generator), torch.randn(768, 64, generator=generator)
    exact = a.double() @ b.double()
    return float(((a @ b) - exact).abs().max() / exact.abs().max())
