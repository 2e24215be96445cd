"""What the hosts of an experiment have, what takes memory on them, and whether it fits."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from trainorder.config import (
    TrainingConfig,
)
from trainorder.device import device_of
from trainorder.files import size_text
from trainorder.machine import ram_bytes
from trainorder.reading import ParamsError

GPU, CPU = "cuda", "cpu"


@dataclass(frozen=True)
class Machine:
    """What the hosts of an experiment have; each of them alike."""

    hosts: int
    gpus: int
    """Of a host that ranks use; 0 computes on the CPU."""
    gpu: int
    """Bytes of memory of each GPU."""
    ram: int
    disk: int
    """Bytes that are free."""

    @classmethod
    def here(cls, training: TrainingConfig) -> Self:
        """This machine.

        Raises:
            ParamsError: training.device is cuda, and there is none.
        """
        import shutil

        on_gpu = device_of(training.device) == GPU
        return cls(
            1,
            torch.cuda.device_count() if on_gpu else 0,
            torch.cuda.mem_get_info()[1] if on_gpu else 0,
            ram_bytes(),
            shutil.disk_usage(Path()).free,
        )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse the description of a machine, in which 1 GB is 10^9 bytes.

        Raises:
            ParamsError: it has another form.

        >>> Machine.parse("2 hosts of 8 GPUs with 80 GB, 1000 GB RAM, 4000 GB disk").gpus
        8
        >>> Machine.parse("1 host of 0 GPUs, 16 GB RAM, 50 GB disk").gpu
        0
        """
        found = re.fullmatch(
            r"(\d+) hosts? of (\d+) GPUs?(?: with (\d+) GB)?, (\d+) GB RAM, (\d+) GB disk",
            text.strip(),
        )
        if found is None or (int(found[2]) and not found[3]):
            raise ParamsError(
                f"the machine {text.strip()!r} cannot be read: write e.g. "
                "`1 host of 8 GPUs with 80 GB, 1000 GB RAM, 2000 GB disk`"
            )
        hosts, gpus, gpu, ram, disk = (int(number or 0) for number in found.groups())
        return cls(hosts, gpus, gpu * 10**9, ram * 10**9, disk * 10**9)

    @property
    def device(self) -> str:
        """Where models compute."""
        return GPU if self.gpus else CPU


@dataclass(frozen=True)
class Part:
    """Something that takes memory."""

    what: str
    size: int
    when: str = ""
    """The moment that it is there; empty: all the time."""
    change: str = ""
    """The setting that makes it smaller."""
    sure: bool = True
    """False: an estimate that no refusal may rest on."""


@dataclass(frozen=True)
class Stage:
    """What one process (one rank) of a stage takes on its device and on its host; one host may run several."""

    name: str
    device: tuple[Part, ...]
    host: tuple[Part, ...] = ()
    processes: int = 1
    """Side by side on a host."""

    def total(self, machine: Machine) -> tuple[int, int]:
        """Bytes of a GPU at most (0 without one), and bytes of a host."""
        if machine.gpus:
            return peak(self.device), self.processes * peak(self.host)
        return 0, self.processes * peak((*self.device, *self.host))


def peak(parts: Iterable[Part]) -> int:
    """What is there all the time and at the worst moment.

    >>> peak([Part("a", 5), Part("b", 3, "sampling"), Part("c", 2, "training"), Part("d", 2, "training")])
    9
    """
    moments: dict[str, int] = {"": 0}
    for part in parts:
        moments[part.when] = moments.get(part.when, 0) + part.size
    always = moments.pop("")
    return always + max(moments.values(), default=0)


def too_large(stage: Stage, machine: Machine, *, sure: bool = False) -> str:
    """Why a stage does not fit, in one line; empty where it does. `sure` leaves estimates out."""
    keep: Callable[[Part], bool] = (lambda part: part.sure) if sure else (lambda part: True)
    on_device, on_host = tuple(filter(keep, stage.device)), tuple(filter(keep, stage.host))
    kept = Stage(stage.name, on_device, on_host, stage.processes)
    for needed, have, parts, where in (
        (kept.total(machine)[0], machine.gpu, on_device, "each GPU's memory"),
        (
            kept.total(machine)[1],
            machine.ram,
            on_host if machine.gpus else (*on_device, *on_host),
            "RAM",
        ),
    ):
        if needed > have:
            largest = sorted(parts, key=lambda part: -part.size)
            listed = ", ".join(f"{part.what} {size_text(part.size)}" for part in largest[:4])
            change = next((part.change for part in largest if part.change), "")
            return (
                f"{stage.name} needs at least {size_text(needed)} of {where}, and there are {size_text(have)} "
                f"({listed})" + (f": {change}" if change else "")
            )
    return ""
