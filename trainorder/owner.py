"""Whose records these are, and which MLflow store takes them.

Without MLFLOW_TRACKING_URI that is mlflow.db of the main project, also from a git work tree or a temporary folder of
`dvc exp run`. A shared server holds the records of many: there MLFLOW_EXPERIMENT_NAME goes before the experiments' names.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainorder.files import write_json
from trainorder.paths import in_url

PREFIX = "MLFLOW_EXPERIMENT_NAME"
VIEW = "trainorder"
"""Key of the state of an experiment's page that tracking keeps and the links of `trainorder ui` name."""


def home() -> Path:
    """The project whose MLflow store is used: this folder, or the one that it is a temporary or second work tree of."""
    here = Path.cwd()
    for folder in here.parents:
        if folder.name == "exps" and folder.parts[-3:-1] == (".dvc", "tmp"):  # `dvc exp run --temp`
            here = folder.parents[2]
            break
    top = next((folder for folder in (here, *here.parents) if (folder / ".git").is_file()), None)
    if top is None:
        return here
    link = (top / ".git").read_text(encoding="utf-8").removeprefix("gitdir:").strip()
    common = top / link / "commondir"  # what makes it a work tree, and not a submodule
    if not common.is_file():
        return here
    main = (common.parent / common.read_text(encoding="utf-8").strip()).resolve().parent
    main /= here.relative_to(top)
    return main if (main / "dvc.yaml").is_file() else here


def artifacts() -> Path:
    """Where MLflow's server keeps files; holds the project's id too."""
    return home() / "mlartifacts"


def own_store() -> bool:
    """Whether the store is the project's own file, in which every run is the project's."""
    return not os.environ.get("MLFLOW_TRACKING_URI")


def store_uri() -> str:
    """MLFLOW_TRACKING_URI, or the project's own SQLite file."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{in_url(home() / 'mlflow.db')}"


def experiment_name(name: str) -> str:
    """`nodes` or `orders`, behind the prefix that MLFLOW_EXPERIMENT_NAME gives.

    >>> experiment_name("nodes")
    'nodes'
    """
    prefix = os.environ.get(PREFIX)
    return f"{prefix}/{name}" if prefix else name


def identity() -> dict[str, str]:
    """Whose runs these are: the project's id, this machine, this folder.

    The id is made once and lies beside the artifacts, outside git, so a clone is another project; so is a copy.
    """
    folder = home()
    artifacts().mkdir(exist_ok=True)
    file = artifacts() / "project.json"
    with alone_in(artifacts()):
        known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if known.get("folder") != str(folder):
            known = {"id": uuid.uuid4().hex, "folder": str(folder)}
            write_json(file, known)
    return {"project": known["id"], "host": socket.gethostname(), "folder": str(Path.cwd())}


def own_filter() -> str:
    """MLflow's search filter for the runs of this project; empty where the store holds no others."""
    return "" if own_store() else f"tags.project = '{identity()['project']}'"


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; others wait."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
