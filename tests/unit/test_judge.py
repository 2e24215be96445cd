"""Facts about the judge: its likelihood, its pooling, its files, and the annotator it learns from."""

import filecmp
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from second_device import second_device

from trainorder import paths
from trainorder.adapters import weights_hash
from trainorder.config import Params, PolicyConfig, PreferenceConfig
from trainorder.data import build, write_tokenizer
from trainorder.judges import Comparisons
from trainorder.judges import preference as judge_module
from trainorder.judges.annotator import (
    AgreementError,
    Bench,
    agreement,
    check_agreement,
    compare,
    make_judge,
)
from trainorder.judges.preference import Judge, bradley_terry, fit, mean_over_answer
from trainorder.judges.training import _prompts
from trainorder.llama import kernels_for
from trainorder.plan.appointed import appointed
from trainorder.policy import Policy
from trainorder.reading import ParamsError

SIZES = PolicyConfig(hidden_size=16, num_layers=1, num_heads=2, mlp_size=24, max_positions=64)
WORDS = ["good", "bad", "fair", "dull", "sea", "city", "write"]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A saved causal LM."""
    write_tokenizer(tmp_path / "tokenizer", {f" {word}" for word in WORDS})
    Policy.build_tiny(SIZES, tmp_path / "tokenizer", seed=0).save(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def judge(base: Path) -> Judge:
    return Judge.start(base, seed=0)


PROMPTS = ["write sea", "write city sea", "sea", "write sea", "city"]
ANSWERS = ["good", "bad bad fair good dull", "", "dull sea city write good bad", "fair fair"]


def test_log_likelihood_at_log_odds_three_to_one():
    # sigmoid(ln 3) = 3 / 4; a tie costs ln 2; the mean of both
    loss = bradley_terry(torch.tensor([math.log(3), 5.0]), torch.tensor([0.0, 5.0]))
    torch.testing.assert_close(loss, torch.tensor((-math.log(0.75) + math.log(2)) / 2))


def test_win_probability_is_three_quarters_at_a_lead_of_1_0986(judge: Judge):
    lead = judge.scores(["sea", "sea"], ["good", "bad"])
    with torch.no_grad():
        judge.model.score.weight.mul_(1.0986 / (lead[0] - lead[1]))
    won, lost, tie = judge.win_probability(
        ["sea"] * 3, ["good", "bad", "good"], ["bad", "good", "good"]
    )
    assert won == pytest.approx(0.75, abs=1e-4)
    assert lost == pytest.approx(0.25, abs=1e-4)
    assert tie == pytest.approx(0.5, abs=1e-6)


def test_a_shared_reference_is_scored_once_per_prompt(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
):
    scored: list[int] = []
    scores = Judge.scores
    monkeypatch.setattr(
        Judge, "scores", lambda self, p, c: (scored.append(len(c)), scores(self, p, c))[1]
    )
    prompts = ["sea"] * 4 + ["city"] * 4
    judge.win_probability(prompts, ["good"] * 8, ["bad"] * 8)
    assert scored == [8 + 2]


def test_a_judge_trains_and_scores_on_a_second_device_as_on_the_cpu(base: Path):
    data = [Comparisons("sea", ("good", "bad", "fair dull"), ((0, 1), (2, 1)))] * 3
    config = PreferenceConfig(epochs=1, batch_size=2, lr=1e-3)
    here = Judge.start(base, seed=0)
    fit(here, data, config, 0)
    with second_device() as device:
        there = Judge.start(base, seed=0).to(device)
        fit(there, data, config, 0)
        found = there.scores(["sea"] * 2, ["good", "bad city"])
    known = here.scores(["sea"] * 2, ["good", "bad city"])
    assert found.device.type == "cpu"
    torch.testing.assert_close(found, known, rtol=1e-3, atol=1e-4)


def test_mean_runs_over_the_answer_only():
    hidden = torch.tensor([[[9.0], [1.0], [3.0], [99.0]]])
    pooled = mean_over_answer(hidden, torch.tensor([[0.0, 1.0, 1.0, 0.0]]))
    torch.testing.assert_close(pooled, torch.tensor([[2.0]]))


def test_score_is_the_head_on_the_mean_hidden_state_of_answer_and_end_token(judge: Judge):
    prompt, answer = (
        judge.policy.encode_prompt("write sea"),
        judge.policy.encode_completion("good bad"),
    )
    assert len(answer) == 3
    hidden = judge.model.model(input_ids=torch.tensor([prompt + answer])).last_hidden_state
    expected = (hidden[0, len(prompt) :].mean(0) @ judge.model.score.weight[0]).detach()
    torch.testing.assert_close(judge.scores(["write sea"], ["good bad"])[0], expected)


def test_scores_depend_on_neither_padding_nor_order_nor_batches(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
):
    together = judge.scores(PROMPTS, ANSWERS)
    alone = torch.cat([judge.scores([p], [a]) for p, a in zip(PROMPTS, ANSWERS, strict=True)])
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(judge.scores(PROMPTS[::-1], ANSWERS[::-1]), together.flip(0))
    monkeypatch.setattr(judge_module, "BATCH_TOKENS", 16)
    torch.testing.assert_close(judge.scores(PROMPTS, ANSWERS), together)
    assert together.std() > 1e-3  # the rows do differ


def test_batches_stay_within_their_tokens_and_hold_every_row_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(judge_module, "BATCH_TOKENS", 12)
    rows = [([n] * n, 1) for n in (5, 3, 20, 4, 6)]
    # 3 and 4 tokens: 2 x 4 fits; a third row of 5 would make 15, 5 and 6 would just fit as 2 x 6
    assert judge_module._batches(rows) == [[1, 3], [0, 4], [2]]


def test_rows_of_one_prompt_share_a_batch_as_far_as_they_fit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(judge_module, "BATCH_TOKENS", 12)
    rows = [([1] * 3, 1), ([2] * 4, 1), ([1] * 4, 1), ([2] * 3, 1), ([3] * 5, 1)]
    assert judge_module._batches(rows) == [[0, 2], [1, 3], [4]]
    assert judge_module._batches([([1] * 5, 1)] * 5) == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("prompts", [PROMPTS, ["sea"] * 5])
def test_our_kernels_score_and_learn_as_the_models_own_code(
    judge: Judge, prompts: list[str], monkeypatch: pytest.MonkeyPatch
):
    def computed() -> tuple[torch.Tensor, list[torch.Tensor]]:
        scores = judge.forward(judge.encode(prompts, ANSWERS))
        loss = (scores * torch.arange(1.0, 6.0)).sum()
        return scores, [*torch.autograd.grad(loss, [*judge.model.parameters()])]

    assert kernels_for(judge.model) is not None
    ours = computed()
    monkeypatch.setattr("trainorder.llama.kernels_for", lambda model: None)
    own = computed()
    torch.testing.assert_close(ours[0], own[0], rtol=1e-5, atol=1e-6)
    for gradient, expected in zip(ours[1], own[1], strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


def test_saved_and_loaded_judge_is_equal_to_the_bit_and_saves_the_same_bytes(
    judge: Judge, tmp_path: Path
):
    judge.save(tmp_path / "judge")
    loaded = Judge.load(tmp_path / "judge")
    assert torch.equal(loaded.scores(PROMPTS, ANSWERS), judge.scores(PROMPTS, ANSWERS))
    loaded.save(tmp_path / "again")
    names = sorted(file.name for file in (tmp_path / "judge").iterdir())
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(names)
    _, different, failed = filecmp.cmpfiles(
        tmp_path / "judge", tmp_path / "again", names, shallow=False
    )
    assert (different, failed) == ([], [])


def test_a_folder_without_judge_names_the_stage(base: Path, tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"holds no judge .*run `dvc repro plan/dvc.yaml:judge-nothing`"
    ):
        Judge.load(tmp_path / "nothing")


def test_a_base_model_is_no_judge(base: Path):
    with pytest.raises(ValueError, match="is a LlamaForCausalLM, not a judge"):
        Judge.load(base)


def test_a_fresh_head_depends_on_the_seed_and_not_on_the_global_generator(base: Path):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = Judge.start(base, 0).model.score.weight
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(Judge.start(base, 0).model.score.weight, one)
    assert not torch.equal(Judge.start(base, 1).model.score.weight, one)


def test_a_judge_begins_with_the_lowest_layers_and_at_a_users_model(base: Path, monkeypatch):
    config = SIZES.model_copy(update={"num_layers": 3})
    whole = Policy.build_tiny(config, base.parent / "tokenizer", seed=0)
    whole.save(base.parent / "mine")
    monkeypatch.chdir(base.parent)
    Policy.load("mine", weights=False).save_as_model_node(Path("node"), "mine")
    assert not list(Path("node").glob("*.safetensors"))
    judge = Judge.start("node", 0, layers=2)
    assert len(judge.model.model.layers) == judge.model.config.num_hidden_layers == 2
    lowest, kept = whole.model.model.layers[:2], judge.model.model.layers
    for before, after in zip(lowest.parameters(), kept.parameters(), strict=True):
        assert torch.equal(before, after)
    judge.save("saved")
    again = Judge.load("saved")
    assert torch.equal(again.scores(PROMPTS, ANSWERS), judge.scores(PROMPTS, ANSWERS))
    with pytest.raises(ParamsError, match="layers is 4, and the model has 3"):
        Judge.start("node", 0, layers=4)


def preferences_for_good(count: int) -> list[Comparisons]:
    rng = random.Random(0)
    others = [word for word in WORDS if word not in ("good", "bad")]
    made = []
    for _ in range(count):
        rest = rng.sample(others, 3)
        made.append(
            Comparisons("write sea", (f"bad {rest[0]} {rest[1]}", f"{rest[2]} good"), ((1, 0),))
        )
    return made


def test_training_raises_the_likelihood_of_unseen_preferences(judge: Judge):
    data = preferences_for_good(80)
    prompts = [d.prompt for d in data[64:]]
    better, worse = [d.answers[1] for d in data[64:]], [d.answers[0] for d in data[64:]]
    before = bradley_terry(judge.scores(prompts, better), judge.scores(prompts, worse)).item()
    losses: list[float] = []
    fit(
        judge,
        data[:64],
        PreferenceConfig(epochs=5, lr=1e-2),
        0,
        lambda step, loss: losses.append(loss),
    )
    after = bradley_terry(judge.scores(prompts, better), judge.scores(prompts, worse)).item()
    assert len(losses) == 5 * 4
    assert after < 0.1 < 0.5 < before


def test_a_trained_judge_does_not_prefer_an_answer_for_its_length(judge: Judge):
    fit(judge, preferences_for_good(80), PreferenceConfig(epochs=5, lr=1e-2), 0)
    good, bad, fair = "sea good", "bad sea", "dull sea fair"
    stuffed = [
        " ".join([fair] * 16),
        " ".join([bad] * 24),
        "write sea " * 24,
        "fair " * 48,
        f"{bad} {' '.join([fair] * 15)}",
    ]
    for longer in stuffed:
        [won] = judge.win_probability(["write sea"], [longer], [good])
        assert won < 0.1, longer
    grown = judge.scores(["write sea"] * 3, [good, f"{good} {good}", " ".join([good] * 24)])
    gap = grown[0] - judge.scores(["write sea"], [bad])[0]
    assert (grown - grown[0]).max() < 0.5 * gap  # not by the number of words that please it


def test_equal_seeds_train_equal_judges(base: Path):
    def trained(seed: int) -> torch.Tensor:
        judge = Judge.start(base, 0)
        fit(judge, preferences_for_good(40), PreferenceConfig(epochs=1), seed)
        return judge.model.score.weight.detach()

    assert torch.equal(trained(0), trained(0))
    assert not torch.equal(trained(0), trained(1))


def test_training_loss_is_bradley_terry_over_all_comparisons_of_the_batch(judge: Judge):
    data = [
        Comparisons("sea", ("good", "bad bad bad", "fair dull"), ((0, 1), (2, 1))),
        Comparisons("write city", ("dull", "sea good"), ((1, 0),)),
    ]
    rows = [judge.encode([d.prompt] * len(d.answers), d.answers) for d in data]
    s = judge.scores(
        [d.prompt for d in data for _ in d.answers], [a for d in data for a in d.answers]
    )
    expected = bradley_terry(torch.stack([s[0], s[2], s[4]]), torch.stack([s[1], s[1], s[3]]))
    torch.testing.assert_close(judge_module._loss(judge, rows, data).detach(), expected)


def test_annotator_prefers_with_the_sigmoid_of_its_sharpness():
    # tastes .6 and .5 at sharpness 12: sigmoid(1.2) = .7685; 4000 draws, sd .0067
    rng = random.Random(0)
    made = [compare("p", ["x", "y"], [0.6, 0.5], 12.0, rng).wins for _ in range(4000)]
    assert sum(wins == ((0, 1),) for wins in made) / 4000 == pytest.approx(0.7685, abs=0.02)


def test_all_answers_meet_once_and_equal_texts_never():
    sure = 1e3
    made = compare("p", ["x", "y", "x", "z"], [0.1, 0.9, 0.1, 0.5], sure, random.Random(0))
    assert made.wins == ((1, 0), (3, 0), (1, 2), (1, 3), (3, 2))


def test_agreement_counts_ties_half():
    assert agreement([3.0, 1.0, 1.0], [(0, 1), (1, 0), (1, 2), (0, 2)]) == 2.5 / 4


def test_answers_that_never_differ_have_no_agreement_and_the_error_says_why():
    with pytest.raises(AgreementError, match=r"no two held-out answers differ.*raise sft\.steps"):
        agreement([1.0, 2.0], [])


def test_a_weak_judge_is_named_with_both_numbers():
    check_agreement("taste", 0.65, 0.65)
    wanted = r"judge taste .* agrees on 0\.650 of .* min_agreement is 0\.700.*raise its prompts"
    with pytest.raises(AgreementError, match=wanted):
        check_agreement("taste", 0.65, 0.70)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """A built project folder with the judged task and an untrained base."""
    monkeypatch.chdir(tmp_path)
    sizes = {"train": 30, "dev": 4, "test": 4, "max_new_tokens": 32, "demonstrations": 30}
    params = Params.model_validate(
        {
            "policy": SIZES.model_dump(),
            "tasks": {"creative": sizes, "math": {**sizes, "demonstrations": 0}},
            "judge": {"prompts": 10, "answers": 3, "heldout_prompts": 5, "epochs": 1},
            "phases": {"creative": {"kind": "creative", "tasks": {"creative": 1.0}, "steps": 1}},
            "orders": {"only": ["creative"]},
        }
    )
    build(params)
    Policy.build_tiny(SIZES, paths.TOKENIZER, seed=0).save("checkpoints/s0")
    return params


def bench(params: Params, name: str, **changes: Any) -> Bench:
    judge = appointed(params, {"creative": params.judges_of("creative")})[name]
    config = judge.config.model_copy(update={"min_agreement": 0.0, **changes})
    base = paths.checkpoint("s0")
    return Bench(name, config, judge.tasks, base, params, judge.seed, judge.first)


def test_judges_are_made_apart_each_with_a_report_and_share_no_prompt(world: Params):
    made = {name: bench(world, name) for name in ("reward", "evaluation")}
    reports = {name: make_judge(one, Path("out") / name) for name, one in made.items()}
    assert weights_hash(Path("out/reward")) != weights_hash(Path("out/evaluation"))
    assert json.loads(Path("out/reward.json").read_text()) == reports["reward"]
    assert [report["prompts"] for report in reports.values()] == [10, 10]
    assert reports["reward"]["heldout_comparisons"] <= 5 * 3
    [probability] = Judge.load("out/reward").win_probability(["write a note"], ["the"], ["a"])
    assert 0 < probability < 1
    first, second = (
        {p.id for p in _prompts(one, one.problems(), one.config)} for one in made.values()
    )
    assert len(first) == len(second) == 15
    assert not first & second


def test_too_few_problems_say_how_many_are_needed(world: Params):
    wanted = (
        r"after 15 of the judges before it, need 30 training problems, task 'creative' has 29: .*"
        r"tasks\.creative\.train"
    )
    late = bench(world, "evaluation")
    with pytest.raises(ParamsError, match=wanted):
        _prompts(late, late.problems()[1:], late.config)


def test_too_weak_judges_are_not_saved(world: Params):
    with pytest.raises(AgreementError, match="the judge reward is too weak: it agrees on"):
        make_judge(bench(world, "reward", min_agreement=1.1), Path("out/reward"))
    assert not Path("out").exists()


def test_a_task_without_taste_teaches_no_preference_model(world: Params):
    with pytest.raises(ParamsError, match=r"'math' has no taste.*kind creative"):
        make_judge(bench(world, "reward", task="math"), Path("out/reward"))
