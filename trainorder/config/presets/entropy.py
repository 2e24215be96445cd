"""Methods that hold, raise or lower the entropy of the policy."""

from __future__ import annotations

from typing import Any

from trainorder.config.presets import CLIP_HIGHER, OWN, Preset

DAPO: dict[str, Any] = {
    "edit": ["dynamic_sampling"],
    "advantage": ["grpo"],
    "terms": [{"clipped_surrogate": {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": 10.0}}],
    "reduction": "token",
}
"""Without its penalty of overlong answers, whose lengths are those of the paper's models."""
WIDE = {"clipped_surrogate": {"clip_low": 1.0, "clip_high": 1.0}}
CEEH_CLIP = {"clipped_surrogate": CLIP_HIGHER}
SIREN_CLIP = {"clipped_surrogate": {"clip_low": 0.28, "clip_high": 0.28}}


def _siren(coef: float) -> dict[str, Any]:
    own = {"weight": ["entropy_peaks"], "reduction": "sequence", "denominator": "weight"}
    return {"siren": {"coef": coef, **own}}


def _entropy_sft(keep: float) -> dict[str, Any]:
    own = {"weight": [{"surprising_tokens": {"keep": keep}}], "denominator": "weight"}
    return {"nll": {"source": "expert", **own}}


def _kl_cov(coef: float) -> dict[str, Any]:
    return {"log_ratio_size": {"coef": coef, "weight": ["top_covariance"]}}


PRESETS = [
    Preset(
        name="entropy_law",
        summary="GRPO that logs the fit R = -a exp(H) + b, its ceiling, and the covariance that lowers entropy",
        papers=("2505.22617",),
        method={
            "advantage": ["grpo"],
            "metric": ["entropy_law", "entropy_covariance"],
            "terms": ["clipped_surrogate"],
        },
        not_grounded="the reward is that of training; the paper fits validation scores",
        neutral={},
        reduces_to={"metric": []},
    ),
    Preset(
        name="clip_cov",
        summary="a few tokens of high covariance of log-probability and advantage lose their loss",
        papers=("2505.22617",),
        method={"advantage": ["grpo"], "weight": ["clip_cov"], "terms": [WIDE]},
        neutral={"weight": [{"clip_cov": {"share": 0.0}}]},
        reduces_to={"weight": []},
    ),
    Preset(
        name="kl_cov",
        summary="a penalty on every change of log-probability of the tokens of highest covariance",
        papers=("2505.22617",),
        method={"advantage": ["grpo"], "terms": ["unclipped_surrogate", _kl_cov(1.0)]},
        settings={"updates_per_batch": 4},
        not_grounded="its number of updates per batch",
        neutral={"terms": ["unclipped_surrogate", _kl_cov(0.0)]},
        reduces_to={"terms": ["unclipped_surrogate"]},
    ),
    Preset(
        name="forking_tokens",
        summary="DAPO on the 20% of tokens of highest entropy",
        papers=("2506.01939",),
        method={**DAPO, "weight": ["forking_tokens"]},
        neutral={"weight": [{"forking_tokens": {"share": 1.0}}]},
        reduces_to={"weight": []},
    ),
    Preset(
        name="siren",
        summary="Dr.GRPO whose peaks of nucleus entropy are pulled to what they were at step 1",
        papers=("2509.25133",),
        not_offered="the authors' code's nucleus, without the token that crosses top_p",
        method={
            "advantage": ["dr_grpo"],
            "terms": [SIREN_CLIP, _siren(0.005)],
            "reduction": "constant",
        },
        neutral={"terms": [SIREN_CLIP, _siren(0.0)]},
        reduces_to={"terms": [SIREN_CLIP]},
    ),
    Preset(
        name="entrocraft",
        summary="only advantages that move entropy into a band that falls over the phase",
        papers=("2604.26326",),
        not_offered="the authors' code's raw rewards of +1 and -1 out of the band",
        method={
            "advantage": ["grpo", "entrocraft"],
            "terms": ["clipped_surrogate", {"kl": {"coef": 0.001}}],
        },
        neutral={
            "advantage": [
                "grpo",
                {
                    "entrocraft": {
                        "low_start": 0.0,
                        "low_end": 0.0,
                        "high_start": 1e6,
                        "high_end": 1e6,
                    }
                },
            ]
        },
        reduces_to={"advantage": ["grpo"]},
    ),
    Preset(
        name="clip_b",
        summary="drops bad tokens whose punishment would lower entropy most, against the batch's mean",
        papers=("2602.03392",),
        method={"advantage": ["grpo"], "weight": ["clip_b"], "terms": ["clipped_surrogate"]},
        neutral={"weight": [{"clip_b": {"sigmas": 1e6}}]},
        reduces_to={"weight": []},
    ),
    Preset(
        name="clip_v",
        summary="drops bad tokens whose punishment would lower entropy most, against the token's own distribution",
        papers=("2602.03392",),
        method={"advantage": ["grpo"], "weight": ["clip_v"], "terms": ["clipped_surrogate"]},
        not_grounded="the bound: the authors' code has 8.5 in one place and 2.0 in another",
        neutral={"weight": [{"clip_v": {"sigmas": 1e6}}]},
        reduces_to={"weight": []},
    ),
    Preset(
        name="adaptive_entropy",
        summary="an entropy bonus whose coefficient rises and falls to hold a target",
        papers=("2505.22312",),
        method={
            "advantage": ["grpo"],
            "terms": ["clipped_surrogate", {"entropy_bonus": {"weight": ["entropy_target"]}}],
        },
        basis="notes",
        not_grounded="target and step were not checked against the paper",
        neutral={
            "terms": [
                "clipped_surrogate",
                {"entropy_bonus": {"weight": [{"entropy_target": {"target": 0.0}}]}},
            ]
        },
        reduces_to={"terms": ["clipped_surrogate"]},
    ),
    Preset(
        name="spine",
        summary="majority vote as reward; only forking tokens learn, in a band of entropy and near the parent",
        papers=("2511.17938",),
        method={
            "reward": ["majority"],
            "advantage": ["grpo"],
            "weight": ["forking_tokens_of_row"],
            "terms": [
                "clipped_surrogate",
                {"kl": {"coef": 0.001}},
                {"entropy_band": {"coef": 0.01}},
            ],
        },
        basis="notes",
        not_grounded="coefficients of the KL and of the band; quantiles from a survey",
        neutral={
            "weight": [{"forking_tokens_of_row": {"share": 1.0}}],
            "terms": ["clipped_surrogate", {"entropy_band": {"coef": 0.0}}],
        },
        reduces_to={"weight": [], "terms": ["clipped_surrogate"]},
    ),
    Preset(
        name="tea",
        summary="an entropy bonus that grows with a token's covariance (TEA of Light-IF)",
        papers=("2508.03178",),
        not_offered="a third party's form, min(softmax(cov / tau), c / T) H on tokens of the thought",
        method={
            "advantage": ["grpo"],
            "terms": [
                {"clipped_surrogate": {"clip_low": 1.0, "clip_high": 1.0, "dual_clip": 10.0}},
                {"kl": {"coef": 0.001}},
                {"entropy_bonus": {"coef": 0.05, "weight": ["covariance_softmax"]}},
            ],
        },
        not_grounded="the coefficient: 1 in code that cannot run, .05 in a third party's form",
        neutral={
            "terms": [WIDE, {"entropy_bonus": {"coef": 0.0, "weight": ["covariance_softmax"]}}]
        },
        reduces_to={"terms": [WIDE]},
    ),
    Preset(
        name="attention_ranks",
        summary="tokens that look at few others weigh more at first, those that look widely later",
        papers=("2605.07660",),
        method={
            **DAPO,
            "weight": ["attention_ranks"],
        },
        basis="abstract",
        not_grounded="the formula of the weight, its layer and its schedule",
        neutral={"weight": [{"attention_ranks": {"start": 0.0, "end": 0.0}}]},
        reduces_to={"weight": []},
    ),
    Preset(
        name="entropy_sft",
        summary="supervised learning of the tokens that a sure policy finds unlikely (cold start of Light-IF)",
        papers=("2508.03178",),
        method={
            "edit": ["expert_rows"],
            "advantage": ["grpo"],
            "terms": [_entropy_sft(0.8)],
        },
        not_grounded="as a term of the RL step on expert rows; the paper's is a stage before it",
        neutral={"terms": [_entropy_sft(1.0)]},
        reduces_to={"terms": [{"nll": {"source": "expert"}}]},
    ),
    Preset(
        name="aepo",
        summary="right answers sampled hotter or colder, to a target entropy",
        papers=("2510.08141",),
        not_offered="overwriting the batch's first rows, as the authors' code does; its DCPO branch",
        method={
            "edit": ["arbitrary_entropy"],
            "advantage": ["grpo", "arbitrary_entropy_credit"],
            "terms": ["clipped_surrogate"],
        },
        not_grounded="rows are added to the batch, as the paper's objective; the authors' code overwrites its first rows",
        neutral={"edit": [{"arbitrary_entropy": {"share": 0.0}}]},
        reduces_to={"edit": [], "advantage": ["grpo"]},
    ),
    Preset(
        name="pear",
        summary="a right answer loses reward where its thought has a higher entropy than what follows",
        papers=("2510.08026",),
        method={"reward": ["pear"], "advantage": ["grpo"], "terms": ["clipped_surrogate"]},
        basis="notes",
        neutral={"reward": [{"pear": {"best": 1e9}}]},
        reduces_to={"reward": ["graded"]},
    ),
    Preset(
        name="ceeh_ea",
        summary="shorter right answers on easy prompts, an advantage of entropy on hard ones",
        papers=("2602.22642",),
        not_offered="the authors' code's moving accuracies that begin at -1",
        method={
            "reward": ["graded", "ceeh_length"],
            "advantage": ["dr_grpo", "ceeh"],
            "terms": [CEEH_CLIP],
            "reduction": "constant",
        },
        not_grounded="prompts that were not seen do not count as easy, as they do in the authors' code",
        neutral={"reward": ["graded"], "advantage": ["dr_grpo", {"ceeh": {"alpha": 0.0}}]},
        reduces_to={"reward": ["graded"], "advantage": ["dr_grpo"]},
    ),
    Preset(
        name="ceeh_me",
        summary="shorter right answers on easy prompts, an entropy bonus five times as high on hard ones",
        papers=("2602.22642",),
        not_offered="the authors' code's moving accuracies that begin at -1",
        method={
            "reward": ["graded", "ceeh_length"],
            "advantage": ["dr_grpo"],
            "terms": [
                CEEH_CLIP,
                {"entropy_bonus": {"coef": 0.001, "weight": ["ceeh_exploration"]}},
            ],
            "reduction": "constant",
        },
        not_grounded="prompts that were not seen do not count as easy, as they do in the authors' code",
        neutral={"reward": ["graded"], "terms": [CEEH_CLIP, {"entropy_bonus": {"coef": 0.0}}]},
        reduces_to={"reward": ["graded"], "terms": [CEEH_CLIP]},
    ),
    Preset(
        name="ares",
        summary="reward for as many explorations as a prompt's difficulty asks for",
        papers=("2510.08457",),
        method={
            "reward": ["graded", "ares"],
            "advantage": ["grpo"],
            "terms": ["clipped_surrogate"],
        },
        not_grounded="the list of words; the number aimed at; adaptive strength and KL are left out",
        neutral={"reward": ["graded", {"ares": {"strength": 0.0}}]},
        reduces_to={"reward": ["graded"]},
    ),
    Preset(
        name="rmt",
        summary="reinforcement mid-training: falling budgets of tokens beside plain prediction of worked answers",
        papers=("2509.24375",),
        method={
            "plan": ["falling_budget"],
            "reward": [{"graded": {"coef": 0.8}}, {"length_triangle": {"coef": 0.2}}],
            "edit": ["expert_rows"],
            "advantage": ["grpo"],
            "terms": [
                OWN,
                {"nll": {"coef": 0.1, "source": "expert"}},
            ],
        },
        basis="notes",
        not_grounded="the weight of length; tiers of difficulty; a corpus, for which worked answers stand here",
        neutral={
            "plan": [],
            "reward": ["graded", {"length_triangle": {"coef": 0.0}}],
            "edit": [{"expert_rows": {"share": 0.0}}],
        },
        reduces_to={"plan": [], "reward": ["graded"], "edit": []},
    ),
]
