"""A task whose verifier misbehaves on request; in a module of its own, so that the grading process imports nothing else."""

from __future__ import annotations

import ctypes
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from trainorder.tasks.base import Problem, Reward


@dataclass(frozen=True)
class Odd:
    """Does what the answer says."""

    version: int = 1
    rewarded_by: str = "verifier"

    def grade(self, completions: Sequence[str], problems: Sequence[Problem]) -> list[Reward]:
        """One reward per answer, unless it never comes."""
        return [Reward(self.value(text)) for text in completions]

    def value(self, text: str) -> float | None:
        """What the answer asks for, or whether its length is odd."""
        if text == "hang":
            while True:
                pass
        if text == "hang in C":
            re.fullmatch("(a+)+", "a" * 64 + "b")
        if text == "crash":
            ctypes.string_at(0)
        if text == "exit":
            os._exit(0)
        if text == "raise":
            raise ValueError("no such unit")
        if text == "recurse":
            return self.value(text)
        if text == "memory":
            return float(len(bytearray(1 << 40)))
        if text == "print":
            print('{"row": 0, "value": 1.0}')
        if text == "environment":
            return float(any("canary" in value for value in os.environ.values()))
        return {"nan": math.nan, "none": None}.get(text, float(len(text) % 2))


@dataclass(frozen=True)
class OddProgram(Odd):
    """The same, as a task whose answers are programs."""

    sandboxed: ClassVar[bool] = True


class OddPython(Odd):
    """The same, where the programs are in full Python."""

    sandboxed: ClassVar[str] = "python"
