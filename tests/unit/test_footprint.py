"""The footprint on paper against real tensors, a real process and the shipped configs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.footprint import MACHINE, report
from trainorder import footprint, machine, preflight
from trainorder.config import (
    LoraConfig,
    Params,
    PolicyConfig,
    RlConfig,
    SftConfig,
    TrainingConfig,
    load_params,
    parse_params,
)
from trainorder.footprint import Machine, Part, Shapes, Stage
from trainorder.optimizers import OPTIMIZERS, make_optimizer
from trainorder.policy import tiny_config
from trainorder.prefix import recomputing_alike
from trainorder.reading import ParamsError
from trainorder.rl import forward
from trainorder.rl.adapters import add_adapters
from trainorder.rl.backend import LocalBackend
from trainorder.rl.head import check_forward
from trainorder.rl.packing import computed_tokens
from trainorder.rl.ranks import slots

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
STATED = [file for file in CONFIGS if MACHINE.search(file.read_text())]
LORA = {"lora": LoraConfig(rank=4)}
HALF = {"dtype": "bf16", "gradient_checkpointing": True}
CASES: dict[str, tuple[str, dict[str, Any], int]] = {
    "llama, our kernels": ("llama", {}, 1024),
    "llama, our kernels, four times the tokens": ("llama", {}, 4096),
    "llama with adapters": ("llama", LORA, 4096),
    "llama, bf16, checkpointing": ("llama", HALF, 4096),
    "gpt-neox": ("neox", {}, 1024),
    "gpt-neox, four times the tokens": ("neox", {}, 4096),
    "gpt-neox with adapters": ("neox", LORA, 4096),
    "qwen2, bf16, checkpointing, adapters": ("qwen", {**HALF, **LORA}, 4096),
}
TESTED = (
    "llama, our kernels",
    "gpt-neox with adapters",
    "qwen2, bf16, checkpointing, adapters",
)
"""One of each way of attention, of weights and of precision; `python tests/unit/test_footprint.py` measures all CASES."""
ROLL = 16, 8, 64, 96
"""Prompts, answers of each, their tokens."""


def config_of(kind: str, size: int = 1) -> Any:
    """About 0.2 million weights, or with size 4 about 15 million."""
    import transformers

    h = 96 * size
    common = {"num_hidden_layers": 2 + size, "hidden_size": h, "vocab_size": 1500 * size}
    common |= {"num_attention_heads": 6, "tie_word_embeddings": kind != "neox"}
    if kind == "neox":
        none = {"hidden_dropout": 0.0, "attention_dropout": 0.0}
        return transformers.GPTNeoXConfig(**common, intermediate_size=4 * h, **none)
    shared = {"num_key_value_heads": 2, "intermediate_size": 3 * h}
    made = transformers.LlamaConfig if kind == "llama" else transformers.Qwen2Config
    return made(**common, **shared)


def real(config: Any, training: TrainingConfig, rl: RlConfig) -> LocalBackend:
    import transformers

    model: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    check_forward(model)
    if training.lora is not None:
        add_adapters(model, training.lora, 0)
    if training.gradient_checkpointing:
        model.gradient_checkpointing_enable(
            {"use_reentrant": False, "context_fn": recomputing_alike(model)}
        )
    return LocalBackend(model, rl, training)


def train(backend: LocalBackend, rows: list[int]) -> None:
    roll = footprint.full_roll(*ROLL).rows(rows)

    def loss_of(_: list[int]) -> tuple[torch.Tensor, None]:
        with backend.computing():
            live = forward.forward(backend.model, roll)
        return live.logps.sum(), None

    list(backend.add_gradients(loss_of, [rows]))


def largest(backend: LocalBackend, budget: int) -> list[int]:
    roll = footprint.full_roll(*ROLL)
    batches = backend.micro_batches(roll, budget)
    return max(batches, key=lambda rows: computed_tokens(roll.rows(rows)))


def sizes(backend: LocalBackend) -> dict[str, int]:
    """Real bytes of what is there between two steps."""
    states = [v for state in backend.optimizer.state.values() for v in state.values()]
    return {
        "weights": footprint.tensor_bytes([*backend.model.parameters(), *backend.model.buffers()]),
        "gradients": footprint.tensor_bytes(
            p.grad for p in backend.trained.values() if p.grad is not None
        ),
        "optimizer states": footprint.tensor_bytes(states),
    }


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4), LoraConfig(target=["q_proj"])])
@pytest.mark.parametrize("kind", ["llama", "neox", "qwen"])
def test_weights_gradients_and_states_are_exact_to_the_byte(kind: str, lora: LoraConfig | None):
    if kind == "neox" and lora is not None:
        lora = lora.model_copy(update={"target": "all-linear"})
    training = TrainingConfig(lora=lora, device="cpu")
    backend = real(config_of(kind), training, RlConfig())
    backend.zero_grad()
    train(backend, [0, 9])
    backend.step(1e-3)
    shapes = Shapes.of(config_of(kind), training)
    said = {
        part.what: part.size for part in footprint.training_parts(shapes, training, RlConfig(), 1)
    }
    assert said == sizes(backend)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("section", [SftConfig, RlConfig])
def test_every_optimizer_is_exact_to_the_byte(section: Any, name: Any):
    made, config = config_of("llama"), section(optimizer=name)
    model = real(made, TrainingConfig(device="cpu"), RlConfig()).model
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer = make_optimizer(model, config)
    optimizer.step()
    states = [value for state in optimizer.state.values() for value in state.values()]
    tensors = [value for value in states if isinstance(value, torch.Tensor)]
    shapes = Shapes.of(made, TrainingConfig())
    assert footprint.state_bytes(shapes, config) == footprint.tensor_bytes(tensors)


def test_the_built_in_model_is_exact_to_the_byte():
    policy = PolicyConfig(hidden_size=48, num_layers=2, num_heads=2, mlp_size=100)
    shapes = Shapes.of(tiny_config(policy, 321), TrainingConfig())
    assert footprint.tensor_bytes(shapes.model.parameters()) == policy.tiny_bytes(321)


@pytest.fixture(scope="module")
def measured() -> dict[str, int]:
    """Case -> how far the resident memory of a process of its own rises."""
    # freed memory goes back to the system at once, so that the process holds what lives
    trimmed = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, __file__, *TESTED],
        env={**os.environ, **trimmed, "MALLOC_ARENA_MAX": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))


@pytest.mark.long("a process for each case trains a model of some ten million weights")
@pytest.mark.parametrize("name", TESTED)
def test_activations_are_within_a_quarter_of_what_a_process_takes(
    measured: dict[str, int], name: str
):
    kind, given, budget = CASES[name]
    training, rl = TrainingConfig(device="cpu", **given), RlConfig(micro_batch_tokens=budget)
    shapes = Shapes.of(config_of(kind, 4), training)
    said = footprint.micro_batch_peak(shapes, footprint.full_roll(*ROLL), rl, training, "cpu")
    print(f"{name}: {measured[name] / 1e6:.0f} MB, {said / 1e6:.0f} said")
    assert measured[name] > 50e6
    assert said == pytest.approx(measured[name], rel=0.25)


def test_activations_grow_with_the_micro_batch_and_shrink_with_checkpointing():
    shapes, roll = Shapes.of(config_of("qwen"), TrainingConfig()), footprint.full_roll(*ROLL)

    def peak(budget: int, **training: Any) -> int:
        given, rl = TrainingConfig(**training), RlConfig(micro_batch_tokens=budget)
        return footprint.micro_batch_peak(shapes, roll, rl, given, "cpu")

    small, large = peak(1024), peak(4096)
    assert 2.8 < large / small < 4.2
    assert peak(4096, gradient_checkpointing=True) < 0.75 * large


def test_zero_splits_what_its_stage_splits():
    shapes = Shapes.of(config_of("llama"), TrainingConfig())
    count = sum(p.numel() for p in shapes.model.parameters())

    def parts(stage: Any, world: int) -> dict[str, int]:
        training = TrainingConfig(backend="deepspeed", zero_stage=stage)
        return {
            p.what: p.size for p in footprint.training_parts(shapes, training, RlConfig(), world)
        }

    shard = 4 * -(-count // 8)
    for stage in (1, 2, 3):
        found = parts(stage, 8)
        assert found["float32 masters"] == shard
        assert found["optimizer states"] == 2 * shard + 4
        assert found["gradients"] == (4 * count if stage == 1 else shard)
    assert parts(2, 8)["weights"] == shapes.weights
    assert parts(3, 8)["weights, split"] == shard
    assert parts(3, 1)["weights, split"] == 4 * count


def test_lora_takes_one_base_and_its_reference_an_adapter():
    training = TrainingConfig(lora=LoraConfig(rank=4), device="cpu")
    shapes = Shapes.of(config_of("llama"), training)
    plain = Shapes.of(config_of("llama"), TrainingConfig())
    assert shapes.base == plain.weights
    method = {"terms": ["clipped_surrogate", {"kl": {"coef": 0.01}}]}
    rl = RlConfig.model_validate({"method": method})
    assert [p.size for p in footprint.frozen_models(shapes, rl, training)] == [shapes.trained]
    assert [p.size for p in footprint.frozen_models(plain, rl, TrainingConfig())] == [plain.weights]
    assert footprint.frozen_models(plain, RlConfig(), TrainingConfig()) == []


def test_some_configs_name_a_machine():
    assert {file.stem for file in STATED} == {"multi-node", "one-gpu"}


@pytest.mark.long("traces a model of 7 billion weights, on fake tensors")
@pytest.mark.parametrize("file", STATED, ids=lambda file: file.stem)
def test_every_config_that_names_a_machine_fits_it(file: Path):
    lines, problems = report(file)
    assert problems == []
    assert any("activations" in line for line in lines)


def params(**changes: Any) -> Params:
    known = load_params(ROOT / "configs/smoke.yaml").model_dump()
    return parse_params({**known, **changes})


HUGE = {"hidden_size": 4096, "num_heads": 32, "num_layers": 9, "mlp_size": 11008}


def test_what_cannot_fit_is_refused_in_one_line_and_what_can_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    limit = tmp_path / "memory.max"
    limit.write_text(f"{8 << 30}\n")  # as a container says it
    monkeypatch.setattr(machine, "MEMORY_LIMITS", (tmp_path / "none", limit))
    assert machine.ram_bytes() == 8 << 30
    preflight.check(params())
    with pytest.raises(ParamsError) as refused:
        preflight.check(params(policy=HUGE))
    [line] = str(refused.value).splitlines()
    assert line.startswith("the SFT warm-up needs at least")
    assert "of RAM, and there are 8.0 GiB (" in line
    assert "lower hidden_size, mlp_size or num_layers of policy" in line
    Path("hosts").write_text("localhost slots=8\n")
    hostfile = {"backend": "deepspeed", "hostfile": "hosts", "device": "cpu"}
    preflight.check(params(policy=HUGE, training=hostfile))


def test_an_estimate_refuses_nothing():
    small = Machine.parse("1 host of 0 GPUs, 1 GB RAM, 1 GB disk")
    stage = Stage("x", (Part("weights", 6 * 10**8), Part("activations", 10**9, sure=False)))
    whole = footprint.too_large(stage, small)
    assert "x needs at least 1.5 GiB of RAM, and there are 953.7 MiB" in whole
    assert footprint.too_large(stage, small, sure=True) == ""


@pytest.mark.parametrize("text", ["8 GPUs", "1 host of 8 GPUs, 10 GB RAM, 10 GB disk", ""])
def test_a_machine_in_other_words_is_refused(text: str):
    with pytest.raises(ParamsError, match=r"cannot be read: write e\.g\. `1 host of 8 GPUs with"):
        Machine.parse(text)


def test_a_hostfile_gives_the_ranks(tmp_path: Path):
    file = tmp_path / "hosts"
    file.write_text("# two\na slots=8\nb slots=4\n")
    assert slots(str(file)) == [8, 4]
    training = TrainingConfig(backend="deepspeed", hostfile=str(file))
    nine = Machine.parse("9 hosts of 8 GPUs with 80 GB, 10 GB RAM, 10 GB disk")
    assert footprint.ranks_of(training, nine) == (8, 12)
    absent = training.model_copy(update={"hostfile": str(tmp_path / "none")})
    assert footprint.ranks_of(absent, nine) == (8, 72)
    file.write_text("a slots=many\n")
    with pytest.raises(ParamsError, match="has the line 'a slots=many'; write one line"):
        slots(str(file))


def measure(name: str) -> int:
    """How far the resident memory of this process rises while it trains the largest micro-batch."""
    import ctypes
    import gc

    kind, given, budget = CASES[name]
    torch.set_num_threads(1)
    training = TrainingConfig(device="cpu", **given)
    backend = real(config_of(kind, 4), training, RlConfig(micro_batch_tokens=budget))
    backend.zero_grad()
    train(backend, [0])
    backend.step(0.0)
    backend.zero_grad()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _status("VmRSS")
    train(backend, largest(backend, budget))
    return _status("VmHWM") - before


def _status(key: str) -> int:
    [line] = [
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)
    ]
    return 1024 * int(line.split()[1])


def measure_all(names: list[str]) -> None:
    """Print these cases, each measured in a fork of this process, whose imports they share."""
    for name in names:
        child = os.fork()
        if not child:
            print(json.dumps([name, measure(name)]), flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    import transformers.models.gpt_neox.modeling_gpt_neox
    import transformers.models.llama.modeling_llama
    import transformers.models.qwen2.modeling_qwen2  # noqa: F401

    measure_all(sys.argv[1:] or list(CASES))
