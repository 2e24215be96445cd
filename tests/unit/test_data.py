"""build_data: counts, splits, bytes, the tokenizer, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from built_in_tasks import TASKS
from hypothesis import given, settings
from hypothesis import strategies as st

from trainorder import paths
from trainorder.config import Params, parse_params
from trainorder.data import build, draw_problems, pieces, write_tokenizer
from trainorder.files import read_jsonl, write_jsonl, write_text
from trainorder.reading import ParamsError
from trainorder.report import records
from trainorder.sft.lines import read_rows
from trainorder.tasks import load_problems, load_task, make_task, programs
from trainorder.tasks.base import SPLITS, Problem, split_of

ROOT = Path(__file__).resolve().parents[2]


def small(**changes: dict[str, Any]) -> Params:
    tasks: dict[str, Any] = {
        name: {"train": 60, "dev": 20, "test": 20, "demonstrations": 120} for name in TASKS
    }
    tasks["math"]["drills"] = tasks["qa"]["drills"] = 50
    for name, change in changes.items():
        tasks.setdefault(name, {}).update(change)
    phase = {"kind": "structured", "tasks": {"math": 1.0}, "steps": 1}
    return parse_params({"tasks": tasks, "phases": {"math": phase}, "orders": {"one": ["math"]}})


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        build(small())
    return folder


@pytest.fixture
def inside(built: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(built)
    return built


@pytest.fixture(scope="module")
def tokenizer(built: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(built / paths.TOKENIZER)


def test_every_task_has_its_counts_in_the_right_split(inside: Path) -> None:
    for name in TASKS:
        for split, count in zip(SPLITS, (60, 20, 20), strict=True):
            problems = load_problems(name, split)
            assert len(problems) == len({p.id for p in problems}) == count
            assert all(split_of(p.id) == split and p.task == name for p in problems)


def test_demonstrations_show_train_problems_only(inside: Path) -> None:
    rows = jsonl(paths.SFT_DATA / "demonstrations.jsonl")
    assert [sum(row["task"] == name for row in rows) for name in TASKS] == [120] * len(TASKS)
    held_out = {
        p.prompt for name in TASKS for split in ("dev", "test") for p in load_problems(name, split)
    }
    assert len(held_out) == 40 * len(TASKS)
    assert not held_out & {row["prompt"] for row in rows}


WORLDS = {
    "code drills": {"code": {"drills": 2000, "dev": 128, "test": 256, "train": 60}},
    "one-step math": {
        "math": {
            "options": {"max_value": 9, "max_operand": 4, "min_operations": 1, "max_operations": 2},
            "dev": 60,
            "test": 60,
            "drills": 500,
        }
    },
}


@pytest.mark.parametrize("world", WORLDS)
def test_nothing_that_is_trained_on_shows_dev_or_test_content(
    world: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    build(small(**WORLDS[world]))
    rows = jsonl(paths.SFT_DATA / "demonstrations.jsonl")
    drills = [row["text"] for row in jsonl(paths.SFT_DATA / "drills.jsonl")]
    assert len(drills) >= 500
    completions = {row["completion"] for row in rows}
    for name in ("math", "code"):
        held = [p for split in ("dev", "test") for p in load_problems(name, split)]
        for problem in held:
            assert not any(problem.prompt in line for line in drills)
            if name == "code" and not problem.prompt.startswith("examples"):
                source = programs.Program(*problem.meta["program"]).source
                assert not any(line.endswith(f": {source}") for line in drills)
                assert not any(
                    text.endswith(f"<answer> {source} </answer>") for text in completions
                )
            if name == "math":
                steps = problem.gold.split("</think>")[0].removeprefix("<think> ").strip()
                assert not any(steps in line.split(" ; ") for line in drills)
                assert not any(text.startswith(f"<think> {steps} </think>") for text in completions)
    leaks = json.loads((tmp_path / "data/summary.json").read_text())["leaks"]
    assert leaks["redrawn"] > 20
    assert leaks["checked"] == len(rows) + len(drills) + len(TASKS) * 60
    assert leaks["found"] == 0


def test_a_training_row_that_is_a_test_problem_of_another_task_refuses_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = {
        "a": {"train": ["one"], "dev": ["two"], "test": ["What is 2 + 2?"]},
        "b": {"train": ["what is 2+2 ?\u200b"], "dev": ["four"], "test": ["five"]},
    }
    tasks: dict[str, Any] = {}
    for name, splits in files.items():
        options = {split: f"{name}_{split}.jsonl" for split in splits}
        for split, prompts in splits.items():
            rows = [json.dumps({"prompt": prompt, "answer": "4"}) for prompt in prompts]
            Path(options[split]).write_text("\n".join(rows))
        tasks[name] = {
            "kind": "jsonl",
            "options": options,
            "train": 1,
            "dev": 1,
            "test": 1,
            "demonstrations": 1,
        }
    with pytest.raises(ParamsError, match=r"tasks\.b: .* gives the dev or test problem a/\w+ away"):
        build(small(**tasks))
    assert not Path("data").exists()


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("a\u2028\x85\r\n", max_size=3), inner)
    ),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.lists(st.dictionaries(st.sampled_from(["prompt", "x\u2029"]), JSON_VALUES), max_size=4))
def test_rows_that_are_written_are_the_rows_that_are_read(rows: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        write_jsonl(file, rows)
        assert read_jsonl(file) == rows
        assert file.read_bytes().count(b"\n") == len(rows)


@pytest.mark.parametrize(
    "text", ["a\u2028b", "\u2029", "\x85", "a\r\nb", "\r", "\x0b\x0c\x1c\x1d\x1e", "\ufeffa"]
)
def test_every_reader_keeps_texts_with_odd_line_ends(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    problem = Problem("t/1", "t", text, text, text, {"answer": text})
    write_jsonl(paths.TASK_DATA / "t" / "dev.jsonl", [dataclasses.asdict(problem)] * 2)
    assert load_problems("t", "dev") == [problem] * 2
    write_jsonl(paths.SFT_DATA / "drills.jsonl", [{"text": text}] * 2)
    assert read_rows(paths.SFT_DATA / "drills.jsonl") == [{"text": text}] * 2
    write_jsonl(paths.run("n") / "metrics.jsonl", [{"step": 1, f"task/{text}/reward": 2.0}])
    assert records.curves("n") == {f"task/{text}/reward": [(1, 2.0)]}


def test_drills_are_written_where_asked_for(inside: Path) -> None:
    rows = jsonl(paths.SFT_DATA / "drills.jsonl")
    assert [(sum(row["task"] == name for row in rows)) for name in ("math", "qa")] == [50, 50]
    assert len(rows) == 100


def test_the_same_params_give_the_same_bytes_over_old_data_too(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    build(small(extra={"kind": "qa", "train": 30, "dev": 5, "test": 5, "demonstrations": 10}))
    assert (tmp_path / "data/tasks/extra").is_dir()
    build(small())
    assert content(tmp_path) == content(built)


def test_another_seed_gives_other_problems_and_another_tasks_options_do_not(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    build(small(qa={"options": {"distractors": 2}}))
    old, new = content(built / "data/tasks"), content(tmp_path / "data/tasks")
    changed = {name for name in old if old[name] != new[name]}
    assert {name.split("/")[0] for name in changed} == {"qa"}
    config = small().tasks["math"]
    first, second = (
        draw_problems("math", load_task("math"), config, seed)["test"] for seed in (0, 1)
    )
    assert len({p.id for p in first} & {p.id for p in second}) < 5


def test_more_train_problems_leave_dev_and_test_alone() -> None:
    task, config = make_task("math", small().tasks["math"]), small().tasks["math"]
    few = draw_problems("math", task, config, 0)
    many = draw_problems("math", task, config.model_copy(update={"train": 200}), 0)
    assert (many["dev"], many["test"], many["train"][:60]) == (
        few["dev"],
        few["test"],
        few["train"],
    )


def test_two_tasks_of_one_kind_keep_their_own_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    build(
        small(
            easy_math={
                "kind": "math",
                "train": 9,
                "dev": 9,
                "test": 9,
                "options": {"max_value": 12},
            }
        )
    )
    assert load_task("easy_math") == dataclasses.replace(load_task("math"), max_value=12)
    problem = load_problems("easy_math", "dev")[0]
    assert problem.task == "easy_math"
    assert problem.id.startswith("easy_math/")


def test_a_world_that_is_too_small_says_how_many_problems_it_holds() -> None:
    # 26 countries x (capital, country, continent twice, language twice) = 156 questions without options
    params = small(qa={"train": 120, "options": {"distractors": 0}})
    with pytest.raises(
        ParamsError, match=r"tasks\.qa: too few .*: train asks for 120, (\d+) exist.*ask for fewer"
    ) as caught:
        draw_problems("qa", make_task("qa", params.tasks["qa"]), params.tasks["qa"], 0)
    exist = int(str(caught.value).split("asks for 120, ")[1].split()[0])
    assert 75 < exist < 115


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"math": {"max_new_tokens": 20}},
            r"tasks\.math\.max_new_tokens: the longest right answer has \d+ tokens.*got 20",
        ),
        (
            {"creative": {"drills": 5}},
            r"tasks\.creative\.drills: this task has no drills; set it to 0, got 5",
        ),
        ({"qa": {"kind": "qq"}}, r"tasks\.qa: no task kind 'qq'"),
    ],
)
def test_a_refused_build_writes_nothing(
    changes: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ParamsError, match=message):
        build(small(**changes))
    assert list(tmp_path.iterdir()) == []


def test_the_stage_answers_a_mistake_with_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("tasks: {math: {trian: 3}}\n")
    done = subprocess.run(
        [sys.executable, "-m", "stages.build_data"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "did you mean 'train'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.long("builds the data of the default experiment")
def test_building_the_default_experiment_needs_no_torch_and_keeps_texts_short(
    tmp_path: Path,
) -> None:
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    code = (
        "import sys, stages; import stages.build_data as s; assert stages.run('build_data', '', {}, s.main) == 0; "
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, check=True
    )
    summary = json.loads((tmp_path / "data/summary.json").read_text())
    assert 350 < summary["vocabulary"] < 550
    for task in summary["tasks"].values():
        assert task["longest_prompt"] < 60
        assert max(task["longest_answer"], task["longest_demonstration"]) <= 48


# Tokenizer


@pytest.mark.long("builds the data of the default experiment")
def test_every_text_survives_the_tokenizer(inside: Path, tokenizer: Any) -> None:
    problems = [p for name in TASKS for split in SPLITS for p in load_problems(name, split)]
    texts = {text for p in problems for text in (p.prompt, p.gold, p.reference)}
    texts |= {row["completion"] for row in jsonl(paths.SFT_DATA / "demonstrations.jsonl")}
    texts |= {row["text"] for row in jsonl(paths.SFT_DATA / "drills.jsonl")}
    for text in sorted(texts):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text
        assert [
            token.replace("\u2581", " ") for token in tokenizer.convert_ids_to_tokens(ids)
        ] == pieces(text)


def test_numbers_are_single_digits_and_read_normally(tokenizer: Any) -> None:
    ids = tokenizer("8 + 5 = 13")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == [
        "\u25818",
        "\u2581+",
        "\u25815",
        "\u2581=",
        "\u25811",
        "3",
    ]
    assert tokenizer.decode(ids) == "8 + 5 = 13"


def test_the_chat_template_frames_a_prompt_and_an_answer(tokenizer: Any) -> None:
    user, answer = {"role": "user", "content": "how many ?"}, {"role": "assistant", "content": "13"}
    prompt = tokenizer.apply_chat_template([user], add_generation_prompt=True, return_dict=False)
    both = tokenizer.apply_chat_template([user, answer], return_dict=False)
    assert tokenizer.convert_ids_to_tokens(prompt) == [
        "<bos>",
        "\u2581how",
        "\u2581many",
        "\u2581?",
        "<sep>",
    ]
    assert both == [*prompt, *tokenizer("13")["input_ids"], tokenizer.eos_token_id]


def test_specials_come_first_and_are_skipped_when_decoding(tokenizer: Any) -> None:
    assert [tokenizer.decode([i]) for i in range(5)] == [
        "<pad>",
        "<bos>",
        "<sep>",
        "<eos>",
        "<unk>",
    ]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.sep_token_id) == (0, 3, 2)
    ids = [1, *tokenizer("easy")["input_ids"], 3, 0, 0]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "easy"


def test_saving_the_tokenizer_again_changes_no_id(tokenizer: Any, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again("<think> 7 </think>")["input_ids"] == tokenizer("<think> 7 </think>")["input_ids"]


def test_the_vocabulary_order_is_of_its_words_not_of_their_arrival(tmp_path: Path) -> None:
    words = pieces("write a note about sea 1 2 33")
    write_tokenizer(tmp_path / "a", words)
    random.Random(0).shuffle(words)
    write_tokenizer(tmp_path / "b", words)
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_pieces_joined_are_the_text() -> None:
    for text in ("8 + 5 = 13", "v2 xs", "100 <think>", "a"):
        assert "".join(pieces(text)) == f" {text}"


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    write_text(tmp_path / "deep/file", "old")
    reader = (tmp_path / "deep/file").open()
    write_text(tmp_path / "deep/file", "new\n")
    assert reader.read() == "old"  # the old file stays whole for its readers
    reader.close()
    assert content(tmp_path) == {"deep/file": b"new\n"}
