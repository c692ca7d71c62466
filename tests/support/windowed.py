"""PyTorch fed with the windows of the packages: what a package's rounding changes, without what its windows change."""

from __future__ import annotations

from rvc_coreml.runtime.backends.torch_backend import TorchBackend, TorchRunner
from rvc_coreml.runtime.library import Component


class WindowedTorch:
    """A backend."""

    name = "windowed torch"
    detail = "cpu"

    def __init__(self) -> None:
        self.torch = TorchBackend("cpu")

    def load(self, component: Component, stage: str) -> TorchRunner:
        runner = self.torch.network_runner(component, stage)
        runner.window = component.manifest.stages[stage].window
        return runner
