"""The body of a pitch network in the Neural Engine's layout, for RMVPE, FCPE and SwiftF0.

CREPE has none and stays as it is: its first convolution has 512 taps in steps of 4 over frames of 1024 samples, one frame at a
time, which would need a front end of its own as the content encoder's waveform has.
"""

from __future__ import annotations

from torch import Tensor

from ...errors import ConversionError
from ..fcpe import Fcpe
from ..pitch_network import PitchNetwork
from ..rmvpe import Rmvpe
from ..stages import VALID_INPUT, PitchStage, Stage
from ..swiftf0 import SwiftF0
from .fcpe import AneFcpe, fcpe_arrangement
from .layers import sources_of
from .rmvpe import AneRmvpe, rmvpe_arrangement
from .swiftf0 import AneSwiftF0, swiftf0_arrangement


def window_for(network: PitchNetwork) -> int:
    """The network's own: 1024 frames of RMVPE and 512 of FCPE lie far within the engine's axes, 256 of SwiftF0 just within."""
    return network.default_window


class AnePitchStage(Stage):
    """`PitchStage` for a network that has this layout. Raises ConversionError for another."""

    name = PitchStage.name
    layout = "ane"

    def __init__(self, network: PitchNetwork, window: int) -> None:
        plain = PitchStage(network, window)
        super().__init__(window, plain.context)
        self.description, self.host_entries = plain.description, plain.host_entries
        self.inputs, self.outputs = plain.inputs, plain.outputs
        if isinstance(network, Rmvpe):
            self.network, self.arrangement = AneRmvpe(network), rmvpe_arrangement(network, window, VALID_INPUT)
        elif isinstance(network, Fcpe):
            self.network, self.arrangement = AneFcpe(network), fcpe_arrangement(network, window, VALID_INPUT)
        elif isinstance(network, SwiftF0):
            self.network, self.arrangement = AneSwiftF0(network), swiftf0_arrangement(window, VALID_INPUT)
        else:
            raise ConversionError(f"{network.title} has no layout for the Neural Engine: use --layout plain")
        self._sources = sources_of(self, plain)
        self.eval()

    def forward(self, features: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        """Then whatever else the arrangement names, in its order."""
        return (self.network(features, rest) if isinstance(self.network, AneRmvpe) else self.network(features, *rest),)

    def sources(self) -> dict[str, tuple[str, ...]]:
        """Its parameters -> those of the plain stage that they are made of."""
        return dict(self._sources)
