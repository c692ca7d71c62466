"""The rules by family. Importing this package registers them all."""

from . import activations, broken, compression, convolution, flexible, masks, movement, saturation, size, tensors, unsupported

__all__ = [
    "activations",
    "broken",
    "compression",
    "convolution",
    "flexible",
    "masks",
    "movement",
    "saturation",
    "size",
    "tensors",
    "unsupported",
]
