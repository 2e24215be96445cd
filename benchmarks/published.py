"""Experiments whose numbers stand in the docs: training them, and writing their tables into a page."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from trainorder.files import write_text

FINDINGS = Path("docs/findings.md")


def train(params: Path | str) -> int:
    """Run the experiment, or go on where it was ended; the exit code."""
    command = [sys.executable, "-m", "trainorder.cli", "run", "--params", str(params)]
    return subprocess.run(command, check=False).returncode


def markers(name: str) -> tuple[str, str]:
    """The comments that a table stands between.

    >>> markers("claims")
    ('<!-- claims -->', '<!-- end of claims -->')
    """
    return f"<!-- {name} -->", f"<!-- end of {name} -->"


def between(page: str, name: str, text: str) -> str:
    r"""The page with `text` between the markers of this name.

    >>> between("a\n<!-- x -->\nold\n<!-- end of x -->\nb", "x", "new")
    'a\n<!-- x -->\nnew\n<!-- end of x -->\nb'
    """
    begin, end = markers(name)
    before, _, rest = page.partition(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}"


def publish(name: str, text: str) -> None:
    """Write the tables into docs/findings.md."""
    write_text(FINDINGS, between(FINDINGS.read_text(encoding="utf-8"), name, text))
