"""Structure of reasoning: planning tokens, and the rank of hidden states."""

from __future__ import annotations

from trainorder.config.presets import PPO, Preset

PRESETS = [
    Preset(
        name="hicra",
        summary="more credit for tokens in strategic phrases, mined from right answers",
        papers=("2509.03646",),
        method={
            "edit": ["mine_grams"],
            "advantage": ["dr_grpo", "hicra"],
            "metric": ["planning", "semantic_entropy", "two_phases"],
            "terms": PPO,
        },
        basis="notes",
        not_grounded="phrases are not joined by meaning, and mined as training goes on; the reduction",
        neutral={"advantage": ["dr_grpo", {"hicra": {"alpha": 0.0}}]},
        reduces_to={"advantage": ["dr_grpo"]},
    ),
    Preset(
        name="verl",
        summary="more credit for answers whose hidden states use unusually many directions",
        papers=("2509.23808",),
        method={
            "advantage": ["grpo", "verl"],
            "metric": ["effective_rank"],
            "terms": PPO,
            "reduction": "sequence",
        },
        not_grounded="the bonus is on all tokens, as in the paper's formula; the code puts it on the last",
        neutral={"advantage": ["grpo", {"verl": {"kappa": 1e12}}]},
        reduces_to={"advantage": ["grpo"]},
    ),
]
