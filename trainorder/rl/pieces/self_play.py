"""One policy in several roles: it writes problems, answers them and judges the answers; a program verifies both."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from trainorder.config.values import Count, PromptText, Share, VoteText
from trainorder.rl.pieces.item_rates import utility_of
from trainorder.rl.playing import KEY, ROLES, Play, balanced, rewarded, whole
from trainorder.rl.registry import edit, metric, weight
from trainorder.rl.types import Roll, Rollouts, State
from trainorder.tasks.posing import ASK, JUDGE


@edit
def self_play(
    roll: Roll,
    state: State,
    rollouts: Rollouts,
    *,
    questions: Count = 16,
    utility: Literal["spell", "socratic", "variance", "deviation"] = "spell",
    learn: Literal["reward", "imitate"] = "reward",
    votes: Count = 8,
    judged: bool = True,
    trust: Literal["rule", "either"] = "rule",
    show: int = 4,
    show_below: Share = 0.5,
    memory: int = 3,
    replay: Share = 0.0,
    ask: PromptText = ASK,
    judge: VoteText = JUDGE,
) -> Roll:
    """The policy writes problems, answers them and judges the answers, in one step (SPELL, arXiv:2509.23863).

    Questioner: `questions` texts, each asked by `ask` with a problem of the step, or with one of the last `memory` written ones
    that were solved. A program reads them (tasks/posing.py) and works the answer out. Responder: as many answers to
    each new problem as the step's own problems get, graded by that program. Verifier (`judged`): `votes` binary votes on one
    answer to each.

    Rewards: a written problem solved at the rate p earns `utility`(p) (as of `rl.items: frontier`; 0 at 0 and 1), no problem -1,
    one that was written or asked before -.5 (ours; the paper's is for questions that need no document); an answer its grade
    (`trust: either`, the paper's: 1 too where the votes' majority says so); a vote 1 where it is the majority's. Questioner rows are
    one group, all others groups of their own. Balance: groups of new problems with equal rewards are dropped; of the questioner as many rows with
    reward as without; votes whose majority agrees with the program, and of others no more than there are new problems.

    Guards against collapse: the step's own problems are always there; a problem of dev or test is tried by nobody and earns nothing; while the moving share
    of texts that are new problems is below `show_below`, `show` texts of the step's problems are given as rows of source `expert`, and
    as many right votes while the majority agrees with the program less often than that. A term `nll` with `source: expert` learns from them.

    `learn: imitate` (Socratic-Zero, arXiv:2509.24726): questioner rows get no reward; new problems are given as `expert` rows that
    `question_utility` weighs, and a share `replay` of problems written earlier beside them.

    Raises:
        ParamsError: no program can verify written problems of the task.
    """
    play = Play.of(roll, state, rollouts)
    if not play.seeds:
        return roll
    written = play.write(questions, memory, ask)
    answers = play.answer()
    parts, rates = [roll], play.rates(answers)
    worth = {i: utility_of(rate, utility) for i, rate in rates.items()}
    ballots = play.vote(answers, votes, judge) if judged else None
    if answers is not None and ballots is not None and trust == "either":
        answers = play.believed(answers)
    if learn == "reward":
        earned = [worth.get(i, blame) for i, blame in enumerate(play.blame)]
        tried = [i for i in range(len(earned)) if i not in play.held]
        kept = balanced([earned[i] > 0 for i in tried], state.stream(KEY))
        asked = rewarded(written, earned).rows([tried[i] for i in kept])
        parts = [asked, *parts] if kept else parts
    if answers is not None:
        parts += whole(answers, play.uneven(answers))
    if ballots is not None:
        parts += whole(ballots, play.heard(ballots))
    given = play.shown(show, show_below, ask, judge, judged=judged)
    if learn == "imitate":
        given += play.imitated(worth, replay, ask)
    if given:
        requests, texts = zip(*given, strict=True)
        parts.append(rollouts.given(list(requests), list(texts), "expert"))
    play.remember(rates, memory, len(given))
    return Roll.cat(parts)


@weight
def question_utility(roll: Roll, state: State) -> Float[Tensor, " row"]:
    """Of a written problem that is imitated its utility, 1 for all other rows (Socratic-Zero, arXiv:2509.24726)."""
    known = roll.asked("worth")
    return torch.where(known.isnan(), 1.0, known).to(roll.rewards.dtype)


@metric
def self_play_roles(roll: Roll, state: State) -> dict[str, float]:
    """What `self_play` made (arXiv:2509.23863): shares of the step's rows by role, as trained on, and how its roles do.

    `role_share_*` of the policy's rows, `role_credit_*` of those that have credit; `self_play_new`, `_held_out`, `_repeated`, `_malformed`:
    shares of the written texts; `self_play_solved`: mean rate at which new problems were solved; `self_play_agreed`: share of majorities that agree
    with the program; `self_play_shown`: rows given so that a role comes back.
    """
    role = torch.where(roll.asked("role").isnan(), 0.0, roll.asked("role"))
    mine = roll.is_from("policy")
    credit = mine & (roll.advantages != 0).any(1)
    found = {}
    for number, name in enumerate(ROLES):
        own = role == number
        for kind, rows in (("share", mine), ("credit", credit)):
            count = int(rows.sum())
            found[f"role_{kind}_{name}"] = int((own & rows).sum()) / count if count else 0.0
    return found | state.mem.get(KEY, {}).get("log", {})
