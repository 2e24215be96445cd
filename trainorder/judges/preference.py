"""The judge: a Bradley-Terry preference model, read and trained here; annotator.py makes its data, training.py trains it.

P(a beats b) = sigmoid(score(a) - score(b)) (Bradley & Terry 1952; as a reward model: arXiv 2203.02155). The score is a
linear head on the mean of the last hidden states over the answer's tokens: a head on the last token alone learns far
slower on short texts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainorder.adapters import weights_of
from trainorder.config import PreferenceSettings
from trainorder.device import precision
from trainorder.judges import Comparisons
from trainorder.optimizers import make_optimizer, set_lr
from trainorder.policy import Policy
from trainorder.pretrained import check_report, import_transformers, load_tokenizer
from trainorder.process import fail_point
from trainorder.reading import ParamsError
from trainorder.resume import (
    NOTHING,
    Work,
    model_tensors,
    optimizer_tensors,
    restore_model,
    restore_optimizer,
)
from trainorder.streams import torch_stream

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from trainorder.llama.kernels import Kernels

BATCH_TOKENS = 4096
"""Padded tokens of one scoring batch."""


@dataclass(frozen=True)
class Judge:
    """A Hugging Face sequence classifier with one label, pooled over the answer, and its tokenizer."""

    model: Any
    policy: Policy
    """Encodes texts; shares the tokenizer, its model is the classifier too."""

    @classmethod
    def start(cls, base: Path | str, seed: int, layers: int | None = None) -> Judge:
        """A copy of the causal LM `base` with a fresh head, drawn from `seed` with sd 1 / hidden size.

        Args:
            base: a node of full weights, or of a user's model.
            seed: of the head.
            layers: how many of the model's lowest layers to keep; None for all.

        Raises:
            ParamsError: the model has fewer layers.
        """
        import torch

        options: dict[str, Any] = {"num_labels": 1}
        if layers is not None:
            options["num_hidden_layers"] = _fewer(Path(base), layers)
        judge, _ = cls._open(base, **options)
        head = judge.model.score.weight
        with torch.no_grad():
            noise = torch.randn(head.shape, generator=torch_stream("judge", "head", seed))
            head.copy_(noise / head.shape[1])
        return judge

    @classmethod
    def load(cls, path: Path | str) -> Judge:
        """A judge that `save` wrote; safetensors only, no code from the folder.

        Raises:
            ValueError: the folder holds no judge.
        """
        if not (Path(path) / "model.safetensors").is_file():
            raise ValueError(
                f"{path} holds no judge (no model.safetensors): run `dvc repro plan/dvc.yaml:judge-{Path(path).name}`"
            )
        judge, info = cls._open(path)
        [kind] = judge.model.config.architectures
        if not kind.endswith("ForSequenceClassification"):
            raise ValueError(
                f"{path} is a {kind}, not a judge: run `dvc repro plan/dvc.yaml:judge-{Path(path).name}`, which saves one there"
            )
        check_report(Path(path), info)
        return judge

    @classmethod
    def _open(cls, path: Path | str, **options: Any) -> tuple[Judge, dict[str, Any]]:
        """The judge, and what transformers reports about its weights."""
        import torch

        transformers = import_transformers()
        level = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity_error()  # a fresh head is no news
        try:
            with torch.random.fork_rng(devices=[]):
                model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
                    str(weights_of(Path(path))),
                    dtype=torch.float32,
                    use_safetensors=True,
                    trust_remote_code=False,
                    ignore_mismatched_sizes=True,  # named by check_report
                    output_loading_info=True,
                    **options,
                )
        finally:
            transformers.logging.set_verbosity(level)
        tokenizer = load_tokenizer(Path(path))
        for (
            weight
        ) in model.parameters():  # a mapped file is not aligned, and alignment decides last bits
            weight.data = weight.data.clone()
        return cls(model.eval(), Policy(model, tokenizer)), info

    def to(self, device: str) -> Judge:
        """The same judge, its model moved in place."""
        self.policy.to(device)
        return self

    def save(self, path: Path | str) -> None:
        """Write the folder whole, then rename it into place."""
        self.policy.save(path)

    def scores(self, prompts: Sequence[str], completions: Sequence[str]) -> Float[Tensor, " row"]:
        """score(completion | prompt), without gradient, on the CPU. Rows do not influence one another beyond rounding."""
        import torch

        rows = self.encode(prompts, completions)
        scores = torch.zeros(len(rows))
        with torch.no_grad():
            for batch in _batches(rows):
                scores[batch] = self.forward([rows[i] for i in batch]).float().cpu()
        return scores

    def win_probability(
        self, prompts: Sequence[str], answers: Sequence[str], references: Sequence[str]
    ) -> list[float]:
        """P(answer beats reference) = sigmoid(score(answer) - score(reference)), per row.

        A reference shared by many rows is scored once. Nothing is kept between calls, so that the result is a function
        of the arguments alone and a resumed run gets the same bits.
        """
        shared = list(dict.fromkeys(zip(prompts, references, strict=True)))
        asked = [*prompts, *(prompt for prompt, _ in shared)]
        scores = self.scores(asked, [*answers, *(text for _, text in shared)])
        known = dict(zip(shared, scores[len(prompts) :].tolist(), strict=True))
        opponents = scores.new_tensor(
            [known[pair] for pair in zip(prompts, references, strict=True)]
        )
        return (scores[: len(prompts)] - opponents).sigmoid().tolist()

    def encode(
        self, prompts: Sequence[str], completions: Sequence[str]
    ) -> list[tuple[list[int], int]]:
        """Token ids of prompt and completion, and where the completion begins."""
        asked, answers = (
            self.policy.encode_prompts(prompts),
            self.policy.encode_completions(completions),
        )
        return [(p + c, len(p)) for p, c in zip(asked, answers, strict=True)]

    def forward(self, rows: Sequence[tuple[list[int], int]]) -> Float[Tensor, " row"]:
        """Scores of encoded rows; gradient flows. Small Llamas on a CPU take trainorder/llama, which computes a prompt once."""
        from trainorder.llama import kernels_for

        kernels = kernels_for(self.model) if all(start for _, start in rows) else None
        if kernels is not None:
            return self.model.score(_means_over_answers(self.model, kernels, rows)).squeeze(-1)
        ids, answer = (x.to(self.policy.device) for x in _pad(rows))
        hidden = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        return self.model.score(mean_over_answer(hidden, answer)).squeeze(-1)


def _fewer(base: Path, layers: int) -> int:
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    has = config.get("num_hidden_layers") or config.get("n_layer")
    if has is not None and layers > has:
        raise ParamsError(f"judges: layers is {layers}, and the model has {has}: at most these")
    return layers


def _means_over_answers(
    model: Any, kernels: Kernels, rows: Sequence[tuple[list[int], int]]
) -> Float[Tensor, "row channel"]:
    """`mean_over_answer` of rows whose equal prompts are computed once."""
    import torch

    from trainorder.llama.training import hidden_states
    from trainorder.prefix import Layout

    prompts = [tuple(ids[:start]) for ids, start in rows]
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    lengths = [len(ids) - start for ids, start in rows]
    layout = Layout.of([*map(len, numbers)], lengths, [numbers[prompt] for prompt in prompts])
    flat = [token for prompt in numbers for token in prompt]
    flat += [token for ids, start in rows for token in ids[start:]]
    answers = hidden_states(model, kernels, torch.tensor(flat), layout)[-sum(lengths) :]
    counts = torch.tensor(lengths)
    owner = torch.arange(len(rows)).repeat_interleave(counts)
    sums = answers.new_zeros(len(rows), answers.shape[1]).index_add(0, owner, answers)
    return sums / counts[:, None]


def mean_over_answer(
    hidden: Float[Tensor, "row token channel"], answer: Float[Tensor, "row token"]
) -> Float[Tensor, "row channel"]:
    """Mean of the hidden states where `answer` is 1; every row has at least its end token."""
    return (hidden * answer.unsqueeze(-1)).sum(1) / answer.sum(1, keepdim=True)


def bradley_terry(
    preferred: Float[Tensor, " comparison"], other: Float[Tensor, " comparison"]
) -> Float[Tensor, ""]:
    """Mean of -log sigmoid(preferred - other), the negative log-likelihood of the annotator's choices."""
    from torch.nn.functional import softplus

    return softplus(other - preferred).mean()


def fit(
    judge: Judge,
    data: Sequence[Comparisons],
    config: PreferenceSettings,
    seed: int,
    log: Callable[[int, float], None] = lambda step, loss: None,
    work: Work = NOTHING,
    dtype: str = "fp32",
) -> None:
    """Minimise `bradley_terry` with a learning rate falling linearly to 0.

    All comparisons of one prompt share a step, so each answer passes the model once (arXiv 2203.02155, section 3.5).
    A killed attempt is resumed from `work` (under `judge<seed>`), to the same bytes.
    """
    import torch

    rows = [judge.encode([d.prompt] * len(d.answers), d.answers) for d in data]
    steps = config.epochs * -(-len(data) // config.batch_size)
    weights = list(judge.model.parameters())
    optimizer = make_optimizer(judge.model, config)
    name, done = f"judge{seed}", 0
    saved = work.latest(name)
    if saved is not None:
        restore_model("model", judge.model, saved.tensors)
        restore_optimizer("optimizer", optimizer, saved.tensors)
        done = saved.state["step"]
    judge.model.train()
    for step, batch in list(enumerate(_epochs(len(data), config, seed)))[done:]:
        set_lr(optimizer, config.lr * (1 - step / steps))
        with precision(weights[0].device, dtype):
            loss = _loss(judge, [rows[i] for i in batch], [data[i] for i in batch])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        log(step + 1, loss.item())
        fail_point("judge.step")
        if work.due(name):
            tensors = model_tensors("model", judge.model)
            work.save(
                name,
                tensors | optimizer_tensors("optimizer", optimizer),
                {"step": step + 1},
            )
    judge.model.eval()


def _loss(
    judge: Judge, rows: Sequence[list[tuple[list[int], int]]], data: Sequence[Comparisons]
) -> Tensor:
    import torch

    from trainorder.llama import kernels_for

    flat = [row for group in rows for row in group]
    order = sorted(range(len(flat)), key=lambda i: len(flat[i][0]))
    # two lengths instead of one: a third less padding, of which our kernels see little
    half = 0 if kernels_for(judge.model) is not None else len(order) // 2
    parts = [part for part in (order[:half], order[half:]) if part]
    scored = torch.cat([judge.forward([flat[i] for i in part]) for part in parts])
    scores = torch.zeros_like(scored).index_put(
        (torch.tensor(order, device=scored.device),), scored
    )
    starts = [sum(map(len, rows[:i])) for i in range(len(rows))]
    wins = torch.tensor(
        [(start + w, start + o) for start, d in zip(starts, data, strict=True) for w, o in d.wins]
    )
    return bradley_terry(scores[wins[:, 0]], scores[wins[:, 1]])


def _epochs(count: int, config: PreferenceSettings, seed: int) -> list[list[int]]:
    import torch

    batches: list[list[int]] = []
    for epoch in range(config.epochs):
        order = torch.randperm(
            count, generator=torch_stream("judge", "order", seed, epoch)
        ).tolist()
        batches += [order[i : i + config.batch_size] for i in range(0, count, config.batch_size)]
    return batches


def _batches(rows: Sequence[tuple[list[int], int]]) -> list[list[int]]:
    """Row numbers in batches of similar length, at most BATCH_TOKENS padded tokens each (or one row).

    Rows of one prompt are in one batch as far as they fit.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, (ids, start) in enumerate(rows):
        groups.setdefault(tuple(ids[:start]), []).append(i)
    longest = {prompt: max(len(rows[i][0]) for i in own) for prompt, own in groups.items()}
    batches: list[list[int]] = []
    width = 0
    for prompt in sorted(groups, key=lambda prompt: (longest[prompt], groups[prompt])):
        whole = len(groups[prompt]) * longest[prompt] <= BATCH_TOKENS
        for part in [groups[prompt]] if whole else [[i] for i in groups[prompt]]:
            width = max(width, longest[prompt])
            if not batches or (len(batches[-1]) + len(part)) * width > BATCH_TOKENS:
                batches.append([])
                width = longest[prompt]
            batches[-1] += part
    return batches


def _pad(
    rows: Sequence[tuple[list[int], int]],
) -> tuple[Int[Tensor, "row token"], Float[Tensor, "row token"]]:
    """Rows filled on the right, and a mask of the answers' tokens; a causal model needs no mask for the filling."""
    import torch

    width = max(len(ids) for ids, _ in rows)
    padded = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in rows])
    answer = torch.tensor(
        [[0.0] * s + [1.0] * (len(ids) - s) + [0.0] * (width - len(ids)) for ids, s in rows]
    )
    return padded, answer
