import math
import random
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import pandas as pd
import pytest
import torch
from second_device import second_device

import stages
from stages import evaluate as stage
from trainorder import paths
from trainorder.config import EvaluationConfig, PolicyConfig, parse_params
from trainorder.data import build
from trainorder.evaluation import POOLED, answering, built_exams, evaluate
from trainorder.evaluation.answering import Answers, Exam, answer, forced_entropies
from trainorder.evaluation.scoring import per_problem, pooled
from trainorder.judges.preference import Judge
from trainorder.policy import Policy
from trainorder.reading import ParamsError
from trainorder.rollout import Completions
from trainorder.tasks.base import Problem, Reward

CONFIG = EvaluationConfig(samples=3)
VERIFIED = {"score", "greedy", "pass_at_k", "entropy_own", "entropy_fixed", "length", "unscored"}
ROLES = {"creative": {"reward": "reward", "evaluation": "evaluation"}}
VARIETY = {"distinct_2", "compression_ratio", "vendi"}
PARAMS = """
tasks:
  creative: {train: 8, dev: 6, test: 4, max_new_tokens: 26, demonstrations: 10}
  math: {train: 8, dev: 5, test: 4, max_new_tokens: 31, demonstrations: 10, drills: 5}
phases: {math: {kind: structured, tasks: {math: 1}, steps: 1}}
orders: {only: [math]}
evaluation: {samples: 3}
"""


@dataclass(frozen=True)
class Echo:
    """Pays the number an answer consists of; `?` cannot be graded."""

    rewarded_by: Literal["verifier", "judge"] = "verifier"
    version: int = 1
    has_taste: bool = True

    def grade(self, completions, problems):
        return [Reward(None if text == "?" else float(text)) for text in completions]


@dataclass(frozen=True)
class Tasteless:
    """A judged task that does not say that its grade is a taste."""

    rewarded_by: Literal["verifier", "judge"] = "judge"
    version: int = 1
    grade = Echo.grade


@dataclass(frozen=True)
class Constant:
    """A judge with one opinion."""

    value: float

    def win_probability(self, prompts, answers, references):
        return [self.value] * len(answers)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with two built tasks, a checkpoint and two judges, all real and untrained."""
    from ruamel.yaml import YAML

    root = tmp_path_factory.mktemp("world")
    (root / "params.yaml").write_text(PARAMS)
    sizes = PolicyConfig(hidden_size=16, num_layers=1, num_heads=2, mlp_size=16, max_positions=128)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        build(parse_params(YAML(typ="safe").load(PARAMS)))
        Policy.build_tiny(sizes, paths.TOKENIZER, seed=0).save(paths.checkpoint("s0"))
        Policy.build_tiny(sizes, paths.TOKENIZER, seed=1).save(paths.checkpoint("s0--math"))
        for seed, name in enumerate(("reward", "evaluation")):
            Judge.start(paths.checkpoint("s0"), seed).save(paths.JUDGE / name)
    return root


@pytest.fixture
def here(world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(world)
    return world


def exam(task: Any, problems: int = 2) -> Exam:
    made = [Problem(f"t/{i}", "t", f"question {i}", "1", "1") for i in range(problems)]
    return Exam("t", "dev", task, made, max_new_tokens=4)


def answers(
    texts: list[str], greedy: list[str], lengths: list[int], entropies: list[float]
) -> Answers:
    """Row i has `lengths[i]` tokens of entropy `entropies[i]` each."""
    mask = torch.tensor([[1.0] * n + [0.0] * (4 - n) for n in lengths])
    done = Completions(
        response_ids=mask.long(),
        loss_mask=mask,
        logps=-mask,
        entropies=mask * torch.tensor(entropies)[:, None],
        texts=texts,
        finished=torch.ones(len(texts), dtype=torch.bool),
    )
    return Answers(done, greedy, [0.5, 0.25])


def test_metrics_of_a_verified_task_by_hand():
    given = answers(
        ["1", "0", "0.5", "0", "0", "0.9"],
        ["1", "0.25"],
        [4, 2, 3, 1, 1, 4],
        [1.0, 2.0, 0.5, 1.0, 2.0, 3.0],
    )
    metrics, _ = per_problem(exam(Echo()), given, {}, samples=3)
    assert metrics == {
        "score": pytest.approx([0.5, 0.3]),
        "greedy": [1.0, 0.25],
        "pass_at_k": [1.0, 0.0],  # 0.9 is no success
        # (4 x 1 + 2 x 2 + 3 x 0.5) / 9 and (1 + 2 + 4 x 3) / 6: tokens are averaged, not answers
        "entropy_own": pytest.approx([9.5 / 9, 15 / 6]),
        "entropy_fixed": [0.5, 0.25],
        "length": [3.0, 2.0],
        "unscored": [0.0, 0.0],
    }


def test_answers_that_cannot_be_graded_are_counted_and_left_out_of_means():
    given = answers(["1", "?", "0.5", "?", "?", "?"], ["?", "0"], [1] * 6, [1.0] * 6)
    metrics, _ = per_problem(exam(Echo()), given, {}, samples=3)
    assert metrics["score"][0] == pytest.approx(0.75)
    assert metrics["unscored"] == pytest.approx([1 / 3, 1.0])
    assert metrics["pass_at_k"][0] == 1.0
    assert math.isnan(metrics["score"][1])
    assert math.isnan(metrics["pass_at_k"][1])
    assert math.isnan(metrics["greedy"][0])
    assert metrics["greedy"][1] == 0.0


def test_a_judged_task_is_scored_by_the_evaluation_judge_with_the_others_beside_it():
    judges = {"reward": Constant(0.9), "evaluation": Constant(0.4)}
    given = answers(["1", "0", "1", "1", "0.5", "0"], ["1", "1"], [1] * 6, [1.0] * 6)
    metrics, _ = per_problem(exam(Echo("judge")), given, judges, samples=3)
    assert metrics["score"] == pytest.approx([0.4, 0.4])
    assert metrics["greedy"] == pytest.approx([0.4, 0.4])
    assert metrics["pass_at_k"] == [0.0, 0.0]  # no win rate above one half
    assert metrics["reward_judge"] == pytest.approx([0.9, 0.9])
    assert metrics["gold"] == pytest.approx([2 / 3, 0.5])
    plain, _ = per_problem(exam(Tasteless()), given, judges, samples=3)
    assert plain.keys() == metrics.keys() - {"gold"}  # its grade is nobody's taste
    assert metrics["vendi"] == pytest.approx(
        [1.8899, 3.0], abs=1e-4
    )  # shares 2/3, 1/3; three different


def test_pooled_variety_is_across_problems_and_for_judged_tasks_only():
    given = answers(["a b", "x y", "z", "a b", "u", "v"], ["1", "1"], [1] * 6, [1.0] * 6)
    assert pooled(exam(Echo()), given, 3) == {}
    assert pooled(exam(Echo("judge")), given, 3)["vendi"] == pytest.approx(1.0)  # "a b" and "a b"


def test_forced_entropy_is_the_dense_mean_over_the_completion_alone(here: Path):
    policy = Policy.load(paths.checkpoint("s0"))
    with torch.no_grad():
        policy.model.lm_head.weight.mul_(40)
    prompts, completions = [[1, 7, 8, 2], [1, 9, 2]], [[5, 6, 3], [10, 11, 12, 13, 14, 15, 3]]
    expected = []
    for prompt, completion in zip(prompts, completions, strict=True):
        with torch.no_grad():
            logits = policy.model(torch.tensor([prompt + completion])).logits[0].double()
        log_probs = logits[len(prompt) - 1 : -1].log_softmax(-1)
        expected.append(float(-(log_probs.exp() * log_probs).sum(1).mean()))
    assert forced_entropies(policy, prompts, completions) == pytest.approx(expected, abs=1e-5)
    assert abs(expected[0] - expected[1]) > 0.01


@pytest.mark.parametrize(("tokens", "logits"), [(40, 10**9), (10**9, 5000), (1, 1)])
def test_forced_entropies_do_not_depend_on_the_memory_of_a_batch(
    here: Path, monkeypatch: pytest.MonkeyPatch, tokens: int, logits: int
):
    policy, rng = Policy.load(paths.checkpoint("s0")), random.Random(0)
    vocabulary = policy.model.config.vocab_size
    lengths = [(rng.randint(1, 12), rng.randint(1, 9)) for _ in range(30)]
    prompts, completions = (
        [[rng.randrange(4, vocabulary) for _ in range(length[part])] for length in lengths]
        for part in (0, 1)
    )
    together = forced_entropies(policy, prompts, completions)
    monkeypatch.setattr(answering, "BATCH_TOKENS", tokens)
    monkeypatch.setattr(answering, "BATCH_LOGITS", logits)
    batches = list(answering._batches(lengths, vocabulary))
    assert sorted(row for batch in batches for row in batch) == list(range(30))
    for batch in batches:
        longest, asked = max(sum(lengths[i]) for i in batch), max(lengths[i][1] for i in batch)
        bounded = len(batch) * longest <= tokens and len(batch) * asked * vocabulary <= logits
        assert bounded or len(batch) == 1
    assert 1 < len(batches) <= 30
    assert forced_entropies(policy, prompts, completions) == pytest.approx(together, abs=1e-5)


def test_forced_entropies_on_a_second_device_are_those_of_the_cpu(here: Path):
    policy = Policy.load(paths.checkpoint("s0"))
    prompts, completions = [[1, 7, 8, 2], [1, 9, 2]], [[5, 6, 3], [10, 11, 12, 13, 14, 15, 3]]
    known = forced_entropies(policy, prompts, completions)
    with second_device() as device:
        policy.to(device).model.tie_weights()  # a move by wrapped tensors unties them
        assert forced_entropies(policy, prompts, completions) == pytest.approx(known, abs=1e-5)


def test_an_answer_given_twice_is_judged_once_and_counts_twice():
    asked = list[str]()

    class Noting:
        def win_probability(self, prompts, answers, references):
            asked.extend(answers)
            return [0.25 if text == "1" else 0.75 for text in answers]

    texts, greedy = ["1", "1", "0", "0", "0", "0"], ["1", "0"]
    judge = Noting()
    judges = {"reward": judge, "evaluation": judge}
    given = answers(texts, greedy, [1] * 6, [1.0] * 6)
    metrics, _ = per_problem(exam(Echo(rewarded_by="judge")), given, judges, samples=3)
    assert asked == ["1", "0", "0"]  # of the second problem once
    assert metrics["score"] == pytest.approx([(0.25 + 0.25 + 0.75) / 3, 0.75])
    assert metrics["greedy"] == [0.25, 0.75]


def test_table_has_one_row_per_problem_and_metric(here: Path):
    table = evaluate("s0--math", paths.checkpoint("s0--math"), 0, CONFIG, roles=ROLES)
    assert list(table) == ["node", "seed", "split", "task", "problem", "metric", "value"]
    assert set(table["node"]) == {"s0--math"}
    assert set(table["seed"]) == {0}
    assert table["value"].dtype == "float64"
    assert not table.duplicated(["split", "problem", "task", "metric"]).any()
    single = table[table["problem"] != POOLED]
    judged = VERIFIED | VARIETY | {"reward_judge", "gold"}
    assert Counter(single["task"] + " " + single["split"]) == {
        "creative dev": 6 * len(judged),
        "creative test": 4 * len(judged),
        "math dev": 5 * len(VERIFIED),
        "math test": 4 * len(VERIFIED),
    }
    assert set(single.loc[single["task"] == "math", "metric"]) == VERIFIED
    together = table[table["problem"] == POOLED]
    assert sorted(zip(together["split"], together["metric"], strict=True)) == sorted(
        (split, metric) for split in ("dev", "test") for metric in VARIETY
    )
    bounded = table["metric"].isin(
        ["score", "greedy", "pass_at_k", "unscored", "reward_judge", "gold"]
    )
    assert table.loc[bounded, "value"].between(0, 1).all()
    shown = table.attrs["answers"]
    assert Counter(row["task"] for row in shown) == {"creative": 4, "math": 4}
    greedy = table[(table["metric"] == "greedy") & (table["split"] == "test")]
    scores = dict(zip(greedy["problem"], greedy["value"], strict=True))
    assert all(row["score"] == scores[row["problem"]] for row in shown)
    assert all(row["prompt"] and isinstance(row["answer"], str) for row in shown)
    sampled = table[(table["metric"] == "score") & (table["split"] == "test")]
    means = dict(zip(sampled["problem"], sampled["value"], strict=True))
    assert all(len(row["sampled"]) == len(row["scores"]) == CONFIG.samples for row in shown)
    assert all(math.isclose(fmean(row["scores"]), means[row["problem"]]) for row in shown)
    lengths = table[table["metric"] == "length"]
    assert lengths.loc[lengths["task"] == "math", "value"].max() <= 31
    assert lengths.loc[lengths["task"] == "creative", "value"].max() <= 26


def test_further_ways_stand_in_the_same_table_and_change_no_other_row(here: Path):
    ways = [{"majority": {"k": 3}}, {"pass_at": {"k": 2}}, "decompose", "program", "tiers"]
    config = CONFIG.model_copy(update={"ways": ways})
    base, node = paths.checkpoint("s0"), paths.checkpoint("s0--math")
    plain = evaluate("s0--math", node, 0, CONFIG, roles=ROLES)
    table = evaluate("s0--math", node, 0, config, roles=ROLES, base=base)
    new = table[~table["metric"].isin(plain["metric"])]
    pd.testing.assert_frame_equal(
        plain, table[table["metric"].isin(plain["metric"])].reset_index(drop=True)
    )
    assert set(new["metric"]) >= {"majority_at_3", "pass_at_2", "decompose_tb", "program", "tiers"}
    assert set(new.loc[new["task"] == "creative", "metric"]) == {"pass_at_2"}
    lengths = new[new["metric"].isin(["tiers_tokens", "program_tokens", "program_direct_tokens"])]
    assert lengths["value"].between(1, 31).all()
    with pytest.raises(ParamsError, match="one of them asks the base"):
        evaluate("s0--math", node, 0, config, roles=ROLES)
    # a checkpoint that is the base has no effect of either role
    own = evaluate("s0", base, 0, config, roles=ROLES, base=base)
    effects = own[own["metric"].isin(["decompose_planning", "decompose_solving"])]
    assert len(effects) == 2 * 9
    assert (effects["value"] == 0).all()


def test_all_checkpoints_meet_the_same_random_numbers(here: Path):
    policy = Policy.load(paths.checkpoint("s0"))
    exams = built_exams()
    first = [done.sampled.texts for done in answer(policy, exams, CONFIG)]
    alone = [done.sampled.texts for done in answer(policy, exams[2:], CONFIG)]
    other = [
        done.sampled.texts for done in answer(policy, exams, CONFIG.model_copy(update={"seed": 1}))
    ]
    assert first[2:] == alone  # whatever else is evaluated
    assert first[0] != first[1][: len(first[0])]
    assert first != other


def test_each_task_and_split_has_its_own_random_numbers(here: Path):
    policy = Policy.load(paths.checkpoint("s0"))
    one = built_exams()[0]
    twins = [one, replace(one, name="twin"), replace(one, split="test"), one]
    texts = [done.sampled.texts for done in answer(policy, twins, CONFIG)]
    assert texts[0] == texts[3]
    assert texts[0] != texts[1]
    assert texts[0] != texts[2]


def test_greedy_answers_and_entropies_belong_to_their_exam(here: Path):
    policy = Policy.load(paths.checkpoint("s0"))
    exams = built_exams()
    together = answer(policy, exams, CONFIG)
    for one, done in zip(exams, together, strict=True):
        (alone,) = answer(policy, [one], CONFIG)
        assert list(done.greedy) == list(alone.greedy)
        assert done.entropy_fixed == pytest.approx(alone.entropy_fixed, abs=1e-5)
    references = [policy.encode_completion(p.reference) for p in exams[0].problems]
    prompts = [policy.encode_prompt(p.prompt) for p in exams[0].problems]
    assert together[0].entropy_fixed == pytest.approx(
        forced_entropies(policy, prompts, references), abs=1e-5
    )


def run_stage(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["evaluate", *arguments])
    return stages.run("evaluate", "", stage.OPTIONS, stage.main)


def test_stage_writes_the_same_bytes_twice(here: Path, monkeypatch):
    file = paths.evaluation("s0")
    assert run_stage(monkeypatch, "--node", "s0", "--seed", "0") == 0
    before = file.read_bytes()
    file.unlink()
    assert run_stage(monkeypatch, "--node", "s0", "--seed", "0") == 0
    assert file.read_bytes() == before
    assert [p.name for p in file.parent.iterdir()] == ["s0.parquet"]
    expected = evaluate("s0", paths.checkpoint("s0"), 0, CONFIG, roles=ROLES)
    pd.testing.assert_frame_equal(pd.read_parquet(file), expected)


@pytest.mark.long("starts stages in processes of their own")
def test_stage_names_a_missing_checkpoint_and_writes_nothing(here: Path, monkeypatch, capsys):
    assert run_stage(monkeypatch, "--node", "s0--qa", "--seed", "0") == 2
    assert "checkpoints/s0--qa is not a Hugging Face model folder" in capsys.readouterr().err
    assert not paths.evaluation("s0--qa").exists()


def test_nothing_built_is_said(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="data/tasks holds no task: run `dvc repro build_data`"):
        built_exams()


def test_a_judge_is_loaded_only_where_a_task_is_judged(here: Path, tmp_path: Path, monkeypatch):
    checkpoint = paths.checkpoint("s0").absolute()
    only_math = tmp_path / paths.TASK_DATA
    only_math.mkdir(parents=True)
    (only_math / "math").symlink_to((paths.TASK_DATA / "math").absolute())
    monkeypatch.chdir(tmp_path)
    table = evaluate("s0", checkpoint, 0, CONFIG, roles=ROLES)
    assert set(table["task"]) == {"math"}
