"""Memory of this process, and how much it may have."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import psutil

# What a container may have and what it uses, in bytes: control groups of version 2, and of version 1.
_CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


def peak_memory() -> int:
    """Bytes of main memory that this process has held at most."""
    try:  # Linux: getrusage would count the parent's peak too, where the process was started without a copy of it
        with open("/proc/self/status", encoding="ascii") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    except (OSError, StopIteration, ValueError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return int(psutil.Process().memory_info().rss)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kibibytes


def available_to_process() -> int:
    """Bytes that this process may have: the machine's memory, its container's or its own limit."""
    return min([psutil.virtual_memory().total, *(limit for limit, _used in _containers()), *_own_limits()])


def free_memory() -> int:
    """Bytes that this process can still take without anything being swapped out: what is left of the same limits."""
    used = psutil.Process().memory_info()
    left = [limit - held for limit, held in _containers()] + [limit - used.vms for limit in _own_limits()]
    return max(0, min([psutil.virtual_memory().available, *left]))


def _containers() -> list[tuple[int, int]]:
    """(limit, used) of the container; none where there is no container, or it says "max"."""
    found = []
    for limit, used in _CGROUPS:
        with contextlib.suppress(OSError, ValueError):
            size = int(limit.read_text())
            try:
                held = int(used.read_text())
            except (OSError, ValueError):
                held = 0
            found.append((size, held))
    return found


def _own_limits() -> list[int]:
    if sys.platform == "win32":
        return []
    import resource

    limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    return [limit for limit in limits if limit != resource.RLIM_INFINITY]
