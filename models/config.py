"""The 18-entry `config` list of an RVC voice, checked and named.

The list's order is the argument order of upstream's `SynthesizerTrnMs*NSFsid`; the network is always built
from it and never from a table of sample rates, because files exist whose shape and version disagree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from reprlib import repr as shortened
from typing import Any

from ..errors import IncompleteCheckpoint, WrongCheckpointKind

CONFIG_LENGTH = 18
SAMPLE_RATE_NAMES = {"24k": 24000, "32k": 32000, "40k": 40000, "48k": 48000}
FRAMES_PER_SECOND = 100  # one pitch frame every 10 ms in every RVC version
PHONE_CHANNELS = {"v1": 256, "v2": 768}  # HuBERT layer 9 projected, layer 12 as it is
MAX_SIZE = 65536  # largest channel count, rate factor or speaker count that is still a network
MAX_RATE = 768000  # Hz
MAX_TABLE = 16  # longest list of upsampling steps, kernels or layers

_FIELDS = (
    "spec_channels",
    "segment_size",
    "inter_channels",
    "hidden_channels",
    "filter_channels",
    "n_heads",
    "n_layers",
    "kernel_size",
    "p_dropout",
    "resblock",
    "resblock_kernel_sizes",
    "resblock_dilation_sizes",
    "upsample_rates",
    "upsample_initial_channel",
    "upsample_kernel_sizes",
    "spk_embed_dim",
    "gin_channels",
    "sr",
)
_POSITIVE = (2, 3, 4, 5, 6, 7, 13, 15, 16)


@dataclass(frozen=True)
class VoiceConfig:
    """Shape of one synthesizer. Field names are upstream's; `sr` is in Hz, list order is `from_list`'s."""

    spec_channels: int
    segment_size: int
    inter_channels: int
    hidden_channels: int
    filter_channels: int
    n_heads: int
    n_layers: int
    kernel_size: int
    p_dropout: float
    resblock: str
    resblock_kernel_sizes: tuple[int, ...]
    resblock_dilation_sizes: tuple[tuple[int, ...], ...]
    upsample_rates: tuple[int, ...]
    upsample_initial_channel: int
    upsample_kernel_sizes: tuple[int, ...]
    spk_embed_dim: int
    gin_channels: int
    sr: int

    @property
    def samples_per_frame(self) -> int:
        """Audio samples for each 10 ms frame (upstream's `upp`)."""
        return math.prod(self.upsample_rates)

    @property
    def uses_resblock1(self) -> bool:
        return self.resblock == "1"

    def to_list(self) -> list[Any]:
        """The list as voice files hold it."""
        values: list[Any] = [getattr(self, name) for name in _FIELDS]
        values[10], values[12], values[14] = list(values[10]), list(values[12]), list(values[14])
        values[11] = [list(row) for row in values[11]]
        return values

    @classmethod
    def from_list(cls, values: Sequence[Any], speakers: int | None = None) -> VoiceConfig:
        """Check and name a voice file's `config`; `speakers` replaces entry 15, as upstream does.

        Raises WrongCheckpointKind for another list length and IncompleteCheckpoint naming every bad entry.
        """
        if not isinstance(values, (list, tuple)) or len(values) != CONFIG_LENGTH:
            found = f"has {len(values)} entries" if isinstance(values, (list, tuple)) else f"is a {type(values).__name__}"
            raise WrongCheckpointKind(f"its config {found} where an RVC v1 or v2 voice has a list of {CONFIG_LENGTH}")
        entries = list(values)
        if speakers is not None:
            entries[15] = speakers
        entries[9] = str(entries[9])
        entries[17] = parse_sample_rate(entries[17])
        problems = _problems(entries)
        if problems:
            raise IncompleteCheckpoint("its config is not usable: " + "; ".join(problems))
        entries[8] = float(entries[8] or 0)
        for index in (10, 12, 14):
            entries[index] = tuple(entries[index])
        entries[11] = tuple(tuple(row) for row in entries[11])
        return cls(**dict(zip(_FIELDS, entries, strict=True)))


def parse_sample_rate(value: Any) -> int | None:
    """Hz from `40000`, `"40000"` or `"40k"`; None where it is none of these."""
    if isinstance(value, str):
        text = value.strip().lower()
        value = SAMPLE_RATE_NAMES.get(text, int(text) if text.isascii() and text.isdigit() and len(text) <= 6 else None)
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 < value <= MAX_RATE else None


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_SIZE


def _is_sizes(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and 0 < len(value) <= MAX_TABLE and all(map(_is_size, value))


def _problems(entries: list[Any]) -> list[str]:
    found = [
        f"entry {index} ({_FIELDS[index]}) is {shortened(entries[index])}, not a size from 1 to {MAX_SIZE}"
        for index in _POSITIVE
        if not _is_size(entries[index])
    ]
    for index in (10, 12, 14):
        if not _is_sizes(entries[index]):
            found.append(f"entry {index} ({_FIELDS[index]}) is {shortened(entries[index])}, not a list of sizes")
    dilations = entries[11]
    if not (isinstance(dilations, (list, tuple)) and 0 < len(dilations) <= MAX_TABLE and all(map(_is_sizes, dilations))):
        found.append(f"entry 11 ({_FIELDS[11]}) is {shortened(dilations)}, not a list of lists of sizes")
    if not (entries[8] is None or (isinstance(entries[8], (int, float)) and 0 <= entries[8] <= 1)):
        found.append(f"entry 8 ({_FIELDS[8]}) is {shortened(entries[8])}, not a probability")
    if entries[17] is None:
        found.append("entry 17 (sr) is not a sample rate in Hz")
    return found or _contradictions(entries)


def _contradictions(entries: list[Any]) -> list[str]:
    """Entries that are well-typed one by one and impossible together."""
    found = []
    rates, kernels, initial = entries[12], entries[14], entries[13]
    if entries[6] > 64:
        found.append(f"n_layers is {entries[6]}, more than any RVC voice has")
    if len(entries[10]) != len(entries[11]):
        found.append("resblock_kernel_sizes and resblock_dilation_sizes differ in length")
    least = 3 if entries[9] == "1" else 2
    if any(len(row) < least for row in entries[11]):
        found.append(f"resblock {entries[9]!r} needs {least} dilations in every row of resblock_dilation_sizes")
    if any(size % 2 == 0 for size in entries[10]):
        found.append("resblock_kernel_sizes holds an even size, which would change the length")
    if len(rates) != len(kernels):
        found.append("upsample_rates and upsample_kernel_sizes differ in length")
    elif any(kernel < rate or (kernel - rate) % 2 for rate, kernel in zip(rates, kernels, strict=True)):
        found.append("an upsampling kernel is smaller than its rate or differs from it by an odd number")
    later = [math.prod(rates[index + 1 :]) for index in range(len(rates))]
    if any(stride > 1 and stride % 2 for stride in later):
        found.append(f"upsample_rates {shortened(rates)} leave an odd stride to a noise convolution, which would change the length")
    if initial % (1 << len(rates)):
        found.append(f"upsample_initial_channel {initial} cannot be halved {len(rates)} times")
    if entries[3] % entries[5]:
        found.append(f"hidden_channels {entries[3]} is not divisible by n_heads {entries[5]}")
    if entries[2] % 2:
        found.append(f"inter_channels {entries[2]} is odd and cannot be split by the flow")
    if math.prod(rates) * FRAMES_PER_SECOND != entries[17]:
        found.append(
            f"upsample_rates multiply to {math.prod(rates)} samples a frame, which is {math.prod(rates) * FRAMES_PER_SECOND} Hz"
            f" and not the stated {entries[17]} Hz"
        )
    return found
