"""Whether the user's own rows can be read and are as many as params.yaml asks for."""

from __future__ import annotations

from trainorder.config import Params
from trainorder.data import reserved_tokens
from trainorder.reading import ParamsError
from trainorder.tasks import make_task
from trainorder.tasks.base import SPLITS
from trainorder.tasks.jsonl import Jsonl


def check(params: Params) -> None:
    """Read the rows of every jsonl task and compare their numbers with `train`, `dev` and `test`.

    Raises:
        ParamsError: a row cannot be used, or a file holds fewer than asked for.
    """
    for name, config in params.tasks.items():
        task = make_task(name, config)
        if not isinstance(task, Jsonl):
            continue
        found, _ = task.read(name, reserved_tokens(params.policy))
        short = [
            f"{split}: {getattr(config, split)} asked for, {len(found[split])} usable rows in {getattr(task, split)}"
            for split in SPLITS
            if len(found[split]) < getattr(config, split)
        ]
        if short:
            raise ParamsError(
                f"tasks.{name}: {'; '.join(short)}; lower tasks.{name}.{short[0].partition(':')[0]} or add rows"
            )
