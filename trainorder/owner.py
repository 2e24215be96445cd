"""Whose records these are, and which MLflow store takes them.

Without MLFLOW_TRACKING_URI that is mlflow.db of the main project, also from a git work tree or a temporary folder of
`dvc exp run`. A shared server holds the records of many: the experiments' names begin with the project's, which MLFLOW_EXPERIMENT_NAME
replaces, and every run has tags that say whose it is.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from trainorder.files import write_json
from trainorder.paths import in_url

PREFIX = "MLFLOW_EXPERIMENT_NAME"
PROJECT = "TRAINORDER_PROJECT"
"""Environment variable of a worker's stages: id and name of the project that they are made for, as JSON."""
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
    """`nodes` or `orders` behind the project's name, or behind what MLFLOW_EXPERIMENT_NAME says."""
    return f"{os.environ.get(PREFIX) or project()['name']}/{name}"


def identity() -> dict[str, str]:
    """Whose runs these are: the project's id, this machine, this folder."""
    return {"project": project()["id"], "host": socket.gethostname(), "folder": str(Path.cwd())}


def project() -> dict[str, str]:
    """The project's `id` and `name`.

    Both are made once and lie beside the artifacts, outside git. The name is the folder's and stays when the folder moves. A
    clone is another project, and so is a copy, which keeps the name.
    """
    if given := os.environ.get(PROJECT):
        return json.loads(given)
    folder = home()
    artifacts().mkdir(exist_ok=True)
    file = artifacts() / "project.json"
    with alone_in(artifacts()):
        known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if known.get("folder") != str(folder) or "name" not in known:
            moved = known.get("folder") != str(folder)
            known = {
                "id": uuid.uuid4().hex if moved else known["id"],
                "name": known.get("name") or folder.name or "trainorder",
                "folder": str(folder),
            }
            write_json(file, known)
    return {key: known[key] for key in ("id", "name")}


def folder_of(tags: Mapping[str, str]) -> Path:
    """Where the run of these tags was made; this folder for runs of before there was the tag."""
    return Path(tags.get("folder", Path.cwd()))


def is_from_here(tags: Mapping[str, str]) -> bool:
    """Whether the run of these tags was made in this folder, or in one that was moved here or deleted."""
    return folder_of(tags) == Path.cwd() or not folder_of(tags).is_dir()


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
