"""Phases of `kind: sft`: supervised updates on rows of the user's, at any place of an order.

A row is `{"messages": [..., {"role": "assistant", "content": ...}]}`, of which the last turn is learned, or
`{"prompt": text or messages, "completion": text or one assistant message}`. Other keys are left alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from trainorder.adapters import base_of, is_adapter_node
from trainorder.config import PhaseConfig, TrainingConfig
from trainorder.device import device_of
from trainorder.policy import Policy
from trainorder.reading import ParamsError
from trainorder.resume import NOTHING, Work
from trainorder.rl.adapters import add_adapters, continue_adapters, save_node
from trainorder.sft import Log, train_leg
from trainorder.sft.lines import Line, demonstration_lines, shuffled
from trainorder.sft.updates import Run
from trainorder.tasks import load_problems, load_task
from trainorder.tasks.base import SPLITS, reveals, turns
from trainorder.tasks.leaks import LONGEST_RUN, HeldOut
from trainorder.tasks.lines import BadRow
from trainorder.tasks.rows.files import row_sources
from trainorder.tasks.rows.prompts import prompt_of, reply_of
from trainorder.tasks.rows.schemas import messages
from trainorder.workers import ALONE, Workers

Example = Mapping[str, Any]
"""`prompt` and `completion` of a row."""
SHOWN = 3
"""Bad rows that an error names."""


def train_phase(
    parent: Path,
    out: Path,
    name: str,
    phase: PhaseConfig,
    seed: int,
    tracker: Log,
    work: Work = NOTHING,
    *,
    training: TrainingConfig,
    held: HeldOut | None = None,
) -> dict[str, Any]:
    """Train `parent` on the phase's rows and save the result as `out`; with `training.lora` its adapter alone.

    A function of its arguments and the rows: their order is keyed by seed, phase and epoch. A killed attempt is resumed from
    `work`, to the same bytes.

    Args:
        parent: the checkpoint to begin at.
        out: the node to write.
        name: of the phase.
        phase: its rows, steps and settings.
        seed: of the node.
        tracker: where numbers go.
        work: step checkpoints.
        training: precision, device and adapters.
        held: what no row may give away, where dev and test are built.

    Returns:
        `steps` and `tokens`.

    Raises:
        ParamsError: a row is bad, too long for the model, or a dev or test problem.
    """
    config = phase.supervised.settings(phase.steps)
    rows = read(name, phase)
    if held is not None:
        refuse_leaks(name, rows, held)
    device = device_of(training.device)
    torch.set_num_threads(1)  # micro-batches run side by side instead
    continues = training.lora is not None and is_adapter_node(parent)
    policy = Policy.load(base_of(parent) if continues else parent).to(device)
    lines = demonstration_lines(policy, rows, config.prompt_weight)
    if training.lora is not None:
        add_adapters(policy.model, training.lora, seed)
        if continues:
            continue_adapters(policy.model, parent, training.lora)
    drawn = _batches(lines, config.batch_size, f"phase {name}", seed)
    run = Run(policy, config, Workers(config.threads) if device == "cpu" else ALONE, training.dtype)
    saved = work.latest("sft")
    if saved is not None:
        run.restore(saved)
        tracker.restore(saved.state["log"])
        for _ in range(run.steps):
            next(drawn)
    train_leg(run, drawn, tracker, work, name)
    if training.lora is None:
        policy.save(out)
    else:
        own = {n: p for n, p in policy.model.named_parameters() if p.requires_grad}
        save_node(out, parent, own, training.lora)
    return {"steps": run.steps, "tokens": run.tokens}


def read(name: str, phase: PhaseConfig) -> list[Example]:
    """The rows of a phase.

    Raises:
        ParamsError: the file cannot be read, a row is neither of the two forms, or there is none.
    """
    where = f"phases.{name}.data"
    assert phase.data is not None
    found, bad = list[Example](), list[str]()
    for source in row_sources(where, phase.data):
        for file, line, row in source.rows():
            try:
                if isinstance(row, BadRow):
                    raise row
                found.append(_example(row))
            except BadRow as error:
                bad.append(f"{file}, line {line}: {error}")
    if bad:
        more = f"; and {len(bad) - SHOWN} more rows" if len(bad) > SHOWN else ""
        raise ParamsError(f"{where}: {'; '.join(bad[:SHOWN])}{more}")
    if not found:
        raise ParamsError(f"{where}: {phase.data} holds no rows")
    return found


def held_out(tasks: Sequence[str]) -> HeldOut:
    """What the dev and test problems of these built tasks give away."""
    held = HeldOut()
    for name in tasks:
        task = load_task(name)
        for split in SPLITS[1:]:
            for problem in load_problems(name, split):
                held.add(reveals(task, problem), problem.id)
    return held


def refuse_leaks(name: str, rows: Sequence[Example], held: HeldOut) -> None:
    """Refuse rows of which some turns in a row are a dev or test problem, be they the user's or the answers to them.

    Raises:
        ParamsError: names the first such row and how many there are.
    """
    found = [(row, held.match(*_runs(row))) for row in rows]
    leaks = [(row, problem) for row, problem in found if problem is not None]
    if leaks:
        row, problem = leaks[0]
        raise ParamsError(
            f"phases.{name}.data: {len(leaks)} of {len(rows)} rows ask a dev or test problem, the first {problem}: "
            f"{turns(row['prompt'])[-1][:200]!r}; take them out"
        )


def _runs(row: Example) -> Iterator[str]:
    """The texts of every few turns in a row, the completion's among them and the system's not."""
    prompt = row["prompt"]
    said = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    texts = [turn["content"] for turn in said if turn["role"] != "system"] + [row["completion"]]
    for first in range(len(texts)):
        for end in range(first + 1, min(first + LONGEST_RUN, len(texts)) + 1):
            yield "\n\n".join(texts[first:end])


def _example(row: Mapping[str, Any]) -> Example:
    if "messages" in row:
        chat = messages(row["messages"])
        if not isinstance(chat, list) or len(chat) < 2:
            raise BadRow("messages: the last one must be the assistant's, behind one of the user")
        before, answer = reply_of(chat, "messages")
        return {"prompt": prompt_of(before, ""), "completion": answer}
    if not {"prompt", "completion"} <= row.keys():
        raise BadRow(
            f"`messages`, or `prompt` and `completion`, are needed; the row has {', '.join(sorted(row)) or 'nothing'}"
        )
    before, answer = reply_of(row["completion"], "completion")
    if before:
        raise BadRow("completion: one message of the assistant is needed")
    return {"prompt": prompt_of(row["prompt"], ""), "completion": answer}


def _batches(lines: Sequence[Line], size: int, name: str, seed: int) -> Iterator[list[Line]]:
    drawn = shuffled(lines, name, seed)
    while True:
        yield [next(drawn) for _ in range(size)]
