"""The documentation says what is: the site builds without a warning, commands and params in it exist."""

from __future__ import annotations

import ast
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
    check_command(command)


def check_command(command: str) -> None:
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


def texts_of_the_code() -> Iterator[tuple[Path, str]]:
    """Every text in the code that a project has, messages and docstrings; what an f-string fills in is `{}`."""
    for folder in ("trainorder", "stages", "flows"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            inside = set[ast.AST]()
            for node in ast.walk(ast.parse(file.read_bytes())):
                if isinstance(node, ast.JoinedStr):
                    inside |= set(node.values)
                    parts = [p.value if isinstance(p, ast.Constant) else "{}" for p in node.values]
                    yield file.relative_to(ROOT), "".join(map(str, parts))
                elif node not in inside and isinstance(getattr(node, "value", None), str):
                    yield file.relative_to(ROOT), node.value


def test_a_command_in_a_message_can_be_typed_as_it_is_printed():
    planned = yaml.safe_load((ROOT / "plan" / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    own = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    stages = {*own, *(f"plan/dvc.yaml:{name}" for name in planned)}
    kinds = {re.sub(r"(evaluate|judge)-.*", r"\1-{}", name) for name in stages}
    wrong, seen = [], 0
    for file, text in texts_of_the_code():
        for stage in re.findall(r"\bdvc repro ([\w{][^\s`'\",;]*)", text):
            seen += 1
            if stage not in {*stages, *kinds, "{}"}:
                wrong.append(f"{file}: dvc repro {stage}")
        for command in re.findall(r"`(trainorder [a-z][^`]*)`", " ".join(text.split())):
            seen += 1
            check_command(re.sub(r"(?<!\w)[A-Z]+=", "x=", command.replace("{}", "x")))
        # a project made by `trainorder init` has no Makefile
        wrong += [f"{file}: {found}" for found in re.findall(r"\bmake (?:run|ui|install)\b", text)]
    assert wrong == []
    assert seen > 50


@pytest.mark.parametrize("text", list(blocks("yaml")))
def test_every_params_snippet_in_the_docs_is_accepted(text: str):
    default = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    parse_params(_merged(default, yaml.safe_load(text)))


def test_the_layout_names_every_room_and_the_readme_every_command():
    layout = (ROOT / "docs" / "layout.md").read_text(encoding="utf-8")
    rooms = [path for path in (ROOT / "trainorder").iterdir() if not path.name.startswith("__")]
    names = [path.name if path.suffix else f"{path.name}/" for path in rooms]
    names += [path.stem for path in (ROOT / "configs").glob("*.yaml")]
    names += [f"{path.name}/" for path in (ROOT / "configs").iterdir() if path.is_dir()]
    words = set(re.split(r"[\s,;:()]+", layout))
    assert sorted(name for name in names if name not in words) == []
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    root: Any = typer.main.get_command(app)
    commands = [name for name, command in root.commands.items() if not command.hidden]
    assert [n for n in commands if not re.search(rf"`(trainorder )?{n}\b", readme)] == []


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
