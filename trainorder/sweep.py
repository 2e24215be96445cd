"""`trainorder run --set KEY=VALUE --exp NAME`: params.yaml under other values, each run saved as a DVC experiment.

`dvc exp run -S rl.lr=1e-3` changes values and runs the stages that there are. An order is another set of stages, so it is
compiled before DVC looks: here.
"""

from __future__ import annotations

import io
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from trainorder import paths
from trainorder.config import Params, params_file, parse_params
from trainorder.files import write_text
from trainorder.plan.check import check
from trainorder.process import StageError, die_with_parent, held
from trainorder.reading import ParamsError, did_you_mean, parse_yaml

SET = "--set"
FREE = ("orders", "phases", "tasks", "merges", "variants", "judges")
"""Sections whose keys are the user's own names, so that a mistyped one would be another entry."""


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
            new = _with(new, key, value)
        check(parse_params(parse_yaml(new, SET), source=SET))
        label = ", ".join(f"{key}={value}" for key, value in zip(values, chosen, strict=True))
        found.append((label, new))
    return found


def run(settings: Sequence[str], name: str | None) -> int:
    """Run the flow under every combination, and save each as an experiment: NAME, or NAME-1, NAME-2, ...

    The last one stays in the work tree, as with `dvc exp run`. Returns the exit code of the flow.

    Raises:
        ParamsError: a setting is wrong; nothing was changed.
        StageError: another flow runs in this folder, and nothing was changed; or DVC could not save the run.
    """
    if name is not None:
        _check_repository()
    with held(paths.FLOW_LOCK, "runs a flow in this folder") as lock:
        file = params_file()
        wanted = versions(file.read_text(encoding="utf-8"), settings)
        if len(wanted) > 1 and name is None:
            raise ParamsError(f"--set asks for {len(wanted)} runs: name them with --exp NAME")
        for number, (label, text) in enumerate(wanted, 1):
            print(label, flush=True)
            write_text(file, text)
            done = subprocess.run(
                [sys.executable, "-m", "trainorder.flow.run"],
                check=False,
                pass_fds=(lock,),
                preexec_fn=partial(die_with_parent, os.getpid()),
            )
            if done.returncode:
                return done.returncode
            if name is not None:
                _save(name if len(wanted) == 1 else f"{name}-{number}")
    return 0


def _with(text: str, key: str, value: str) -> str:
    """The text with one key changed: on its line where that is all that changes, else as ruamel.yaml writes the whole."""
    data = _yaml().load(text)
    _set(data, key, value)
    stream = io.StringIO()
    _yaml().dump(data, stream)
    wanted = parse_yaml(stream.getvalue(), SET)
    for short in _on_a_line(text, key.removeprefix("+").split("."), value):
        try:
            if parse_yaml(short, SET) == wanted:
                return short
        except ParamsError:
            continue
    return stream.getvalue()


def _on_a_line(text: str, path: Sequence[str], value: str) -> Iterator[str]:
    """The text with the key's value exchanged on its line, or with a new line behind or before the keys beside it."""
    *above, last = path
    section, lines = _yaml().load(text), text.splitlines(keepends=True)
    for part in above:
        section = section.get(part)
        if not hasattr(section, "lc"):
            return
    if last in section:
        line, column = section.lc.value(last)
        comment = re.search(r"\s+#.*|\s*$", lines[line][column:])
        new = f"{lines[line][:column]}{value}{comment[0] if comment else ''}".rstrip() + "\n"
        yield "".join([*lines[:line], new, *lines[line + 1 :]])
        return
    for beside, after in ((next(reversed(section), None), 1), (next(iter(section), None), 0)):
        if beside is not None:
            line, column = section.lc.key(beside)
            new = f"{' ' * column}{last}: {value}\n"
            yield "".join([*lines[: line + after], new, *lines[line + after :]])


def _set(data: Any, key: str, value: str) -> None:
    added, path = key.startswith("+"), key.removeprefix("+").split(".")
    known = sorted(Params.model_fields)
    if path[0] not in known:
        raise ParamsError(
            f"--set {key}: params.yaml has no section {path[0]!r}{did_you_mean(path[0], known)}"
        )
    section = data
    for depth, part in enumerate(path[:-1]):
        _check_known(section, path, depth, key, added)
        section = section.setdefault(part, {})
        if not isinstance(section, dict):
            raise ParamsError(f"--set {key}: {'.'.join(path[: depth + 1])} holds no keys")
    _check_known(section, path, len(path) - 1, key, added)
    parse_yaml(value, f"--set {key}: {value}")
    section[path[-1]] = _yaml().load(value)


def _check_known(section: Any, path: Sequence[str], depth: int, key: str, added: bool) -> None:
    """An entry of a section of free names must be there, unless it is to be added; other keys are checked by the config."""
    if depth == 1 and path[0] in FREE and not added and path[1] not in section:
        names = [str(name) for name in section]
        raise ParamsError(
            f"--set {key}: {path[0]} has no {path[1]!r}{did_you_mean(path[1], names)}; there are {', '.join(names)}, and "
            f"+{key}=... adds one"
        )


def _save(name: str) -> None:
    """`dvc exp save`, with the compiled files and their lock where git does not have them yet."""
    files = [paths.PLAN, paths.PIPELINE, paths.PIPELINE_LOCK, paths.METRICS, paths.PLOTS]
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


def _yaml() -> Any:
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width = 4096
    yaml.preserve_quotes = True
    return yaml
