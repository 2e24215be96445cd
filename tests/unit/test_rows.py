"""Own rows: thirteen schemas read as they are, with the right prompt, grader and verdict; what cannot be used is named and bounded."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainorder import paths, preflight
from trainorder.config import GradingConfig, TaskConfig, parse_params
from trainorder.data import build
from trainorder.plan import compile_plan
from trainorder.plan.check import check
from trainorder.reading import ParamsError
from trainorder.rewards import grading
from trainorder.tasks import load_problems, load_task, make_task
from trainorder.tasks.base import Problem, Prompt
from trainorder.tasks.rows import Rows, files
from trainorder.tasks.rows.schemas import SCHEMAS

ROWS = Path(__file__).parents[1] / "rows"
EVAL = importlib.util.find_spec("lm_eval") is not None


def system(said: str, asked: str) -> Prompt:
    return [{"role": "system", "content": said}, {"role": "user", "content": asked}]


DOUBLE = "```python\ndef double(x):\n    return 2 * x\n```"
ADD = "Sure:\n```python\ndef add(a, b):\n    return a + b\n```"
GSM = 'How many? Output the final answer after "####".'
FILES: dict[str, tuple[str, list[tuple[Prompt, list[str], str, str]]]] = {
    "verl.parquet": (
        "verl",
        [
            (f"Mia has 6 shells and finds 5. {GSM}", ["number"], "6+5=11\n#### 11", "#### 12"),
            (
                'Leo reads 1200 pages in 3 weeks. How many a week? Output the final answer after "####".',
                ["number"],
                "It is 400.",
                "1200",
            ),
            (
                system("Reason step by step.", "Half of \\frac{3}{2}? Put it in \\boxed{}."),
                ["math"],
                "So \\boxed{0.75}",
                "\\boxed{3/2}",
            ),
            (
                system("Write Python.", "Read n, print 3n."),
                ["stdio"],
                "```python\nprint(3 * int(input()))\n```",
                "print(6)",
            ),
        ],
    ),
    "skyrl.jsonl": (
        "SkyRL",
        [
            ("9-4? Answer after ####.", ["number"], "#### 5.0", "#### 4"),
            (system("Be exact.", "x^2=49, x>0?"), ["math"], "$x = 7$", "$x=-7$"),
        ],
    ),
    "open_instruct.jsonl": (
        "open-instruct",
        [
            ("Ana has 8 pears and eats 3. How many are left?", ["number"], "8-3=5", "3"),
            (
                system("Be brief.", "Which sea is salty and has no fish?"),
                ["text"],
                "<think>?</think> Dead Sea",
                "The sea",
            ),
            (
                "Write one line without commas. End with the word moon.",
                ["ifeval"],
                "I see the moon",
                "I see, the moon",
            ),
            ("Write double(x).", ["asserts"], DOUBLE, "def double(x):\n    return x + 2"),
        ],
    ),
    "nemo_gym.jsonl": (
        "NeMo Gym",
        [
            ("Put the answer in \\boxed{}. 4*9?", ["math"], "\\boxed{36}", "\\boxed{13}"),
            ("Describe the sea. Use no commas.", ["ifeval"], "It is wide", "Wide, blue"),
            ("Capital of Chad? A) Lima B) N'Djamena", ["choice"], "The answer is (B).", "A"),
            (
                system("Write Python.", "Print the sum of two numbers."),
                ["stdio"],
                "print(sum(map(int, input().split())))",
                "print(12)",
            ),
        ],
    ),
    "nemo_rl.jsonl": (
        "NeMo-RL",
        [
            ("15/3?", ["math"], "5", "15"),
            (system("Answer with a word.", "Opposite of hot?"), ["text"], "Cold.", "warm"),
        ],
    ),
    "roll.jsonl": (
        "ROLL",
        [
            ("2x+1=9, x?", ["math"], "x = 4", "x = 9"),
            ("Write add(a,b).", ["asserts"], ADD, "def add(a, b):\n    return 3"),
        ],
    ),
    "slime.jsonl": (
        "slime",
        [
            ("7*7?", ["math"], "49", "14"),
            ("Name the capital of Peru.", ["f1"], "Lima", "Quito"),
        ],
    ),
    "openrlhf.jsonl": (
        "OpenRLHF",
        [
            ("3+8?", ["math"], "\\boxed{11}", "38"),
            (system("Answer in one word.", "Colour of snow?"), ["text"], "White", "blue"),
        ],
    ),
    "areal.jsonl": (
        "AReaL",
        [
            (
                "9-2? Put your final answer within \\boxed{}.",
                ["number"],
                "9-2=7\n\\boxed{7}",
                "\\boxed{9}",
            ),
            ("3*8? Put your final answer within \\boxed{}.", ["number"], "24", "\\boxed{11}"),
        ],
    ),
    "ms_swift.jsonl": (
        "ms-swift",
        [
            ("x+2=6?", ["math"], "<think>6-2</think>$x=4$", "6"),
            ("How many legs do two dogs have?", ["number"], "8 legs", "two"),
        ],
    ),
    "verifiers.jsonl": (
        "verifiers",
        [("Reverse: lamp", ["text"], "pmal", "lamp"), ("Reverse: dog", ["text"], "god", "gods")],
    ),
    "trl.json": (
        "TRL",
        [
            ("What is 11*3?", ["math"], "33", "11"),
            (
                system("Reply with a fraction.", "A half plus a quarter?"),
                ["math"],
                "\\frac{3}{4}",
                "2/6",
            ),
        ],
    ),
    "trainorder.jsonl": (
        "trainorder",
        [
            ("2 + 5 = ?", ["number"], "seven? 7", "25"),
            ("Which comes first?\u2028Pick one.", ["choice"], "b", "a"),
            (
                system("Use digits only.", "A dozen and one?"),
                ["number"],
                "12 + 1 = 13\n13",
                "12",
            ),
            ("A date like 2020-01-31, please.", ["regex"], "On 1999-12-24.", "Christmas"),
            ("A JSON object with a name.", ["json_schema"], '{"name": "Ida"}', "{}"),
        ],
    ),
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def task(data: Any, options: dict[str, Any] | None = None, **keys: Any) -> Rows:
    made = make_task("mine", TaskConfig(data=data, options=options or {}, **keys))
    assert isinstance(made, Rows)
    return made


def problems(made: Rows) -> list[Problem]:
    found, _ = made.read("mine")
    return [problem for split in found.values() for problem in split]


def refused(made: Rows) -> str:
    with pytest.raises(ParamsError) as caught:
        made.read("mine")
    return str(caught.value)


def write(name: str, *rows: Any) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def sums(numbers: Iterable[int], **more: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"{n} + 1 = ?", "answer": str(n + 1), **more} for n in numbers]


def test_every_schema_has_a_file_of_its_rows() -> None:
    assert {title for title, _ in FILES.values()} == set(SCHEMAS)
    assert len(SCHEMAS) == 13
    assert {file.name for file in ROWS.iterdir()} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_rows_of_thirteen_schemas_are_read_as_they_are(name: str) -> None:
    title, rows = FILES[name]
    if any("ifeval" in graders for _, graders, _, _ in rows) and not EVAL:
        pytest.skip("the extra `eval` is not installed")
    made = task(str(ROWS / name), {"max_dropped": 0.4})
    assert made.survey("mine")["format"] == title
    found = {problem.text: problem for problem in problems(made)}
    assert len(found) == len(rows)
    for prompt, graders, right, wrong in rows:
        problem = found[Problem("", "", prompt, None, None).text]
        assert problem.prompt == prompt
        assert [check[0] for check in problem.meta["checks"]] == graders
        assert [r.value for r in made.grade([right, wrong, ""], [problem] * 3)] == [1.0, 0.0, 0.0]
        if problem.gold is not None:
            assert made.grade([problem.gold], [problem])[0].value == 1.0
        assert Problem(**json.loads(json.dumps(vars(problem)))) == problem


def test_gold_is_written_in_the_form_that_the_prompt_asks_for() -> None:
    golds = {p.text: p.gold for p in problems(task(str(ROWS / "areal.jsonl")))}
    assert golds["9-2? Put your final answer within \\boxed{}."] == "9-2=7\n\\boxed{7}"
    golds = {p.text: p.gold for p in problems(task(str(ROWS / "verl.parquet")))}
    assert golds[f"Mia has 6 shells and finds 5. {GSM}"] == "#### 11"


def test_the_form_is_a_part_and_never_the_score() -> None:
    made = task(str(ROWS / "areal.jsonl"))
    problem = problems(made)[0]
    right = problem.meta["checks"][0][1][0]
    boxed, bare, wrong = made.grade([f"\\boxed{{{right}}}", right, "\\boxed{99}"], [problem] * 3)
    assert (boxed.value, boxed.parts) == (1.0, {"format": 1.0, "strict": 1.0})
    assert (bare.value, bare.parts) == (1.0, {"format": 0.0, "strict": 0.0})
    assert (wrong.value, wrong.parts) == (0.0, {"format": 1.0, "strict": 0.0})


def test_a_split_column_a_split_by_content_and_a_file_for_each_split() -> None:
    named = [*sums(range(6), split="train"), *sums(range(6, 9), split="validation")]
    named += sums(range(9, 11), split="test")
    found, _ = task(write("named.jsonl", *named)).read("mine")
    assert {split: len(own) for split, own in found.items()} == {"train": 6, "dev": 3, "test": 2}
    first, _ = task(write("one.jsonl", *sums(range(200)))).read("mine")
    again, _ = task(write("two.jsonl", *reversed(sums(range(200))))).read("mine")
    for split, share in {"train": 0.6, "dev": 0.2, "test": 0.2}.items():
        assert {p.id for p in first[split]} == {p.id for p in again[split]}
        assert abs(len(first[split]) / 200 - share) < 0.1
    files = {
        "train": write("a.jsonl", *sums(range(4))),
        "dev": write("b.jsonl", *sums(range(4, 6))),
        "test": write("c.jsonl", *sums(range(6, 9))),
    }
    found, _ = task(files).read("mine")
    assert [len(found[split]) for split in ("train", "dev", "test")] == [4, 2, 3]


def test_a_training_and_a_test_file_leave_dev_to_the_hash_of_training_rows() -> None:
    data = {
        "train": write("a.jsonl", *sums(range(100))),
        "test": write("b.jsonl", *sums(range(100, 103))),
    }
    found, _ = task(data).read("mine")
    assert len(found["test"]) == 3
    assert 10 < len(found["dev"]) < 35
    assert len(found["train"]) == 100 - len(found["dev"])


def test_folders_of_parquet_files_and_of_a_saved_dataset(tmp_path: Path) -> None:
    for split, rows in {
        "train": sums(range(5)),
        "validation": sums(range(5, 7)),
        "test": sums(range(7, 8)),
    }.items():
        (tmp_path / "hub" / "data").mkdir(parents=True, exist_ok=True)
        file = tmp_path / "hub" / "data" / f"{split}-00000-of-00001.parquet"
        pq.write_table(pa.Table.from_pylist(rows), file)
        part = tmp_path / "saved" / split
        part.mkdir(parents=True)
        table = pa.Table.from_pylist(rows)
        with (
            pa.OSFile(str(part / "data-00000-of-00001.arrow"), "wb") as sink,
            pa.ipc.new_stream(sink, table.schema) as out,
        ):
            out.write_table(table)
        (part / "state.json").write_text(
            json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]})
        )
    (tmp_path / "saved" / "dataset_dict.json").write_text(
        json.dumps({"splits": ["train", "validation", "test"]})
    )
    for data in ("hub", "saved"):
        found, _ = task(data).read("mine")
        assert {split: len(own) for split, own in found.items()} == {
            "train": 5,
            "dev": 2,
            "test": 1,
        }


def test_own_columns_are_named_by_a_small_mapping() -> None:
    rows = [{"q": f"{n} + 1?", "info": {"gold": n + 1}, "say": "Be brief."} for n in range(9)]
    file = write("own.jsonl", *rows)
    text = refused(task(file))
    assert "the columns info, q, say are of no known schema" in text
    assert "tasks.mine.columns: {prompt: ..., answer: ...}" in text
    made = task(file, columns={"prompt": "q", "answer": "info.gold", "system": "say"})
    found = problems(made)
    assert found[0].prompt == system("Be brief.", found[0].question)
    assert made.survey("mine")["graders"] == {"number": 9}
    assert "no column 'qq'; there are info, q, say (did you mean 'q'?)" in refused(
        task(file, columns={"prompt": "qq"})
    )
    assert "no 'promt'" in refused(task(file, columns={"promt": "q"}))
    nowhere = refused(task(file, columns={"prompt": "q", "answer": "q.gold"}))
    assert "tasks.mine.columns: no row has anything in 'q.gold'; the first has '" in nowhere


def test_an_unknown_grader_is_named_with_the_nearest_and_refused_before_anything_runs() -> None:
    row = {"prompt": "p", "reward_spec": {"ground_truth": "x"}, "env_class": "strinf_f1"}
    file = write("rows.jsonl", *[{**row, "prompt": f"p {n}"} for n in range(4)])
    text = refused(task(file))
    assert "tasks.mine: 4 of 4 rows (read as SkyRL) cannot be used" in text
    assert "unknown grader 'strinf_f1' (did you mean 'string_f1'?)" in text
    assert text.count("rows.jsonl, line") == 1  # one row of a kind, and how many there are
    assert "(and 3 more)\ncorrect them" in text
    assert task(file, grader={"strinf_f1": "f1"}).survey("mine")["graders"] == {"f1": 4}
    assert "no 'nmber'" in refused(task(file, grader="nmber"))


def test_bad_rows_are_named_counted_and_bounded() -> None:
    good = [json.dumps(row) for row in sums(range(40))]
    bad = ["{", '{"prompt": "p"}', '{"prompt": " ", "answer": "1"}', good[0]]
    Path("rows.jsonl").write_text("\n".join([*good, *bad]))
    text = refused(task("rows.jsonl"))
    assert (
        "tasks.mine: 4 of 44 rows (read as trainorder) cannot be used, options.max_dropped allows 5%"
        in text
    )
    for number, reason in {
        41: "not JSON",
        42: "no answer",
        43: "prompt: must not be empty",
        44: "duplicate",
    }.items():
        assert f"rows.jsonl, line {number}: {reason}" in text
    found, dropped = task("rows.jsonl", {"max_dropped": 0.1}).read("mine")
    assert sum(map(len, found.values())) == 40
    assert [row.line for row in dropped] == [41, 42, 43, 44]


def test_what_test_holds_training_may_not() -> None:
    data = {
        "train": write("a.jsonl", *sums(range(30))),
        "dev": write("b.jsonl", *sums(range(30, 33))),
        "test": write("c.jsonl", {"prompt": "3+1=\u200b?", "answer": "4"}),
    }
    found, dropped = task(data).read("mine")
    assert [str(row) for row in dropped] == [
        "a.jsonl, line 4: leakage: the prompt of c.jsonl, line 1"
    ]
    assert len(found["train"]) == 29


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("none.parquet", "no file or folder 'none.parquet'; name a file (.parquet, .jsonl"),
        ("table.csv", "'table.csv' is no file that is read"),
        ("empty", "empty holds no rows"),
        ("broken.parquet", "broken.parquet cannot be read"),
        ("list.json", "list.json: a list of objects is needed"),
        ("deep.json", "deep.json: nested too deep"),
        ("torn", "dataset_dict.json is damaged (no list 'splits'): save the data set again"),
        ("other", "state.json is damaged (no list '_data_files')"),
        ("nameless", "state.json is damaged: save the data set again"),
    ],
)
def test_data_that_cannot_be_read_gives_one_line(data: str, reason: str) -> None:
    Path("table.csv").write_text("a,b\n")
    Path("empty").mkdir()
    Path("broken.parquet").write_bytes(b"PAR1 not")
    Path("list.json").write_text('\n"text"\n')
    Path("deep.json").write_text("[" * 900 + "]" * 900)
    for file, text in {
        "torn/dataset_dict.json": '{"splits": ["tra',
        "other/state.json": "[" * 50_000,
        "nameless/state.json": '{"_data_files": ["data.arrow"]}',
    }.items():
        Path(file).parent.mkdir()
        Path(file).write_text(text)
    assert reason in refused(task(data))


def test_a_dataset_of_the_hub_without_network_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    text = refused(task("nobody/nothing"))
    assert "no file or folder 'nobody/nothing'" in text
    assert "pip install datasets" in text or "download it and name the folder" in text


def params(**keys: Any) -> Any:
    own = {"max_new_tokens": 64, "demonstrations": 5, **keys}
    phase = {"kind": "structured", "tasks": {"mine": 1.0}, "steps": 1}
    judged = {"train": 9, "dev": 1, "test": 1, "demonstrations": 5}
    tasks = {"mine": own, "creative": judged}
    judge = {"prompts": 2, "heldout_prompts": 2}
    given = {"tasks": tasks, "phases": {"mine": phase}, "orders": {"one": ["mine"]}}
    return parse_params({**given, "judge": judge})


def test_one_line_of_params_builds_problems_with_messages() -> None:
    rows = [{"prompt": [*system("Be brief.", f"{n} + 1?")], "answer": n + 1} for n in range(60)]
    made = params(data=write("rows.jsonl", *rows))
    check(made)
    preflight.rows.check(made)
    build(made)
    found = load_problems("mine", "train")
    assert found[0].prompt == system("Be brief.", found[0].question)
    again = load_task("mine")
    assert [r.value for r in again.grade([p.gold or "" for p in found], found)] == [1.0] * len(
        found
    )
    lines = (paths.SFT_DATA / "demonstrations.jsonl").read_text().splitlines()
    assert isinstance(json.loads(lines[0])["prompt"], list)
    [said, origin] = preflight.rows.lines(made)
    counts = {split: len(load_problems("mine", split)) for split in ("train", "dev", "test")}
    shown = ", ".join(f"{split} {n} of {n}" for split, n in counts.items())
    assert said == f"tasks.mine: 60 rows of trainorder; {shown}; graded by number 60"
    assert origin == "  60 rows name none: their answers decide"


def test_more_rows_than_there_are_can_only_be_asked_for_by_name() -> None:
    file = write("rows.jsonl", *sums(range(60)))
    preflight.rows.check(params(data=file))
    with pytest.raises(ParamsError, match=r"tasks\.mine\.train: 50 problems asked for, there are"):
        preflight.rows.check(params(data=file, train=50))


def test_rows_are_read_once_while_they_do_not_change() -> None:
    file = write("rows.jsonl", *sums(range(60)))
    before = task(file).survey("mine")
    kept = list((paths.cache_folder() / "rows").iterdir())
    assert len(kept) == 1
    assert task(file).survey("mine") == json.loads(kept[0].read_text())
    assert before["rows"] == 60
    write("rows.jsonl", *sums(range(61)))
    assert task(file).survey("mine")["rows"] == 61


def test_a_file_is_parsed_once_and_a_data_set_of_the_hub_surveyed_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parsed, read, loads, hub = list[bytes](), list[str](), files.loads, files._hub_rows
    monkeypatch.setattr(files, "loads", lambda text: parsed.append(text) or loads(text))
    monkeypatch.setattr(files, "_hub_rows", lambda *name: read.append(name[1]) or hub(*name))
    Path("whole.json").write_text(json.dumps(sums(range(60)), indent=1))
    assert task("whole.json").survey("mine")["rows"] == 60
    assert len(parsed) == 1
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for split in ("train", "test"):  # a folder of that name stands in for the hub's repository
        write(f"owner/name/{split}.jsonl", *sums(range(30)) if split == "train" else sums([70, 71]))
    for _ in range(3):
        assert task("owner/name@main").survey("mine")["rows"] == 32
    assert sorted(read) == ["test", "train"]


def test_the_check_counts_no_row_that_holds_a_special_token() -> None:
    rows = sums(range(60))
    rows[0]["prompt"] += " [x <eos>"
    rows[1] = {"prompt": "Which word?", "answer": "[x <eos>"}
    file = write("rows.jsonl", *rows)
    counts = task(file).survey("mine", ["<eos>", "<pad>"])["counts"]
    assert sum(counts.values()) == 58
    found = task(file).survey("mine")["counts"]
    assert sum(found.values()) == 60
    assert task(file).survey("mine", ["<pad>"])["counts"] == found
    assert task(file).survey("mine", ["[x <eos>"])["counts"] == counts  # a token of no usual form
    with pytest.raises(ParamsError, match="problems asked for, there are"):
        preflight.rows.check(params(data=file, **found))
    preflight.rows.check(params(data=file, **counts))


SCORE = "from helper import RIGHT\n\ndef score(completions, level, **columns):\n    # one\n    return [RIGHT if c == 'yes' else level[0] for c in completions]\n"


def test_a_function_of_the_user_grades_in_the_signature_of_trl_or_verl() -> None:
    Path("helper.py").write_text("RIGHT = 1.0\n")
    Path("mine.py").write_text(
        SCORE + "\ndef compute_score(data_source, solution_str, ground_truth, extra_info=None):\n"
        "    return {'score': 0.5 if ground_truth in solution_str else None}\n"
    )
    rows = [{"prompt": f"say yes {n}", "level": 0.25, "answer": "yes"} for n in range(9)]
    file = write("rows.jsonl", *rows)
    trl = task(file, reward="mine.py:score")
    found = problems(trl)
    assert [r.value for r in trl.grade(["yes", "no"], found[:2])] == [1.0, 0.25]
    verl = task(file, reward="mine.py:compute_score")
    assert [r.value for r in verl.grade(["oh yes", "no"], found[:2])] == [0.5, None]
    with pytest.raises(ParamsError, match=r"no function 'scor'.*did you mean 'score'"):
        task(file, reward="mine.py:scor").grade(["yes"], found[:1])
    with pytest.raises(ParamsError, match=r"no file 'yours.py'"):
        check(params(data=file, reward="yours.py:score"))


ODD = {
    "prints": ("print('{}'); sys.stdout.flush(); os.write(1, b'[')", "[0.5]", 0.5),
    "reads": ("sys.stdin.read()", "[0.5]", 0.5),
    "clears": ("os.environ.clear(); os.chdir('/')", "[0.5]", 0.5),
    "leaves": ("threading.Thread(target=time.sleep, args=(60,)).start()", "[0.5]", 0.5),
    "numpy": ("", "numpy.array([0.5])", 0.5),
    "bool": ("", "[True]", 1.0),
    "text": ("", "['1']", 1.0),
    "hangs": ("time.sleep(60)", "[1]", "took over 4 s"),
    "ends": ("os._exit(0)", "[1]", "died twice"),
    "exits": ("raise SystemExit", "[1]", "died twice"),
    "number": ("", "1", "cannot unpack"),
    "two": ("", "[1, 1]", "too many values"),
    "mapping": ("", "[{'score': 1}]", "must be a string or a real number"),
    "nothing": ("", "None", "cannot unpack"),
    "nan": ("", "[float('nan')]", "gave no grade"),
    "three": ("", "[3]", "a value in 0..1 or None, it gave 3.0"),
    "minus": ("", "[-0.1]", "a value in 0..1 or None, it gave -0.1"),
    "loops": ("score(completions, **columns)", "[1]", "RecursionError"),
    "grows": ("bytearray(1 << 46)", "[1]", "MemoryError"),
}
"""What the answer has the function do, what it gives then, and the answer's value or why it has none."""


def test_whatever_a_function_of_the_user_does_costs_that_one_answer() -> None:
    does = "".join(
        f"    if completions[0] == {name!r}:\n        {first or 'pass'}\n        return {gives}\n"
        for name, (first, gives, _) in ODD.items()
    )
    text = "import os, sys, threading, time\nimport numpy\n\ndef score(completions, **columns):\n"
    Path("odd.py").write_text(f"{text}{does}    return [1.0]\n")
    file = write("rows.jsonl", *({"prompt": f"say yes {n}", "answer": "yes"} for n in range(99)))
    own = task(file, reward="odd.py:score")
    worker = grading.Grader(GradingConfig(seconds=4, max_unscored=1.0))
    for name, (_, _, wanted) in ODD.items():
        given = worker.grade(own, ["good", name, "good"], problems(own)[:3])
        value = None if isinstance(wanted, str) else wanted
        assert [reward.value for reward in given] == [1.0, value, 1.0], name
        newest = list(worker.unscored.reasons.get("mine", {"": 1}))[-1]
        assert value is not None or str(wanted) in newest, (name, newest)
    worker.close()


def test_the_users_code_and_the_graders_of_the_rows_are_in_the_fingerprints() -> None:
    Path("helper.py").write_text("RIGHT = 1.0\n")
    Path("mine.py").write_text(SCORE)
    file = write("rows.jsonl", *sums(range(60), level=0))
    made = params(data=file, reward="mine.py:score")
    before = compile_plan(made).fingerprints()
    Path("mine.py").write_text(SCORE.replace("# one", "# two"))
    assert compile_plan(made).fingerprints() == before
    Path("helper.py").write_text("RIGHT = 0.5\n")
    after = compile_plan(made).fingerprints()
    changed = {name for name in before if before[name] != after[name]}
    assert changed >= {"evaluate", "phase_mine"}
    assert "report" not in changed
    text = compile_plan(params(data=file)).fingerprints()["phase_mine"]
    assert "trainorder/graders/numbers.py" in text
    assert "trainorder/graders/code.py" not in text
    assert "trainorder/tasks/rows/reader.py" not in text


def test_only_rows_of_one_source_are_taken() -> None:
    shutil.copy(ROWS / "verl.parquet", "rows.parquet")
    assert len(problems(task("rows.parquet", {"source": "openai/gsm8k"}))) == 2
    assert "no row of task 'gsm8k'; there are" in refused(task("rows.parquet", {"source": "gsm8k"}))


def test_a_function_that_fails_is_refused_before_anything_trains() -> None:
    Path("mine.py").write_text("def score(completions, **columns):\n    return [1 / 0]\n")
    made = params(data=write("rows.jsonl", *sums(range(60))), reward="mine.py:score")
    grading.shared().close()  # its process runs in the folder of an earlier test
    with pytest.raises(
        ParamsError, match=r"mine\.py:score grades no answer to '.*': ZeroDivisionError"
    ):
        preflight.rows.check(made)
