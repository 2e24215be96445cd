"""Reads what a user wrote, and refuses what no such file needs before anything expands, compares or prints it.

Bombs, absurd numbers, control characters and secrets; what the keys mean is `config/`'s.
"""

from __future__ import annotations

import difflib
import errno
import itertools
import json
import math
import re
import stat
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, get_args

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from trainorder.redact import NO_SECRETS, SECRET_KEY, is_secret, redact

T = TypeVar("T")

REFUSED = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.ENXIO, errno.EEXIST, errno.ESTALE),
)
"""Errors of the system that a path is to blame for, not the program or the disk's size."""
MAX_YAML = 64 << 20
"""Bytes of a YAML or JSON file."""
MAX_VALUES = 2_000_000
"""Values of a YAML file, those behind an alias counted as often as it is used."""
MAX_PARAMS = 256 << 10
"""Bytes of params.yaml."""
MAX_NODES, MAX_DEPTH, MAX_TEXT, MAX_NUMBER = 20_000, 20, 4096, 10**12
"""Values, levels, characters of a text and size of an integer in params.yaml."""


class ParamsError(ValueError):
    """params.yaml asks for something impossible; the text names the key, what is allowed and what to do."""


class NotHere(ParamsError):
    """What params.yaml names may well be right, and this machine cannot reach it: the hub, an endpoint, a package, a larger machine."""


def found_at(path: Path | str) -> Literal["file", "folder", "other", ""]:
    """What lies at a path that a user named; empty where nothing does.

    Raises:
        ParamsError: the system cannot say: too long a name, a loop of links, no permission.
    """
    try:
        mode = Path(path).stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (OSError, ValueError) as error:
        raise ParamsError(f"{shown(str(path))} cannot be read: {_reason(error)}") from None
    return "file" if stat.S_ISREG(mode) else "folder" if stat.S_ISDIR(mode) else "other"


def read_text(path: Path, most: int = MAX_YAML) -> str:
    """The UTF-8 text of a file of at most `most` bytes, without a byte order mark.

    Raises:
        ParamsError: no such file, not a file, not readable, too large, or not UTF-8.
    """
    kind = found_at(path)
    if not kind:
        raise ParamsError(
            f"{path} not found: run this in the project folder, where params.yaml lies"
        )
    if kind != "file":
        raise ParamsError(
            f"{path} is a {kind if kind == 'folder' else 'device or pipe'}, not a file"
        )
    try:
        with path.open("rb") as stream:
            data = stream.read(most + 1)
    except OSError as error:
        raise ParamsError(f"{path} cannot be read: {_reason(error)}") from None
    if len(data) > most:
        raise ParamsError(f"{path} has {path.stat().st_size} bytes, at most {most} are read")
    if b"\0" in data[:4]:
        raise ParamsError(
            f"{path} must be UTF-8, and it looks like UTF-16 or UTF-32; save it as UTF-8"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ParamsError(
            f"{path} must be UTF-8, and line {line} is not; save it as UTF-8"
        ) from None


def read_yaml(path: Path, most: int = MAX_YAML, values: int = MAX_VALUES) -> Any:
    """YAML 1.2 as DVC reads it (`3e-4` is a number, a repeated key is an error), of at most `most` bytes.

    Aliases and merge keys are counted before they are expanded: more than `values` values are refused.

    Raises:
        ParamsError: the file cannot be read, or is no such YAML; names the line, never a value.
    """
    return parse_yaml(read_text(path, most), str(path), values)


def parse_yaml(text: str, source: str, values: int = MAX_VALUES) -> Any:
    """As `read_yaml`, of a text; `source` names it in errors."""
    import yaml

    try:
        _count(text, values)
        root = yaml.compose(text, Loader=_loader())
        _check_keys(root)
        return _construct(root)
    except ParamsError as error:
        raise ParamsError(f"{source}{redact(str(error))}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f"line {mark.line + 1}: " if mark else ""
        problem = redact(str(error.problem or error.context))[:300]
        raise ParamsError(f"{source} is not valid YAML: {line}{problem}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        problem = redact(" ".join(str(error).split()))[:300]
        raise ParamsError(f"{source} is not valid YAML: {problem}") from None


def read_json(path: Path, shape: type[T], repair: str) -> T:
    """A JSON file that this program wrote, if it has the shape that it was written in; `repair` says what to do if not.

    Raises:
        ParamsError: the file is missing, torn, or holds something else.
    """
    try:
        data = json.loads(read_text(path))
    except ParamsError as error:
        raise ParamsError(f"{error}; {repair}") from None
    except (ValueError, RecursionError):
        raise ParamsError(f"{path} is damaged (no JSON); {repair}") from None
    return shaped(data, shape, path, repair)


def shaped(data: Any, shape: type[T], path: Path, repair: str) -> T:
    """The content of a file that this program wrote, if it has the shape that it was written in.

    Raises:
        ParamsError: it holds something else.
    """
    try:
        TypeAdapter(shape).validate_python(data, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}: " for part in [".".join(map(str, first["loc"]))] if part)
        raise ParamsError(f"{path} is damaged ({where}{first['msg'][:200]}); {repair}") from None
    return data


def refused_path(error: OSError) -> str:
    """The line that says which path the system refused and why; empty for an error of another kind.

    >>> refused_path(OSError(errno.EROFS, "Read-only file system", "plan.yaml"))
    'plan.yaml: Read-only file system; check the path and its permissions'
    """
    if error.errno not in REFUSED or error.filename is None:
        return ""
    return f"{error.filename}: {error.strerror}; check the path and its permissions"


def _reason(error: OSError | ValueError) -> str:
    """What the system says, without the path."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


@cache
def _loader() -> Any:
    """PyYAML's parser, in C where it was built with it, under the YAML 1.2 rules of ruamel.yaml, with which DVC reads.

    ruamel.yaml itself takes seconds for 256 KiB.
    """
    import yaml
    from ruamel.yaml.resolver import implicit_resolvers

    fastest: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(fastest):
        yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

        def construct_yaml_int(self, node: Any) -> int:
            digits = self.construct_scalar(node).replace("_", "")
            sign, digits = (-1 if digits[0] == "-" else 1), digits.lstrip("+-")
            base = {"0b": 2, "0o": 8, "0x": 16}.get(digits[:2], 10)
            return sign * int(digits, base)

    for versions, tag, pattern, first in implicit_resolvers:
        if (1, 2) in versions:
            Loader.add_implicit_resolver(tag, pattern, first)
    Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)
    return Loader


def _line(event: Any) -> int:
    return event.start_mark.line + 1


def _count(text: str, most: int) -> None:
    """Refuse a text of more than `most` values or too many levels from its events alone: nothing is expanded or built."""
    import yaml
    from yaml.events import CollectionEndEvent, CollectionStartEvent

    sizes: dict[str, int | None] = {}
    open_: list[tuple[str | None, int]] = []
    total = 0
    for event in yaml.parse(text, Loader=_loader()):
        if isinstance(event, yaml.AliasEvent):
            size = sizes.get(event.anchor, 1)  # pyrefly: ignore[no-matching-overload]
            if size is None:
                line = _line(event)
                raise ParamsError(f": line {line}: alias *{event.anchor} stands inside itself")
            total += size
        elif isinstance(event, yaml.ScalarEvent):
            total += 1
            if event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, CollectionStartEvent):
            total += 1
            open_.append((event.anchor, total))
            if event.anchor:
                sizes[event.anchor] = None
            if len(open_) > MAX_DEPTH:
                line = _line(event)
                raise ParamsError(f": line {line}: nested deeper than {MAX_DEPTH} levels")
        elif isinstance(event, CollectionEndEvent):
            anchor, before = open_.pop()
            if anchor:
                sizes[anchor] = total - before + 1
        if total > most:
            raise ParamsError(
                f": more than {most} values (aliases counted as often as they are used); remove some"
            )


def _nodes(root: Any) -> Iterator[tuple[str, Any]]:
    """Every node with the path of keys that leads to it, each once."""
    todo, seen = [("", root)], set[int]()
    while todo:
        where, node = todo.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        yield where, node
        if isinstance(node.value, list):
            for number, item in enumerate(node.value):
                key, value = item if isinstance(item, tuple) else (None, item)
                name = str(number) if key is None else str(key.value)[:100]
                todo.append((f"{where}.{name}".lstrip("."), value))


def _check_keys(root: Any) -> None:
    """Refuse a key that is no single text, or that its mapping has already; and what DVC's parser takes for no text."""
    from yaml import CollectionNode, MappingNode, ScalarNode

    for where, node in _nodes(root):
        inline = isinstance(node, CollectionNode) and node.flow_style
        for part in itertools.chain(*node.value) if isinstance(node, MappingNode) else node.value:
            if inline and isinstance(part, ScalarNode) and not part.style and ":" in part.value:
                raise ParamsError(
                    f" is not valid YAML for DVC: line {part.start_mark.line + 1}{f', {where}' if where else ''}: between "
                    f'brackets a text with a colon needs quotes: "..."'
                )
        seen: dict[tuple[str, str], int] = {}
        for key, _ in node.value if isinstance(node, MappingNode) else ():
            line, inside = key.start_mark.line + 1, f" in {where}" if where else ""
            if not isinstance(key, ScalarNode):
                raise ParamsError(
                    f": line {line}: a key{inside} must be a short text, not a list or mapping"
                )
            name = (key.tag, key.value)
            if name in seen:
                raise ParamsError(
                    f" is not valid YAML: line {line}: duplicate key {shown(key.value)}{inside}, first in line {seen[name]}"
                )
            seen[name] = line


def _construct(root: Any) -> Any:
    """The value of a composed document; the parser's own errors name no key, so the culprit is looked for."""
    import yaml

    if root is None:
        return None
    try:
        return _loader()("").construct_document(root)
    except yaml.YAMLError:
        raise
    except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError) as error:
        for where, node in _nodes(root):
            if isinstance(node.value, str):
                try:
                    _loader()("").construct_object(node)
                except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError):
                    line = node.start_mark.line + 1
                    raise ParamsError(
                        f" is not valid YAML: {where} (line {line}): {shown(node.value)} is no {node.tag.rpartition(':')[2]}"
                    ) from None
        raise ParamsError(f" is not valid YAML: {error}") from None


def check_plain(source: str, data: Any) -> None:
    """Refuse what no params file needs, before anything expands, compares or prints it: bombs, absurd numbers, secrets."""
    todo: list[tuple[tuple[str, ...], Any]] = [((), data)]
    for _ in range(MAX_NODES):
        if not todo:
            return
        loc, value = todo.pop()
        where = f"{source}: {'.'.join(loc)}" if loc else source
        if len(loc) > MAX_DEPTH:
            raise ParamsError(
                f"{source}: {'.'.join(loc[:4])}...: nested deeper than {MAX_DEPTH} levels"
            )
        if isinstance(value, dict):
            for key, item in value.items():
                if isinstance(key, str) and is_secret(key):
                    raise ParamsError(f"{where}: a key of it: {NO_SECRETS}")
                if not isinstance(key, str) or len(key) > 200 or not key.isprintable():
                    raise ParamsError(f"{where}: a key must be a short text, got {shown(key)}")
                if SECRET_KEY.search(key) and not _names_variable(key, item):
                    raise ParamsError(f"{where}{'.' if loc else ': '}{key}: {NO_SECRETS}")
                todo.append(((*loc, key), item))
        elif isinstance(value, (list, tuple)):
            todo += [((*loc, str(i)), item) for i, item in enumerate(value)]
        elif isinstance(value, str):
            if is_secret(value):
                raise ParamsError(f"{where}: {NO_SECRETS}")
            if (
                len(value) > MAX_TEXT
                or any(c in value for c in "\0\x1b")
                or (not value.isascii() and _broken(value))
            ):
                raise ParamsError(
                    f"{where}: a text of at most {MAX_TEXT} characters that UTF-8 can hold, got {shown(value)}"
                )
        elif isinstance(value, int) and abs(value) > MAX_NUMBER:
            raise ParamsError(
                f"{where}: at most {MAX_NUMBER} is allowed, got a number of {value.bit_length()} bits"
            )
        elif isinstance(value, float) and not math.isfinite(value):
            raise ParamsError(f"{where}: must be a finite number, got {value}")
        elif not isinstance(value, (bool, int, float, type(None))):
            raise ParamsError(
                f"{where}: must be text, number, list or mapping, got {type(value).__name__}"
            )
    raise ParamsError(
        f"{source}: more than {MAX_NODES} values (aliases counted as often as they are used); remove some"
    )


def _names_variable(key: str, value: Any) -> bool:
    """Whether what stands under a key like `api_key_env` can only be a variable's name, or nothing."""
    if key.endswith("_env"):
        return not isinstance(value, str) or re.fullmatch(r"\w{0,64}", value) is not None
    return value is None or value == "" or isinstance(value, bool)


def _broken(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def shown(value: Any) -> str:
    """What came, for a message, cut to a line or two."""
    text = redact(repr(value))
    return text if len(text) <= 200 else f"{text[:200]}..."


def listed(names: Iterable[str], most: int = 3) -> str:
    """The first few of some names, sorted, and how many more.

    >>> listed("dcba"), listed([])
    ('a, b, c and 1 more', 'nothing')
    """
    every = sorted(names)
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more if every else "nothing"


def did_you_mean(word: str, allowed: list[str]) -> str:
    """` (did you mean 'x'?)` for the nearest allowed word, or nothing.

    >>> did_you_mean("ordres", ["orders", "phases"])
    " (did you mean 'orders'?)"
    """
    near = difflib.get_close_matches(str(word), allowed, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def explain(source: str, model: type[BaseModel], error: Any) -> str:
    """One of pydantic's errors about `model`, in our words: where, what is allowed, what came."""
    loc = [part for part in error["loc"] if _is_data_key(part)]
    where = f"{source}: " + ".".join(map(str, loc)) if loc else source
    if error["type"] == "extra_forbidden":
        allowed = sorted(_fields_at(model, loc[:-1]))
        return f"{where}: unknown key; allowed: {', '.join(allowed)}{did_you_mean(str(loc[-1]), allowed)}"
    if error["type"] == "missing":
        return f"{where}: this key is required"
    message = error["msg"].removeprefix("Value error, ")
    return f"{where}: {message[0].lower()}{message[1:]}, got {shown(error['input'])}"


def _is_data_key(part: Any) -> bool:
    return isinstance(part, int) or not re.search(r"[\[\(]|^(str|literal|list|dict)$", str(part))


def _fields_at(model: type[BaseModel], loc: list[Any]) -> dict[str, FieldInfo]:
    """The fields of the section that `loc` leads to, walking through dicts of sections."""
    current: Any = model
    for part in loc:
        if isinstance(current, type) and issubclass(current, BaseModel):
            current = current.model_fields[part].annotation
        else:
            current = get_args(current)[-1]
    return (
        current.model_fields if isinstance(current, type) and issubclass(current, BaseModel) else {}
    )
