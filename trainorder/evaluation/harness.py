"""lm-eval's tasks on a checkpoint (extra `eval`): guard tasks that are never trained, in the split `harness` of the long table.

The checkpoint's model and tokenizer are handed to lm-eval as they are (its HFLM), so prompts, stop sequences and metrics are lm-eval's
own and numbers compare with those of others. The chat template is used where the checkpoint has one, few-shot examples as turns.

Per document (`problem`; of a group `task/document`) there is every metric that is a mean over documents, named as lm-eval does
(`exact_match,none`); the first of them is also the `score`. Metrics of a whole corpus (perplexity, an F1 over all) are left out.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from trainorder.config import EvaluationConfig
from trainorder.device import precision
from trainorder.policy import TEMPLATE_DATE, Policy
from trainorder.reading import ParamsError, did_you_mean
from trainorder.streams import seed_of
from trainorder.tasks.harness import is_own, label

if TYPE_CHECKING:
    from collections.abc import Mapping

SPLIT = "harness"
BATCH = 8
"""Requests side by side. Fixed: another number could round otherwise."""
FEWSHOT_SEED = 1234
"""lm-eval's own default, so that few-shot examples are those of its command line."""

Row = tuple[str, str, float]
"""Problem, metric, value."""


def check(config: EvaluationConfig) -> None:
    """Load every task with its data, so that none is missing when checkpoints are there.

    Raises:
        ParamsError: lm-eval is not installed, a task is unknown, or its data cannot be had.
    """
    for entry in config.harness:
        load(entry)


def load(entry: str) -> dict[str, Any]:
    """lm-eval's tasks under a name, a group's all, or the one in a file; ready for its `evaluate`.

    Raises:
        ParamsError: as `check`.
    """
    if find_spec("lm_eval") is None:
        raise ParamsError("evaluation.harness needs lm-eval: pip install 'trainorder[eval]'")
    with _quiet():
        from lm_eval.tasks import TaskManager

        manager = TaskManager(include_defaults=not is_own(entry))
        if not is_own(entry) and entry not in manager.all_tasks:
            hint = did_you_mean(entry, list(manager.all_tasks))
            raise ParamsError(
                f"evaluation.harness: lm-eval has no task {entry!r}{hint}; `lm-eval ls tasks` lists them, a task file of your "
                f"own ends in .yaml"
            )
        try:
            found: Any = manager.load([entry])
        except Exception as error:  # whatever a task's own code and the readers of its data raise
            raise ParamsError(
                f"evaluation.harness: {entry} cannot be loaded ({_line(error)}): if its data lie on the hub, run `trainorder check` once "
                f"with a network and without HF_HUB_OFFLINE, or name a task file with `dataset_path: json` and local data_files"
            ) from None
    for name, task in found["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
            raise ParamsError(
                f"evaluation.harness: {name} runs programs outside of the sandbox or shows images, which is not done here; for "
                f"programs there are the tasks `code` and own rows with the grader code"
            )
        unknown = [
            name for name, made in getattr(task, "_metric_fn_list", {}).items() if made is None
        ]
        if unknown and task.config.process_results is None:
            raise ParamsError(
                f"evaluation.harness: {name} has the metric {unknown[0]!r}, which neither lm-eval nor `evaluate` has here: name one of "
                f"theirs (exact_match, acc, ...), or compute it by process_results"
            )
        if not _means(task):
            raise ParamsError(f"evaluation.harness: {name} has no metric that is a mean over its documents")  # fmt: skip
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    return found


def examine(policy: Policy, entry: str, config: EvaluationConfig, dtype: str = "fp32") -> list[Row]:
    """Every document's values on an entry of `evaluation.harness`.

    Raises:
        ParamsError: as `check`.
    """
    tasks = load(entry)
    import torch

    with (
        _quiet(),
        precision(policy.device, dtype),
        torch.random.fork_rng(devices=[policy.device] if policy.device.type == "cuda" else []),
    ):
        from lm_eval.evaluator import evaluate

        torch.manual_seed(seed_of("harness", config.seed, label(entry)))
        found: Any = evaluate(
            _model(policy),
            tasks,
            limit=config.harness_limit,
            bootstrap_iters=0,
            apply_chat_template=policy.tokenizer.chat_template is not None,
            fewshot_as_multiturn=True,
        )
    return list(_rows(tasks["tasks"], found["samples"]))


def made_by() -> dict[str, str]:
    """What decides numbers beside params.yaml, for the table."""
    return {"lm_eval": version("lm_eval")}


def _model(policy: Policy) -> Any:
    """The policy as lm-eval's model; a template that asks for the date is told the same day as everywhere here."""
    from lm_eval.models.huggingface import HFLM

    tokenizer: Any = policy.tokenizer
    return HFLM(
        pretrained=policy.model,
        tokenizer=tokenizer,
        backend="causal",
        batch_size=BATCH,
        max_length=policy.context,
        chat_template_args={"strftime_now": TEMPLATE_DATE.strftime},
    )


def _rows(tasks: Mapping[str, Any], samples: Mapping[str, list[dict[str, Any]]]) -> Iterator[Row]:
    for name, task in tasks.items():
        means, own = _means(task), samples[name]
        first = next((m, s["filter"]) for m in means for s in own if m in s["metrics"])
        for sample in own:
            problem = str(sample["doc_id"])
            problem = problem if len(tasks) == 1 else f"{name}/{problem}"
            for metric in means:
                if metric not in sample["metrics"]:
                    continue
                value = float(sample[metric])
                if (metric, sample["filter"]) == first:
                    yield problem, "score", value
                yield problem, f"{metric},{sample['filter']}", value


def _means(task: Any) -> list[str]:
    """The task's metrics whose aggregation is the mean over documents, in its own order."""
    from lm_eval.api.metrics import mean

    return [metric for metric, how in task.aggregation().items() if how is mean]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings and information of lm-eval; its bars on a terminal only."""
    logger = logging.getLogger("lm_eval")
    level, stderr = logger.level, sys.stderr
    logger.setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.redirect_stderr(stderr if stderr.isatty() else io.StringIO()):
            try:
                yield
            finally:
                logger.setLevel(level)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}".removesuffix(".")
