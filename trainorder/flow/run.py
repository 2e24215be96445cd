"""`trainorder run`: bring all that params.yaml asks for up to date, then say which order won and how sure that is.

Two passes. The first trains and measures what the plan holds. The recommended order is known only then: it is written
into plan.yaml, and the second pass trains the nodes that are new. Prefect is imported while its server starts.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

from rich.console import Console

from trainorder import owner, paths, plan, preflight, results, tracking
from trainorder.config import Params
from trainorder.files import disk_trouble, is_disk_full, write_json
from trainorder.flow import dvc
from trainorder.flow.progress import Display
from trainorder.flow.schedule import Schedule
from trainorder.flow.warm import warm_stages
from trainorder.plan import names
from trainorder.process import exclusive, keep_loopback_direct
from trainorder.reading import ParamsError, read_json
from trainorder.report import words
from trainorder.storage import check_room
from trainorder.ui import prefect_environment, prefect_profiles, prefect_server

if TYPE_CHECKING:
    from trainorder.flow.orders import Pipeline

HOME = Path(".prefect")
DURATIONS = HOME / "durations.json"
FINGERPRINT, LAST = (
    "fingerprint",
    frozenset({names.address(names.REPORT), names.address(names.METRICS), "mirror"}),
)
FIRST_GUESS = {
    "build_data": 6.0,
    "model": 6.0,
    "base": 85.0,
    "judge": 20.0,
    "structured": 19.0,
    "creative": 21.0,
    "mixed": 45.0,
    "sft": 15.0,
    "merge": 4.0,
    "evaluate": 17.0,
    "measure_bwt": 3.0,
    "report": 5.0,
    "metrics": 2.0,
    "mirror": 3.0,
}
"""Kind of a stage -> its seconds in the default experiment on two cores, until it has run here once."""
RESTORE_SECONDS = 1.5


class FlowError(RuntimeError):
    """The flow cannot go on; the text says why and what to do."""


@dataclass(frozen=True)
class Look:
    """The plan and what DVC says of its stages."""

    plan: plan.Plan
    parents: dict[str, set[str]]
    stages: dict[str, plan.State]

    @property
    def stale(self) -> set[str]:
        """Stages that have something to do, even if only to restore their files."""
        return {stage for stage, state in self.stages.items() if state != "cached"}


def main() -> int:
    """Run the flow; 0 when everything is up to date, 1 after a failure, 2 when the input is wrong."""
    console = Console(highlight=False)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        wanted = plan.load()
        preflight.check(wanted.params)
        with _only_flow_here():
            _run(wanted, console)
        _show(console)
        return 0
    except ParamsError as error:
        code, text = 2, str(error)
    except (FlowError, dvc.StageFailed, RuntimeError) as error:
        code, text = 1, str(error)
    except KeyboardInterrupt:
        code, text = (
            130,
            "stopped; what was finished is kept, the next `trainorder run` goes on from there",
        )
    except OSError as error:
        code, text = 1 if is_disk_full(error) else 2, disk_trouble(error)
        if not text:
            raise
    console.print(f"error: {text}", style="red", markup=False, soft_wrap=True)
    return code


def _run(wanted: plan.Plan, console: Console) -> None:
    keep_loopback_direct()
    users = _users_prefect()
    if users is None:
        os.environ.update(prefect_environment(Path.cwd()))
    os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "CRITICAL"  # the server has all logs
    servers = prefect_server() if users is None else nullcontext()
    with servers as server, Display(console) as display, ExitStack() as while_running:
        if server is not None:
            os.environ["PREFECT_API_URL"] = f"{server.url}/api"  # Prefect reads it when imported
        state = _start(wanted)
        preflight.judges.check(wanted.params, _judges_needed(state))
        if "stale" in state.stages.values():
            while_running.enter_context(warm_stages())
        from trainorder.flow import orders

        if server is not None:
            server.wait_until_ready()
        mine = [f"{key}={value}" for key, value in owner.identity().items()]
        pipeline = orders.Pipeline(display)
        try:
            orders.sweep([] if _has_own_records() and users is None else mine)
            workers, name = wanted.params.flow.workers, shorten(", ".join(wanted.params.orders), 80)
            orders.run_flow(lambda: _passes(state, pipeline), pipeline, workers, name, mine)
        except orders.ServerError as error:
            raise FlowError(
                f"Prefect at {users or 'its own server'} does not answer ({error}): start it, or unset PREFECT_API_URL "
                f"(or leave the Prefect profile that names it) and trainorder starts a server of its own"
            ) from error
        finally:
            with suppress(OSError):  # estimates only; what stopped the run is to be reported
                _remember(pipeline.seconds)


def _has_own_records() -> bool:
    """Whether Prefect's records lie in this folder, so that all of them are ours; a PREFECT_HOME may hold others'."""
    return Path(os.environ.get("PREFECT_HOME", "")) == HOME.absolute()


def _users_prefect() -> str | None:
    """Address of the Prefect server that the user chose, by a variable, profile, .env or prefect.toml; None: no such."""
    if "PREFECT_API_URL" in os.environ:
        return os.environ["PREFECT_API_URL"] or None
    files = (prefect_profiles(), Path("prefect.toml"), Path(".env"), Path("pyproject.toml"))
    mentions = ("", "", "PREFECT_", "[tool.prefect")
    if not any(
        file.is_file() and mention in file.read_text(encoding="utf-8", errors="replace")
        for file, mention in zip(files, mentions, strict=True)
    ):
        return None
    # in a process of its own: Prefect reads its settings once, and the server's address may follow
    source = "from prefect.settings import get_current_settings as s; print(s().api.url or '')"
    asked = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=False
    )
    if asked.returncode:
        raise FlowError(
            f"Prefect cannot read its settings: {asked.stderr.strip().splitlines()[-1]}"
        )
    return asked.stdout.strip() or None


def _start(wanted: plan.Plan) -> Look:
    """Write plan.yaml and see what is stale.

    A recommended order that was measured on a base or singles that are stale now is forgotten: training it again would
    be wasted if the new measurement recommends another.
    """
    state = _look(wanted)
    singles = {node for by_phase in wanted.singles.values() for node in by_phase.values()}
    sources = [*wanted.bases(), *(wanted.nodes[node] for node in singles)]
    if wanted.resolved and state.stale & {node.stage for node in sources}:
        state = _look(plan.compile_plan(wanted.params))
    check_room(state.plan, state.stages)
    if state.stale:
        tracking.create_store()
        tracking.sweep()
    return state


def _look(current: plan.Plan) -> Look:
    """Make plan.yaml and the fingerprints of the code current, then ask DVC what they make stale."""
    plan.repair()
    plan.write(current)
    _fingerprint()
    parents, _ = dvc.look()
    return Look(current, parents, plan.status(current))


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


def _passes(state: Look, pipeline: Pipeline) -> None:
    from trainorder.flow import orders

    params = state.plan.params
    waiting = plan.pending(params, state.plan.resolved)
    if waiting:
        pipeline.display.say(
            f"{', '.join(waiting)}: known after the first pass has measured transfer"
        )
    pipeline.bring_up_to_date(_schedule(state, leave_out=LAST if waiting else frozenset()))
    best = _recommended()
    asked = any(isinstance(order, str) for order in params.orders.values())
    if asked and best is not None and best != state.plan.resolved.get("recommended"):
        pipeline.display.say(f"recommended order: {' > '.join(best)}")
        state = _look(plan.compile_plan(params, {"recommended": best}))
        pipeline.bring_up_to_date(_schedule(state))
    elif waiting:
        pipeline.bring_up_to_date(_schedule(_look(state.plan)))
    _check_clean()
    bwt = results.load()
    orders.publish(words.arms(bwt), words.summary(bwt))


def _judges_needed(state: Look) -> list[str]:
    """The judges that a stage with something to do is made of or asks."""
    at_work = {stage for stage, found in state.stages.items() if found == "stale"}
    read = at_work.union(*(state.parents.get(stage, ()) for stage in at_work))
    return [name for name in state.plan.judges if names.judge(name) in read]


def _schedule(state: Look, leave_out: frozenset[str] = frozenset()) -> Schedule:
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
    seconds = _estimates(kinds)
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


def _estimates(kinds: Mapping[str, str]) -> dict[str, float]:
    """Seconds a stage took last time; else the mean of its kind; else the table's."""
    known = _durations()
    of_kind: dict[str, list[float]] = {}
    for stage in kinds.keys() & known.keys():
        of_kind.setdefault(kinds[stage], []).append(known[stage])
    guess = FIRST_GUESS | {kind: sum(s) / len(s) for kind, s in of_kind.items()}
    return {stage: known.get(stage, guess.get(kind, 5.0)) for stage, kind in kinds.items()}


def _remember(seconds: Mapping[str, float]) -> None:
    write_json(DURATIONS, _durations() | dict(seconds), indent=1)


def _durations() -> dict[str, float]:
    """Stage -> seconds of its last run; empty where that is not known, or not readable any more."""
    try:
        return dict(read_json(DURATIONS, dict[str, float], "it is written again"))
    except ParamsError:
        return {}


def _recommended() -> tuple[str, ...] | None:
    """The order that the measured transfer recommends, or None where no transfer was measured."""
    recommended = results.load()["recommended"]
    return None if recommended is None else tuple(recommended["order"])


def _check_clean() -> None:
    """`-s` accepts a stage whose parent is stale, so the whole graph is looked at once more."""
    _, changed = dvc.look()
    left = {stage: why for stage, why in changed.items() if why != dvc.ALWAYS}
    if left:
        raise FlowError(
            f"`dvc status` is not clean after the flow: {json.dumps(left)}; "
            f"files changed while it ran? Run it again"
        )


@contextmanager
def _only_flow_here() -> Iterator[None]:
    """Hold the project's flow lock; it goes with the process, however that ends."""
    with exclusive(
        paths.FLOW_LOCK, "runs a flow in this folder (a git worktree takes a second plan)"
    ):
        yield


def _show(console: Console) -> None:
    """The table of arms, as wide as the terminal allows, and where to look next."""
    from rich.table import Table

    bwt = results.load()
    columns = ["arm", "mean", "interval", "minus best"]
    columns += ["minus joint"] if console.width >= 100 else []
    columns += ["phases"] if console.width >= 140 else []
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=True)
    for row in words.arms(bwt):
        table.add_row(*(row[column] for column in columns))
    console.print()
    console.print(table)
    console.print(f"\n{words.headline(bwt)}.", style="bold")
    console.print(" ".join([words.verdict(bwt), *words.caveats(bwt)]) + "\n")
    console.print(f"report   {paths.REPORT.absolute()}", soft_wrap=True)
    console.print("servers  make ui   (or `trainorder ui`: MLflow and Prefect over what was run)")


if __name__ == "__main__":
    sys.exit(main())
