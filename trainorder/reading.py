"""Reads what a user wrote in YAML, and refuses what no such file needs before anything expands, compares or prints it.

Bombs, absurd numbers, control characters and secrets; what the keys mean is `config.py`'s.
"""

from __future__ import annotations

import difflib
import math
import re
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

MAX_YAML = 64 << 20
"""Bytes of a YAML file."""
MAX_PARAMS = 256 << 10
"""Bytes of params.yaml."""
MAX_NODES, MAX_DEPTH, MAX_TEXT, MAX_NUMBER = 20_000, 20, 4096, 10**12
"""Values, levels, characters of a text and size of an integer in params.yaml."""
SECRET = re.compile(
    r"\b(sk-|rk-|pk-|hf_|ghp_|gho_|ghs_|github_pat_|glpat-|xox[abp]-|AIza|AKIA|gsk_|dckr_pat_|nvapi-)[\w-]{12,}"
    r"|\beyJ[\w-]{10,}\.[\w-]{10,}|-----BEGIN|^Bearer\s|://[^/\s:@]*:[^/\s@]+@"
)
"""What API keys, tokens, private keys and addresses with a password look like."""
SECRET_KEY = re.compile(
    r"(api_?key|secret|password|passwd|credential|access_?token|auth_?token)", re.IGNORECASE
)
NO_SECRETS = (
    "this looks like a secret, and params are copied into manifests, MLflow and reports; put it into an environment "
    "variable and name that (judge.endpoint.api_key_env). Its value is not repeated here"
)


class ParamsError(ValueError):
    """params.yaml asks for something impossible; the text names the key, what is allowed and what to do."""


def read_yaml(path: Path, most: int = MAX_YAML) -> Any:
    """YAML 1.2 as DVC reads it (`3e-4` is a number, a repeated key is an error), of at most `most` bytes."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    if not path.is_file():
        raise ParamsError(
            f"{path} not found: run this in the project folder, where params.yaml lies"
        )
    try:
        if path.stat().st_size > most:
            raise ParamsError(f"{path} has {path.stat().st_size} bytes, at most {most} are read")
        return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ParamsError(f"{path} is not valid YAML here: nested too deep") from None
    except OSError as error:
        raise ParamsError(f"{path} cannot be read: {error.strerror}") from None
    except (
        YAMLError,
        ValueError,
        TypeError,
        ArithmeticError,
        LookupError,
        AttributeError,
    ) as error:
        if isinstance(error, ParamsError):
            raise
        text = str(error) if len(str(error)) < 2000 else f"{str(error)[:2000]} ..."
        if not isinstance(error, YAMLError | UnicodeDecodeError):
            text = f"{_culprit(path)}{text}"
        raise ParamsError(f"{path} is not valid YAML: {text}") from None


def _culprit(path: Path) -> str:
    """Key and line of the first scalar that no Python value can be made of; the parser's own error names none."""
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    todo: list[tuple[str, Any]] = [("", yaml.compose(path.read_text(encoding="utf-8")))]
    for where, node in (todo.pop() for _ in range(MAX_NODES) if todo):
        if isinstance(node.value, list):
            for number, item in enumerate(node.value):
                key, value = item if isinstance(item, tuple) else (None, item)
                name = str(number) if key is None else str(key.value)[:100]
                todo.append((f"{where}.{name}".lstrip("."), value))
            continue
        try:
            YAML(typ="safe", pure=True).constructor.construct_object(node)
        except (ValueError, ArithmeticError, TypeError):
            return f"{where} (line {node.start_mark.line + 1}): "
    return ""


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
                if not isinstance(key, str) or len(key) > 200 or not key.isprintable():
                    raise ParamsError(f"{where}: a key must be a short text, got {shown(key)}")
                if SECRET_KEY.search(key) and not key.endswith("_env") and isinstance(item, str):
                    raise ParamsError(f"{where}{'.' if loc else ': '}{key}: {NO_SECRETS}")
                todo.append(((*loc, key), item))
        elif isinstance(value, (list, tuple)):
            todo += [((*loc, str(i)), item) for i, item in enumerate(value)]
        elif isinstance(value, str):
            if SECRET.search(value):
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


def _broken(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def shown(value: Any) -> str:
    """What came, for a message, cut to a line or two."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


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
