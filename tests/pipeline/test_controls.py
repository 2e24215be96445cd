"""Controls on real training (configs/controls.yaml): a planted conflict costs its victim, a planted twin costs nothing."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from trainorder import paths
from trainorder.config import EvaluationConfig, Params, load_params
from trainorder.data import build
from trainorder.evaluation import built_exams, examine
from trainorder.policy import Policy
from trainorder.rl.trainer import train_phase
from trainorder.sft import warm_up

pytestmark = pytest.mark.long("trains until planted effects are larger than their noise")
ROOT = Path(__file__).parents[2]


class Silent:
    """No records: only the checkpoints matter here."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        pass


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory) -> Params:
    """The shipped params; the working directory holds their data and base."""
    found = load_params(ROOT / "configs" / "controls.yaml")
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("controls"))
        build(found)
        warm_up(paths.checkpoint("s0"), found, 0, Silent())
        yield found


@pytest.fixture(scope="module")
def scores(params: Params):
    """Order -> task -> score per problem, dev and test together."""

    @cache
    def grown(order: tuple[str, ...]) -> Path:
        out = paths.checkpoint("--".join(("s0", *order)))
        if order:
            phase = params.phases[order[-1]]
            rl = params.phase_rl(order[-1])
            train_phase(grown(order[:-1]), out, order[-1], phase, rl, 0, Silent())
        return out

    @cache
    def found(*order: str) -> dict[str, np.ndarray]:
        exams = [exam for exam in built_exams() if exam.name in params.phases]
        values: dict[str, list[float]] = {}
        for one in examine(Policy.load(grown(order)), exams, {}, EvaluationConfig()):
            values.setdefault(one.exam.name, []).extend(one.single["score"])
        return {task: np.array(each) for task, each in values.items()}

    return found


def standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def test_tasks_that_want_opposite_formats_cost_each_other(scores):
    for trained, victim in (("answer", "reason"), ("reason", "answer")):
        gain = scores(trained)[trained] - scores()[trained]
        harm = scores(trained)[victim] - scores()[victim]
        assert gain.mean() > 2 * standard_error(gain), (trained, gain.mean())
        assert harm.mean() < -4 * standard_error(harm), (victim, harm.mean())


def test_a_task_and_its_twin_help_each_other_and_have_no_best_order(scores):
    help_ = scores("again")["reason"] - scores()["reason"]
    assert help_.mean() > 4 * standard_error(help_), help_.mean()
    first, second = scores("reason", "again"), scores("again", "reason")
    tasks = ("reason", "again")
    difference = np.concatenate([first[t] - second[t] for t in tasks])
    gains = np.concatenate([first[t] - scores()[t] for t in tasks])
    assert abs(difference.mean()) < 0.25 * gains.mean(), (difference.mean(), gains.mean())
