"""Where each token of an answer stands in its text, for pieces that read text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from trainorder.policy import Policy
from trainorder.rl.types import Roll

UNFINISHED = "\ufffd"
"""What a tokenizer shows for the first bytes of a character."""


def char_spans(policy: Policy, roll: Roll) -> dict[str, Int[Tensor, "row token"]]:
    """`char_start` and `char_end` of each token in roll.text; equal for a token without text, and after the answer."""
    found = torch.zeros(2, *roll.response_ids.shape, dtype=torch.long)
    for row, (ids, length) in enumerate(
        zip(roll.response_ids.tolist(), roll.lengths().tolist(), strict=True)
    ):
        spans = spans_of(policy, ids[:length])
        found[:, row, :length] = torch.tensor(spans, dtype=torch.long).view(-1, 2).T
        found[:, row, length:] = spans[-1][1] if spans else 0
    return {"char_start": found[0], "char_end": found[1]}


def spans_of(policy: Policy, ids: Sequence[int]) -> list[tuple[int, int]]:
    """First and end character of each token. Tokens that share a character all get all of it.

    Decodes a token with those of the step before only: a tokenizer joins tokens by their neighbours.
    """
    spans: list[tuple[int, int]] = []
    begin, done, end = 0, 0, 0  # tokens [begin, done) are the context, `end` characters are placed
    for place in range(len(ids)):
        before = policy.decode(ids[begin:done])
        text = policy.decode(ids[begin : place + 1])
        if text.endswith(UNFINISHED) and place + 1 < len(ids):
            continue
        longer = end + len(text) - len(before)
        spans += [(end, longer)] * (place + 1 - done)
        begin, done, end = done, place + 1, longer
    return spans
