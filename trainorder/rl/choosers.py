"""What `trainorder methods` says of what is no preset: samplers, items and curricula of `rl`, and single pieces of its method."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

from trainorder.config import RlConfig
from trainorder.config.presets import Preset, presets
from trainorder.rl.curricula import CURRICULA
from trainorder.rl.items import ITEMS
from trainorder.rl.method import Method, bind
from trainorder.rl.registry import SLOTS, Entry
from trainorder.rl.samplers import SAMPLERS

CHOOSERS: dict[str, Mapping[str, Any]] = {
    "sampler": SAMPLERS,
    "items": ITEMS,
    "curriculum": CURRICULA,
}
"""Key of `rl` beside `method` -> what it can name: which task, which of its problems, which tasks are open."""
PAPER = re.compile(r"ar[Xx]iv[: ](\d{4}\.\d{4,5})")
NEUTRAL: dict[str, dict[str, Any]] = {
    "weights": {},
    "sec": {"alpha": 0.0},
    "dump": {"temperature": 1e9},
    "alp": {"epsilon": 1.0},
    "worst_task": {"epsilon": 1.0},
    "mt_grpo": {"lr": 0.0},
    "tac": {"epsilon": 1.0},
    "live_entropy": {"temperature": 1e9},
    "shuffled": {},
    "gain_rl": {"sigma": 1e9},
    "wiki_r1": {"width": 1e9},
    "alp_gmm": {"epsilon": 1.0},
    "paced": {"start": 1.0},
    "cures": {"temperature": 1e9},
    "frontier": {"epsilon": 1.0},
    "learnability_gap": {"temperature": 1e9},
    "pudf": {"least": 1.0},
    "open_levels": {"bins": 1},
    "sec_buckets": {"bins": 1},
    "dump_buckets": {"bins": 1},
    "alp_buckets": {"bins": 1},
    "together": {},
    "distracted": {"first": 0, "last": 0},
    "sequence_mask": {"low": 0.0, "high": 1e9},
}
"""Sampler -> options under which tasks keep the phase's shares; items -> every problem is as likely; curriculum -> all are open;
piece in no preset -> the update is that without it. What is missing is in NO_NEUTRAL."""
IN_TURN = "a task waits for the one before it, with any options"
IN_ORDER = "problems come in an order, whatever the options"
NO_NEUTRAL: dict[str, str] = {
    "uniform": "it has no options; in a phase whose tasks weigh the same it is `weights`",
    "edco": "problems come in order of their entropy, whatever the options",
    "in_order": IN_ORDER,
    "blocked": IN_ORDER,
    "blocked_curriculum": IN_ORDER,
    "interleaved": IN_ORDER,
    "interleaved_curriculum": IN_ORDER,
    "cyclical": "an epoch draws no problem twice, with any options",
    "tarot": "one part of the pool is open at a time, with any options",
    "in_turn": IN_TURN,
    "unlock": IN_TURN,
    "stop_early": IN_TURN,
    "entropy_turns": IN_TURN,
    "refresh": IN_TURN,
    "answer_reranking": "at the first step every group has its weight, with any options",
    "truncated_importance": "every bound of the ratio changes an update; where engine and trainer agree all weights are 1",
}
"""Why there are none."""
OF_PRESETS = "the presets that it is in have their own"
NOT_SAID = "nothing is known of it but its code"
"""Of a piece in presets, and of one from outside of the package."""
OURS = frozenset(
    [
        "weights",
        "uniform",
        "live_entropy",
        "shuffled",
        "open_levels",
        "together",
        "in_turn",
        "unlock",
        "stop_early",
        "entropy_turns",
        "refresh",
        "graded",
        "reward_spread",
    ]
)
"""Without a publication of their own."""
NOT_GROUNDED: dict[str, str] = {
    "sec": "",
    "dump": "",
    "alp": "windows of steps, and their length",
    "worst_task": "progress as a share of the room, and the softmax of it",
    "mt_grpo": "",
    "wiki_r1": "the width; where problems that were not seen begin",
    "alp_gmm": "problems of a pool instead of free points; their mean grade as the reward",
    "in_order": "what tells difficulty in the papers is in your rows' meta",
    "blocked": "topics by name, and the shuffle",
    "blocked_curriculum": "topics by name",
    "interleaved": "topics by name, and the shuffle",
    "interleaved_curriculum": "topics by name",
    "paced": "pass rates as difficulty",
    "cyclical": "the loss is that of the phase's parent",
    "tarot": "quarters of the pool instead of tests of one program",
    "frontier": "epsilon; a utility of writers of problems as a sampler of given ones",
    "learnability_gap": "the form in pass rates, omega and the temperature",
    "sec_buckets": "how numbers are cut into buckets",
    "dump_buckets": "how numbers are cut into buckets",
    "alp_buckets": "how numbers are cut into buckets; windows of steps",
    "distracted": "",
    "answer_reranking": "grades of halves of the group as the scores; the number of steps",
    "truncated_importance": "",
    "sequence_mask": "the bounds, which are for short answers",
}
"""What no source states and was chosen here; empty: nothing. Of those with a preset of the same name, the preset says it."""


def choosers() -> list[dict[str, Any]]:
    """One row per sampler of tasks, sampler of problems and curriculum."""
    return [_chooser(key, name) for key, listed in CHOOSERS.items() for name in listed]


def lone_pieces() -> list[dict[str, Any]]:
    """One row per piece that is in no preset."""
    return [row for row in pieces() if not row["presets"]]


def pieces() -> list[dict[str, Any]]:
    """One row per piece of the RL step."""
    users: dict[tuple[str, str], list[Preset]] = {}
    for chosen in presets().values():
        for entry in entries(chosen):
            users.setdefault((entry.slot, entry.name), []).append(chosen)
    return [
        _piece(entry, users.get((slot, entry.name), []))
        for slot, listed in SLOTS.items()
        for entry in listed.values()
    ]


def entries(chosen: Preset) -> Iterator[Entry]:
    """The pieces of a preset, each once, without the grade."""
    method = Method.from_config(RlConfig.model_validate({"method": {"preset": chosen.name}}).method)
    seen = set[tuple[str, str]]()
    for slot in SLOTS:
        for bound in getattr(method, slot):
            for one in (bound, *bound.weight):
                key = (one.entry.slot, one.entry.name)
                if key not in seen and one.entry.name != "graded":
                    seen.add(key)
                    yield one.entry


def _chooser(key: str, name: str) -> dict[str, Any]:
    """Name, family (its key of `rl`), summary, papers, slots, needs (what it measures of problems), neutral or why not, status, params."""
    entry, (neutral, why) = CHOOSERS[key][name], _neutral(name)
    options = chooser_options(function_of(entry))
    return {
        "name": name,
        "family": f"rl.{key}",
        **_documented(function_of(entry)),
        "slots": [key],
        "needs": sorted(getattr(entry, "looks", ())),
        "neutral": neutral,
        "no_neutral": why,
        **_grounds(name, []),
        "params": {key: {name: options} if options else name},
    }


def _piece(entry: Entry, users: list[Preset]) -> dict[str, Any]:
    """The same of a piece; `presets` are those that it is in, of which each has its own neutral setting. A metric changes no update."""
    options = {**bind(entry.slot, entry.name).options}
    neutral, why = (None, OF_PRESETS) if users else _neutral(entry.name)
    if entry.slot == "metric" or entry.name == "graded":
        neutral, why = {}, ""
    return {
        "name": entry.name,
        "family": f"rl.method.{entry.slot}",
        **_documented(entry.function),
        "slots": [entry.slot],
        "needs": sorted(entry.needed(options)),
        "neutral": neutral,
        "no_neutral": why,
        **_grounds(entry.name, users),
        "presets": [chosen.name for chosen in users],
        "params": {"method": {entry.slot: [{entry.name: options} if options else entry.name]}},
    }


def _neutral(name: str) -> tuple[dict[str, Any] | None, str]:
    """The options, or None and why there are none."""
    return (NEUTRAL[name], "") if name in NEUTRAL else (None, NO_NEUTRAL.get(name, NOT_SAID))


def _documented(function: Any) -> dict[str, Any]:
    text = inspect.cleandoc(function.__doc__ or "")
    return {
        "summary": text.split("\n\n")[0].replace("\n", " "),
        "papers": list(dict.fromkeys(PAPER.findall(text))),
    }


def _grounds(name: str, users: list[Preset]) -> dict[str, str]:
    """Status and what is not grounded; a piece is grounded where it is in a preset of which sources state all.

    Pieces that are listed from outside of the package count as ours.
    """
    if name in OURS or not (users or name in NOT_GROUNDED or name in presets()):
        return {"status": "ours", "not_grounded": "all of it"}
    if users:
        states = {"grounded" if chosen.grounded else chosen.basis for chosen in users}
        status = "grounded" if "grounded" in states else "ours" if states == {"ours"} else "partly"
        first = min(users, key=lambda chosen: not chosen.grounded)
        return {"status": status, "not_grounded": first.not_grounded}
    missing = NOT_GROUNDED[name] if name in NOT_GROUNDED else presets()[name].not_grounded
    return {"status": "partly" if missing else "grounded", "not_grounded": missing}


def function_of(entry: Any) -> Any:
    """The function of a listed sampler, which may stand in an entry."""
    return getattr(entry, "function", entry)


def chooser_options(function: Any) -> dict[str, Any]:
    """Option -> default."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
