"""Which layouts and windows a stage has: "ane" for the Neural Engine (models/ane), "plain" as the networks are written.

The plain stage defines what is correct and is what PyTorch runs; the other computes the same from the same weights.
"""

from __future__ import annotations

from collections.abc import Collection
from importlib import import_module
from typing import Any

from torch import nn

from ..errors import UsageError
from .hubert import Hubert
from .pitch_network import PitchNetwork
from .stages import DEFAULT_WINDOWS, VOICE_STAGES, Stage, content_encoder_stage, pitch_stage, voice_stage
from .synthesizer import Synthesizer

LAYOUTS = ("ane", "plain")
ANE, PLAIN = LAYOUTS
DEFAULT_LAYOUT = ANE
# 43 s: as much as upstream's content encoder attends over on a Mac, 41 s of a clip with a second of padding on either side.
PARITY_WINDOW = 2150
ANE_PITCH = ("rmvpe", "fcpe", "swiftf0")
_CLASSES = {
    "content_encoder": "AneContentEncoderStage",
    "text_encoder": "AneTextEncoderStage",
    "flow": "AneFlowStage",
    "decoder": "AneDecoderStage",
    "pitch": "AnePitchStage",
}


def layouts_of(network: nn.Module, name: str) -> tuple[str, ...]:
    """The layouts that a stage of a network has."""
    if isinstance(network, PitchNetwork) and network.kind not in ANE_PITCH:
        return (PLAIN,)
    return LAYOUTS if _module(name) is not None else (PLAIN,)


def layout_of(network: nn.Module, name: str, layout: str = DEFAULT_LAYOUT) -> str:
    """That layout, or plain where the stage does not have it."""
    return layout if layout in layouts_of(network, name) else PLAIN


def default_windows(network: nn.Module, name: str, layout: str) -> tuple[int, ...]:
    """Windows in frames, the smallest first: the one that serves, and for the content encoder the one that upstream attends over."""
    first = _ane_window(network, name) if layout == ANE else _plain_window(network, name)
    return (first, PARITY_WINDOW) if name == "content_encoder" else (first,)


def window_layout(network: nn.Module, name: str, layout: str, window: int) -> str:
    """The layout of one window: a content encoder's beyond what the Neural Engine takes is plain."""
    if layout == ANE and name == "content_encoder" and window > _ane_window(network, name):
        return PLAIN
    return layout


def stage_of(network: nn.Module, name: str, layout: str, window: int | None = None) -> Stage:
    """A stage of a network in a layout (default window: the first of `default_windows`). Raises UsageError where it has none such."""
    if layout not in LAYOUTS:
        raise UsageError(f"layout {layout!r} is not one of {', '.join(LAYOUTS)}")
    if layout == ANE:
        module = _module(name)
        if module is None or layout not in layouts_of(network, name):
            raise UsageError(f"{_title(network, name)} has no layout for the Neural Engine: use --layout plain")
        try:
            return getattr(module, _CLASSES[name])(network, window or _ane_window(network, name)).eval()
        except ValueError as error:
            raise UsageError(f"{_title(network, name)}: {error}; use another window or --layout plain") from error
    if isinstance(network, Hubert):
        return content_encoder_stage(network, window)
    if isinstance(network, Synthesizer):
        return voice_stage(name, network, window)
    if isinstance(network, PitchNetwork):
        return pitch_stage(network, window)
    raise TypeError(f"no stage is made of a {type(network).__name__}")


def stage_names(network: nn.Module) -> tuple[str, ...]:
    """The stages that a network is made into."""
    if isinstance(network, Synthesizer):
        return VOICE_STAGES
    return ("content_encoder",) if isinstance(network, Hubert) else ("pitch",)


def _plain_window(network: nn.Module, name: str) -> int:
    return network.default_window if isinstance(network, PitchNetwork) else DEFAULT_WINDOWS[name]


def _ane_window(network: nn.Module, name: str) -> int:
    module = _module(name)
    if module is None:
        raise UsageError(f"{_title(network, name)} has no layout for the Neural Engine: use --layout plain")
    if hasattr(module, "window_for"):
        return int(module.window_for(network if isinstance(network, PitchNetwork) else network.config))
    return int(module.WINDOW)


def _module(name: str) -> Any:
    """Its module of models/ane; None where there is none."""
    try:
        return import_module(f".ane.{name}", __package__)
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith(f"{__package__}.ane"):
            raise
        return None


def _title(network: nn.Module, name: str) -> str:
    return network.title if isinstance(network, PitchNetwork) else name


def check_windows(network: nn.Module, name: str, windows: Collection[int]) -> tuple[int, ...]:
    """Windows as a conversion makes them: each once, the smallest first. Raises UsageError for one that the stage cannot have."""
    unit = network.granularity if isinstance(network, PitchNetwork) else 1
    context = stage_of(network, name, PLAIN).context
    for window in windows:
        if window <= 2 * context:
            raise UsageError(f"a window of {window} frames is too small for {name}: {context} on either side are context")
        if window % unit:
            raise UsageError(f"a window of {window} frames does not suit {_title(network, name)}: it has to be a multiple of {unit}")
    return tuple(sorted(set(windows)))
