"""How varied a set of texts is: words, repetition, and meaning as far as word counts carry it."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def distinct_n(texts: Sequence[str], n: int = 2) -> float:
    """Different n-grams of words as a share of all n-grams in the texts (Li et al., arXiv 1510.03055).

    nan if no text has n words.

    >>> round(distinct_n(["a b a b"]), 3)  # ab ba ab: 2 of 3
    0.667
    """
    grams = [gram for text in texts for gram in _ngrams(text.split(), n)]
    return len(set(grams)) / len(grams) if grams else float("nan")


def expected_distinct(distinct: int, total: int, vocabulary: int) -> float:
    """Different words over those expected of as many random draws: N / (V (1 - ((V - 1) / V)^C)); no effect of length.

    Expectation-adjusted distinct (Liu et al., arXiv 2202.13587). nan without words.

    >>> round(expected_distinct(2, 3, 2), 4)
    1.1429
    """
    if not total or not vocabulary:
        return float("nan")
    return distinct / (vocabulary * (1 - ((vocabulary - 1) / vocabulary) ** total))


def edit_distance(a: Sequence[object], b: Sequence[object]) -> int:
    """Insertions, deletions and replacements that turn one sequence into the other (Levenshtein).

    >>> edit_distance("SRSA", "SSA"), edit_distance([], ["S"])
    (1, 1)
    """
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


def compression_ratio(texts: Sequence[str]) -> float:
    """Bytes of the texts, one per line, over their bytes in gzip; higher is more redundant (arXiv 2403.00553).

    Short texts score below 1: gzip's own header weighs about 20 bytes.

    >>> compression_ratio(["the sun rises"] * 20) > 5 * compression_ratio(["the sun rises"])
    True
    """
    data = "\n".join(texts).encode()
    return len(data) / len(gzip.compress(data, compresslevel=9, mtime=0))


def vendi(texts: Sequence[str]) -> float:
    """Vendi score, the effective number of different texts: exp(-sum l log l), l eigenvalues of K / n.

    K is the cosine of the counts of words and word pairs. Friedman & Dieng, arXiv 2210.02410. nan for no texts.

    >>> round(vendi(["a b"] * 4), 6), round(vendi(["a", "b", "c", "d"]), 6)
    (1.0, 4.0)
    >>> round(vendi(["a", "a", "b", "b"]), 6)
    2.0
    """
    if not texts:
        return float("nan")
    eigenvalues = torch.linalg.eigvalsh(similarity(texts) / len(texts)).clamp(min=1e-12)
    return float((-(eigenvalues * eigenvalues.log()).sum()).exp())


def similarity(texts: Sequence[str]) -> Float[Tensor, "text text"]:
    """Cosine between the texts' counts of words and word pairs; empty texts are like each other and like no other.

    >>> similarity(["a b", "b a", ""]).round(decimals=3).tolist()  # a, b shared; ab and ba not: 2 / 3
    [[1.0, 0.667, 0.0], [0.667, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    counts = [
        Counter([*_ngrams(words, 1), *_ngrams(words, 2)] or [()]) for words in map(str.split, texts)
    ]
    columns = {
        gram: i for i, gram in enumerate(dict.fromkeys(gram for count in counts for gram in count))
    }
    table = torch.zeros(len(texts), len(columns), dtype=torch.float64)
    cells = [(i, columns[gram]) for i, count in enumerate(counts) for gram in count]
    values = [float(n) for count in counts for n in count.values()]
    table[tuple(torch.tensor(cells).T)] = torch.tensor(values, dtype=torch.float64)
    table /= table.norm(dim=1, keepdim=True)
    return table @ table.T


def _ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
