"""Write docs/methods.md, configs/methods/ and the params files of method_outcomes.py from the registry of methods.

What was measured of them comes from benchmarks/method_outcomes.csv, and so does the table in docs/findings.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import measured, method_outcomes, published
from trainorder.config.presets import presets
from trainorder.files import write_text
from trainorder.rl import catalog
from trainorder.rl.elsewhere import ELSEWHERE, HERE_OR_LEFT_OUT, Elsewhere
from trainorder.rl.registry import SLOTS

ROOT = Path(__file__).parents[1]


COST = {
    "ref_logps": "a forward of the phase's parent",
    "hidden": "the last hidden states of every token in memory",
    "spans": "one pass over the text",
    "attention_entropy": "a forward per row",
    "answers:teacher": "the teacher's sampling instead of the policy's",
    "known": "a few numbers per problem in the state",
    "forward_kl:MODEL": "and whatever else names a model a forward of that model",
}
"""What a need costs beside the policy's own forward; facts of the head cost one forward before the update."""


def files() -> dict[str, str]:
    """Path -> content of all that is written."""
    configs = {
        f"{catalog.CONFIGS}/{one.name}.yaml": catalog.params_file(one) for one in catalog.shown()
    }
    rows = measured.read()
    verdicts = measured.verdicts(rows, method_outcomes.LEFT_OUT)
    findings = (ROOT / published.FINDINGS).read_text(encoding="utf-8")
    return {
        catalog.PAGE: page(verdicts, measured.costs(rows)),
        str(published.FINDINGS): method_outcomes.findings(findings),
        **{
            table.params: method_outcomes.params_text(name)
            for name, table in method_outcomes.TABLES.items()
        },
        **configs,
    }


def page(verdicts: Mapping[str, str], costs: Mapping[str, str]) -> str:
    """docs/methods.md; `verdicts` say in one clause what was measured of a method, `costs` what its step costs."""
    rows = catalog.listing()
    lines = [
        "# Methods of the RL step",
        "",
        f"Written by `{catalog.COMMAND}` from the registry; `trainorder methods NAME` prints a method's formulas and options.",
        "One row of params.yaml names a method, `rl: {method: {preset: clip_cov}}`; keys beside `preset` replace the preset's own.",
        "`configs/methods/NAME.yaml` trains it and GRPO on the same problems.",
        "",
        "What a step costs beside GRPO's: a need of the policy before the update (`entropy` is free where the engine measures it)",
        "one forward; `live` needs are computed in the forward that is trained; "
        + "; ".join(f"`{need}` {cost}" for need, cost in COST.items())
        + "; docs/performance.md has the measured prices.",
        "",
        "Cost of a step: CPU time against GRPO's on the same problems, by phase of the embedded testbed, or of a random model that earns by chance",
        "(`python -m benchmarks.needs_cost --presets`: 4 prompts x 8 answers, or the preset's own group size, without the looks of item samplers);",
        "GRPO, whose KL takes a forward of the parent, came out against itself as .92 to 1.02, so costs within .1 of 1 are equal.",
        "",
        "The measured verdict is the method minus GRPO from the same bases on the same problems, mean of three seeds on the embedded",
        "testbed: test score of the trained task, and the slope of the rollouts' entropy in nats per 100 steps. Higher or lower:",
        "by more than two standard errors over seeds; open: by less. [Findings](findings.md) have all numbers with their errors.",
        "",
    ]
    for family in dict.fromkeys(row["family"] for row in rows):
        lines += [f"## {family.replace('_', ' ').capitalize()}", ""]
        lines += [
            "| preset | paper | does | needs | neutral | not grounded | cost of a step | measured verdict |",
            "|---|---|---|---|---|---|---|---|",
        ]
        lines += [_page_row(row, verdicts, costs) for row in rows if row["family"] == family]
        lines += [""]
        for row in rows:
            if row["family"] == family:
                lines += [
                    "```yaml",
                    f"# {row['name']}",
                    catalog.long_rows(presets()[row["name"]]),
                    "```",
                    "",
                ]
    return "\n".join([*lines, *_chooser_pages(), *_elsewhere_page()])


def _elsewhere_page() -> Iterator[str]:
    """The sections about what is no entry of the registry."""
    other = "Curricula that were made for other models: the idea, and what of it lives here."
    yield from _ideas("Of other fields", other, ELSEWHERE)
    rest = "Ideas that are an option of something else, live outside of the RL step, or are not built, and why."
    yield from _ideas("Elsewhere here, or left out", rest, HERE_OR_LEFT_OUT)


def _ideas(title: str, text: str, listed: Iterable[Elsewhere]) -> Iterator[str]:
    yield from [f"## {title}", "", text, ""]
    for one in listed:
        link = f", [{one.paper}](https://arxiv.org/abs/{one.paper})" if one.paper else ""
        yield f"- **{one.name}** ({one.field}{link}): {one.idea}<br>"
        yield f"  Here: {one.here}"
    yield ""


TITLES = {
    "rl.sampler": "Which task comes next",
    "rl.items": "Which problem of a task comes next",
    "rl.curriculum": "Which tasks are open",
}


def _chooser_pages() -> Iterator[str]:
    """Sections of what chooses tasks and problems, and of pieces in no preset."""
    rows = catalog.rest()
    for family in dict.fromkeys(row["family"] for row in rows if row["family"] in TITLES):
        yield from [f"## {TITLES[family]}: `{family}`", ""]
        yield from _table(row for row in rows if row["family"] == family)
    yield from ["## Pieces in no preset", ""]
    own = {
        (slot, entry.name)
        for slot, listed in SLOTS.items()
        for entry in listed.values()
        if entry.function.__module__.startswith("trainorder.")
    }
    yield from _table(row for row in rows if (*row["slots"], row["name"]) in own)


def _table(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    yield "| name | paper | does | needs | neutral | not grounded | params |"
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        missing = row["not_grounded"] or "nothing"
        yield _cells(*_common(row), _neutral(row), missing, f"`{row['params']}`")
    yield ""


def _page_row(row: Mapping[str, Any], verdicts: Mapping[str, str], costs: Mapping[str, str]) -> str:
    other = f"; not offered: {row['not_offered']}" if row["not_offered"] else ""
    return _cells(
        *_common(row),
        _neutral(row),
        (row["not_grounded"] or "nothing") + other,
        costs.get(row["name"], "not measured"),
        verdicts.get(row["name"], "not measured"),
    )


def _common(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Name, papers, what it does, needs."""
    papers = ", ".join(f"[{p}](https://arxiv.org/abs/{p})" for p in row["papers"]) or "none"
    needs = ", ".join(f"`{need}`" for need in row["needs"]) or "nothing"
    return f"`{row['name']}`", papers, row["summary"], needs


def _neutral(row: Mapping[str, Any]) -> str:
    if row["neutral"] is None:
        return f"none, because {row['no_neutral']}"
    return f"`{catalog.flow(row['neutral'])}`" if row["neutral"] else "as it is"


def _cells(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def main() -> None:
    """Write what differs; remove files of methods that are gone."""
    wanted = files()
    (ROOT / catalog.CONFIGS).mkdir(exist_ok=True)
    for old in (ROOT / catalog.CONFIGS).glob("*.yaml"):
        if f"{catalog.CONFIGS}/{old.name}" not in wanted:
            old.unlink()
    for name, text in wanted.items():
        file = ROOT / name
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            write_text(file, text)
            print(name)


if __name__ == "__main__":
    argparse.ArgumentParser(
        prog="python -m benchmarks.methods_page", description=__doc__
    ).parse_args()
    main()
