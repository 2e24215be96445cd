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
    except ValueError:
        schema = None
    if not isinstance(schema, dict) or not schema:
        raise BadLabel(f"a JSON schema is needed, got {repr(label)[:60]}")
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise BadLabel(f"no JSON schema: {error.message[:100]}") from None
    if "$ref" in json.dumps(schema).replace('"$ref": "#', ""):
        raise BadLabel("a schema may refer to itself only ($ref: '#/...')")
    return schema


def _grade(answer: Answer, label: dict[str, Any]) -> float:
    from jsonschema import Draft202012Validator

    blocks = _FENCE.findall(answer.text)
    for text in (blocks[-1] if blocks else answer.said, answer.text):
        try:
            value = json.loads(text, parse_constant=_refused)
        except (ValueError, RecursionError):
            continue
        return float(Draft202012Validator(label).is_valid(value))
    return 0.0


def _refused(constant: str) -> Any:
    raise ValueError(constant)


JSON_SCHEMA = Grader(_read, _grade, lambda label: None)
