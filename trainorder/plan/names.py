"""Names of DVC stages and of the files in .fingerprints."""

from __future__ import annotations

from trainorder import fingerprint, paths
from trainorder.config import DEFAULT

EVALUATE, JUDGE = "evaluate", "judge"
MEASURE, REPORT, METRICS, PROBE = "measure_bwt", "report", "metrics", "probes"


def address(name: str) -> str:
    """How DVC is asked for a stage of plan/dvc.yaml.

    >>> address("s0--math")
    'plan/dvc.yaml:s0--math'
    """
    return f"{paths.PIPELINE.as_posix()}:{name}"


def evaluation(node: str) -> str:
    """The DVC stage that scores a node."""
    return address(f"{EVALUATE}-{node}")


def judge(name: str) -> str:
    """The DVC stage that makes a judge."""
    return address(f"{JUDGE}-{name}")


def parts(stage: str) -> tuple[str, str]:
    """What a stage does, and to what: `train` a node, make a `judge`, `evaluate` a node; any other stage is a kind of its own.

    >>> parts("plan/dvc.yaml:evaluate-s0--math"), parts("plan/dvc.yaml:s0--math"), parts("build_data")
    (('evaluate', 's0--math'), ('train', 's0--math'), ('build_data', ''))
    """
    file, colon, name = stage.rpartition(":")
    if not colon or file != paths.PIPELINE.as_posix():
        return stage, ""
    if name in (MEASURE, REPORT, METRICS, PROBE):
        return name, ""
    kind, dash, rest = name.partition("-")
    return (kind, rest) if dash and kind in (EVALUATE, JUDGE) else ("train", name)


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
