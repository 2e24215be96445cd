"""Where everything lies, relative to the project folder (the working directory of every stage)."""

import os
import re
from pathlib import Path
from urllib.parse import unquote

PLAN = Path("plan.yaml")
PIPELINE = Path("plan/dvc.yaml")
"""The stages of the plan that belong to no node, compiled like plan.yaml; those of a node: `pipeline`."""
TASK_DATA = Path("data/tasks")
SFT_DATA = Path("data/sft")
TOKENIZER = Path("data/tokenizer")
FINGERPRINTS = Path(".fingerprints")
JUDGE = Path("checkpoints/judge")
BWT = Path("reports/bwt.json")
REPORT = Path("reports/report.html")
METRICS, PLOTS = Path("reports/metrics"), Path("reports/plots")
"""What `dvc metrics` and `dvc plots` show."""
RESUME = Path(".resume")
"""Step checkpoints of stages that did not finish; outside DVC's outputs, which DVC deletes before it runs a stage."""
MODELS = Path(".models")
"""Models in another form than a Hugging Face folder, converted; each is made again from its file where it is missing."""
VERDICTS = Path(".verdicts")
"""Verdicts of judges that are asked, by content: what survives kills and reruns."""
PROBED = Path(".probes")
"""What probes found, by the content of what they read."""
PROBES = Path("reports/probes.parquet")
"""The long table of the probes that params.yaml asks for."""
DUMPS = Path(".dumps")
"""Refused updates, for replay."""
BASE = "base"
"""The node from which all seeds begin RL."""
NODE = re.compile(rf"{BASE}|s\d+(?:--[a-z0-9_]+)*")
"""Name of a node: the model as it is, or the seed, a variant, phases or a merge."""
REWRITTEN = (TASK_DATA, SFT_DATA, TOKENIZER, JUDGE, FINGERPRINTS, RESUME, DUMPS, MODELS)
OF_NODES = ("checkpoints", "runs")
"""Folders that DVC and the stages empty, and those in which they do so with every folder named like a node."""
FLOW_LOCK = Path(".prefect/flow.lock")
DVC_LOCK = Path("dvc.lock")


def pipeline(node: str) -> Path:
    """The stages of a node: a file of its own, since DVC rewrites a file's whole dvc.lock after each stage."""
    return PIPELINE.parent / node / PIPELINE.name


def locks() -> list[Path]:
    """Every dvc.lock of the project that is there."""
    beside = PIPELINE.with_name(DVC_LOCK.name)
    found = [DVC_LOCK, beside, *sorted(PIPELINE.parent.glob(f"*/{DVC_LOCK.name}"))]
    return [lock for lock in found if lock.is_file()]


def checkpoint(node: str) -> Path:
    """The Hugging Face folder a node leaves; children depend on this and on nothing else of the node."""
    return Path("checkpoints") / node


def judge_work(judge: str) -> str:
    """Under RESUME: the step checkpoints of the stage that makes a judge."""
    return f"judge--{judge}"


def run(node: str) -> Path:
    """The node's records beside its checkpoint: manifest.json, metrics.jsonl, run.json (MLflow run id), of RL drawn.jsonl."""
    return Path("runs") / node


def evaluation(node: str) -> Path:
    """The node's long table of scores: one row per problem and metric."""
    return Path("evaluations") / f"{node}.parquet"


def in_url(database: Path) -> str:
    """An SQLite file as SQLAlchemy's URLs can name it: absolute, or relative where they would read the path otherwise.

    A `?` ends the path of such a URL, and `%41` stands for an A.
    """
    return str(database) if fits_url(str(database)) else os.path.relpath(database)


def fits_url(path: str) -> bool:
    """Whether SQLAlchemy reads the path as it is written."""
    return "?" not in path and unquote(path) == path


def cache_folder() -> Path:
    """Outside the project: what is found once per machine and user, in $XDG_CACHE_HOME/trainorder."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trainorder"
    except RuntimeError:  # a user without a home: nothing can be kept
        return Path(os.devnull) / "trainorder"
