"""The documentation says what is: the site builds without a warning, commands and params in it exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from trainorder.cli import app
from trainorder.config import parse_params
from trainorder.config.params import _merged

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> Iterator[Any]:
    for page in PAGES:
        for kind, text in FENCE.findall(page.read_text(encoding="utf-8")):
            if kind == language:
                yield pytest.param(text, id=f"{page.name}-{text.strip().splitlines()[0][:40]}")


def commands() -> Iterator[Any]:
    """Every `trainorder ...` in a block of commands, or between backticks with an option or a subcommand."""
    found = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        lines = [
            line for kind, block in FENCE.findall(text) if not kind for line in block.splitlines()
        ]
        for line in [*lines, *re.findall(r"`(trainorder [a-z][^`]*)`", FENCE.sub("", text))]:
            command = re.split(r"  +#|\s#|;|\s&&", line.strip())[0].strip()
            if command.startswith("trainorder "):
                found.setdefault(command, page.name)
    for command, page in found.items():
        yield pytest.param(command, id=f"{page}-{command}")


@pytest.mark.parametrize("command", list(commands()))
def test_every_command_in_the_docs_exists_with_its_options(command: str):
    root: Any = typer.main.get_command(app)
    name, *given = shlex.split(command)[1:]
    if name.startswith("-"):
        assert name.split("=")[0] in {"--version", "--help", "--install-completion"}
        return
    assert name in root.commands, sorted(root.commands)
    options = {option for p in root.commands[name].params for option in getattr(p, "opts", [])}
    for word in given:
        if word.startswith("--"):
            assert word.split("=")[0] in options, (name, sorted(options))


@pytest.mark.parametrize("text", list(blocks("yaml")))
def test_every_params_snippet_in_the_docs_is_accepted(text: str):
    default = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    parse_params(_merged(default, yaml.safe_load(text)))


def test_news_stands_in_the_changelog_above_the_table_of_task_versions():
    _, versions = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").split("\n## Task versions\n")
    assert [line for line in versions.splitlines() if line.startswith(("-", "#"))] == []


@pytest.mark.long("builds the whole site in a process of its own")
def test_the_site_builds_without_a_warning(tmp_path: Path):
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "reference" / "params.html").read_text(encoding="utf-8")
    assert "prompts_per_step" in page
    assert "Prompts of one step." in page
    assert "trainorder compare" in (tmp_path / "reference" / "commands.html").read_text(
        encoding="utf-8"
    )
