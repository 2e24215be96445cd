"""What a stage's code means: a hash of its import closure without comments, docstrings and formatting.

DVC stages depend on these hashes instead of on source files, so a reworded comment retrains nothing and a changed
formula always does. Identity follows names: of the task kinds, engines, backends and judges, and of the pieces of the RL
step, a stage's fingerprint covers those that its params name and no others. Sections of config.py are left out: their
values, defaults included, are in params.json.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from trainorder import paths
from trainorder.files import write_text
from trainorder.registries import listed

PACKAGES = ("trainorder", "stages")
PHASE = "phase_"
"""Begins the names of phases' fingerprints; the others are the same in every plan."""
LAZY = re.compile(r"(?:trainorder|stages)(?:\.\w+)+:\w+")
"""An entry of a registry that is imported by name: covered by `Code.targets`, not by the registry's hash."""
RECORDERS = frozenset({"trainorder.tracking", "trainorder.rl.speed", "stages.warm"})
"""Modules that log, time or preload what a stage does and decide nothing: no part of any fingerprint."""
MODULE, FILE = re.compile(r"(?:trainorder|stages)(?:\.\w+)+"), re.compile(r"\w+\.py")
SKIPPED_FIELDS = {"ctx", "kind", "type_comment", "lineno", "col_offset"}


@dataclass(frozen=True)
class Code:
    """What a stage runs."""

    module: str
    """The stage's own module."""
    targets: frozenset[str] = frozenset()
    """Entries of registries that its params name, as `module:attribute`."""
    pieces: frozenset[tuple[str, str]] = frozenset()
    """(slot, name) of the listed pieces that its params name."""


def compute(code: Mapping[str, Code], root: Path | None = None) -> dict[str, str]:
    """Name -> text of its fingerprint, one line `file hash` per file that the stage can run (`Plan.code()` says what)."""
    base = root or Path(__file__).parents[1]
    reached = cache(partial(closure, base))
    result = {}
    for name, entry in code.items():
        modules = [entry.module, *(target.partition(":")[0] for target in entry.targets)]
        files = sorted({file for module in modules for file in reached(module)})
        used = {name for file in files for name in _used(base / file, file, _stamp(base / file))}
        lines = [
            f"{file} {digest(base / file, _roots(file, used, entry.pieces))}" for file in files
        ]
        result[name] = "\n".join([*lines, *sorted(entry.targets)]) + "\n"
    return result


def _roots(file: str, used: set[str], pieces: frozenset[tuple[str, str]]) -> frozenset[str]:
    """What other files use of a file, and the pieces named in params.yaml as `slot:name`."""
    module = ".".join(Path(file).with_suffix("").parts)
    taken = {name.removeprefix(f"{module}.") for name in used if name.startswith(f"{module}.")}
    return frozenset(taken | {f"{slot}:{name}" for slot, name in pieces})


def write(texts: Mapping[str, str], folder: Path = paths.FINGERPRINTS) -> None:
    """One file per fingerprint; unchanged ones are not touched, those of phases of other plans are removed."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob(f"{PHASE}*"):
        if old.name not in texts and old.is_file():
            old.unlink()
    for name, text in texts.items():
        file = folder / name
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            write_text(file, text)


def closure(root: Path, module: str) -> list[str]:
    """Files of PACKAGES that importing `module` and calling its functions can reach, data beside them included."""
    todo, files = [module], set[str]()
    while todo:
        for file in _files(root, todo.pop()):
            if file not in files:
                files.add(file)
                todo += _imports(root / file, file, _stamp(root / file))
    return sorted(files | {data for file in files for data in _data_beside(root, file)})


def _files(root: Path, module: str) -> Iterator[str]:
    """The module's file and the __init__ of every package above it; nothing for a name that is no module."""
    parts = module.split(".")
    if parts[0] not in PACKAGES:
        return
    for end in range(1, len(parts) + 1):
        if ".".join(parts[:end]) in RECORDERS:
            return
        stem = Path(*parts[:end])
        for file in (stem.with_suffix(".py"), stem / "__init__.py"):
            if (root / file).is_file():
                yield file.as_posix()


def _data_beside(root: Path, file: str) -> Iterator[str]:
    """Templates, word lists: what lies in the module's folder and is no code."""
    for path in (root / file).parent.iterdir():
        if (
            path.is_file()
            and path.suffix not in {".py", ".pyc", ".md"}
            and not path.name.startswith(".")
        ):
            yield path.relative_to(root).as_posix()


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size


@cache
def _tree(path: Path, stamp: tuple[int, int]) -> ast.Module:
    return ast.parse(path.read_bytes())


@cache
def _nodes(path: Path, stamp: tuple[int, int]) -> list[ast.AST]:
    """Imports, texts and attributes of the file that may be reached when it runs."""
    kinds = (ast.Import, ast.ImportFrom, ast.Constant, ast.Attribute)
    return [node for node in _running(_tree(path, stamp)) if isinstance(node, kinds)]


@cache
def _imports(path: Path, file: str, stamp: tuple[int, int]) -> list[str]:
    """Modules that the file may import when it runs, inside functions too; `TYPE_CHECKING` blocks never run."""
    found = []
    for node in _nodes(path, stamp):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = _origin(node, file)
            found += [origin, *(f"{origin}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found += _named(node.value, file)
    return found


@cache
def _used(path: Path, file: str, stamp: tuple[int, int]) -> frozenset[str]:
    """Dotted names that the file takes from modules: `from a import b` and `a.b`."""
    if path.suffix != ".py":
        return frozenset()
    known, found = dict[str, str](), set[str]()
    for node in _nodes(path, stamp):
        if isinstance(node, ast.Import):
            known |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {a.asname or a.name: f"{_origin(node, file)}.{a.name}" for a in node.names}
            known |= names
            found |= set(names.values())
    for node in _nodes(path, stamp):
        if isinstance(node, ast.Attribute) and (value := _dotted(node.value)) in known:
            found.add(f"{known[value]}.{node.attr}")
    return frozenset(found)


def _dotted(node: ast.expr) -> str:
    """`a.b` as text; empty for what is no dotted name."""
    if isinstance(node, ast.Attribute):
        value = _dotted(node.value)
        return value and f"{value}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _named(text: str, file: str) -> list[str]:
    """A module that is run by name: `trainorder.rewards.sandbox_worker`, or `sandbox_worker.py` beside the file."""
    if MODULE.fullmatch(text):
        return [text]
    package = ".".join(Path(file).parts[:-1])
    return [f"{package}.{text.removesuffix('.py')}"] if FILE.fullmatch(text) else []


def _origin(node: ast.ImportFrom, file: str) -> str:
    if not node.level:
        return node.module or ""
    package = Path(file).parts[: -node.level]
    return ".".join([*package, *([node.module] if node.module else [])])


def _running(tree: ast.AST) -> Iterator[ast.AST]:
    yield tree
    for child in ast.iter_child_nodes(tree):
        if not _is_for_types(child):
            yield from _running(child)


def _is_for_types(node: ast.AST) -> bool:
    """`if TYPE_CHECKING:` without an else, which never runs."""
    return (
        isinstance(node, ast.If)
        and not node.orelse
        and ast.unparse(node.test).endswith("TYPE_CHECKING")
    )


def digest(path: Path, roots: frozenset[str]) -> str:
    """Hash of a file's meaning; of its bytes where it is no Python.

    Of a file that lists pieces, only what `roots` reach: names that others use, and pieces as `slot:name`.
    """
    if path.suffix == ".py" and any(listed(tree := _tree(path, _stamp(path)))):
        return meaning(_reached(tree, roots))
    return _digest(path, _stamp(path))


@cache
def _digest(path: Path, stamp: tuple[int, int]) -> str:
    if path.suffix != ".py":
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return meaning(_tree(path, stamp))


def _reached(tree: ast.Module, roots: frozenset[str]) -> ast.Module:
    """The file without the functions and classes that nothing reaches."""
    pieces = {function.name: f"{slot}:{function.name}" for slot, function in listed(tree)}
    parts = {i.name: i for i in tree.body if isinstance(i, (ast.FunctionDef, ast.ClassDef))}
    todo: list[ast.AST] = [item for item in tree.body if item not in parts.values()]
    todo += [part for name, part in parts.items() if roots & {name, pieces.get(name, name)}]
    kept = list(todo)
    while todo:
        for node in _running(todo.pop()):
            part = parts.get(node.id) if isinstance(node, ast.Name) else None
            if part is not None and part not in kept:
                kept.append(part)
                todo.append(part)
    return ast.Module([item for item in tree.body if item in kept], [])


def meaning(tree: ast.AST) -> str:
    r"""Hash of a syntax tree, the same on every Python version that parses it alike.

    >>> one, other = ast.parse("x=1 # one"), ast.parse("'''Text.'''\nx = (1)")
    >>> meaning(one) == meaning(other), meaning(one) == meaning(ast.parse("x = 2"))
    (True, False)
    """
    return hashlib.sha256("".join(_words(tree)).encode()).hexdigest()[:16]


def _words(node: Any) -> Iterator[str]:
    if isinstance(node, ast.AST):
        yield f"({type(node).__name__}"
        for name, value in ast.iter_fields(node):
            if name not in SKIPPED_FIELDS and value not in (None, []):
                yield f" {name}="
                yield from _words(_kept(node, name, value))
        yield ")"
    elif isinstance(node, list):
        yield "["
        for item in node:
            yield from _words(item)
        yield "]"
    else:
        yield f"{type(node).__name__}:{node!r};"


def _kept(node: ast.AST, name: str, value: Any) -> Any:
    """The part of a field that changes what the code does."""
    if isinstance(node, ast.Dict):
        kept = [i for i, v in enumerate(node.values) if not _is_lazy(v)]
        return [value[i] for i in kept]
    if name == "body" and isinstance(value, list):
        if _is_section(node):
            return [item for item in value if isinstance(item, ast.FunctionDef)]
        return [
            item
            for item in value
            if not (_is_text(item) or _is_for_types(item) or _only_values(item))
        ]
    return value


def _is_lazy(value: ast.expr) -> bool:
    is_text = isinstance(value, ast.Constant) and isinstance(value.value, str)
    return is_text and LAZY.fullmatch(value.value) is not None  # type: ignore[attr-defined]


def _is_text(item: ast.stmt) -> bool:
    """A docstring, of a module, class, function or attribute."""
    return (
        isinstance(item, ast.Expr)
        and isinstance(item.value, ast.Constant)
        and isinstance(item.value.value, str)
    )


def _is_section(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef) and "Section" in [
        ast.unparse(base) for base in node.bases
    ]


def _only_values(item: ast.stmt) -> bool:
    """A section of config.py without methods: keys, defaults and bounds."""
    functions = [part for part in ast.iter_child_nodes(item) if isinstance(part, ast.FunctionDef)]
    return _is_section(item) and not functions
