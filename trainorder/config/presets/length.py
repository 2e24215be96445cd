"""Length and form of answers."""

from __future__ import annotations

from trainorder.config.presets import PPO, Preset

PRESETS = [
    Preset(
        name="train_long_think_short",
        summary="a budget of tokens in the prompt that shrinks over the phase, and a reward for keeping to it",
        papers=("2508.08940",),
        method={
            "plan": ["length_budget"],
            "reward": [
                {"graded": {"coef": 0.3}},
                {"length_triangle": {"coef": 0.6}},
                {"keeps_format": {"coef": 0.1}},
            ],
            "advantage": ["grpo"],
            "terms": PPO,
            "reduction": "sequence",
        },
        settings={"group_size": 8},
        basis="paper",
        not_grounded="the format's coefficient, the prompt's words, loss and reduction",
        neutral={
            "plan": [],
            "reward": [
                "graded",
                {"length_triangle": {"coef": 0.0}},
                {"keeps_format": {"coef": 0.0}},
            ],
        },
        reduces_to={"plan": [], "reward": ["graded"]},
    ),
    Preset(
        name="dot",
        summary="the longest answers of solved groups are cut and graded again",
        papers=("2601.03969",),
        method={
            "edit": ["truncate_outliers"],
            "advantage": ["grpo"],
            "terms": [
                "unclipped_surrogate",
                {"log_ratio_size": {"coef": 1.0, "weight": [{"top_covariance": {"share": 0.002}}]}},
            ],
            "reduction": "sequence",
        },
        settings={"group_size": 32},
        not_grounded="the authors also oversample prompts by prediction, which is left out",
        neutral={
            "edit": [{"truncate_outliers": {"sigmas": 1e6}}],
            "terms": ["unclipped_surrogate", {"log_ratio_size": {"coef": 0.0}}],
        },
        reduces_to={"edit": [], "terms": ["unclipped_surrogate"]},
    ),
    Preset(
        name="surrogate_format_length",
        summary="format and length instead of grades: no ground truth",
        papers=("2505.19439",),
        method={
            "reward": ["surrogate_format_length"],
            "advantage": ["grpo"],
            "terms": ["clipped_surrogate", {"kl": {"coef": 0.001}}],
            "reduction": "sequence",
        },
        not_grounded="the KL's coefficient",
        no_neutral="it learns without grades, from which GRPO learns",
    ),
    Preset(
        name="rl_struct",
        summary="levels of a JSON answer: it parses, has the keys, of the right types, is right, is short",
        papers=("2512.00319",),
        method={"reward": ["json_structure"], "advantage": ["grpo"], "terms": PPO},
        basis="abstract",
        not_grounded="all weights and checks; a third party says that the authors withdrew the paper",
        no_neutral="an answer that is no JSON earns nothing whatever its grade, with any options",
    ),
]
