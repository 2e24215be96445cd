"""The command line as a whole, and what its commands share: options, and how answers are printed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType


class _App(typer.Typer):
    """Commands whose last errors are one line too: an answer that cannot be printed, because its file is on a full disk."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        try:
            return super().__call__(*arguments, **options)
        except Exception as error:
            from trainorder.refusing import refusing

            try:
                with refusing():
                    raise error
            except typer.Exit as ended:
                os.dup2(
                    os.open(os.devnull, os.O_WRONLY), 1
                )  # what is left to print has nowhere to go
                sys.exit(ended.exit_code)


app = _App(
    no_args_is_help=True,
    epilog="Exit codes: 0, done; 1, the state of the machine, a stage that failed, or a difference found; 2, something in what you "
    "gave; 130, stopped by Ctrl-C.",
    pretty_exceptions_enable=False,
)


def _use(params: str | None) -> None:
    """Let this command and all it starts read another file than params.yaml."""
    from trainorder.config import PARAMS_VARIABLE

    if params is not None:
        os.environ[PARAMS_VARIABLE] = params


def _version(asked: bool) -> None:
    from importlib.metadata import version

    if asked:
        print(f"trainorder {version('trainorder')}")
        raise typer.Exit


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ParamsFile = Annotated[
    str | None,
    typer.Option("--params", callback=_use, metavar="FILE", help="Another file than params.yaml."),
]


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """In which order should a language model be trained on its skills?"""
    from trainorder.process import make_surroundings_usual

    make_surroundings_usual()


def print_parts(parts: Iterable[RenderableType]) -> None:
    """Print tables and texts, as wide as the terminal; 160 columns into a file."""
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    for part in parts:
        console.print(part)


def print_json(document: object) -> None:
    """Print `json_text`."""
    print(json_text(document), end="")


def json_text(document: object) -> str:
    """A document as JSON; numbers that are not finite are null."""
    import json
    import math

    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {str(k): plain(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [plain(v) for v in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(document), indent=1, allow_nan=False) + "\n"
