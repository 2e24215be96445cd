"""The user's own rows: what is read, what is graded, and how what cannot be used is named, counted and bounded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainorder import paths, preflight
from trainorder.config import Params, PolicyConfig, TaskConfig, parse_params
from trainorder.data import build, reserved_tokens
from trainorder.plan.check import check
from trainorder.reading import ParamsError
from trainorder.tasks import load_problems, load_task, make_task
from trainorder.tasks.base import SPLITS
from trainorder.tasks.jsonl import Jsonl

ROOT = Path(__file__).parents[2]
BUILT_IN = reserved_tokens(PolicyConfig())
ROWS = {
    "train": [
        {"prompt": f"{n} + 1 = ?", "answer": str(n + 1), "think": f"{n} plus one"}
        for n in range(12)
    ],
    "dev": [{"prompt": f"{n} + 2 = ?", "answer": n + 2} for n in range(4)],
    "test": [{"prompt": f"{n} + 3 = ?", "answer": str(n + 3)} for n in range(4)],
}
LEAKED = [
    "1  +  2 = ?",
    "1+2=?",
    "\uff11 + 2 = ?",
    "1 +\u200b 2 = ?\ufeff",
    "1 + 2 = ?.",
    "1\n+\t2 =",
    "1 \ufe62 2 = ?",
    "1\u00a0+\u30002 =\ufe0f ?",
]
"""Spellings of `1 + 2 = ?`, a prompt of dev."""
FILES = {split: f"mine/{split}.jsonl" for split in SPLITS}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for split, rows in ROWS.items():
        write(split, *map(json.dumps, rows))
    return tmp_path


def write(split: str, *lines: str | bytes) -> None:
    texts = [
        line if isinstance(line, bytes) else line.encode("utf-8", "surrogatepass") for line in lines
    ]
    Path(FILES[split]).write_bytes(b"\n".join(texts) + b"\n")


def params(counts: tuple[int, int, int] = (12, 4, 4), **options: Any) -> Params:
    task = dict(
        zip(SPLITS, counts, strict=True),
        kind="jsonl",
        options={**FILES, **options},
        demonstrations=30,
    )
    phase = {"kind": "structured", "tasks": {"mine": 1.0}, "steps": 1}
    judged = {"train": 9, "dev": 1, "test": 1, "demonstrations": 5}
    tasks = {"mine": task, "creative": judged}
    judge = {"prompts": 2, "heldout_prompts": 2}
    given = {"tasks": tasks, "phases": {"mine": phase}, "orders": {"one": ["mine"]}}
    return parse_params({**given, "judge": judge})


def task(**options: Any) -> Jsonl:
    made = make_task("mine", TaskConfig(kind="jsonl", options={**FILES, **options}))
    assert isinstance(made, Jsonl)
    return made


def refused(**options: Any) -> str:
    with pytest.raises(ParamsError) as caught:
        task(**options).read("mine", BUILT_IN)
    return str(caught.value)


def test_rows_become_problems_in_their_own_splits() -> None:
    check(params())
    build(params())
    for split in SPLITS:
        problems = load_problems("mine", split)
        assert [p.prompt for p in problems] == [row["prompt"] for row in ROWS[split]]
        assert [r.value for r in load_task("mine").grade([p.gold for p in problems], problems)] == [
            1.0
        ] * len(problems)
        assert [r.value for r in load_task("mine").grade([""] * len(problems), problems)] == [
            0.0
        ] * len(problems)
    assert (
        load_problems("mine", "train")[0].gold == "<think> 0 plus one </think> <answer> 1 </answer>"
    )
    lines = (paths.SFT_DATA / "demonstrations.jsonl").read_text().splitlines()
    shown = [json.loads(line) for line in lines if json.loads(line)["task"] == "mine"]
    assert len(shown) == 30
    assert {row["prompt"] for row in shown} == {row["prompt"] for row in ROWS["train"]}


def test_changed_rows_rebuild_the_data() -> None:
    from trainorder.plan import compile_plan

    before = compile_plan(params()).fingerprints()
    write("train", *map(json.dumps, [*ROWS["train"], {"prompt": "x", "answer": "y"}]))
    after = compile_plan(params()).fingerprints()
    assert [name for name in before if before[name] != after[name]] == ["build_data"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON (Expecting property name"),
        ('{"prompt": "p"', "not JSON"),
        ("[1]", 'must be an object like {"prompt": ..., "answer": ...}, got [1]'),
        ("null", "must be an object"),
        ('{"prompt": "p"}', "no key 'answer'; it has 'prompt'"),
        ('{"answer": "a"}', "no key 'prompt'; it has 'answer'"),
        ('{"prompt": 3, "answer": "a"}', "prompt: must be text, got 3"),
        ('{"prompt": "p", "answer": ["a"]}', "answer: must be text, got ['a']"),
        ('{"prompt": "p", "answer": true}', "answer: must be text, got True"),
        ('{"prompt": "p", "answer": null}', "answer: must be text, got None"),
        ('{"prompt": "p", "answer": NaN}', "NaN is no JSON number"),
        ('{"prompt": "p", "answer": -Infinity}', "-Infinity is no JSON number"),
        ('{"prompt": " ", "answer": "a"}', "prompt: must not be empty"),
        ('{"prompt": "p", "answer": ""}', "answer: must not be empty"),
        ('{"prompt": [{"role": "user", "content": "p"}] }', "no key 'answer'"),
        (
            '{"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "p"}], "answer": "a"}',
            "prompt: one message of the user is allowed",
        ),
        ('{"prompt": "\\u200b\\u3164", "answer": "a"}', "prompt: must not be empty"),
        ('{"prompt": "p", "answer": "\\u2800"}', "answer: must not be empty"),
        (
            "{"
            + "".join(f'"k{n}": 1, ' for n in range(150))
            + '"prompt": "p", "k149": 2, "answer": "a"}',
            "key 'k149' twice",
        ),
        ('{"prompt": "p", "answer": "a", "answer": "b"}', "key 'answer' twice"),
        ('{"prompt": "p\\u0000", "answer": "a"}', "prompt: character U+0000 is not allowed"),
        ('{"prompt": "\\ud800", "answer": "a"}', "prompt: character U+D800 is not allowed"),
        ('{"prompt": "p <eos> <bos> q", "answer": "a"}', "<bos> is a special token"),
        ('{"prompt": "p", "answer": "a </answer> b"}', "answer: no completion could give it"),
        (
            '{"prompt": "' + "x" * 100_001 + '", "answer": "a"}',
            "prompt: 100001 characters, at most 100000",
        ),
        ('{"prompt": "' + "x" * 1_100_000 + '", "answer": "a"}', "longer than 1048576 bytes"),
        ('{"prompt": ' + "[" * 100_000, "nested too deep"),
        *(
            ('{"prompt": "p", "answer": "a", "m": ' + "[" * n + "]" * n + "}", "nested too deep")
            for n in (100, 600, 900)
        ),
        (
            '{"prompt": "p", "answer": "a", "m": ' + '{"k": [' * 300 + "]}" * 300 + "}",
            "nested too deep",
        ),
        ('{"prompt": "p", "answer": ' + "9" * 100_001 + "}", "answer: 100001 characters"),
        (b'{"prompt": "\xff", "answer": "a"}', "not UTF-8 at byte 12"),
        ('{"prompt": "0 + 1 = ?", "answer": "1"}', "duplicate: the prompt of line 1 again"),
        *(
            (
                json.dumps({"prompt": prompt, "answer": "3"}),
                "leakage: the prompt of mine/dev.jsonl, line 2",
            )
            for prompt in LEAKED
        ),
        (
            '{"prompt": "1 + 3 = ?", "answer": "4"}',
            "leakage: the prompt of mine/test.jsonl, line 2",
        ),
    ],
)
def test_a_bad_row_is_named_and_refused_or_dropped_and_counted(
    line: str | bytes, reason: str
) -> None:
    good = [json.dumps(row) for row in ROWS["train"]]
    write("train", *good, line, json.dumps({"prompt": "last", "answer": "one"}))
    text = refused()
    assert (
        "tasks.mine: 1 of 14 rows of mine/train.jsonl cannot be used, options.max_dropped allows 0%"
        in text
    )
    assert f"mine/train.jsonl, line 13: {reason}" in text
    assert len(text) < 1000
    found, dropped = task(max_dropped=0.1).read("mine", BUILT_IN)
    assert [p.prompt for p in found["train"]][-1] == "last"  # what follows a bad row is read
    assert [(row.file, row.line) for row in dropped] == [("mine/train.jsonl", 13)]
    build(params(max_dropped=0.1))
    summary = json.loads((paths.TASK_DATA.parent / "summary.json").read_text())
    assert summary["tasks"]["mine"]["dropped"] == [str(dropped[0])]


@pytest.mark.parametrize(
    "prompt",
    [
        "Where is the cafe\u0301 in A\u030abo ?",
        "Wh\u0435re is the c\u0430f\u00e9 in \u00c5b\u03bf ?",
        "\uff37here is the caf\u00e9 in \u212bbo",
    ],
    ids=["decomposed", "letters of other alphabets that look alike", "wide"],
)
def test_a_test_prompt_spelled_in_other_characters_is_leakage(prompt: str) -> None:
    write("test", json.dumps({"prompt": "Where is the caf\u00e9 in \u00c5bo ?", "answer": "there"}))
    write("train", json.dumps({"prompt": prompt, "answer": "there"}))
    assert "leakage: the prompt of mine/test.jsonl, line 1" in refused()


def test_many_bad_rows_are_counted_and_a_few_shown() -> None:
    write("dev", *["{"] * 7, *(json.dumps(row) for row in ROWS["dev"]))
    text = refused(max_dropped=0.5)
    assert "7 of 11 rows of mine/dev.jsonl" in text
    assert text.count("line ") == 5
    assert "and 2 more" in text


@pytest.mark.parametrize("lines", [[], [""], ["", " ", "\t"]])
def test_an_empty_file_is_refused(lines: list[str]) -> None:
    write("test", *lines)
    assert refused() == "tasks.mine.options.test: mine/test.jsonl holds no row"


def test_a_missing_file_is_refused_by_check_and_build() -> None:
    Path(FILES["dev"]).unlink()
    assert (
        "tasks.mine.options.dev: cannot read mine/dev.jsonl (No such file or directory)"
        in refused()
    )
    with pytest.raises(ParamsError, match=r"tasks\.mine\.options: no file .mine/dev\.jsonl."):
        check(params())


@pytest.mark.parametrize("counts", [(13, 4, 4), (12, 5, 4), (12, 4, 5)])
def test_check_reads_the_rows_and_counts_them(counts: tuple[int, int, int]) -> None:
    preflight.rows.check(params())
    with pytest.raises(
        ParamsError, match=r"tasks\.mine\.\w+: \d+ problems asked for, there are \d+ usable rows"
    ):
        preflight.rows.check(params(counts))
    write("dev", '{"prompt": "without an answer"}')
    with pytest.raises(ParamsError, match=r"mine/dev\.jsonl, line 1: no key 'answer'"):
        preflight.rows.check(params())


def test_too_few_rows_say_how_many_there_are() -> None:
    with pytest.raises(
        ParamsError,
        match=r"tasks\.mine\.train: 13 problems asked for, there are 12 usable rows",
    ):
        build(params((13, 4, 4)))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"train": ""}, "train: name the JSONL file"),
        ({"dev": "mine/test.jsonl"}, "three different files"),
        ({"max_dropped": 1.0}, "max_dropped is a share"),
        ({"max_dropped": "some"}, "max_dropped: input should be a valid number"),
        (
            {"match": "fuzzy"},
            "options.match: input should be 'exact', 'text', 'number', 'math' or 'choice', got 'fuzzy'",
        ),
        ({"trian": "x"}, "no option 'trian'.*did you mean 'train'"),
    ],
)
def test_a_bad_option_is_named(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ParamsError, match=reason):
        task(**options)


MATCHES = [
    (
        "exact",
        {"answer": "Two words"},
        [
            "Two   words",
            "Two words.",
            "**Two words**",
            '"Two words"',
            "Two\nwords",
            "\u200bTwo words",
            "```\nTwo words\n```",
        ],
        [
            "Two",
            "Two words more",
            "two words",
            "Two words, Three words",
            "Two wo\u200brds",
            "Twowords",
        ],
    ),
    ("exact", {"answer": "caf\u00e9"}, ["cafe\u0301", "caf\u00e9!"], ["cafe", "c\u0430f\u00e9"]),
    ("exact", {"answer": "f(x)"}, ["f(x)", "f(x).", "(f(x))"], ["f(x", "f", "x"]),
    ("text", {"answer": "Paris"}, ["paris", "PARIS."], ["Paris Rome", "not Paris", "Pari"]),
    (
        "number",
        {"answer": "1,000"},
        [
            *(
                "1000",
                "1000.0",
                "+1,000.00",
                "1e3",
                "01000",
                "$1000",
                "1000 figs",
                "1{,}000",
                "2000/2",
            ),
            *("1 000", "1'000", "1\u2019000.0", "1_000", "1\u202f000", "\uff11\uff10\uff10\uff10"),
            *(
                "\u0661\u0660\u0660\u0660",
                "\uff0b1\uff0c000",
                "\\fbox{1 000}",
                "```\n1000\n```",
                "\\boxed{\\boxed{1000}}",
            ),
        ],
        [
            "1000.1",
            "one",
            "10,00",
            "\u0663",
            "1000 1001",
            "999 + 1",
            "1000 or 1",
            "1000k",
            "-1000",
            "1 000 000",
            *("1 0 0 0", "1 000'000", "100 0", "1000\u00b2", "1,000 000", "1 ,000"),
        ],
    ),
    (
        "number",
        {"answer": "0.5"},
        [
            ".5",
            "5e-1",
            "1/2",
            "\\frac{1}{2}",
            "\\dfrac12",
            "50%",
            "50\\%",
            "\\boxed{0.5}",
            "0.5 kg",
            "\u00bd",
            "$0.50$",
        ],
        ["5", "5%", "2/1", "1/2/1", "0.5, 0.6", "1/0", "..5", "0.5!"],
    ),
    (
        "number",
        {"answer": "-3"},
        ["\u22123", "- 3", "(-3)", "-3.", "x = -3"],
        ["3", "--3", "5 - 8", "-3-3"],
    ),
    (
        "number",
        {"answer": "1234567890123456789012345"},
        ["1234567890123456789012345", "1,234,567,890,123,456,789,012,345"],
        ["1234567890123456789012346", "1.234567890123456789012345e23"],
    ),
    ("number", {"answer": "$8"}, ["8", "8 dollars"], ["9", "$"]),
    (
        "math",
        {"answer": "\\frac{\\sqrt{2}}{2}"},
        ["\\sqrt{2}/2", "\\frac{1}{\\sqrt{2}}"],
        ["\\sqrt{2}", "\\sqrt{2}/2, 1", "x!"],
    ),
    (
        "math",
        {"answer": "x^2-1"},
        ["(x-1)(x+1)", "$-1+x^2$", "y = x^2 - 1"],
        ["x^2+1", "x^2-1=0", "9^{9^{9^9}}"],
    ),
    ("math", {"answer": "8"}, ["8.", "\\text{8}"], ["3 + 5", "2^3", "7"]),
    (
        "choice",
        {"answer": "b", "choices": ["a", "b"]},
        ["b", "B", "(b)", "b."],
        ["a", "c", "a b", "a, b"],
    ),
    ("choice", {"answer": "CO", "choices": ["Co", "CO"]}, ["CO"], ["Co", "co"]),
]


@pytest.mark.parametrize("answer", ["tags", "whole"])
@pytest.mark.parametrize(("match", "row", "paid", "unpaid"), MATCHES)
def test_what_each_match_pays(
    match: str, answer: str, row: dict[str, Any], paid: list[str], unpaid: list[str]
) -> None:
    for split in SPLITS:
        write(split, json.dumps({"prompt": f"prompt of {split}", **row}))
    made = task(match=match, answer=answer)
    [problem] = made.read("mine")[0]["train"]

    def grades(texts: list[str]) -> dict[str, float | None]:
        shaped = [f"2+3=5</think>\n<answer>{t}</answer>" if answer == "tags" else t for t in texts]
        rewards = made.grade(shaped, [problem] * len(texts))
        return {text: reward.value for text, reward in zip(texts, rewards, strict=True)}

    unpaid = [
        *unpaid,
        problem.prompt,
        "",
        ".",
        "\u200b",
        "\u3164",
        *([""] if answer == "whole" else []),
    ]
    assert grades(paid) == dict.fromkeys(paid, 1.0)
    assert grades(unpaid) == dict.fromkeys(unpaid, 0.0)
    if answer == "tags":
        bare = made.grade(paid, [problem] * len(paid))  # neither tag nor mark
        assert {r.value for r, t in zip(bare, paid, strict=True) if "box" not in t} == {0.0}
        said = made.grade([f"The answer is {paid[0]}"], [problem])[0]
        assert (said.value, said.parts["format"]) == (1.0, 0.0)


def test_a_copy_out_of_the_prompt_is_no_answer_unless_it_is_the_answer() -> None:
    for split in SPLITS:
        write(
            split, json.dumps({"prompt": f"{split}: $0.5, or 1/2, as a decimal?", "answer": "0.5"})
        )
    problem = task(match="number").read("mine")[0]["train"][0]
    for text, value in (("1/2", 0.0), ("0.5", 1.0), ("$0.5", 1.0), ("2/4", 1.0)):
        [reward] = task(match="number").grade([f"<answer>{text}</answer>"], [problem])
        assert reward.value == value


NUMERALS = [
    "0.00001", "1.10", "1e400", "1e5", "1E5", "20000000000000000.0", "12345678901234567890.1", "0.1234567890123456789",
    "-0", "5.0", "9" * 5000, "1e-400",
]  # fmt: skip


@pytest.mark.parametrize("numeral", NUMERALS)
def test_a_number_is_kept_as_it_was_written(numeral: str) -> None:
    write("train", f'{{"prompt": "p", "answer": {numeral}, "id": {numeral}}}')
    [problem] = task().read("mine")[0]["train"]
    assert problem.meta["answer"] == numeral
    assert (
        str(json.loads(json.dumps(problem.meta, allow_nan=False))["id"]).lower() == numeral.lower()
    )
    if len(numeral) <= 1000:
        made = Jsonl(**FILES, match="number")
        assert made.grade([problem.gold], [problem])[0].value == 1.0


ANY_TEXT = "a\u2028b\u2029c\u0085d\r\ne\rf\x0bg\x0ch\x1ei\tj\u00a0k  l"


def test_texts_are_kept_character_by_character_through_every_file() -> None:
    write(
        "train",
        json.dumps(
            {"prompt": ANY_TEXT, "answer": ANY_TEXT, "note": [ANY_TEXT, 1.5, None], ANY_TEXT: 1},
            ensure_ascii=False,
        )[:-1]
        + ', "\\udc00": {"\\ud800": 2}}',  # half a character, which UTF-8 cannot hold
    )
    build(params((1, 4, 4)))
    [problem] = load_problems("mine", "train")
    assert (problem.prompt, problem.meta["answer"]) == (ANY_TEXT, ANY_TEXT)
    assert problem.meta["note"] == [ANY_TEXT, 1.5, None]
    assert (problem.meta[ANY_TEXT], problem.meta["?"]) == (1, {"?": 2})
    from trainorder.sft.lines import read_rows

    rows = [r for r in read_rows(paths.SFT_DATA / "demonstrations.jsonl") if r["task"] == "mine"]
    assert {row["prompt"] for row in rows} == {ANY_TEXT}
    assert len(rows) == 30


def test_prompts_that_differ_in_case_or_spaces_are_different_rows_of_one_split() -> None:
    prompts = ["spell Co", "spell CO", "spell  CO", "spell CO.", "spell CO\n"]
    write("train", *(json.dumps({"prompt": prompt, "answer": "x"}) for prompt in prompts))
    found = task().read("mine")[0]["train"]
    assert [p.prompt for p in found] == prompts
    assert len({p.id for p in found}) == 5


def test_a_byte_order_mark_and_windows_lines_are_read() -> None:
    write(
        "train",
        b"\xef\xbb\xbf" + b'{"prompt": "p", "answer": "1"}\r',
        b'{"prompt": "q", "answer": "2"}\r',
    )
    assert [p.prompt for p in task().read("mine")[0]["train"]] == ["p", "q"]


def test_further_keys_are_meta_and_a_single_message_is_a_prompt() -> None:
    row = {
        "prompt": [{"role": "user", "content": "p"}],
        "answer": "a",
        "id": 17,
        "x": {"y": [1, "\ud800"]},
    }
    write("train", json.dumps(row))
    [problem] = task().read("mine")[0]["train"]
    assert problem.prompt == "p"
    assert problem.meta == {"answer": "a", "id": 17, "x": {"y": [1, "?"]}}


def test_special_tokens_are_those_of_the_tokenizer_in_use(folder: Path) -> None:
    model = folder / "model"
    model.mkdir()
    tokens = [{"content": "<|im_end|>", "special": True}, {"content": "<think>", "special": False}]
    (model / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
    other = reserved_tokens(PolicyConfig(path=str(model)))
    assert other == ["<|im_end|>"]
    rows = ["p <eos> <unk>", "p <|im_end|> q"]
    write("train", *(json.dumps({"prompt": prompt, "answer": "a"}) for prompt in rows))
    for reserved, kept in ((other, rows[0]), (BUILT_IN, rows[1])):
        found, dropped = task(max_dropped=0.5).read("mine", reserved)
        assert [p.prompt for p in found["train"]] == [kept]
        assert "is a special token" in dropped[0].reason


def test_answers_are_measured_with_the_built_in_tokenizer_only_where_it_is_used() -> None:
    write("train", json.dumps({"prompt": "p", "answer": "9" * 300}))
    own = params((1, 4, 4))
    with pytest.raises(ParamsError, match=r"the longest right answer has \d+ tokens"):
        build(own)
    build(own.model_copy(update={"policy": PolicyConfig(path="some/model")}))
    assert load_problems("mine", "train")[0].meta["answer"] == "9" * 300


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_and_a_device_are_refused_and_never_waited_for(kind: str) -> None:
    place = Path("mine/pipe.jsonl") if kind == "pipe" else Path("/dev/zero")
    if kind == "pipe":
        os.mkfifo(place)
    with pytest.raises(ParamsError, match=rf"{place} is a device or pipe, not a file"):
        task(train=str(place)).read("mine")


def test_a_loop_of_links_and_a_name_too_long_are_one_line_each() -> None:
    for name in ("one", "two"):
        Path("mine", name).symlink_to("two" if name == "one" else "one")
    with pytest.raises(ParamsError) as loop:
        task(train="mine/one").read("mine")
    with pytest.raises(ParamsError) as long:
        task(train="x" * 300).read("mine")
    with pytest.raises(ParamsError) as null:
        task(train="x\0y").read("mine")
    for caught in (loop, long, null):
        assert len(str(caught.value)) < 250
        assert "\n" not in str(caught.value)
        assert "tasks.mine.options" in str(caught.value)


@pytest.mark.parametrize(
    ("match", "row", "reason"),
    [
        ("number", {"answer": "five"}, "answer: match is number, got 'five'"),
        ("choice", {"answer": "a"}, "choices: a list of 2 to 100 texts, got None"),
        ("choice", {"answer": "a", "choices": ["a"]}, "choices: a list of 2"),
        ("choice", {"answer": "a", "choices": ["b", "c"]}, "the answer among them"),
        ("choice", {"answer": "a", "choices": ["a", "a"]}, "each once"),
        ("choice", {"answer": "a", "choices": ["a", None]}, "choices: must be text, got None"),
    ],
)
def test_a_row_that_does_not_fit_the_match_is_bad(
    match: str, row: dict[str, Any], reason: str
) -> None:
    write("test", json.dumps({"prompt": "p", **row}))
    assert reason in refused(match=match)


def test_the_stage_answers_with_exit_code_2_file_and_line(folder: Path) -> None:
    write("train", json.dumps({"prompt": "p", "answer": 1.5}), "{broken")
    text = json.dumps(params().model_dump(exclude_unset=True))
    (folder / "params.yaml").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "stages.build_data"],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "mine/train.jsonl, line 2: not JSON" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "data").exists()


LINES = st.one_of(
    st.binary(max_size=40),
    st.text(max_size=40).map(lambda t: t.encode("utf-8", "surrogatepass")),
    st.dictionaries(
        st.sampled_from(["prompt", "answer", "choices", "think", "x"]),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=10)
        | st.lists(st.text(max_size=3)),
    ).map(lambda row: json.dumps(row).encode()),
)


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    st.lists(LINES, min_size=1, max_size=6),
    st.sampled_from(["exact", "text", "number", "choice"]),
    st.sampled_from(["tags", "whole"]),
)
def test_any_rows_are_used_or_named(lines: list[bytes], match: str, answer: str) -> None:
    write("train", *lines)
    for split in ("dev", "test"):
        write(split, json.dumps({"prompt": f"only {split}", "answer": "1", "choices": ["1", "2"]}))
    made = task(match=match, answer=answer, max_dropped=0.99)
    try:
        found, dropped = made.read("mine")
    except ParamsError as error:
        said = str(error)
        assert "mine/train.jsonl" in said
        return
    physical = b"\n".join(lines).split(b"\n")
    assert len(found["train"]) + len(dropped) == sum(bool(line.strip()) for line in physical)
    for problem in found["train"]:
        json.dumps(problem.meta, allow_nan=False)
        problem.prompt.encode()
        assert made.grade([problem.gold], [problem])[0].value == 1.0
