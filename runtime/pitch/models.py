"""The pitch models of a library, loaded when first asked for."""

from __future__ import annotations

import torch

from ...models.pitch_network import PitchNetwork
from ...models.rmvpe import Rmvpe
from ..backends.base import PlacedRunner
from ..backends.torch_backend import TorchBackend
from ..library import Library
from ..placement.placement import Placement


class LibraryPitchModels:
    """Stages and host parts of a library's pitch models."""

    def __init__(self, library: Library, placement: Placement) -> None:
        self.library = library
        self.loaded: dict[str, PlacedRunner] = {}
        self.rmvpe_padding = "constant"
        self._placement = placement
        self._said: set[str] = set()
        self._hosts = placement.torch_backends

    def available(self) -> list[str]:
        """The kinds that the library has."""
        return self.library.pitch_kinds()

    def say(self, line: str) -> None:
        """A line for the user, once."""
        if line not in self._said:
            self._said.add(line)
            self._placement.notify(line)

    def verify(self) -> bool:
        """Run the goldens again; False where a model has moved on and the contour is to be found again."""
        verified = [stage.verify() for stage in self.loaded.values()]
        return all(verified)

    def stage(self, kind: str) -> PlacedRunner:
        """The runner of one kind. Raises LibraryError where the library lacks it."""
        if kind not in self.loaded:
            self.loaded[kind] = self._placement.stage(self.library.pitch_model(kind), "pitch")
        return self.loaded[kind]

    def network(self, kind: str) -> PitchNetwork:
        """The network itself in float32, for what runs on the host; on the stage's device."""
        backend = self._host(self.stage(kind).device)
        network = backend.network(self.library.pitch_model(kind))
        assert isinstance(network, PitchNetwork)  # noqa: S101 - a component of that kind holds no other
        if isinstance(network, Rmvpe):
            network.end_padding = self.rmvpe_padding
        return network

    def _host(self, device: torch.device) -> TorchBackend:
        for backend in self._hosts:
            if torch.device(backend.device).type == device.type:
                return backend
        self._hosts.append(TorchBackend(str(device)))
        return self._hosts[-1]
