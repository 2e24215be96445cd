"""What every entry of GRADERS must keep; a new grader is checked by being listed, with an example here."""

from __future__ import annotations

import importlib.util
import json
import math
import random
import time
from typing import Any

import pytest

from trainorder.graders import GRADERS, BadLabel, answer_of, grader
from trainorder.graders.ifeval import checkers, follows
from trainorder.graders.names import ALIASES, resolve

EVAL = importlib.util.find_spec("lm_eval") is not None
needs_eval = pytest.mark.skipif(not EVAL, reason="the extra `eval` is not installed")
HUMAN = {
    "test": "def check(candidate):\n    assert candidate([1, 2]) == 3\n    assert candidate([]) == 0\n",
    "entry_point": "total",
    "prompt": 'from typing import List\n\ndef total(xs: List[int]) -> int:\n    """Sum."""\n',
}
EXAMPLES: dict[str, tuple[Any, dict[str, Any], list[str], list[str]]] = {
    "exact": ("Lima", {}, ["Lima", "**Lima**.", "<answer> Lima </answer>"], ["lima", "Quito"]),
    "text": (["Dead Sea", "the dead sea"], {}, ["dead sea", "The Dead Sea."], ["sea"]),
    "f1": ("the red fox", {}, ["Red fox!"], ["blue dog"]),
    "regex": (r"\b\d{4}-\d\d\b", {}, ["In 2020-01.", "2020-01"], ["2020"]),
    "choice": (
        "B",
        {"choices": ["Lima", "Quito", "Rome"]},
        ["B", "(b)", "B. Quito", "Quito", "The answer is B.", "I take option B"],
        ["A", "Rome", "A or B? option A, option B"],
    ),
    "mention": (
        "York",
        {"choices": ["Lima", "York", "New York"]},
        ["The first one is 'york'.", "York, because York is cold."],
        ["New York", "York or Lima", "The Yorkers", ""],
    ),
    "number": (
        "... so\n#### 1,250",
        {},
        ["1250", "It makes 1,250.00 in all.", r"\boxed{1250}", "<answer>1250 apples</answer>"],
        ["125", "1250 or 1251"],
    ),
    "math": (
        r"\frac{1}{2}",
        {},
        [
            "0.5",
            "1/2",
            r"So $x = \frac{2}{4}$.",
            r"\boxed{50\%}",
            r"\boxed{\frac{1}{2} \text{ cm}}",
        ],
        ["2", r"\boxed{\frac{1}{3}}", "x"],
    ),
    "asserts": (
        ["assert double(2) == 4", "def test_it():\n    assert double(-1) == -2"],
        {},
        [
            "def double(x):\n    return 2 * x",
            "Here:\n```python\ndef double(x):\n    return x + x\n```\nDone.",
        ],
        ["def double(x):\n    return 4", "double"],
    ),
    "entry_point": (
        HUMAN,
        {},
        [
            "    return sum(xs)\n",
            "return sum(xs)",
            "```\ndef total(xs: List[int]):\n    return sum(xs)\n```",
        ],
        ["    return 0", "    return None"],
    ),
    "stdio": (
        json.dumps({"inputs": ["2\n", "5\n"], "outputs": ["6\n", "15"]}),
        {},
        [
            "```python\nprint(3 * int(input()))\n```",
            "import sys\nprint(3 * int(sys.stdin.readline()))\nsys.exit()",
        ],
        ["print(6)", "print(6, 15)"],
    ),
    "json_schema": (
        {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}},
        {},
        ['{"name": "Ida"}', 'Sure:\n```json\n{"name": "Ida"}\n```'],
        ['{"name": 3}', "{}", '{"name": NaN}'],
    ),
    "ifeval": (
        "[{'instruction_id': ['punctuation:no_comma', 'startend:end_checker'], 'kwargs': [None, {'end_phrase': 'moon'}]}]",
        {},
        ["I see the moon"],
        ["I see, the moon", "moonlight"],
    ),
}
"""Grader -> what a row gives, its other columns, right answers, wrong ones."""
LISTED = [pytest.param(name, marks=needs_eval if name == "ifeval" else ()) for name in GRADERS]
HOSTILE = [
    "\n",
    "\x00",
    "\ud800",
    "x" * 100_000,
    "[" * 20_000,
    "9" * 20_000,
    "```python\n",
    "\\boxed{" * 500,
    "$" * 999,
]
NO_TRICK = {
    "returns early": "return True",
    "exits": "import sys\nsys.exit(0)",
    "exits at once": "import os\nos._exit(0)",
    "equal to everything": "class A:\n    def __eq__(self, other): return True\n    __hash__ = None\n"
    "def double(x): return A()\ntotal = double",
    "writes the verdict": "import os\nfor n in range(3, 16):\n    try: os.write(n, b'{\"outputs\": [[true, true]]}\\n')\n"
    "    except OSError: pass\nos._exit(0)",
    "kills the tests": "import os\nos.kill(os.getppid(), 9)",
    "no assertion fails": "import builtins\nbuiltins.AssertionError = StopIteration\ndef double(x): raise StopIteration",
    "a body and more": "    pass\nreturn True\n",
    "computes with everything": "class A:\n    def __getattr__(self, name): return lambda *a: 0\n"
    "    def __sub__(self, other): return 0\n    __add__ = __rsub__ = __radd__ = __abs__ = __float__ = __round__ = __sub__\n"
    "    def __lt__(self, other): return True\n    __gt__ = __le__ = __ge__ = __lt__\n"
    "def double(x): return A()\ntotal = double",
    "a length and no items": "class A:\n    def __len__(self): return 2\n    def __iter__(self): return iter(())\n"
    "def double(x): return A()\ntotal = double",
    "builtins of its own": "def abs(x): return 0\ndef zip(*xs): return []\ndef len(x): return 2\ndef all(x): return True\n"
    "def double(x): return 0\ntotal = double",
    "a library of its own": "class math:\n    isclose = staticmethod(lambda *a, **k: True)\ndef double(x): return []\n"
    "total = double",
    "reads the tests in its frames": "import re, sys\nseen, frame = '', sys._getframe()\nwhile frame:\n"
    "    seen += repr(frame.f_locals)\n    frame = frame.f_back\n"
    "pairs = dict(re.findall(r'(?:double|candidate)\\(([^()]*)\\) == (-?\\d+)', seen))\n"
    "def double(x): return int(pairs[str(x)])\ntotal = double",
    "reads the tests in its memory": "import gc, re\nseen = repr([x for x in gc.get_objects() if type(x) is list])\n"
    "pairs = dict(re.findall(r'(?:double|candidate)\\(([^()]*)\\) == (-?\\d+)', seen))\n"
    "def double(x): return int(pairs[str(x)])\ntotal = double",
}
CLOSE = [
    "assert abs(double(1.5) - 3) < 1e-9",
    "assert math.isclose(double(1.5), 3)",
    "got = double([1])\nassert len(got) == 2\nassert all(a == b for a, b in zip(got, [1, 1]))",
]
"""Tests that compute with what the answer gave; each is one of its own."""


def label_of(name: str) -> Any:
    given, row, _, _ = EXAMPLES[name]
    label = grader(name).read(given, row)
    assert json.loads(json.dumps(label)) == label
    return label


def value(name: str, text: str, label: Any) -> float | None:
    return grader(name).grade(answer_of(text, "a prompt"), label)


@pytest.mark.parametrize("name", LISTED)
def test_right_answers_score_one_and_others_less(name: str) -> None:
    label = label_of(name)
    _, _, right, wrong = EXAMPLES[name]
    for text in right:
        assert value(name, text, label) == 1.0, text
    for text in wrong:
        found = value(name, text, label)
        assert found is not None, text
        assert 0 <= found < 1, text
    gold = grader(name).gold(label)
    assert gold is None or value(name, gold, label) == 1.0


@pytest.mark.parametrize("name", LISTED)
def test_what_shows_nothing_and_nonsense_score_below_one_in_finite_time(name: str) -> None:
    label = label_of(name)
    begin = time.monotonic()
    for text in HOSTILE:
        found = value(name, text, label)
        assert found is not None, text[:20]
        assert 0 <= found < 1, text[:20]
        assert math.isfinite(found)
    assert time.monotonic() - begin < 30


@pytest.mark.parametrize("name", LISTED)
def test_a_grade_is_the_same_every_time_and_in_every_order(name: str) -> None:
    label = label_of(name)
    _, _, right, wrong = EXAMPLES[name]
    texts = [*right, *wrong]
    first = {text: value(name, text, label) for text in texts}
    random.Random(0).shuffle(texts)
    assert {text: value(name, text, label) for text in texts} == first


@pytest.mark.parametrize("name", LISTED)
def test_a_label_that_is_none_is_refused_in_words(name: str) -> None:
    for given in (None, [], {}, "" if name != "exact" else [3, None]):
        with pytest.raises(BadLabel) as caught:
            grader(name).read(given, {})
        assert str(caught.value)


@pytest.mark.parametrize("trick", NO_TRICK)
def test_no_program_passes_tests_that_it_does_not_solve(trick: str) -> None:
    for name in ("asserts", "entry_point"):
        assert value(name, NO_TRICK[trick], label_of(name)) == 0.0
        assert value(name, f"```python\n{NO_TRICK[trick]}\n```", label_of(name)) == 0.0
    for test in CLOSE:
        assert value("asserts", NO_TRICK[trick], grader("asserts").read([test], {})) == 0.0, test


def test_an_answer_may_return_fractions_and_define_what_is_named_like_a_builtin() -> None:
    def graded(code: str, *tests: str) -> float | None:
        return value("asserts", code, grader("asserts").read(list(tests), {}))

    assert graded("import math\ndef double(x): return 2 * x", CLOSE[1]) == 1.0
    assert graded("def double(x): return 2 * x", CLOSE[0], CLOSE[2]) == 1.0
    half = "from fractions import Fraction\ndef half(x): return Fraction(x, 2)"
    assert graded(half, "assert abs(half(3) - 1.5) < 1e-9 and half(3) == 1.5") == 1.0
    assert graded("def sum(a, b): return a + b", "assert sum(10, 15) == 25") == 1.0
    assert graded("def trace(m): return -3", "assert abs(trace([[3]])) == 3") == 1.0
    imported = "from solution import filter, sum as added\nassert list(filter([1])) == [2] and added(1) == 0"
    assert graded("def filter(x): return [2]\ndef sum(x): return 0", imported) == 1.0
    lines = "from solution import (\n    f,\n    g,\n)\nassert f(1) == g(1) == 2"
    assert graded("def f(x): return 2\ng = f", lines) == 1.0
    assert graded("def f(x): return 2", "import solution\nassert solution.f(1) == 2") == 1.0
    everything = "from solution import *\nassert abs(f(1) - 2) < 1e-9"
    assert graded("def f(x): return 2", everything) == 1.0
    assert graded("def f(x): return 3\ndef abs(x): return 0", everything) == 0.0
    vector = "class V:\n    def __init__(self, x): self.x = x\n    def __add__(self, o): return V(self.x + o.x)"
    assert (
        graded(vector, "assert (V(1) + V(2)).x == 3", "v = V(1)\nwhile v: break\nassert v") == 1.0
    )
    enum = "import enum\nclass C(enum.Enum):\n    A = 1\n    B = 2\ndef other(c): return C.B if c is C.A else C.A"
    assert graded(enum, "assert other(C.A) == C.B", "assert {C.A: 1}[other(C.B)] == 1") == 1.0
    assert graded(enum, "assert other(C.A) == C.A") == 0.0
    assert graded(enum, "assert other(C.A) == 2") == 0.0
    with pytest.raises(BadLabel, match="builtins only"):
        graded("def sum(a, b): return a + b", "assert abs(sum(1, 2) - 3) < 1e-9")


def test_tests_see_lists_that_a_call_changed_and_objects_with_methods() -> None:
    read = grader("asserts").read
    label = read(
        [
            "xs = [3, 1]\nsort(xs)\nassert xs == [1, 3]",
            "p = P(2)\nassert p.x == 2 and p.add(3) == 5",
        ],
        {},
    )
    code = (
        "class P:\n    def __init__(self, x): self.x = x\n    def add(self, y): return self.x + y\n"
    )
    assert value("asserts", f"{code}def sort(xs): xs.sort()", label) == 1.0
    raising = read(["try:\n    f(-1)\n    assert False\nexcept ValueError:\n    pass"], {})
    assert value("asserts", "def f(x):\n    raise ValueError('no')", raising) == 1.0
    assert value("asserts", "def f(x):\n    return x", raising) == 0.0
    handed = read(["assert apply(lambda x: x + 1, 2) == 3"], {})
    assert value("asserts", "def apply(f, x):\n    return f(x)", handed) is None


@pytest.mark.parametrize("given", ["3", '"assert f(1) == 2"', "['3', '4']", ["'assert f(1)'"]])
def test_tests_that_every_program_passes_are_refused(given: Any) -> None:
    if given == '"assert f(1) == 2"':  # a text in JSON is the text
        assert grader("asserts").read(given, {})["tests"] == ["assert f(1) == 2"]
        return
    with pytest.raises(BadLabel, match=r"asserts nothing|is needed"):
        grader("asserts").read([given] if given == "3" else given, {})


def test_tests_of_packages_that_the_sandbox_lacks_are_refused() -> None:
    with pytest.raises(BadLabel, match="imports 'numpy'"):
        grader("asserts").read(["import numpy as np\nassert np.ones(1) == f()"], {})


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (r"$\{1, 2\}$", r"\{1,2\}"),
        (r"The set is $\{2, 1\}$.", r"\{1,2\}"),
        (r"$x \in (0, 1]$", r"(0,1]"),
        (r"\boxed{2\sqrt{2}}", r"\sqrt{8}"),
        ("So it is 12 cm.", "12"),
        (r"\[ x = \frac{3}{4} \]", "0.75"),
        (r"Thus \( (1, -2) \)", "(1,-2)"),
        (r"\boxed{x^2+2x+1}", "(x+1)^2"),
    ],
)
def test_math_reads_latex_sets_intervals_units_and_boxes(given: str, wanted: str) -> None:
    assert value("math", given, grader("math").read(wanted, {})) == 1.0


ARC = {"label": ["1", "2", "3", "4"], "text": ["ice", "snow", "rain", "fog"]}


@pytest.mark.parametrize(
    ("label", "choices", "right", "wrong"),
    [
        ("2", ARC, ["2", "(2)", "2. snow", "snow", "The answer is 2.", "Option 2"], ["1", "3", "f(3) = 2"]),
        (2, {"1": "ice", "2": "snow"}, ["2", "**2**"], ["1", "ice"]),
        ("b", {"a": "ice", "b": "snow"}, ["b", "B", "(b)", "The answer is B.", "b) snow"], ["a", "A"]),
        ("B", [{"a": "ice"}, {"b": "snow"}], ["b", "Option b"], ["a"]),
        ("b", ["ice", "snow"], ["B", "b"], ["A"]),
        ("ii", {"i": "ice", "ii": "snow"}, ["ii", "(II)"], ["i", "iii"]),
    ],
)  # fmt: skip
def test_choices_may_be_called_by_numbers_and_small_letters(
    label: Any, choices: Any, right: list[str], wrong: list[str]
) -> None:
    made = grader("choice").read(label, {"choices": choices})
    assert [value("choice", text, made) for text in right] == [1.0] * len(right)
    assert [value("choice", text, made) for text in wrong] == [0.0] * len(wrong)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}},
        {"$ref": "https://example.org/schema.json"},
        {"$dynamicRef": "https://example.org/schema.json"},
        {"$id": "https://example.org/a", "items": {"$ref": "b"}},
        {"$ref": "#nowhere"},
    ],
)
def test_a_schema_that_refers_to_what_it_does_not_hold_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(BadLabel, match="may refer to itself only"):
        grader("json_schema").read(schema, {})


@pytest.mark.parametrize("depth", [300, 50_000])
def test_a_schema_nested_too_deep_is_refused(depth: int) -> None:
    with pytest.raises(BadLabel, match="JSON schema"):
        grader("json_schema").read('{"not": ' * depth + "{}" + "}" * depth, {})


def test_a_schema_may_refer_to_itself() -> None:
    nested = {
        "$defs": {"n": {"type": "array", "items": {"$ref": "#/$defs/n"}}},
        "$ref": "#/$defs/n",
    }
    label = grader("json_schema").read(nested, {})
    assert value("json_schema", "[[], [[]]]", label) == 1.0
    assert value("json_schema", "[[], [3]]", label) == 0.0
    for depth in (900, 50_000):  # what no validator follows is wrong, not ungraded
        assert value("json_schema", "[" * depth + "]" * depth, label) == 0.0
    described = {
        "type": "object",
        "properties": {"$ref": {"type": "string"}},
        "examples": [{"$ref": "elsewhere"}],
    }
    assert value("json_schema", '{"$ref": "x"}', grader("json_schema").read(described, {})) == 1.0


def test_names_of_other_frameworks_are_known() -> None:
    assert set(ALIASES.values()) <= set(GRADERS)
    known = {
        "openai/gsm8k": "number",
        "lighteval/MATH": "math",
        "aime24": "math",
        "numina_olympiads": "math",
        "math_with_judge_simple_agent": "math",
        "string_f1": "f1",
        "gpqa": "choice",
        "code_stdio": "stdio",
        "KodCode": "asserts",
        "openai_humaneval": "entry_point",
        "text2sql": None,
        "rubric": None,
    }
    assert {name: resolve(name, GRADERS) for name in known} == known


IFEVAL: dict[str, tuple[dict[str, Any], str, str]] = {
    "keywords:existence": ({"keywords": ["sea", "sky"]}, "The sea and the sky.", "The sea."),
    "keywords:frequency": (
        {"keyword": "sea", "frequency": 2, "relation": "at least"},
        "sea sea",
        "sea",
    ),
    "keywords:forbidden_words": ({"forbidden_words": ["red"]}, "blue", "a red one"),
    "keywords:letter_frequency": (
        {"letter": "z", "let_frequency": 2, "let_relation": "at least"},
        "zz",
        "z",
    ),
    "language:response_language": (
        {"language": "de"},
        "Das ist ein sehr sch\u00f6ner Tag und wir gehen spazieren.",
        "This is a very fine day and we go for a walk.",
    ),
    "length_constraints:number_sentences": (
        {"num_sentences": 2, "relation": "at least"},
        "One. Two. Three.",
        "One.",
    ),
    "length_constraints:number_paragraphs": ({"num_paragraphs": 2}, "a\n***\nb", "a"),
    "length_constraints:number_words": ({"num_words": 3, "relation": "at least"}, "a b c", "a b"),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "so"},
        "One.\n\nSo it is.",
        "One.\n\nThen.",
    ),
    "detectable_content:number_placeholders": ({"num_placeholders": 1}, "Dear [name]", "Dear you"),
    "detectable_content:postscript": ({"postscript_marker": "P.S."}, "Hi.\nP.S. Bye.", "Hi."),
    "detectable_format:number_bullet_lists": ({"num_bullets": 2}, "* a\n* b", "* a"),
    "detectable_format:constrained_response": ({}, "My answer is yes.", "Sure."),
    "detectable_format:number_highlighted_sections": (
        {"num_highlights": 1},
        "*this* one",
        "this one",
    ),
    "detectable_format:multiple_sections": (
        {"section_spliter": "SECTION", "num_sections": 2},
        "SECTION 1\na\nSECTION 2\nb",
        "a",
    ),
    "detectable_format:json_format": ({}, '{"a": 1}', "a"),
    "detectable_format:title": ({}, "<<Title>>\ntext", "text"),
    "combination:two_responses": ({}, "one******two", "one"),
    "combination:repeat_prompt": ({"prompt_to_repeat": "Say it"}, "Say it. It.", "It."),
    "startend:end_checker": ({"end_phrase": "the end"}, "This is the end", "This is it"),
    "change_case:capital_word_frequency": (
        {"capital_frequency": 1, "capital_relation": "at least"},
        "a BIG one",
        "a",
    ),
    "change_case:english_capital": (
        {},
        "THIS IS A SENTENCE IN ENGLISH",
        "This is a sentence in English",
    ),
    "change_case:english_lowercase": (
        {},
        "this is a sentence in english",
        "This is a sentence in English",
    ),
    "punctuation:no_comma": ({}, "a b", "a, b"),
    "startend:quotation": ({}, '"a"', "a"),
}
NLTK = {"length_constraints:number_sentences", "change_case:capital_word_frequency"}
"""These need nltk's data, which no package brings."""


@needs_eval
def test_every_constraint_of_ifeval_agrees_with_lm_eval() -> None:
    assert set(IFEVAL) == set(checkers())
    for name, (own, kept, broken) in IFEVAL.items():
        given = {"instruction_id_list": [name], "kwargs": [{**own, "other": None}]}
        if name in NLTK and follows(kept, "a prompt", name, own) is None:
            with pytest.raises(BadLabel, match="needs nltk's data"):
                grader("ifeval").read(given, {})
            continue
        label = grader("ifeval").read(given, {})
        checker = checkers()[name](name)
        checker.build_description(**own)
        for text, right in ((kept, True), (broken, False)):
            assert follows(text, "a prompt", name, own) is right, (name, text)
            assert checker.check_following(text) is right
            assert value("ifeval", text, label) == float(right)


@needs_eval
def test_an_unknown_constraint_names_the_nearest() -> None:
    with pytest.raises(
        BadLabel,
        match=r"no constraint 'punctuation:no_comas' \(did you mean 'punctuation:no_comma'",
    ):
        grader("ifeval").read({"instruction_id_list": ["punctuation:no_comas"], "kwargs": [{}]}, {})


@needs_eval
@pytest.mark.parametrize("name", IFEVAL)
def test_a_constraint_without_its_arguments_is_refused(name: str) -> None:
    """lm-eval would fill them with random values, different ones for each answer."""
    own = IFEVAL[name][0]
    for key in own:
        for rest in ({}, {key: None}, {key: 0}):
            given = {"instruction_id_list": [name], "kwargs": [{**own, key: None, **rest}]}
            with pytest.raises(BadLabel, match=f"constraint {name} needs .*{key}"):
                grader("ifeval").read(given, {})


@needs_eval
@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("keywords:existence", {"keywords": ["*"]}),
        ("keywords:forbidden_words", {"forbidden_words": ["(x"]}),
        ("keywords:frequency", {"keyword": "(", "frequency": 2, "relation": "at least"}),
        ("detectable_format:multiple_sections", {"section_spliter": "S(", "num_sections": 2}),
    ],
)
def test_words_that_are_no_pattern_are_refused(name: str, own: dict[str, Any]) -> None:
    """lm-eval searches them as regular expressions."""
    with pytest.raises(BadLabel, match=f"constraint {name}: error: "):
        grader("ifeval").read({"instruction_id_list": [name], "kwargs": [own]}, {})


@needs_eval
def test_nothing_visible_keeps_no_constraint() -> None:
    for name, (own, _, _) in IFEVAL.items():
        for text in ("", " \n", "\u200b", "\u00ad\u2060", "\ufeff\n\u200e"):
            assert follows(text, "a prompt", name, own) in (False, None), (name, text)
