"""Conversions at small windows that are not made twice, for tests of what surrounds them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from rvc_coreml.converters import examination, forms, mlprogram, splitting
from torch import Tensor, fx

# Three seconds, and what pads them, are one window of the stages that attend over everything, three of the flow, nine of the decoder.
SMALL_WINDOWS = {"content_encoder": 255, "text_encoder": 512, "flow": 224, "decoder": 80}
_exported: dict[str, tuple[Any, str]] = {}
_converted: dict[str, Any] = {}


@contextmanager
def remembered() -> Iterator[None]:
    """What this process has exported or converted before, with the same weights and options, is taken from then.

    A voice or encoder for which no windows are asked for gets SMALL_WINDOWS. Not for tests that change the code of a network:
    an export is known by its stage's modules and weights.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forms, "default_windows", _small_windows(forms.default_windows))
        patch.setattr(examination, "export_stage", _exporting_once(examination.export_stage))
        for module in (mlprogram, splitting):
            patch.setattr(module, "convert_part", _converting_once(module.convert_part))
        yield


def _small_windows(usual: Callable[..., Any]) -> Callable[..., Any]:
    def windows(network: Any, name: str, layout: str) -> tuple[int, ...]:
        return (SMALL_WINDOWS[name],) if name in SMALL_WINDOWS else usual(network, name, layout)

    return windows


def _exporting_once(export: Callable[..., Any]) -> Callable[..., Any]:
    def exported(stage: Any, *arguments: Any) -> Any:
        shapes = [(spec.name, spec.shape) for spec in stage.inputs]
        key = _digest([type(stage), repr(stage), shapes, arguments], stage.state_dict())
        network, values = _exported.get(key, (None, ""))
        if network is None or values != _values_of(network):  # a test may have changed the weights that it shares
            network = export(stage, *arguments)
            _exported[key] = network, _values_of(network)
        return network

    return exported


def _converting_once(convert: Callable[..., Any]) -> Callable[..., Any]:
    def converted(network: Any, *arguments: Any, **named: Any) -> Any:
        told = [value for name, value in sorted(vars(network).items()) if name not in ("program", "nodes")]
        nodes = [(node.format_node(), _facts(node)) for node in network.program.graph.nodes]
        key = _digest([nodes, told, arguments, sorted(named.items())], {}) + _values_of(network)
        if key not in _converted:
            _converted[key] = convert(network, *arguments, **named)
        return _converted[key]

    return converted


def _values_of(network: Any) -> str:
    program = network.program
    return _digest([str(program.graph_signature)], {**program.state_dict, **program.constants})


def _digest(facts: list[Any], tensors: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(repr(facts).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _facts(node: fx.Node) -> Any:
    value = node.meta.get("val")
    return (tuple(value.shape), value.stride(), str(value.dtype)) if isinstance(value, Tensor) else None
