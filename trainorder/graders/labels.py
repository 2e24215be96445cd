"""Values that a row holds as text: JSON, or a Python literal."""

from __future__ import annotations

import ast
import json
from typing import Any

MAX_LITERAL = 1_000_000
"""Characters of a text that is read as a Python literal; JSON takes a hundredth of its memory."""
_STARTS = ("[", "{", "(", '"')


def literal(text: Any) -> Any:
    """What a text says as JSON, else as a Python literal; any other text, and what is no text, as it is.

    >>> literal('{"a": [1]}'), literal("[{'a': None}]"), literal("12 apples"), literal("12")
    ({'a': [1]}, [{'a': None}], '12 apples', '12')
    """
    if not isinstance(text, str) or text.lstrip()[:1] not in _STARTS:
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    if len(text) > MAX_LITERAL:
        return text
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return text
