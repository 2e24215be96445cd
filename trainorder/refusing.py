"""Errors of the commands as one line on stderr and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def refusing() -> Iterator[None]:
    """Turn wrong input, a path that the system refuses and a full disk into one line on stderr.

    Exit code 2 for what the user gave, 1 for the state of the machine.
    """
    from trainorder.files import disk_trouble, is_disk_full
    from trainorder.process import StageError
    from trainorder.reading import ParamsError

    try:
        yield
    except StageError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    except (ParamsError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    except OSError as error:
        text = disk_trouble(error)
        if not text:
            raise
        print(f"error: {text}", file=sys.stderr)
        raise typer.Exit(1 if is_disk_full(error) else 2) from None
