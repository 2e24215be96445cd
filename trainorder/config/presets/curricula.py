"""Which problem comes next, and how much it counts."""

from __future__ import annotations

from trainorder.config.presets import OWN, Preset

PLAIN = {"advantage": ["grpo"], "terms": ["clipped_surrogate"]}

PRESETS = [
    Preset(
        name="cures",
        summary="problems by exp(sqrt(p (1 - p))), answers per problem in proportion to sqrt(p (1 - p))",
        papers=("2510.01037",),
        not_offered="the authors' code's temperature per problem and its rounding, which may drop one",
        method={**PLAIN, "plan": ["cures_allocation"]},
        settings={"items": {"cures": {"cold_start": True}}},
        not_grounded="the temperature; the authors forget pass rates per iteration",
        no_neutral="problems are drawn, where GRPO takes them in turn; with temperature 1e9 every one is as likely",
    ),
    Preset(
        name="edco",
        summary="rounds of the problems whose quick answer is least certain",
        papers=("2601.03725",),
        method=PLAIN,
        settings={"items": "edco"},
        not_grounded="the instruction's words; entropies are of the whole vocabulary",
        no_neutral="problems come in order of their entropy, whatever the options",
    ),
    Preset(
        name="gain_rl",
        summary="a normal window that moves over problems sorted by the angles of their hidden states",
        papers=("2506.02281",),
        not_offered="the authors' port to verl, whose grades of 0 and 1 enter a formula for 0 to 2",
        method=PLAIN,
        settings={"items": "gain_rl"},
        not_grounded="states after the last norm instead of the last MLP's inputs; number of moves",
        no_neutral="problems are drawn, where GRPO takes them in turn; with sigma 1e9 every one is as likely",
    ),
    Preset(
        name="pudf",
        summary="problems no harder than the policy's ability by a Rasch model",
        papers=("2408.05326",),
        method=PLAIN,
        settings={"items": "pudf"},
        basis="notes",
        not_grounded="a crowd of one policy gives the difficulties; the smallest open share",
        no_neutral="problems are drawn, where GRPO takes them in turn; with least 1 every one is open",
    ),
    Preset(
        name="r3",
        summary="begins inside the demonstration: all of its prefixes at once, the reward of the outcome",
        papers=("2402.05808",),
        method={
            **PLAIN,
            "plan": ["reverse_curriculum"],
            "terms": ["clipped_surrogate", {"kl": {"coef": 0.05}}],
        },
        not_grounded="GRPO instead of PPO with a critic; the paper's partial reward",
        no_neutral="every visit begins at a drawn place of the demonstration, of which there is always one",
    ),
    Preset(
        name="h1",
        summary="problems composed into chains whose length grows from 1 to 5",
        papers=("2510.07312",),
        method={
            "plan": ["composed"],
            "advantage": ["dr_grpo"],
            "terms": ["clipped_surrogate"],
            "reduction": "constant",
        },
        basis="notes",
        not_grounded="how problems without a chain are composed; promotion by plateau or rate",
        neutral={"plan": [{"composed": {"last": 1}}]},
        reduces_to={"plan": []},
    ),
    Preset(
        name="masksearch",
        summary="masked names and numbers of a text are restored, more of them as training goes on",
        papers=("2505.20285",),
        method={
            **PLAIN,
            "plan": ["mask_entities"],
            "reward": ["restored_masks", {"keeps_format": {"coef": 0.1}}],
            "edit": ["dynamic_sampling"],
        },
        not_grounded="no search; entities by a pattern; the format's coefficient",
        no_neutral="it asks for the masked words of a text instead of the problem; one mask is the least",
    ),
    Preset(
        name="mt_grpo",
        summary="weights of tasks follow the worst one, prompts are drawn again until shares hold",
        papers=("2602.05547",),
        method={
            "edit": ["dynamic_sampling"],
            "advantage": ["grpo"],
            "weight": ["keep_shares"],
            "terms": [{"clipped_surrogate": {"clip_high": 0.28}}],
        },
        settings={"sampler": "mt_grpo"},
        tasks=2,
        not_grounded="the factor that holds shares where drawing again fails",
        neutral={"sampler": {"mt_grpo": {"lr": 0.0}}, "edit": [], "weight": []},
        reduces_to={"sampler": "weights", "edit": [], "weight": []},
    ),
    Preset(
        name="tac",
        summary="tasks by learnability times the alignment of their gradient with the others'",
        papers=("2606.25178",),
        method={**PLAIN, "metric": ["task_alignment"]},
        settings={"sampler": "tac"},
        tasks=2,
        basis="abstract",
        not_grounded="the factor of cosines, the projected layer, the bandit's rates",
        no_neutral="tasks are drawn, where GRPO deals them out; with epsilon 1 every task is as likely",
    ),
    Preset(
        name="puzzlecraft",
        summary="groups weighted by 4 d (1 - d) sqrt(spread of their answers)",
        papers=("2512.14944",),
        method={
            "advantage": ["dr_grpo"],
            "weight": ["puzzlecraft"],
            "terms": ["clipped_surrogate"],
        },
        settings={"group_size": 8},
        basis="paper",
        not_grounded="that the exponent is of the spread alone",
        no_neutral="a group's weight is at most 4 p (1 - p), with any options",
    ),
    Preset(
        name="spell",
        summary="the policy writes problems, answers them and judges the answers, and a program verifies both",
        papers=("2509.23863",),
        method={
            "edit": ["self_play"],
            "advantage": ["grpo"],
            "metric": ["self_play_roles"],
            "terms": [OWN, {"nll": {"source": "expert", "coef": 0.1}}],
        },
        settings={"group_size": 8},
        basis="paper",
        not_grounded="problems of a program instead of documents; rows that are shown while a role does not work, and their term; one answer per problem is voted on",
        no_neutral="at least one problem is written in every step; without the edit it is GRPO",
    ),
    Preset(
        name="socratic_zero",
        summary="the policy learns its own problems by how near their pass rate is to one half, and solves them",
        papers=("2509.24726",),
        method={
            "edit": [
                {
                    "self_play": {
                        "learn": "imitate",
                        "utility": "socratic",
                        "judged": False,
                        "replay": 0.25,
                    }
                }
            ],
            "advantage": ["grpo"],
            "metric": ["self_play_roles"],
            "terms": [
                OWN,
                {"nll": {"source": "expert", "coef": 0.1, "weight": ["question_utility"]}},
            ],
        },
        settings={"group_size": 8},
        basis="paper",
        not_grounded="solver and generator are one policy; GRPO instead of DPO; a program instead of the teacher; replay of problems, not of rounds",
        no_neutral="at least one problem is written in every step; without the edit it is GRPO",
    ),
]
