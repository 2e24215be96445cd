"""One run of an experiment inside a Prefect flow: `with opened(params, orders, seeds, workers) as experiment`.

Two passes. The first trains and measures what the plan holds. The recommended order is known only then: it is written into
plan.yaml, and the second pass trains the nodes that are new. DVC decides what runs; an edited `orders` trains only what is new.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from trainorder import paths, plan, preflight, results
from trainorder.config import PARAMS_VARIABLE
from trainorder.files import writing
from trainorder.flow import state as project
from trainorder.flow.progress import Display
from trainorder.flow.warm import warm_stages
from trainorder.process import QUIET, exclusive, keep_loopback_direct
from trainorder.reading import read_yaml

if TYPE_CHECKING:
    from trainorder.flow.tasks import Pipeline

LOCKED = "runs a flow in this folder (a git worktree takes a second plan)"
EDITED = Path("reports/edited.yaml")
"""The params file of a run whose orders, seeds or workers are not those of its own file."""


class Experiment:
    """A params file, what is stale, and the tasks that bring it up to date; holds the project's flow lock.

    Raises:
        ParamsError: the params cannot work.
        Busy: another flow runs in this folder.
    """

    def __init__(
        self,
        params: str | Path,
        orders: Mapping[str, Any] | None = None,
        seeds: Sequence[int] | None = None,
        workers: int | None = None,
    ) -> None:
        self._stack = ExitStack()
        self.display = Display(Console(highlight=False), quiet=QUIET in os.environ)
        self.state: project.ProjectState | None = None
        self._pipeline: Pipeline | None = None
        try:
            self._stack.enter_context(exclusive(paths.FLOW_LOCK, LOCKED))
            file = with_changes(Path(params), orders, seeds, workers)
            self._stack.callback(_set, PARAMS_VARIABLE, os.environ.get(PARAMS_VARIABLE))
            _set(PARAMS_VARIABLE, str(file))
            self.plan = plan.load()
            preflight.check(self.plan.params)
        except BaseException:
            self.close()
            raise

    def begin(self) -> None:
        """Write the plan, find what is stale, keep a process warm if anything trains, try the judges that are needed and MLflow."""
        keep_loopback_direct()
        self._stack.enter_context(self.display)
        self.state = project.start(self.plan)
        if "stale" in self.state.stages.values():
            self._stack.enter_context(warm_stages())  # it imports while the rest is made ready
        preflight.judges.check(self.plan.params, project.judges_needed(self.state))
        if self.state.stale:
            project.track()

    def close(self) -> None:
        """Give back the lock, the terminal and the environment."""
        if self._pipeline is not None:
            with suppress(OSError):  # estimates only; what stopped the run is to be reported
                project.remember(self._pipeline.seconds)
        self._stack.close()

    @property
    def pipeline(self) -> Pipeline:
        """The stages as tasks of the flow run that this is called in."""
        from trainorder.flow import tasks

        if self._pipeline is None:
            self._pipeline = tasks.Pipeline(self.display)
        return self._pipeline

    def first_pass(self) -> None:
        """Bring everything up to date that the plan holds; the report waits if an order is still to be recommended.

        Raises:
            StageFailed: a stage failed; those that do not depend on it were brought up to date all the same.
        """
        assert self.state is not None
        waiting = plan.pending(self.plan.params, self.state.plan.resolved)
        if waiting:
            names = ", ".join(waiting)
            self.pipeline.say(f"{names}: known after the first pass has measured transfer")
        later = project.LAST if waiting else frozenset[str]()
        self.pipeline.bring_up_to_date(project.schedule(self.state, leave_out=later), self.plan)

    def second_pass(self) -> None:
        """Fill in the recommended order, if the params ask for one, and train what it adds.

        Raises:
            StageFailed: as `first_pass`.
        """
        assert self.state is not None
        params, known = self.plan.params, self.state.plan.resolved
        best, verdict = project.recommended() or (None, "")
        if plan.waiting(params) and best is not None and best != known.get("recommended"):
            self.pipeline.say(
                f"recommended order: {' > '.join(best)} ({verdict}; `trainorder recommend` says how sure it is)"
            )
            self.state = project.read(plan.compile_plan(params, {"recommended": best}))
        elif plan.pending(params, known):
            self.state = project.read(self.state.plan)
        else:
            return
        self.pipeline.bring_up_to_date(project.schedule(self.state), self.state.plan)

    def publish(self) -> None:
        """Leave the answer as artifacts of the flow run.

        Raises:
            FlowError: `dvc status` is not clean.
        """
        from trainorder.flow import tasks

        project.check_clean()
        tasks.publish(results.load())


_prepared: list[Experiment] = []


def prepare(experiment: Experiment) -> None:
    """Begin an experiment before its flow, while Prefect's server starts; `opened` takes it."""
    experiment.begin()
    _prepared.append(experiment)


@contextmanager
def opened(
    params: str | Path,
    orders: Mapping[str, Any] | None = None,
    seeds: Sequence[int] | None = None,
    workers: int | None = None,
) -> Iterator[Experiment]:
    """An experiment for the flow run that this is called in; orders, seeds and workers replace those of the file."""
    from trainorder.flow import tasks

    if _prepared:
        experiment = _prepared.pop()
    else:
        experiment = Experiment(params, orders, seeds, workers)
        experiment.begin()
    try:
        tasks.sweep()
        yield experiment
    finally:
        experiment.close()


def with_changes(
    file: Path,
    orders: Mapping[str, Any] | None,
    seeds: Sequence[int] | None,
    workers: int | None,
) -> Path:
    """`file`, or EDITED with these values in it where they differ.

    Raises:
        ParamsError: the file cannot be read.
    """
    data = read_yaml(file)
    if not isinstance(data, dict):
        return file  # loading it says what is wrong
    given = {"orders": orders and dict(orders), "seeds": seeds and list(seeds)}
    changes: dict[str, Any] = {k: v for k, v in given.items() if v and v != data.get(k)}
    flow = data.get("flow") or {}
    if workers is not None and workers != flow.get("workers"):
        changes["flow"] = {**flow, "workers": workers}
    if not changes:
        return file
    write_params(
        EDITED,
        {**data, **changes},
        f"Written by a run with other values than {file}; the next overwrites it.",
    )
    return EDITED


def write_params(file: Path, data: Mapping[str, Any], about: str) -> None:
    """Write a params file whole, with a comment above."""
    from io import StringIO

    from ruamel.yaml import YAML

    text, yaml = StringIO(), YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # the order of tasks is a part of the data
    yaml.dump(dict(data), text)
    with writing(file) as stream:
        stream.write(f"# {about}\n{text.getvalue()}".encode())


def _set(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
