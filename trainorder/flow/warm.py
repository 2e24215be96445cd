"""A process with the heavy imports done, that forks a child for every stage the flow runs and every dvc that runs it (trainorder/warm.py asks).

Only other people's packages are imported here: what trainorder's own code is when a stage starts is what runs.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import importlib.util
import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from trainorder.process import die_with_parent
from trainorder.warm import READY, VARIABLE, is_ready

TRANSFORMERS = "transformers"
PACKAGES = (
    "torch",
    TRANSFORMERS,
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "tokenizers",
    "safetensors.torch",
    "pandas",
    "pyarrow.parquet",
    "scipy.special",
    "mlflow",
    "mlflow.tracking.client",
    "mlflow.store.tracking.sqlalchemy_store",
)
"""What stages import."""
DVC = ("dvc.cli", "dvc.commands.repro", "dvc.repo.reproduce", "networkx")
"""What `dvc repro` imports."""


@contextmanager
def warm_stages() -> Iterator[None]:
    """Keep such a process while the block runs, or use the one there is; what the block starts finds it by an environment variable."""
    if is_ready():
        yield
        return
    folder = tempfile.mkdtemp(prefix="trainorder-")
    address = str(Path(folder) / "warm")
    process = subprocess.Popen(
        [sys.executable, "-m", "trainorder.flow.warm", address],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=partial(die_with_parent, os.getpid()),
    )
    os.environ[VARIABLE] = address
    try:
        yield
    finally:
        del os.environ[VARIABLE]
        process.terminate()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Listen, import, then fork a child per request until terminated."""
    (address,) = sys.argv[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(address)
        listener.listen(64)  # before the imports: early clients block
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        for name in (*DVC, *PACKAGES):
            _import(name)
        _import_deepspeed()
        assert threading.active_count() == 1, (
            "a package started a thread, which would not survive fork"
        )
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended children are reaped by the system
        gc.collect()
        gc.freeze()  # or every child's first collection copies all pages of what is imported
        Path(f"{address}{READY}").touch()
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _serve(connection)
            connection.close()


def _import(name: str) -> None:
    if name != TRANSFORMERS:
        importlib.import_module(name)
        return
    from trainorder.pretrained import import_transformers

    import_transformers()
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    get_checkpoint_conversion_mapping("llama")  # builds its table of 700 regular expressions


def _import_deepspeed() -> None:
    """Where it is installed, transformers imports it at every save of a model; it looks for a GPU, whose driver would not survive fork."""
    torch = sys.modules.get("torch")
    if torch and not torch.backends.cuda.is_built() and importlib.util.find_spec("deepspeed"):
        importlib.import_module("deepspeed")


def _serve(connection: socket.socket) -> None:
    """In the child: become the module that was asked for, tell its exit code, end."""
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        die_with_parent()
        length, outputs, _, _ = socket.recv_fds(connection, 4, 2)
        request = json.loads(_read(connection, int.from_bytes(length, "big")))
        for number, descriptor in zip((1, 2), outputs, strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.environ.clear()
        os.environ.update(request["env"])
        os.chdir(request["cwd"])
        sys.path[0] = request["cwd"]
        sys.argv = [request["module"], *request["argv"]]
        sys.orig_argv = [sys.executable, "-m", *sys.argv]
        threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
        code = _run(request["module"])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        connection.sendall(bytes([code & 255]))
        os._exit(code)


def _run(module: str) -> int:
    """`python -m module`, with all that happens at its exit."""
    for name in [n for n in sys.modules if n.partition(".")[0] in ("stages", "trainorder")]:
        del sys.modules[name]  # this file's own imports: the stage imports what is on disk now
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    return code


def _end_with(connection: socket.socket) -> None:
    """End when the process that waits for this one is gone; it never says anything more."""
    if not connection.recv(1):
        os.kill(os.getpid(), signal.SIGTERM)


def _read(connection: socket.socket, length: int) -> bytes:
    text = b""
    while len(text) < length:
        part = connection.recv(length - len(text))
        if not part:
            raise ConnectionError("the stage that asked is gone")
        text += part
    return text


if __name__ == "__main__":
    main()
