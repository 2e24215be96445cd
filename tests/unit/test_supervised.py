"""Phases of `kind: sft`: rows are read as they are or refused, an order may mix them with RL, and a kill changes no byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rl_project import TINY, build_parent

from trainorder import paths, supervised
from trainorder.adapters import base_of, weights_hash
from trainorder.config import LoraConfig, Params, PhaseConfig, TrainingConfig, parse_params
from trainorder.plan import names
from trainorder.plan.check import budget, check
from trainorder.plan.compile import compile_plan
from trainorder.plan.design import from_plan
from trainorder.policy import Policy
from trainorder.reading import ParamsError
from trainorder.resume import Work, working
from trainorder.tasks import load_problems
from trainorder.tasks.leaks import HeldOut

TASK = {"train": 6, "dev": 3, "test": 3, "demonstrations": 5, "max_new_tokens": 48}
PARENT = paths.checkpoint("s0")
PLAIN, LORA = TrainingConfig(), TrainingConfig(lora=LoraConfig(rank=2, alpha=4.0))
ASKED = [("2 + 3 = ?", "5"), ("4 + 4 = ?", "8"), ("1 + 1 = ?", "2")]
FORMS: list[Any] = [
    {"prompt": "2 + 3 = ?", "completion": "5"},
    {"prompt": [{"role": "user", "content": "4 + 4 = ?"}], "completion": [{"role": "assistant", "content": "8"}]},
    {"messages": [{"role": "user", "content": "1 + 1 = ?"}, {"role": "assistant", "content": "2"}], "source": "mine"},
]  # fmt: skip


class Log:
    """Keeps what was logged; stops before line `end`, as a kill would."""

    def __init__(self, end: int = 99) -> None:
        self.end, self.rows = end, list[tuple[int, dict[str, float]]]()

    def log(self, step: int, metrics: Any) -> None:
        if len(self.rows) == self.end:
            raise KeyboardInterrupt
        self.rows.append((step, dict(metrics)))

    def state(self) -> dict[str, Any]:
        return {"rows": len(self.rows)}

    def restore(self, state: dict[str, Any]) -> None:
        pass


def phase(**changes: Any) -> PhaseConfig:
    settings = {"lr": 0.05, "batch_size": 2, "warmup_steps": 0, "micro_batches": 1}
    given = {"kind": "sft", "tasks": {"math": 1.0}, "steps": 40, "data": "rows.jsonl"}
    return PhaseConfig.model_validate({**given, "sft": settings, **changes})


def write(rows: list[Any], file: str = "rows.jsonl") -> None:
    Path(file).write_text("".join(json.dumps(row) + "\n" for row in rows))


def train(out: str, training: TrainingConfig = PLAIN, parent: Path = PARENT, **more: Any) -> Log:
    log = more.pop("log", Log())
    seed = more.pop("seed", 0)
    work = more.pop("work", Work())
    out_of = paths.checkpoint(out)
    supervised.train_phase(
        parent, out_of, "imitate", phase(**more), seed, log, work, training=training
    )
    return log


def params(**changes: Any) -> Params:
    return parse_params(
        {
            "tasks": {"math": TASK},
            "sft": {"gate": {}},
            "phases": {
                "imitate": {
                    "kind": "sft",
                    "tasks": {"math": 1.0},
                    "steps": 8,
                    "data": "rows.jsonl",
                },
                "reward": {"kind": "structured", "tasks": {"math": 1.0}, "steps": 4},
            },
            "orders": {"first": ["imitate", "reward"], "last": ["reward", "imitate"]},
            **changes,
        }
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sft")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        build_parent({"math": TASK}, TINY.model_copy(update={"max_positions": 160}))
    return folder


@pytest.fixture(autouse=True)
def inside(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    write(FORMS)


def test_rows_of_both_forms_are_read_as_the_same_examples():
    found = supervised.read("imitate", phase())
    assert [(row["prompt"], row["completion"]) for row in found] == ASKED
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]
    write([{"messages": [*turns, {"role": "assistant", "content": "b"}]}])
    assert supervised.read("imitate", phase()) == [{"prompt": turns, "completion": "b"}]


def test_bad_rows_are_named_by_file_and_line_in_one_message():
    write([*FORMS, {"prompt": "x"}, {"messages": [{"role": "user", "content": "x"}]}, {"prompt": "x", "completion": " "}, {}])  # fmt: skip
    with pytest.raises(ParamsError) as caught:
        supervised.read("imitate", phase())
    said = str(caught.value)
    assert "\n" not in said
    assert "phases.imitate.data: rows.jsonl, line 4: `messages`, or `prompt` and `completion`, are needed; the row has prompt" in said  # fmt: skip
    assert "line 5: messages: the last one must be the assistant's" in said
    assert said.endswith("line 6: completion: must not be empty; and 1 more rows")
    Path("rows.jsonl").write_text("\n")
    with pytest.raises(ParamsError, match="holds no rows"):
        supervised.read("imitate", phase())
    with pytest.raises(
        ParamsError, match=r"phases\.imitate\.data: no file or folder 'none\.jsonl'"
    ):
        supervised.read("imitate", phase(data="none.jsonl"))


def test_rows_that_ask_a_test_problem_are_refused():
    problem = load_problems("math", "test")[0]
    write([*FORMS, {"prompt": problem.prompt.upper(), "completion": "7"}])
    held = supervised.held_out(["math"])
    with pytest.raises(
        ParamsError, match=rf"1 of 4 rows ask a dev or test problem, the first {problem.id}"
    ):
        supervised.refuse_leaks("imitate", supervised.read("imitate", phase()), held)
    write(FORMS)
    supervised.refuse_leaks("imitate", supervised.read("imitate", phase()), held)


def test_a_problem_that_is_cut_into_turns_or_goes_on_in_the_completion_is_found():
    held = HeldOut()
    held.add(["How deep is the lake? And how wide?"], "lakes/1")
    held.add(["Name a river."], "lakes/2")

    def said(*texts: str, system: str = "s") -> dict[str, Any]:
        roles = ["user", "assistant"] * len(texts)
        chat = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
        return {"messages": [{"role": "system", "content": system}, *chat]}

    hidden = [
        said("How deep is the lake?", "And how wide?"),
        said("Hello.", "How deep is the lake?", "And how wide?", "Very."),
        said("Hello.", "Yes?", "name a RIVER", "Rhine."),
        said("Hello.", "Name a river."),
        {"prompt": "How deep is the lake?", "completion": " and how wide"},
    ]
    for row in hidden:
        write([*FORMS, row])
        with pytest.raises(ParamsError, match="1 of 4 rows ask a dev or test problem"):
            supervised.refuse_leaks("imitate", supervised.read("imitate", phase()), held)
    write([said("How deep is the lake?", "Deep."), {"prompt": "Name a river", "completion": "x"}])
    with pytest.raises(
        ParamsError, match="1 of 2 rows ask a dev or test problem, the first lakes/2"
    ):
        supervised.refuse_leaks("imitate", supervised.read("imitate", phase()), held)


@pytest.mark.parametrize("training", [PLAIN, LORA], ids=["whole", "adapters"])
def test_training_lowers_the_loss_and_a_killed_phase_ends_in_the_same_bytes(
    training: TrainingConfig, tmp_path: Path
):
    log = train("whole", training)
    losses = [row["sft/loss"] for _, row in log.rows]
    drop = 0.5 if training is PLAIN else 0.03  # adapters leave the random head as it is
    assert losses[-1] < losses[0] - drop < 4.1  # log 60, if all words are alike
    first = weights_hash(paths.checkpoint("whole"))
    depends = training.model_dump()
    with pytest.raises(KeyboardInterrupt), working("killed", depends, 0.0) as work:
        train("killed", training, log=Log(end=2), work=work)
    with working("killed", depends, 0.0) as work:
        assert work.latest("sft") is not None
        train("killed", training, work=work)
    assert weights_hash(paths.checkpoint("killed")) == first
    train("other", training, seed=1)
    assert weights_hash(paths.checkpoint("other")) != first
    if training is LORA:
        assert base_of(paths.checkpoint("whole")) == PARENT
        train("child", training, parent=paths.checkpoint("whole"))
        assert base_of(paths.checkpoint("child")) == PARENT
        own, parents = (
            Policy.load(paths.checkpoint(n)).model.state_dict() for n in ("child", "whole")
        )
        assert any(not torch.equal(own[name], parents[name]) for name in own)


def test_only_the_answer_is_learned():
    from trainorder.sft.lines import demonstration_lines

    policy = Policy.load(PARENT)
    rows = supervised.read("imitate", phase())
    weight = phase().supervised.settings(1).prompt_weight
    for line, row in zip(demonstration_lines(policy, rows, weight), rows, strict=True):
        answer = policy.encode_completion(row["completion"])
        assert line.weights == [0.0] * (len(line.ids) - len(answer)) + [1.0] * len(answer)


def test_orders_over_both_kinds_are_planned_and_their_budgets_compared_by_kind():
    check(params())
    plan = compile_plan(params())
    stages, imitate = plan.stages(), names.training("s0--imitate")
    assert stages[imitate]["cmd"].startswith("python -m stages.sft_phase --node s0--imitate")
    assert stages[imitate]["deps"][-3:] == ["checkpoints/base", "rows.jsonl", "data/tasks"]
    assert stages[names.training("s0--reward--imitate")]["deps"][-3] == "checkpoints/s0--reward"
    design = from_plan(plan.data())["default"]
    assert design.order_phases["last"] == ("reward", "imitate")
    assert budget(params(), ["imitate"]) == {
        "updates": 0,
        "rollouts": 0,
        "supervised updates": 8,
        "rows": 128,
    }
    with pytest.raises(ParamsError, match=r"differ in budget: .*supervised updates 8 and 0"):
        check(params(orders={"first": ["imitate", "reward"], "last": ["reward"]}))


def test_rl_settings_change_nothing_of_an_sft_phase_nor_its_settings_of_an_rl_phase():
    before, after = (
        compile_plan(p).settings()["phases"] for p in (params(), params(rl={"lr": 1e-6}))
    )
    assert before["imitate"] == after["imitate"]
    assert before["reward"] != after["reward"]
    assert not {"data", "sft"} & before["reward"].keys()
    code = compile_plan(params()).code()
    assert code["phase_imitate"].module == "stages.sft_phase"
    assert not code["phase_imitate"].pieces


def test_settings_that_belong_to_the_other_kind_are_refused():
    wrong: dict[str, dict[str, Any]] = {
        "`kind: sft` learns rows: name a file by data": {"kind": "sft", "data": None},
        "`data` and `sft` are of `kind: sft`, and this is structured": {"kind": "structured"},
        r"rl: `kind: sft` makes no RL updates": {"kind": "sft", "rl": {"lr": 1e-5}},
        "lies where a run removes and writes files": {"kind": "sft", "data": "data/tasks/math/train.jsonl"},
    }  # fmt: skip
    for message, changes in wrong.items():
        given = {"tasks": {"math": 1.0}, "steps": 8, "data": "rows.jsonl", **changes}
        with pytest.raises(ParamsError, match=message):
            check(params(phases={"imitate": given}, orders={"one": ["imitate"]}))
