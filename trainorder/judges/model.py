"""A language model on this machine that judges: its probabilities of the allowed replies, read after one forward pass.

Nothing is sampled, so that a verdict is a function of the texts alone, to the bit: chats go through the model one by one.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from trainorder.adapters import model_hash
from trainorder.config import ModelJudgeConfig
from trainorder.device import precision
from trainorder.judges import read_card, write_card
from trainorder.judges.questions import Chat, Question, question
from trainorder.llama import kernels_for
from trainorder.policy import TEMPLATE_DATE, Policy
from trainorder.reading import ParamsError
from trainorder.sources import locate
from trainorder.texts import next_logits


@dataclass
class ModelJudge:
    """A causal LM that is asked as `questions.py` says."""

    config: ModelJudgeConfig
    failures: list[str] = field(default_factory=list)
    """Why rows of the last call have no verdict."""
    counts: Counter[str] = field(default_factory=Counter)
    """`asked`: chats that went through the model; `position`: pairs whose verdict followed the position."""
    at_once = 1

    @classmethod
    def load(cls, path: Path | str) -> ModelJudge:
        """The judge that a folder's card names."""
        card = read_card(path)
        del card["content"]
        return cls(ModelJudgeConfig.model_validate(card))

    def save(self, path: Path | str) -> None:
        """Write the settings and the content of the model."""
        write_card(path, "model", {**self.config.results(), "content": self.content})

    def to(self, device: str) -> ModelJudge:
        """Itself, its model moved in place."""
        self.policy.to(device)
        return self

    @cached_property
    def policy(self) -> Policy:
        """The model and its tokenizer."""
        return Policy.load(self.config.path)

    @cached_property
    def content(self) -> str:
        """Hash of the model as it lies here: weights, architecture, tokenizer, chat template, code."""
        return model_hash(locate(self.config.path, weights=True))

    @cached_property
    def question(self) -> Question:
        """What it is asked."""
        return question(self.config)

    @property
    def identity(self) -> str:
        """Hash of all that decides a verdict."""
        asked = self.config.model_dump(
            include={"path", "chat_template_kwargs", "dtype", "min_mass"}
        )
        decides = [asked, self.content, repr(self.question), str(self.policy.device)]
        return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]

    def win_probability(
        self, prompts: Sequence[str], answers: Sequence[str], references: Sequence[str]
    ) -> list[float | None]:
        """P(answer beats reference), or the score by the rubric, per row; None where the model would reply something else."""
        self.failures = []
        return [self._verdict(*row) for row in zip(prompts, answers, references, strict=True)]

    def _verdict(self, prompt: str, answer: str, reference: str) -> float | None:
        if self.question.uses_reference and answer == reference:
            return 0.5
        shares = []
        for chat in self.question.chats(prompt, answer, reference):
            found = self._shares(chat)
            if found is None:
                return None
            shares.append(found)
        named = [found.index(max(found)) for found in shares]
        self.counts["position"] += len(named) == 2 and named[0] == named[1]
        return self.question.value(shares)

    def _shares(self, chat: Chat) -> list[float] | None:
        """Probabilities of the replies, of all that the model could say next."""
        import torch

        ids = self._encoded(chat)
        bound = self.policy.context
        if bound is not None and len(ids) + 1 > bound:
            self.failures.append(
                f"the judge has {bound} positions, what it is asked has {len(ids)}"
            )
            return None
        self.counts["asked"] += 1
        with precision(self.policy.device, self.config.dtype):
            logits = next_logits(self.policy.model, ids, kernels=self._kernels)
        every = torch.log_softmax(logits.double(), 0).exp()
        found = [every[tokens].sum().item() for tokens in self.reply_ids]
        if sum(found) < self.config.min_mass:
            self.failures.append(
                f"the judge gives all of {', '.join(self.question.replies)} the probability {sum(found):.2g} "
                f"(min_mass {self.config.min_mass:g})"
            )
            return None
        return found

    def length(self, chat: Chat) -> int:
        """Positions that a chat and its reply take."""
        return len(self._encoded(chat)) + 1

    def _encoded(self, chat: Chat) -> list[int]:
        tokenizer: Any = self.policy.tokenizer
        special = tokenizer.chat_template is None
        return tokenizer(self._rendered(chat), add_special_tokens=special)["input_ids"]

    def _rendered(self, chat: Chat) -> str:
        """The chat in the model's template; without one its messages below each other."""
        tokenizer: Any = self.policy.tokenizer
        if tokenizer.chat_template is None:
            return "\n\n".join(message["content"] for message in chat) + "\n"
        options = {"strftime_now": TEMPLATE_DATE.strftime, **self.config.chat_template_kwargs}
        merged = [{"role": "user", "content": "\n\n".join(m["content"] for m in chat)}]
        try:
            return tokenizer.apply_chat_template(
                chat, add_generation_prompt=True, tokenize=False, **options
            )
        except TemplateError:  # it has no place for the system's message
            return tokenizer.apply_chat_template(
                merged, add_generation_prompt=True, tokenize=False, **options
            )

    @cached_property
    def _kernels(self) -> Any:
        return kernels_for(self.policy.model)

    @cached_property
    def reply_ids(self) -> list[list[int]]:
        """The tokens that say each reply, with a space before it or without."""
        tokenizer: Any = self.policy.tokenizer
        found = []
        for reply in self.question.replies:
            forms = [
                tokenizer(form, add_special_tokens=False)["input_ids"]
                for form in (reply, f" {reply}")
            ]
            unknown = tokenizer.unk_token_id
            ids = sorted({form[0] for form in forms if len(form) == 1 and form[0] != unknown})
            if not ids:
                raise ParamsError(
                    f"judges: the tokenizer of {self.config.path} has no token for {reply!r}, so its probability cannot be read: "
                    f"take another model"
                )
            found.append(ids)
        return found
