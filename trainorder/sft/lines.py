"""The training texts of the warm-up as tokens, and the batches they come in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainorder import paths
from trainorder.config import SftConfig
from trainorder.files import read_jsonl
from trainorder.reading import ParamsError
from trainorder.streams import torch_stream

if TYPE_CHECKING:
    from trainorder.policy import Policy


@dataclass(frozen=True)
class Line:
    """One training text: `weights[i]` is what predicting `ids[i]` counts; the first token is never predicted.

    >>> Line([1, 7, 2, 9, 3], [0.0, 0.1, 0.1, 1.0, 1.0]).ids[3:]  # <bos> prompt <sep> answer <eos>
    [9, 3]
    """

    ids: list[int]
    weights: list[float]


def batches(policy: Policy, config: SftConfig, seed: int) -> Iterator[list[Line]]:
    """Endless batches of demonstrations and drills."""
    demonstrations = read_rows(paths.SFT_DATA / "demonstrations.jsonl")
    drills = read_rows(paths.SFT_DATA / "drills.jsonl") if config.drill_batch_size else []
    if not demonstrations:
        raise ParamsError(
            "data/sft/demonstrations.jsonl is empty: set tasks.<task>.demonstrations above 0"
        )
    shown = shuffled(
        demonstration_lines(policy, demonstrations, config.prompt_weight), "demonstrations", seed
    )
    drilled = shuffled(drill_lines(policy, drills), "drills", seed) if drills else iter(())
    while True:
        batch = [next(shown) for _ in range(config.batch_size)]
        yield batch + [next(drilled) for _ in range(config.drill_batch_size if drills else 0)]


def demonstration_lines(
    policy: Policy, rows: Sequence[Mapping[str, Any]], prompt_weight: float
) -> list[Line]:
    """Prompt and answer as one line each; the prompt's tokens count `prompt_weight`, the answer's 1."""
    pairs = list(
        zip(
            policy.encode_prompts([row["prompt"] for row in rows]),
            policy.encode_completions([row["completion"] for row in rows]),
            strict=True,
        )
    )
    policy.check_fits(*max(((len(p), len(a)) for p, a in pairs), key=sum, default=(0, 0)))
    return [Line(p + a, [0.0] + [prompt_weight] * (len(p) - 1) + [1.0] * len(a)) for p, a in pairs]


def drill_lines(policy: Policy, rows: Sequence[Mapping[str, str]]) -> list[Line]:
    """Plain text between the begin token, where the tokenizer has one, and the end token; all of it counts 1."""
    begin: list[Any] = (
        [] if policy.tokenizer.bos_token_id is None else [policy.tokenizer.bos_token_id]
    )
    answers = policy.encode_completions([row["text"] for row in rows])
    texts: list[list[int]] = [begin + ids for ids in answers]
    return [Line(ids, [0.0] + [1.0] * (len(ids) - 1)) for ids in texts if len(ids) > 1]


def shuffled(lines: Sequence[Line], name: str, seed: int) -> Iterator[Line]:
    """All lines once per epoch, in an order that is a function of (seed, epoch)."""
    import torch

    epoch = 0
    while True:
        order = torch.randperm(len(lines), generator=torch_stream("sft", name, seed, epoch))
        yield from (lines[i] for i in order.tolist())
        epoch += 1


def read_rows(path: Path) -> list[dict[str, str]]:
    """The lines of a file that `build_data` wrote.

    Raises:
        ParamsError: it is not there.
    """
    if not path.is_file():
        raise ParamsError(f"{path} not found: run `dvc repro build_data`")
    return read_jsonl(path)
