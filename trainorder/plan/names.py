"""Names of DVC stages and of the files in .fingerprints."""

from __future__ import annotations

from pathlib import Path

from trainorder import fingerprint, paths
from trainorder.config import DEFAULT

TRAIN, EVALUATE, JUDGE = "train", "evaluate", "judge"
MEASURE, REPORT, METRICS, PROBE = "measure_bwt", "report", "metrics", "probes"


def address(name: str) -> str:
    """How DVC is asked for a stage of plan/dvc.yaml.

    >>> address("report")
    'plan/dvc.yaml:report'
    """
    return f"{paths.PIPELINE.as_posix()}:{name}"


def training(node: str) -> str:
    """The DVC stage that makes a node.

    >>> training("s0--math")
    'plan/s0--math/dvc.yaml:train'
    """
    return f"{paths.pipeline(node).as_posix()}:{TRAIN}"


def evaluation(node: str) -> str:
    """The DVC stage that scores a node."""
    return f"{paths.pipeline(node).as_posix()}:{EVALUATE}"


def judge(name: str) -> str:
    """The DVC stage that makes a judge."""
    return address(f"{JUDGE}-{name}")


def parts(stage: str) -> tuple[str, str]:
    """What a stage does, and to what: `train` a node, make a `judge`, `evaluate` a node; any other stage is a kind of its own.

    >>> parts("plan/s0--math/dvc.yaml:evaluate"), parts("plan/dvc.yaml:judge-reward"), parts("build_data")
    (('evaluate', 's0--math'), ('judge', 'reward'), ('build_data', ''))
    """
    file, _, name = stage.rpartition(":")
    node = Path(file).parent.name
    if file == paths.pipeline(node).as_posix():
        return name, node
    if file != paths.PIPELINE.as_posix():
        return stage, ""
    kind, _, judge = name.partition("-")
    return (JUDGE, judge) if kind == JUDGE else (name, "")


def short(stage: str) -> str:
    """A stage in few words: the node that it makes, or what it does and to what.

    >>> short("plan/s0--math/dvc.yaml:train"), short("plan/s0--math/dvc.yaml:evaluate"), short("build_data")
    ('s0--math', 'evaluate s0--math', 'build_data')
    """
    does, made = parts(stage)
    return made if does == TRAIN else f"{does} {made}".rstrip()


def judge_code(judge: str) -> str:
    """Name of a judge's fingerprint."""
    return f"{fingerprint.JUDGE}{judge}"


def merge_values(merge: str) -> str:
    """Name of a merge's values; the code of all merges is one."""
    return f"{fingerprint.MERGE}{merge}"


def phase_code(phase: str, variant: str = DEFAULT) -> str:
    """Name of a phase's fingerprint; a variant has its own, as it may train other tasks.

    >>> phase_code("math"), phase_code("math", "half_lr")
    ('phase_math', 'phase_math.half_lr')
    """
    return f"{fingerprint.PHASE}{phase}" + ("" if variant == DEFAULT else f".{variant}")
