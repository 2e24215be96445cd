"""What would stop or spoil a run with somebody's model, seen before anything trains."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from foreign_model import CHAT, byte_tokenizer, copy, edit_json, edit_weights, write_model

from trainorder.config import Params, load_params, parse_params
from trainorder.data import write_tokenizer
from trainorder.policy import Policy
from trainorder.preflight import model as preflight
from trainorder.reading import ParamsError
from trainorder.sft.lines import demonstration_lines
from trainorder.tasks import make_task

ROWS = [(f"what is {a} + {b} ?", str(a + b)) for a in range(4) for b in range(4)]
TAGS = ["<think>", "</think>", "<answer>", "</answer>"]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("good") / "model")


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def params(path: Path | None, rows: list[tuple[str, str]] = ROWS, **changes: Any) -> Params:
    """One task of the user's own rows and the model at `path`."""
    files = {"train": rows[:10], "dev": rows[10:13], "test": rows[13:]}
    for split, part in files.items():
        lines = [json.dumps({"prompt": prompt, "answer": answer}) for prompt, answer in part]
        Path(f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    options = {split: f"{split}.jsonl" for split in files} | changes.pop("options", {})
    sums = {"kind": "jsonl", "options": options, "max_new_tokens": 64}
    sums |= {split: len(part) for split, part in files.items()} | changes.pop("task", {})
    return parse_params(
        {
            "policy": {"path": str(path) if path else None} | changes.pop("policy", {}),
            "tasks": {"sums": sums, **changes.pop("tasks", {})},
            "phases": {"sums": {"kind": "structured", "tasks": {"sums": 1.0}, "steps": 1}},
            "orders": {"one": ["sums"]},
            **changes,
        }
    )


def with_tokenizer(good: Path, tokenizer: Any) -> Path:
    folder = copy(good, Path("model").absolute())
    (folder / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(folder)
    return folder


def gold_of(checked: Params) -> tuple[Any, Any]:
    task = make_task("sums", checked.tasks["sums"])
    return task, task.read("sums")[0]["train"][0]


def test_a_good_model_passes(good: Path):
    preflight.check(params(good))


def test_the_default_experiment_passes():
    preflight.check(load_params(Path(__file__).parents[2] / "params.yaml"))


TEMPLATES: dict[str, tuple[Any, str]] = {
    "a random choice": (CHAT + "{{ ['a', 'b'] | random }}", r"uses 'random'.*from run to run"),
    "random words": (CHAT + "{{ lipsum(n=1) }}", "uses 'lipsum'"),
    "an address": ("{{ messages.index }}" + CHAT, "address"),
    "a refusal": ("{{ raise_exception('needs a system turn') }}", "needs a system turn"),
    "a syntax error": ("{% for m in messages %}", "cannot render"),
    "the message left out": ("[system] hello [assistant] ", "leaves out the user's message"),
    "only the first message's role": ("{{ messages[0]['role'] }}", "leaves out"),
    "an end token at the end": (CHAT + "{{ eos_token }}\n", "ends a prompt with the end token"),
    "no default": ({"tool_use": CHAT}, "no default"),
    "a thought begun": (CHAT + "<think>\nOkay, ", r"begins the thought itself \('Okay,'"),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_that_cannot_work_are_refused(good: Path, name: str):
    template, message = TEMPLATES[name]
    folder = with_tokenizer(good, byte_tokenizer(template))
    with pytest.raises(ParamsError, match=message) as caught:
        preflight.check(params(folder))
    assert "chat template" in str(caught.value)


SYSTEM: dict[str, tuple[str, str]] = {
    "refused": (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
        "[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}[assistant] ",
        r"cannot render a prompt of tasks\.sums \(turns system, user\): no system turn \(TemplateError\)",
    ),
    "left out": (
        "{% for m in messages if m['role'] != 'system' %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}[assistant] ",
        r"leaves out the system turn of a prompt of tasks\.sums, 'Be brief\.': write it into",
    ),
}


@pytest.mark.parametrize("name", SYSTEM)
def test_a_template_that_loses_the_system_turn_of_the_rows_is_refused(good: Path, name: str):
    template, message = SYSTEM[name]
    rows = [
        {"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt}], "answer": answer}
        for prompt, answer in ROWS
    ]  # fmt: skip
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = params(None).model_dump(exclude_defaults=True)
    given["tasks"]["sums"] = {"data": "rows.jsonl", "max_new_tokens": 8}
    for folder in (good, with_tokenizer(good, byte_tokenizer(template))):
        checked = parse_params(given | {"policy": {"path": str(folder)}})
        if folder == good:
            preflight.check(checked)
            continue
        with pytest.raises(ParamsError, match=message):
            preflight.check(checked)


@pytest.mark.parametrize(
    "change",
    [
        "[:30]",
        " | e",
        " | replace('plums', 'PLUMS')",
        ".split('?')[0]",
        " | replace('<', '')",
        " | tojson",
    ],
)
def test_a_template_that_rewrites_a_prompt_is_refused(good: Path, change: str):
    folder = with_tokenizer(
        good, byte_tokenizer(CHAT.replace("m['content']", f"m['content']{change}"))
    )
    rows = [
        (f'is {a} < "{b}" ? {a} apples, {b} pears and 17 plums', str(a))
        for a in range(4)
        for b in range(4)
    ]
    with pytest.raises(ParamsError, match=r"changes or cuts a prompt of tasks\.sums"):
        preflight.check(params(folder, rows))


def test_a_template_may_lay_out_white_space_otherwise(good: Path):
    changed = CHAT.replace("m['content']", "m['content'] | trim | wordwrap(9)")
    preflight.check(params(with_tokenizer(good, byte_tokenizer(changed))))


def test_templates_without_a_default_take_no_system_message(good: Path):
    folder = with_tokenizer(good, byte_tokenizer({"tool_use": CHAT}))
    with pytest.raises(ParamsError, match=r"no \(default\) chat template for policy\.system"):
        preflight.check(params(folder, policy={"system": "Be short."}))


@pytest.mark.parametrize(
    "date", ["{{ strftime_now('%d %b %Y') }}", "{% set d = strftime_now('%s%f') %}{{ d }}"]
)
def test_a_template_that_asks_for_the_date_sees_the_same_day_always(good: Path, date: str):
    folder = with_tokenizer(good, byte_tokenizer(date + " " + CHAT))
    preflight.check(params(folder))
    policy = Policy.load(folder, weights=False)
    first = policy.render("hello")
    time.sleep(0.01)
    assert policy.render("hello") == first
    if "%Y" in date:
        assert first.startswith("01 Jan 2025 ")


@pytest.mark.parametrize("opened", ["<think>", "<think>\n", "<think>\n\n", "<think> \n"])
def test_a_thought_that_the_template_opens_belongs_to_the_answer(good: Path, opened: str):
    folder = with_tokenizer(good, byte_tokenizer(CHAT + opened))
    checked = params(folder)
    preflight.check(checked)
    policy = Policy.load(folder, weights=False)
    task, problem = gold_of(checked)
    prompt, answer = policy.encode_prompt(problem.prompt), policy.encode_completion(problem.gold)
    assert policy.decode(prompt).endswith("[assistant] ")
    assert policy.decode([*prompt, *answer]).count("<think>") == 1
    [line] = demonstration_lines(
        policy, [{"prompt": problem.prompt, "completion": problem.gold}], 0.0
    )
    shown = policy.decode(line.ids)
    assert shown.count("<think>") == shown.count("</think>") == 1
    assert task.grade([policy.decode(answer)], [problem])[0].value == 1.0


def test_a_closed_thought_of_the_template_stays_in_the_prompt(good: Path):
    folder = with_tokenizer(good, byte_tokenizer(CHAT + "<think>\n\n</think>\n\n"))
    preflight.check(params(folder))
    policy = Policy.load(folder, weights=False)
    assert policy.decode(policy.encode_prompt("hello")).endswith("<think>\n\n</think>\n")


@pytest.mark.parametrize("count", [1, 2, 4])
def test_tags_that_are_special_tokens_survive_decoding(good: Path, count: int):
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": TAGS[:count]})
    folder = with_tokenizer(good, tokenizer)
    checked = params(folder)
    preflight.check(checked)
    policy = Policy.load(folder, weights=False)
    task, problem = gold_of(checked)
    ids = policy.encode_completion(problem.gold)
    assert max(ids) >= 259  # they are tokens of their own
    assert task.grade([policy.decode(ids)], [problem])[0].value == 1.0
    assert policy.decode([0, 1, *ids, 70]) == policy.decode(ids) == problem.gold


def test_an_answer_tag_that_is_an_end_token_is_refused(good: Path):
    tokenizer = byte_tokenizer(eos_token="</think>")
    folder = with_tokenizer(good, tokenizer)
    with pytest.raises(ParamsError, match=r"tasks\.sums: a right answer scores 0\.0 .*as it was"):
        preflight.check(params(folder))


def test_an_answer_tag_that_decoding_takes_out_is_refused(good: Path):
    folder = with_tokenizer(good, byte_tokenizer(pad_token="</think>"))
    with pytest.raises(ParamsError, match=r"tasks\.sums: a right answer loses its format"):
        preflight.check(params(folder))


def test_a_tokenizer_that_rewrites_answers_is_refused(good: Path):
    from tokenizers import normalizers

    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("<answer>", "<reply>")
    folder = with_tokenizer(good, tokenizer)
    with pytest.raises(ParamsError, match=r"scores 0\.0 .*<reply>"):
        preflight.check(params(folder))


def test_unknown_words_are_refused(good: Path):
    folder = copy(good, Path("model").absolute())
    write_tokenizer(folder, {" what", " is", " +", " ?", *map(str, range(10))})
    with pytest.raises(ParamsError, match=r"same tokens|knows only parts of a right answer"):
        preflight.check(params(folder))


def test_ids_without_a_token_are_shown_and_never_raise(good: Path):
    policy = Policy.load(good, weights=False)
    five = policy.encode_completion("5")[0]
    assert policy.decode([five, 261, 262, five]) == "5\ufffd\ufffd5"
    assert policy.decode([263]) == "\ufffd"
    assert policy.decode([]) == ""


@pytest.mark.parametrize("extra", [6, 100])
def test_more_tokens_than_embeddings_are_refused(good: Path, extra: int):
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([f"<{i}>" for i in range(extra)])
    folder = with_tokenizer(good, tokenizer)
    with pytest.raises(ParamsError, match=rf"ids up to {258 + extra} and the model 264 embeddings"):
        preflight.check(params(folder))


def test_an_end_token_beyond_the_embeddings_is_refused(good: Path):
    folder = copy(good, Path("model").absolute())
    edit_json(folder / "generation_config.json", eos_token_id=[2, 500])
    with pytest.raises(ParamsError, match="names the end token 500, the model has 264"):
        preflight.check(params(folder))


@pytest.mark.parametrize("special", ["$A </s>", "<s> $A </s>", "<s> $A </s> </s>"])
def test_an_end_token_is_cut_from_a_plain_prompt(good: Path, special: str):
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer(template=None)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=special, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    folder = with_tokenizer(good, tokenizer)
    preflight.check(params(folder))
    policy = Policy.load(folder, weights=False)
    ids = policy.encode_prompt("hi")
    assert 2 not in ids
    assert ids.count(1) == special.count("<s>")
    assert policy.encode_completion("hi") == [*ids[-2:], 2]


def test_one_begin_token_in_a_templates_prompt(good: Path):
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    policy = Policy.load(with_tokenizer(good, tokenizer), weights=False)
    assert policy.encode_prompt("hi").count(1) == 1


def test_no_filler_and_no_template_is_fine_and_no_end_token_is_refused(good: Path):
    folder = with_tokenizer(good, byte_tokenizer(template=None, pad_token=None))
    preflight.check(params(folder))
    assert Policy.load(folder, weights=False).pad_id == 2
    edit_json(folder / "tokenizer_config.json", eos_token=None)
    edit_json(folder / "generation_config.json", eos_token_id=None)
    with pytest.raises(ParamsError, match=r"no end token \(eos_token\)"):
        preflight.check(params(folder))


CONTEXTS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("Llama", {"max_position_embeddings": 96}),
    "GPT2": ("GPT2", {"max_position_embeddings": 96}),
    "OPT": ("OPT", {"max_position_embeddings": 96, "word_embed_proj_dim": 16, "ffn_dim": 16}),
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_prompts_and_answers_beyond_the_context_are_refused(name: str):
    kind, options = CONTEXTS[name]
    folder = write_model(Path("model").absolute(), kind, **options)
    longest = [("what is " + "0 + " * 12 + "1 ?", "1"), *ROWS[1:]]
    with pytest.raises(
        ParamsError,
        match=r"tasks\.sums: its longest prompt has \d+ tokens .*max_new_tokens is 64, .* has 96 pos",
    ):
        preflight.check(params(folder, longest))
    preflight.check(params(folder, task={"max_new_tokens": 60}))


def test_tasks_that_only_a_variant_trains_together_share_the_room_too():
    files = {split: f"{split}.jsonl" for split in ("train", "dev", "test")}
    long = {"kind": "jsonl", "options": files, "max_new_tokens": 16}
    both = {"both": {"phases": {"sums": {"tasks": {"sums": 1.0, "long": 1.0}}}}}
    made = params(None, task={"max_new_tokens": 64}, tasks={"long": long}, variants=both)
    prompts = {"sums": 20, "long": 40}
    with pytest.raises(ParamsError, match=r"tasks\.long: .* 40 tokens and tasks\.sums\.max_new"):
        preflight._check_lengths(made, prompts, 96, "model")
    preflight._check_lengths(made.model_copy(update={"variants": {}}), prompts, 96, "model")


def test_the_room_of_vllm_is_a_bound_too(good: Path):
    rollout = {"backend": "vllm", "max_model_len": 80}
    with pytest.raises(ParamsError, match="has 80 positions"):
        preflight.check(params(good, rollout=rollout))


def test_the_built_in_models_positions_are_compared_too():
    with pytest.raises(ParamsError, match=r"policy\.max_positions has 16 positions"):
        preflight.check(params(None, policy={"max_positions": 16}))
    preflight.check(params(None))


def test_answers_longer_than_their_room_are_refused(good: Path):
    with pytest.raises(ParamsError, match=r"max_new_tokens is 16, a right answer has \d\d tokens"):
        preflight.check(params(good, task={"max_new_tokens": 16}))


BROKEN: dict[str, Callable[[Path], object]] = {
    "a missing weight": lambda f: edit_weights(f, lambda w: dict(list(w.items())[1:])),
    "no weights": lambda f: (f / "model.safetensors").unlink(),
    "packed weights": lambda f: edit_weights(f, lambda w: {k: v.char() for k, v in w.items()}),
    "a missing config": lambda f: (f / "config.json").unlink(),
    "a bad config": lambda f: edit_json(f / "config.json", num_attention_heads=3),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_folders_are_seen_before_a_run(good: Path, name: str):
    BROKEN[name](copy(good, Path("model").absolute()))
    with pytest.raises(ParamsError):
        preflight.check(params(Path("model").absolute()))


def test_a_folder_that_is_not_there_is_refused():
    for path in ("/nowhere", "~/nowhere", "./nowhere"):
        with pytest.raises(ParamsError, match="does not exist"):
            preflight.check(params(Path("x"), policy={"path": path}))


def test_all_families_that_train_pass():
    for kind in ("Qwen2", "GPTNeoX", "Mistral"):
        preflight.check(params(write_model(Path(kind).absolute(), kind)))


def test_rows_of_an_sft_phase_are_tried_on_the_model(good: Path):
    rows = {"kind": "sft", "tasks": {"sums": 1.0}, "steps": 1, "data": "learned.jsonl"}
    checked = params(good, phases={"learned": rows}, orders={"one": ["learned"]})
    Path("learned.jsonl").write_text('{"prompt": "x", "completion": "y"}\n')
    preflight.check(checked)
    Path("learned.jsonl").write_text(json.dumps({"prompt": "x" * 600, "completion": "y"}))
    with pytest.raises(ParamsError, match=r"longest row has 6\d\d tokens, and .* 512 positions"):
        preflight.check(checked)
    Path("learned.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(ParamsError, match=r"learned\.jsonl, line 1: `messages`, or `prompt`"):
        preflight.check(checked)
