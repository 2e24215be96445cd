"""What this machine does best, measured once, cached and logged.

On some processors torch's default float32 product takes half of the speed that oneDNN's reaches, on others oneDNN's computes
in bfloat16 under the same setting. Fused attention beats plain products on some machines and loses on others. So each is
chosen by a probe of about a second: what is clearly faster and about as exact. What torch.compile makes of log-probabilities
and entropies takes half a minute to try, so it is tried for wide models only, whose phases are long. Choices are cached per
machine, because they decide the last bits of every checkpoint. Threads decide no byte: of those asked for, as many are used
as compute faster than fewer.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from trainorder import paths
from trainorder.reading import ParamsError

PATHS = ("default", "onednn")
ROWS = (1632, 1024, 128)
"""Rows of the products that are timed: micro-batches of training, and a step of decoding."""
ROUNDS = 15
"""Times each path is timed, in turns; the best counts, so that what else runs on the machine hardly matters."""
CLEARLY = 1.05
"""How many times faster than the default another way must be to be chosen."""
NARROW = 128
"""Below this width products take little of the time: the default, so that no run of a tiny model hangs on a close call."""
WIDE = 1024
"""From this width on compiling is tried; also the width of a checkpoint that does not say it."""
PRECISION = 3.0
"""How many times larger than the default's its error against float64 may be."""

GROUPS, GROUP, TOKENS, HEADS, HEAD_SIZE = 2, 8, 128, 4, 32
"""Prompts, rows of each, tokens of prompts and rows, heads: the attention that is timed, forward and backward."""
THREAD_ROWS, THREAD_PRODUCTS = 128, 40
"""A product of a decoding step, and how many of them each thread computes in a round: about 10 ms."""
OWN_CORE = 0.9
"""Share of the time that every thread must have had a core while threads were compared."""
UNSURE = "unsure"
"""Marks a measurement that is used now and not kept."""
LIKELIHOODS = (256, 8192)
"""Tokens and vocabulary of the logits whose log-probabilities and entropies are timed, forward and backward."""
MEMORY_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
"""Bytes that the container may use (control groups 2 and 1), or `max`."""
QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""`quota period` of the container in microseconds, or `max period`."""

_chosen: dict[str, Any] = {}


def prepare(threads: int, checkpoint: Path) -> dict[str, Any]:
    """Set torch up for a stage with a model as wide as the checkpoint.

    Chosen are `threads` (at most those asked for), the path of float32 products (`gemm`), how rows
    attend to shared prompts (`attention`) and how log-probabilities come from logits (`likelihood`).
    `TRAINORDER_GEMM=default|onednn`, `TRAINORDER_ATTENTION=products|sdpa` and `TRAINORDER_LIKELIHOOD=eager|compiled` override
    the probe, e.g. to get the bytes of another machine.

    Returns:
        What was chosen and measured; `chosen` gives the same to the manifest.
    """
    import torch

    from trainorder import likelihood, prefix

    found = dict(measured(_width(checkpoint)))
    ways = {"gemm": PATHS, "attention": prefix.WAYS, "likelihood": likelihood.WAYS}
    for name, allowed in ways.items():
        variable = f"TRAINORDER_{name.upper()}"
        found[name] = os.environ.get(variable) or found[name]
        if found[name] not in allowed:
            raise ParamsError(f"{variable} is {found[name]!r}, allowed are {' and '.join(allowed)}")
    found |= useful_threads(min(threads, allowed_cores()))
    torch.set_num_threads(found["threads"])
    _use(found["gemm"])
    prefix.use_way(found["attention"])
    likelihood.use_way(found["likelihood"])
    _chosen.update(found)
    return found


def chosen() -> dict[str, Any]:
    """What the last `prepare` of this process returned; empty before."""
    return dict(_chosen)


def measured(width: int) -> dict[str, Any]:
    """`gemm`, `attention`, `likelihood` and `peak_gflops` of one thread, from the cache or by measuring now."""
    return _cached(f"machine-{_key(width)}.json", lambda: _probe(width))


def allowed_cores() -> int:
    """Cores this process may keep busy: its affinity and its container's quota, which shows fewer than the machine has.

    Read, not timed: a busy minute would be remembered as a slow machine.
    """
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    try:
        quota, period = QUOTA.read_text(encoding="utf-8").split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no control group, or no bound in it
        return cores


def ram_bytes() -> int:
    """Bytes of memory of this machine, or of its container where that has less."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in MEMORY_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no control group, or no bound in it
            found.append(int(file.read_text(encoding="utf-8")))
    return min(found)


def useful_threads(most: int) -> dict[str, Any]:
    """Of `most` threads, `threads`: as many as compute faster side by side than fewer; `threads_speed`, what each number reached.

    Two cores of a machine may be one core's two hyperthreads, or share one's power. Cached only if every thread had a core
    of its own while it was timed: a busy minute must not be remembered as a slow machine.
    """
    if most == 1:
        return {"threads": 1}
    name = f"threads-{_digest(most, ROUNDS, CLEARLY, THREAD_ROWS, THREAD_PRODUCTS)}.json"
    return _cached(name, lambda: _timed_threads(most))


def _timed_threads(most: int) -> dict[str, Any]:
    speed, count = dict[int, float](), most
    while count:
        speed[count], share = max(_side_by_side(count) for _ in range(ROUNDS))
        if share < OWN_CORE:
            return {"threads": most, "threads_speed": "other programs ran", UNSURE: True}
        count //= 2
    return {"threads": fewest(speed), "threads_speed": {str(n): x for n, x in speed.items()}}


def fewest(speed: Mapping[int, float]) -> int:
    """The smallest number of threads than which no larger one is clearly faster.

    >>> fewest({1: 90.0, 2: 170.0, 4: 172.0})
    2
    """
    return next(count for count in sorted(speed) if CLEARLY * speed[count] >= max(speed.values()))


def _side_by_side(count: int) -> tuple[float, float]:
    """Products per second of so many threads together, and the share of that time they had a core."""
    import torch

    a, b = torch.ones(THREAD_ROWS, 256), torch.ones(256, 768)

    def work(_: int) -> float:
        start = time.thread_time()
        for _ in range(THREAD_PRODUCTS):
            torch.mm(a, b)
        return time.thread_time() - start

    with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        list(pool.map(work, range(count)))  # threads and buffers exist from here on
        start = time.perf_counter()
        spent = sum(pool.map(work, range(count)))
        wall = time.perf_counter() - start
    return round(count * THREAD_PRODUCTS / wall, 1), spent / (count * wall)


def _cached(name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    cache = paths.cache_folder() / name
    with contextlib.suppress(OSError):
        try:
            kept = json.loads(cache.read_text(encoding="utf-8"))
        except ValueError:
            kept = None
        if kept and isinstance(kept, dict):
            return kept
        cache.unlink(missing_ok=True)
    found = measure()
    if found.pop(UNSURE, False):
        return found
    temporary = cache.with_name(f".{cache.name}.{os.getpid()}")
    with contextlib.suppress(OSError, ValueError):  # what cannot be kept is measured each time
        try:
            cache.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(found), encoding="utf-8")
            os.link(temporary, cache)  # the first of two that measured at once decides for both
        except FileExistsError:
            return json.loads(cache.read_text(encoding="utf-8"))
        finally:
            temporary.unlink(missing_ok=True)
    return found


def _width(checkpoint: Path) -> int:
    try:
        config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return WIDE
    return int(config.get("hidden_size") or config.get("n_embd") or WIDE)


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

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    shapes = ROWS, (GROUPS, GROUP, TOKENS, HEADS, HEAD_SIZE)
    return _digest(width, *shapes, LIKELIHOODS, ROUNDS, CLEARLY, PRECISION, NARROW, WIDE, device)


def _digest(*facts: object) -> str:
    """Of the facts, torch's version and the processor: what is measured again when one of them changes."""
    import torch

    whole = [*facts, torch.__version__, processor(features=True)]
    return hashlib.sha256(repr(whole).encode()).hexdigest()[:16]


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
    try:
        ways = {} if width < NARROW else _attention()
        ways |= {} if width < WIDE else _likelihood()
    finally:
        torch.set_num_threads(threads)
    gemm, peak = choose(speed, error), max(speed.values())
    gemm = "default" if width < NARROW else gemm
    found = {"gemm": gemm, "peak_gflops": peak, "width": width, "speed": speed, "error": error}
    return {**found, "attention": "products", "likelihood": "eager", **ways}


def choose(speed: Mapping[str, float], error: Mapping[str, float]) -> str:
    """The way to take: another than the first only if it is clearly faster and about as exact.

    >>> choose({"default": 110.0, "onednn": 255.0}, {"default": 4.6e-5, "onednn": 8e-5})
    'onednn'
    >>> choose({"default": 110.0, "onednn": 525.0}, {"default": 4.6e-5, "onednn": 3e-3})
    'default'
    """
    default, *others = speed
    fit = [name for name in others if error[name] <= PRECISION * error[default]]
    best = max(fit, key=lambda name: speed[name], default=default)
    return best if speed[best] >= CLEARLY * speed[default] else default


def _attention() -> dict[str, Any]:
    """How rows attend: chosen by the time of forward and backward, with the error of values and gradients."""
    import torch

    from trainorder import prefix

    owners = [group for group in range(GROUPS) for _ in range(GROUP)]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layout = prefix.Layout.of([TOKENS] * GROUPS, [TOKENS] * len(owners), owners, device)
    generator = torch.Generator().manual_seed(0)
    shape = (3, HEADS, len(layout.positions), HEAD_SIZE)
    whole = torch.randn(shape, generator=generator).to(device)
    weight = torch.randn(shape[1:], generator=generator).to(device)

    def run(dtype: torch.dtype) -> list[torch.Tensor]:
        x = whole.to(dtype, copy=True).requires_grad_()
        out = layout.attend(0, x[0] * HEAD_SIZE**-0.5, x[1], x[2])
        (out * weight.to(dtype)).sum().backward()
        assert x.grad is not None
        return [out.detach(), x.grad]

    speed, error = _raced(prefix.WAYS, prefix.use_way, run)
    attention = choose(speed, error)
    return {"attention": attention, "attention_speed": speed, "attention_error": error}


def _likelihood() -> dict[str, Any]:
    """How log-probabilities and entropies come from logits: eager where compiling fails, e.g. for want of a compiler."""
    import torch

    from trainorder import likelihood

    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(LIKELIHOODS, generator=generator).to(device)
    targets = torch.arange(len(whole), device=device)

    def run(dtype: torch.dtype) -> list[torch.Tensor]:
        x = whole.to(dtype, copy=True).requires_grad_()
        logp, entropy = likelihood.likelihood(x, targets)
        assert entropy is not None
        (logp + 0.1 * entropy).sum().backward()
        assert x.grad is not None
        return [logp.detach(), entropy.detach(), x.grad]

    try:
        speed, error = _raced(likelihood.WAYS, likelihood.use_way, run)
    except Exception as failure:  # torch.compile raises whatever its compilers do
        return {"likelihood_error": f"{type(failure).__name__}: {str(failure)[:200]}"}
    way = choose(speed, error)
    return {"likelihood": way, "likelihood_speed": speed, "likelihood_error": error}


def _raced(
    ways: Sequence[str],
    use: Callable[[str], None],
    run: Callable[[Any], list[Any]],
) -> tuple[dict[str, float], dict[str, float]]:
    """Of each way runs per second at best, in turns, and the largest error of what it gives against float64."""
    import torch

    seconds = dict.fromkeys(ways, float("inf"))
    error: dict[str, float] = {}
    try:
        exact = run(torch.float64)
        for way in ways:
            use(way)
            pairs = zip(run(torch.float32), exact, strict=True)
            error[way] = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
        for _ in range(ROUNDS // 3):
            for way in ways:
                use(way)
                start = time.perf_counter()
                run(torch.float32)[-1].cpu()  # waits for a GPU
                seconds[way] = min(seconds[way], time.perf_counter() - start)
    finally:
        use(ways[0])
    return {way: round(1 / max(spent, 1e-9), 1) for way, spent in seconds.items()}, error


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
