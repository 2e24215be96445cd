"""The tasks of lm-eval that `evaluation.harness` names, as far as that can be seen without lm-eval."""

from __future__ import annotations

from collections import Counter

from trainorder.config import EvaluationConfig
from trainorder.plan.check.common import check_kept
from trainorder.reading import ParamsError
from trainorder.tasks.harness import files, label


def check_harness(config: EvaluationConfig) -> None:
    """Refuse own task files that are missing or no YAML, and two tasks of one name.

    Raises:
        ParamsError: says which.
    """
    for file in files(config.harness):
        check_kept("evaluation.harness", file)
    names = Counter(map(label, config.harness))
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise ParamsError(
            f"evaluation.harness: {twice[0]} stands there twice: leave one out, or rename your own task file"
        )
