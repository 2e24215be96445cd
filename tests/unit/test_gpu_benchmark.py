"""The benchmark for GPUs runs all that needs none, and says so where there is no GPU."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import gpu


@pytest.mark.long("a step, sampling, an evaluation, updates and a judge of a tiny model")
def test_every_side_that_needs_no_gpu_runs_on_a_tiny_model(capsys: pytest.CaptureFixture[str]):
    assert gpu.main(["--tiny", "--repeats", "1"]) == 0
    lines = [json.loads(x) for x in capsys.readouterr().out.splitlines() if x.startswith("{")]
    measured = {line["side"]: line for line in lines if "tokens_per_second" in line}
    left_out = {line["side"]: line["left_out"] for line in lines if "left_out" in line}
    assert measured.keys() == gpu.SIDES.keys() - gpu.NEEDS.keys()
    assert left_out.keys() == gpu.NEEDS.keys()
    work = gpu.WORKS["tiny"]
    ours, sampled = measured["ours"], measured["hf generate"]
    assert ours["mean_length"] == work.answer  # the end token was never drawn
    drawn = work.prompts * work.group * work.answer
    assert ours["step"] * ours["tokens_per_second"] == pytest.approx(drawn)
    assert 0 < ours["generate"] < ours["step"]
    assert all(0 < line["share_of_peak"] < 1 for line in measured.values())
    [ratio] = [line for line in lines if "ratio" in line]
    assert ratio["ratio"] == "generate: hf generate / ours"
    assert ratio["value"] == pytest.approx(sampled["generate"] / ours["generate"], abs=0.01)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]):
    assert gpu.main([]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: no GPU was found")
    assert "--tiny" in said.err
