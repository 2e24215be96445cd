"""Who plans and who solves: the base or the trained checkpoint in each of the two roles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from trainorder.config.values import PromptText, StepsText
from trainorder.evaluation.sitting import Sitting, Values, Who, way
from trainorder.tasks.base import in_template

SPLIT = (
    "{prompt}\nSplit this into at most three sub-questions that help to answer it, one per line, or write: "
    "No decomposition. Do not answer them."
)
SOLVE = "{prompt}\nAnswer these sub-questions in turn, then the question itself:\n{steps}"
CLOSING = "</think>"
LETTERS: dict[Who, str] = {"base": "b", "trained": "t"}


@way(answers=6, base=True)
def decompose(
    sitting: Sitting,
    *,
    by: Literal["thought", "questions"] = "thought",
    split: PromptText = SPLIT,
    solve: StepsText = SOLVE,
) -> Values:
    """Decomposer x solver: which half did training improve? (divide or conquer, arXiv:2402.15000).

    Two greedy calls, each by the base (b) or the trained checkpoint (t): `decompose_bt` is the score where the base plans
    and the trained one solves. Main effects, per problem: `decompose_planning` = ((tb - bb) + (tt - bt)) / 2,
    `decompose_solving` = ((bt - bb) + (tt - tb)) / 2, `decompose_interaction` = tt - tb - bt + bb.

    `by: thought`: the plan is the thought of the decomposer's answer, behind which the solver goes on; an answer without
    a closed thought leaves the problem to the solver. `by: questions`, as in the paper: the decomposer writes
    sub-questions when asked by `split`, the solver reads them in `solve`; for models that follow instructions.
    """
    whose: list[Who] = ["trained"] if sitting.is_base else ["base", "trained"]
    score: dict[str, Sequence[float]] = {}
    for planner in whose:
        plans = _plans(sitting, planner, None if by == "thought" else split)
        for solver in whose:
            answers = _behind(sitting, plans, solver) if by == "thought" else None
            if answers is None:
                told = [
                    sitting.request(p, prompt=in_template(p.prompt, solve, steps=plan))
                    for p, plan in zip(sitting.problems, plans, strict=True)
                ]
                answers = sitting.say(told, solver)
            score[LETTERS[planner] + LETTERS[solver]] = sitting.worth(answers, sitting.problems)
    for pair in ("bb", "bt", "tb"):
        score.setdefault(pair, score["tt"])
    cells = zip(score["bb"], score["tb"], score["bt"], score["tt"], strict=True)
    found = [effects(*cell) for cell in cells]
    names = ("decompose_planning", "decompose_solving", "decompose_interaction")
    return {f"decompose_{pair}": values for pair, values in sorted(score.items())} | {
        name: [effect[i] for effect in found] for i, name in enumerate(names)
    }


def effects(bb: float, tb: float, bt: float, tt: float) -> tuple[float, float, float]:
    """Main effects of decomposer and solver, and their interaction; the first letter is the decomposer's.

    >>> [round(effect, 3) for effect in effects(0.4, 0.5, 0.45, 0.6)]
    [0.125, 0.075, 0.05]
    """
    return ((tb - bb) + (tt - bt)) / 2, ((bt - bb) + (tt - tb)) / 2, tt - tb - bt + bb


def thought(text: str) -> str:
    """An answer up to the end of its first thought; empty where it closes none.

    >>> thought("<think> 3 + 4 = 7 </think> <answer> 8 </answer>"), thought("7")
    ('<think> 3 + 4 = 7 </think>', '')
    """
    before, closing, _ = text.partition(CLOSING)
    return before + closing if closing else ""


def _plans(sitting: Sitting, planner: Who, split: str | None) -> Sequence[str]:
    """What a planner writes greedily: its answers, of which the trained one's are known, or sub-questions."""
    if split is None and planner == "trained":
        return sitting.greedy
    prompts = [
        p.prompt if split is None else in_template(p.prompt, split) for p in sitting.problems
    ]
    asked = zip(sitting.problems, prompts, strict=True)
    return sitting.say([sitting.request(p, prompt=prompt) for p, prompt in asked], planner)


def _behind(sitting: Sitting, plans: Sequence[str], solver: Who) -> list[str]:
    """Whole answers that begin with the plans' thoughts; a thought that leaves no room stays as it is."""
    thoughts = [thought(plan) for plan in plans]
    prefixes = [ids[:-1] if t else [] for t, ids in zip(thoughts, sitting.tokens(thoughts), strict=True)]  # fmt: skip
    open_ = [i for i, ids in enumerate(prefixes) if len(ids) < sitting.exam.max_new_tokens]
    asked = [sitting.request(sitting.problems[i], prefix_ids=prefixes[i]) for i in open_]
    answers = list(plans)
    for i, text in zip(open_, sitting.say(asked, solver), strict=True):
        answers[i] = text
    return answers
