"""How varied answers are: words, sentences and meanings, within a problem and across problems. Evaluations only, no model."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations

from trainorder.metrics.diversity import (
    compression_ratio,
    distinct_n,
    edit_distance,
    expected_distinct,
    similarity,
    vendi,
)
from trainorder.probes.answers import entropy, share_of
from trainorder.probes.base import Answer, Checkpoint, Pair, Row, compared, mean, probe
from trainorder.rewards import format

FUNCTION_WORDS = frozenset(
    [
        "a",
        "an",
        "the",
        "this",
        "that",
        "these",
        "those",
        "and",
        "or",
        "but",
        "if",
        "then",
        "than",
        "so",
        "as",
        "of",
        "in",
        "on",
        "at",
        "by",
        "for",
        "from",
        "to",
        "into",
        "with",
        "without",
        "not",
        "no",
        "is",
        "are",
        "was",
        "were",
        "be",
        "been",
        "being",
        "am",
        "do",
        "does",
        "did",
        "has",
        "have",
        "had",
        "can",
        "could",
        "will",
        "would",
        "shall",
        "should",
        "may",
        "might",
        "must",
        "i",
        "you",
        "he",
        "she",
        "it",
        "we",
        "they",
        "me",
        "him",
        "her",
        "us",
        "them",
        "my",
        "your",
        "his",
        "its",
        "our",
        "their",
        "who",
        "what",
        "which",
        "where",
        "when",
        "why",
        "how",
    ]
)
_WORD = re.compile(r"[A-Za-z']+|\d+(?:\.\d+)?|[^\sA-Za-z\d]")
ENDINGS = ("ing", "ed", "ly", "tion", "s")


def skeleton(text: str) -> str:
    """A text with its content words replaced by what their form shows: function words, marks, and the rest as a class.

    A stand-in for tags of parts of speech that needs no tagger.

    >>> skeleton("The dog quickly runs to 2 houses.")
    'the W LY S to N S .'
    """
    return " ".join(map(_class, _WORD.findall(text)))


def _class(word: str) -> str:
    low = word.lower()
    if low in FUNCTION_WORDS or not word[0].isalnum():
        return low
    if word[0].isdigit():
        return "N"
    ending = next((e for e in ENDINGS if low.endswith(e) and len(low) > len(e) + 2), "w")
    return ending.upper()


Measure = Callable[[Sequence[str]], float]


def spread(texts: Sequence[str]) -> float:
    """1 - mean cosine of the counts of words and word pairs, over pairs of texts; nan below two.

    >>> spread(["a b", "a b"]), spread(["a", "b"])
    (0.0, 1.0)
    """
    n = len(texts)
    if n < 2:
        return math.nan
    table = similarity(texts)
    found = 1 - (float(table.sum()) - float(table.trace())) / (n * (n - 1))
    return max(0.0, round(found, 12))


def _compression(texts: Sequence[str]) -> float:
    return compression_ratio(texts) if any(texts) else math.nan


def answers_entropy(texts: Sequence[str]) -> float:
    """Entropy in nats of the answers that the texts give, of those that can be read; nan of none."""
    found: dict[str, list[str]] = {}
    for text in texts:
        if said := format.answer(text):
            found.setdefault(said, []).append(text)
    return entropy(share_of(found)) if found else math.nan


MEASURES: dict[str, Measure] = {
    "lexical_distinct_2": lambda texts: distinct_n(texts, 2),
    "lexical_compression": _compression,
    "syntactic_distinct_2": lambda texts: distinct_n([*map(skeleton, texts)], 2),
    "syntactic_compression": lambda texts: _compression([*map(skeleton, texts)]),
    "semantic_vendi": vendi,
    "semantic_spread": spread,
    "answer_entropy": answers_entropy,
}


@probe("evaluations")
def diversity(pair: Pair) -> Iterator[Row]:
    """Lexical, syntactic and semantic diversity per task: `within` a problem's samples, `across` problems, and of right answers.

    Lexical: distinct-2, expectation-adjusted distinct words, compression ratio (higher is more redundant). Syntactic: the same of
    sentences without their content words. Semantic: Vendi score and mean distance of word counts, and the entropy of the
    answers given. `across_right` takes answers that score from .5 on only: preference tuning lowers the variety of form, and can
    raise that of what is valid (arXiv 2504.12522; levels after arXiv 2310.06452).
    """
    for task in pair.tasks:
        groups = [checkpoint.sampled(task) for checkpoint in pair.both]
        vocabulary = len(
            {w for group in groups for own in group for a in own for w in a.text.split()}
        )
        sets = [_sets(checkpoint, task) for checkpoint in pair.both]
        for part in sets[0]:
            for name, measure in MEASURES.items():
                values = [mean(_known(measure, found[part])) for found in sets]
                yield from compared(task, part, name, *values)
            words = [
                [w for text in (t for g in found[part] for t in g) for w in text.split()]
                for found in sets
            ]
            adjusted = [expected_distinct(len(set(own)), len(own), vocabulary) for own in words]
            yield from compared(task, part, "lexical_expected", *adjusted)


def _known(measure: Measure, groups: Sequence[Sequence[str]]) -> list[float]:
    return [value for group in groups if group and math.isfinite(value := measure(group))]


def _sets(checkpoint: Checkpoint, task: str) -> dict[str, list[list[str]]]:
    """Part -> the sets of texts that its measures are averaged over."""
    groups = checkpoint.sampled(task)
    firsts = [group[0] for group in groups if group]
    right = [answer for answer in firsts if (answer.score or 0.0) >= 0.5]
    return {
        "within": [_texts(group) for group in groups if len(group) > 1],
        "across": [_texts(firsts)],
        "across_right": [_texts(right)],
    }


def _texts(answers: Sequence[Answer]) -> list[str]:
    return [answer.text for answer in answers]


_QUERY = re.compile(r"<(search|query)>(.*?)</\1>", re.DOTALL)
_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


def queries_of(text: str) -> list[tuple[str, str]]:
    """(tool, query) of every search and tool call, in order of kind, then of place.

    >>> queries_of('<search> tides </search> <tool_call>{"name": "find", "arguments": {"query": "moon"}}</tool_call>')
    [('search', 'tides'), ('find', 'moon')]
    """
    found = [(match[1], " ".join(match[2].split())) for match in _QUERY.finditer(text)]
    for match in _CALL.finditer(text):
        try:
            call = json.loads(match[1])
            arguments = call["arguments"]
            said = (
                arguments.get("query")
                or arguments.get("q")
                or json.dumps(arguments, sort_keys=True)
            )
            found.append((str(call["name"]), str(said)))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            found.append(("unreadable", " ".join(match[1].split())))
    return found


@probe("evaluations")
def queries(pair: Pair) -> Iterator[Row]:
    """Of answers that call tools: different queries as a share of all, their Vendi score, calls per answer, distance of call sequences.

    The distance is the mean number of edits between the sequences of tools of a problem's samples. RL is said to squeeze what
    search agents ask and SFT to widen it (arXiv 2509.21128 shows it for reasoning, arXiv 2604.14877 the contrary for tools), so it is
    measured. Nothing where no answer calls a tool.
    """
    for task in pair.tasks:
        found = [_queries(checkpoint, task) for checkpoint in pair.both]
        if not any(asked for per_problem in found for own in per_problem for asked in own):
            continue
        yield from compared(task, "queries", "distinct", *map(_distinct, found))
        yield from compared(task, "queries", "vendi", *map(_vendi, found))
        yield from compared(
            task, "calls", "per_answer", *(mean([len(a) for g in f for a in g]) for f in found)
        )
        yield from compared(task, "calls", "distance", *map(_distance, found))


Asked = list[list[list[tuple[str, str]]]]
"""Problem -> sample -> calls."""


def _queries(checkpoint: Checkpoint, task: str) -> Asked:
    return [[queries_of(answer.text) for answer in group] for group in checkpoint.sampled(task)]


def _distinct(found: Asked) -> float:
    own = [[query for asked in group for _, query in asked] for group in found]
    return mean([len(set(said)) / len(said) for said in own if said])


def _vendi(found: Asked) -> float:
    own = [[query for asked in group for _, query in asked] for group in found]
    return mean([vendi(said) for said in own if said])


def _distance(found: Asked) -> float:
    tools = [[[name for name, _ in asked] for asked in group] for group in found]
    return mean([float(edit_distance(a, b)) for group in tools for a, b in combinations(group, 2)])
