"""Step checkpoints: what a killed stage needs to go on as if nothing had happened.

    with Work("rl--s0--math", key, seconds=60) as work:      holds the node's lock, so that no second process trains it
        found = work.latest("loop")                          tensors and JSON of the newest whole checkpoint, or None
        ...
        if work.due("loop"):
            work.save("loop", tensors, state)

They lie under .resume/<name>/<key>, outside DVC's outputs, and are written whole. The key is a hash of everything that
the result depends on, so a changed setting never continues a stale state. Each holds hashes of its own bytes: a torn or
damaged one is skipped, with a warning, for the one before. How often they are written changes no result.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from trainorder import paths
from trainorder.files import sha256, sync, write_json, write_text, writing_folder
from trainorder.process import exclusive, fail_point

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

KEPT = 2
"""Checkpoints of one loop that are kept: the newest, and the one before in case it is damaged."""
MOST_TIME = 0.02
"""Share of a stage's time that saving may take."""
PATIENCE = "TRAINORDER_PATIENCE", "60"
"""Environment variable and default: seconds a stage waits for another process that makes the same node."""
TENSORS, STATE = "tensors.safetensors", "state.json"


@dataclass(frozen=True)
class Saved:
    """A step checkpoint as it was given to `save`."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]


class Work:
    """The step checkpoints of one stage. `folder` None: nothing is kept (tests, and library use without a node)."""

    def __init__(self, folder: Path | None = None, seconds: float = 60.0) -> None:
        self.folder, self.seconds = folder, seconds
        self.earlier = 0.0
        """Seconds that attempts before this one spent on what was loaded."""
        self._start = time.monotonic()
        self._last: dict[str, float] = {}
        self._cost: dict[str, float] = {}
        self._parts: dict[str, Saved] = {}
        self._lock = threading.Lock()

    def due(self, name: str) -> bool:
        """Whether enough work was done since `name` was saved, loaded or first asked about.

        Enough are `seconds`, or as many more as keep saving at MOST_TIME of the time, measured when it was saved last; with
        `seconds` 0 every step is enough.
        """
        if self.folder is None:
            return False
        now = time.monotonic()
        least = self._cost.get(name, 0.0) / MOST_TIME if self.seconds else 0.0
        return now - self._last.setdefault(name, now) >= max(self.seconds, least)

    def save(self, name: str, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Drop all but the newest KEPT - 1, then write a checkpoint of `name` whole: the disk never holds more than KEPT.

        Raises:
            ValueError: `state` is not what JSON gives back (integer keys, tuples, nan): it could not be restored.
            OSError: it could not be written; earlier ones are untouched.
        """
        if self.folder is None:
            return
        from safetensors.torch import save_file

        start = time.monotonic()
        if not _is_plain(state):
            raise ValueError(f"the state of {name} does not survive JSON: {state!r:.200}")
        text = json.dumps(state)
        old = _numbers(self.folder / name)
        target = self.folder / name / f"{max(old, default=0) + 1:06d}"
        for number in old[: max(0, len(old) - KEPT + 1)]:
            shutil.rmtree(self.folder / name / f"{number:06d}", ignore_errors=True)
        with writing_folder(target) as new:
            plain = {key: value.detach().contiguous() for key, value in tensors.items()}
            save_file(_unshared(plain), new / TENSORS)
            fail_point("resume.torn")
            spent = self.earlier + time.monotonic() - self._start
            body: dict[str, Any] = {
                "state": text,
                "tensors": sha256(new / TENSORS),
                "names": list(tensors),
                "spent": round(spent, 3),
            }
            write_json(new / STATE, {**body, "hash": _digest(body)}, indent=None)
        fail_point("resume.saved")
        self._last[name] = time.monotonic()
        self._cost[name] = self._last[name] - start

    def latest(self, name: str) -> Saved | None:
        """The newest whole checkpoint of `name`, its tensors in fresh memory on the CPU."""
        if self.folder is None:
            return None
        for number in reversed(self.numbers(name)):
            found = self.load(name, number)
            if found is not None:
                return found
        return None

    def numbers(self, name: str) -> list[int]:
        """The numbers of the checkpoints of `name`, oldest first, whole or not."""
        self._last[name] = time.monotonic()
        return [] if self.folder is None else _numbers(self.folder / name)

    def load(self, name: str, number: int) -> Saved | None:
        """One checkpoint, its tensors in fresh memory on the CPU; None, with a warning, where it is damaged."""
        assert self.folder is not None
        place = self.folder / name / f"{number:06d}"
        try:
            found, spent = _load(place)
        except (OSError, ValueError, KeyError, TypeError) as error:
            warnings.warn(
                f"step checkpoint {place} is damaged ({error}); going on from the one before",
                RuntimeWarning,
                stacklevel=2,
            )
            if not isinstance(error, OSError):  # else it would outlive good ones
                shutil.rmtree(place, ignore_errors=True)
            return None
        self.earlier = max(self.earlier, spent)
        return found

    def drop(self, name: str, after: int) -> None:
        """Remove the checkpoints of `name` with larger numbers than `after`."""
        for number in self.numbers(name):
            if number > after and self.folder is not None:
                shutil.rmtree(self.folder / name / f"{number:06d}", ignore_errors=True)

    def part(self, name: str, make: Callable[[], Saved]) -> Saved:
        """A finished part of the work: loaded if it was saved before, else made; saved when `seconds` of work are due."""
        self.due("parts")  # starts the clock
        found = self.latest(name)
        if found is None:
            found = make()
            with self._lock:
                self._parts[name] = found
                if self.due("parts"):
                    for each, saved in self._parts.items():
                        self.save(each, saved.tensors, saved.state)
                    self._parts, self._last["parts"] = {}, time.monotonic()
            fail_point("resume.part")
        return found

    def file(self, name: str, make: Callable[[Path], None]) -> Path | None:
        """A finished large file that `make` writes, kept with its hash; None where nothing is kept."""
        if self.folder is None:
            return None
        place = self.folder / "files" / name
        note = place.with_name(f"{name}.sha256")
        if place.is_file() and note.is_file() and note.read_text().strip() == sha256(place):
            return place
        note.unlink(missing_ok=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        make(place)
        sync(place)
        write_text(note, sha256(place) + "\n")
        fail_point("resume.file")
        return place


NOTHING = Work()
"""Keeps nothing and resumes nothing."""


@contextmanager
def working(name: str, depends: Mapping[str, Any] | None, seconds: float) -> Iterator[Work]:
    """The step checkpoints of stage `name`, whose lock this process holds from here to the end of the block.

    `depends` is all that the result depends on; None where that is not known (no fingerprint of the code): then nothing
    is resumed. Checkpoints that belong to other settings are removed. What the block saved stays until `finished`:
    the output is safe only when DVC has it.

    Raises:
        Busy: another process makes the same node.
    """
    with exclusive(
        paths.RESUME / f"{name}.lock", f"makes {name}", float(os.environ.get(*PATIENCE))
    ):
        home = paths.RESUME / name
        if depends is None:
            finished(name)
            yield NOTHING
            return
        folder = home / _digest(depends)[:16]
        for other in home.glob("*"):
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)
        yield Work(folder, seconds)


def finished(name: str) -> None:
    """Remove the step checkpoints of a stage whose output is safe."""
    shutil.rmtree(paths.RESUME / name, ignore_errors=True)


def optimizer_tensors(name: str, optimizer: Any) -> dict[str, Tensor]:
    """The state of a torch optimiser as named tensors; `restore_optimizer` takes them back."""
    import torch

    state = optimizer.state_dict()["state"]
    return {
        f"{name}.{index}.{key}": value if isinstance(value, torch.Tensor) else torch.tensor(value)
        for index, entry in state.items()
        for key, value in entry.items()
    }


def restore_optimizer(name: str, optimizer: Any, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` took; settings like the learning rate stay those of `optimizer`."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(f"{name}."):
            index, _, entry = key.removeprefix(f"{name}.").partition(".")
            state.setdefault(int(index), {})[entry] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def model_tensors(name: str, model: Any) -> dict[str, Tensor]:
    """The weights and buffers of a model as named tensors."""
    return {f"{name}.{key}": value for key, value in model.state_dict().items()}


def restore_model(name: str, model: Any, tensors: Mapping[str, Tensor]) -> None:
    """Copy weights back in place, so that whatever refers to the model's tensors sees them."""
    import torch

    with torch.no_grad():
        for key, value in model.state_dict().items():
            value.copy_(tensors[f"{name}.{key}"])


def _load(place: Path) -> tuple[Saved, float]:
    """The checkpoint, and the seconds spent until then."""
    from safetensors.torch import load_file

    body = json.loads((place / STATE).read_text(encoding="utf-8"))
    if _digest({key: value for key, value in body.items() if key != "hash"}) != body["hash"]:
        raise ValueError(f"{STATE} was changed")
    if sha256(place / TENSORS) != body["tensors"]:
        raise ValueError(f"{TENSORS} was changed or cut off")
    found = load_file(place / TENSORS)
    # cloned: a mapped file is not aligned, and alignment decides last bits
    tensors = {name: found[name].clone() for name in body["names"]}
    return Saved(tensors, json.loads(body["state"])), body["spent"]


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tied weights as copies: safetensors refuses tensors that share memory."""
    seen, result = set[int](), dict[str, Any]()
    for name, value in tensors.items():
        place = value.untyped_storage().data_ptr()
        result[name] = value.clone() if place in seen and value.numel() else value
        seen.add(place)
    return result


def _is_plain(value: Any) -> bool:
    """Whether JSON gives the value back as it is.

    >>> _is_plain({"a": [1, 0.5, None]}), _is_plain({1: "a"}), _is_plain({"a": (1, 2)})
    (True, False, False)
    """
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(entry) for key, entry in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float)


def _numbers(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.glob("[0-9]*") if path.name.isdigit())


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
