"""Handlers by family; importing this package registers all of them."""

from . import activation, arrangement, convolution, elementwise, linear, normalization

__all__ = ["activation", "arrangement", "convolution", "elementwise", "linear", "normalization"]
