"""Whether the model, its tokenizer and the tasks fit one another, seen before anything trains.

A model of the user's is read without its weights (a few seconds): names and shapes against the config, then a few right
answers of every task through chat template, encoding, decoding and grader. The built-in model's tokenizer is made from
the tasks' own words, so only lengths are compared, and the graders of the user's own rows are tried.
"""

from __future__ import annotations

import itertools
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainorder.config import Params, PhaseConfig
from trainorder.data import few_problems, pieces
from trainorder.reading import ParamsError
from trainorder.rewards import grading
from trainorder.tasks.base import OwnRows, Problem, Task, turns

if TYPE_CHECKING:
    from trainorder.policy import Policy

LONGEST = 20
"""Texts of a task, the longest in characters, that are encoded to find the longest in tokens."""
GRADED = 4
"""Right answers of a task that go through tokenizer and grader."""
MOST_SFT, USUAL_SFT = 1e-3, "`optimizer: adamw, lr: 1.0e-5`"
MOST_RL, USUAL_RL = 5e-5, "1e-6 to 1e-5"
"""Learning rates of all weights above which a note is due, and what is usual in place of them."""
FRAME = 2
"""Tokens of the built-in template around a prompt."""
RANDOM_NAMES, RANDOM_FILTERS = {"lipsum"}, {"random"}
"""What makes a Jinja template write something else every time."""
ADDRESS = re.compile(r" at 0x[0-9a-f]{4,}")


@dataclass(frozen=True)
class Sample:
    """Some problems of a task: the first few, and the longest."""

    task: Task
    room: int
    first: Sequence[Problem]
    longest: Sequence[Problem]


def check(params: Params) -> None:
    """Raise on the first thing in model, tokenizer or tasks that would stop or spoil a run.

    Raises:
        ParamsError: names model or task, what was found, and what to do.
    """
    samples = {name: _sample(params, name) for name in params.tasks}
    learned = {
        name: _examples(name, phase) for name, phase in params.phases.items() if phase.kind == "sft"
    }
    if params.policy.path is None:
        prompts = {
            name: max(sum(len(pieces(t)) + FRAME for t in turns(p.prompt)) for p in sample.longest)
            for name, sample in samples.items()
        }
        _check_lengths(params, prompts, params.policy.max_positions, "policy.max_positions")
        own = {name: sample for name, sample in samples.items() if isinstance(sample.task, OwnRows)}
        golds = {name: [p.gold or "" for p in sample.first] for name, sample in own.items()}
    else:
        from trainorder.policy import Policy

        policy = Policy.start(params.policy, weights=False)
        where = f"policy.path {params.policy.path}"
        _check_vocabulary(policy, where)
        _check_template(policy, where, samples)
        _check_saving(policy, where)
        _check_head(policy, where)
        prompts = {
            name: _longest_prompt(policy, where, name, sample) for name, sample in samples.items()
        }
        limit = policy.context
        if params.rollout.backend == "vllm" and params.rollout.max_model_len:
            limit = min(params.rollout.max_model_len, limit or params.rollout.max_model_len)
        _check_lengths(params, prompts, limit, where)
        for name, rows in learned.items():
            _check_rows(policy, where, name, rows)
        golds = {
            name: [_through_tokenizer(policy, where, name, sample, p) for p in sample.first]
            for name, sample in samples.items()
        }
    if golds:
        _check_grades(params, samples, golds)


def lines(params: Params) -> Iterator[str]:
    """What is worth knowing of a model that somebody brings, a line each."""
    if params.policy.path is None:
        return
    if params.sft is None:
        yield f"policy.path {params.policy.path}: begins RL as it is, without a warm-up (`sft`)"
    elif max(params.sft.lr, params.sft.muon_lr * (params.sft.optimizer == "muon")) > MOST_SFT:
        yield f"sft: its learning rates are those of a model from scratch; one that is trained takes about {USUAL_SFT}"
    if params.training.lora is None:
        own = {f"phases.{name}.rl": params.phase_rl(name).lr for name in params.phases}
        for name, rate in ({"rl": params.rl.lr} | own).items():
            if rate > MOST_RL and (name == "rl" or rate != params.rl.lr):
                yield f"{name}.lr {rate:g} moves all weights of a trained model far; {USUAL_RL} is usual, 1e-4 with training.lora"


def _examples(name: str, phase: PhaseConfig) -> Sequence[Mapping[str, Any]]:
    """The rows of a supervised phase; only such a phase costs the import of torch here."""
    from trainorder import supervised

    return supervised.read(name, phase)


def _sample(params: Params, name: str) -> Sample:
    config = params.tasks[name]
    task, problems = few_problems(name, config)
    longest = sorted(problems, key=lambda p: len(p.text), reverse=True)[:LONGEST]
    known = [problem for problem in problems if problem.gold is not None]
    answers = sorted(known, key=lambda p: len(p.gold or ""), reverse=True)[:1]
    return Sample(task, config.max_new_tokens, [*known[:GRADED], *answers], longest)


def _check_vocabulary(policy: Policy, where: str) -> None:
    """Every token needs an embedding, and training needs an end token."""
    try:
        stops = sorted(policy.stop_ids)
    except ParamsError as error:
        raise ParamsError(f"{where}: {error}") from None
    embedding: Any = policy.model.get_input_embeddings()
    rows = embedding.weight.shape[0]
    highest = max(policy.known_ids)
    if highest >= rows:
        raise ParamsError(
            f"{where}: the tokenizer has ids up to {highest} and the model {rows} embeddings: take the tokenizer that "
            f"belongs to the model, or save the model after resize_token_embeddings({highest + 1})"
        )
    beyond = [stop for stop in stops if stop >= rows]
    if beyond:
        raise ParamsError(
            f"{where}: generation_config.json names the end token {beyond[0]}, the model has {rows} embeddings: "
            f"take the file that belongs to the model"
        )


def _check_rows(policy: Policy, where: str, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """The longest rows of an SFT phase have to fit, and a prompt of several turns needs a chat template."""

    def length(row: Mapping[str, Any]) -> int:
        return sum(map(len, turns(row["prompt"]))) + len(row["completion"])

    longest = sorted(rows, key=length, reverse=True)[:LONGEST]
    if policy.tokenizer.chat_template is None and any(len(turns(r["prompt"])) > 1 for r in rows):
        raise ParamsError(
            f"{where}: the tokenizer has no chat template, and rows of phases.{name} have several turns: name a file with a "
            f"template by policy.chat_template"
        )
    prompts = policy.encode_prompts([row["prompt"] for row in longest])
    answers = policy.encode_completions([row["completion"] for row in longest])
    most = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    if policy.context is not None and most > policy.context:
        raise ParamsError(
            f"phases.{name}.data: the longest row has {most} tokens, and {where} has {policy.context} positions: shorten the "
            f"row, or take a model with a longer context"
        )


def _turns(problem: Problem) -> int:
    return len(turns(problem.prompt))


def _check_template(policy: Policy, where: str, samples: Mapping[str, Sample]) -> None:
    """A prompt must be a function of its text: no random numbers, addresses or ignored messages."""
    source: Any = policy.tokenizer.chat_template
    if source is None:
        several = next((n for n, s in samples.items() if any(_turns(p) > 1 for p in s.longest)), "")
        if several:
            raise ParamsError(
                f"{where}: the tokenizer has no chat template, and prompts of tasks.{several} have several turns: name a file "
                f"with a template by policy.chat_template, or take the instruct version of the model"
            )
        return
    found = _random_parts(source if isinstance(source, str) else "\n".join(source.values()))
    if found:
        raise ParamsError(
            f"{where}: the chat template uses {found[0]!r}, so that every prompt differs from run to run: "
            f"take it out of chat_template"
        )
    texts = ("7 apples", "3 pears")
    try:
        rendered = [policy.render(text) for text in texts]
    except Exception as error:  # a template can raise anything
        raise ParamsError(
            f"{where}: the chat template cannot render a user's message: {error} ({type(error).__name__}); "
            f"correct chat_template, or remove it to prompt with the plain text"
        ) from None
    if any(text not in shown for text, shown in zip(texts, rendered, strict=True)):
        raise ParamsError(
            f"{where}: the chat template leaves out the user's message, it gives {rendered[0][:200]!r}: correct chat_template"
        )
    if ADDRESS.search(rendered[0]):
        raise ParamsError(
            f"{where}: the chat template prints an object's address, so that every prompt differs from run to run: "
            f"{rendered[0][:200]!r}"
        )
    for name, sample in samples.items():
        _check_turns(policy, where, name, [*sample.first, *sample.longest])
    ends: Any = policy.tokenizer.convert_ids_to_tokens(sorted(policy.stop_ids))
    if rendered[0].rstrip().endswith(tuple(ends)):
        raise ParamsError(
            f"{where}: the chat template ends a prompt with the end token and begins no answer ({rendered[0][-80:]!r}): "
            f"correct what it writes where add_generation_prompt is true, or name a file with a template by policy.chat_template"
        )
    before = rendered[0].partition(texts[0])[2]
    opened = before.rpartition("<think>")[2]
    if "<think>" in before and "</think>" not in opened and opened.strip():
        raise ParamsError(
            f"{where}: the chat template begins the thought itself ({opened.strip()[:80]!r} behind <think>), which "
            f"demonstrations and graders know nothing of: end it at <think>"
        )


def _check_turns(policy: Policy, where: str, name: str, problems: Sequence[Problem]) -> None:
    """What system and user say stands in a prompt as it was written, but for white space; a template may refuse a system turn, or drop it."""
    for problem in problems:
        prompt = problem.prompt
        said: Any = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        try:
            rendered = policy.render(prompt)
        except Exception as error:  # a template can raise anything
            raise ParamsError(
                f"{where}: the chat template cannot render a prompt of tasks.{name} (turns {', '.join(m['role'] for m in said)}): "
                f"{error} ({type(error).__name__}); write these turns into one, or name another template by policy.chat_template"
            ) from None
        shown = "".join(rendered.split())
        for turn in said:
            text = turn["content"]
            if turn["role"] not in ("system", "user") or "".join(text.split()) in shown:
                continue
            if turn["role"] == "system":
                raise ParamsError(
                    f"{where}: the chat template leaves out the system turn of a prompt of tasks.{name}, {text[:80]!r}: write it into "
                    f"the user's turn, or name another template by policy.chat_template"
                )
            raise ParamsError(
                f"{where}: the chat template changes or cuts a prompt of tasks.{name}, {text[:80]!r} is not in "
                f"{rendered[:200]!r}: correct chat_template"
            )


def _random_parts(source: str) -> list[str]:
    """Names and filters of a template that give another text each time; [] where it cannot be parsed: rendering says why."""
    from jinja2 import Environment, TemplateSyntaxError, nodes

    try:
        tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(
            re.sub(r"{%-?\s*(end)?generation\s*-?%}", "", source)
        )
    except TemplateSyntaxError:
        return []
    names = {node.name for node in tree.find_all(nodes.Name)} & RANDOM_NAMES
    filters = {node.name for node in tree.find_all(nodes.Filter)} & RANDOM_FILTERS
    return sorted(names | filters)


def _check_saving(policy: Policy, where: str) -> None:
    """All that a checkpoint needs beside its weights is written and read again."""
    from trainorder.pretrained import load_tokenizer

    text = "<think> 7 apples </think> <answer> 3 </answer>"
    with tempfile.TemporaryDirectory() as folder:
        try:
            policy.model.config.save_pretrained(folder)
            policy.model.generation_config.save_pretrained(folder)
            policy.tokenizer.save_pretrained(folder)
        except Exception as error:  # each of the three validates in its own way
            reason = str(error).partition("\n")[0]
            raise ParamsError(
                f"{where}: a checkpoint of this model could not be saved: {reason} ({type(error).__name__}); "
                f"correct its config.json or tokenizer_config.json"
            ) from None
        saved = replace(policy, tokenizer=load_tokenizer(Path(folder)))
        for encode in ("encode_prompt", "encode_completion"):
            if getattr(saved, encode)(text) != getattr(policy, encode)(text):
                raise ParamsError(
                    f"{where}: the tokenizer encodes otherwise after saving and loading: save it once with "
                    f"save_pretrained of transformers {_transformers_version()} and use that"
                )


def _check_head(policy: Policy, where: str) -> None:
    """Training computes the logits itself, from the states after the last norm."""
    from trainorder.rl.head import check_head

    try:
        check_head(policy.model)
    except ValueError as error:
        raise ParamsError(f"{where}: {error}") from None


def _transformers_version() -> str:
    import transformers

    return transformers.__version__


def _longest_prompt(policy: Policy, where: str, name: str, sample: Sample) -> int:
    ids = [policy.encode_prompt(problem.prompt) for problem in sample.longest]
    empty = next((p for p, found in zip(sample.longest, ids, strict=True) if not found), None)
    if empty is not None:
        raise ParamsError(
            f"{where}: the tokenizer makes no token of a prompt of tasks.{name}: {empty.text[:80]!r}"
        )
    distinct = {
        problem.text: tuple(found) for problem, found in zip(sample.longest, ids, strict=True)
    }
    if len(set(distinct.values())) < len(distinct):
        raise ParamsError(
            f"{where}: different prompts of tasks.{name} become the same tokens, its words are unknown to the "
            f"tokenizer: take a model whose tokenizer knows this text"
        )
    return max(map(len, ids))


def _check_lengths(
    params: Params, prompts: Mapping[str, int], limit: int | None, where: str
) -> None:
    """Prompt and answer have to fit; tasks that are sampled in one phase share the room of the longest answer."""
    if limit is None:
        return
    groups = [(name,) for name in params.tasks]
    for variant in params.variant_names():
        groups += [tuple(phase.tasks) for phase in params.variant(variant).phases.values()]
    for group in dict.fromkeys(groups):
        prompt = max(group, key=lambda name: prompts[name])
        answer = max(group, key=lambda name: params.tasks[name].max_new_tokens)
        needed = prompts[prompt] + params.tasks[answer].max_new_tokens
        if needed > limit:
            raise ParamsError(
                f"tasks.{prompt}: its longest prompt has {prompts[prompt]} tokens and tasks.{answer}.max_new_tokens is "
                f"{params.tasks[answer].max_new_tokens}, together {needed}, and {where} has {limit} positions: "
                f"lower max_new_tokens, shorten the prompts or take a model with a longer context"
            )


def _through_tokenizer(
    policy: Policy, where: str, name: str, sample: Sample, problem: Problem
) -> str:
    """The gold answer as the grader would see it if the policy had sampled its tokens."""
    gold = problem.gold or ""
    ids = policy.encode_completion(gold)
    unknown: Any = policy.tokenizer.unk_token_id
    if unknown is not None and unknown in ids[:-1]:
        raise ParamsError(
            f"{where}: the tokenizer knows only parts of a right answer of tasks.{name}: {gold[:80]!r} contains "
            f"{policy.tokenizer.unk_token}: take a model whose tokenizer knows this text"
        )
    if len(ids) > sample.room:
        raise ParamsError(
            f"tasks.{name}.max_new_tokens is {sample.room}, a right answer has {len(ids)} tokens with its end token "
            f"({gold[:80]!r}): raise it"
        )
    return policy.decode(ids)


def _check_grades(
    params: Params, samples: Mapping[str, Sample], golds: Mapping[str, Sequence[str]]
) -> None:
    """A right answer scores 1, in the format that it was written in, and an empty one 0; a judged task has no right answer."""
    grading.configure(params.grading)
    for name in golds:
        sample = samples[name]
        if sample.task.rewarded_by != "verifier" or not sample.first:
            continue
        answers, problems = [*golds[name], ""], [*sample.first, sample.first[0]]
        written = grading.grade(sample.task, [p.gold or "" for p in sample.first], sample.first)
        rewards = grading.grade(sample.task, answers, problems)
        formats = [*(reward.parts.get("format") for reward in written), None]
        wanted = [*itertools.repeat(1.0, len(golds[name])), 0.0]
        for answer, problem, reward, right, form in zip(
            answers, problems, rewards, wanted, formats, strict=True
        ):
            if form is not None and reward.value == right and reward.parts.get("format") != form:
                raise ParamsError(
                    f"tasks.{name}: a right answer loses its format: the grader sees {answer[:200]!r}, of "
                    f"{(problem.gold or '')[:200]!r}; the tokenizer must give an answer back as it was"
                )
            if reward.value != right:
                what = "a right answer" if right else "an empty answer"
                origin = f", of {(problem.gold or '')[:200]!r}" if right else ""
                raise ParamsError(
                    f"tasks.{name}: {what} scores {reward.value} instead of {right:g}: the grader sees "
                    f"{answer[:200]!r}{origin}; {'the tokenizer must give an answer back as it was' if right else 'correct the grader'}"
                )
