"""manifest.json: whole, traceable, independent of how it was written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from trainorder import lineage
from trainorder.config import SftConfig


def checkpoint(node: str, value: float) -> str:
    folder = Path("checkpoints") / node
    folder.mkdir(parents=True)
    save_file({"w": torch.tensor([value])}, folder / "model.safetensors")
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)


def test_a_manifest_names_causes_by_hash():
    base, child = checkpoint("s0", 1.0), checkpoint("s0--math", 2.0)
    Path("train.jsonl").write_text("{}\n")
    Path(".fingerprints").mkdir()
    Path(".fingerprints/phase_math").write_text("code\n")
    path = lineage.write_manifest(
        "s0--math",
        seed=0,
        params={"sft": SftConfig(steps=7)},
        code="phase_math",
        parents=["s0"],
        data=[Path("train.jsonl")],
        phase="math",
        steps=40,
        run_id="abc",
        tokens=1000,
        seconds=12.34567,
    )
    manifest = json.loads(path.read_text())
    assert path == Path("runs/s0--math/manifest.json")
    assert manifest["weights"] == child
    assert manifest["parents"] == {"s0": base}
    assert manifest["data"] == {"train.jsonl": hashlib.sha256(b"{}\n").hexdigest()}
    assert manifest["code"] == {"phase_math": hashlib.sha256(b"code\n").hexdigest()}
    assert manifest["params"]["sft"]["steps"] == 7
    assert (manifest["seed"], manifest["run_id"], manifest["tokens"], manifest["seconds"]) == (
        0,
        "abc",
        1000,
        12.346,
    )
    assert manifest["versions"]["torch"] == torch.__version__.partition("+")[0] or torch.__version__
    assert [f.name for f in path.parent.iterdir()] == ["manifest.json"]  # no temporary file stays
    assert (
        lineage.manifests()
        == {"s0--math": manifest}
        == {"s0--math": lineage.read_manifest("s0--math")}
    )


def test_a_manifest_needs_its_checkpoint():
    with pytest.raises(ValueError, match=r"checkpoints/s0 holds no model\.safetensors"):
        lineage.write_manifest("s0", seed=0, params={}, code="sft_warmup")
    assert not Path("runs").exists()


def test_an_unknown_node_is_named():
    with pytest.raises(FileNotFoundError, match="node 's0--qa' is not made yet"):
        lineage.read_manifest("s0--qa")


def test_a_folders_hash_covers_names_and_contents_and_nothing_else():
    for folder in ("a", "b", "c", "d"):
        (Path(folder) / "sub").mkdir(parents=True)
        (Path(folder) / "sub" / "x").write_text("1")
    (Path("c") / "sub" / "x").write_text("2")
    (Path("d") / "sub" / "x").rename(Path("d") / "sub" / "y")
    hashes = [lineage.content_hash(Path(folder)) for folder in "abcd"]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


def test_params_hash_ignores_the_order_of_keys_and_sees_every_value_that_changes_a_result():
    one = lineage.params_hash({"sft": SftConfig(), "seed": 0})
    assert one == lineage.params_hash({"seed": 0, "sft": SftConfig().results()})
    assert one == lineage.params_hash({"sft": SftConfig(threads=7), "seed": 0})
    assert one != lineage.params_hash({"sft": SftConfig(lr=1e-3), "seed": 0})
