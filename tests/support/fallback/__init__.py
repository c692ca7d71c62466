"""Small networks, each with something that no package can hold, and what exactly has to stay in PyTorch of it."""

from . import layers, structure
from .cases import CASES, Around, Block, Case

__all__ = ["CASES", "Around", "Block", "Case", "layers", "structure"]
