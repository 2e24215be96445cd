"""Whether this machine and this folder can run the plan: git, DVC's folder, what must be writable, a port on loopback."""

from __future__ import annotations

import configparser
import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

from trainorder import owner, paths
from trainorder.config import Params
from trainorder.reading import ParamsError

WRITTEN = (
    Path(),
    Path(".dvc"),
    Path(".dvc/tmp"),
    Path(".dvc/cache"),
    Path("data"),
    Path("checkpoints"),
    Path("runs"),
    Path("evaluations"),
    paths.REPORT.parent,
    paths.FINGERPRINTS,
    paths.RESUME,
    paths.FLOW_LOCK.parent,
)
"""Folders that a run writes into; those that are not there yet are made in the first."""


def check() -> None:
    """Raise on the first thing the machine lacks. A folder without dvc.yaml is no project: only params are checked there.

    Raises:
        ParamsError: one line: what is missing and the command or setting that helps.
    """
    if not Path("dvc.yaml").is_file():
        return
    _check_writable()
    _check_git()
    _check_path()
    _check_system()


def check_backends(params: Params) -> None:
    """What trains and what samples is installed, and the machines of a hostfile are named and can be reached.

    Raises:
        NotHere: it is not; with the command that installs it.
        ParamsError: the hostfile cannot be read.
    """
    if params.training.backend == "deepspeed":
        from trainorder.rl import ranks

        ranks.require(params.training)
    if params.rollout.backend == "vllm":
        from trainorder.rollout import vllm_engine  # and torch

        vllm_engine.require()


def _check_writable() -> None:
    here = Path.cwd()
    for folder in WRITTEN:
        if folder.exists() and not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
            raise ParamsError(
                f"{here / folder} cannot be written by this user ({os.geteuid()}): a run writes there; change its owner "
                f"or permissions, or copy the project to a folder of your own"
            )


def _check_git() -> None:
    """DVC finds the project's git repository before it does anything, unless `core.no_scm` is set."""
    if not Path(".dvc").is_dir():
        raise ParamsError(f"{Path.cwd()} is no DVC project: run `git init` and `dvc init` here")
    if _no_scm():
        return
    without = "or let DVC do without it: `dvc config --local core.no_scm true`"
    here = Path.cwd()
    if not any((folder / ".git").exists() for folder in (here, *here.parents)):
        raise ParamsError(f"{here} is no git repository: run `git init`, {without}")
    git = shutil.which("git")
    if git is None:
        raise ParamsError(f"git is not installed or not on PATH: install it, {without}")
    found = subprocess.run(
        [git, "rev-parse", "--git-dir"],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if found.returncode:
        said = found.stderr.strip().splitlines() or ["no reason given"]
        raise ParamsError(
            f"git cannot use the repository of {here}: {said[0]}; repair it, {without}"
        )


def _no_scm() -> bool:
    config = configparser.ConfigParser(strict=False, interpolation=None)
    try:
        config.read([".dvc/config", ".dvc/config.local"], encoding="utf-8")
        return config.getboolean("core", "no_scm", fallback=False)
    except (OSError, ValueError, configparser.Error):
        return False  # DVC says itself what is wrong with its settings


def _check_path() -> None:
    """A project inside of another's work tree or `dvc exp run` folder uses the store of that one."""
    place = paths.in_url(owner.home() / "mlflow.db")
    if owner.own_store() and not paths.fits_url(place):
        raise ParamsError(
            f"MLflow's store {place} cannot be named by SQLAlchemy: a `?` or `%` and two digits in the way to it are read "
            f"as something else; rename that folder, or set MLFLOW_TRACKING_URI"
        )


def _check_system() -> None:
    try:
        tempfile.gettempdir()
    except OSError:
        raise ParamsError(
            "no folder for temporary files can be written: set TMPDIR to one that can"
        ) from None
    try:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
    except OSError as error:
        raise ParamsError(
            f"no port on 127.0.0.1 can be opened ({error.strerror}): Prefect and MLflow listen there during a run"
        ) from None
