"""The pitch models of a library, loaded when first asked for."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...models.pitch_network import PitchNetwork
from ...models.rmvpe import Rmvpe
from ..backends.base import Backend
from ..backends.torch_backend import TorchBackend
from ..guard import GuardedStage, Notify
from ..library import Library


class LibraryPitchModels:
    """Stages and host parts of a library's pitch models. `chain` is what a stage may run on, in order."""

    def __init__(self, library: Library, chain: Sequence[Backend], notify: Notify) -> None:
        self.library = library
        self.loaded: dict[str, GuardedStage] = {}
        self.rmvpe_padding = "constant"
        self._chain = list(chain)
        self._notify = notify
        self._hosts = [backend for backend in chain if isinstance(backend, TorchBackend)]

    def available(self) -> list[str]:
        """The kinds that the library has."""
        return self.library.pitch_kinds()

    def stage(self, kind: str) -> GuardedStage:
        """The runner of one kind. Raises LibraryError where the library lacks it."""
        if kind not in self.loaded:
            self.loaded[kind] = GuardedStage(self.library.pitch_model(kind), "pitch", self._chain, self._notify)
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
