"""The state of the project's folder: what is stale, in which order it is made, how long that will take."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trainorder import plan, results, tracking
from trainorder.config import Params
from trainorder.files import write_json
from trainorder.flow import dvc
from trainorder.flow.schedule import Schedule
from trainorder.plan import names, times
from trainorder.plan.times import Times
from trainorder.reading import ParamsError, read_json
from trainorder.room import check_room, sizes

EMBEDDED = "TRAINORDER_EMBEDDED"
"""Environment variable: 1 where Prefect's server is the project's own."""
HOME = Path(".prefect")
DURATIONS = HOME / "durations.json"
FINGERPRINT = "fingerprint"
MIRROR = "mirror"
"""The stage that copies results to MLflow. Where that fails nothing else does, and the next run tries again."""
LAST = frozenset(
    {names.address(names.REPORT), names.address(names.METRICS), names.address(names.PROBE), MIRROR}
)
"""Stages that wait for the second pass, where there is one."""
FIRST_GUESS = {
    "build_data": 6.0,
    "measure_bwt": 3.0,
    "report": 5.0,
    "metrics": 2.0,
    "probes": 120.0,
    MIRROR: 3.0,
}
"""Seconds, on two cores, of the stages that `trainorder.plan.times` says nothing of."""
RESTORE_SECONDS = 1.5


class FlowError(RuntimeError):
    """The flow cannot go on; the text says why and what to do."""


@dataclass(frozen=True)
class ProjectState:
    """The plan and what DVC says of its stages."""

    plan: plan.Plan
    parents: dict[str, set[str]]
    stages: dict[str, plan.State]

    @property
    def stale(self) -> set[str]:
        """Stages that have something to do, even if only to restore their files."""
        return {stage for stage, state in self.stages.items() if state != "cached"}


def start(wanted: plan.Plan) -> ProjectState:
    """Write plan.yaml and find what is stale.

    A recommended order that was measured on a base or singles that are stale now is forgotten: training it again would
    be wasted if the new measurement recommends another.
    """
    state = read(wanted)
    singles = {node for by_phase in wanted.singles.values() for node in by_phase.values()}
    sources = [*wanted.bases(), *(wanted.nodes[node] for node in singles)]
    if wanted.resolved and state.stale & {node.stage for node in sources}:
        state = read(plan.compile_plan(wanted.params))
    check_room(state.plan, state.stages)
    return state


def track() -> None:
    """Create MLflow's store, so that parallel nodes meet a ready one, and mark the runs that a killed flow left as ended."""
    tracking.create_store()
    tracking.sweep()


def read(current: plan.Plan) -> ProjectState:
    """Make plan.yaml and the fingerprints of the code current, then ask DVC what they make stale."""
    plan.repair()
    plan.write(current)
    _fingerprint()
    return ProjectState(current, dvc.graph(), plan.status(current))


def _fingerprint(patience: float = 20.0) -> None:
    """Run the fingerprint stage; right after a kill DVC's locks are held until the killed processes are reaped."""
    end = time.monotonic() + patience
    while True:
        try:
            dvc.Runner().repro(FINGERPRINT, lambda line: None)
            return
        except dvc.StageFailed as error:
            if "is busy" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.5)


def judges_needed(state: ProjectState) -> list[str]:
    """The judges that a stage with something to do is made of or asks."""
    at_work = {stage for stage, found in state.stages.items() if found == "stale"}
    read = at_work.union(*(state.parents.get(stage, ()) for stage in at_work))
    return [name for name in state.plan.judges if names.judge(name) in read]


def schedule(state: ProjectState, leave_out: frozenset[str] = frozenset()) -> Schedule:
    """All stages but these, with what is up to date, their seconds and their CPU threads."""
    parents = {s: above for s, above in state.parents.items() if s not in leave_out}
    params = state.plan.params
    threads = {
        "base": params.sft.threads if params.sft else 1,
        "evaluate": params.evaluation.threads,
    }
    kinds = {stage: _kind(stage, state.plan) for stage in parents}
    slots = {stage: threads.get(kind, 1) for stage, kind in kinds.items()}
    slots |= {
        n.stage: _threads(params.variant(n.variant), n.phase)
        for n in state.plan.nodes.values()
        if n.phase
    }
    at_work = "stale" in state.stages.values()
    expected = times.expected(state.plan, sizes(state.plan)) if at_work else {}
    seconds = estimates(kinds, expected)
    seconds |= {s: RESTORE_SECONDS for s, found in state.stages.items() if found == "restorable"}
    done = parents.keys() - state.stale
    return Schedule(parents, seconds, slots, params.flow.workers, set(done))


def _kind(stage: str, current: plan.Plan) -> str:
    """What a stage makes: the kind of its node, or what `names.parts` says."""
    does, name = names.parts(stage)
    return current.nodes[name].kind if does == "train" and name in current.nodes else does


def _threads(params: Params, phase: str) -> int:
    config = params.phases[phase]
    return config.supervised.threads if config.kind == "sft" else params.phase_rl(phase).threads


def estimates(kinds: Mapping[str, str], expected: Times) -> dict[str, float]:
    """Seconds a stage took last time; else the mean of its kind; else what is expected of it."""
    known = durations()
    of_kind: dict[str, list[float]] = {}
    for stage in kinds.keys() & known.keys():
        of_kind.setdefault(kinds[stage], []).append(known[stage])
    means = {kind: sum(s) / len(s) for kind, s in of_kind.items()}

    def guess(stage: str, kind: str) -> float:
        for seconds in (known.get(stage), means.get(kind), expected.get(stage)):
            if seconds is not None:
                return seconds
        return FIRST_GUESS.get(kind, 5.0)

    return {stage: guess(stage, kind) for stage, kind in kinds.items()}


def remember(seconds: Mapping[str, float]) -> None:
    """Note how long stages took, for the next estimate."""
    write_json(DURATIONS, durations() | dict(seconds), indent=1)


def durations() -> dict[str, float]:
    """Stage -> seconds of its last run; empty where that is not known, or not readable any more."""
    try:
        return dict(read_json(DURATIONS, dict[str, float], "it is written again"))
    except ParamsError:
        return {}


def recommended() -> tuple[tuple[str, ...], str] | None:
    """The order that the measured transfer recommends and the verdict on it, or None where no transfer was measured."""
    recommended = results.load()["recommended"]
    return None if recommended is None else (tuple(recommended["order"]), recommended["verdict"])


def check_clean() -> None:
    """Ask DVC about the whole graph once more: `dvc repro -s` accepts a stage whose parent is stale.

    Raises:
        FlowError: some stage is not up to date.
    """
    changed = dvc.status()
    changed.pop(MIRROR, None)
    left = {stage: why for stage, why in changed.items() if why != dvc.ALWAYS}
    if left:
        raise FlowError(
            f"`dvc status` is not clean after the flow: {json.dumps(left)}; "
            f"files changed while it ran? Run it again"
        )
