"""What the base's scores explain of a paired difference, on planted evaluations."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from benchmarks.control_variate import gains


def write(folder, scores: dict[str, np.ndarray]) -> None:
    for node, values in scores.items():
        rows = {"node": node, "split": "test", "task": "math", "metric": "score", "value": values}
        rows["problem"] = [f"p{i}" for i in range(len(values))]
        pd.DataFrame(rows).to_parquet(folder / f"{node}.parquet")


def test_the_base_explains_what_arms_differ_in_by_it_and_nothing_of_what_they_share(tmp_path):
    # A - B = .5 base + noise of sd .5: r^2 = .25 / .5; what A and B share is gone by pairing
    rng = np.random.default_rng(0)
    base, shared, noise = rng.normal(size=(3, 4000))
    write(tmp_path, {"s0": base, "s0--a": shared + 0.5 * base + 0.5 * noise, "s0--b": shared})
    (one,) = gains(tmp_path)
    assert (one.task, one.problems, one.pairs) == ("math", 4000, 1)
    assert one.explained == pytest.approx(0.5, abs=0.04)
    assert one.narrower == pytest.approx(1 - 0.5**0.5, abs=0.03)
    assert one.unpaired == pytest.approx(1 - 0.5 / 2.5, abs=0.03)


def test_without_evaluations_it_says_what_to_run(tmp_path):
    with pytest.raises(SystemExit, match="holds no evaluations: run `trainorder run` first"):
        list(gains(tmp_path))
