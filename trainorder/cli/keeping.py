"""Commands about what lies on disk: export, verify, gc."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from trainorder.cli.app import AsJson, ParamsFile, app, print_json
from trainorder.refusing import refusing


@app.command()
def export(
    node: Annotated[str, typer.Argument(help="A node of the plan, e.g. s0--math.")],
    folder: Annotated[str, typer.Argument(help="A folder that does not exist yet.")],
    params: ParamsFile = None,
) -> None:
    """Write a node as an ordinary Hugging Face folder: a LoRA node with its adapter added to the weights of its base."""
    with refusing():
        from pathlib import Path

        from trainorder import paths
        from trainorder.policy import Policy
        from trainorder.reading import ParamsError

        if Path(folder).exists():
            raise ParamsError(f"{folder} exists: name a folder that does not")
        Policy.load(paths.checkpoint(node)).save(folder)
    print(f"{folder}: AutoModelForCausalLM.from_pretrained reads it")


@app.command()
def verify(
    node: Annotated[str | None, typer.Argument(help="A node of the plan; all if left out.")] = None,
    cache: Annotated[bool, typer.Option("--cache", help="Check DVC's cache too.")] = False,
    as_json: AsJson = False,
    params: ParamsFile = None,
) -> None:
    """Recompute all hashes and name what differs from the records: checkpoint, parents, data, params, code."""
    with refusing():
        from trainorder import verify

        found = verify.verify(node) + (verify.verify_cache() if cache else [])
    if as_json:
        print_json({"node": node, "differences": found})
        raise typer.Exit(int(bool(found)))
    for line in found:
        print(line)
    if found:
        print(f"{len(found)} difference(s). {verify.REPAIR}", file=sys.stderr)
        raise typer.Exit(1)
    print(f"{node or 'every node'}: as recorded")


@app.command()
def gc(
    yes: Annotated[bool, typer.Option("--yes", help="Do it.")] = False,
    uncommitted: Annotated[
        bool, typer.Option("--uncommitted", help="Results that no git commit names too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what can be freed, and with --yes free it; what committed plans need stays."""
    with refusing():
        from trainorder import storage
        from trainorder.files import size_text

        with storage.nothing_running():
            found = storage.candidates(uncommitted=uncommitted)
            if not as_json:
                for item in found:
                    print(f"{size_text(item.size):>10}  {item.what}")
            if yes:
                storage.free(found)
    total = sum(item.size for item in found)
    if as_json:
        items = [{"what": item.what, "bytes": item.size} for item in found]
        print_json({"items": items, "bytes": total, "freed": yes})
        return
    print(f"{size_text(total):>10}  {'freed' if yes else 'would be freed; add --yes to do it'}")
