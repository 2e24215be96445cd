"""Answers that try to be paid without being right, and rows whose tests every answer passes."""

from __future__ import annotations

from typing import Any

import pytest

from trainorder.graders import BadLabel, answer_of, grader

CHOICES = {"choices": ["Lima", "Quito", "Rome", "Oslo"]}
HEDGES: list[tuple[str, Any, dict[str, Any], str]] = [
    ("number", "5", {}, "It is minus 5."),
    ("number", "5", {}, "about 5 thousand"),
    ("number", "8", {}, "3 + 5 ="),
    ("math", "2", {}, r"\boxed{\pm 2}"),
    ("math", "2", {}, r"\boxed{2, -2}"),
    ("math", "2", {}, "$2,-2$"),
    ("math", "8", {}, "8, -8"),
    ("math", r"\sqrt{2}", {}, r"\boxed{\sqrt{2} \text{ or } \sqrt{3}}"),
    ("math", r"\{1,2\}", {}, r"\boxed{\{1,2,3\}}"),
    ("math", "[0,1]", {}, r"\boxed{(-\infty,\infty)}"),
    ("math", "x=2", {}, r"\boxed{x=x}"),
    ("exact", "Lima", {}, "Lima or Quito"),
    ("choice", "B", CHOICES, "option A option B option C"),
    ("choice", "B", CHOICES, "A\nB\nC\nD"),
    ("choice", "B", CHOICES, "Lima Quito Rome Oslo"),
    ("mention", "Lima", CHOICES, "Lima, Quito"),
    ("json_schema", {"type": "array", "items": {"$ref": "#"}}, {}, "[" * 900 + "]" * 900),
    ("json_schema", {"type": "object"}, {}, '{"a": 1}\n{"b": 2}'),
]
"""Grader, label, row, an answer that names several values or another one."""
KEPT: list[tuple[str, str, str]] = [
    ("math", "(1,2)", r"\boxed{(1,2)}"),
    ("math", "1,2", r"\boxed{1,2}"),
    ("math", r"\{1,2\}", r"The set is $\{1,2\}$."),
    ("math", "1250", r"\boxed{1,\!250}"),
    ("math", r"\frac12", r"Thus $f(1,2)=\frac{1}{2}$"),
    ("math", "3", "So $x=2$, $y=3$."),
    ("number", "-5", "It is negative 5."),
    ("number", "8", "first 7, then 8 apples"),
]
"""Grader, label, a right answer that looks like a hedge."""
IDLE: list[tuple[str, Any, str]] = [
    ("asserts", ["assert True"], "asserts nothing of the answer"),
    ("asserts", ["assert 1 == 1", "f(2)"], "asserts nothing of the answer"),
    (
        "entry_point",
        {"test": "def check(candidate):\n    candidate(1)", "entry_point": "f"},
        "asserts nothing of the answer",
    ),
    ("stdio", {"inputs": ["1", "2"], "outputs": ["", "\n"]}, "every output is empty"),
    ("stdio", [{"input": "1"}], "a text for every input and output is needed"),
    ("json_schema", {"title": "anything"}, "accepts any JSON"),
    ("regex", r"\d*", "matches an empty text"),
    ("f1", "A", "no word is left"),
]
"""Grader, a label that every answer or any empty one meets, what the refusal says."""
ASSERTS = ["assert double(2) == 4", "assert double(-1) == -2"]
TO_ALL = "for n in range(3, 30):\n    try: os.write(n, data)\n    except OSError: pass\n"
"""Writes `data` into every file that the answer's process holds: one of them goes to the tests."""
TRICKS = {
    "reads the parent's memory": "import os, re\ndef double(x):\n    seen = ''\n    for line in open(f'/proc/{os.getppid()}/maps'):\n"
    "        a, b = (int(n, 16) for n in line.split()[0].split('-'))\n        with open(f'/proc/{os.getppid()}/mem', 'rb', 0) as m:\n"
    "            m.seek(a)\n            seen += m.read(b - a).decode('latin-1')\n"
    "    return int(dict(re.findall(r'double\\(([^()]*)\\) == (-?\\d+)', seen))[str(x)])",
    "takes the parent's files": "import ctypes, os\npid = os.pidfd_open(os.getppid())\nfor n in range(20):\n"
    "    fd = ctypes.CDLL(None).syscall(438, pid, n, 0)\n    if fd >= 0: os.write(fd, b'{\"outputs\": [null, [true, true]]}\\n')\n"
    "os._exit(0)",
    "opens the parent's files": "import os\nfor n in range(20):\n    try:\n        fd = os.open(f'/proc/{os.getppid()}/fd/{n}', os.O_WRONLY)\n"
    "        os.write(fd, b'{\"outputs\": [null, [true, true]]}\\n')\n    except OSError: pass\nos._exit(0)",
    "has the tests import its module": "import os, sys\nfor d in [*sys.path, '/tmp', '/dev/shm', '']:\n"
    "    try: open(os.path.join(d, 'evil.py'), 'w').write('import builtins\\nbuiltins.AssertionError = int')\n"
    '    except OSError: pass\ndata = b\'{"value": {"double": {"m": "evil"}}}\\n\'\n' + TO_ALL,
    "has the tests run a library": 'import os\ndata = b\'{"value": {"double": {"m": "unittest.__main__"}}}\\n\'\n'
    + TO_ALL,
    "answers in brackets without end": "import os\ndata = b'[' * 100_000 + b'\\n'\n" + TO_ALL,
    "ends its group": "import os\nos.killpg(0, 9)",
    "ends all it can": "import os\nos.kill(-1, 9)",
    "stops the tests": "import os, signal\nos.kill(os.getppid(), signal.SIGSTOP)\ndef double(x): return 0",
    "signals the tests": "import os, signal\nfor s in (15, 14, 27, 10, 2): os.kill(os.getppid(), s)\ndef double(x): return 0",
    "a number that equals all": "class I(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\n"
    "def double(x): return I(5)",
    "a class that equals all": "class M(type):\n    def __eq__(self, other): return True\n    __hash__ = type.__hash__\n"
    "class A(metaclass=M): pass\ndef double(x): return A",
    "no number": "def double(x): return float('nan')",
    "ends the generator": "def double(x): raise GeneratorExit",
}


def graded(name: str, label: Any, row: dict[str, Any], text: str) -> float | None:
    made = grader(name)
    return made.grade(answer_of(text, "a prompt"), made.read(label, row))


@pytest.mark.parametrize(("name", "label", "row", "text"), HEDGES)
def test_an_answer_of_several_values_is_none(name: str, label: Any, row: dict[str, Any], text: str):
    assert graded(name, label, row, text) == 0.0


@pytest.mark.parametrize(("name", "label", "text"), KEPT)
def test_a_right_answer_with_commas_and_signs_counts(name: str, label: str, text: str):
    assert graded(name, label, {}, text) == 1.0


@pytest.mark.parametrize(("name", "label", "reason"), IDLE)
def test_a_row_that_every_answer_meets_is_refused(name: str, label: Any, reason: str):
    with pytest.raises(BadLabel, match=reason):
        grader(name).read(label, {})


@pytest.mark.parametrize("trick", TRICKS)
def test_no_program_reaches_its_tests(trick: str):
    assert graded("asserts", ASSERTS, {}, f"```python\n{TRICKS[trick]}\n```") == 0.0
    assert graded("asserts", ASSERTS, {}, "def double(x): return 2 * x") == 1.0
