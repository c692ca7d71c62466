"""coremltools, imported without its notices.

Off macOS every import prints eight lines about proxies that exist only there, and one about torch being newer than the
version it was tested with; neither is news to anyone who uses this package. Its logger is back to normal afterwards.
"""

from __future__ import annotations

import logging

_logger = logging.getLogger("coremltools")
_level = _logger.level
_logger.setLevel(logging.ERROR)
try:
    import coremltools as ct
    from coremltools.proto import FeatureTypes_pb2, MIL_pb2, Model_pb2
finally:
    _logger.setLevel(_level)

__all__ = ["FeatureTypes_pb2", "MIL_pb2", "Model_pb2", "ct"]
