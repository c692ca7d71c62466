"""Memory of this process."""

from __future__ import annotations

import sys


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
        import psutil

        return int(psutil.Process().memory_info().rss)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kibibytes
