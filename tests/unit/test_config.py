"""params.yaml: what is accepted, and how what is not is explained."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trainorder.config import Params, Section, load_params, parse_params
from trainorder.reading import ParamsError

SMALL: dict[str, Any] = {
    "tasks": {"math": {}},
    "phases": {"math": {"kind": "structured", "tasks": {"math": 1}, "steps": 2}},
    "orders": {"only": ["math"]},
}


def refusal(**changes: Any) -> str:
    with pytest.raises(ParamsError) as caught:
        parse_params(SMALL | changes)
    return str(caught.value)


def test_defaults_fill_what_is_not_written():
    params = parse_params(SMALL)
    assert params.rl.group_size == 8
    assert params.seeds == [0]
    assert params.tasks["math"].dev == 256


def test_an_unknown_key_is_refused_with_the_nearest_one():
    assert "params.yaml: ordres: unknown key; allowed: " in refusal(ordres={})
    assert "(did you mean 'orders'?)" in refusal(ordres={})


def test_an_unknown_key_deep_inside_is_named_with_its_path():
    text = refusal(tasks={"math": {"trian": 5}})
    assert text.startswith(
        "params.yaml: tasks.math.trian: unknown key; allowed: columns, data, demonstrations, dev"
    )
    assert text.endswith("(did you mean 'train'?)")


def test_all_mistakes_are_reported_at_once():
    text = refusal(sft={"stps": 1}, judge={"epochs": 0})
    assert "sft.stps: unknown key" in text
    assert "judge.epochs: input should be greater than or equal to 1, got 0" in text


@pytest.mark.parametrize("name", ["s0@x", "a-b", "Math", "2nd", "a b", ""])
def test_a_name_that_would_break_dvc_is_refused(name: str):
    assert "use a-z, 0-9 and _, beginning with a letter" in refusal(orders={name: ["math"]})


def test_a_missing_section_is_named():
    with pytest.raises(ParamsError, match=r"params\.yaml: orders: this key is required"):
        parse_params({k: v for k, v in SMALL.items() if k != "orders"})


def test_a_number_in_quotes_is_refused():
    assert "rl.lr: input should be a valid number, got '3e-4'" in refusal(rl={"lr": "3e-4"})


def test_a_phase_overrides_rl_key_by_key():
    phase = SMALL["phases"]["math"] | {"rl": {"lr": 1e-5, "method": {"reduction": "sequence"}}}
    rl = {"group_size": 4, "method": {"advantage": ["rloo"]}}
    own = parse_params(SMALL | {"rl": rl, "phases": {"math": phase}}).phase_rl("math")
    assert (own.lr, own.group_size) == (1e-5, 4)
    assert (own.method.reduction, own.method.advantage) == ("sequence", ["rloo"])


def test_a_bad_override_names_the_phase():
    phase = SMALL["phases"]["math"] | {"rl": {"group_sise": 4}}
    text = refusal(phases={"math": phase})
    assert text.startswith("params.yaml: phases.math.rl: group_sise: unknown key")
    assert text.endswith("(did you mean 'group_size'?)")


def test_a_missing_file_and_broken_yaml_are_explained(tmp_path: Path):
    with pytest.raises(ParamsError, match="not found: run this in the project folder"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("tasks: [")
    with pytest.raises(ParamsError, match="is not valid YAML"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("tasks: {}\ntasks: {}\n")
    with pytest.raises(ParamsError, match="duplicate key"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("just text\n")
    with pytest.raises(ParamsError, match="must hold keys like"):
        load_params(tmp_path / "params.yaml")


def sections() -> list[type[Section]]:
    found, todo = [], [Section]
    while todo:
        found += (more := todo.pop().__subclasses__())
        todo += more
    return found


@pytest.mark.parametrize("section", sections(), ids=lambda s: s.__name__)
def test_every_field_is_explained(section: type[Section]):
    assert section.__doc__
    assert section.explained().keys() >= section.model_fields.keys()


def test_params_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        parse_params(SMALL).seeds = [1]
    assert Params.model_config["extra"] == "forbid"


def test_config_imports_nothing_heavy():
    heavy = ("torch", "transformers", "numpy", "pandas", "mlflow", "prefect", "dvc")
    script = f"import sys, trainorder.config; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], text=True, capture_output=True, check=True
    )
    assert done.stdout == "[]\n"
