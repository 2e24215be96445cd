"""What a judge behind an endpoint costs: estimated before, counted by a real server after, in no stage that trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from judge_server import Server, judge_server

from trainorder import paths
from trainorder.config import EndpointJudgeConfig, Params, parse_params
from trainorder.data import few_problems
from trainorder.judges.endpoint import EndpointJudge, JudgeOutage
from trainorder.judges.verdicts import CachedJudge
from trainorder.plan import compile_plan, judging, names, pipeline
from trainorder.reading import read_yaml
from trainorder.report.spending import Spending, spending

SMOKE = read_yaml(Path(__file__).parents[2] / "configs/smoke.yaml")
PROMPT = "write a note about the sea and the wind"
PRICES = {"input_price": 2.0, "output_price": 10.0}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("trainorder.judges.endpoint.FIRST_WAIT", 0.02)
    monkeypatch.chdir(tmp_path)
    with judge_server() as running:
        yield running


def referee(url: str = "http://127.0.0.1:8000/v1", **changes: Any) -> dict[str, Any]:
    known = {"kind": "endpoint", "base_url": url, "model": "words", "role": "evaluation"}
    return {**known, "retries": 0, "outage_seconds": 0.2, **changes}


def data(**changes: Any) -> dict[str, Any]:
    taste = {"kind": "preference", "prompts": 40, "heldout_prompts": 20, "role": "reward"}
    judges = {"taste": taste, "referee": referee(**changes)}
    return {**{k: v for k, v in SMOKE.items() if k != "judge"}, "judges": judges}


def params(**changes: Any) -> Params:
    return parse_params(data(**changes))


def cached(server: Server, **changes: Any) -> CachedJudge:
    config = EndpointJudgeConfig.model_validate(referee(server.url, **changes))
    return CachedJudge(EndpointJudge(config))


def ask(judge: CachedJudge, *answers: str) -> list[float | None]:
    return judge.win_probability([PROMPT] * len(answers), answers, ["a stone"] * len(answers))


def words(server: Server) -> int:
    """What the server read in all, a word a token."""
    return sum(len(m["content"].split()) for body in server.requests for m in body["messages"])


def test_calls_and_tokens_are_counted_over_processes_and_kept_verdicts_cost_nothing(server: Server):
    ask(cached(server), "the wind", "the sea")
    ask(cached(server), "the wind", "the sea and the wind")  # one is known
    Path("params.yaml").write_text(yaml.safe_dump(data(url=server.url, **PRICES)))
    [found] = spending()
    assert (found.judge, found.calls, found.output_tokens) == ("referee", 6, 6)
    assert found.input_tokens == words(server)
    assert found.cost == pytest.approx((words(server) * 2 + 6 * 10) / 1e6)
    assert found.metrics["judge/referee/calls"] == 6.0
    with paths.VERDICTS.joinpath(f"{cached(server).judge.identity}.spent").open("a") as torn:
        torn.write('{"asked": 1')
    assert list(spending()) == [found]


def test_an_outage_in_the_middle_was_paid_for_up_to_there(server: Server):
    server.trouble = lambda n, body: None if n < 3 else (503, {}, "busy")
    with pytest.raises(JudgeOutage):
        ask(cached(server, concurrency=1), "the wind", "the sea", "the sea and the wind")
    Path("params.yaml").write_text(yaml.safe_dump(data(url=server.url)))
    [found] = spending()
    assert found.calls > found.output_tokens == 3
    assert found.cost is None
    assert "at its prices" not in found.text


@pytest.mark.parametrize(
    "usage",
    [None, 3, {}, {"prompt_tokens": 9}, {"prompt_tokens": True, "completion_tokens": 1}, {"prompt_tokens": 1, "completion_tokens": -1}],
)  # fmt: skip
def test_a_reply_without_a_count_is_no_trouble_and_is_named(server: Server, usage: Any):
    choice = {"message": {"content": "A"}}
    reply = json.dumps({"choices": [choice], "usage": usage})
    server.trouble = lambda n, body: (200, {}, reply)
    assert ask(cached(server), "the wind") == [0.5]
    Path("params.yaml").write_text(yaml.safe_dump(data(url=server.url, **PRICES)))
    [found] = spending()
    assert found == Spending("referee", 2, 0, 0, 2, 0.0)
    assert found.text.endswith("without 2 replies whose tokens the endpoint did not count.")


def test_the_plan_says_what_the_stages_to_come_cost_at_most():
    plan = compile_plan(params(**PRICES, max_tokens=100))
    stages = [*plan.judge_stages, *(n.stage for n in plan.nodes.values())]
    stale = dict.fromkeys([*stages, *map(names.evaluation, plan.nodes)], "stale")
    count = judging.calls(plan, stale)["referee"]
    _, problems = few_problems("creative", plan.params.tasks["creative"])
    longest = max(len(problem.text) for problem in problems)
    read = judging.FRAME + 2 * plan.params.tasks["creative"].max_new_tokens + longest / 4
    expected = count * (read * 2 + 100 * 10) / 1e6
    assert judging.cost(plan, "referee", count) == pytest.approx(expected)
    [line] = judging.lines(plan, stale)
    assert line.endswith(f"; at its prices about {expected:,.2f} at most")
    plain = compile_plan(params())
    [line] = judging.lines(plain, stale)
    assert line.endswith("verdicts that are kept cost nothing")


def test_a_price_makes_the_page_new_and_no_stage_that_trains_or_scores():
    plain, priced = compile_plan(params()), compile_plan(params(**PRICES))
    assert pipeline.content(priced) == pipeline.content(plain)
    changed = {k for k, v in pipeline.settings(priced).items() if pipeline.settings(plain).get(k) != v}  # fmt: skip
    assert changed == {"report.json"}
    identities = {EndpointJudge(plan.judges["referee"].config).identity for plan in (plain, priced)}
    assert len(identities) == 1
