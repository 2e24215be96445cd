"""A program that holds the state and asks the model one step at a time, against the direct answer at equal tokens."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from trainorder.config.values import PromptText, Samples
from trainorder.evaluation.sitting import Sitting, Values, way
from trainorder.rewards import format
from trainorder.streams import seed_of
from trainorder.tasks.base import in_template, reworded


@dataclass(frozen=True)
class Steps:
    """A question in two: what is asked first, and what then, given the answer to the first."""

    first: str
    then: Callable[[str], str]


@way(answers=2)
def program(sitting: Sitting) -> Values:
    """A two-step program against the direct answer, at equal tokens (LLM programs, arXiv:2305.05364).

    Of a chain of arithmetic the first half is asked, then the rest from the number that came; of a two-hop question the
    inner one, then the outer one about the answer. Each call sees its own step only. Both steps together may take as many
    tokens as the direct answer, the first no more than half. `program`: score; `program_direct`: score of the greedy
    direct answer; `program_gain`: their difference; `program_tokens`, `program_direct_tokens`: tokens that they took;
    `program_failed`: 1 where the first step gave no answer, so that the question was asked whole with what was left. Problems that no
    program takes apart have no value.
    """
    limit = sitting.exam.max_new_tokens
    split = {i: s for i, p in enumerate(sitting.problems) if (s := steps_of(p.question))}
    if not split or limit < 2:
        return {}
    problems = [sitting.problems[i] for i in split]
    firsts = [
        sitting.request(p, prompt=reworded(p.prompt, lambda _, s=s: s.first), max_new_tokens=limit // 2)
        for p, s in zip(problems, split.values(), strict=True)
    ]  # fmt: skip
    said = sitting.say(firsts)
    answers, used = [format.answer(text) for text in said], _lengths(sitting, said, limit // 2)
    seconds = [
        sitting.request(
            p,
            prompt=reworded(p.prompt, lambda whole, s=s, a=a: s.then(a) if a else whole),
            max_new_tokens=limit - n,
        )
        for p, s, a, n in zip(problems, split.values(), answers, used, strict=True)
    ]
    last = sitting.say(seconds)
    total = [n + m for n, m in zip(used, _lengths(sitting, last, limit), strict=True)]
    return _against_direct(
        sitting, list(split), "program", last, total, [float(not answer) for answer in answers]
    )


@way(answers=3)
def evidence(
    sitting: Sitting,
    *,
    keep: Annotated[int, Field(ge=1, le=1000)] = 2,
    votes: Samples = 2,
    ask: PromptText = "{prompt}\nDoes the passage help to answer the question? Answer yes or no.",
    yes: str = "yes",
) -> Values:
    """Select the passages that help, then answer from these alone, at the tokens of the direct answer (LLM programs, arXiv:2305.05364).

    For prompts of several lines: the last one is the question, the others are passages. Each is shown alone with the
    question and `votes` times judged in up to two tokens; the `keep` with the most answers that begin with `yes`, in the order of
    the prompt, are shown with the question. Metrics as those of `program`; `evidence_failed` is the share of judgements
    that begin with neither `yes` nor `no`. What the judgements took leaves the answer fewer tokens; prompts whose
    judgements could take all have no value.
    """
    limit, parts = sitting.exam.max_new_tokens, dict[int, list[str]]()
    for i, problem in enumerate(sitting.problems):
        lines = [line for line in problem.question.splitlines() if line.strip()]
        if len(lines) > keep + 1 and 2 * votes * (len(lines) - 1) < limit:
            parts[i] = lines
    if not parts:
        return {}
    asked, of = [], []
    for i, (*passages, question) in parts.items():
        problem = sitting.problems[i]
        for number, passage in enumerate(passages):
            shown = reworded(problem.prompt, lambda _, t=f"{passage}\n{question}": t)
            seed = seed_of("evidence", sitting.config.seed, problem.id, number)
            asked.append(
                sitting.request(
                    problem, prompt=in_template(shown, ask), samples=votes, temperature=1.0,
                    max_new_tokens=2, seed=seed,
                )
            )  # fmt: skip
            of += [(i, number)] * votes
    said = sitting.say(asked)
    spent, scores = dict.fromkeys(parts, 0), {i: [0.0] * (len(p) - 1) for i, p in parts.items()}
    failed = dict.fromkeys(parts, 0.0)
    for (i, number), text, count in zip(of, said, _lengths(sitting, said, 2), strict=True):
        word = format.answer(text) or text.strip()
        scores[i][number] += float(word.casefold().startswith(yes.casefold())) / votes
        failed[i] += not word.casefold().startswith((yes.casefold(), "no"))
        spent[i] += count
    chosen = {i: best(scores[i], keep) for i in parts}
    seconds = [
        sitting.request(
            sitting.problems[i],
            prompt=reworded(
                sitting.problems[i].prompt,
                lambda _, i=i: "\n".join([*(parts[i][n] for n in chosen[i]), parts[i][-1]]),
            ),
            max_new_tokens=limit - spent[i],
        )
        for i in parts
    ]
    last = sitting.say(seconds)
    total = [spent[i] + n for i, n in zip(parts, _lengths(sitting, last, limit), strict=True)]
    shares = [failed[i] / (votes * (len(parts[i]) - 1)) for i in parts]
    return _against_direct(sitting, list(parts), "evidence", last, total, shares)


def best(scores: Sequence[float], keep: int) -> list[int]:
    """Numbers of the `keep` best passages, in their order; earlier ones first among equals.

    >>> best([0.1, 0.9, 0.3], 2)
    [1, 2]
    """
    return sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:keep])


_CHAIN = re.compile(r"\d+(?: [+-] \d+){2,} = \?")
_STORY = re.compile(
    r"(?P<who>\w+ has )\d+(?P<what> \w+ \. )(?P<turns>(?:then \w+ \d+ \. ){2,})how many \?"
)
_HOPS = re.compile(
    r"(?P<ask>.+?) (?P<outer>\w+) of the (?P<inner>country with capital \w+) \?(?P<rest>.*)", re.DOTALL
)  # fmt: skip


def steps_of(question: str) -> Steps | None:
    """The two steps of a question that can be taken apart by its text alone.

    >>> s = steps_of("9 - 5 + 2 = ?"); s.first, s.then("4")
    ('9 - 5 = ?', '4 + 2 = ?')
    >>> s = steps_of("sam has 9 figs . then eats 5 . then finds 2 . how many ?"); s.first, s.then("4")
    ('sam has 9 figs . then eats 5 . how many ?', 'sam has 4 figs . then finds 2 . how many ?')
    >>> s = steps_of("name the language of the country with capital lima ?"); s.first, s.then("peru")
    ('name the country with capital lima ?', 'name the language of peru ?')
    """
    if _CHAIN.fullmatch(question):
        start, *rest = question.removesuffix(" = ?").split(" ")
        pairs = [" ".join(rest[i : i + 2]) for i in range(0, len(rest), 2)]
        half = len(pairs) // 2
        return Steps(
            f"{' '.join([start, *pairs[:half]])} = ?", lambda n: f"{' '.join([n, *pairs[half:]])} = ?"
        )  # fmt: skip
    if found := _STORY.fullmatch(question):
        who, what = found["who"], found["what"]
        turns = [f"{turn} . " for turn in found["turns"].removesuffix(" . ").split(" . ")]
        half, start = len(turns) // 2, question[len(found["who"]) :].split(" ")[0]

        def told(number: str, own: Sequence[str]) -> str:
            return f"{who}{number}{what}{''.join(own)}how many ?"

        return Steps(told(start, turns[:half]), lambda n: told(n, turns[half:]))
    if found := _HOPS.fullmatch(question):
        ask, outer, inner, rest = found.groups()
        return Steps(f"{ask} {inner} ?", lambda name: f"{ask} {outer} of {name} ?{rest}")
    return None


def _lengths(sitting: Sitting, texts: Sequence[str], limit: int) -> list[int]:
    """Tokens of answers, the end token included, which one that was cut off lacks."""
    return [min(limit, len(ids)) for ids in sitting.tokens(texts)]


def _against_direct(
    sitting: Sitting,
    places: Sequence[int],
    name: str,
    answers: Sequence[str],
    tokens: Sequence[int],
    failed: Sequence[float],
) -> Values:
    """The metrics of answers to the problems at these places, beside those of the greedy direct answers."""
    own = sitting.worth(answers, [sitting.problems[i] for i in places])
    direct = [sitting.greedy_values[i] for i in places]
    taken = _lengths(sitting, [sitting.greedy[i] for i in places], sitting.exam.max_new_tokens)
    columns = {
        "": own,
        "_direct": direct,
        "_gain": [a - b for a, b in zip(own, direct, strict=True)],
        "_tokens": list(map(float, tokens)),
        "_direct_tokens": list(map(float, taken)),
        "_failed": failed,
    }
    found = {f"{name}{end}": [math.nan] * len(sitting.problems) for end in columns}
    for end, values in columns.items():
        for i, value in zip(places, values, strict=True):
            found[f"{name}{end}"][i] = value
    return found
