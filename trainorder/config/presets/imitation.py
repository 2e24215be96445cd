"""Supervised learning inside of RL, replay, and other wordings of a problem."""

from __future__ import annotations

from trainorder.config.presets import CLIP_HIGHER, OWN, Preset

RISE = {"shape": "cosine", "start": 0.1, "end": 0.95, "steps": 200}
FALL = {"shape": "cosine", "start": 0.9, "end": 0.05, "steps": 200}

PRESETS = [
    Preset(
        name="chord_mu",
        summary="an expert's rows beside the policy's, their weight falling from .9 to .05",
        papers=("2508.11408",),
        method={
            "edit": ["expert_rows"],
            "advantage": ["grpo"],
            "terms": [
                {"clipped_surrogate": {"source": "policy", "coef": RISE}},
                {"nll": {"source": "expert", "coef": FALL}},
            ],
            "metric": ["shift_readapt_overfit"],
        },
        neutral={"terms": [OWN, {"nll": {"source": "expert", "coef": 0.0}}]},
        reduces_to={"terms": [OWN]},
    ),
    Preset(
        name="chord_phi",
        summary="an expert's rows beside the policy's, each token weighted by p (1 - p)",
        papers=("2508.11408",),
        method={
            "edit": ["expert_rows"],
            "advantage": ["grpo"],
            "terms": [
                {"clipped_surrogate": {"source": "policy", "coef": 0.9}},
                {"nll": {"source": "expert", "coef": 0.1, "token_weight": "phi"}},
            ],
            "metric": ["shift_readapt_overfit"],
        },
        neutral={"terms": [OWN, {"nll": {"source": "expert", "coef": 0.0, "token_weight": "phi"}}]},
        reduces_to={"terms": [OWN]},
    ),
    Preset(
        name="chord_layers",
        summary="CHORD-mu whose expert moves the upper layers more than the lower ones",
        papers=("2508.11408",),
        method={
            "edit": ["expert_rows"],
            "advantage": ["grpo"],
            "terms": [
                {"clipped_surrogate": {"source": "policy", "coef": RISE}},
                {"nll": {"source": "expert", "coef": FALL, "layers": [0.5, 1.5]}},
            ],
        },
        basis="ours",
        not_grounded="that layers differ, and their factors: the paper has one weight for all of them",
        neutral={"terms": [OWN, {"nll": {"source": "expert", "coef": 0.5, "layers": [1.0, 1.0]}}]},
        reduces_to={"terms": [OWN, {"nll": {"source": "expert", "coef": 0.5}}]},
    ),
    Preset(
        name="srl",
        summary="one step of an expert's solution at a time, rewarded by its similarity; RLVR is the next phase",
        papers=("2510.25992",),
        method={
            "plan": ["expert_steps"],
            "reward": ["step_similarity"],
            "edit": [{"dynamic_sampling": {"min_std": 0.01}}],
            "advantage": ["grpo"],
            "terms": ["clipped_surrogate"],
        },
        basis="paper",
        not_grounded="the least spread of a group's rewards; the prompt's words; one step drawn per visit",
        no_neutral="it asks for a step of the solution instead of the answer, and compares with the expert's",
    ),
    Preset(
        name="spear",
        summary="good answers of past steps are learned from again, ever more as training goes on",
        papers=("2509.22601",),
        method={
            "edit": ["highest_spread", "self_imitation"],
            "advantage": ["dr_grpo", "self_imitation_credit"],
            "weight": ["finished_only"],
            "terms": [
                {"clipped_surrogate": {"source": "policy", **CLIP_HIGHER}},
                {
                    "clipped_surrogate": {
                        "source": "replay",
                        "clip_low": 0.2,
                        "clip_high": 0.28,
                        "coef": {"shape": "cosine", "start": 0.0, "end": 1.0, "steps": 200},
                        "weight": [{"clip_cov": {"share": 0.02, "low": 1.0, "high": 40.0}}],
                    }
                },
            ],
            "metric": ["self_imitation_buffer"],
            "reduction": "constant",
        },
        not_grounded="the largest coefficient of replayed rows; Clip-Cov's covariance is over all rows of the step; rewards of "
        "tool calls are left out",
        neutral={"terms": [OWN, {"clipped_surrogate": {"source": "replay", "coef": 0.0}}]},
        reduces_to={"terms": [OWN]},
    ),
    Preset(
        name="cure",
        summary="answers are regenerated from a token of high entropy, in the same group",
        papers=("2508.11016",),
        method={
            "reward": ["graded", {"overlong_penalty": {"buffer": 512}}],
            "edit": ["dynamic_sampling", "regenerate"],
            "advantage": ["grpo"],
            "terms": [{"clipped_surrogate": {"clip_low": 0.2, "clip_high": 0.28}}],
        },
        settings={"group_size": 4},
        not_grounded="flat groups are replaced before answers are regenerated",
        neutral={"edit": ["dynamic_sampling", {"regenerate": {"samples": 0}}]},
        reduces_to={"edit": ["dynamic_sampling"]},
    ),
    Preset(
        name="prompt_augmentation",
        summary="each visit of a problem uses one of several templates, with a reward for keeping its format",
        papers=("2602.03190",),
        method={
            "plan": ["prompt_templates"],
            "reward": ["graded", "template_format"],
            "edit": ["dynamic_sampling"],
            "advantage": ["grpo"],
            "terms": [{"clipped_surrogate": {"clip_low": 0.2, "clip_high": 0.28}}],
        },
        settings={"group_size": 8},
        not_grounded="the templates are four of ours; the paper has 13",
        neutral={"plan": [{"prompt_templates": {"templates": ["{prompt}"]}}]},
        reduces_to={"plan": []},
    ),
    Preset(
        name="fst",
        summary="several wordings of a problem share one group: the slow part of fast-slow training",
        papers=("2605.12484",),
        method={
            "plan": [
                {"prompt_population": {"texts": ["{prompt}", "{prompt} Think step by step."]}}
            ],
            "edit": [{"dynamic_sampling": {"max_rounds": 1}}],
            "advantage": ["grpo"],
            "terms": [{"cispo": {"low": 0.0, "cap": 4.0}}, {"kl": {"coef": 0.001}}],
            "reduction": "prompt",
        },
        basis="notes",
        not_grounded="the texts, which the paper's fast part rewrites",
        neutral={"plan": [{"prompt_population": {"texts": ["{prompt}"]}}]},
        reduces_to={"plan": []},
    ),
]
