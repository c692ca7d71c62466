"""The reference executor: runs a saved ML Program package on any machine.

`package` finds the files of an `.mlpackage`, `reader` turns the protobuf and the weight file into the plain structure
of `program`, `registry` and `ops` hold one small function for every operation, and `executor` walks the operations in
order, rounding each result to its declared type. It computes in float32 on the CPU, so it shows what conversion,
casts and weights do to the numbers; it does not imitate a device's own rounding.
"""

from .executor import ReferenceModel

__all__ = ["ReferenceModel"]
