"""What params.yaml names: engines, backends, judges and forms of a model as `module:attribute`, and the listed pieces of the RL step.

Imports nothing heavy. An entry is text, so that loading one variant imports no other, and a fingerprint covers the code of
the variants that a stage names and of no others. Task kinds are listed the same way in trainorder/tasks/__init__.py.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from trainorder.reading import ParamsError, did_you_mean

ENGINES: dict[str, str] = {
    "torch": "trainorder.rollout.torch_engine:TorchEngine",
    "vllm": "trainorder.rollout.vllm_engine:VllmEngine",
}
"""`rollout.backend` -> what samples, called with the policy."""

BACKENDS: dict[str, str] = {
    "local": "trainorder.rl.backend:LocalBackend",
    "deepspeed": "trainorder.rl.deepspeed_backend:DeepSpeedBackend",
}
"""`training.backend` -> what computes updates, called with model, `rl` and `training`."""

JUDGES: dict[str, str] = {
    "preference": "trainorder.judges.preference:Judge",
    "model": "trainorder.judges.model:ModelJudge",
    "endpoint": "trainorder.judges.endpoint:EndpointJudge",
}
"""`kind` of a judge -> what judges, loaded from a folder."""

JUDGE_MAKERS: dict[str, str] = {
    "preference": "trainorder.judges.training:train",
    "model": "trainorder.judges.appointment:appoint",
    "endpoint": "trainorder.judges.appointment:appoint",
}
"""`kind` of a judge -> what makes that folder, called with a `trainorder.judges.annotator.Bench`."""

FORMATS: dict[str, str] = {"gguf": "trainorder.gguf_model:converted"}
"""Form of a model that is no Hugging Face folder -> what makes one of its file (trainorder/sources.py)."""

PROBES: dict[str, str] = {
    "sparsity": "trainorder.probes.updates:sparsity",
    "rank": "trainorder.probes.updates:rank",
    "overlap": "trainorder.probes.updates:overlap",
    "cosine": "trainorder.probes.updates:cosine",
    "formats": "trainorder.probes.answers:formats",
    "entropy_change": "trainorder.probes.answers:entropy_change",
    "turnover": "trainorder.probes.answers:turnover",
    "length_accuracy": "trainorder.probes.answers:length_accuracy",
    "format_only": "trainorder.probes.answers:format_only",
    "random_valid": "trainorder.probes.answers:random_valid",
    "diversity": "trainorder.probes.diversity:diversity",
    "queries": "trainorder.probes.diversity:queries",
    "kl": "trainorder.probes.behaviour:kl",
    "plasticity": "trainorder.probes.behaviour:plasticity",
    "gradient_cosine": "trainorder.probes.behaviour:gradient_cosine",
    "participation_ratio": "trainorder.probes.representation:participation_ratio",
    "perturbation": "trainorder.probes.representation:perturbation",
}
"""Name in `probes` -> what reads it from two checkpoints (trainorder/probes/base.py)."""

SLOT_OF = {
    "plan": "plan",
    "reward": "reward",
    "edit": "edit",
    "advantage": "advantage",
    "weight": "weight",
    "metric": "metric",
    "term": "terms",
    "sampler": "sampler",
    "item": "items",
    "curriculum": "curriculum",
    "way": "ways",
}
"""Decorator that lists a piece -> key of `rl.method:`, of `rl:` itself, or of `evaluation:`."""


def load(registry: Mapping[str, str], name: str, where: str) -> Any:
    """Import the entry `name`; `where` is the key of params.yaml that an error blames.

    Raises:
        ParamsError: there is no such entry.
    """
    if name not in registry:
        known = sorted(registry)
        raise ParamsError(
            f"{where}: no entry {name!r}; there are {', '.join(known)}{did_you_mean(name, known)}"
        )
    module, _, attribute = registry[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


EVERY = "all"
"""In a list of probes: every one that is listed."""


def chosen_probes(names: Iterable[str]) -> list[str]:
    """The names of probes, `all` replaced by every one.

    Raises:
        ParamsError: a name that is not listed.
    """
    found: dict[str, None] = {}
    for name in names:
        if name != EVERY and name not in PROBES:
            known = [*PROBES, EVERY]
            raise ParamsError(
                f"probes: no probe {name!r}; there are {', '.join(known)}{did_you_mean(name, known)}"
            )
        found |= dict.fromkeys(PROBES if name == EVERY else [name])
    return list(found)


def listed(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    r"""The pieces that a source file lists, as (slot, function); read from the source, as importing it would import torch.

    >>> [(slot, f.name) for slot, f in listed(ast.parse("@term(needs=x)\ndef kl(): ...\ndef helper(): ..."))]
    [('terms', 'kl')]
    """
    for item in tree.body:
        if isinstance(item, ast.FunctionDef):
            for decorator in item.decorator_list:
                called = decorator.func if isinstance(decorator, ast.Call) else decorator
                if isinstance(called, ast.Name) and called.id in SLOT_OF:
                    yield SLOT_OF[called.id], item


@cache
def ways() -> dict[str, dict[str, Any]]:
    """Way of `evaluation.ways` -> what its `@way(...)` says: `answers` it samples per problem, and whether it asks the `base`.

    Read from the source, as importing it would import torch.
    """
    found = {}
    for file in sorted((Path(__file__).parent / "evaluation" / "ways").glob("*.py")):
        for _, function in listed(ast.parse(file.read_text(encoding="utf-8"))):
            (said,) = [d for d in function.decorator_list if isinstance(d, ast.Call)]
            found[function.name] = {str(k.arg): ast.literal_eval(k.value) for k in said.keywords}
    return found


def asks_base(pieces: Iterable[tuple[str, str]]) -> bool:
    """Whether one of these (slot, name) is a way that also asks the checkpoint that RL began at."""
    return any(ways()[name].get("base", False) for slot, name in pieces if slot == "ways")
