"""Texts as counts of their words."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

WORDS = 4096
"""Columns at most: of more different words, several share one."""


def tf_idf(texts: Sequence[str]) -> Float[np.ndarray, "text word"]:
    """TF-IDF vectors of length 1 (0 of an empty text): word counts times ln((1 + texts) / (1 + texts with the word)) + 1.

    Words are split at white space, in lower case.

    >>> [[round(x, 3) for x in row] for row in tf_idf(["red apple", "red"]).tolist()]
    [[0.815, 0.58], [0.0, 1.0]]
    """
    rows = [text.lower().split() for text in texts]
    words = sorted({word for row in rows for word in row})
    few = len(words) <= WORDS
    places = {w: i if few else zlib.crc32(w.encode()) % WORDS for i, w in enumerate(words)}
    counts = np.zeros((len(texts), max(1, min(WORDS, len(words)))), dtype=np.float32)
    for row, own in enumerate(rows):
        for word in own:
            counts[row, places[word]] += 1
    scaled = counts * (np.log((1 + len(texts)) / (1 + (counts > 0).sum(0))) + 1)
    return scaled / np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), 1e-12)
