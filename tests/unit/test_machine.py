"""The probe of the machine: measured once, kept, and applied."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from trainorder import likelihood, machine, prefix, preflight
from trainorder.config import TrainingConfig, load_params
from trainorder.llama import kernels
from trainorder.reading import ParamsError
from trainorder.rl import ranks


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = torch.backends.mkldnn.matmul.fp32_precision
    yield tmp_path / "trainorder"
    prefix.use_way("products")
    likelihood.use_way("eager")
    torch.backends.mkldnn.matmul.fp32_precision = before


def wide(folder: Path, width: int) -> Path:
    """A checkpoint that says how wide it is."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"hidden_size": width}), encoding="utf-8")
    return folder


def test_a_machine_is_measured_once(cache):
    first = machine.measured(64)
    assert first["gemm"] in ("default", "onednn")
    assert first["peak_gflops"] == max(first["speed"].values()) > 0
    assert 0 < first["error"]["default"] < 1e-5
    (file,) = cache.glob("machine-*.json")
    file.write_text(json.dumps({**first, "gemm": "onednn"}), encoding="utf-8")
    assert machine.measured(64)["gemm"] == "onednn"
    machine.prepare(1, wide(cache, 64))
    assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"


def test_attention_is_chosen_where_it_takes_time_and_only_if_it_is_exact(cache):
    assert "attention_speed" not in machine.measured(64)
    found = machine.measured(128)
    assert found["attention"] == machine.choose(found["attention_speed"], found["attention_error"])
    assert max(found["attention_error"].values()) < 1e-5
    assert found["likelihood"] == "eager"
    assert "likelihood_speed" not in found


@pytest.mark.long("compiles, or times products")
def test_compiling_is_tried_for_wide_models_and_chosen_if_it_is_faster_and_exact(cache):
    found = machine.measured(machine.WIDE)
    assert found["likelihood"] == machine.choose(
        found["likelihood_speed"], found["likelihood_error"]
    )
    assert max(found["likelihood_error"].values()) < 1e-5
    machine.prepare(1, wide(cache, machine.WIDE))
    assert likelihood._way == found["likelihood"]


def test_where_nothing_can_be_compiled_likelihoods_are_eager(cache, monkeypatch):
    monkeypatch.setattr(likelihood, "_compiled", broken)
    found = machine._likelihood()
    assert found == {"likelihood_error": "RuntimeError: no compiler"}
    assert likelihood._way == "eager"


def broken(*_: object) -> None:
    """What torch.compile does on a machine without a compiler."""
    raise RuntimeError("no compiler")


def test_no_more_threads_than_the_container_allows(cache, monkeypatch):
    monkeypatch.setattr(machine, "QUOTA", cache / "cpu.max")
    cores = machine.allowed_cores()
    assert cores == len(os.sched_getaffinity(0))
    for text, allowed in (("max 100000", cores), ("50000 100000", 1), ("110000 100000", 2)):
        cache.mkdir(exist_ok=True)
        machine.QUOTA.write_text(text)
        assert machine.allowed_cores() == min(cores, allowed)
    machine.QUOTA.write_text("100000 100000")
    assert machine.prepare(2, wide(cache, 64))["threads"] == torch.get_num_threads() == 1


def test_threads_are_timed_and_the_result_kept(cache):
    assert machine.useful_threads(1) == {"threads": 1}
    found = machine.useful_threads(2)
    assert found["threads"] in (1, 2)
    if isinstance(found["threads_speed"], dict):  # nothing else ran meanwhile
        assert found["threads"] == machine.fewest(
            {int(n): speed for n, speed in found["threads_speed"].items()}
        )
        (file,) = cache.glob("threads-*.json")
        file.write_text(json.dumps({"threads": 1}), encoding="utf-8")
        assert machine.useful_threads(2)["threads"] == 1


@pytest.mark.long("compiles, or times products")
def test_a_busy_minute_is_not_remembered_as_a_slow_machine(cache):
    burn = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(burn) for _ in range(3 * machine.allowed_cores())]
    try:
        time.sleep(0.5)  # all of them are running
        found = machine.useful_threads(2)
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert found == {"threads": 2, "threads_speed": "other programs ran"}
    assert not list(cache.glob("threads-*"))


def test_the_path_can_be_pinned(cache, monkeypatch):
    monkeypatch.setenv("TRAINORDER_GEMM", "onednn")
    assert machine.prepare(1, wide(cache, 64))["gemm"] == machine.chosen()["gemm"] == "onednn"
    monkeypatch.setenv("TRAINORDER_ATTENTION", "sdpa")
    assert machine.prepare(1, wide(cache, 64))["attention"] == prefix._way == "sdpa"
    monkeypatch.setenv("TRAINORDER_GEMM", "mkl")
    with pytest.raises(ParamsError, match="default and onednn"):
        machine.prepare(1, wide(cache, 64))


def test_a_torn_cache_is_measured_again(cache):
    machine.measured(64)
    (file,) = cache.glob("machine-*.json")
    file.write_text("{", encoding="utf-8")
    assert "gemm" in machine.measured(64)
    assert json.loads(file.read_text(encoding="utf-8"))["gemm"] in ("default", "onednn")


@pytest.mark.long("compiles, or times products")
def test_kernels_are_built_once_and_a_wrong_one_is_refused(cache, monkeypatch):
    kernels.load.cache_clear()
    try:
        found, text = kernels.load()
        assert found is not None, text
        (library,) = cache.glob("kernels-*.so")
        built = library.stat().st_mtime_ns
        kernels.load.cache_clear()
        assert kernels.load()[0] is not None
        assert library.stat().st_mtime_ns == built
        # the same library with another log: the comparison with torch notices
        source = kernels.SOURCE.read_text(encoding="utf-8").replace("logf(s)", "log2f(s)")
        (cache / "wrong.c").write_text(source, encoding="utf-8")
        monkeypatch.setattr(kernels, "SOURCE", cache / "wrong.c")
        kernels.load.cache_clear()
        found, text = kernels.load()
        assert found is None
        assert "differ" in text
    finally:
        kernels.load.cache_clear()


def test_a_machine_without_a_compiler_says_what_to_do(cache, monkeypatch):
    monkeypatch.setenv("PATH", str(cache))
    monkeypatch.delenv("CC", raising=False)
    kernels.load.cache_clear()
    try:
        found, text = kernels.load()
        assert found is None
        assert "install gcc" in text
    finally:
        kernels.load.cache_clear()


@pytest.fixture
def fresh():
    kernels.load.cache_clear()
    yield
    kernels.load.cache_clear()


@pytest.mark.long("compiles, or times products")
def test_a_library_where_others_may_write_is_not_loaded(cache, fresh):
    assert kernels.load()[0] is not None
    (library,) = cache.glob("kernels-*.so")
    library.write_bytes(b"of somebody else")
    cache.chmod(0o777)
    kernels.load.cache_clear()
    found, text = kernels.load()
    assert found is not None, text
    assert library.read_bytes() == b"of somebody else"


@pytest.mark.long("compiles, or times products")
def test_kernels_work_where_no_cache_can_be_made(fresh, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nohome")
    found, text = kernels.load()
    assert found is not None, text


@pytest.mark.parametrize(
    "script", ["echo failed >&2; exit 1", "sleep 300 & echo $! > HERE; wait", "exit 0"]
)
def test_a_compiler_that_fails_or_hangs_is_one_line(script, tmp_path, cache, fresh, monkeypatch):
    compiler, started = tmp_path / "cc", tmp_path / "pid"
    compiler.write_text(f"#!/bin/sh\n{script.replace('HERE', str(started))}\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setattr(kernels, "COMPILE_SECONDS", 1.0)
    found, text = kernels.load()
    assert found is None
    assert text.startswith(f"torch (kernels could not be built with {compiler}: ")
    assert "\n" not in text
    if started.exists():  # what the compiler started was killed with it
        stat, end = Path(f"/proc/{started.read_text().strip()}/stat"), time.monotonic() + 60
        while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
            assert time.monotonic() < end  # it would sleep for 300 s
            time.sleep(0.05)


@pytest.mark.parametrize("home", ["/proc/nohome", "a-file", "read-only"])
def test_a_cache_that_cannot_be_written_is_done_without(home, tmp_path, monkeypatch):
    (tmp_path / "a-file").write_text("")
    (tmp_path / "read-only").mkdir(mode=0o500)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / home))
    assert machine.measured(64)["gemm"] in ("default", "onednn")


@pytest.mark.parametrize("kept", ["[]", "3", "null", "{", "", "{}"])
def test_a_cache_of_another_shape_is_measured_again(cache, kept):
    machine.measured(64)
    (file,) = cache.glob("machine-*.json")
    file.write_text(kept, encoding="utf-8")
    assert machine.measured(64)["gemm"] in ("default", "onednn")


@pytest.mark.parametrize("rank", ["0", "1", "7"])
def test_ranks_of_a_pod_mean_nothing_without_deepspeed(rank, monkeypatch):
    for name, value in (("RANK", rank), ("WORLD_SIZE", "8"), ("MASTER_ADDR", "10.0.0.1")):
        monkeypatch.setenv(name, value)
    assert ranks.is_first(TrainingConfig())
    assert ranks.is_first(TrainingConfig(backend="deepspeed")) == (rank == "0")
    assert not ranks.launched()
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert ranks.launched()


# What a run needs, found before it starts


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A project as DVC and git see one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("")
    subprocess.run(["git", "init", "-q"], check=True)
    return tmp_path


PARAMS = load_params(Path(__file__).parents[2] / "configs/smoke.yaml")


def lacks() -> str:
    with pytest.raises(ParamsError) as caught:
        preflight.machine.check()
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_project_that_can_run_passes(folder):
    preflight.machine.check()


def test_no_git_repository_is_one_line_unless_dvc_does_without(folder):
    (folder / ".git").rename(folder / "gone")
    assert "is no git repository: run `git init`" in lacks()
    (folder / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    preflight.machine.check()


def test_a_broken_git_repository_and_no_git_are_one_line(folder, monkeypatch):
    (folder / ".git/HEAD").unlink()
    assert "git cannot use the repository" in lacks()
    monkeypatch.setenv("PATH", str(folder))
    assert "git is not installed" in lacks()


def test_no_dvc_project_is_one_line(folder):
    (folder / ".dvc/config").unlink()
    (folder / ".dvc").rmdir()
    assert "is no DVC project: run `git init` and `dvc init`" in lacks()


def test_a_file_in_the_place_of_a_folder_is_one_line(folder):
    (folder / "checkpoints").write_text("")
    assert "checkpoints cannot be written by this user" in lacks()


def test_a_folder_of_another_user_is_found_by_an_ordinary_user(folder):
    """Root can become another user; any other user takes the right to write away from itself."""
    folder.chmod(0o555)
    child = os.fork()
    if child == 0:
        if os.geteuid() == 0:
            os.setuid(65534)
        try:
            preflight.machine.check()
        except ParamsError as error:
            os._exit(0 if "cannot be written by this user" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
