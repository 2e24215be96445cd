"""Facts about the warm-up, on hand-made numbers and on a model of a few thousand weights."""

import copy
import json
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import pytest
import torch
from second_device import second_device

from trainorder import paths, sft
from trainorder.adapters import weights_hash
from trainorder.config import Params, PolicyConfig, SftConfig
from trainorder.data import build, write_tokenizer
from trainorder.llama import kernels_for
from trainorder.llama.texts import Texts
from trainorder.policy import Policy
from trainorder.reading import ParamsError
from trainorder.rewards import grading
from trainorder.sft import lines as lines_of
from trainorder.sft import updates
from trainorder.sft.lines import Line, demonstration_lines, drill_lines
from trainorder.texts import log_probs
from trainorder.workers import ALONE

SIZES = PolicyConfig(hidden_size=16, num_layers=1, num_heads=2, mlp_size=24, max_positions=64)
WORDS = {f" {word}" for word in ["a", "b", "c", "d", "e", "f"]}


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    write_tokenizer(tmp_path / "tokenizer", WORDS)
    return Policy.build_tiny(SIZES, tmp_path / "tokenizer", seed=0)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """A built project folder with one easy task."""
    monkeypatch.chdir(tmp_path)
    sizes = {
        "train": 40,
        "dev": 4,
        "test": 4,
        "max_new_tokens": 32,
        "demonstrations": 60,
        "drills": 60,
    }
    params = Params.model_validate(
        {
            "policy": SIZES.model_dump(),
            "tasks": {"math": sizes},
            "sft": {"steps": 12, "batch_size": 8, "drill_batch_size": 4, "warmup_steps": 2},
            "phases": {"math": {"kind": "structured", "tasks": {"math": 1.0}, "steps": 1}},
            "orders": {"only": ["math"]},
        }
    )
    build(params)
    return params


class Notes:
    """A tracker that keeps what it is told."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log(self, step, metrics):
        self.rows.append((step, dict(metrics)))


def configured(params: Params, **changes) -> Params:
    return params.model_copy(update={"sft": params.sft.model_copy(update=changes)})


def nll_by_hand(model, line) -> torch.Tensor:
    """One row, no padding, the model's own logits: token i from the position before it, times its weight."""
    logps = model(input_ids=torch.tensor([line.ids])).logits[0].log_softmax(-1)
    terms = [
        -w * logps[i, token]
        for i, (token, w) in enumerate(zip(line.ids[1:], line.weights[1:], strict=True))
    ]
    return torch.stack(terms).sum()


def test_nll_is_each_tokens_own_weight_times_its_log_probability(policy: Policy):
    # the first token is never predicted, its weight never counts
    line = Line([1, 5, 6, 7], [9.0, 0.1, 0.0, 1.0])
    found = updates.weighted_nll(policy.model, [line])
    torch.testing.assert_close(found, nll_by_hand(policy.model, line))


def test_prompt_tokens_weigh_a_tenth_and_answer_tokens_one(policy: Policy):
    rows = [{"prompt": "a b", "completion": "c"}]
    (line,) = demonstration_lines(policy, rows, prompt_weight=0.1)
    assert policy.tokenizer.convert_ids_to_tokens(line.ids) == [
        "<bos>",
        "▁a",
        "▁b",
        "<sep>",
        "▁c",
        "<eos>",
    ]
    assert line.weights == [0.0, 0.1, 0.1, 0.1, 1.0, 1.0]


def test_every_token_of_a_drill_counts_one(policy: Policy):
    (line,) = drill_lines(policy, [{"text": "a b"}])
    assert policy.tokenizer.convert_ids_to_tokens(line.ids) == ["<bos>", "▁a", "▁b", "<eos>"]
    assert line.weights == [0.0, 1.0, 1.0, 1.0]


def test_without_prompt_weight_the_prompt_teaches_nothing(policy: Policy):
    (line,) = demonstration_lines(policy, [{"prompt": "a b", "completion": "c"}], prompt_weight=0.0)
    assert line.weights == [0.0, 0.0, 0.0, 0.0, 1.0, 1.0]
    torch.testing.assert_close(
        updates.weighted_nll(policy.model, [line]), nll_by_hand(policy.model, line)
    )


@pytest.fixture
def lines(policy: Policy) -> list[Line]:
    rows = [
        {"prompt": "a b c", "completion": "d"},
        {"prompt": "a", "completion": "b c d e f a b"},
        {"prompt": "f e", "completion": "d c b"},
        {"prompt": "d", "completion": "d"},
    ]
    return demonstration_lines(policy, rows, prompt_weight=0.1)


def test_gradient_is_the_weighted_mean_over_the_batch_however_it_is_cut(policy: Policy, lines):
    with ThreadPoolExecutor(1) as pool:
        whole_loss, whole = updates.gradients(policy.model, lines, 1, pool)
        parts_loss, parts = updates.gradients(policy.model, lines, 4, pool)
    # by hand: one row at a time, no padding at all
    weight = sum(sum(line.weights) for line in lines)
    total = torch.stack([nll_by_hand(policy.model, line) for line in lines]).sum()
    by_hand = torch.autograd.grad(total / weight, list(policy.model.parameters()))
    assert whole_loss == pytest.approx(parts_loss) == pytest.approx(total.item() / weight)
    for a, b, c in zip(whole, parts, by_hand, strict=True):
        torch.testing.assert_close(a, c)
        torch.testing.assert_close(b, c)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "tied"), [(2, 2, 32, True), (4, 2, 6, False), (2, 1, 20, True)]
)
def test_a_gradient_by_hand_is_autograds(heads: int, kv_heads: int, size: int, tied: bool):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=size,
        tie_word_embeddings=tied,
        initializer_range=0.3,
        max_position_embeddings=64,
    )
    noise = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    lengths = [40, 33, 17, 16, 3, 2, 1]
    texts = [torch.randint(0, 50, (n,), generator=noise).tolist() for n in lengths]
    shown = [
        Line(ids, [0.0] * (len(ids) // 3) + [0.5] * (len(ids) - len(ids) // 3)) for ids in texts
    ]
    kernels = kernels_for(model)
    assert kernels is not None
    assert Texts.can(model)
    loss, found = updates.gradients(model, shown, 2, ALONE)
    expected = updates.weighted_nll(model.double(), shown[:-1]) / sum(
        sum(line.weights) for line in shown
    )
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    for ours, theirs in zip(
        found, torch.autograd.grad(expected, list(model.parameters())), strict=True
    ):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5)
    model.model.norm.weight.requires_grad_(False)
    assert not Texts.can(model)


def test_threads_change_no_bit(policy: Policy, lines):
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(3) as three:
        alone = updates.gradients(policy.model, lines, 3, one)
        beside = updates.gradients(policy.model, lines, 3, three)
    assert alone[0] == beside[0]
    assert all(torch.equal(a, b) for a, b in zip(alone[1], beside[1], strict=True))


def test_micro_batches_hold_every_line_once_in_parts_of_like_size():
    made = [Line([0] * n, [0.0] * n) for n in (1, 9, 2, 8, 3, 7, 5, 5)]  # 40 tokens
    parts = updates.micro_batches(made, 4)
    lengths = [[len(line.ids) for line in part] for part in parts]
    assert lengths == [[9, 8], [7], [5, 5], [3, 2, 1]]


def test_more_parts_than_lines_leaves_no_empty_part():
    assert len(updates.micro_batches([Line([0], [0.0])], 4)) == 1


def test_every_line_comes_once_per_epoch_in_an_order_of_seed_and_epoch():
    made = [Line([i], [0.0]) for i in range(20)]

    def order(seed: int, name: str = "demonstrations") -> list[int]:
        return [line.ids[0] for line in islice(lines_of.shuffled(made, name, seed), 40)]

    first, second = order(0)[:20], order(0)[20:]
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert order(0) == order(0)
    assert order(0) != order(1)
    assert order(0) != order(0, "drills")


def test_a_gate_is_open_at_its_bound_and_shut_below():
    assert sft.check_gate({"math": 0.9, "qa": 0.8}, {"math": 0.9, "qa": 0.7}) == []
    assert sft.check_gate({"math": 0.8999}, {"math": 0.9}) == ["math reached 0.900 of 0.900"]


def test_warm_up_learns_and_logs(world: Params):
    notes = Notes()
    summary = sft.warm_up(
        Path("checkpoints/s0"), configured(world, steps=60, gate={"math": 0.0}), 0, notes
    )
    losses = [row["sft/loss"] for _, row in notes.rows if "sft/loss" in row]
    assert losses[0] > 2.5
    assert losses[-1] < losses[0] - 0.7
    assert [step for step, _ in notes.rows] == [10, 20, 30, 40, 50, 60, 60]
    assert notes.rows[-1][1] == {"sft/greedy/math": summary["greedy"]["math"]}
    assert summary["steps"] == 60


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_same_seed_same_bytes_on_any_number_of_threads(world: Params, optimizer: str):
    def weights(out: str, seed: int, threads: int) -> str:
        sft.warm_up(
            Path(out), configured(world, optimizer=optimizer, threads=threads), seed, Notes()
        )
        return weights_hash(Path(out))

    first = weights("one", 0, 1)
    assert weights("two", 0, 2) == first
    assert weights("other", 1, 1) != first


def test_a_shut_gate_trains_on_then_fails_with_task_reached_and_needed(world: Params):
    notes = Notes()
    params = configured(world, steps=2, extension=3, max_steps=6, gate={"math": 1.0})
    wanted = r"shut after 6 steps .*math reached 0\.\d{3} of 1\.000.*raise sft\.max_steps"
    with pytest.raises(sft.GateError, match=wanted):
        sft.warm_up(Path("checkpoints/s0"), params, 0, notes)
    assert [step for step, row in notes.rows if "sft/greedy/math" in row] == [2, 5, 6]
    assert not Path("checkpoints/s0").exists()


def test_missing_data_names_the_file_and_the_stage(world: Params):
    (paths.SFT_DATA / "demonstrations.jsonl").unlink()
    with pytest.raises(
        ParamsError, match=r"demonstrations\.jsonl not found: run `dvc repro build_data`"
    ):
        sft.warm_up(Path("checkpoints/s0"), world, 0, Notes())


def test_empty_demonstrations_name_the_key_to_raise(world: Params):
    (paths.SFT_DATA / "demonstrations.jsonl").write_text("")
    with pytest.raises(ParamsError, match=r"empty: set tasks\.<task>\.demonstrations above 0"):
        sft.warm_up(Path("checkpoints/s0"), world, 0, Notes())


def test_a_world_without_drills_trains_on_demonstrations_alone(world: Params):
    (paths.SFT_DATA / "drills.jsonl").write_text("")
    policy = Policy.build_tiny(world.policy, paths.TOKENIZER, 0)
    batch = next(lines_of.batches(policy, world.sft, 0))
    assert len(batch) == world.sft.batch_size
    assert (
        json.loads((paths.SFT_DATA / "demonstrations.jsonl").read_text().splitlines()[0])["task"]
        == "math"
    )


def test_a_text_is_read_alike_with_kernels_and_by_the_models_own_modules(policy: Policy):
    rows, firsts = [[1, 5, 6, 7, 2], [1, 8], [1, 6, 5]], [2, 1, 3]  # of the last nothing is asked
    ours = log_probs(policy.model, rows, firsts, entropy=True, kernels=kernels_for(policy.model))
    theirs = log_probs(policy.model, rows, firsts, entropy=True)
    logits = [policy.model(input_ids=torch.tensor([row])).logits[0].log_softmax(-1) for row in rows]
    by_hand = torch.stack([logits[0][1, 6], logits[0][2, 7], logits[0][3, 2], logits[1][0, 8]])
    for logps, entropies in (ours, theirs):
        torch.testing.assert_close(logps, by_hand)
        assert entropies is not None
        wanted = torch.stack([-(x.exp() * x).sum() for x in (*logits[0][1:4], logits[1][0])])
        torch.testing.assert_close(entropies, wanted)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_an_update_on_a_second_device_is_that_of_the_cpu(policy: Policy, lines, optimizer: str):
    config = SftConfig(optimizer=optimizer, micro_batches=2)
    here = updates.Run(copy.deepcopy(policy), config, ALONE)
    here.update(lines, 0.5)
    with second_device() as device:
        policy.to(device).model.tie_weights()  # a move by wrapped tensors unties them
        there = updates.Run(policy, config, ALONE)
        there.update(lines, 0.5)
        assert there.metrics == pytest.approx(here.metrics, rel=1e-4)
        for ours, theirs in zip(here.weights, there.weights, strict=True):
            torch.testing.assert_close(theirs.cpu(), ours, rtol=1e-3, atol=1e-4)


SCORE = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    return {"score": {"right": 1.0, "wrong": 0.0, "unknown": None}[ground_truth]}
"""


def test_the_gate_leaves_out_answers_that_cannot_be_graded(
    world: Params, policy: Policy, monkeypatch: pytest.MonkeyPatch
):
    Path("mine.py").write_text(SCORE)
    tasks = {}
    for name, grades in {
        "known": ["right", "unknown", "wrong"],
        "unknown": ["unknown"] * 3,
    }.items():
        files = {split: f"{name}-{split}.jsonl" for split in ("train", "dev", "test")}
        for split, file in files.items():
            rows = [
                {"prompt": f"say {name} in {split} {n}", "answer": grade}
                for n, grade in enumerate(grades)
            ]
            Path(file).write_text("".join(json.dumps(row) + "\n" for row in rows))
        counts = {"train": 3, "dev": 3, "test": 3, "max_new_tokens": 4, "demonstrations": 0}
        tasks[name] = {"data": files, "reward": "mine.py:compute_score", **counts}
    phase = {"kind": "structured", "tasks": dict.fromkeys(tasks, 1.0), "steps": 1}
    changed = {"tasks": tasks, "phases": {"both": phase}, "orders": {"only": ["both"]}}
    build(Params.model_validate(world.model_dump() | changed))
    grading.shared().close()  # its process runs in the folder of an earlier test
    found = sft.greedy_accuracies(policy, tasks, ALONE)
    assert found == {"known": 0.5, "unknown": 0.0}
