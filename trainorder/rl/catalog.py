"""What `trainorder methods` says: every preset with its pieces, needs, formulas and the lines of params.yaml to copy."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from trainorder.config import ENGINE_OPTIONS, MethodConfig, RlConfig
from trainorder.config.presets import Preset, presets
from trainorder.reading import ParamsError, did_you_mean
from trainorder.rl.choosers import (
    CHOOSERS,
    choosers,
    entries,
    function_of,
    lone_pieces,
    pieces,
)
from trainorder.rl.method import Method, bind
from trainorder.rl.registry import SLOTS, Entry

PAGE = "docs/methods.md"
CONFIGS = "configs/methods"
COMMAND = "python -m benchmarks.methods_page"
EVEN = {
    "sampler": "Tasks keep the phase's shares",
    "items": "Every problem is as likely",
    "curriculum": "All tasks are open",
}
"""What options that are neutral do."""
ASKS = "  # and rl.teacher: a node, or {path: FOLDER}"
TEACHER = 'teacher: "s{seed}--grpo", '
"""In the configs: GRPO's node teaches."""


def listing() -> list[dict[str, Any]]:
    """One row per preset: name, family, slots, needs, papers, neutral setting, how far it is grounded."""
    return [facts(chosen) for chosen in presets().values()]


def rest() -> list[dict[str, Any]]:
    """One row per sampler, items and curriculum of `rl`, and per piece that is in no preset."""
    return [_written(row) for row in (*choosers(), *lone_pieces())]


def rows_of(name: str) -> list[dict[str, Any]]:
    """What the listing says of everything with this name: preset, sampler, items, curriculum, pieces.

    Raises:
        ParamsError: there is nothing.
    """
    found = [facts(presets()[name])] if name in presets() else []
    found += [_written(row) for row in (*choosers(), *pieces()) if row["name"] == name]
    if not found:
        raise _unknown(name)
    return found


def _written(row: dict[str, Any]) -> dict[str, Any]:
    """The row with the line of params.yaml."""
    return {**row, "params": f"rl: {flow(row['params'])}"}


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
        "no_neutral": chosen.no_neutral,
        "basis": chosen.basis,
        "status": "grounded" if chosen.grounded else "partly" if chosen.papers else "ours",
        "not_grounded": chosen.not_grounded,
        "not_offered": chosen.not_offered,
    }


def config_of(chosen: Preset, keys: Mapping[str, Any] | None = None) -> RlConfig:
    """The settings that the preset stands for, with keys beside it."""
    return RlConfig.model_validate(rl_of(chosen, keys or {}))


def rl_of(chosen: Preset, keys: Mapping[str, Any]) -> dict[str, Any]:
    """`rl` of params.yaml with the preset and keys beside it; those that are none of `rl.method` are of `rl`.

    >>> rl_of(presets()["tac"], {"sampler": "weights", "metric": []})
    {'sampler': 'weights', 'method': {'preset': 'tac', 'metric': []}}
    """
    method = {key: value for key, value in keys.items() if key in MethodConfig.model_fields}
    settings = {key: value for key, value in keys.items() if key not in method}
    return {**settings, "method": {"preset": chosen.name, **method}}


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
    raise _unknown(name)


def _unknown(name: str) -> ParamsError:
    listings = [*SLOTS.values(), *CHOOSERS.values()]
    names = sorted({*presets(), *(piece for listed in listings for piece in listed)})
    return ParamsError(
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
    elif chosen.no_neutral:
        lines += [f"Neutral setting: none, because {chosen.no_neutral}.", ""]
    lines += [
        f"Written from: {chosen.basis}. Not grounded: {chosen.not_grounded or 'nothing'}.",
        *([f"Not offered: {chosen.not_offered}."] if chosen.not_offered else []),
        "",
    ]
    lines += [_describe_piece(entry) for entry in entries(chosen)]
    lines += [_describe_chooser(key, name) for key, name in _own_choosers(chosen)]
    return "\n".join(lines)


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
    row = next(row for row in choosers() if (row["slots"], row["name"]) == ([key], name))
    text = inspect.cleandoc(function.__doc__ or "")
    lines = [f"{key}: {name}", "", *_indented(text), "", "In params.yaml, with its defaults:", ""]
    lines += [*_indented(f"rl: {flow(row['params'])}"), ""]
    if row["needs"]:
        needs = ", ".join(row["needs"])
        lines += [f"May measure all problems of the task before a step: {needs}.", ""]
    if row["neutral"]:
        lines += [f"{EVEN[key]} with {flow(row['neutral'])}.", ""]
    elif row["no_neutral"]:
        lines += [f"Neutral options: none, because {row['no_neutral']}.", ""]
    missing = row["not_grounded"] or "nothing"
    lines += [f"Status: {row['status']}. Not grounded: {missing}.", ""]
    return "\n".join(lines)


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


@dataclass(frozen=True)
class Shown:
    """A method, or something else that a phase may name, as configs/methods/ shows it: beside GRPO on the same problems."""

    name: str
    summary: str
    papers: tuple[str, ...]
    rl: Mapping[str, Any]
    """Keys of the phase's `rl`."""
    tasks: int = 1
    """Tasks of its phase: two for what weighs tasks."""
    asks_teacher: bool = False


def shown() -> Iterator[Shown]:
    """Everything that `trainorder methods` lists, once: presets, then samplers, items, curricula and pieces in no preset."""
    for chosen in presets().values():
        method = {"method": {"preset": chosen.name}}
        yield Shown(
            chosen.name, chosen.summary, chosen.papers, method, chosen.tasks, asks_teacher(chosen)
        )
    grpo = {"preset": "grpo"}
    for row in (*choosers(), *lone_pieces()):
        listed = CHOOSERS.get(row["slots"][0]) or SLOTS[row["slots"][0]]
        ours = function_of(listed[row["name"]]).__module__.startswith("trainorder.")
        if not ours or row["name"] in presets() or row["name"] == "graded":
            continue
        keys = {**row["params"], "method": {**grpo, **row["params"].get("method", {})}}
        tasks = 2 if row["slots"][0] in ("sampler", "curriculum") else 1
        papers, asks = tuple(row["papers"]), "teacher_rate" in row["needs"]
        yield Shown(row["name"], row["summary"], papers, keys, tasks, asks)


def params_file(one: Shown) -> str:
    """A whole params.yaml that trains it and GRPO on the same problems, small enough to try."""
    papers = ", ".join(f"arXiv:{paper}" for paper in one.papers) or "no paper"
    tasks = "math: 1, qa: 1" if one.tasks > 1 else "math: 1"
    phase = f"{{kind: structured, tasks: {{{tasks}}}, steps: 4"
    gate = "math: 0.0, qa: 0.0" if one.tasks > 1 else "math: 0.0"
    settings = {"grpo": flow({"method": {"preset": "grpo"}}), one.name: flow(dict(one.rl))}
    if one.asks_teacher:
        settings[one.name] = f"{{{TEACHER}{settings[one.name][1:]}"
    phases = [f"  {name}: {phase}, rl: {rl}}}" for name, rl in settings.items()]
    return "\n".join(
        [
            f"# {one.name}: {one.summary} ({papers})",
            f"# Written by `{COMMAND}`; what it can do: `trainorder methods {one.name}`.",
            "policy: {hidden_size: 32, num_layers: 2, num_heads: 2, mlp_size: 64, max_positions: 192}",
            "tasks:",
            "  math: {options: {max_value: 9, max_operand: 4, min_operations: 1, max_operations: 2, answer: first}, train: 64,",
            "         dev: 16, test: 16, max_new_tokens: 48, demonstrations: 1500, drills: 1500}",
            *(["  qa: {train: 64, dev: 16, test: 16, demonstrations: 1500}"] * (one.tasks > 1)),
            f"sft: {{steps: 150, extension: 50, max_steps: 200, gate: {{{gate}}}, batch_size: 32, warmup_steps: 10}}",
            "rl: {prompts_per_step: 6, group_size: 4, warmup_steps: 1}",
            "phases:",
            *phases,
            f"orders: {{{', '.join(f'{name}: [{name}]' for name in settings)}}}",
            "allow_unequal_budgets: true",
            "evaluation: {samples: 2}",
            "measure: {bootstrap: 100}",
            "",
        ]
    )


def _indented(text: str) -> list[str]:
    return [f"    {line}".rstrip() for line in text.splitlines()]
