"""Which rows are computed together: micro-batches of at most so many tokens, and what a forward computes of them."""

from __future__ import annotations

from dataclasses import dataclass

from trainorder.rl.types import Roll


def computed_tokens(roll: Roll) -> int:
    """Tokens that `forward` computes for these rows: each prompt once, each answer without its last token."""
    prompts = {tuple(prompt) for prompt in roll.prompt_ids}
    if not prompts:
        return 0
    return sum(map(len, prompts)) + int((roll.lengths() - 1).clamp(min=0).sum())


def micro_batches(roll: Roll, budget: int, *, shared: bool = True) -> list[list[int]]:
    """Rows of each micro-batch: what `forward` computes and holds of it is at most `budget` tokens, padding included.

    `shared` (see `shares_prompts`): attention pads prompts to the longest one and gives each as many
    rows, as long ones, as any other of the micro-batch has. Otherwise each row is padded to the
    longest behind its prompt. A row larger than the budget is a micro-batch of its own.

    Rows of like length come together, and those of a prompt stay together as far as they fit. Of the
    bounds that need no more micro-batches than the budget does the smallest is taken, so that
    micro-batches side by side end together. Rows without a token to learn from are left out.
    """
    lengths = [max(n - 1, 1) if n else 0 for n in roll.lengths().tolist()]
    groups: dict[tuple[int, ...], list[int]] = {}
    for i in sorted(range(len(roll)), key=lambda i: (lengths[i], i)):
        if lengths[i]:
            groups.setdefault(tuple(roll.prompt_ids[i]), []).append(i)

    def shape(rows: list[int]) -> _Grid:
        """Of rows of one prompt, in order of length."""
        return _Grid(1, len(rows), len(rows), len(roll.prompt_ids[rows[0]]), lengths[rows[-1]])

    pieces = []
    for rows in groups.values():
        first = 0
        for end in range(1, len(rows) + 1):
            if end == len(rows) or shape(rows[first : end + 1]).tokens(shared) > budget:
                pieces.append((shape(rows[first:end]), rows[first:end]))
                first = end
    pieces.sort(key=lambda piece: (piece[0].length, piece[0].width, piece[0].rows, piece[1]))

    def packed(bound: int) -> list[list[int]]:
        batches, last = list[list[int]](), _Grid(0, 0, 0, 0, 0)
        for grid, rows in pieces:
            both = last.beside(grid)
            if not batches or both.tokens(shared) > bound:
                batches.append([])
                both = grid
            batches[-1] += rows
            last = both
        return batches

    fewest = len(packed(budget))
    low, high = 0, budget
    while high - low > 1:
        bound = (low + high) // 2
        low, high = (low, bound) if len(packed(bound)) <= fewest else (bound, high)
    return packed(high)


@dataclass(frozen=True)
class _Grid:
    """What some rows and their prompts take when padded."""

    prompts: int
    rows: int
    """Rows behind a prompt, at most."""
    total: int
    """Rows in all."""
    width: int
    """Tokens of a prompt, at most."""
    length: int
    """Tokens of a row, at most."""

    def beside(self, other: _Grid) -> _Grid:
        """Both in one micro-batch; of other prompts."""
        return _Grid(
            self.prompts + other.prompts,
            max(self.rows, other.rows),
            self.total + other.total,
            max(self.width, other.width),
            max(self.length, other.length),
        )

    def tokens(self, shared: bool) -> int:
        """Tokens, padding included; `shared`: a prompt once for all its rows."""
        if shared:
            return self.prompts * (self.width + self.rows * self.length)
        return self.total * (self.width + self.length)
