"""What a node's process uses while it is made: MLflow's system metrics, without a thread and without psutil."""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path

STATM = Path("/proc/self/statm")


class Usage:
    """Readings of this process, at most one per `seconds`: a reading takes some 15 microseconds."""

    def __init__(self, seconds: float = 1.0) -> None:
        self.seconds = seconds
        self._at, self._cpu = time.monotonic(), time.process_time()

    def read(self) -> dict[str, float]:
        """`system/...` since the last reading; empty where that was less than `seconds` ago.

        `system/process_cpu_percentage` is 100 for one core that is always busy; memory is in megabytes (10^6 bytes), resident,
        and on a GPU what torch has reserved.
        """
        now = time.monotonic()
        if now - self._at < self.seconds:
            return {}
        cpu = time.process_time()
        found = {
            "system/process_cpu_percentage": 100 * (cpu - self._cpu) / (now - self._at),
            "system/process_memory_megabytes": resident() / 1e6,
        }
        self._at, self._cpu = now, cpu
        cuda = getattr(sys.modules.get("torch"), "cuda", None)
        if cuda is not None and cuda.is_initialized():
            for i in range(cuda.device_count()):
                found[f"system/gpu_{i}_memory_usage_megabytes"] = cuda.memory_reserved(i) / 1e6
        return found


def resident() -> int:
    """Bytes of memory that this process holds now; where the system does not say, the most it held.

    >>> 1e6 < resident() < 1e12
    True
    """
    if STATM.exists():
        return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
