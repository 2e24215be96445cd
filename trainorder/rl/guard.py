"""What must not happen silently: numbers that are not finite, and training that drifts off while the loss looks fine.

An update with a nan or inf in its loss, gradient or log-probabilities is refused: the weights stay as they were, and a
dump is left from which `replay` computes the same numbers again. Alarms watch what each step logs anyway; they change
nothing and go to MLflow and the report.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from trainorder.config import AlarmConfig
from trainorder.files import write_json, writing_folder
from trainorder.process import StageError
from trainorder.rl.types import TENSORS, Roll, State
from trainorder.tasks.base import Problem

if TYPE_CHECKING:
    from trainorder.rl.learner import Learner

MAX_IN_A_ROW = 10
"""Updates refused one after another before `on_nonfinite: skip` stops too: such a run learns nothing any more."""
KEPT = 3
"""Dumps of a node that are kept, the newest."""
START_STEPS = 5
"""Steps of a phase whose mean entropy and length are what later ones are compared with."""


class NonFiniteError(StageError):
    """An update was refused and the phase stops."""


def broken(numbers: Mapping[str, float], roll: Roll) -> list[str]:
    """Names of what is not finite: the given numbers (loss, gradient norm), and facts per token or row of the roll.

    >>> import math, torch
    >>> from types import SimpleNamespace
    >>> one = torch.ones(1, 1)
    >>> roll = SimpleNamespace(loss_mask=one, rewards=one[0], advantages=one, weights=one,
    ...                        token_facts={"old_logps": torch.tensor([[-math.inf]])})
    >>> broken({"loss": 0.5, "grad_norm": math.nan}, roll)
    ['grad_norm', 'old_logps']
    """
    found = [name for name, value in numbers.items() if not math.isfinite(value)]
    kept = roll.loss_mask > 0
    tensors = {"rewards": roll.rewards}
    tensors |= {"advantages": roll.advantages[kept], "weights": roll.weights[kept]}
    tensors |= {name: values[kept] for name, values in roll.token_facts.items()}
    return found + [name for name, values in tensors.items() if not values.isfinite().all()]


def refuse(learner: Learner, roll: Roll, state: State, names: list[str]) -> None:
    """Leave a dump and, unless `rl.on_nonfinite` says skip, stop the phase. All ranks call it.

    Weights and optimiser are untouched.

    Raises:
        NonFiniteError: names what was not finite, the step and the dump.
    """
    row = state.mem["refused_in_a_row"] = state.mem.get("refused_in_a_row", 0) + 1
    state.mem["refused"] = state.mem.get("refused", 0) + 1
    where = ""
    if learner.dumps is not None:
        place = learner.dumps / f"step{state.step:06d}-{state.mem['refused']:04d}"
        dump(place, learner, roll, state, names)
        where = f"; `python -m trainorder.rl.replay {place}` computes it again"
    text = f"{', '.join(names)} not finite at step {state.step} of phase {learner.phase!r}: the update was refused{where}"
    if learner.config.on_nonfinite == "stop":
        raise NonFiniteError(
            f"{text}. Lower rl.lr or rl.max_grad_norm, or set rl.on_nonfinite: skip to leave such updates out"
        )
    if row >= MAX_IN_A_ROW:
        raise NonFiniteError(
            f"{text}, the {row}th in a row: skipping more would not help; lower rl.lr"
        )
    print(f"warning: {text} and left out", flush=True)


def dump(place: Path, learner: Learner, roll: Roll, state: State, names: list[str]) -> None:
    """The refused update whole: its rows, the weights it met and the settings. The newest KEPT dumps stay."""
    from safetensors.torch import save_file

    policy = learner.whole_policy()
    if policy is None:
        learner.backend.gather(None)
        return
    tensors = {name: getattr(roll, name) for name in TENSORS}
    tensors |= {f"row.{name}": values for name, values in roll.row_facts.items()}
    tensors |= {f"token.{name}": values for name, values in roll.token_facts.items()}
    tensors |= {f"state.{name}": values for name, values in state.tensors.items()}
    facts = {
        "not_finite": names,
        "phase": learner.phase,
        "seed": learner.seed,
        "state": state.state_dict(),
        "rl": learner.config.model_dump(),
        "dtype": learner.backend.training.dtype,
        "max_length": dict(learner.task_set.max_new_tokens),
        "prompt_ids": roll.prompt_ids,
        "informed_ids": roll.informed_ids,
        "text": roll.text,
        "problem": [dataclasses.asdict(problem) for problem in roll.problem],
    }
    with writing_folder(place) as new:
        save_file({k: v.detach().contiguous().clone() for k, v in tensors.items()}, new / ROLL)
        write_json(new / FACTS, facts)
        policy.save(new / "policy")
    for old in sorted(place.parent.glob("step*"))[:-KEPT]:
        shutil.rmtree(old)
    learner.backend.gather(None)  # a launcher stops all ranks as soon as one ends


def load_dump(place: Path) -> tuple[Roll, State, dict[str, Any]]:
    """The rows, the state and the facts of a dump."""
    from safetensors.torch import load_file

    facts = json.loads((place / FACTS).read_text(encoding="utf-8"))
    found = load_file(place / ROLL)
    return (
        Roll(
            **{name: found[name] for name in TENSORS},
            prompt_ids=facts["prompt_ids"],
            informed_ids=facts["informed_ids"],
            text=facts["text"],
            problem=[Problem(**problem) for problem in facts["problem"]],
            row_facts=under("row.", found),
            token_facts=under("token.", found),
        ),
        State.from_state_dict(facts["state"], under("state.", found)),
        facts,
    )


ROLL, FACTS = "roll.safetensors", "facts.json"


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those whose name begins with `prefix`, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def watch(
    metrics: Mapping[str, float], state: State, config: AlarmConfig, rows: int
) -> dict[str, float]:
    """The alarms of a step of `rows` rollouts, as `alarm/<name>` 1 or 0; an alarm sounds after `patience` steps in a row beyond its bound.

    What sounded is kept in `state.mem["alarms"]`: name -> first step, number of steps, worst value. Entropy and length
    are compared with the mean of the phase's first steps.
    """
    mem = state.mem
    start = mem.setdefault("alarm_start", {"steps": 0, "entropy": 0.0, "length": 0.0})
    entropy = metrics.get("rollout/entropy", math.nan)  # nan: the policy itself sampled nothing
    length = metrics.get("rollout/length", math.nan)
    if start["steps"] < START_STEPS and not math.isnan(entropy):
        start["steps"] += 1
        start["entropy"] += (entropy - start["entropy"]) / start["steps"]
        start["length"] += (length - start["length"]) / start["steps"]
    unscored = metrics.get("rollout/unscored", 0.0)
    longer = length / max(start["length"], 1e-9)
    beyond = {
        "entropy": (entropy, entropy < config.entropy_fraction * start["entropy"]),
        "kl": (metrics.get("rl/kl_old", 0.0), metrics.get("rl/kl_old", 0.0) > config.kl),
        "length": (length, longer > config.length_factor or longer * config.length_factor < 1),
        "unscored": (unscored / rows, unscored > config.unscored * rows),
        "grad_norm": (
            metrics.get("rl/grad_norm", 0.0),
            metrics.get("rl/grad_norm", 0.0) > config.grad_norm,
        ),
        "credited": (
            metrics.get("rl/credited", 1.0),
            metrics.get("rl/credited", 1.0) <= config.credited,
        ),
        "nonfinite": (metrics.get("rl/refused", 0.0), metrics.get("rl/refused", 0.0) > 0),
    }
    counts, sounded = mem.setdefault("alarm_counts", {}), mem.setdefault("alarms", {})
    result = {}
    for name, (value, bad) in beyond.items():
        counts[name] = counts.get(name, 0) + 1 if bad else 0
        sounds = counts[name] >= (1 if name == "nonfinite" else config.patience)
        result[f"alarm/{name}"] = float(sounds)
        if sounds:
            entry = sounded.setdefault(name, {"first_step": state.step - 1, "steps": 0})
            entry["steps"] += 1
            entry["value"] = round(value, 6)
    return result
