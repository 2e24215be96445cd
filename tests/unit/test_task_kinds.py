"""The five tasks, their answer format, and how they are found, read and refused."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import pytest
from timing import cost

from trainorder import paths
from trainorder.config import TaskConfig
from trainorder.reading import ParamsError
from trainorder.rewards import format
from trainorder.rewards.sandbox import Result
from trainorder.streams import stream
from trainorder.tasks import (
    code,
    constraints,
    creative,
    load_problems,
    load_task,
    make_task,
    programs,
)
from trainorder.tasks.base import Problem, content_id, split_of
from trainorder.tasks.code import Code
from trainorder.tasks.constraints import FILLERS, WORDS, Constraints
from trainorder.tasks.creative import Creative
from trainorder.tasks.hidden_inputs import hidden_inputs
from trainorder.tasks.lexicon import TOPICS
from trainorder.tasks.math import Math
from trainorder.tasks.programs import Program
from trainorder.tasks.qa import COUNTRIES, Qa


def problem(prompt: str = "?", **meta: object) -> Problem:
    return Problem("t/0", "t", prompt, "", "", meta)


# Answer format


def test_parse_is_the_inverse_of_render() -> None:
    assert format.parse(format.render("3 + 4 = 7", "7")) == ("3 + 4 = 7", "7")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        "<answer> 7 </answer>",
        "<think> </think> <answer> 7 </answer>",
        "<think> \u200b </think> <answer> 7 </answer>",
        "<think> easy </think> <answer> </answer>",
        "<think> easy </think> <answer> 7 </answer> .",
        "so <think> easy </think> <answer> 7 </answer>",
        "<think> easy </think> 7 <answer> 7 </answer>",
        "<think> easy </think> <answer> 7 </answer> <answer> 8 </answer>",
        "<think> <think> easy </think> <answer> 7 </answer>",
        "<think> easy <answer> 7 </answer> </think> <answer> 8 </answer>",
        "<THINK> easy </THINK> <answer> 7 </answer>",
    ],
)
def test_anything_else_than_one_thought_and_one_answer_is_refused(text: str) -> None:
    assert format.parse(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "<think>3 + 4 = 7</think><answer>7</answer>",
        "<think>\n3 + 4 = 7\n</think>\n\n<answer>\n7\n</answer>\n",
        " <think> 3 + 4 = 7 </think> <answer> 7 </answer>",
        "3 + 4 = 7\n</think>\n<answer> 7 </answer>",  # the chat template opened the thought
    ],
)
def test_whitespace_and_a_thought_opened_by_the_template_keep_the_format(text: str) -> None:
    assert format.parse(text) == ("3 + 4 = 7", "7")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("<think>2+3=5</think>\n<answer>5</answer>", "5"),
        ("2+3 is 5\n</think>\n<answer> 5 </answer>", "5"),
        ("<answer> 4 </answer> no , <answer> 5 </answer>", "5"),
        ("<answer>5</answer> </answer>", "5"),
        ("<Answer>5</Answer>", "5"),
        ("<answer> so \\boxed{5} </answer>", "5"),
        ("first \\boxed{4} then \\boxed{\\frac{1}{2}} and \\boxed{", "\\frac{1}{2}"),
        ("2 + 3 = 5\n#### 5", "5"),
        ("The answer is 5. Good luck", "5"),
        ("Final answer: **5**", "**5**"),
        ("<answer>a\n  b</answer>", "a\n  b"),
        ("<think> <answer> 5 </answer> </think>", ""),
        ("<think> the answer is 5 </think>", ""),
        ("<answer> \u200b\u3164 </answer>", ""),
        ("5", ""),
        ("", ""),
    ],
)
def test_the_answer_is_the_last_tag_box_or_mark_outside_of_thoughts(text: str, found: str) -> None:
    assert format.answer(text) == found


def test_marks_count_only_where_a_task_allows_them() -> None:
    assert format.answer("The answer is 5", marked=False) == ""
    assert format.answer("\\boxed{5}", marked=False) == "5"


@pytest.mark.parametrize(
    "text", ["\\boxed{", "<answer>", "</think>", "<think></think>", "answer is ", "{", "####"]
)
def test_a_megabyte_of_tags_is_searched_in_linear_time(text: str) -> None:
    quarter = text * (250_000 // len(text))
    assert cost(lambda: format.answer(4 * quarter)) < 10 * cost(lambda: format.answer(quarter))


GRADED = {  # kind -> what its answer may look like, and what is no answer
    "math": (
        "{a}|{a}.|+{a}|0{a}|{a}.0|**{a}**|${a}$|\\text{{{a}}}|{a} figs|\n{a}\n|{a}e0|({a})|\u200b{a}\u200b|= {a}",
        "{b}|{a} {b}|{a}, {b}|{a} or {b}|{p}|{a} + 0|-{a}|{a}{a}|.|\u200b|{a} hundred|{a}!|{a} x|not {a}",
    ),
    "qa": (
        '{a}|{a}.|{A}|**{a}**|"{a}"|\n{a}\n| {a} !|({a})',
        "{b}|{a} {b}|{a} , {b}|{a} or {b}|{p}|not {a}|{a}\u200b{a}|.|\u200b|{a}{a}",
    ),
}


@pytest.mark.parametrize("kind", GRADED)
def test_right_answers_written_otherwise_earn_all_and_guesses_nothing(kind: str) -> None:
    task = make_task(kind, TaskConfig())
    for n in range(4):
        item = task.draw(stream("graded", kind, n))
        a = item.meta["answer"]
        b = str(int(a) + 1) if kind == "math" else item.meta["options"][0]
        b = b if b != a else item.meta["options"][1]
        right, wrong = (
            [text.format(a=a, A=a.title(), b=b, p=item.prompt) for text in side.split("|")]
            for side in GRADED[kind]
        )
        for texts, value in ((right, 1.0), (wrong, 0.0)):
            for way in ("<think>x</think><answer>{}</answer>", "x </think>\n<answer> {} </answer>"):
                rewards = task.grade([way.format(t) for t in texts], [item] * len(texts))
                assert {t: r.value for t, r in zip(texts, rewards, strict=True)} == dict.fromkeys(
                    texts, value
                )
                assert value == 0 or {r.parts["format"] for r in rewards} == {1.0}
        loose = [
            f"so \\boxed{{{a}}}",
            f"The answer is {a}.",
            f"#### {a}",
            f"<answer>{a}</answer> ok",
        ]
        found = task.grade(loose, [item] * 4)
        assert [(r.value, r.parts["format"]) for r in found] == [(1.0, 0.0)] * 4
        bare = [
            a,
            f"{a} {b}",
            item.prompt,
            f"<think> {a} </think>",
            f"<answer> {a} </answer> <answer>{b}</answer>",
        ]
        assert [r.value for r in task.grade(bare, [item] * 5)] == [0.0] * 5


def test_where_the_place_of_the_answer_is_the_task_the_other_place_earns_nothing() -> None:
    item = Math().draw(stream("place"))
    a = item.meta["answer"]
    last, first = f"<think>x</think><answer>{a}.</answer>", f"<answer>{a}.</answer><think>x</think>"
    for task, values in (
        (Math(), [1, 1]),
        (Math(answer="last"), [1, 0]),
        (Math(answer="first"), [0, 1]),
    ):
        assert [r.value for r in task.grade([last, first], [item] * 2)] == values


def test_splits_hold_60_20_and_20_percent() -> None:
    splits = [split_of(content_id("t", n)) for n in range(5000)]
    # 5000 draws: standard deviations 0.007 and 0.006
    assert splits.count("train") / 5000 == pytest.approx(0.6, abs=0.02)
    assert splits.count("dev") / 5000 == pytest.approx(0.2, abs=0.02)


# math


def test_math_works_out_its_steps() -> None:
    assert (
        Math()
        .grade(
            [
                "<think> 3 + 4 = 7 ; 7 - 3 = 4 </think> <answer> 4 </answer>",
                "<think> x </think> <answer> 5 </answer>",
            ],
            [problem(answer="4")] * 2,
        )[0]
        .value
        == 1
    )
    drawn = [Math().draw(stream("math", n)) for n in range(300)]
    for item in drawn:
        steps = format.parse(item.gold).think.split(" ; ")
        total = item.meta["chain"][0]
        for step, operand in zip(steps, item.meta["chain"][1:], strict=True):
            total += operand
            assert step.split()[0] == str(total - operand)
            assert step.endswith(f"= {total}")
            assert 0 <= total <= 20
            assert 1 <= abs(operand) <= 9
        assert str(total) == item.meta["answer"]


def test_one_chain_told_in_two_ways_is_one_problem() -> None:
    story, expression = Math(stories=1.0), Math(stories=0.0)
    # the same stream draws the same chain first
    a, b = story.draw(random.Random(5)), expression.draw(random.Random(5))
    assert a.prompt != b.prompt
    assert a.id == b.id


def test_math_demonstrations_are_half_careful_and_wrong_as_documented() -> None:
    task, rng = Math(min_operations=2, max_operations=2), stream("demos")
    items = [task.draw(rng) for _ in range(4000)]
    texts = [task.demonstrate(item, rng) for item in items]
    right = [reward.value for reward in task.grade(texts, items)]
    careful = ["=" in text for text in texts]
    # careful: both steps right 0.93^2 = 0.865, or two slips that cancel (about 0.0012)
    good = [r for r, c in zip(right, careful, strict=True) if c]
    hasty = [r for r, c in zip(right, careful, strict=True) if not c]
    assert sum(careful) / 4000 == pytest.approx(0.5, abs=0.03)
    assert sum(good) / len(good) == pytest.approx(0.866, abs=0.025)
    assert sum(hasty) / len(hasty) == pytest.approx(0.5, abs=0.035)


# code


def test_code_pays_what_runs_right_whatever_its_form() -> None:
    program = Program("sum", "below", 6)
    hidden = hidden_inputs(program, 4)
    item = problem(inputs=hidden, outputs=[program.run(xs) for xs in hidden])
    answers = {
        "return sum ( v for v in xs if v < 6 )": 1.0,
        "return sum ( [ v for v in xs if not v >= 6 ] )": 1.0,
        "return sum ( v for v in xs if v < 7 )": 0.0,
        "return sum ( v for v in xs if v <= 6 )": 0.0,
        "return sum ( xs )": 0.0,
        "return": 0.0,
        "sum ( v for v in xs if v < 6 )": 0.0,
    }
    rewards = Code().grade([format.render("easy", text) for text in answers], [item] * len(answers))
    assert [reward.value for reward in rewards] == list(answers.values())
    assert rewards[2].parts["runs"] == 1.0


def test_one_program_asked_in_two_ways_is_one_problem() -> None:
    rng = stream("wordings")
    items = [Code(examples=0.0).draw(rng) for _ in range(1500)]
    sources = {Program(*item.meta["program"]).source for item in items}
    assert len({item.id for item in items}) == len(sources) < len({item.prompt for item in items})


WORLD = [
    Program(aggregate, keep, bound, change, operand)
    for aggregate in programs.AGGREGATES
    for keep, a in programs.FILTERS.items()
    for bound in ([-1, 0, 1, *a.numbers, 14] if len(a.numbers) > 1 else [0])
    for change, b in programs.MAPS.items()
    for operand in ([1, *b.numbers, 10] if len(b.numbers) > 1 else [0])
]
"""Every program of the world, and those one step outside its numbers."""


def value(program: Program, xs: list[int]) -> object:
    try:
        return program.run(xs)
    except ValueError:  # the largest of nothing
        return None


def test_no_wrong_program_of_the_world_passes_the_hidden_inputs() -> None:
    """A program that passes is equal: on 400 other lists it gives the same wherever the right one gives anything."""
    rng = stream("wrong programs")
    lists = [
        [rng.randint(low, low + w) for _ in range(rng.randint(1, 6))]
        for low in range(-6, 24)
        for w in (0, 2, 5, 15)
        for _ in range(3)
    ]
    for item in [Code().draw(rng) for _ in range(25)]:
        right, hidden = Program(*item.meta["program"]), item.meta["inputs"]
        expected = item.meta["outputs"]
        passing = [p for p in WORLD if value(p, hidden[0]) == expected[0]]
        passing = [p for p in passing if [value(p, xs) for xs in hidden] == expected]
        assert right in passing
        for other in passing:
            differ = [xs for xs in lists if value(right, xs) not in (None, value(other, xs))]
            assert differ == [], f"{other.source} passes for {right.source}"


def test_no_bug_of_the_demonstrations_passes_unless_it_changes_nothing() -> None:
    rng = stream("bugs")
    lists = [[rng.randint(-3, 16) for _ in range(rng.randint(1, 4))] for _ in range(600)]
    for item in [Code().draw(rng) for _ in range(500)]:
        right = Program(*item.meta["program"])
        bug = programs.with_bug(right, rng)
        if [value(bug, xs) for xs in item.meta["inputs"]] == item.meta["outputs"]:
            differ = [xs for xs in lists if value(right, xs) not in (None, value(bug, xs))]
            assert differ == [], f"{bug.source} passes for {right.source}"


GUESSES = """
0
1
[ ]
xs
xs [ 0 ]
xs [ -1 ]
[ xs [ 0 ] ]
len ( xs )
len ( xs ) - 1
sum ( xs )
max ( xs )
min ( xs )
max ( xs ) - 1
min ( xs ) + 1
sorted ( xs )
xs [ 1 : ]
xs [ : -1 ]
sorted ( set ( xs ) )
sum ( set ( xs ) )
sorted ( xs ) [ len ( xs ) // 2 ] if xs else 0
"""


def test_short_guesses_earn_nothing_through_the_sandbox() -> None:
    filtered = (Code(examples=0.0).draw(stream("guesses", n)) for n in range(99))
    items = [p for p in filtered if p.meta["program"][1] in ("below", "above", "not")][:8]
    texts = [format.render("x", f"return {guess}") for guess in GUESSES.strip().split("\n")]
    texts += [format.render("x", f"return {y}") for y in items[0].meta["outputs"]]
    rewards = Code().grade(texts * len(items), [p for p in items for _ in texts])
    assert {reward.value for reward in rewards} == {0.0}
    golds = Code().grade([p.gold for p in items], items)
    assert {reward.value for reward in golds} == {1.0}


def test_no_constant_and_no_line_through_one_fact_of_the_list_passes() -> None:
    """a * fact + b with any a and b, a constant among them; except where the right program is one itself."""
    facts = (len, sum, lambda xs: max(xs, default=0), lambda xs: xs[0] if xs else 0)
    for item in [Code(examples=0.0).draw(stream("lines", n)) for n in range(200)]:
        hidden, outputs = item.meta["inputs"], item.meta["outputs"]
        assert len({str(y) for y in outputs}) > 1, item.prompt
        aggregate, keep, _, change, _ = item.meta["program"]
        if keep in ("below", "above") and aggregate == "sum" and change != "same":
            for fact in facts:
                points = sorted({(fact(xs), y) for xs, y in zip(hidden, outputs, strict=True)})
                (x0, y0), (x1, y1) = points[0], points[-1]
                line = all((x - x0) * (y1 - y0) == (y - y0) * (x1 - x0) for x, y in points)
                assert not line or x0 == x1, item.prompt


def test_the_number_of_lists_is_a_lower_bound() -> None:
    program = Program("sum", "below", 6)
    fewest = hidden_inputs(program, 1)
    assert len(hidden_inputs(program, 20)) == 20
    assert len({json.dumps(xs) for xs in hidden_inputs(program, 20)}) == 20
    fewest.append([0])
    fewest[0].append(5)  # a caller's change stays with the caller
    assert [] in hidden_inputs(program, 1)
    assert len(hidden_inputs(Program("smallest"), 4)) > 13  # one for every "other than k"


def test_a_truth_value_is_no_number() -> None:
    assert code._same([1, 0], [1, 0])
    assert not code._same([True, 0], [1, 0])
    assert not code._same(1.0, 1)


def test_a_sandbox_failure_is_no_reward_and_a_bug_is_zero() -> None:
    for result, expected, value in (
        (Result(unavailable=True), [1], None),
        (Result(error="NameError"), [1], 0),
        (Result(outputs=[1]), [1], 1),
        (Result(outputs=[1]), [1, 1], 0),
        (Result(outputs=[1, 1]), [1], 0),
        (Result(outputs=[]), [1], 0),
    ):
        assert code._grade(result, expected, "x").value == value


LOOP = "total = 0\nfor v in xs:\n    if v < 6:\n        total += v\nreturn total"


@pytest.mark.parametrize(
    "answer",
    [
        f" {LOOP} ",
        f"\n{LOOP}\n",
        LOOP.replace("    ", "\t"),
        LOOP.replace("\n", "\r\n"),
        LOOP.replace("total = 0", "total  =  0"),
        "\n    " + LOOP.replace("\n", "\n    ") + "\n",
        "\n\t" + LOOP.replace("    ", "\t").replace("\n", "\n\t"),
        "\n  for v in [0]:\n    pass\n  return sum(v for v in xs if v < 6)\n",
        f"```python\n{LOOP}\n```",
        f"\n```\n    {LOOP.replace(chr(10), chr(10) + '    ')}\n```\n",
        "def f(xs):\n    " + LOOP.replace("\n", "\n    "),
        "```python\ndef small ( xs ) :\n\treturn sum ( v for v in xs if v < 6 )\n```",
        "def f(xs): return sum(v for v in xs if v < 6)",
        "if xs:\n    return sum(v for v in xs if v < 6)\nelse:\n    return 0",
        "return  sum(\tv for v in xs\tif v < 6 )",
        "return sum(\n    v for v in xs\n    if v < 6\n)",
    ],
)
def test_programs_of_several_lines_are_graded_right(answer: str) -> None:
    program = Program("sum", "below", 6)
    hidden = hidden_inputs(program, 4)
    item = problem(inputs=hidden, outputs=[program.run(xs) for xs in hidden])
    right = f"<think> loop </think> <answer>{answer}</answer>"
    wrong = right.replace("6", "7")
    assert [reward.value for reward in Code().grade([right, wrong], [item] * 2)] == [1.0, 0.0]


def test_examples_fit_one_program_only() -> None:
    items = [Code(examples=1.0).draw(stream("e", n)) for n in range(100)]
    assert all(item.prompt.startswith("examples : [") for item in items)
    assert len({item.meta["program"][0] for item in items}) == len(programs.AGGREGATES)


# qa


def test_a_capital_names_one_country() -> None:
    assert (
        len({c.capital for c in COUNTRIES})
        == len({c.name for c in COUNTRIES})
        == len(COUNTRIES)
        == 26
    )


@pytest.mark.parametrize("count", [0, 1, 4, 20])
def test_qa_lists_the_answer_among_distinct_distractors(count: int) -> None:
    worlds = {"capital": 26, "country": 26, "continent": 5, "language": 12}
    for n in range(200):
        item = Qa(distractors=count).draw(stream("qa", n))
        options = item.meta["options"]
        assert len(set(options)) == min(count + 1, worlds[item.meta["relation"]])
        assert item.meta["answer"] in options
        assert (" among " in item.prompt) == (count > 0)


def test_the_order_of_options_and_the_wording_make_no_new_problem() -> None:
    rng = stream("orders")
    items = [Qa().draw(rng) for _ in range(3000)]

    def content(item: Problem, options: object) -> tuple[object, ...]:
        return (item.meta["country"], item.meta["relation"], item.meta["hidden"], options)

    questions = {content(item, frozenset(item.meta["options"])) for item in items}
    orders = {content(item, tuple(item.meta["options"])) for item in items}
    assert len({item.id for item in items}) == len(questions) < len(orders)


# constraints


JSON = {"keys": ["food", "pet"], "given": ["pet", "bird"], "only": True}
SENTENCE = {"use": ["rice", "soup"], "end": "golf", "length": 5, "distinct": True}


TRIVIAL = [
    "\\u200b", "\\u3164", "\\u2800", ".", "x", "aa", "food", "bird", "\u00ad", "ri\u200bce", "1", "_", "\\ufe0f", "\\u0301"
]  # fmt: skip
STUFFED = [
    ", . ; rice soup golf",
    "rice rice\u200b soup soup\u200b golf",
    "r\u0456ce rice soup the golf",
    "say 5 words , none twice , use rice and soup , end with golf",
    "use rice and soup , end with golf",
    "rice", "rice soup golf", "rice soup x y golf", "rice soup zz yy golf", "say words rice soup golf",
    " ".join((*FILLERS, *WORDS, "golf")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rules", "text", "value"),
    [
        (JSON, '{ " food " : " rice " , " pet " : " bird " }', 1),
        (JSON, '{"pet": "bird", "food": "anything"}', 1),
        (JSON, '{ " food " : " rice " , " pet " : " cat " }', 2 / 3),
        (JSON, '{ " food " : " rice " , " pet " : " bird " , " city " : " lima " }', 2 / 3),
        (JSON, '{ " pet " : " bird " }', 0),
        (JSON, '{ " food " : " " , " pet " : " bird " }', 0),
        (JSON, '{ " food " : [ ] , " pet " : " bird " }', 0),
        (JSON, '{ " food " : " rice " , " pet " : " bird " , " pet " : " cat " }', 0),
        (JSON, '[ { " food " : " rice " , " pet " : " bird " } ]', 0),
        (JSON, "{ }", 0),
        (JSON, "food pet bird", 0),
        (SENTENCE, "the rice and soup golf", 1),
        (SENTENCE, "the rice soup golf", 3 / 4),
        (SENTENCE, "the rice and the golf", 2.5 / 4),
        (SENTENCE, "the big old cat golf", 0),
        (SENTENCE, "golf", 0),
        (JSON, '{"pet":\n\t"bi\\u0072d" , "food":"Rice and soup"}', 1),
        (JSON, '```json\n{"pet": "Bird", "food": "rice"}\n```', 1),
        *((JSON, f'{{"food": "{value}", "pet": "bird"}}', 0) for value in TRIVIAL),
        (JSON, json.dumps({**dict.fromkeys("abcdefg", "rice"), "food": "rice", "pet": "bird"}), 0),
        (SENTENCE, "The rice and soup, golf.", 1),
        (SENTENCE, "the\nrice  and soup golf", 1),
        (SENTENCE, "rice Rice and soup golf", 3 / 4),
        *((SENTENCE, text, 0) for text in STUFFED),
    ],
)
def test_rules_pay_their_share_and_nothing_without_content(
    rules: dict, text: str, value: float
) -> None:
    asked = problem(constraints._prompt(rules), **rules)
    assert Constraints().grade([text], [asked])[0].value == pytest.approx(value)


def test_the_copied_prompt_earns_nothing_whatever_it_asks() -> None:
    items = [Constraints().draw(stream("copies", n)) for n in range(300)]
    for text in (lambda p: p.prompt, lambda p: p.prompt.title(), lambda p: p.prompt + " the cat"):
        assert {r.value for r in Constraints().grade([text(p) for p in items], items)} == {0.0}


# creative


VERSE = problem(lines=2, topic="sea", asked=["quiet", "owl"])


def taste(text: str) -> dict[str, float]:
    reward = Creative().grade([text], [VERSE])[0]
    assert reward.value is not None
    return {"value": reward.value, **reward.parts}


def test_taste_is_the_documented_mean_of_its_parts() -> None:
    got = taste("the big ship sees slowly / the big ship sees slowly .")
    # 2 topical nouns for 2 lines, no asked words; 4 distinct of 8 content words; every word the most common
    assert got == {
        "value": pytest.approx(0.35 + 0.25 / 2 + 0.2 / 2),
        "form": 1,
        "topic": 0.5,
        "distinct": 0.5,
        "rarity": 0,
    }


def test_words_outside_well_formed_lines_earn_nothing() -> None:
    assert taste("lagoon harbor pearl gull pensive feral soars mossy .")["value"] == 0
    half = taste("the pensive lagoon soars softly / lagoon harbor pearl .")
    assert half["form"] == half["distinct"] == 0.5


@pytest.mark.parametrize(
    "text",
    ["the big ship sees slowly .", "the big ship sees slowly / the big ship sees .", ". / ."],
)
def test_missing_or_broken_lines_lose_form(text: str) -> None:
    assert taste(text)["form"] <= 0.5


def test_too_many_lines_lose_form() -> None:
    line = "the big ship sees slowly"
    assert taste(f"{line} / {line} .")["form"] == 1
    assert taste(f"{line} / {line} / {line} / {line} .")["form"] == 0.5
    assert taste(f"{line} / nonsense / {line} / {line} .")["form"] == 0.25


def _longer(text: str, item: Problem, rng: random.Random) -> dict[str, str]:
    lines, meta = text.removesuffix(" .").split(" / "), item.meta
    asked = " ".join(meta["asked"])
    flat = [line for _ in range(9) for line in creative.flat(item, rng)[:-2].split(" / ")]
    gold = [line for _ in range(9) for line in creative.exemplar(item, rng)[:-2].split(" / ")]
    more = {
        "one line again": lines[-1:],
        "all lines ten times": lines * 9,
        "other lines": flat,
        "one other line": flat[:1],
        "rare lines on the topic": gold,
        "one rare line on the topic": gold[:1],
        "the asked words": [f"the {asked} sees slowly"],
        "the asked words ten times": [f"the {asked} sees slowly"] * 10,
        "the prompt": [item.prompt],
        "the prompt ten times": [item.prompt] * 10,
        "words of the topic": [" ".join(TOPICS[meta["topic"]])],
    }
    made = {name: " / ".join([*lines, *extra]) + " ." for name, extra in more.items()}
    made["every word twice"] = " ".join(word for word in text.split() for _ in range(2))
    made["the asked words behind"] = f"{text} {' '.join([asked] * 20)}"
    made["the whole text again"] = f"{text} {text}"
    made["the prompt in front"] = f"{item.prompt} / {text}"
    return made


def test_no_text_gains_taste_from_being_longer() -> None:
    rng, task = stream("longer"), Creative()
    for _ in range(30):
        item = task.draw(rng)
        copied = [item.prompt, f"{item.prompt} .", " / ".join([item.prompt] * 3) + " ."]
        assert [reward.value for reward in task.grade(copied, [item] * 3)] == [0, 0, 0]
        for text in (item.reference, item.gold, creative.flat(item, rng)):
            [before] = task.grade([text], [item])
            for name, longer in _longer(text, item, rng).items():
                [after] = task.grade([longer], [item])
                assert (after.value or 0.0) < (before.value or 0.0), (name, text, longer)


def test_demonstrations_are_duller_than_flat_texts_and_corruption_hurts() -> None:
    rng, task = stream("creative"), Creative()
    items = [task.draw(rng) for _ in range(300)]

    def mean(texts: list[str], part: str | None = None) -> float:
        rewards = task.grade(texts, items)
        return sum((r.parts[part] if part else r.value) or 0.0 for r in rewards) / len(items)

    shown = [item.reference for item in items]
    flat = [creative.flat(item, rng) for item in items]
    assert mean(shown, "rarity") < 0.4 < 0.7 < mean(flat, "rarity")
    assert mean(flat, "form") == 1
    assert mean([creative.corrupt(text, rng) for text in shown]) < mean(shown) - 0.2


def test_corrupting_survives_any_text() -> None:
    for n in range(200):
        assert isinstance(
            creative.corrupt(["", ".", "one", "a / b"][n % 4], stream("corrupt", n)), str
        )


# Finding, reading, refusing


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        (
            "mth",
            {},
            r"tasks\.mth: no task kind 'mth'; there are code, .* \(did you mean 'math'\?\)",
        ),
        ("a", {"kind": "maths"}, r"tasks\.a: no task kind 'maths'.*did you mean 'math'"),
        (
            "qa",
            {"options": {"distractor": 3}},
            r"tasks\.qa\.options: qa has no option 'distractor'; it takes distractors",
        ),
        (
            "qa",
            {"options": {"distractors": "4"}},
            r"tasks\.qa\.options\.distractors: input should be a valid integer, got '4'",
        ),
        (
            "qa",
            {"options": {"distractors": -1}},
            r"tasks\.qa\.options: distractors is a count in 0\.\.20, got -1",
        ),
        (
            "math",
            {"options": {"max_operand": 30}},
            r"needs 1 <= max_operand <= max_value <= 10,000, got 30 and 20",
        ),
        ("code", {"options": {"examples": 2.0}}, r"examples is a share in 0\.\.1, got 2\.0"),
        ("creative", {"options": {"taste": 1}}, r"creative has no option 'taste'; it takes none"),
    ],
)
def test_a_task_that_cannot_be_made_says_what_is_allowed(
    name: str, config: dict, message: str
) -> None:
    with pytest.raises(ParamsError, match=message):
        make_task(name, TaskConfig(**config))


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hand-written data folder of one task named `sums`."""
    monkeypatch.chdir(tmp_path)
    folder = paths.TASK_DATA / "sums"
    folder.mkdir(parents=True)
    card = {
        "kind": "math",
        "version": Math().version,
        "options": {"max_value": 12},
        "rewarded_by": "verifier",
    }
    (folder / "task.json").write_text(json.dumps(card))
    row = dataclasses.asdict(Problem("sums/1", "sums", "1 + 1 = ?", "g", "g", {"answer": "2"}))
    (folder / "dev.jsonl").write_text(json.dumps(row) + "\n")
    return folder


def test_a_built_task_needs_no_params(built: Path) -> None:
    assert load_task("sums") == Math(max_value=12)
    assert load_problems("sums", "dev") == [
        Problem("sums/1", "sums", "1 + 1 = ?", "g", "g", {"answer": "2"})
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", r"Invalid JSON.*got '\{'"),
        ('{"id": "x"}', r"task: Field required"),
        (
            '{"id": 3, "task": "t", "prompt": "", "gold": "", "reference": ""}',
            r"id: Input should be a valid string",
        ),
        ("[]", r"got '\[\]'"),
    ],
)
def test_a_broken_row_is_named_by_file_and_line(built: Path, line: str, reason: str) -> None:
    file = built / "dev.jsonl"
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(ParamsError, match=rf"dev\.jsonl, line 2: not a problem \(?.*{reason}"):
        load_problems("sums", "dev")


def test_data_of_another_version_or_missing_says_what_to_run(built: Path) -> None:
    card = json.loads((built / "task.json").read_text())
    (built / "task.json").write_text(json.dumps({**card, "version": 99}))
    with pytest.raises(
        ParamsError,
        match=r"built by version 99 of 'math', the code is version 3: run `dvc repro build_data`",
    ):
        load_task("sums")
    for load in (lambda: load_task("nothing"), lambda: load_problems("sums", "test")):
        with pytest.raises(
            ParamsError, match=r"not found: task '\w+' is not built; run `dvc repro build_data`"
        ):
            load()
