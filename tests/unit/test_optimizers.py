"""The optimizers that params.yaml names: which weights each takes, its update by hand, one state for several parts."""

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch

from trainorder.config import JudgeConfig, PolicyConfig, RlConfig, SftConfig
from trainorder.data import write_tokenizer
from trainorder.judges.preference import Judge
from trainorder.optimizers import OPTIMIZERS, StackedMuon, make_optimizer, set_lr
from trainorder.policy import Policy
from trainorder.resume import optimizer_tensors, restore_optimizer

SIZES = PolicyConfig(hidden_size=16, num_layers=1, num_heads=2, mlp_size=24, max_positions=64)
MATRICES = sorted([(16, 16)] * 4 + [(24, 16)] * 2 + [(16, 24)])
"""Of the one layer: queries, keys, values, output; gate, up and down."""


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    write_tokenizer(tmp_path / "tokenizer", {f" {word}" for word in "abcdef"})
    return Policy.build_tiny(SIZES, tmp_path / "tokenizer", seed=0)


def shapes(group: dict[str, Any]) -> list[tuple[int, ...]]:
    return sorted(tuple(p.shape) for p in group["params"])


def fill(model: Any, step: int) -> None:
    noise = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=noise)


def weights(model: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def test_muon_takes_the_matrices_of_the_layers_and_adamw_the_rest(policy: Policy):
    optimizer = make_optimizer(policy.model, SftConfig(optimizer="muon", muon_lr=0.03))
    rest, matrices = optimizer.param_groups
    assert shapes(matrices) == MATRICES
    # the tied embedding, two norms of the layer and the last one
    assert sorted(p.ndim for p in rest["params"]) == [1, 1, 1, 2]
    assert (rest["lr"], matrices["lr"]) == (SftConfig().lr, 0.03)
    set_lr(optimizer, 0.5 * SftConfig().lr)
    assert (rest["lr"], matrices["lr"]) == (0.5 * SftConfig().lr, pytest.approx(0.015))


def test_a_judges_head_and_embeddings_are_adamws(policy: Policy, tmp_path: Path):
    policy.save(tmp_path / "base")
    judge = Judge.start(tmp_path / "base", seed=0)
    optimizer = make_optimizer(judge.model, JudgeConfig(optimizer="muon"))
    rest, matrices = optimizer.param_groups
    assert shapes(matrices) == MATRICES
    assert (1, 16) in shapes(rest)  # the head


def test_a_first_step_of_muon_is_the_orthogonalised_gradient_and_decay_stands_apart():
    # the first momentum is .05 g, Nesterov's (1 - .95) g + .95 * .05 g: positive multiples of g. Equal singular values stay
    # equal, so the step is -lr s I with s near 1, and a tall matrix steps sqrt(rows / columns) = 2 times as far
    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.square = torch.nn.Parameter(torch.eye(4))
            self.tall = torch.nn.Parameter(torch.zeros(8, 2))
            self.bias = torch.nn.Parameter(torch.ones(3))

        def get_input_embeddings(self) -> None: ...

        def get_output_embeddings(self) -> None: ...

    model = Two()
    model.square.grad, model.tall.grad = 7 * torch.eye(4), torch.eye(8)[:, :2] * 0.01
    model.bias.grad = torch.tensor([3.0, -2.0, 1e-3])
    config = RlConfig(optimizer="muon", muon_lr=0.1, lr=0.01, weight_decay=0.5)
    make_optimizer(model, config).step()
    s = (0.95 - model.square[0, 0].item()) / 0.1  # 1 * (1 - lr * decay) - lr s
    assert 0.6 < s < 1.3
    torch.testing.assert_close(model.square.data, (0.95 - 0.1 * s) * torch.eye(4))
    assert -model.tall[0, 0].item() / 0.1 / 2 == pytest.approx(1, abs=0.35)
    # AdamW's first step is lr * sign(g), whatever its size
    torch.testing.assert_close(model.bias.data, 0.995 - 0.01 * torch.tensor([1.0, -1.0, 1.0]))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_restored_optimizer_takes_the_same_next_steps_to_the_byte(policy: Policy, name: str):
    config = RlConfig(optimizer=name, lr=0.01, muon_lr=0.02, weight_decay=0.1)
    model = policy.model
    optimizer = make_optimizer(model, config)
    for step in range(2):
        fill(model, step)
        optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer_tensors("optimizer", optimizer), file)
    other = copy.deepcopy(model)
    for at, kept in ((model, optimizer), (other, make_optimizer(other, config))):
        if at is other:
            file.seek(0)
            restore_optimizer("optimizer", kept, torch.load(file))
        for step in (2, 3):
            fill(at, step)
            set_lr(kept, 0.01 / step)
            kept.step()
    for ours, theirs in zip(weights(model), weights(other), strict=True):
        assert torch.equal(ours, theirs)


def test_adamw_is_torchs_own_for_all_weights(policy: Policy):
    ours, theirs = policy.model, copy.deepcopy(policy.model)
    config = RlConfig(lr=0.01, weight_decay=0.1, betas=[0.8, 0.9])
    plain = torch.optim.AdamW(
        theirs.parameters(), lr=0.01, weight_decay=0.1, betas=(0.8, 0.9), fused=True
    )
    optimizer = make_optimizer(ours, config)
    for step in range(3):
        for model, each in ((ours, optimizer), (theirs, plain)):
            fill(model, step)
            each.step()
    for mine, own in zip(weights(ours), weights(theirs), strict=True):
        assert torch.equal(mine, own)


def test_matrices_stacked_by_shape_are_updated_as_by_torchs_muon(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("trainorder.optimizers.STACK_ENTRIES", 2 * 8 * 12)  # stacks of two
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, 12), (12, 8), (8, 12), (8, 8), (8, 12), (12, 8)]
    first = [torch.randn(shape, generator=generator) for shape in shapes]
    stacked, single = ([torch.nn.Parameter(w.clone()) for w in first] for _ in range(2))
    ours = StackedMuon(stacked, lr=0.5, weight_decay=0.1)
    torchs = torch.optim.Muon(single, lr=0.5, weight_decay=0.1)
    for _ in range(3):
        for weights in (stacked, single):
            generator.manual_seed(1)
            for weight in weights[:-1]:  # the last has no gradient
                weight.grad = torch.randn(weight.shape, generator=generator)
        ours.step()
        torchs.step()
    torch.testing.assert_close(stacked, single, rtol=0, atol=0.5 * 2**-8)
    torch.testing.assert_close(stacked[-1].data, first[-1])
    assert (stacked[0] - first[0]).abs().max() > 0.1
    torch.testing.assert_close(ours.state_dict(), torchs.state_dict())
