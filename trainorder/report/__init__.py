"""The result as one HTML page that needs no network, no server and no script."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainorder import paths, results
from trainorder.files import write_text
from trainorder.report import (
    advice,
    costs,
    plots,
    probes,
    reading,
    records,
    reproduce,
    study,
    tables,
    words,
)
from trainorder.report.words import Bwt

if TYPE_CHECKING:
    from markupsafe import Markup

TEMPLATE = Path(__file__).with_name("page.html")


def write_report(spent: Sequence[str] = ()) -> Path:
    """Read reports/bwt.json and what the nodes left, write reports/report.html whole; returns its path.

    `spent` are sentences about what judges have cost (spending.py).

    Raises:
        ParamsError: nothing was measured yet, the file is damaged, or another version of the program wrote it.
    """
    write_text(paths.REPORT, render(results.load(), spent))
    return paths.REPORT


def render(bwt: Bwt, spent: Sequence[str] = ()) -> str:
    """The page of one measurement; node records are read where they lie."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["code"] = _code
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        {**content(bwt), "spending": spent}
    )


def _code(text: str) -> Markup:
    """A sentence as HTML, what stands between backticks as code."""
    from markupsafe import Markup, escape

    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def content(bwt: Bwt) -> dict[str, Any]:
    """What the template fills in."""
    names = records.nodes(bwt)
    found = records.manifests(names)
    arms, axis = tables.ranking(bwt)
    shown, matrices = words.shown(bwt), tables.reward_matrices(bwt)
    later = [
        tables.transfer_later(bwt, "before_training", "On a phase not trained yet"),
        tables.transfer_later(bwt, "after_training", "On a phase trained before"),
    ]
    return {
        "bwt": bwt,
        "headline": words.headline(bwt),
        "verdict": words.verdict(bwt),
        "caveats": words.caveats(bwt),
        "cost": costs.of_best(bwt),
        "costliest": costs.costliest(bwt),
        "steps": tables.step_changes(bwt),
        "certainty": advice.certainty(bwt),
        "questions": reading.questions(bwt),
        "made_on": records.made_on(found),
        "prediction_note": words.sentence(bwt["prediction"]["note"] if bwt["prediction"] else ""),
        "level": f"{bwt['settings']['level']:.0%}",
        "facts": facts(bwt),
        "arms": arms,
        "axis": axis,
        "by_task": tables.by_task(bwt),
        "other_ways": study.other_ways(bwt),
        "guards": tables.guards(bwt),
        "beneath": words.beneath(bwt),
        "beneath_note": words.BENEATH,
        "matrices": [heat for heat in matrices if heat.title in shown],
        "more_matrices": [heat for heat in matrices if heat.title not in shown],
        "many": len(bwt["orders"]) > words.MANY,
        "variants": study.variants(bwt),
        "survival": study.survival(bwt),
        "across": bwt["across_variants"],
        "two_stage": advice.recommendation(bwt, "recommended_two_stage"),
        "rules": study.rules(bwt),
        "assumptions": advice.assumptions(bwt),
        "plasticity": study.plasticity(bwt),
        "scores": plots.along(bwt, "score", "score on test"),
        "entropy": plots.along(bwt, "entropy_own", "entropy, nats per token"),
        "from_base": tables.transfer_from_base(bwt),
        "later": [heat for heat in later if heat is not None],
        "precedence": tables.precedence(bwt),
        "recommendation": advice.recommendation(bwt),
        "predicted": plots.predicted(bwt),
        "judges": plots.judges(bwt),
        "rewards": plots.learning(bwt, "rollout/reward", "reward"),
        "training_entropy": plots.learning(bwt, "rollout/entropy", "entropy, nats per token"),
        "divergences": plots.divergences(bwt),
        "probes": probes.section(bwt),
        "alarms": records.alarms(found),
        "costs": tables.costs(found, records.parent_kl(found)),
        "judge_calls": records.judge_calls(names),
        "provenance": tables.provenance(names, found),
        "versions": next(iter(found.values()), {}).get("versions", {}),
        "bwt_hash": records.digest(paths.BWT) or "-",
        "reproduce": reproduce.reproduce(found),
    }


def facts(bwt: Bwt) -> list[tuple[str, str]]:
    """What was compared, in a few short pairs."""
    used = [counts["used"] for counts in bwt["problems"]["test"].values()]
    problems = f"{min(used)}" if min(used) == max(used) else f"{min(used)} to {max(used)}"
    kinds = [row["kind"] for row in bwt["ranking"]]
    return [
        ("seeds", str(len(bwt["seeds"]))),
        ("test problems per task", problems),
        (
            "arms",
            ", ".join(
                _counted(kinds.count(k), k)
                for k in ("order", "joint", "distill", "merge", "base")
                if k in kinds
            ),
        ),
        ("mean over", ", ".join(bwt["trained"])),
        ("held out", ", ".join(bwt["held_out"]) or "none"),
    ]


def _counted(count: int, name: str) -> str:
    plural = "s" if count > 1 and name in ("order", "merge") else ""
    return f"{count} {name}{plural}"
