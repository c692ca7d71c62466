"""Memory of this process."""

from __future__ import annotations

import sys


def peak_memory() -> int:
    """Bytes of main memory that this process has held at most."""
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return int(psutil.Process().memory_info().rss)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kibibytes
