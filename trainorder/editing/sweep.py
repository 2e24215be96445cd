"""`trainorder run --set KEY=VALUE --exp NAME`: params.yaml under other values, each run saved as a DVC experiment.

`dvc exp run -S rl.lr=1e-3` changes values and runs the stages that there are. An order is another set of stages, so it is
compiled before DVC looks: here.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from trainorder import paths
from trainorder.config import params_file, parse_params
from trainorder.editing.seeds import wanted
from trainorder.editing.text import SET, with_value
from trainorder.files import write_text
from trainorder.plan.check import check
from trainorder.process import StageError, die_with_parent, held
from trainorder.reading import ParamsError, parse_yaml


def versions(text: str, settings: Sequence[str]) -> list[tuple[str, str]]:
    """(what is set, new text of params.yaml) of every combination; a key that is set twice is swept.

    Comments and spacing are kept. `+KEY=VALUE` adds an entry where the names are free.

    Raises:
        ParamsError: a setting is no `KEY=VALUE`, names nothing that there is, or gives params that cannot work.
    """
    values: dict[str, list[str]] = {}
    for setting in settings:
        key, sign, value = setting.partition("=")
        if not sign or not key.strip("+"):
            raise ParamsError(
                f"--set {setting!r}: write KEY=VALUE, as in orders.mine='[math, qa]' or rl.lr=1e-3"
            )
        values.setdefault(key, []).append(value)
    found = []
    for chosen in itertools.product(*values.values()):
        new = text
        for key, value in zip(values, chosen, strict=True):
            new = with_value(new, key, value)
        check(parse_params(parse_yaml(new, SET), source=SET))
        label = ", ".join(f"{key}={value}" for key, value in zip(values, chosen, strict=True))
        found.append((label, new))
    return found


def run(settings: Sequence[str], name: str | None, seeds: str | None = None) -> int:
    """Run the flow under every combination, and save each as an experiment: NAME, or NAME-1, NAME-2, ...

    `seeds` is what `--seeds` asks for. The last one stays in the work tree, as with `dvc exp run`; where nothing was trained
    params.yaml is as it was. Returns the exit code of the flow.

    Raises:
        ParamsError: a setting is wrong; nothing was changed.
        StageError: another flow runs in this folder, and nothing was changed; or DVC could not save the run.
    """
    if name is not None:
        _check_repository()
    with held(paths.FLOW_LOCK, "runs a flow in this folder") as lock:
        text = params_file().read_text(encoding="utf-8")
        if seeds is not None:
            settings = [*settings, f"seeds={wanted(text, seeds)}"]
        found = versions(text, settings)
        if len(found) > 1 and name is None:
            raise ParamsError(f"--set asks for {len(found)} runs: name them with --exp NAME")
        for number, (label, new) in enumerate(found, 1):
            print(label, flush=True)
            if code := run_with(new, lock):
                return code
            if name is not None:
                _save(name if len(found) == 1 else f"{name}-{number}")
    return 0


def run_with(text: str, lock: int) -> int:
    """Run the flow with this text of params.yaml, which is as it was where the run fails before it trains anything.

    `lock` is the flow lock's descriptor. Returns the exit code of the flow.
    """
    file, before = params_file(), _trained()
    old = file.read_text(encoding="utf-8")
    write_text(file, text)
    code = 1
    try:
        flow = subprocess.Popen(
            [sys.executable, "-m", "trainorder.flow.run"],
            pass_fds=(lock,),
            preexec_fn=partial(die_with_parent, os.getpid()),
        )
        usual = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the flow, which ends
        try:
            code = flow.wait()
        finally:
            signal.signal(signal.SIGINT, usual)
    finally:
        if code and _trained() == before and text != old:
            write_text(file, old)
            print(f"nothing was trained: {file} is as it was", file=sys.stderr)
    return code


def _trained() -> set[tuple[str, int]]:
    """The records of training there are; one that began changes them."""
    folder = Path("runs")
    if not folder.is_dir():
        return set()
    return {(entry.name, entry.stat().st_mtime_ns) for entry in folder.iterdir()}


def _save(name: str) -> None:
    """`dvc exp save`, with the compiled files and their locks where git does not have them yet."""
    files = [paths.PLAN, paths.PIPELINE.parent, paths.METRICS, paths.PLOTS]
    new = [f"--include-untracked={file}" for file in files if file.exists()]
    command = [sys.executable, "-m", "dvc", "exp", "save", "--force", f"--name={name}", *new]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise StageError(
            f"dvc exp save: {said}; the run is finished, only not saved as experiment {name}"
        )
    print(f"experiment {name}: `dvc exp show` compares, `dvc exp apply {name}` brings it back")


def _check_repository() -> None:
    """A DVC experiment is a commit beside the last one, so there must be one."""
    done = subprocess.run(["git", "rev-parse", "-q", "--verify", "HEAD"], capture_output=True, check=False)  # fmt: skip
    if done.returncode:
        raise ParamsError("--exp needs a commit to compare with: `git add . && git commit` first")
