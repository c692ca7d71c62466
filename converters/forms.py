"""The form in which stages become packages: precision, layout, windows, weights and target, as they are asked for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import UsageError
from ..models.layouts import DEFAULT_LAYOUT, LAYOUTS, PLAIN, check_windows, default_windows, layout_of, stage_of, window_layout
from ..models.stages import Stage
from ..runtime.manifest import AT, Manifest
from .compression import parse_weights
from .precisions import AUTO, parse_by_stage, parse_precisions

TARGETS = {"ios17": "iOS17", "ios18": "iOS18"}  # as they are asked for -> as manifests have them
DEFAULT_TARGET = next(iter(TARGETS))
SHARING_TARGET = "ios18"  # the windows of a stage are functions of one package and share its weights
DEFAULT_TARGET_SNR = 50.0  # dB, of --precision auto
MOST_WINDOWS = 8  # of a stage
LONGEST_WINDOW = 60_000  # frames: ten minutes, beyond which nothing was tried
DETAIL = "conversion"  # in a manifest's details

Values = str | Sequence[str]


@dataclass(frozen=True)
class Planned:
    """A package to be made: a stage at a window in a layout, and the same in plain."""

    stage: Stage
    plain: Stage


@dataclass(frozen=True)
class Form:
    """By stage, precision, layout and weights; `windows` of the stages for which some were asked for."""

    precisions: Mapping[str, str]
    layouts: Mapping[str, str]
    windows: Mapping[str, tuple[int, ...]]
    weights: Mapping[str, str]
    target: str = DEFAULT_TARGET
    target_snr: float = DEFAULT_TARGET_SNR

    @classmethod
    def parse(
        cls,
        stages: tuple[str, ...],
        precision: Values = "fp16",
        layout: Values = DEFAULT_LAYOUT,
        windows: Values = (),
        weights: Values = "fp16",
        target: str = DEFAULT_TARGET,
        target_snr: float = DEFAULT_TARGET_SNR,
    ) -> Form:
        """Raises UsageError for what names no stage, precision, layout, window, scheme or target."""
        if target not in TARGETS:
            raise UsageError(f"target {target!r} is not one of {', '.join(TARGETS)}")
        if not 0 < target_snr < 200:
            raise UsageError(f"a target of {target_snr:g} dB cannot be reached; give one between 0 and 200")
        return cls(
            parse_precisions(_listed(precision), stages),
            parse_by_stage(_listed(layout), stages, LAYOUTS, "layout", DEFAULT_LAYOUT),
            parse_windows(_listed(windows), stages),
            parse_weights(_listed(weights), stages),
            target,
            target_snr,
        )

    def planned(self, network: nn.Module) -> dict[str, Planned]:
        """What is made of a network, by its entry in the manifest: STAGE, and STAGE@FRAMES for further windows.

        Raises UsageError for a window that a stage cannot have.
        """
        found: dict[str, Planned] = {}
        for name, asked in self.layouts.items():
            layout = layout_of(network, name, asked)
            windows = check_windows(network, name, self.windows.get(name) or default_windows(network, name, layout))
            for number, window in enumerate(windows):
                own = window_layout(network, name, layout, window)
                plain = stage_of(network, name, PLAIN, window)
                stage = plain if own == PLAIN else stage_of(network, name, own, window)
                found[f"{name}{AT}{window}" if number else name] = Planned(stage, plain)
        return found

    @property
    def searches(self) -> bool:
        """Whether operations that stay in float32 are to be found."""
        return AUTO in self.precisions.values()

    def details(self) -> dict[str, Any]:
        """What the manifest keeps of it."""
        asked: dict[str, Any] = {
            "precisions": dict(self.precisions),
            "layouts": dict(self.layouts),
            "windows": {name: list(windows) for name, windows in self.windows.items()},
            "weights": dict(self.weights),
            "target": self.target,
        }
        return {DETAIL: asked | ({"target_snr": self.target_snr} if self.searches else {})}

    def made(self, manifest: Manifest) -> bool:
        """Whether a component was made in this form."""
        return manifest.details.get(DETAIL) == self.details()[DETAIL]


def parse_windows(values: Collection[str], stages: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """`["flow=300", "decoder=100,200"]` -> frames by stage; `["255"]` where there is one stage. Raises UsageError."""
    found: dict[str, tuple[int, ...]] = {}
    for value in values:
        stage, separator, listed = value.rpartition("=")
        if not separator and len(stages) == 1:
            stage = stages[0]
        try:
            frames = tuple(int(item) for item in listed.split(","))
        except ValueError:
            frames = ()
        if stage not in stages or not frames or any(not 0 < item <= LONGEST_WINDOW for item in frames):
            example, of = ("FRAMES", "") if len(stages) == 1 else ("STAGE=FRAMES", f" with one of {', '.join(stages)}")
            raise UsageError(
                f"windows {value!r} are not understood; give {example}, or several as {example},FRAMES,{of} up to {LONGEST_WINDOW} frames"
            )
        found[stage] = tuple(sorted({*found.get(stage, ()), *frames}))
        if len(found[stage]) > MOST_WINDOWS:
            raise UsageError(f"{stage} can have {MOST_WINDOWS} windows, not {len(found[stage])}")
    return found


def _listed(values: Values) -> list[str]:
    return [values] if isinstance(values, str) else list(values)
