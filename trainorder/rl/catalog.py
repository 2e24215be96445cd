"""What `trainorder methods` says: every preset with its pieces, needs, formulas and the lines of params.yaml to copy."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import yaml

from trainorder.config import ENGINE_OPTIONS, RlConfig
from trainorder.config.presets import Preset, presets
from trainorder.reading import ParamsError, did_you_mean
from trainorder.rl.curricula import CURRICULA
from trainorder.rl.elsewhere import ELSEWHERE, HERE_OR_LEFT_OUT, Elsewhere
from trainorder.rl.items import ITEMS
from trainorder.rl.method import Method, bind
from trainorder.rl.registry import SLOTS, Entry
from trainorder.rl.samplers import SAMPLERS

PAGE = "docs/methods.md"
CONFIGS = "configs/methods"
COMMAND = "python -m benchmarks.methods_page"
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
CHOOSERS: dict[str, Mapping[str, Any]] = {
    "sampler": SAMPLERS,
    "items": ITEMS,
    "curriculum": CURRICULA,
}
"""Key of `rl` beside `method` -> what it can name: which task, which of its problems, which tasks are open."""
PAPER = re.compile(r"ar[Xx]iv[: ](\d{4}\.\d{4,5})")
ASKS = "  # and rl.teacher: a node, or {path: FOLDER}"
TEACHER = 'teacher: "s{seed}--grpo", '
"""In the configs: GRPO's node teaches."""


def listing() -> list[dict[str, Any]]:
    """One row per preset: name, family, slots, needs, papers, neutral setting, how far it is grounded."""
    return [facts(chosen) for chosen in presets().values()]


def facts(chosen: Preset) -> dict[str, Any]:
    """What the listing says about a preset."""
    method = Method.from_config(config_of(chosen).method)
    slots = {slot: [b.entry.name for b in getattr(method, slot)] for slot in SLOTS}
    default = Method.from_config(RlConfig().method)
    usual = {slot: [b.entry.name for b in getattr(default, slot)] for slot in SLOTS}
    return {
        "name": chosen.name,
        "family": chosen.family,
        "summary": chosen.summary,
        "papers": list(chosen.papers),
        "slots": [
            *(key for key, _ in _own_choosers(chosen)),
            *(slot for slot in SLOTS if slots[slot] != usual[slot]),
        ],
        "pieces": {slot: names for slot, names in slots.items() if names},
        "needs": sorted(method.needs | {f"live {need}" for need in method.live_needs}),
        "neutral": None if chosen.neutral is None else dict(chosen.neutral),
        "reduces_to": dict(chosen.reduces_to),
        "basis": chosen.basis,
        "status": "grounded" if chosen.grounded else "partly" if chosen.papers else "ours",
        "not_grounded": chosen.not_grounded,
    }


def config_of(chosen: Preset, method: Mapping[str, Any] | None = None) -> RlConfig:
    """The settings that the preset stands for, with keys beside it."""
    return RlConfig.model_validate({"method": {"preset": chosen.name, **(method or {})}})


def describe(name: str) -> str:
    """A preset's, or a piece's, formula, options and lines of params.yaml.

    Raises:
        ParamsError: there is neither.
    """
    known = presets()
    if name in known:
        return _describe_preset(known[name])
    found = [
        _describe_piece(entry)
        for listed in SLOTS.values()
        for entry in listed.values()
        if entry.name == name
    ]
    found += [_describe_chooser(key, name) for key, listed in CHOOSERS.items() if name in listed]
    if found:
        return "\n".join(found)
    listings = [*SLOTS.values(), *CHOOSERS.values()]
    names = sorted({*known, *(piece for listed in listings for piece in listed)})
    raise ParamsError(
        f"no method or piece {name!r}{did_you_mean(name, names)}; `trainorder methods` lists the methods"
    )


def _describe_preset(chosen: Preset) -> str:
    row = facts(chosen)
    papers = ", ".join(f"arXiv:{paper}" for paper in chosen.papers) or "no paper"
    lines = [f"{chosen.name}: {chosen.summary} ({papers})", ""]
    lines += ["In params.yaml:", "", *_indented(short_rows(chosen)), ""]
    lines += ["which stands for", "", *_indented(long_rows(chosen)), ""]
    if row["needs"]:
        lines += [f"Needs {', '.join(row['needs'])}.", ""]
    if chosen.neutral is not None and chosen.neutral:
        other = flow(dict(chosen.reduces_to))
        lines += [f"With {flow(dict(chosen.neutral))} beside the preset it is {other}.", ""]
    lines += [
        f"Written from: {chosen.basis}. Not grounded: {chosen.not_grounded or 'nothing'}.",
        "",
    ]
    lines += [_describe_piece(entry) for entry in _own_entries(chosen)]
    lines += [_describe_chooser(key, name) for key, name in _own_choosers(chosen)]
    return "\n".join(lines)


def _own_entries(chosen: Preset) -> Iterator[Entry]:
    """The pieces of a preset, each once, without the grade."""
    method, seen = Method.from_config(config_of(chosen).method), set[tuple[str, str]]()
    for slot in SLOTS:
        for bound in getattr(method, slot):
            for one in (bound, *bound.weight):
                key = (one.entry.slot, one.entry.name)
                if key not in seen and one.entry.name != "graded":
                    seen.add(key)
                    yield one.entry


def _own_choosers(chosen: Preset) -> Iterator[tuple[str, str]]:
    """Sampler, items and curriculum that a preset sets."""
    for key in CHOOSERS:
        if piece := chosen.settings.get(key):
            yield key, piece if isinstance(piece, str) else next(iter(piece))


def _describe_piece(entry: Entry) -> str:
    options = {**bind(entry.slot, entry.name).options}
    given = flow(options) if options else "none"
    engine = ", ".join(ENGINE_OPTIONS.get(entry.slot, {}))
    text = inspect.cleandoc(entry.function.__doc__ or "")
    lines = [f"{entry.slot}: {entry.name}", "", *_indented(text), ""]
    lines += [f"    options: {given}" + (f"; of the engine: {engine}" if engine else ""), ""]
    return "\n".join(lines)


def _describe_chooser(key: str, name: str) -> str:
    function = function_of(CHOOSERS[key][name])
    options = chooser_options(function)
    row = {key: {name: options} if options else name}
    text = inspect.cleandoc(function.__doc__ or "")
    looks = sorted(getattr(CHOOSERS[key][name], "looks", ()))
    lines = [f"{key}: {name}", "", *_indented(text), "", "In params.yaml, with its defaults:", ""]
    lines += [*_indented(f"rl: {flow(row)}"), ""]
    if looks:
        lines += [f"May measure all problems of the task before a step: {', '.join(looks)}.", ""]
    return "\n".join(lines)


def choosers() -> list[dict[str, Any]]:
    """One row per sampler of tasks, sampler of problems and curriculum: name, key of `rl`, summary, papers, looks, params."""
    rows = []
    for key, listed in CHOOSERS.items():
        for name, entry in listed.items():
            function = function_of(entry)
            text, options = inspect.cleandoc(function.__doc__ or ""), chooser_options(function)
            rows.append(
                {
                    "name": name,
                    "family": f"rl.{key}",
                    "summary": text.split("\n\n")[0].replace("\n", " "),
                    "papers": list(dict.fromkeys(PAPER.findall(text))),
                    "looks": sorted(getattr(entry, "looks", ())),
                    "params": f"rl: {flow({key: {name: options} if options else name})}",
                }
            )
    return rows


def function_of(entry: Any) -> Any:
    """The function of a listed sampler, which may stand in an entry."""
    return getattr(entry, "function", entry)


def chooser_options(function: Any) -> dict[str, Any]:
    """Option -> default."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def short_rows(chosen: Preset) -> str:
    """The one row of params.yaml."""
    return f"rl: {{method: {{preset: {chosen.name}}}}}" + (ASKS if asks_teacher(chosen) else "")


def long_rows(chosen: Preset) -> str:
    """The same spelled out."""
    settings = [f"  {key}: {flow(value)}" for key, value in chosen.settings.items()]
    method = [f"    {key}: {flow(value)}" for key, value in chosen.method.items()]
    asks = ASKS if asks_teacher(chosen) else ""
    return "\n".join([f"rl:{asks}", *settings, "  method:", *method])


def asks_teacher(chosen: Preset) -> bool:
    """Whether the method needs `rl.teacher`."""
    return "teacher" in Method.from_config(config_of(chosen).method).models


def flow(value: Any) -> str:
    """YAML on one line.

    >>> flow({"weight": [{"finished_only": {}}], "reduction": "token"})
    '{weight: [{finished_only: {}}], reduction: token}'
    """
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")


def params_file(chosen: Preset) -> str:
    """A whole params.yaml that trains the method and GRPO on the same problems, small enough to try."""
    papers = ", ".join(f"arXiv:{paper}" for paper in chosen.papers) or "no paper"
    tasks = "math: 1, qa: 1" if chosen.tasks > 1 else "math: 1"
    phase = f"{{kind: structured, tasks: {{{tasks}}}, steps: 4"
    gate = "math: 0.0, qa: 0.0" if chosen.tasks > 1 else "math: 0.0"
    names = dict.fromkeys(["grpo", chosen.name])
    teacher = dict.fromkeys(names, "") | {chosen.name: TEACHER if asks_teacher(chosen) else ""}
    phases = [
        f"  {name}: {phase}, rl: {{{teacher[name]}method: {{preset: {name}}}}}}}" for name in names
    ]
    return "\n".join(
        [
            f"# {chosen.name}: {chosen.summary} ({papers})",
            f"# Written by `{COMMAND}`; what it can do: `trainorder methods {chosen.name}`.",
            "policy: {hidden_size: 32, num_layers: 2, num_heads: 2, mlp_size: 64, max_positions: 192}",
            "tasks:",
            "  math: {options: {max_value: 9, max_operand: 4, min_operations: 1, max_operations: 2, answer: first}, train: 64,",
            "         dev: 16, test: 16, max_new_tokens: 48, demonstrations: 1500, drills: 1500}",
            *(["  qa: {train: 64, dev: 16, test: 16, demonstrations: 1500}"] * (chosen.tasks > 1)),
            f"sft: {{steps: 150, extension: 50, max_steps: 200, gate: {{{gate}}}, batch_size: 32, warmup_steps: 10}}",
            "rl: {prompts_per_step: 6, group_size: 4, warmup_steps: 1}",
            "phases:",
            *phases,
            f"orders: {{{', '.join(f'{name}: [{name}]' for name in names)}}}",
            "allow_unequal_budgets: true",
            "evaluation: {samples: 2}",
            "measure: {bootstrap: 100}",
            "",
        ]
    )


def page(verdicts: Mapping[str, str]) -> str:
    """docs/methods.md; `verdicts` say in one clause what was measured of a method."""
    rows = listing()
    lines = [
        "# Methods of the RL step",
        "",
        f"Written by `{COMMAND}` from the registry; `trainorder methods NAME` prints a method's formulas and options.",
        "One row of params.yaml names a method, `rl: {method: {preset: clip_cov}}`; keys beside `preset` replace the preset's own.",
        "`configs/methods/NAME.yaml` trains it and GRPO on the same problems.",
        "",
        "What a step costs beside GRPO's: a need of the policy before the update (`entropy` is free where the engine measures it)",
        "one forward; `live` needs are computed in the forward that is trained; "
        + "; ".join(f"`{need}` {cost}" for need, cost in COST.items())
        + "; docs/performance.md has the measured prices.",
        "",
        "The measured verdict is the method minus GRPO from the same bases on the same problems, mean of three seeds on the embedded",
        "testbed: test score of the trained task, and the slope of the rollouts' entropy in nats per 100 steps. Higher or lower:",
        "by more than two standard errors over seeds; open: by less. [Findings](findings.md) have all numbers with their errors.",
        "",
    ]
    for family in dict.fromkeys(row["family"] for row in rows):
        lines += [f"## {family.replace('_', ' ').capitalize()}", ""]
        lines += [
            "| preset | paper | does | needs | neutral | not grounded | measured verdict |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [_page_row(row, verdicts) for row in rows if row["family"] == family]
        lines += [""]
        for row in rows:
            if row["family"] == family:
                lines += [
                    "```yaml",
                    f"# {row['name']}",
                    long_rows(presets()[row["name"]]),
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
    "sampler": "Which task comes next",
    "items": "Which problem of a task comes next",
    "curriculum": "Which tasks are open",
}


def _chooser_pages() -> Iterator[str]:
    """Sections of what chooses tasks and problems."""
    rows = choosers()
    for key in CHOOSERS:
        yield from [f"## {TITLES[key]}: `rl.{key}`", ""]
        yield from ["| name | does | measures | params |", "|---|---|---|---|"]
        for row in rows:
            if row["family"] == f"rl.{key}":
                looks = ", ".join(row["looks"]) or "nothing"
                summary = row["summary"].replace("|", "\\|")
                yield f"| `{row['name']}` | {summary} | {looks} | `{row['params']}` |"
        yield ""


def _page_row(row: Mapping[str, Any], verdicts: Mapping[str, str]) -> str:
    papers = ", ".join(f"[{p}](https://arxiv.org/abs/{p})" for p in row["papers"]) or "none"
    neutral = f"`{flow(row['neutral'])}`" if row["neutral"] else "none"
    cells = [
        f"`{row['name']}`",
        papers,
        row["summary"],
        ", ".join(f"`{need}`" for need in row["needs"]) or "nothing",
        neutral,
        row["not_grounded"] or "nothing",
        verdicts.get(row["name"], "not measured"),
    ]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _indented(text: str) -> list[str]:
    return [f"    {line}".rstrip() for line in text.splitlines()]
