"""The last operation of a classifier."""

from __future__ import annotations

import torch
from torch import Tensor

from ....errors import PackageError
from ..registry import Strings, mil_op

UNVERIFIED = {"classify of equal probabilities": "not documented; the first of the likeliest classes"}


@mil_op("classify")
def classify(probabilities: Tensor, classes: Strings) -> tuple[str | int, dict[str | int, float]]:
    """The likeliest class and every class' probability, as plain values: so MLModel hands them out."""
    numbers = probabilities.flatten()
    if not len(classes) == numbers.numel() > 0:
        raise PackageError(f"there are {len(classes)} classes and {numbers.numel()} probabilities")
    return classes[int(torch.argmax(numbers))], dict(zip(classes, numbers.tolist(), strict=True))
