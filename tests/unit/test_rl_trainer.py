"""A phase of RL on a tiny random policy: it learns what is paid, and repeats to the byte."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rl_project import PARENT, build_parent, says_seven

from trainorder.adapters import weights_hash
from trainorder.config import PhaseConfig, RlConfig
from trainorder.policy import Policy
from trainorder.reading import ParamsError
from trainorder.resume import Work
from trainorder.rl import trainer
from trainorder.rl.guard import NonFiniteError
from trainorder.rl.learner import Learner
from trainorder.rl.method import Bound
from trainorder.rl.registry import REWARDS, Entry
from trainorder.rl.step import rl_step
from trainorder.rl.trainer import make_learner, train_phase
from trainorder.rl.types import Roll, State
from trainorder.streams import stream
from trainorder.tasks import load_problems

TASK = {"train": 6, "dev": 2, "test": 2, "demonstrations": 5, "max_new_tokens": 48}
LEARNING = ["says_seven"]
"""A random policy never solves a problem; it can learn to say 7."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rl")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        build_parent({"math": TASK, "qa": TASK})
    return folder


@pytest.fixture(autouse=True)
def inside(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(built)


def settings(*, method: dict[str, Any] | None = None, **changes: Any) -> RlConfig:
    method = {"reward": LEARNING, **(method or {})}
    small = {"prompts_per_step": 4, "group_size": 4, "lr": 0.02, "warmup_steps": 0}
    return RlConfig.model_validate({**small, **changes, "method": method})


class Lines:
    """A tracker that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []

    def log(self, step: int, metrics: dict[str, float]) -> None:
        assert step == len(self.lines)
        self.lines.append(metrics)


def train(
    name: str, steps: int, rl: RlConfig, tasks: dict[str, float] | None = None, *, seed: int = 0
) -> tuple[list[dict[str, float]], dict[str, Any]]:
    phase = PhaseConfig(kind="structured", tasks=tasks or {"math": 1.0}, steps=steps)
    tracker = Lines()
    summary = train_phase(PARENT, Path("checkpoints") / name, "math", phase, rl, seed, tracker)
    return tracker.lines, summary


def test_what_is_paid_becomes_more_frequent():
    lines, summary = train("learns", 12, settings(group_size=8, lr=0.03))
    first, last = (sum(line["rollout/reward"] for line in lines[i : i + 3]) for i in (0, 9))
    assert last > 3 * first
    assert summary["steps"] == 12
    assert summary["tokens"] == sum(line["rollout/tokens"] for line in lines)
    assert summary["last"] == lines[-1]


@pytest.mark.parametrize(
    "rl",
    [
        settings(),
        settings(
            updates_per_batch=2,
            temperature=0.8,
            method={
                "edit": [{"dynamic_sampling": {"max_rounds": 2}}],
                "terms": ["clipped_surrogate", {"kl": {"coef": 0.1}}],
            },
        ),
        settings(sampler={"sec": {"alpha": 0.5}}, curriculum="unlock", serial_tasks=True),
    ],
    ids=["default", "every hook", "online and serial"],
)
def test_same_arguments_same_bytes_on_any_number_of_threads(rl: RlConfig):
    rl = rl.model_copy(update={"micro_batch_tokens": 256})  # several at a time
    torch.manual_seed(1)
    train("one", 3, rl, {"math": 1, "qa": 1})
    torch.manual_seed(2)  # nothing is drawn from the global generator
    train("two", 3, rl.model_copy(update={"threads": 3}), {"math": 1, "qa": 1})
    files = [
        {f.name: f.read_bytes() for f in Path("checkpoints", n).iterdir()} for n in ("one", "two")
    ]
    assert files[0] == files[1]
    assert weights_hash("checkpoints/one") != weights_hash(PARENT)


def test_the_order_of_problems_is_logged_as_they_were_drawn():
    # dynamic sampling draws again in place of flat groups, and CurES gives each problem answers of its own
    allocates = {"plan": ["cures_allocation"], "edit": [{"dynamic_sampling": {"max_rounds": 2}}]}
    lines, summary = train("ordered", 3, settings(method=allocates), {"math": 1, "qa": 9}, seed=5)
    order = summary["order"]
    assert [row["step"] for row in order] == [0, 1, 2]
    for row, line in zip(order, lines, strict=True):
        count = sum(value for name, value in line.items() if name.endswith("/drawn"))
        assert len(row["problems"]) == count
        answers = (
            row["answers"] if isinstance(row["answers"], list) else [row["answers"]] * int(count)
        )
        assert sum(answers[:4]) == 16  # of the first round
        assert line.keys() >= {"task/math/drawn", "task/qa/drawn"}  # 0 of math in most steps
    assert max(len(row["problems"]) for row in order) > 4
    for task, size in (("math", TASK["train"]), ("qa", TASK["train"])):
        dealt = [stream("problems", 5, task, n).sample(range(size), size) for n in range(9)]
        ids = [problem.id for problem in load_problems(task, "train")]
        expected = [ids[i] for epoch in dealt for i in epoch]
        drawn = [p for row in order for p in row["problems"] if p.startswith(f"{task}/")]
        assert drawn == expected[: len(drawn)]


def test_a_serial_step_makes_one_update_per_task_and_leaves_other_weights_than_one_for_all():
    phase = PhaseConfig(kind="structured", tasks={"math": 1.0, "qa": 1.0}, steps=1)
    made = []
    for serial in (True, False):
        learner = make_learner(PARENT, "math", phase, settings(serial_tasks=serial), 0)
        rl_step(learner, State(total=1))
        updates = {int(state["step"]) for state in learner.backend.optimizer.state.values()}
        made.append((updates, learner.policy.model.lm_head.weight.detach().clone()))
    assert [updates for updates, _ in made] == [{2}, {1}]
    assert not torch.equal(made[0][1], made[1][1])


def test_a_phase_that_is_cut_and_read_back_goes_on_with_the_same_prompts():
    phase = PhaseConfig(kind="structured", tasks={"math": 1.0, "qa": 1.0}, steps=6)
    rl = settings(sampler={"sec": {"alpha": 0.5, "temperature": 0.1}}, curriculum="refresh")
    learner, state = make_learner(PARENT, "math", phase, rl, 0), State(total=6)
    for _ in range(3):
        rl_step(learner, state)
    restored = State.from_state_dict(json.loads(json.dumps(state.state_dict())))
    asked = [learner.task_set.share(8, s, 0, "math") for s in (state, restored)]
    assert asked[0] == asked[1]
    assert state.mem == restored.mem


def test_a_second_phase_begins_with_what_the_first_knew_of_problems_if_it_is_asked_to():
    _, _ = train("first", 2, settings(items="cures"))
    text = Path("checkpoints/first/problems.json").read_text()
    known = json.loads(text)["math"]
    assert sum(own["visits"] for own in known.values()) == 2 * settings().prompts_per_step
    phase = PhaseConfig(kind="structured", tasks={"math": 1.0}, steps=1)
    for inherit in (True, False):
        rl = settings(items="cures", inherit_items=inherit)
        train_phase(
            Path("checkpoints/first"), Path("checkpoints/next"), "math", phase, rl, 0, Lines()
        )
        later = json.loads(Path("checkpoints/next/problems.json").read_text())["math"]
        visits = sum(own["visits"] for own in later.values())
        assert visits == (3 if inherit else 1) * settings().prompts_per_step
    train_phase(
        Path("checkpoints/first"), Path("checkpoints/next"), "math", phase, settings(), 0, Lines()
    )
    assert not Path("checkpoints/next/problems.json").exists()


def test_tokens_of_refilled_groups_are_counted():
    # a random policy solves nothing: all groups are flat and are drawn again, two times
    method = {"reward": ["graded"], "edit": [{"dynamic_sampling": {"max_rounds": 3}}]}
    plain, _ = train("plain", 1, settings(method={"reward": ["graded"]}))
    refilled, _ = train("refilled", 1, settings(method=method))
    assert plain[0]["rollout/flat_groups"] == refilled[0]["rollout/flat_groups"] == 1
    assert refilled[0]["rollout/tokens"] > 2 * plain[0]["rollout/tokens"]


def frozen_on_one_problem(phase_name: str = "math", seed: int = 0) -> Learner:
    """Steps of this learner differ in their noise only: one problem, and updates too small to matter."""
    phase = PhaseConfig(kind="structured", tasks={"math": 1.0}, steps=2)
    learner = make_learner(PARENT, phase_name, phase, settings(lr=1e-12), seed)
    problems = {"math": learner.task_set.problems["math"][:1]}
    return replace(learner, task_set=replace(learner.task_set, problems=problems))


def test_rollout_noise_is_keyed_by_seed_phase_and_step():
    learner, state = frozen_on_one_problem(), State(total=2)
    entropies = [rl_step(learner, state)["rollout/entropy"] for _ in range(2)]
    entropies += [
        rl_step(frozen_on_one_problem(phase_name, seed), State(total=2))["rollout/entropy"]
        for phase_name, seed in (("math", 0), ("other", 0), ("math", 1))
    ]
    assert entropies[0] == entropies[2]
    assert len(set(entropies)) == 4


def test_refilled_groups_are_not_mixed_up_with_the_first():
    seen: list[set[int]] = []

    def look(roll: Roll, state: State, refill: Any) -> Roll:
        seen.extend(
            {int(g) for g in r.group}
            for r in (roll, *(refill.sample(refill.requests({"math": n})) for n in (2, 1)))
        )
        return roll

    learner = frozen_on_one_problem()
    method = replace(learner.method, edit=(Bound(Entry("edit", "look", look), {}),))
    rl_step(replace(learner, method=method), State(total=1))
    assert seen == [{0, 1, 2, 3}, {4, 5}, {6}]


def test_the_learning_rate_warms_up_over_updates_not_steps():
    # updates at 1/4, 2/4 | 3/4, 1 | 1, 1 of the rate: logged is the mean of a step
    lines, _ = train("warm", 3, settings(updates_per_batch=2, warmup_steps=4, lr=0.008))
    assert [line["rl/lr"] for line in lines] == pytest.approx([0.003, 0.007, 0.008])


def test_the_learning_rate_falls_on_a_line_to_its_end():
    lines, _ = train("falls", 3, settings(lr=0.008, lr_end=0.25))
    assert [line["rl/lr"] for line in lines] == pytest.approx([0.008, 0.005, 0.002])


class Kept(Lines):
    """A tracker that goes on with its lines."""

    def state(self) -> dict[str, Any]:
        return {"lines": self.lines}

    def restore(self, state: dict[str, Any]) -> None:
        self.lines = state["lines"]


class Cut(Kept):
    """A tracker whose process ends in the fourth step."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        super().log(step, metrics)
        if step == 3:
            raise KeyboardInterrupt


def test_the_node_is_the_average_of_its_last_steps_also_after_a_kill(tmp_path: Path):
    def weights(name: str) -> torch.Tensor:
        return Policy.load(Path("checkpoints", name)).model.model.embed_tokens.weight.detach()

    # steps draw alike in a phase of any length, so nodes of 2, 3 and 4 steps are the weights after these
    for count in (2, 3, 4):
        train(f"of{count}", count, settings())
    two, three, four = map(weights, ("of2", "of3", "of4"))
    rl = settings(average={"last": 3})
    train("mean", 4, rl)
    torch.testing.assert_close(weights("mean"), (two + three + four) / 3)
    train("ema", 4, settings(average={"last": 3, "kind": "ema", "alpha": 0.25}))
    torch.testing.assert_close(weights("ema"), 0.25 * four + 0.75 * (0.25 * three + 0.75 * two))

    phase = PhaseConfig(kind="structured", tasks={"math": 1.0}, steps=4)
    out = Path("checkpoints/resumed")
    with pytest.raises(KeyboardInterrupt):
        train_phase(PARENT, out, "math", phase, rl, 0, Cut(), Work(tmp_path, 0.0))
    train_phase(PARENT, out, "math", phase, rl, 0, Kept(), Work(tmp_path, 0.0))
    assert weights_hash(out) == weights_hash("checkpoints/mean")


def only(keep: int) -> Any:
    """An edit that keeps the first groups of a step: 0, 1, ... of them."""

    def edit(roll: Roll, state: State, refill: Any) -> Roll:
        return roll.rows((roll.group < keep).nonzero().flatten().tolist())

    return Bound(Entry("edit", "only", edit), {})


@pytest.mark.parametrize("serial", [False, True])
@pytest.mark.parametrize("kept", [0, 1, 3])
def test_a_step_of_fewer_groups_than_updates_makes_no_empty_update(kept: int, serial: bool):
    # the four prompts of a step are two of each task, tasks in turn
    rl = settings(updates_per_batch=4, serial_tasks=serial, method={"terms": ["kl"]})
    phase = PhaseConfig(kind="structured", tasks={"math": 1.0, "qa": 1.0}, steps=2)
    learner, state = make_learner(PARENT, "math", phase, rl, 0), State(total=2)
    learner = replace(learner, method=replace(learner.method, edit=(only(kept),)))
    line = rl_step(learner, state)
    updates = {0: 0, 1: 1, 3: 2 if serial else 3}[kept]
    assert state.updates == updates
    assert {int(s["step"]) for s in learner.backend.optimizer.state.values()} == (
        {updates} if updates else set()
    )
    assert ("rl/lr" in line) == (updates > 0)


@dataclass(frozen=True)
class Judged:
    """A task whose answers a judge grades; its definition is not asked."""

    rewarded_by: str = "judge"


class Hesitant:
    """A judge who finds all answers alike, but for noise in the fourth digit."""

    def win_probability(self, prompts: Any, answers: Any, references: Any) -> list[float]:
        return [0.9999 + 0.00001 * (len(answer) % 3) for answer in answers]


@pytest.mark.parametrize(("changes", "credited"), [({}, 0.0), ({"min_judged_spread": 0.0}, 1.0)])
def test_noise_of_a_judge_is_no_credit(changes: dict[str, float], credited: float):
    phase = PhaseConfig(kind="creative", tasks={"math": 1.0}, steps=1)
    rl = settings(method={"reward": ["graded"]}, **changes)
    learner = make_learner(PARENT, "math", phase, rl, 0)
    task_set = replace(learner.task_set, tasks={"math": Judged()}, judges={"math": Hesitant()})
    line = rl_step(replace(learner, task_set=task_set), State(total=1))
    assert (line["rl/credited"] > 0.5) == (credited > 0.5)
    assert (line["rl/grad_norm"] > 0) == (credited > 0)
    assert line["rollout/reward"] == pytest.approx(0.9999, abs=1e-4)


def test_dynamic_sampling_that_drops_groups_goes_with_several_updates():
    # groups of two: in these steps some have equal rewards and are dropped, and fewer than four are left
    rl = settings(
        group_size=2,
        updates_per_batch=4,
        method={"edit": [{"dynamic_sampling": {"max_rounds": 1}}]},
    )
    lines, _ = train("dropping", 4, rl)
    assert any(0 < line["rollout/flat_groups"] < 1 for line in lines)
    assert all(math.isfinite(line["rl/grad_norm"]) for line in lines)


def test_the_learning_rate_counts_updates_when_the_parts_of_a_step_vary():
    # an edit leaves one of two tasks in every other step: one part, then two
    rl = settings(serial_tasks=True, warmup_steps=10, lr=0.1, prompts_per_step=2)
    phase = PhaseConfig(kind="structured", tasks={"math": 1.0, "qa": 1.0}, steps=6)
    learner, state = make_learner(PARENT, "math", phase, rl, 0), State(total=6)
    rates = list[float]()
    for step in range(6):
        edit = () if step % 2 else (only(1),)
        one = replace(learner, method=replace(learner.method, edit=edit))
        rates.append(rl_step(one, state)["rl/lr"])
        state = State.from_state_dict(json.loads(json.dumps(state.state_dict())))
    assert rates == pytest.approx([0.01, 0.025, 0.04, 0.055, 0.07, 0.085])


def test_micro_batches_change_the_result_by_rounding_only():
    for budget in (64, 8192):
        train(f"budget{budget}", 1, settings(micro_batch_tokens=budget))
    small, large = (
        Policy.load(Path(f"checkpoints/budget{b}")).model.state_dict() for b in (64, 8192)
    )
    for name, weight in small.items():
        # AdamW's first update is lr * sign(gradient): where that is all rounding, it may turn
        close = (weight - large[name]).abs() < 1e-4
        assert close.float().mean() > 0.99, name


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_sampled_log_probabilities_are_those_of_the_trainer(temperature):
    lines, _ = train("mismatch", 1, settings(temperature=temperature))
    assert 0 <= lines[0]["rl/kl_old"] < 1e-9
    assert lines[0]["rl/clip_fraction"] == 0


def test_several_updates_per_batch_leave_the_old_policy_and_stay_finite():
    rl = settings(updates_per_batch=4, lr=0.05, max_grad_norm=100.0)
    lines, _ = train("several", 2, rl)
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert lines[0]["rl/kl_old"] > 1e-3
    assert lines[0]["rl/clip_fraction"] > 0


def test_the_last_step_says_how_far_the_policy_has_come_from_its_parent(
    monkeypatch: pytest.MonkeyPatch,
):
    phase = PhaseConfig(kind="structured", tasks={"math": 1.0}, steps=3)
    learner, state = make_learner(PARENT, "math", phase, settings(), 0), State(total=3)
    lines = [rl_step(learner, state) for _ in range(3)]
    assert ["rollout/kl" in line for line in lines] == [False, False, True]
    # by sampling: of the policy that answers at that step, E[ln p - ln p_parent] > 0
    assert 1e-4 < lines[2]["rollout/kl"] < 5
    still = make_learner(PARENT, "math", phase, settings(), 0)  # the policy of step 0 is the parent
    assert rl_step(still, State(total=1))["rollout/kl"] == pytest.approx(0, abs=1e-7)
    monkeypatch.setattr(trainer, "PARENT_BYTES", 0)
    assert not make_learner(
        PARENT, "math", phase, settings(), 0
    ).models  # a large model has no copy


def test_the_reference_is_the_parent_and_stays_so():
    # the policy of step 0 is the parent, so its KL loss is 0; another policy's is not
    rl = settings(
        method={"terms": [{"clipped_surrogate": {"coef": 0.0}}, "kl"], "advantage": ["dr_grpo"]}
    )
    phase = PhaseConfig(kind="structured", tasks={"math": 1.0}, steps=2)
    learner = make_learner(PARENT, "math", phase, rl, 0)
    state = State(total=2)
    before = [p.clone() for p in learner.models["reference"].parameters()]
    assert rl_step(learner, state)["rl/loss"] == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        for parameter in learner.policy.model.parameters():
            parameter.mul_(1.5)
    assert rl_step(learner, state)["rl/loss"] > 1e-3
    for then, now in zip(before, learner.models["reference"].parameters(), strict=True):
        assert torch.equal(then, now)


def test_every_step_logs_what_the_report_reads():
    lines, _ = train("names", 1, settings(), {"math": 1, "qa": 1})
    expected = {
        "rollout/reward",
        "rollout/length",
        "rollout/entropy",
        "rollout/flat_groups",
        "rl/loss",
    }
    expected |= {"rl/grad_norm", "rl/lr", "rl/clip_fraction", "rl/kl_old"}
    for task in ("math", "qa"):
        expected |= {f"task/{task}/reward", f"task/{task}/unscored"}
        expected |= {f"task/{task}/{part}" for part in ("entropy", "length")}
    expected |= {f"perf/{part}_seconds" for part in ("generate", "grade", "train", "step")}
    expected |= {f"perf/{part}_gflops" for part in ("generate", "train")}
    assert expected | {"perf/tokens_per_second", "perf/share_of_peak"} <= lines[0].keys()
    # prompts once per group, answers without their last token: never more than was sampled and read
    assert 0 < lines[0]["rl/forward_tokens"] <= lines[0]["rollout/tokens"] + 8 * 30
    # half the rows each, so the mean of the means is the mean
    means = [lines[0][f"task/{task}/reward"] for task in ("math", "qa")]
    assert lines[0]["rollout/reward"] == pytest.approx(sum(means) / 2)


def test_a_phase_keeps_answers_of_five_steps_to_be_read_without_repeating_a_prompt():
    phase = PhaseConfig(kind="structured", tasks={"math": 1.0}, steps=9)
    learner, state = make_learner(PARENT, "math", phase, settings(), 0), State(total=9)
    for _ in range(9):
        rl_step(learner, state)
    kept, each = state.mem["rollouts"], min(4, settings().prompts_per_step)
    assert [row["step"] for row in kept] == [step for step in (0, 2, 4, 6, 8) for _ in range(each)]
    for step in (0, 8):
        own = [row["problem"] for row in kept if row["step"] == step]
        assert len(set(own)) == each
    assert {type(row["reward"]) for row in kept} <= {float, type(None)}
    assert all(row["tokens"] > 0 and row["prompt"] for row in kept)


def test_nothing_but_state_and_weights_carries_over_between_steps():
    phase = PhaseConfig(kind="structured", tasks={"math": 1.0}, steps=4)
    through, resumed = (make_learner(PARENT, "math", phase, settings(), 0) for _ in range(2))
    state = State(total=4)
    expected = [rl_step(through, state)["rl/loss"] for _ in range(4)]
    state = State(total=4)
    losses = []
    for _ in range(4):
        losses.append(rl_step(resumed, state)["rl/loss"])
        state = State.from_state_dict(json.loads(json.dumps(state.state_dict())))
    assert losses == expected
    assert state.step == 4


def test_more_updates_than_prompts_is_refused():
    with pytest.raises(ParamsError, match=r"updates_per_batch is 5, but a step has only 4 prompts"):
        train("refused", 1, settings(updates_per_batch=5))


def test_a_gradient_that_is_not_finite_stops_the_phase_and_saves_nothing(monkeypatch):
    broken = Entry("reward", "says_seven", lambda roll, state: says_seven(roll, state) * torch.nan)
    monkeypatch.setitem(REWARDS, "says_seven", broken)
    with pytest.raises(
        NonFiniteError, match=r"not finite at step 0 of phase 'math': the update was refused"
    ):
        train("broken", 1, settings())
    assert not Path("checkpoints/broken").exists()


def test_a_trace_of_some_steps_is_written_if_asked_for_and_changes_nothing(tmp_path, monkeypatch):
    plain, _ = train("untraced", 4, settings())
    monkeypatch.setenv("TRAINORDER_TRACE", str(tmp_path / "traces"))
    traced, _ = train("traced", 4, settings())
    assert [line["rl/loss"] for line in traced] == [line["rl/loss"] for line in plain]
    (file,) = (tmp_path / "traces").glob("*.json")
    names = {event.get("name") for event in json.loads(file.read_text())["traceEvents"]}
    assert "aten::mm" in names
