"""Programs that a model wrote, run in the sandbox: asserts, HumanEval's `check(candidate)`, standard input and output.

The program is the last code block of the answer, else all of it. All tests must pass. They stand apart from the completion
(graders/harness.py): one that returns, exits or overwrites what it can reach passes none.
"""

from __future__ import annotations

import ast
import atexit
import base64
import builtins
import marshal
import re
import sys
import textwrap
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from trainorder.graders import Answer, BadLabel, Grader
from trainorder.graders.labels import literal
from trainorder.rewards.sandbox import Limits, Sandbox

HARNESS = Path(__file__).with_name("harness.py")
LIMITS = Limits(
    cpu_seconds=5.0, wall_seconds=20.0, memory_mb=512, output_bytes=1 << 20, processes=8
)
MAX_TESTS = 24
"""Of a row; further ones are not run."""
MAX_CHARS = 200_000
"""Of a program, and of a row's tests."""
_FENCE = re.compile(
    r"^[ \t]*(```+|~~~+)[ \t]*(\w*)[^\n]*\n(.*?)(?:^[ \t]*\1[ \t]*$|\Z)", re.DOTALL | re.MULTILINE
)
_PYTHON = ("", "python", "py", "python3")


@cache
def _sandbox() -> Sandbox:
    made = Sandbox(LIMITS, language="python")
    atexit.register(made.close)
    return made


@cache
def _program(function: str) -> str:
    """The harness as the body of the sandbox's function, compiled: the sandbox's interpreter is this one."""
    compiled = marshal.dumps(compile(HARNESS.read_text(encoding="utf-8"), "<harness>", "exec"))
    load = f"exec(marshal.loads(base64.b64decode({base64.b64encode(compiled)!r})), globals())"
    return (
        f"if {function!r} not in globals():\n    import base64, marshal\n    {load}\n"
        f"return globals()[{function!r}](xs)\n"
    )


def code_of(answer: Answer) -> str:
    r"""The program of an answer.

    >>> code_of(Answer("Here:\n```python\nx = 1\n```\nDone.", "", "", ""))
    'x = 1\n'
    """
    text = answer.text.replace("\r\n", "\n")
    blocks = [block for _, language, block in _FENCE.findall(text) if language.lower() in _PYTHON]
    if blocks:
        return textwrap.dedent(blocks[-1])
    return answer.marked if "<answer>" in text else text


def _read_asserts(label: Any, row: Mapping[str, Any]) -> dict[str, Any]:
    """{"tests": [...]} of a list of statements, a JSON text of one, or ROLL's `[{"assert_code": ...}]`."""
    found = literal(label)
    if isinstance(found, Mapping):
        found = found.get("tests", found.get("test_list", found.get("test")))
    found = [found] if isinstance(found, str) else found
    given = found if isinstance(found, list) else []
    texts = [t.get("assert_code") if isinstance(t, Mapping) else t for t in given]
    found = [str(text) for text in texts if isinstance(text, str) and text.strip()]
    if not found or len(found) < len(texts):
        raise BadLabel(f"a list of test statements is needed, got {repr(label)[:60]}")
    setup = row.get("test_setup_code") or ""
    tests = [_checked(f"{setup}\n{test}" if setup else test) for test in found[:MAX_TESTS]]
    _refuse_idle(tests)
    return {"tests": tests, "entry": "", "header": "", "own": _own(tests)}


def _read_entry(label: Any, row: Mapping[str, Any]) -> dict[str, Any]:
    """HumanEval's `test` and `entry_point`, and the function's head where the prompt is one."""
    found = literal(label)
    found = {**row, **found} if isinstance(found, Mapping) else {**row, "test": found}
    test, entry = found.get("test"), found.get("entry_point")
    if (
        not isinstance(test, str)
        or "def check(" not in test
        or not isinstance(entry, str)
        or not entry.isidentifier()
    ):
        raise BadLabel("`test` with a function `check(candidate)` and `entry_point` are needed")
    prompt = found.get("prompt")
    header = prompt if isinstance(prompt, str) and f"def {entry}(" in prompt else ""
    _refuse_idle([_checked(test)])
    return {"tests": [test], "entry": entry, "header": header, "own": []}


def _read_stdio(label: Any, row: Mapping[str, Any]) -> dict[str, Any]:
    """{"inputs": [...], "outputs": [...]} or a list of {"input", "output"}."""
    found = literal(label)
    if isinstance(found, list) and all(isinstance(t, Mapping) for t in found):
        found = {key + "s": [t.get(key) for t in found] for key in ("input", "output")}
    if not isinstance(found, Mapping) or "fn_name" in found:
        raise BadLabel(
            f"`inputs` and `outputs` of a whole program are needed, got {repr(label)[:60]}"
        )
    pair = [_texts(found.get(key)) for key in ("inputs", "outputs")]
    if not pair[0] or len(pair[0]) != len(pair[1]):
        raise BadLabel(
            f"as many outputs as inputs are needed, got {len(pair[0])} and {len(pair[1])}"
        )
    inputs, outputs = pair
    if not any(text.split() for text in outputs[:MAX_TESTS]):
        raise BadLabel("every output is empty, so any program that prints nothing is right")
    return {"inputs": inputs[:MAX_TESTS], "outputs": outputs[:MAX_TESTS]}


def _texts(value: Any) -> list[str]:
    found = value if isinstance(value, list) else []
    if None in found:
        raise BadLabel(f"a text for every input and output is needed, got {repr(value)[:60]}")
    return ["\n".join(map(str, item)) if isinstance(item, list) else str(item) for item in found]


def _checked(test: str) -> str:
    """The test, if it is Python of the standard library and of the answer, which is the module `solution`."""
    if len(test) > MAX_CHARS:
        raise BadLabel(f"tests of at most {MAX_CHARS} characters, got {len(test)}")
    try:
        tree = ast.parse(test)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise BadLabel(f"a test is no Python ({error}): {test[:60]!r}") from None
    if all(isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant) for n in tree.body):
        raise BadLabel(f"a test asserts nothing: {test[:60]!r}")
    names = [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    names += [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    others = [n for n in names if n.partition(".")[0] not in {*sys.stdlib_module_names, "solution"}]
    if others:
        raise BadLabel(
            f"a test imports {others[0]!r}, and the sandbox has the standard library only"
        )
    return test


def _refuse_idle(tests: list[str]) -> None:
    """Refuse tests of which none can fail: no assert, nothing raised, no method `assert...` or `fail`."""
    for node in (node for test in tests for node in ast.walk(ast.parse(test))):
        if isinstance(node, ast.Raise):
            return
        if isinstance(node, ast.Attribute) and node.attr.startswith(("assert", "fail")):
            return
        if isinstance(node, ast.Assert):
            never = isinstance(node.test, ast.Constant) and not node.test.value  # `assert False`
            named = any(isinstance(n, ast.Name | ast.Attribute) for n in ast.walk(node.test))
            if never or named:
                return
    raise BadLabel(f"a test asserts nothing of the answer: {tests[0][:60]!r}")


def _own(tests: list[str]) -> list[str]:
    """Names of builtins and library modules that the tests take from the answer.

    `trace(m)` calls no module, so it is the answer's; `sum(1, 2)` is where the tests use no other name of the answer and
    import none.
    """
    nodes = [node for test in tests for node in ast.walk(ast.parse(test))]
    names = [node for node in nodes if isinstance(node, ast.Name)]
    bound = {n.id for n in names if not isinstance(n.ctx, ast.Load)}
    bound |= {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    bound |= {n.arg for n in nodes if isinstance(n, ast.arg)}
    bound |= {(n.asname or n.name).partition(".")[0] for n in nodes if isinstance(n, ast.alias)}
    free = {n.id for n in names} - bound
    called = {n.func.id for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    modules = (called & free & sys.stdlib_module_names) - vars(builtins).keys()
    imported = any(isinstance(n, ast.ImportFrom) and n.module == "solution" for n in nodes)
    if imported or modules or free - vars(builtins).keys() - sys.stdlib_module_names:
        return sorted(modules)
    found = sorted(called & free & vars(builtins).keys())
    if len(found) > 1:
        raise BadLabel(
            f"the tests call builtins only ({', '.join(found)}), so which of them is the answer's cannot be "
            f"told: give the function another name"
        )
    return found


def _tested(answer: Answer, label: dict[str, Any]) -> float | None:
    code, entry = code_of(answer), label["entry"]
    if entry and label["header"]:
        whole = re.search(rf"^def {entry}\(", code, re.MULTILINE)
        head = label["header"].partition(f"def {entry}(")[0] if whole else label["header"]
        code = f"{head}{code}" if whole else head + _indented(code)
    if len(code) > MAX_CHARS:
        return 0.0
    told = [[code], [label["tests"], entry, label["own"]]]
    result = _sandbox().run([(_program("run"), told)])[0]
    _, verdicts = result.outputs or (None, [False])
    if result.unavailable or None in verdicts:
        return None
    return float(
        len(verdicts) == len(label["tests"]) and all(verdict is True for verdict in verdicts)
    )


def _indented(body: str) -> str:
    """A function's body, four spaces deep."""
    body = body.strip("\n")
    first = next((row for row in body.split("\n") if row.strip()), "")
    return body if first[:1] in (" ", "\t") else textwrap.indent(body, "    ")


def _spoken(answer: Answer, label: dict[str, Any]) -> float | None:
    code = code_of(answer)
    if len(code) > MAX_CHARS:
        return 0.0
    result = _sandbox().run([(_program("talk"), [[code, text] for text in label["inputs"]])])[0]
    if result.unavailable:
        return None
    printed = result.outputs or []
    right = [
        isinstance(out, list) and out[0].split() == wanted.split()
        for out, wanted in zip(printed, label["outputs"], strict=False)
    ]
    return float(len(right) == len(label["outputs"]) and all(right))


ASSERTS = Grader(_read_asserts, _tested, lambda label: None, sandboxed=True, costly=True)
ENTRY_POINT = Grader(_read_entry, _tested, lambda label: None, sandboxed=True, costly=True)
STDIO = Grader(_read_stdio, _spoken, lambda label: None, sandboxed=True, costly=True)
