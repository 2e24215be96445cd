"""Rows in their splits: as the files say, else by the hash of their content; what leaks or is doubled is taken out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trainorder.reading import ParamsError
from trainorder.tasks.base import SPLITS, Problem, Split, split_of
from trainorder.tasks.leaks import normal_form
from trainorder.tasks.lines import Dropped

Placed = tuple[Problem, str, int]


def in_splits(
    where: str, by_split: Mapping[Split | None, list[Placed]]
) -> dict[Split, list[Placed]]:
    """Every row in its split: as the file says, else by the hash of its content, which also fills a split that is missing."""
    named = {split: list(by_split.get(split, [])) for split in SPLITS}
    unnamed = list(by_split.get(None, []))
    if unnamed and any(named.values()):
        raise ParamsError(
            f"{where}.data: {len(unnamed)} rows name no split and others do; name one in every row, or in none"
        )
    missing = {split for split in SPLITS if not named[split]}
    if not unnamed and not named["train"] and any(named.values()):
        raise ParamsError(
            f"{where}.data: no row of split train; name a training file: data: {{train: ...}}"
        )
    pool = unnamed or named["train"]
    if missing:
        named["train"] = []
        for placed in pool:
            split = split_of(placed[0].id)
            named[split if split in missing else "train"].append(placed)
    return named


def without_leaks(
    splits: Mapping[Split, Sequence[Placed]], bad: list[Dropped]
) -> dict[Split, list[Problem]]:
    """What test holds, dev and train may not, in any spelling; within a split only equal prompts are doubled."""
    found: dict[Split, list[Problem]] = {}
    seen: dict[str, tuple[str, int]] = {}
    for split in reversed(SPLITS):
        own: dict[str, tuple[str, int]] = {}
        known: dict[str, int] = {}
        found[split] = []
        for problem, file, number in splits[split]:
            key = normal_form(problem.question)
            if problem.id in known:
                bad.append(
                    Dropped(
                        file, number, f"duplicate: the prompt of line {known[problem.id]} again"
                    )
                )
            elif key in seen:
                bad.append(
                    Dropped(file, number, "leakage: the prompt of {}, line {}".format(*seen[key]))
                )
            else:
                known[problem.id] = number
                own.setdefault(key, (file, number))
                found[split].append(problem)
        seen |= own
    return {split: found[split] for split in SPLITS}
