"""The documentation says what is: the site builds without a warning, commands and params in it exist."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import documented
import pytest
import typer
import yaml

from trainorder.cli import app
from trainorder.config import load_params, parse_params
from trainorder.config.params import _merged
from trainorder.plan import compile_plan

ROOT = documented.ROOT


def blocks(language: str) -> Iterator[Any]:
    for page in documented.PAGES:
        for kind, text in documented.FENCE.findall(page.read_text(encoding="utf-8")):
            if kind == language:
                text = textwrap.dedent(text)
                yield pytest.param(text, id=f"{page.name}-{text.strip().splitlines()[0][:40]}")


def test_every_block_says_what_it_holds():
    kinds = {
        f"{page.name}: {kind}"
        for page in documented.PAGES
        for kind, _ in documented.FENCE.findall(page.read_text(encoding="utf-8"))
        if kind not in documented.LANGUAGES
    }
    assert kinds == set()


def test_of_every_command_it_is_known_how_it_is_tested_and_of_no_other():
    ways = {command: documented.how(command) for command in documented.shown()}
    assert {command: found for command, found in ways.items() if len(found) != 1} == {}
    used = {pattern for c in ways for pattern in documented.KNOWN if re.fullmatch(pattern, c)}
    assert documented.KNOWN.keys() - used == set()
    for way in documented.KNOWN.values():
        if "::" in way:
            file, name = way.split("::")
            assert f"\ndef {name}(" in (ROOT / file).read_text(encoding="utf-8"), way
    assert len(documented.to_run_here()) > 25
    assert documented.how("trainorder invent") == documented.how("dvc invent") == []


def of_way(way: str) -> list[str]:
    return [command for command in documented.shown() if documented.how(command) == [way]]


def test_make_has_every_target_in_the_docs():
    for command in of_way(documented.DRY):
        words = shlex.split(command)
        done = subprocess.run(
            [*words[:1], "--dry-run", *words[1:]], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, (command, done.stderr)
        assert done.stdout


HELP = """
import contextlib, io, json, runpy, sys
said = {}
for module in sys.argv[1:]:
    sys.argv = [module, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        runpy.run_module(module, run_name="__main__")
    said[module] = out.getvalue()
print(json.dumps(said))
"""


@pytest.mark.long("imports every benchmark, in one process")
def test_every_module_in_the_docs_starts_and_has_the_options_it_is_given():
    asked = [shlex.split(command)[2:] for command in of_way(documented.PARSED)]
    becomes = {"flows.search": "trainorder.flow.search"}  # by execv
    asked = [[becomes.get(module, module), *given] for module, *given in asked]
    modules = sorted({module for module, *_ in asked})
    command = [sys.executable, "-c", HELP, *modules]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    for module, *given in asked:
        assert said[module].startswith("usage: "), module
        for word in given:
            if word.startswith("--"):
                assert re.search(rf"(?<!\S){word}\b", said[module]), (module, word)


def test_a_page_whose_commands_need_a_clone_says_so():
    needs = re.compile(
        r"python -m benchmarks\.|configs/(?!controls)[\w-]+\.yaml"
    )  # the others are in every project
    for page in sorted((ROOT / "docs").glob("*/*.md")):
        text = page.read_text(encoding="utf-8")
        assert not needs.search(text) or "clone of trainorder" in text.lower(), page.name


@pytest.mark.parametrize("command", [c for c in documented.shown() if c.startswith("trainorder ")])
def test_every_command_in_the_docs_exists_with_its_options(command: str):
    check_command(command)


def test_every_command_that_only_reads_prints_json_where_asked():
    root: Any = typer.main.get_command(app)
    writes = {"init", "run", "deploy", "ui", "export"}
    options = {
        name: {option for p in command.params for option in getattr(p, "opts", [])}
        for name, command in root.commands.items()
        if not command.hidden and name not in writes
    }
    assert [name for name, own in options.items() if "--json" not in own] == []


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
    own = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    stages = {*own, *compile_plan(load_params(ROOT / "params.yaml")).stages()}
    files = {stage.partition(":")[0] for stage in stages}
    kinds = {re.sub(r"judge-.*", "judge-{}", stage) for stage in stages} | {"{}", "{}:evaluate"}
    wrong, seen = [], 0
    for file, text in texts_of_the_code():
        for stage in re.findall(r"\bdvc repro ([\w{][^\s`'\",;]*)", text):
            seen += 1
            if stage not in stages | files | kinds:
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


def test_the_readme_shows_what_the_default_experiment_printed():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = readme.partition("It ends like this:")[2].split("```")[1].strip().splitlines()
    params = load_params(ROOT / "params.yaml")
    arms = {line.split()[0] for line in shown if re.match(r"\w+ +0\.\d{3} ", line)}
    assert arms == {*params.orders, *params.merges, "base"}
    assert "cover problems and 3 training seeds" in " ".join(shown)


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
