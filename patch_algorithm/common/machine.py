"""What this machine has."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path

__all__ = ["usable_cores"]

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Cores that this process may use, which in a container are fewer than the machine has; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *map(math.ceil, _quotas())]))


def _quotas() -> list[float]:
    """Cores' worth of time that the control groups of this process allow, where they set a limit."""
    quotas = []
    for own in (_CGROUPS, *_own_cgroups()):
        # Version 2, then version 1.
        with suppress(OSError, ValueError):
            quota, period = (own / "cpu.max").read_text().split()
            quotas.append(int(quota) / int(period))
        with suppress(OSError, ValueError):
            quota, period = ((own / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            quotas.append(int(quota) / int(period))
    return [quota for quota in quotas if quota > 0]


def _own_cgroups() -> list[Path]:
    found: list[Path] = []
    with suppress(OSError):
        for line in _OWN_CGROUP.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            root = _CGROUPS / controllers if "cpu" in controllers.split(",") else _CGROUPS
            own = Path(path.lstrip("/"))
            found += [root / part for part in (own, *own.parents)]
    return found
