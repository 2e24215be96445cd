"""Updates that are not finite are refused whole; training that drifts off is said."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rl_project import PARENT, build_parent

from trainorder.config import AlarmConfig, PhaseConfig, RlConfig, TrainingConfig
from trainorder.policy import Policy
from trainorder.rl.guard import NonFiniteError, watch
from trainorder.rl.learner import Learner
from trainorder.rl.registry import REWARDS, TERMS, Entry
from trainorder.rl.replay import replay
from trainorder.rl.step import rl_step
from trainorder.rl.trainer import make_learner
from trainorder.rl.types import Live, Roll, State

TASK = {"train": 6, "dev": 2, "test": 2, "demonstrations": 5, "max_new_tokens": 48}


def lucky(roll: Roll, state: State) -> torch.Tensor:
    """Pays half the rows, so that there is something to learn."""
    return (torch.arange(len(roll)) % 2).double()


def poisoned(live: Live, roll: Roll, state: State) -> torch.Tensor:
    """A loss that is not finite in the last row of every second step."""
    bad = torch.zeros_like(live.logps)
    if state.step % 2 == 1:
        bad[-1] = math.inf
    return live.logps * roll.advantages + bad


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guard")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        build_parent({"math": TASK})
    return folder


@pytest.fixture(autouse=True)
def inside(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(built)
    monkeypatch.setitem(REWARDS, "lucky", Entry("reward", "lucky", lucky))
    monkeypatch.setitem(TERMS, "poisoned", Entry("term", "poisoned", poisoned))


def learner(dumps: Path | None = None, term: str = "poisoned", **changes: Any) -> Learner:
    method = {"reward": ["lucky"], "advantage": ["dr_grpo"], "terms": [term]}
    small = {"prompts_per_step": 2, "group_size": 4, "method": method, **changes}
    phase = PhaseConfig(kind="structured", tasks={"math": 1.0}, steps=4)
    made = make_learner(PARENT, "math", phase, RlConfig.model_validate(small), 0)
    return replace(made, dumps=dumps)


def weights(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in learner.tensors().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_a_refused_update_touches_nothing_and_stops_the_phase(tmp_path: Path):
    made, state = learner(tmp_path), State(total=4)
    rl_step(made, state)
    before = weights(made)
    with pytest.raises(NonFiniteError, match=r"loss not finite at step 1 of phase 'math'"):
        rl_step(made, state)
    assert equal(weights(made), before)


def test_skip_leaves_the_update_out_and_goes_on(tmp_path: Path):
    made, state = learner(tmp_path, on_nonfinite="skip"), State(total=4)
    logs, states = [], [weights(made)]
    for _ in range(4):
        logs.append(rl_step(made, state))
        states.append(weights(made))
    assert [log.get("rl/refused", 0) for log in logs] == [0, 1, 0, 1]
    assert [equal(a, b) for a, b in itertools.pairwise(states)] == [False, True, False, True]
    assert all(value.isfinite().all() for value in states[-1].values())
    assert state.mem["refused"] == 2


def test_skipping_everything_stops_too(tmp_path: Path, monkeypatch):
    always = Entry("term", "poisoned", lambda live, roll, state: live.logps * math.nan)
    monkeypatch.setitem(TERMS, "poisoned", always)
    made, state = learner(tmp_path, on_nonfinite="skip"), State(total=20)
    for _ in range(9):
        rl_step(made, state)
    with pytest.raises(NonFiniteError, match="the 10th in a row"):
        rl_step(made, state)
    assert len(list(tmp_path.iterdir())) == 3  # the newest dumps; they are as large as checkpoints


def test_a_log_probability_that_is_not_finite_is_found_though_the_loss_is_finite(tmp_path: Path):
    made, state = learner(tmp_path, term="clipped_surrogate"), State(total=4)
    engine = made.engine

    class Broken:
        """The engine, reporting one log-probability as -inf at a token that ends up with ratio 1."""

        push = engine.push

        def generate(self, requests: Any) -> Any:
            done = engine.generate(requests)
            done.entropies[0, 0] = math.nan
            return done

    with pytest.raises(NonFiniteError, match=r"^entropy not finite"):
        rl_step(replace(made, engine=Broken()), state)


def test_what_is_logged_is_the_mean_over_the_updates_that_were_applied(tmp_path: Path, monkeypatch):
    # of two updates the one with rows of group 1 is refused
    def half(live: Live, roll: Roll, state: State) -> torch.Tensor:
        return live.logps * roll.advantages + torch.where(roll.group[:, None] == 1, math.inf, 0.0)

    monkeypatch.setitem(TERMS, "poisoned", Entry("term", "poisoned", half))
    made = learner(tmp_path, on_nonfinite="skip", updates_per_batch=2, lr=0.01, warmup_steps=0)
    state = State(total=4)
    line = rl_step(made, state)
    assert (line["rl/refused"], state.updates, line["rl/lr"]) == (1, 1, 0.01)


def test_a_dump_of_adapters_computes_the_same_again(tmp_path: Path):
    # the loss is infinite in the last row, in the second step: the adapters are no longer zero
    phase = PhaseConfig(kind="structured", tasks={"math": 1.0}, steps=4)
    method = {"reward": ["lucky"], "advantage": ["dr_grpo"], "terms": ["poisoned"]}
    rl = {"prompts_per_step": 2, "group_size": 4, "method": method, "on_nonfinite": "skip"}
    rl |= {"lr": 0.05, "warmup_steps": 0}
    training = TrainingConfig.model_validate({"lora": {"rank": 2}})
    made = make_learner(PARENT, "math", phase, RlConfig.model_validate(rl), 0, training=training)
    made, state = replace(made, dumps=tmp_path), State(total=4)
    for _ in range(2):
        rl_step(made, state)
    (place,) = tmp_path.iterdir()
    dumped, parent = (
        Policy.load(p).model.state_dict() for p in (place / "policy", Path.cwd() / PARENT)
    )
    for name, weight in made.backend.weights():
        torch.testing.assert_close(dumped[name], weight, msg=name)
    assert not all(torch.equal(parent[name], weight) for name, weight in dumped.items())
    # a row alone is the last one, so each is named
    found = replay(place)
    assert found == {"not_finite": ["loss"], "again": ["loss"], "rows": list(range(8))}


@pytest.mark.long("replays in a process of its own")
def test_a_dump_computes_the_same_again_and_names_the_rows(tmp_path: Path, capsys):
    # weights of inf in the head: every row's loss is nan, whatever the piece
    made, state = learner(tmp_path, term="clipped_surrogate", on_nonfinite="skip"), State(total=4)
    made.policy.model.get_output_embeddings().weight.data[5] = math.inf
    rl_step(made, state)
    (place,) = tmp_path.iterdir()
    found = replay(place)
    assert "loss" in found["not_finite"]  # which stops before a gradient is looked at
    assert set(found["again"]) == {*found["not_finite"], "grad_norm"}
    assert found["rows"]
    assert f"trainorder.rl.replay {place}" in capsys.readouterr().out
    nothing = [sys.executable, "-m", "trainorder.rl.replay", str(tmp_path)]
    done = subprocess.run(
        nothing, cwd=Path(__file__).parents[2], text=True, capture_output=True, check=False
    )
    assert (done.returncode, "holds no dump" in done.stderr) == (2, True)


STEADY = {"rollout/entropy": 1.0, "rollout/length": 10.0, "rl/grad_norm": 1.0, "rl/kl_old": 0.0}
STEADY |= {"rollout/unscored": 0.0, "rl/credited": 0.01}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("entropy", {"rollout/entropy": 0.05}),
        ("kl", {"rl/kl_old": 0.6}),
        ("length", {"rollout/length": 31.0}),
        ("length", {"rollout/length": 3.0}),
        ("unscored", {"rollout/unscored": 5.0}),
        ("grad_norm", {"rl/grad_norm": 101.0}),
        ("credited", {"rl/credited": 0.0}),
    ],
)
def test_an_alarm_sounds_after_its_patience_and_no_other_does(name: str, change: dict[str, float]):
    state, config = State(total=20), AlarmConfig(patience=3)

    def step(metrics: dict[str, float]) -> set[str]:
        state.step += 1
        return {key for key, value in watch(metrics, state, config, rows=16).items() if value}

    for _ in range(6):
        assert step(STEADY) == set()
    # a step whose answers are all a teacher's has no entropy and no length of the policy's
    assert [step({"rl/credited": 0.01}) for _ in range(4)] == [set()] * 4
    said = [step(STEADY | change) for _ in range(4)]
    assert said == [set(), set(), {f"alarm/{name}"}, {f"alarm/{name}"}]
    assert step(STEADY) == set()
    assert state.mem["alarms"].keys() == {name}
    assert (state.mem["alarms"][name]["first_step"], state.mem["alarms"][name]["steps"]) == (12, 2)


def test_a_refused_update_is_an_alarm_at_once():
    state = State(total=2, step=1)
    assert (
        watch(STEADY | {"rl/refused": 1.0}, state, AlarmConfig(), rows=16)["alarm/nonfinite"] == 1
    )
