"""Borrowing a process that has torch, transformers and DVC imported already: the flow keeps one (trainorder/flow/warm.py).

Importing them takes longer than many a stage computes. Where TRAINORDER_WARM names the flow's socket, `python -m stages.X`
asks there for a forked child that runs the same module with the same arguments, folder, environment and output,
waits for it, and ends with its exit code. Without a socket, or with a dead one, the stage runs where it was started: the
bytes are the same. If this process is killed, so is the child. `python -m trainorder.warm MODULE ARGUMENT...` does this
for any module.
"""

from __future__ import annotations

import json
import os
import runpy
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainorder.process import die_with_parent

VARIABLE = "TRAINORDER_WARM"
HEAVY = (
    "base_model",
    "sft_warmup",
    "sft_phase",
    "distill",
    "train_judge",
    "rl",
    "merge",
    "evaluate",
    "probes",
    "measure_bwt",
    "report",
    "metrics",
    "mirror",
)
READY = ".ready"
"""Ends the name of an empty file beside the socket: all is imported, and a child comes at once."""
LOST = 70
"""Exit code where the child ended without giving one (killed, out of memory)."""


def borrow() -> None:
    """Run this `python -m stages.X` in the flow's child and exit with its code; return where that is not possible."""
    module = _module()
    if module is not None and "RANK" not in os.environ:
        others = {name: value for name, value in os.environ.items() if name != VARIABLE}
        _run_there(module, sys.orig_argv[3:], others)


def is_ready() -> bool:
    """Whether there is a warm process that has all imported."""
    address = os.environ.get(VARIABLE)
    return bool(address) and Path(f"{address}{READY}").exists()


def main() -> None:
    """Run the module of the command line in the flow's child, or here where that is not possible."""
    module, *arguments = sys.argv[1:]
    _run_there(module, arguments, os.environ)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _run_there(module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    address = os.environ.get(VARIABLE)
    if not address:
        return
    die_with_parent()
    request = {
        "module": module,
        "argv": arguments,
        "cwd": str(Path.cwd()),
        "env": dict(environment),
    }
    try:
        connection = start(address, request, (1, 2))
    except OSError:
        return
    with connection:
        code = connection.recv(1)
    if not code:
        print(
            f"error: the process that ran {module} terminated unexpectedly: killed?",
            file=sys.stderr,
        )
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code[0] if code else LOST)


def start(address: str, request: Mapping[str, Any], outputs: Sequence[int]) -> socket.socket:
    """Have a child run `python -m module argv` in `cwd` with `env`, its stdout and stderr going to two descriptors.

    Returns:
        A connection that gives the exit code as one byte, or ends without one where the child was killed.

    Raises:
        OSError: no process listens at `address`.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(address)
        text = json.dumps(request).encode()
        socket.send_fds(connection, [len(text).to_bytes(4, "big")], list(outputs))
        connection.sendall(text)
    except OSError:
        connection.close()
        raise
    return connection


def _module() -> str | None:
    """`stages.X` of `python -m stages.X ...`, for the stages that are worth it."""
    words = sys.orig_argv[1:3]
    heavy = [f"stages.{name}" for name in HEAVY]
    return words[1] if len(words) == 2 and words[0] == "-m" and words[1] in heavy else None


if __name__ == "__main__":
    main()
