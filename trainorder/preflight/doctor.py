"""What this machine offers to a run, and what would make it better: `trainorder doctor`."""

from __future__ import annotations

import os
import platform
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from trainorder.files import size_text
from trainorder.machine import allowed_cores, processor, ram_bytes
from trainorder.paths import cache_folder
from trainorder.reading import ParamsError
from trainorder.redact import redact

PACKAGES = (
    "trainorder",
    "torch",
    "transformers",
    "dvc",
    "prefect",
    "mlflow",
    "peft",
    "deepspeed",
    "vllm",
)
OPTIONAL = {"deepspeed": "training on several ranks", "vllm": "sampling with vLLM"}
PORTS = {"Prefect": 4200, "MLflow": 5000}
ENOUGH_DISK = 5 << 30


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    found: str
    state: Literal["ok", "note", "problem"] = "ok"
    """note: a run works without it; problem: a run fails or is refused."""
    advice: str = ""
    """What to do, where something is to be done."""


def examine() -> list[Finding]:
    """Look at everything; takes about a second, and opens or changes nothing of the user's."""
    return [finding for look in LOOKS for finding in look()]


def as_json(found: list[Finding]) -> list[dict[str, Any]]:
    """The findings as plain data."""
    return [asdict(finding) for finding in found]


def _versions() -> Iterator[Finding]:
    yield Finding(
        "Python", f"{platform.python_version()} on {platform.system()} {platform.release()}"
    )
    for package in PACKAGES:
        found = next(filter(None, map(_version, (package, f"{package}-cpu"))), None)
        if found is not None:
            yield Finding(package, found)
        elif package in OPTIONAL:
            advice = f"only for {OPTIONAL[package]}: install the extra `{package}` of trainorder"
            yield Finding(package, "not installed", "note", advice)
        else:
            yield Finding(
                package,
                "not installed",
                "problem",
                f"install trainorder with what it needs, or `pip install {package}`",
            )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _computing() -> Iterator[Finding]:
    import torch

    cores = allowed_cores()
    yield Finding(
        "processor", f"{processor()}, {cores} cores to use, {size_text(ram_bytes())} of memory"
    )
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(i)
            yield Finding(f"GPU {i}", f"{facts.name}, {size_text(facts.total_memory)}")
    else:
        yield Finding(
            "GPU",
            "none that torch can use",
            "note",
            "small models train on the CPU; for larger ones see configs/one-gpu.yaml",
        )
    from trainorder.llama import kernels

    built, line = kernels.load()
    yield Finding(
        "kernels for small Llamas",
        line,
        "ok" if built else "note",
        "" if built else "install gcc for about twice the speed",
    )


def _sandbox() -> Iterator[Finding]:
    from trainorder.rewards.grading import reached
    from trainorder.rewards.sandbox import IsolationError

    try:
        found = reached("process")
    except IsolationError as error:
        yield Finding("sandbox for programs", "none", "problem", str(error))
        return
    weak = found.level == "process"
    advice = (
        "set `grading.isolation: process` if you accept it, or allow user namespaces"
        if weak
        else ""
    )
    yield Finding(
        "sandbox for programs", f"isolation {found.level}", "problem" if weak else "ok", advice
    )


def _folder() -> Iterator[Finding]:
    from trainorder.preflight import machine

    free = shutil.disk_usage(Path()).free
    little = free < ENOUGH_DISK
    yield Finding(
        "disk",
        f"{size_text(free)} free in {Path.cwd()}",
        "note" if little else "ok",
        "`trainorder plan` says what a run needs, `trainorder gc` frees" if little else "",
    )
    cache = cache_folder()
    writable = os.access(next(p for p in (cache, *cache.parents) if p.exists()), os.W_OK)
    yield Finding(
        "cache",
        str(cache),
        "ok" if writable else "note",
        ""
        if writable
        else "not writable: probes are repeated by every process; set XDG_CACHE_HOME",
    )
    if not Path("dvc.yaml").is_file():
        yield Finding("project", "this folder is none", "note", "`trainorder init NAME` makes one")
        return
    try:
        machine.check()
        yield Finding("project", "git and DVC can work here")
    except ParamsError as error:
        yield Finding("project", "cannot run", "problem", str(error))


def _ports() -> Iterator[Finding]:
    for name, port in PORTS.items():
        with socket.socket() as probe:
            busy = probe.connect_ex(("127.0.0.1", port)) == 0
        yield Finding(
            f"port {port}",
            f"busy: `trainorder ui` takes another for {name}" if busy else "free",
            "note" if busy else "ok",
        )


def _settings() -> Iterator[Finding]:
    for name in (
        "MLFLOW_TRACKING_URI",
        "MLFLOW_EXPERIMENT_NAME",
        "PREFECT_API_URL",
        "HF_HUB_OFFLINE",
        "CUDA_VISIBLE_DEVICES",
        "OMP_NUM_THREADS",
    ):
        if name in os.environ:
            yield Finding(name, redact(os.environ[name]))


LOOKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _versions,
    _computing,
    _sandbox,
    _folder,
    _ports,
    _settings,
)
