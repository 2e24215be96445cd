"""A judge that is down, slow, talks nonsense or cannot read what it is asked is named before anything trains."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from judge_server import Server, judge_server

from trainorder.config import Params, PolicyConfig, parse_params
from trainorder.data import write_tokenizer
from trainorder.policy import Policy
from trainorder.preflight import judges
from trainorder.reading import ParamsError, read_yaml

SMOKE = read_yaml(Path(__file__).parents[2] / "configs/smoke.yaml")


@pytest.fixture(scope="module")
def server():
    with judge_server() as running:
        yield running


def params(**referee: Any) -> Params:
    data = {key: value for key, value in SMOKE.items() if key != "judge"}
    taste = {**SMOKE["judge"], "kind": "preference", "role": "reward"}
    return parse_params({**data, "judges": {"taste": taste, "referee": {"role": "evaluation", **referee}}})  # fmt: skip


def endpoint(server: Server, **changes: Any) -> Params:
    given = {"kind": "endpoint", "base_url": server.url, "model": "words", "outage_seconds": 0.3}
    return params(**{**given, **changes})


def refusal(given: Params) -> str:
    with pytest.raises(ParamsError) as caught:
        judges.check(given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_endpoint_that_answers_is_asked_about_one_pair(server: Server):
    server.trouble, server.requests[:] = (lambda n, body: None), []
    [line] = judges.check(endpoint(server))
    assert line.startswith(f"judges.referee: words at {server.url} answers (")
    assert len(server.requests) == 2  # both positions
    assert judges.check(endpoint(server), names=["taste"]) == []
    assert len(server.requests) == 2


def test_an_endpoint_in_trouble_is_one_line_within_its_patience(server: Server):
    start = time.monotonic()
    down = endpoint(server, base_url="http://127.0.0.1:9/v1", outage_seconds=600.0)
    judges.PATIENCE, before = 0.3, judges.PATIENCE
    try:
        assert "judges.referee: tried on one pair, the judge at http://127.0.0.1:9/v1 gave no answer" in refusal(down)  # fmt: skip
    finally:
        judges.PATIENCE = before
    server.trouble = lambda n, body: "Well, it depends."
    assert "it gave no verdict: the judge's reply is not A, B or TIE; raise max_tokens (8)" in refusal(endpoint(server))  # fmt: skip
    server.trouble = lambda n, body: (401, {}, "no")
    assert "answers 401 to model 'words': check base_url, model and api_key_env" in refusal(endpoint(server))  # fmt: skip
    assert time.monotonic() - start < 10


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for name, words, positions in (("lm", {" A", " B"}, 2048), ("short", {" A", " B"}, 64), ("mute", set(), 2048)):  # fmt: skip
        sizes = PolicyConfig(hidden_size=16, num_layers=1, num_heads=2, mlp_size=24, max_positions=positions)  # fmt: skip
        write_tokenizer(root / f"{name}-t", {" sea", *words})
        Policy.build_tiny(sizes, root / f"{name}-t", seed=0).save(root / name)
    return root


def test_a_model_that_can_judge_is_tried_and_one_that_cannot_is_named(model: Path):
    [line] = judges.check(params(kind="model", path=str(model / "lm"), min_mass=0.0))
    assert "lm answers (0." in line
    assert "no token for 'A'" in refusal(params(kind="model", path=str(model / "mute")))
    text = refusal(params(kind="model", path=str(model / "short")))
    assert text.startswith("judges.referee: the longest prompt with answers of 48 words needs")
    assert text.endswith(
        "short has 64: lower max_new_tokens, or take a model with a longer context"
    )
    assert "it gave no verdict: the judge gives all of A, B the probability" in refusal(
        params(kind="model", path=str(model / "lm"), min_mass=1.0)
    )
