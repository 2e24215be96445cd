"""Pages of the reference, written from the code when the site is built: a hook of mkdocs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import typer
from mkdocs.structure.files import File
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from trainorder.config.values import Section


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to those that lie in docs/."""
    for name, page in PAGES.items():
        files.append(File.generated(config, f"reference/{name}.md", content="\n".join(page())))
    return files


def params() -> Iterator[str]:
    """Every key of params.yaml with its type, default and meaning, section by section."""
    from trainorder.config import Params
    from trainorder.config.judges import KINDS

    yield "# params.yaml"
    yield ""
    yield "Every key, with its default. A key that is not listed is refused with the nearest match. Stages depend on the keys that they read."
    seen: set[type[Section]] = set()
    waiting: list[tuple[str, type[Section]]] = [("", Params)]
    waiting += [(f"judges.NAME with kind: {kind}", section) for kind, section in KINDS.items()]
    while waiting:
        path, section = waiting.pop(0)
        if section in seen:
            continue
        seen.add(section)
        yield ""
        yield f"## {path or 'Top level'} {{#{section.__name__.lower()}}}"
        yield ""
        yield from filter(None, [inspect.cleandoc(section.__doc__ or ""), ""])
        yield ""
        yield "| key | type | default | meaning |"
        yield "|---|---|---|---|"
        schema, meanings = section.model_json_schema(), section.explained()
        for name, field in section.model_fields.items():
            kind = _cell(_type(schema["properties"][name]))
            yield f"| `{name}` | {kind} | {_default(field)} | {_cell(meanings[name])} |"
            waiting += [(f"{path}.{name}".strip("."), part) for part in _sections(field.annotation)]


def _sections(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections(part)]


def _type(schema: Mapping[str, Any]) -> str:
    """A JSON schema as text: `integer, 1 to 256`, `list of numbers`."""
    if "$ref" in schema:
        return f"[{(name := schema['$ref'].rpartition('/')[2])}](#{name.lower()})"
    if "enum" in schema or "const" in schema:
        return " or ".join(str(value) for value in schema.get("enum", [schema.get("const")]))
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(part) for part in schema["anyOf"]))
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if kind == "object":
        of = schema.get("additionalProperties")
        return f"name: {_type(of)}" if isinstance(of, dict) else "mapping"
    low, high = (
        schema.get("minimum", schema.get("exclusiveMinimum")),
        schema.get("maximum", schema.get("exclusiveMaximum")),
    )
    if low is None and high is None:
        return kind
    return f"{kind}, {f'{low} to {high}' if high is not None else f'from {low}'}"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    return "see below" if isinstance(value, BaseModel) else f"`{str(value).replace('|', '')[:60]}`"


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def commands() -> Iterator[str]:
    """Every command of `trainorder` with its arguments and options."""
    from trainorder.cli import app

    root: Any = typer.main.get_command(app)
    yield "# Commands"
    yield ""
    yield root.epilog
    for name, command in sorted(root.commands.items()):
        if command.hidden:
            continue
        yield ""
        yield f"## trainorder {name}"
        yield ""
        yield " ".join((command.help or "").split())
        rows = [_parameter(p) for p in command.params]
        if rows:
            yield from ["", "| | meaning |", "|---|---|", *rows]


def _parameter(parameter: Any) -> str:
    names = parameter.opts if parameter.param_type_name == "option" else [parameter.name.upper()]
    shown = ", ".join(f"`{name}`" for name in names)
    return f"| {shown} | {_cell(getattr(parameter, 'help', ''))} |"


def registries() -> Iterator[str]:
    """What params.yaml can name, with the first sentence of its documentation."""
    from trainorder.evaluation import sitting, ways
    from trainorder.graders import GRADERS, grader
    from trainorder.order import PREDICTORS, RULES, TEXT_RULES
    from trainorder.registries import PROBES, load
    from trainorder.rl import curricula, items, method, samplers
    from trainorder.rl.registry import SLOTS
    from trainorder.tasks.rows.schemas import SCHEMAS

    assert all((method, ways))  # they fill the registries
    yield "# Registries"
    yield ""
    yield "What params.yaml can name. A variant is a function and one line in its registry (CONTRIBUTING.md)."
    for slot, listed in SLOTS.items():
        yield from _section(
            f"Pieces of the RL step: {slot}", {n: e.function for n, e in listed.items()}
        )
    yield from _section("Samplers of tasks", dict(samplers.SAMPLERS))
    yield from _section("Samplers of a task's problems", dict(items.ITEMS))
    yield from _section("Curricula inside a phase", dict(curricula.CURRICULA))
    yield from _section(
        "Ways to use a checkpoint in an evaluation",
        {n: e.function for n, e in sitting.WAYS.items()},
    )
    yield from _section("Graders of own rows", {name: grader(name).grade for name in GRADERS})
    yield from _section("Schemas of own rows", {n: e.read for n, e in SCHEMAS.items()})
    yield from _section("Rules that choose an order", {**RULES, **TEXT_RULES})
    yield from _section("Predictors of an order", dict(PREDICTORS))
    yield from _section("Probes of checkpoints", {n: load(PROBES, n, "probes") for n in PROBES})


def _section(title: str, listed: dict[str, Any]) -> Iterator[str]:
    if not listed:
        return
    yield from ["", f"## {title}", "", "| name | does |", "|---|---|"]
    for name, entry in sorted(listed.items()):
        text = inspect.getdoc(getattr(entry, "function", entry)) or ""
        yield f"| `{name}` | {_cell(text.split(chr(10) * 2)[0])} |"


PAGES = {"params": params, "commands": commands, "registries": registries}
