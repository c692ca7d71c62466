"""Before anything is converted: every operation that coremltools cannot lower, or lowers wrongly, and what to do about it."""

from .denied import ADVICE, ALL, ARGUMENTS, DENIED, Denied
from .findings import Finding, Preflight
from .patterns import matched
from .walk import preflight

__all__ = ["ADVICE", "ALL", "ARGUMENTS", "DENIED", "Denied", "Finding", "Preflight", "matched", "preflight"]
