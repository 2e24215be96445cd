"""json_schema: the answer is JSON of a schema, alone or in a code block."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from trainorder.graders import Answer, BadLabel, Grader

_FENCE = re.compile(r"```(?:json)?[^\S\n]*\n(.*?)```", re.DOTALL)


def _read(label: Any, row: Mapping[str, Any]) -> dict[str, Any]:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        schema = json.loads(label) if isinstance(label, str) else label
    except (ValueError, RecursionError):
        schema = None
    if not isinstance(schema, dict) or not schema:
        raise BadLabel(f"a JSON schema is needed, got {repr(label)[:60]}")
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise BadLabel(f"no JSON schema: {error.message[:100]}") from None
    except RecursionError:
        raise BadLabel("no JSON schema: nested too deep") from None
    _check_references(schema)
    anything: list[Any] = [None, True, 0, "", [], {}, {"a": [1]}]
    if all(Draft202012Validator(schema).is_valid(value) for value in anything):
        raise BadLabel(f"the schema accepts any JSON, so every answer is right: {repr(label)[:60]}")
    return schema


def _check_references(schema: dict[str, Any]) -> None:
    """Refuse a schema with a reference to anything that it does not hold itself: nothing is fetched."""
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    root = DRAFT202012.create_resource(schema)
    todo, known = [(root, Registry().resolver_with_root(root))], set[int]()
    while todo:
        resource, resolver = todo.pop()
        held = resource.contents
        if not isinstance(held, dict) or id(held) in known:
            continue
        known.add(id(held))
        for key in ("$ref", "$dynamicRef"):
            if key not in held:
                continue
            try:
                found = resolver.lookup(held[key])
            except Unresolvable:
                raise BadLabel(
                    f"a schema may refer to itself only ({key}: '#/...'), got {held[key][:60]!r}"
                ) from None
            todo.append((DRAFT202012.create_resource(found.contents), found.resolver))
        todo += [(each, resolver.in_subresource(each)) for each in resource.subresources()]


def _grade(answer: Answer, label: dict[str, Any]) -> float:
    from jsonschema import Draft202012Validator
    from referencing import Registry

    blocks = _FENCE.findall(answer.text)
    for text in (blocks[-1] if blocks else answer.said, answer.text):
        try:
            value = json.loads(text, parse_constant=_refused)
        except (ValueError, RecursionError):
            continue
        try:
            return float(Draft202012Validator(label, registry=Registry()).is_valid(value))
        except RecursionError:  # deeper than any answer has to be
            return 0.0
    return 0.0


def _refused(constant: str) -> Any:
    raise ValueError(constant)


JSON_SCHEMA = Grader(_read, _grade, lambda label: None)
