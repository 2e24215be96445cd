"""One value of a params file changed, and every other byte of it, comments included, left as it is."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from typing import Any

from trainorder.config import Params
from trainorder.reading import ParamsError, did_you_mean, parse_yaml

SET = "--set"
FREE = ("orders", "phases", "tasks", "merges", "variants", "judges")
"""Sections whose keys are the user's own names, so that a mistyped one would be another entry."""


def with_value(text: str, key: str, value: str) -> str:
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
        if part not in section and len(above) == 1:
            yield f"{text.rstrip(chr(10))}\n{part}: {{{last}: {value}}}\n"
        section = section.get(part)
        if not hasattr(section, "lc"):
            return
    if section.fa.flow_style() and section:
        yield from _in_braces(lines, section, last, value)
    if last in section:
        old, new = section[last], _yaml().load(value)
        if _extends(new, old) and not old.fa.flow_style():
            line, column = old.lc.item(len(old) - 1)
            dash = " " * lines[line].index("-")
            more = [f"{dash}- {entry}\n" for entry in new[len(old) :]]
            yield "".join([*lines[: line + 1], *more, *lines[line + 1 :]])
        line, column = section.lc.value(last)
        comment = re.search(r"\s+#.*|\s*$", lines[line][column:])
        new = f"{lines[line][:column]}{value}{comment[0] if comment else ''}".rstrip() + "\n"
        yield "".join([*lines[:line], new, *lines[line + 1 :]])
        return
    for beside, after in ((next(reversed(section), None), 1), (next(iter(section), None), 0)):
        if beside is not None:
            line, column = section.lc.key(beside)
            new = f"{' ' * column}{last}: {value}\n"
            before = "".join(lines[: line + after])
            end = "\n" * bool(before and not before.endswith("\n"))
            yield "".join([before, end, new, *lines[line + after :]])


def _in_braces(lines: list[str], section: Any, last: str, value: str) -> Iterator[str]:
    """The text with the key's value exchanged, or with a new entry, in a section that braces hold on one line."""
    line, column = section.lc.value(last if last in section else next(reversed(section)))
    before, text = lines[line][:column], lines[line][column:]
    ends = [i for i, sign in enumerate(text) if sign in ",}"]
    for end in ends:
        new = value if last in section else f"{text[:end]}, {last}: {value}"
        yield "".join([*lines[:line], before, new, text[end:], *lines[line + 1 :]])


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
    new, old = _yaml().load(value), section.get(path[-1])
    if old is not None and _extends(new, old):
        old.extend(new[len(old) :])  # what stands beside the old entries stays
    else:
        section[path[-1]] = new


def _extends(new: Any, old: Any) -> bool:
    return isinstance(old, list) and isinstance(new, list) and bool(old) and new[: len(old)] == old


def _check_known(section: Any, path: Sequence[str], depth: int, key: str, added: bool) -> None:
    """An entry of a section of free names must be there, unless it is to be added; other keys are checked by the config."""
    if depth == 1 and path[0] in FREE and not added and path[1] not in section:
        names = [str(name) for name in section]
        raise ParamsError(
            f"--set {key}: {path[0]} has no {path[1]!r}{did_you_mean(path[1], names)}; there are {', '.join(names)}, and "
            f"+{key}=... adds one"
        )


def _yaml() -> Any:
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width = 4096
    yaml.preserve_quotes = True
    return yaml
