"""Methods from params.yaml: names and options are checked, with words that help."""

from __future__ import annotations

import pytest

from trainorder.config import MethodConfig
from trainorder.reading import ParamsError
from trainorder.rl.method import Method, bind


def test_the_default_method_is_grpo_with_the_clipped_surrogate():
    method = Method.from_config(MethodConfig())
    assert [p.entry.name for p in method.advantage] == ["grpo"]
    assert [p.entry.name for p in method.terms] == ["clipped_surrogate"]
    assert method.terms[0].options == {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": None}
    assert method.needs == set()


def test_coef_belongs_to_the_engine_not_to_the_piece():
    bound = bind("terms", {"kl": {"coef": 0.05, "kind": "k2"}})
    assert bound.coef == 0.05
    assert bound.options == {"kind": "k2", "against": "ref"}


def test_kl_to_the_parent_needs_the_reference():
    terms = ["clipped_surrogate", {"kl": {"coef": 0.01}}]
    method = Method.from_config(MethodConfig(terms=terms))
    assert method.needs == {"ref_logps"}


def test_kl_to_the_old_policy_needs_no_reference():
    assert bind("terms", {"kl": {"against": "old"}}).needs == set()


@pytest.mark.parametrize(
    ("slot", "piece", "message"),
    [
        (
            "advantage",
            "grop",
            r"method.advantage: no piece 'grop'; there are .*dr_grpo, .*grpo, .*rloo.* \(did you mean 'grpo'",
        ),
        (
            "terms",
            {"clipped_surrogate": {"clip_hihg": 1.0}},
            r"no option 'clip_hihg'; it takes clip_high, clip_low, coef, denominator, dual_clip",
        ),
        (
            "terms",
            {"kl": {"kind": "k4"}},
            r"method.terms.kl.kind: input should be 'k1', 'k2' or 'k3', got 'k4'",
        ),
        (
            "terms",
            {"kl": {"coef": "big"}},
            r"method.terms.kl.coef: input should be a valid number, got 'big'",
        ),
        (
            "advantage",
            {"dr_grpo": {"coef": 2.0}},
            r"method.advantage.dr_grpo: no option 'coef'; it takes none",
        ),
        (
            "plan",
            {"length_budget": {"text": "at most {budget}"}},
            r"method.plan.length_budget.text: .* has no \{prompt\}",
        ),
        (
            "plan",
            {"prompt_population": {"texts": []}},
            r"method.plan.prompt_population.texts: .* at least 1 item",
        ),
        (
            "reward",
            {"graded": {}, "other": {}},
            r"a piece is one name with its options, got \['graded', 'other'\]",
        ),
    ],
)
def test_what_cannot_be_bound_is_refused_in_words(slot, piece, message):
    with pytest.raises(ParamsError, match=message):
        bind(slot, piece)
