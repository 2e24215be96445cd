"""The claims of papers, on a planted world: each difference has the sign that the world was given."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from order_worlds import World

from benchmarks.claims import CLAIMS, Runs, places, spread, verdicts
from trainorder.config import MeasureConfig
from trainorder.measure.evidence import gather
from trainorder.plan.design import from_plan

SINGLES = ("math", "code", "qa", "creative")
COST = 0.15
"""What creative takes from every other task."""


def world() -> World:
    """Creative takes points from all others, joint and distil do not; a short return restores math."""
    phases = {phase: (phase,) for phase in SINGLES}
    again = {"math_again": ("math",), "qa_again": ("qa",)}
    last = ("math", "code", "qa", "creative")
    orders = {"_".join(chain): chain for chain in permutations(SINGLES)}
    orders |= {"joint": ("joint",), "distil": ("distil",)}
    orders |= {"refreshed": (*last, "math_again"), "control": (*last, "qa_again")}
    return World(
        phases={**phases, **again, "joint": SINGLES, "distil": SINGLES},
        orders=orders,
        merges=("average",),
        effects={"creative": dict.fromkeys(SINGLES[:3], -COST)},
        seeds=(0, 1, 2),
        problems=128,
        drift=0.002,
    )


@pytest.fixture(scope="module")
def runs() -> Runs:
    planted = world()
    content = planted.plan()
    for seed in content["singles"]:  # of the four phases alone, as a real plan has it
        content["singles"][seed] = {p: planted.node(int(seed), [p]) for p in SINGLES}
    design = from_plan(content)["default"]
    evidence = gather(planted.table(), design, MeasureConfig(bootstrap=100))
    start, moved = len(evidence.tasks), {"creative": 0.1}
    entropy = {
        node: np.full((101, start), sum(moved.get(p, -0.1) for p in planted.chain_of(node)))
        for node in design.nodes()
    }
    return Runs(evidence, entropy)


def test_every_claim_has_the_planted_sign(runs: Runs) -> None:
    found = [runs.evidence.estimates(claim.values(runs)[None])[0] for claim in CLAIMS]
    said = verdicts(found)
    texts = {c.text: word.removesuffix(" *") for c, word in zip(CLAIMS, said, strict=True)}
    assert texts["structured RL lowers entropy"] == "supported"
    assert texts["creative RL raises entropy"] == "supported"
    assert texts["creative last is best"] == "contradicted"
    assert texts["preference RL first is best"] == "supported"
    assert texts["structured first beats joint training"] == "contradicted"
    assert texts["later stages do not lower earlier tasks"] == "contradicted"
    assert texts["one stage alone makes other tasks regress"] == "supported"
    assert texts["everything at once is best"] == "supported"
    assert texts["distilling specialists beats mixing"] == "open"
    assert texts["later phases harm the first task"] == "supported"
    assert texts["a short return repairs it"] == "supported"


def test_the_sizes_are_those_of_the_world(runs: Runs) -> None:
    by_text = {claim.text: float(claim.values(runs)[:, 0].mean()) for claim in CLAIMS}
    # creative last costs three of four tasks COST; in another place it costs those that come before it, 0 to 2 of them
    assert by_text["creative last is best"] == pytest.approx(-COST * (3 - 1) / 4, abs=0.02)
    assert by_text["later phases harm the first task"] == pytest.approx(-COST, abs=0.03)
    assert by_text["a short return repairs it"] == pytest.approx(COST, abs=0.03)
    assert by_text["structured RL lowers entropy"] == pytest.approx(-0.1)


def test_spread_between_orders_is_the_planted_one(runs: Runs) -> None:
    found = spread(runs)
    # six orders each have creative cost 0, 1, 2 and 3 tasks a quarter of COST
    planted = float(np.std(np.repeat([0, 1, 2, 3], 6) * COST / 4, ddof=1))
    between = float(found["standard deviation between orders, noise taken off"])
    assert between == pytest.approx(planted, abs=0.006)
    assert float(found["standard deviation of one run of an order"]) < planted


def test_a_phase_that_harms_what_came_before_is_best_at_the_first_place(runs: Runs) -> None:
    (row,) = (line for line in places(runs, "1") if line.startswith("| creative"))
    at = [float(cell.split()[0]) for cell in row.split("|")[2:-1]]
    # it costs 0, 1, 2 or 3 of four tasks COST; the mean over places is 1.5
    assert at == pytest.approx([(1.5 - i) * COST / 4 for i in range(4)], abs=0.01)
