"""Distillation: whose answers, which divergence, which tokens. `rl.teacher` says who teaches."""

from __future__ import annotations

from trainorder.config.presets import Preset

PAPER = ("2605.16826",)
NO_REWARDS = "it learns from the teacher's whole distribution instead of rewards"


def _cell(name: str, summary: str, reverse: float, *plan: str) -> Preset:
    return Preset(
        name=name,
        summary=summary,
        papers=PAPER,
        method={
            "terms": [{"distillation": {"reverse": reverse}}],
            **({"plan": list(plan)} if plan else {}),
        },
        basis="notes",
        not_grounded="one mean over tokens",
        no_neutral=NO_REWARDS,
    )


PRESETS = [
    Preset(
        name="teacher_sft",
        summary="supervised learning on the teacher's answers",
        papers=PAPER,
        method={"plan": ["ask_teacher"], "terms": ["nll"]},
        basis="notes",
        not_grounded="one mean over tokens",
        no_neutral="it learns from the teacher's tokens instead of rewards",
    ),
    _cell("soft_sft", "forward KL on the teacher's answers", 0.0, "ask_teacher"),
    _cell("dagger", "forward KL on the policy's own answers", 0.0),
    _cell("offline_distillation", "reverse KL on the teacher's answers", 1.0, "ask_teacher"),
    _cell("on_policy_distillation", "reverse KL on the policy's own answers", 1.0),
    Preset(
        name="kl_mixing",
        summary="a little reverse KL with much forward KL on the policy's own answers",
        papers=PAPER,
        method={"terms": [{"distillation": {"reverse": 0.2}}]},
        basis="notes",
        not_grounded="the share of the reverse KL",
        no_neutral=NO_REWARDS,
    ),
    Preset(
        name="entropy_gated_length",
        summary="answers may grow longer only while the policy's entropy is high enough",
        papers=PAPER,
        method={
            "plan": ["entropy_gated_length"],
            "terms": [{"distillation": {"reverse": 0.2}}],
        },
        basis="notes",
        not_grounded="the bound of entropy, the ladder and its pace; entropy of training answers, not of held-out ones",
        neutral={"plan": [{"entropy_gated_length": {"start": 1000000}}]},
        reduces_to={"plan": []},
    ),
    Preset(
        name="tip",
        summary="reverse KL on the half of the tokens where the policy is unsure or the teacher disagrees",
        papers=("2604.14084",),
        not_offered="the authors' repository's drawing of tokens by h^alpha (JSD / ln 2)^gamma",
        method={
            "weight": ["teacher_importance"],
            "terms": [{"distillation": {"reverse": 1.0}}],
            "denominator": "weight",
        },
        basis="paper",
        neutral={"weight": [{"teacher_importance": {"keep": 1.0}}]},
        reduces_to={"weight": []},
    ),
    Preset(
        name="pw_opsd",
        summary="the policy's parent, given the gold text, teaches; later tokens weigh more",
        papers=("2605.21606",),
        method={
            "weight": ["position_weight"],
            "terms": ["capped_distillation"],
            "reduction": "sequence",
        },
        settings={"temperature": 1.1},
        not_grounded="the words that give the teacher the gold text",
        neutral={"weight": [{"position_weight": {"least": 1.0}}]},
        reduces_to={"weight": []},
    ),
]
