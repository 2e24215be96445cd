"""Starting a stage as several ranks: torchrun's launcher on this machine, DeepSpeed's over a hostfile."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainorder.config import TrainingConfig
from trainorder.reading import NotHere, ParamsError

INSTALL = (
    "training.backend is deepspeed, and deepspeed is not installed: `pip install 'trainorder[deepspeed]'`, "
    "or set training.backend: local"
)


class Silent:
    """The log of all ranks but the first."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Keep nothing: the first rank logs the same numbers."""

    def state(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing to go on behind."""


def launched() -> bool:
    """Whether a launcher started this process as one of several ranks.

    Kubeflow and the like set RANK for the pod, whatever runs in it; only torchrun and deepspeed set LOCAL_RANK.
    """
    return {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys()


def is_first(training: TrainingConfig) -> bool:
    """Whether this process keeps the records: rank 0, or the only one, as it always is without deepspeed."""
    return training.backend != "deepspeed" or os.environ.get("RANK", "0") == "0"


def launch(module: str, arguments: Sequence[str], training: TrainingConfig) -> int:
    """Run `python -m module arguments` on every rank; the exit code of the first that failed, or 0.

    Raises:
        ParamsError: deepspeed is not installed, or the hostfile or a way to reach its machines is missing.
    """
    require(training)
    if training.hostfile is not None:
        return subprocess.call(command(module, arguments, training))
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=training.ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        max_restarts=0,
        monitor_interval=0.2,
    )
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        elastic_launch(config, sys.executable)("-m", module, *arguments)
    except ChildFailedError as error:  # the rank has said what was wrong
        codes = [failure.exitcode for failure in error.failures.values()]
        return next((code for code in codes if code > 0), 1)
    return 0


def require(training: TrainingConfig) -> None:
    """Refuse what `launch` could not start.

    Raises:
        NotHere: deepspeed is not installed, or the hostfile or a way to reach its machines is missing.
        ParamsError: a line of the hostfile is not `host slots=GPUS`.
    """
    if importlib.util.find_spec("deepspeed") is None:
        raise NotHere(INSTALL)
    if training.hostfile is not None:
        slots(training.hostfile)
        _require_pdsh(_hosts(training.hostfile))


def _require_pdsh(hosts: Sequence[str]) -> None:
    if len(hosts) > 1 and shutil.which("pdsh") is None:
        raise NotHere(
            "training.hostfile needs pdsh, with which DeepSpeed reaches the machines: install pdsh (apt-get install pdsh) "
            "and let this user log in to each host without a password, or set training.hostfile to null"
        )


def command(module: str, arguments: Sequence[str], training: TrainingConfig) -> list[str]:
    """The deepspeed launcher's command line for a hostfile, by pdsh where it names several machines."""
    assert training.hostfile is not None
    hosts = _hosts(training.hostfile)
    _require_pdsh(hosts)
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", training.hostfile]
    with socket.socket() as free:  # the launcher's own choice is the same for two nodes at a time
        free.bind(("", 0))
        port = str(free.getsockname()[1])
    launcher += ["--master_port", port, "--no_local_rank"]
    if len(hosts) == 1:  # this machine, which need not let anybody in
        launcher += ["--master_addr", "127.0.0.1", "--no_ssh_check"]
    return [*launcher, "--module", module, *arguments]


def slots(hostfile: str) -> list[int]:
    """Ranks of each machine of a DeepSpeed hostfile.

    Raises:
        ParamsError: it is missing, or a line is not `host slots=GPUS`.
    """
    found = []
    for line in _hosts(hostfile):
        match = re.fullmatch(r"\S+\s+slots=([1-9]\d*)", line)
        if match is None:
            raise ParamsError(
                f"training.hostfile: {hostfile} has the line {line!r}; write one line `host slots=GPUS` per machine"
            )
        found.append(int(match[1]))
    return found


def _hosts(hostfile: str) -> list[str]:
    try:
        lines = Path(hostfile).read_text(encoding="utf-8").splitlines()
    except OSError:
        raise NotHere(
            f"training.hostfile: {hostfile} not found; write one line `host slots=GPUS` per machine"
        ) from None
    return [line for line in map(str.strip, lines) if line and not line.startswith("#")]
