"""`trainorder run --until-settled`: rounds of more seeds until the best arm is settled or the budget is spent.

A round is an ordinary run. Each is a look at the answer, which params.yaml notes in `measure.looks`, and intervals of differences
hold over all looks (trainorder/metrics/sequential.py).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from trainorder import paths, results
from trainorder.config import Params, params_file, parse_params
from trainorder.editing.seeds import more
from trainorder.editing.sweep import run_with
from trainorder.editing.text import with_value
from trainorder.metrics.statistics import identified
from trainorder.plan.check import check
from trainorder.process import QUIET, held
from trainorder.reading import ParamsError, parse_yaml

FIRST = 3
"""Seeds of the first look, at least."""
MAX_SEEDS = 12
MOST_MINUTES = 1_000_000


def until_settled(
    max_seeds: int = MAX_SEEDS,
    minutes: float | None = None,
    train: Callable[[str, int], int] = run_with,
) -> int:
    """Add seeds and run, round by round; returns the exit code of the last run.

    It ends when the winner is settled, at `max_seeds`, or where the next round, by the time of the rounds so far, would end after
    `minutes`. `train` runs a text of params.yaml, given the flow lock's descriptor, and returns an exit code.

    Raises:
        ParamsError: the params cannot work, or allow no round.
        Busy: another flow runs in this folder, and nothing was changed.
    """
    if minutes is not None and not 0 <= minutes <= MOST_MINUTES:
        raise ParamsError(f"--minutes {minutes:g}: from 0 to {MOST_MINUTES:,}")
    begin, price, known = time.monotonic(), 0.0, 0
    with held(paths.FLOW_LOCK, "runs a flow in this folder") as lock:
        text = first(params_file().read_text(encoding="utf-8"), max_seeds)
        while True:
            count, start = len(seeds_of(text)), time.monotonic()
            if QUIET not in os.environ:
                print(f"look at {count} seeds", flush=True)
            if code := train(text, lock):
                return code
            if identified(results.load()["winner"]["verdict"]):
                print(f"settled with {count} seeds")
                return 0
            if count >= max_seeds:
                print(f"open with {count} seeds, the most that --max-seeds allows")
                return 0
            price, known = max(price, (time.monotonic() - start) / (count - known)), count
            text = following(text, max_seeds)
            spent = time.monotonic() - begin + price * (len(seeds_of(text)) - count)
            if minutes is not None and spent > 60 * minutes:
                print(f"open with {count} seeds: another round would end after {minutes:g} min")
                return 0


def first(text: str, max_seeds: int) -> str:
    """The params of the first round: at least FIRST seeds, and a look at them.

    Raises:
        ParamsError: there are more seeds already, or `max_seeds` is too few.
    """
    known = seeds_of(text)
    if max_seeds < max(FIRST, len(known)):
        least = max(FIRST, len(known))
        raise ParamsError(
            f"--max-seeds {max_seeds}: at least {least}, of which {len(known)} are there"
        )
    return _with_seeds(text, max(FIRST - len(known), 0))


def following(text: str, max_seeds: int) -> str:
    """The params of the next round: a quarter more seeds, at least one, and the look at them."""
    known = seeds_of(text)
    return _with_seeds(text, min(max(len(known) // 4, 1), max_seeds - len(known)))


def seeds_of(text: str) -> list[int]:
    """The seeds of a params file's text."""
    return _params(text).seeds


def _with_seeds(text: str, number: int) -> str:
    """The text with that many more seeds, and a look at all of them."""
    seeds = more(seeds_of(text), number)
    if number:
        text = with_value(text, "seeds", str(seeds))
    looks = sorted({*_params(text).measure.looks, len(seeds)})
    text = with_value(text, "measure.looks", str(looks))
    check(_params(text))
    return text


def _params(text: str) -> Params:
    return parse_params(parse_yaml(text, "params.yaml"), source="params.yaml")
