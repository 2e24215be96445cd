"""Item samplers that look at more than grades: uncertainty, angles of hidden states, neighbours, a fitted mixture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int

from trainorder.metrics.words import tf_idf
from trainorder.rl.items import Pool, item
from trainorder.rl.samplers import Mem
from trainorder.streams import numpy_stream

BLOCK = 512
"""Texts compared with all others at a time: what bounds the memory."""
GSM8K = 7473
"""Problems of the pool that GAIN-RL's numbers are of."""


@item(draws="top", looks=("prefix_entropy",))
def edco(pool: Pool, mem: Mem, *, rounds: int = 5, strip_top: float = 0.0) -> list[float]:
    """Rounds of the problems whose quick answer the policy is least sure of (EDCO, arXiv:2601.03725).

    At the start of each round the whole pool is measured (`prefix_entropy`, rl/looks.py), then the most uncertain problems
    come, in that order, as many as the round asks for. rounds 5 is the authors'; their N is 200 or 320 problems a round,
    here the steps decide it. `strip_top` leaves out the most uncertain share, which reviewers took for outliers (0 in the
    authors' code).
    """
    turn = pool.step * rounds // max(1, pool.total)
    if mem.get("round") != turn:
        pool.measured("prefix_entropy", again=True)
        visits = zip(pool.problems, pool.fact("visits"), strict=True)
        mem["round"], mem["begun"] = turn, {p.id: v for p, v in visits if v}
    scores = pool.measured("prefix_entropy")
    stripped = sorted(scores, reverse=True)[: int(strip_top * len(scores))]
    bound = stripped[-1] if stripped else math.inf
    size = max(scores) - min(scores) + 1.0
    found = []
    for problem, score, visits in zip(pool.problems, scores, pool.fact("visits"), strict=True):
        again = visits - mem["begun"].get(problem.id, 0.0)
        found.append(-math.inf if score >= bound else score - size * again)
    return found


@item(looks=("angle",))
def gain_rl(
    pool: Pool,
    mem: Mem,
    *,
    updates: int = 10,
    step: float = 500.0,
    alpha: float = 2.0,
    beta: float = 0.5,
    sigma: float = 1000.0,
    most: float = 1000.0,
    scaled: bool = True,
) -> list[float]:
    """A normal window over problems sorted by the angle concentration of their hidden states (GAIN-RL, arXiv:2506.02281).

    Ranks by the look `angle`, most concentrated first; P(rank i) in proportion to exp(-(i - mu)^2 / (2 sigma^2)), mu from 0.
    `updates` times in the phase mu grows by clip(step tanh(alpha (acc / 2 - beta)) + step tanh(alpha ang), 0, most): acc the
    mean grade since the last update on a scale of 0 to 2, ang the mean angle of the pool now. step, alpha, beta, sigma and
    most are the authors', for the 7473 problems of GSM8K; `scaled` takes them in proportion to the size of this pool.
    They update once per epoch, ours `updates` 10. Their port to verl gives acc on a scale of 0 to 1, which we do not follow.
    """
    angles = pool.measured("angle")
    unit = len(pool) / GSM8K if scaled else 1.0
    turn = pool.step * updates // max(1, pool.total)
    sums = mem.setdefault("sums", [0.0, 0.0])
    if mem.get("step") != pool.step:
        for problem in pool.problems:
            if problem.id in pool.seen and "last" in pool.known.get(problem.id, {}):
                sums[0] += pool.known[problem.id]["last"]
                sums[1] += 1
        mem["step"] = pool.step
    if mem.setdefault("turn", turn) != turn:
        angles = pool.measured("angle", again=True)
        accuracy = 2 * sums[0] / sums[1] if sums[1] else 0.0
        moved = shift(accuracy, math.fsum(angles) / len(angles), step, alpha, beta, most)
        mem["mu"] = mem.get("mu", 0.0) + unit * moved
        mem["turn"], mem["sums"] = turn, [0.0, 0.0]
    mu = mem.get("mu", 0.0)
    if "ranks" not in mem:
        ids = sorted((-a, p.id) for a, p in zip(angles, pool.problems, strict=True))
        mem["ranks"] = {key: place for place, (_, key) in enumerate(ids)}
    ranks = [mem["ranks"].get(p.id, len(pool)) for p in pool.problems]
    return [-0.5 * ((rank - mu) / (unit * sigma)) ** 2 for rank in ranks]


def shift(
    accuracy: float, angle: float, step: float, alpha: float, beta: float, most: float
) -> float:
    """How far the window moves, in ranks.

    >>> [round(shift(a, angle, 500, 2, 0.5, 1000), 2) for a, angle in ((1, 0), (2, 0), (0, 0), (1, 0.5))]
    [0.0, 380.8, 0.0, 380.8]
    """
    moved = step * math.tanh(alpha * (accuracy / 2 - beta)) + step * math.tanh(alpha * angle)
    return min(max(moved, 0.0), most)


@item()
def wiki_r1(
    pool: Pool,
    mem: Mem,
    *,
    width: float = 0.2,
    alpha: float = 0.8,
    neighbours: int = 100,
    rounds: int = 10,
    clamped: bool = True,
) -> list[float]:
    """A normal weight around an expected accuracy of .5, with what was seen carried over to like problems (Wiki-R1).

    arXiv:2603.05256: accuracies a <- alpha K a + (1 - alpha) a_seen for at most `rounds` 10 rounds (until they move by less
    than 1e-4), K the row-normalised TF-IDF similarity of prompts to their 100 nearest, alpha .8. There a problem that was
    not seen enters with 0, which draws estimates down; `clamped` (ours) holds seen ones at their value and starts others at
    the mean. The width was not found. Its gap levels are the plan piece `distracted`.
    """
    seen = {p.id: k for p in pool.problems if (k := pool.known.get(p.id, {})).get("rollouts")}
    if not seen:
        return [0.0] * len(pool)
    observed = np.array([rate_seen(seen.get(p.id)) for p in pool.problems])
    near, weights = similar(tuple(p.question for p in pool.problems), neighbours)
    found = propagated(near, weights, observed, alpha, rounds, clamped=clamped)
    return [-((float(a) - 0.5) ** 2) / (2 * width**2) for a in found]


def rate_seen(known: dict[str, float] | None) -> float:
    """Share of right answers; nan where none was seen."""
    return math.nan if known is None else known["solved"] / known["rollouts"]


def propagated(
    near: Int[np.ndarray, "problem neighbour"],
    weights: Float[np.ndarray, "problem neighbour"],
    observed: Float[np.ndarray, " problem"],
    alpha: float,
    rounds: int,
    *,
    clamped: bool,
) -> Float[np.ndarray, " problem"]:
    """Accuracies after the rounds, from those seen (nan where unknown) and each problem's neighbours, whose weights sum to 1.

    >>> linked, seen = (np.array([[1], [0]]), np.ones((2, 1))), np.array([1.0, 0.0])
    >>> [propagated(*linked, seen, 0.8, n, clamped=False).round(4).tolist() for n in (1, 2, 10)]
    [[0.2, 0.8], [0.84, 0.16], [0.6033, 0.3967]]
    """
    unknown = np.isnan(observed)
    start = float(observed[~unknown].mean()) if clamped and not unknown.all() else 0.0
    base = np.where(unknown, start, observed)
    values = base.copy()
    for _ in range(rounds):
        moved = alpha * (weights * values[near]).sum(1) + (1 - alpha) * base
        if clamped:
            moved = np.where(unknown, moved, observed)
        done = np.abs(moved - values).max() < 1e-4
        values = moved
        if done:
            break
    return values


@lru_cache(maxsize=4)
def similar(
    texts: tuple[str, ...], neighbours: int
) -> tuple[Int[np.ndarray, "text neighbour"], Float[np.ndarray, "text neighbour"]]:
    """Each text's nearest others by the TF-IDF cosine of their words, and these cosines made to sum to 1.

    A text like no other is its own neighbour.

    >>> near, weights = similar(("red apple", "red apple pie", "blue car"), 1)
    >>> near.tolist(), weights.tolist()
    ([[1], [0], [2]], [[1.0], [1.0], [1.0]])
    """
    scaled = tf_idf(texts)
    kept = max(1, min(neighbours, len(texts) - 1))
    near = np.empty((len(texts), kept), dtype=np.int64)
    weights = np.empty((len(texts), kept))
    for first in range(0, len(texts), BLOCK):
        cosines = (scaled[first : first + BLOCK] @ scaled.T).astype(np.float64)
        own = np.arange(len(cosines))
        cosines[own, first + own] = 0.0
        found = np.argsort(-cosines, axis=1, kind="stable")[:, :kept]
        near[first : first + BLOCK] = found
        weights[first : first + BLOCK] = np.take_along_axis(cosines, found, 1)
    alone = weights.sum(1) <= 0
    near[alone], weights[alone] = np.flatnonzero(alone)[:, None], 1.0
    return near, weights / weights.sum(1, keepdims=True)


@item()
def alp_gmm(
    pool: Pool,
    mem: Mem,
    *,
    by: list[str] | None = None,
    episodes: int = 250,
    epsilon: float = 0.2,
    most: int = 10,
) -> list[float]:
    """Absolute learning progress over a space of task parameters (ALP-GMM, arXiv:1910.07224, from its code).

    A problem is a point u (`by`, keys as of `in_order`, each scaled to 0 ... 1; null: the prompt's length). For each problem
    asked, alp = |r - r of the nearest earlier point|, 0 until 5 are stored. Every `episodes` 250 problems mixtures of 2 ...
    `most` 10 normals with full covariance are fitted to the last 250 (u, alp), the one of least AIC is kept. P is uniform with
    share epsilon .2, else a normal in proportion to its mean alp, then a problem by that normal's density at u. The first
    250 are uniform. Here a problem's r is its mean grade; the pool is what there is, so that u is not drawn freely.
    """
    points = scaled_points([pool.by(name) for name in by or ["length"]])
    _note_progress(pool, mem, points, episodes)
    stored: list[list[float]] = mem["stored"]
    due = len(stored) >= episodes and mem["count"] - mem.get("fitted", 0) >= episodes
    if due:
        mem["mixture"] = fitted(np.array(stored[-episodes:]), most, (pool.task, mem["count"]))
        mem["fitted"] = mem["count"]
    if "mixture" not in mem:
        return [0.0] * len(pool)
    shares = np.full(len(pool), epsilon / len(pool))
    progress = np.maximum([mean[-1] for mean, _, _ in mem["mixture"]], 0.0)
    chances = progress / progress.sum() if progress.sum() > 0 else None
    for i, (mean, covariance, _) in enumerate(mem["mixture"]):
        own = log_density(points, np.array(mean)[:-1], np.array(covariance)[:-1, :-1])
        own = np.exp(own - own.max())
        chance = 1 / len(mem["mixture"]) if chances is None else chances[i]
        shares += (1 - epsilon) * chance * own / own.sum()
    return [math.log(max(float(share), 1e-300)) for share in shares]


def _note_progress(pool: Pool, mem: Mem, points: np.ndarray, episodes: int) -> None:
    stored = mem.setdefault("stored", [])
    history = mem.setdefault("history", [])
    mem.setdefault("count", 0)
    if mem.get("step") == pool.step:
        return
    mem["step"] = pool.step
    order = sorted(range(len(pool)), key=lambda i: pool.problems[i].id)
    for i in order:
        problem = pool.problems[i]
        if problem.id not in pool.seen:
            continue
        point, reward = points[i].tolist(), pool.seen[problem.id]["reward"]
        alp = 0.0
        if len(history) > 5:
            nearest = min(history, key=lambda row: math.dist(row[:-1], point))
            alp = abs(reward - nearest[-1])
        history.append([*point, reward])
        stored.append([*point, alp])
        mem["count"] += 1
    del history[: -4 * episodes], stored[:-episodes]


def scaled_points(columns: Sequence[Sequence[float]]) -> np.ndarray:
    """[problem, column], each column scaled to 0 ... 1; a constant one is 0."""
    values = np.array(columns, dtype=np.float64).T
    low, size = values.min(0), np.ptp(values, 0)
    return (values - low) / np.where(size > 0, size, 1.0)


Normal = tuple[list[float], list[list[float]], float]
"""Mean, covariance and weight."""


def fitted(rows: np.ndarray, most: int, key: tuple[str | int, ...]) -> list[Normal]:
    """The mixture of 2 ... `most` normals with the least AIC, by 30 rounds of EM from rows drawn by the stream `key`."""
    size = rows.shape[1]
    best: tuple[float, list[Normal]] = (math.inf, [])
    for count in range(2, most + 1):
        if len(rows) < count:
            break
        start = numpy_stream("alp_gmm", count, *key).choice(len(rows), count, replace=False)
        mixture, likelihood = _em(rows, rows[np.sort(start)])
        parameters = count * (size + size * (size + 1) / 2) + count - 1
        aic = 2 * parameters - 2 * likelihood
        if aic < best[0]:
            best = (aic, mixture)
    return best[1]


def _em(rows: np.ndarray, means: np.ndarray) -> tuple[list[Normal], float]:
    floor = 1e-6 * np.eye(rows.shape[1])
    covariances = [np.cov(rows.T).reshape(floor.shape) + floor for _ in means]
    weights = np.full(len(means), 1 / len(means))
    for _ in range(30):
        parts = [log_density(rows, m, c) for m, c in zip(means, covariances, strict=True)]
        joint = np.stack(parts, 1) + np.log(weights)
        total = np.logaddexp.reduce(joint, 1)
        owned = np.exp(joint - total[:, None])
        sums = owned.sum(0) + 1e-12
        weights = sums / sums.sum()
        means = (owned.T @ rows) / sums[:, None]
        covariances = [
            ((rows - m).T * owned[:, k]) @ (rows - m) / sums[k] + floor for k, m in enumerate(means)
        ]
    normals = zip(means, covariances, weights, strict=True)
    return [(m.tolist(), c.tolist(), float(w)) for m, c, w in normals], float(total.sum())


def log_density(rows: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Ln N(row; mean, covariance) of each row.

    >>> log_density(np.zeros((1, 1)), np.zeros(1), np.ones((1, 1))).round(4).tolist()
    [-0.9189]
    """
    off = rows - mean
    _, logdet = np.linalg.slogdet(covariance)
    distance = (off * np.linalg.solve(covariance, off.T).T).sum(1)
    return -0.5 * (distance + logdet + rows.shape[1] * math.log(2 * math.pi))
