"""CPU seconds for comparisons side by side: a test bounds a ratio, never a time."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable


def cost(call: Callable[[], object], *, turns: int = 3) -> float:
    """Least CPU seconds of this thread over `turns` calls, without garbage collection."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return min(_once(call) for _ in range(turns))
    finally:
        if was_enabled:
            gc.enable()


def _once(call: Callable[[], object]) -> float:
    start = time.thread_time()
    call()
    return time.thread_time() - start
