"""What this experiment can detect, and what it would take to detect more: `power` of reports/bwt.json, `trainorder power`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trainorder import results
from trainorder.measure.evidence import Evidence
from trainorder.measure.ranking import Finals
from trainorder.metrics import power
from trainorder.metrics.statistics import Verdict
from trainorder.plan.design import Arm
from trainorder.reading import ParamsError


def ability(evidence: Evidence, arms: Sequence[Arm], finals: Finals, verdict: str) -> Any:
    """The noise of a difference between two trained arms, and where the verdict is open, what would decide it.

    None where fewer than two different checkpoints were trained.
    """
    trained = [arm for arm in arms if arm.kind != "base"]
    different = [
        arm for i, arm in enumerate(trained) if arm.final not in [b.final for b in trained[:i]]
    ]
    if len(different) < 2:
        return None
    design = evidence.design
    num_problems = sum(evidence.scores["test"].used[task] for task in design.trained)
    noise = power.noise(np.stack([finals[arm.name] for arm in different]), num_problems)
    more = None
    if verdict == Verdict.OPEN and noise.runs is not None:
        more = _more(power.Sizing(noise, evidence.level))
    return {
        "sd": {
            "runs": noise.runs and noise.runs**0.5,
            "problems": noise.problems**0.5,
            "answers": noise.answers**0.5,
        },
        "arms": noise.arms,
        "num_problems": num_problems,
        "more": more,
    }


def _more(sizing: power.Sizing) -> dict[str, Any] | None:
    """The largest of DIFFERENCES that is not detected with the power yet, and the seeds that would detect it; None: all are detected."""
    noise = sizing.noise
    told = sizing.at(noise.seeds, noise.num_problems)
    missing = [i for i, share in enumerate(told) if share < sizing.power]
    if not missing:
        return None
    return {"difference": sizing.differences[missing[-1]], "seeds": sizing.seeds(missing[-1])}


def needs(
    differences: Sequence[float] | None = None,
    *,
    level: float | None = None,
    wanted: float = power.POWER,
    variant: str = "default",
) -> dict[str, Any]:
    """Seeds and problems that detect each difference, from what was measured.

    `rows`: {difference, power of this experiment, seeds needed with its problems, problems needed with its seeds}; None: no
    number that is tried is enough. With one seed `seeds` is None and the rest is of problems alone, a lower bound.

    Raises:
        ParamsError: nothing was measured, there is nothing to compare, or a number is outside its bounds.
    """
    document = results.of_variant(variant)
    asked = tuple(sorted(set(differences or power.DIFFERENCES)))
    if (
        level is None
    ):  # as the verdict's intervals have it; two seeds of several looks have no finite one
        level = min(document["settings"]["level_of_differences"], 0.999)
    _check(asked, level, wanted)
    if document["power"] is None:
        raise ParamsError("power: fewer than two different arms were trained, so nothing differs")
    noise = noise_of(document)
    sizing = power.Sizing(noise, level, wanted, asked)
    told = sizing.at(noise.seeds, noise.num_problems)
    rows = [
        {
            "difference": d,
            "power": told[i],
            "seeds": sizing.seeds(i),
            "problems": sizing.problems(i),
        }
        for i, d in enumerate(asked)
    ]
    about = {"variant": variant, "level": level, "power": wanted, "arms": noise.arms}
    about |= {"seeds": noise.seeds, "num_problems": noise.num_problems}
    return {**about, "sd": document["power"]["sd"], "rows": rows}


def noise_of(document: Mapping[str, Any]) -> power.Noise:
    """The noise as reports/bwt.json has it."""
    found, sd = document["power"], document["power"]["sd"]
    runs = None if sd["runs"] is None else sd["runs"] ** 2
    numbers = found["arms"], len(document["seeds"]), found["num_problems"]
    return power.Noise(runs, sd["problems"] ** 2, sd["answers"] ** 2, *numbers)


def _check(differences: Sequence[float], level: float, wanted: float) -> None:
    for d in differences:
        if not 0.001 <= d < 1:
            raise ParamsError(f"--difference {d:g}: a difference of mean scores, from .001 to 1")
    for name, value in (("--level", level), ("--power", wanted)):
        if not 0.5 <= value <= 0.999:
            raise ParamsError(f"{name} {value:g}: a share from .5 to .999, such as .95")
