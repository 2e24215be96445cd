"""What a stage's code means: a hash of its import closure without comments, docstrings and formatting.

DVC stages depend on these hashes instead of on source files, so a reworded comment retrains nothing and a changed
formula always does. Identity follows names: of the task kinds, engines, backends and judges, and of the pieces of the RL
step, a stage's fingerprint covers those that its params name and no others. Sections of config/ are left out: their
values, defaults included, stand beside the fingerprint, in <name>.json.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from trainorder import paths, registries
from trainorder.files import write_text
from trainorder.reading import ParamsError
from trainorder.registries import listed

PACKAGES = ("trainorder", "stages")
PIECES = ("trainorder.rl.pieces", "trainorder.evaluation.ways")
"""The packages of the families of pieces and of the ways of evaluation. Nothing imports a family by name: the pieces that params name say which are run."""
PHASE, JUDGE, MERGE = "phase_", "judge_", "merge_"
"""Begin the names of the fingerprints of phases, judges and merges; the others are the same in every plan."""
LAZY = re.compile(r"(?:trainorder|stages)(?:\.\w+)+:\w+")
"""An entry of a registry that is imported by name: covered by `Code.targets`, not by the registry's hash."""
RECORDERS = frozenset(
    {"trainorder.tracking", "trainorder.rl.speed", "trainorder.config.presets", "trainorder.warm"}
)
"""Modules that log, time or preload what a stage does and decide nothing: no part of any fingerprint. What a preset stands
for is in <name>.json."""
MODULE, FILE = re.compile(r"(?:trainorder|stages)(?:\.\w+)+"), re.compile(r"\w+\.py")
SKIPPED_FIELDS = {"ctx", "kind", "type_comment", "lineno", "col_offset"}
REMEMBERED = 1000
"""Source files of which the user's cache folder holds the facts: several versions of all files of the library."""


@dataclass(frozen=True)
class Code:
    """What a stage runs."""

    module: str
    """The stage's own module."""
    targets: frozenset[str] = frozenset()
    """Entries of registries that its params name, as `module:attribute`."""
    pieces: frozenset[tuple[str, str]] = frozenset()
    """(slot, name) of the listed pieces that its params name."""


@dataclass(frozen=True)
class Places:
    """Where the packages lie: the library where it is installed, `stages` in the project's folder."""

    library: Path
    project: Path

    def __truediv__(self, file: str) -> Path:
        return (self.project if file.partition("/")[0] == "stages" else self.library) / file

    @classmethod
    def of_this_folder(cls) -> Places:
        """A folder without stages/ takes those beside the library, as a checkout has them.

        Raises:
            ParamsError: there are none either.
        """
        library = Path(__file__).parents[1]
        project = next((f for f in (Path.cwd(), library) if (f / "stages").is_dir()), None)
        if project is None:
            raise ParamsError(
                f"{Path.cwd()} has no folder stages/ and is no project: `trainorder init` makes one"
            )
        return cls(library, project)


def compute(code: Mapping[str, Code], root: Path | None = None) -> dict[str, str]:
    """Name -> text of its fingerprint, one line `file hash` per file that the stage can run (`Plan.code()` says what).

    `root` holds all packages; left out, the library is this one and `stages` are the project's.
    """
    base = root or Places.of_this_folder()
    reached = cache(partial(closure, base, files_of=cache(partial(_files, base))))
    known, result = dict(_remembered()), {}
    for name, entry in code.items():
        modules = [entry.module, *(target.partition(":")[0] for target in entry.targets)]
        modules += _families(base, entry.pieces)
        files = sorted({file for module in modules for file in reached(module)})
        lines = [f"{file} {_meaning(base, file, files, entry.pieces)}" for file in files]
        result[name] = "\n".join([*lines, *sorted(entry.targets)]) + "\n"
    if _remembered() != known:
        _remember()
    return result


def _families(root: Path | Places, pieces: frozenset[tuple[str, str]]) -> list[str]:
    """The modules of PIECES that list any of these."""
    named = {f"{slot}:{name}" for slot, name in pieces}
    return [
        f"{package}.{file.stem}"
        for package in (PIECES if named else ())
        for folder in [package.replace(".", "/")]
        for file in sorted((root / folder).glob("*.py"))
        if named & set(_facts(root, f"{folder}/{file.name}").lists)
    ]


def _meaning(
    root: Path | Places, file: str, files: list[str], pieces: frozenset[tuple[str, str]]
) -> str:
    """Hash of what a file means; of its bytes where it is no Python.

    Of a file that lists pieces: only what other files of the closure use of it, and the pieces that params.yaml names.
    """
    if whole := _facts(root, file).meaning:
        return whole
    module = ".".join(Path(file).with_suffix("").parts)
    used = {name for other in files for name in _facts(root, other).used}
    taken = {name.removeprefix(f"{module}.") for name in used if name.startswith(f"{module}.")}
    named = {f"{slot}:{name}" for slot, name in pieces}
    return _meaning_of_parts(root / file, _stamp(root / file), frozenset(taken | named))


@cache
def _meaning_of_parts(path: Path, stamp: tuple[int, int], names: frozenset[str]) -> str:
    """Hash of what these names reach in a file; `stamp` is the version of the file that is remembered."""
    return meaning(_reached(ast.parse(path.read_bytes()), names))


def of_files(files: Sequence[Path]) -> str:
    """Lines `file hash` of the user's own Python files and of what they import from beside them; no file, no line."""
    todo, known = list(files), dict[Path, str]()
    while todo:
        file = todo.pop()
        if file in known:
            continue
        try:
            tree = ast.parse(file.read_bytes())
        except (OSError, SyntaxError, ValueError):
            known[file] = "unreadable"
            continue
        known[file] = meaning(tree)
        names = _imports(list(_running(tree)), file.name)
        stems = {name.replace(".", "/") for name in names if name}
        beside = [file.parent / f"{stem}{end}" for stem in stems for end in (".py", "/__init__.py")]
        todo += [path for path in beside if path.is_file()]
    return "".join(f"{file} {known[file]}\n" for file in sorted(known))


def write(texts: Mapping[str, str], folder: Path = paths.FINGERPRINTS) -> None:
    """One file per fingerprint; unchanged ones are not touched, those of phases, judges and merges of other plans are removed."""
    folder.mkdir(exist_ok=True)
    for old in [file for begin in (PHASE, JUDGE, MERGE) for file in folder.glob(f"{begin}*")]:
        if old.name not in texts and old.is_file():
            old.unlink()
    for name, text in texts.items():
        file = folder / name
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            write_text(file, text)


def closure(
    root: Path | Places, module: str, files_of: Callable[[str], list[str]] | None = None
) -> list[str]:
    """Files of PACKAGES that importing `module` and calling its functions can reach, data beside them included.

    `files_of` is `_files` of this root, remembered over several calls.
    """
    files_of = files_of or partial(_files, root)
    todo, files = [module], set[str]()
    while todo:
        for file in files_of(todo.pop()):
            if file not in files:
                files.add(file)
                todo += _facts(root, file).imports
    folders = {str(Path(file).parent) for file in files}
    return sorted(files | {data for folder in folders for data in _data(root, folder)})


def _files(root: Path | Places, module: str) -> list[str]:
    """The module's file and the __init__ of every package above it; nothing for a name that is no module."""
    parts = module.split(".")
    packages = [parts[:end] for end in range(1, len(parts) + 1)]
    if parts[0] not in PACKAGES or any(".".join(package) in RECORDERS for package in packages):
        return []
    stems = ["/".join(package) for package in packages]
    files = [file for stem in stems for file in (f"{stem}.py", f"{stem}/__init__.py")]
    return [file for file in files if (root / file).is_file()]


def _data(root: Path | Places, folder: str) -> Iterator[str]:
    """Templates, word lists: what lies in a module's folder and is no code."""
    for path in (root / folder).iterdir():
        hidden = path.name.startswith(".")
        if not hidden and path.suffix not in {".py", ".pyc", ".md"} and path.is_file():
            yield f"{folder}/{path.name}"


@dataclass(frozen=True)
class _Facts:
    """What one file says, whatever stage runs it."""

    imports: list[str]
    """Modules that it may import when it runs, inside functions too; `TYPE_CHECKING` blocks never run."""
    used: list[str]
    """Dotted names that it takes from modules: `from a import b` and `a.b`."""
    meaning: str
    """Hash of the whole file; empty where it lists pieces, so that the parts that a stage names decide."""
    lists: list[str]
    """The pieces that it lists, as `slot:name`."""


def _facts(root: Path | Places, file: str) -> _Facts:
    return _facts_of(root / file, file, _stamp(root / file))


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size


@cache
def _facts_of(path: Path, file: str, stamp: tuple[int, int]) -> _Facts:
    content = path.read_bytes()
    if path.suffix != ".py":
        return _Facts([], [], hashlib.sha256(content).hexdigest()[:16], [])
    key = hashlib.sha256(file.encode() + b"\0" + content).hexdigest()
    known = _remembered()
    if key not in known:
        tree = ast.parse(content)
        nodes = list(_running(tree))
        lists = [f"{slot}:{function.name}" for slot, function in listed(tree)]
        whole = "" if lists else meaning(tree)
        known[key] = _Facts(_imports(nodes, file), sorted(_used(nodes, file)), whole, lists)
    return known[key]


def _memory() -> Path:
    """The file of remembered facts: one per version of the code that finds them and of Python's parser."""
    ours = Path(__file__).read_bytes() + Path(registries.__file__).read_bytes()
    version = hashlib.sha256(ours + sys.version.encode()).hexdigest()[:16]
    return paths.cache_folder() / f"code-{version}.json"


@cache
def _remembered() -> dict[str, _Facts]:
    """Hash of a file's name and content -> its facts, from the user's cache folder: parsing all files takes a second."""
    with suppress(OSError, ValueError, TypeError, AttributeError):
        found = json.loads(_memory().read_text(encoding="utf-8"))
        return {key: _Facts(**facts) for key, facts in found.items()}
    return {}


def _remember() -> None:
    newest = list(_remembered().items())[-REMEMBERED:]
    with suppress(OSError):  # a folder that cannot be written costs a second each time
        write_text(_memory(), json.dumps({key: asdict(facts) for key, facts in newest}))


def _imports(nodes: list[ast.AST], file: str) -> list[str]:
    found = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = _origin(node, file)
            found += [origin, *(f"{origin}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found += _named(node.value, file)
    return found


def _used(nodes: list[ast.AST], file: str) -> set[str]:
    known, found = dict[str, str](), set[str]()
    for node in nodes:
        if isinstance(node, ast.Import):
            known |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {a.asname or a.name: f"{_origin(node, file)}.{a.name}" for a in node.names}
            known |= names
            found |= set(names.values())
    for node in nodes:
        if isinstance(node, ast.Attribute) and (value := _dotted(node.value)) in known:
            found.add(f"{known[value]}.{node.attr}")
    return found


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
    todo = [tree]
    while todo:
        node = todo.pop()
        yield node
        children = [child for child in ast.iter_child_nodes(node) if not _is_for_types(child)]
        todo += reversed(children)


def _is_for_types(node: ast.AST) -> bool:
    """`if TYPE_CHECKING:` without an else, which never runs."""
    return (
        isinstance(node, ast.If)
        and not node.orelse
        and ast.unparse(node.test).endswith("TYPE_CHECKING")
    )


def _reached(tree: ast.Module, roots: frozenset[str]) -> ast.Module:
    """The file without the functions, classes, constants and imports that nothing reaches."""
    pieces = {function.name: f"{slot}:{function.name}" for slot, function in listed(tree)}
    items = [part for item in tree.body for part in _one_name_each(item)]
    parts: dict[str, list[ast.stmt]] = {}
    for item in items:
        parts.setdefault(_bound(item), []).append(item)
    kept = list(parts.pop("", []))
    for name, own in parts.items():
        if roots & {name, pieces.get(name, name)}:
            kept += own
    todo: list[ast.AST] = list(kept)
    while todo:
        for node in _running(todo.pop()):
            for part in parts.get(node.id, []) if isinstance(node, ast.Name) else []:
                if part not in kept:
                    kept.append(part)
                    todo.append(part)
    return ast.Module([item for item in items if item in kept], [])


def _one_name_each(item: ast.stmt) -> list[ast.stmt]:
    """`from a import b, c` as two statements, so that a name nothing reaches is left out."""
    if isinstance(item, ast.Import):
        return [ast.Import([alias]) for alias in item.names]
    if isinstance(item, ast.ImportFrom):
        return [ast.ImportFrom(item.module, [alias], item.level) for alias in item.names]
    return [item]


def _bound(item: ast.stmt) -> str:
    """The one name that a statement only defines; empty for what may do anything else, which always counts."""
    if isinstance(item, (ast.FunctionDef, ast.ClassDef)):
        return item.name
    if isinstance(item, (ast.Import, ast.ImportFrom)):
        (alias,) = item.names
        special = alias.name == "*" or getattr(item, "module", None) == "__future__"
        return "" if special else alias.asname or alias.name.partition(".")[0]
    targets = item.targets if isinstance(item, ast.Assign) else [getattr(item, "target", None)]
    single = isinstance(item, (ast.Assign, ast.AnnAssign)) and len(targets) == 1
    return targets[0].id if single and isinstance(targets[0], ast.Name) else ""


def meaning(tree: ast.AST) -> str:
    r"""Hash of a syntax tree, the same on every Python version that parses it alike.

    >>> one, other = ast.parse("x=1 # one"), ast.parse("'''Text.'''\nx = (1)")
    >>> meaning(one) == meaning(other), meaning(one) == meaning(ast.parse("x = 2"))
    (True, False)
    """
    words: list[str] = []
    _add_words(tree, words)
    return hashlib.sha256("".join(words).encode()).hexdigest()[:16]


def _add_words(node: Any, words: list[str]) -> None:
    """Append the words of a node, a list of nodes or a value; a generator would hand each word up through every level."""
    if isinstance(node, ast.AST):
        words.append(f"({type(node).__name__}")
        for name in node._fields:
            value = getattr(node, name, None)
            if name not in SKIPPED_FIELDS and value is not None and value != []:
                words.append(f" {name}=")
                _add_words(_kept(node, name, value), words)
        words.append(")")
    elif isinstance(node, list):
        words.append("[")
        for item in node:
            _add_words(item, words)
        words.append("]")
    else:
        words.append(f"{type(node).__name__}:{node!r};")


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
    """A section of config/ without methods: keys, defaults and bounds."""
    functions = [part for part in ast.iter_child_nodes(item) if isinstance(part, ast.FunctionDef)]
    return _is_section(item) and not functions
