"""Advantage estimators and policy losses."""

from __future__ import annotations

from trainorder.config.presets import CLIP_HIGHER, PPO, Preset

PRESETS = [
    Preset(
        name="grpo",
        summary="rewards normalised within a prompt's group, PPO's clipped loss, KL to the parent",
        papers=("2402.03300",),
        method={
            "advantage": ["grpo"],
            "terms": ["clipped_surrogate", {"kl": {"coef": 0.001}}],
            "reduction": "sequence",
        },
        neutral={},
    ),
    Preset(
        name="dr_grpo",
        summary="no division by the group's spread or the answer's length",
        papers=("2503.20783",),
        method={"advantage": ["dr_grpo"], "terms": PPO, "reduction": "constant"},
        no_neutral="it has no options: GRPO without two divisions",
    ),
    Preset(
        name="rloo",
        summary="each answer's baseline is the mean of the others",
        papers=("2402.14740",),
        method={"advantage": ["rloo"], "terms": PPO, "reduction": "sequence"},
        no_neutral="it has no options: Dr.GRPO's advantage times n / (n - 1)",
    ),
    Preset(
        name="reinforce_plus_plus",
        summary="no baseline of the prompt; returns whitened over the batch's tokens, k2 KL to the parent",
        papers=("2501.03262",),
        method={
            "advantage": ["reinforce_plus_plus"],
            "terms": ["clipped_surrogate", {"kl": {"kind": "k2", "coef": 0.001}}],
        },
        no_neutral="answers compare with the whole batch, and no option makes them compare within a group",
    ),
    Preset(
        name="reinforce_plus_plus_baseline",
        summary="the group's mean subtracted, then whitened over the batch's tokens",
        papers=("2501.03262",),
        method={
            "advantage": ["reinforce_plus_plus_baseline"],
            "terms": ["clipped_surrogate", {"kl": {"kind": "k2", "coef": 0.001}}],
        },
        no_neutral="the spread of the batch takes the place of the group's; it has no option",
    ),
    Preset(
        name="bnpo",
        summary="the group's distance from its mean, over the density of a Beta fitted to the pass rates",
        papers=("2506.02864",),
        method={"advantage": ["bnpo"], "terms": PPO, "reduction": "sequence"},
        no_neutral="the density is 1 where all prompts have the same pass rate, which no option asks for",
    ),
    Preset(
        name="dapo",
        summary="clip higher, dynamic sampling, one mean over tokens, soft penalty of overlong answers",
        papers=("2503.14476",),
        method={
            "reward": ["graded", "overlong_penalty"],
            "edit": ["dynamic_sampling"],
            "advantage": ["grpo"],
            "terms": [{"clipped_surrogate": {**CLIP_HIGHER, "dual_clip": 10.0}}],
            "reduction": "token",
        },
        neutral={
            "reward": ["graded", {"overlong_penalty": {"coef": 0.0}}],
            "edit": [],
            "terms": [{"clipped_surrogate": {"clip_low": 0.2, "clip_high": 0.2}}],
        },
        reduces_to={"reward": ["graded"], "edit": [], "terms": PPO},
    ),
    Preset(
        name="cispo",
        summary="the importance weight is clipped, never the gradient",
        papers=("2506.13585",),
        method={"advantage": ["grpo"], "terms": [{"cispo": {"low": 0.0, "cap": 5.0}}]},
        settings={"updates_per_batch": 4},
        not_grounded="the cap: the paper names none, 5 is ScaleRL's; its number of updates per batch",
        neutral={"terms": [{"cispo": {"low": 0.0, "cap": 1e9}}]},
        reduces_to={"terms": ["unclipped_surrogate"]},
    ),
    Preset(
        name="gspo",
        summary="ratio and clipping of the whole answer instead of each token",
        papers=("2507.18071",),
        method={"advantage": ["grpo"], "terms": ["gspo"], "reduction": "sequence"},
        settings={"updates_per_batch": 4},
        no_neutral="its ratio is the whole answer's: equal to GRPO's where the policy has not moved yet, with any bounds",
    ),
    Preset(
        name="gppo",
        summary="clipped tokens keep a bounded gradient",
        papers=("2508.07629",),
        method={"advantage": ["grpo"], "terms": [{"gppo": CLIP_HIGHER}]},
        settings={"updates_per_batch": 4},
        not_grounded="its number of updates per batch; the supervised loss on right answers is left out",
        neutral={"terms": [{"gppo": {"clip_low": 1.0, "clip_high": 1e9}}]},
        reduces_to={"terms": ["unclipped_surrogate"]},
    ),
    *(
        Preset(
            name=f"canon_{by}",
            summary=f"answers compete across halves of the group, sorted by {what}",
            papers=("2509.23962",),
            method={
                "advantage": [{"canon": {"by": by, "mu": 1.0}}],
                "terms": [{"clipped_surrogate": CLIP_HIGHER}],
                "reduction": "constant",
            },
            not_grounded="mu fixed at 1; the paper also moves it with accuracy or on a cosine",
            neutral={"advantage": [{"canon": {"by": by, "mu": 0.5}}]},
            reduces_to={"advantage": ["dr_grpo"]},
        )
        for by, what in (("entropy", "mean entropy"), ("length", "length"))
    ),
    Preset(
        name="lead",
        summary="correctness and nearness to the usual right length, mixed by how unstable each is",
        papers=("2605.09806",),
        not_offered="max_asym, the default mode of the authors' code",
        method={"advantage": ["lead"], "terms": [{"clipped_surrogate": CLIP_HIGHER}]},
        not_grounded="the CV of efficiency is of its value mapped to [0, 1]; clip bounds",
        no_neutral="credit is whitened over the batch: `least: 1` leaves GRPO's advantage of right and wrong, whitened",
    ),
    Preset(
        name="drpo",
        summary="right answers share positive credit by length, wrong ones negative credit by likelihood",
        papers=("2510.04474",),
        method={
            "advantage": ["drpo"],
            "terms": ["policy_gradient", "trust_region"],
            "reduction": "sequence",
        },
        settings={"updates_per_batch": 4},
        not_grounded="its number of updates per batch; the trust region is an answer's instead of the batch's",
        no_neutral="right and wrong answers are normalised apart, and so differ from GRPO with any options",
    ),
]
