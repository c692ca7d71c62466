"""How a conversion is run, which changes its speed and memory and, within rounding, nothing of its sound.

A value comes from the device's defaults, then a TOML file, then the environment, then flags; the last that speaks wins.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import UsageError

CONFIG_VARIABLE = "RVC_COREML_CONFIG"  # names a TOML file
DEVICES = ("coreml", "mps", "cuda", "cpu")
MAX_FILE_BYTES = 1 << 20
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
_LIMITS = {"batch_size": (1, 4096), "threads": (1, 1024), "piece_frames": (16, 100_000)}  # windows, threads, 10 ms frames
_COUNTS = {"watch_every": (1, 1_000_000), "compiled_cache_bytes": (0, 1 << 50)}  # predictions, bytes
_NUMBERS = {"load_limit": (1.0, 86400.0), "prediction_factor": (1.0, 1000.0), "first_sound_seconds": (0.1, 3600.0)}
_CHOICES = {
    "retrieval_device": ("auto", "device", "cpu"),
    "precision": ("auto", "fp32", "fp16"),
    "filter_device": ("auto", "scipy", "device"),
}


@dataclass(frozen=True)
class OptimizationConfig:
    """What may be chosen. `auto` and None are filled in by `resolved`; `sources` says where each value came from."""

    retrieval_device: str = "auto"  # where the feature index is searched: the device of the features, or the CPU
    precision: str = "auto"  # of the networks in PyTorch; packages have theirs from their conversion
    filter_device: str = "auto"  # the 48 Hz high-pass: scipy on the host, or torch on the device
    batch_size: int | None = None  # equal windows run together; None: what the device's memory allows
    profiling: bool = False  # time and memory by stage; makes the device wait after each
    threads: int | None = None  # of PyTorch on the CPU; None: PyTorch's own choice
    kept_region: bool = True  # flow and decoder run only on what is kept and its receptive field
    pieces: bool = True  # the decoder runs in pieces that fit the cache
    piece_frames: int | None = None  # 10 ms frames of such a piece; None: the device's own size
    fused_attention: bool = True  # torch's scaled_dot_product_attention
    compile: bool = False  # torch.compile: minutes at the first use of a length
    overlap: bool = True  # host work (pitch, reading, source) beside device work
    load_limit: float = 300.0  # seconds that Core ML may take to load a package, where nobody waits for sound
    prediction_factor: float = 10.0  # times what its golden took, and a stage is stuck
    first_sound_seconds: float = 8.0  # that a start may spend on loading what is not known to work
    watch_every: int = 50  # predictions of a Core ML stage between two runs of its golden
    compiled_cache_bytes: int = 4 << 30  # of compiled models that are kept; 0 keeps none
    sources: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in names():
            _check(name, getattr(self, name), f"{name} = {getattr(self, name)!r}")

    @classmethod
    def for_apple_silicon(cls) -> OptimizationConfig:
        """Core ML packages, or PyTorch on MPS: float32 there, since half precision on MPS is known to go wrong. Not yet run on a Mac."""
        return cls(retrieval_device="device", precision="fp32", filter_device="scipy")

    @classmethod
    def for_cuda(cls) -> OptimizationConfig:
        """An NVIDIA GPU with fast half precision."""
        return cls(retrieval_device="device", precision="fp16", filter_device="device")

    @classmethod
    def for_cpu(cls) -> OptimizationConfig:
        """PyTorch on the CPU; host and device are the same cores, so nothing is overlapped."""
        return cls(retrieval_device="cpu", precision="fp32", filter_device="scipy", overlap=False)

    @classmethod
    def for_device(cls, device: str) -> OptimizationConfig:
        """The defaults of `coreml`, `mps`, `cuda` (also `cuda:1`) or `cpu`. Raises UsageError for another name."""
        kind = device.partition(":")[0]
        if kind not in DEVICES:
            raise UsageError(f"device {device!r} is unknown; choose one of {', '.join(DEVICES)}")
        if kind == "cuda":
            from .devices import gains_from_half

            chosen = cls.for_cuda()
            return chosen if gains_from_half(device) else replace(chosen, precision="fp32")
        return cls.for_cpu() if kind == "cpu" else cls.for_apple_silicon()

    @classmethod
    def upstream(cls) -> OptimizationConfig:
        """Every switch off: the work that RVC-WebUI does, in float32. What `benchmark --ablate` starts from."""
        off = dict.fromkeys(("kept_region", "pieces", "fused_attention", "compile", "overlap"), False)
        return cls(retrieval_device="cpu", precision="fp32", filter_device="scipy", batch_size=1, **off)

    @classmethod
    def load(
        cls, device: str, file: str | Path | None = None, environ: Mapping[str, str] | None = None, **flags: Any
    ) -> OptimizationConfig:
        """The configuration for a device; `file` is `--config`, a flag of None was not given.

        Raises UsageError, naming file, variable or flag, for what cannot be used.
        """
        environ = os.environ if environ is None else environ
        chosen: dict[str, Any] = {}
        sources = dict.fromkeys(names(), f"default of {device}")
        named = file or environ.get(CONFIG_VARIABLE)
        for layer in (_of_file(Path(named)) if named else {}, _of_environment(environ), _of_flags(flags)):
            chosen |= {name: value for name, (value, _source) in layer.items()}
            sources |= {name: source for name, (_value, source) in layer.items()}
        return replace(cls.for_device(device), **chosen, sources=sources).resolved(device)

    def resolved(self, device: str) -> OptimizationConfig:
        """With the device's defaults in place of `auto`."""
        defaults = OptimizationConfig.for_device(device)
        return replace(self, **{name: getattr(defaults, name) for name in _CHOICES if getattr(self, name) == "auto"})

    def as_dict(self) -> dict[str, Any]:
        """Name -> value, for reports."""
        return {name: getattr(self, name) for name in names()}


@dataclass(frozen=True)
class _Variable:
    """An environment variable: the setting that it gives and what its values mean."""

    setting: str
    read: Callable[[str], Any]
    accepted: str


def _switch(on: Any, off: Any) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        if text.lower() not in _TRUE + _FALSE:
            raise ValueError(text)
        return on if text.lower() in _TRUE else off

    return read


def _count(text: str) -> int | None:
    return None if text.lower() == "auto" else int(text)


VARIABLES = {
    "RVC_GPU_RETRIEVAL": _Variable("retrieval_device", _switch("device", "cpu"), "0 or 1"),
    "RVC_USE_FP16": _Variable("precision", _switch("fp16", "fp32"), "0 or 1"),
    "RVC_GPU_FILTER": _Variable("filter_device", _switch("device", "scipy"), "0 or 1"),
    "RVC_BATCH_SIZE": _Variable("batch_size", _count, "auto or 1 to 4096"),
    "RVC_PROFILING": _Variable("profiling", _switch(True, False), "0 or 1"),
    "RVC_COREML_LOAD_LIMIT": _Variable("load_limit", float, "1 to 86400 seconds"),
    "RVC_COREML_PREDICTION_FACTOR": _Variable("prediction_factor", float, "1 to 1000"),
    "RVC_COREML_FIRST_SOUND_SECONDS": _Variable("first_sound_seconds", float, "0.1 to 3600 seconds"),
    "RVC_COREML_WATCH_EVERY": _Variable("watch_every", int, "1 to 1000000 predictions"),
    "RVC_COREML_COMPILED_CACHE_BYTES": _Variable("compiled_cache_bytes", int, "0 to 1125899906842624 bytes"),
}


def names() -> list[str]:
    """The settings, in order."""
    return [item.name for item in fields(OptimizationConfig) if item.name != "sources"]


def accepted(name: str) -> str:
    """The values of a setting, in words."""
    if name in _CHOICES:
        return ", ".join(_CHOICES[name])
    if name in _COUNTS or name in _NUMBERS:
        low, high = (_COUNTS | _NUMBERS)[name]
        return f"{low} to {high}" if name in _COUNTS else f"{low:g} to {high:g}"
    if name in _LIMITS:
        low, high = _LIMITS[name]
        return f"auto or {low} to {high}"
    return "true or false"


def _check(name: str, value: Any, shown: str) -> None:
    """Raises UsageError where a setting cannot have the value."""
    if name in _CHOICES:
        good = value in _CHOICES[name] if isinstance(value, str) else False
    elif name in _LIMITS:
        low, high = _LIMITS[name]
        good = value is None or (type(value) is int and low <= value <= high)
    elif name in _COUNTS or name in _NUMBERS:
        low, high = (_COUNTS | _NUMBERS)[name]
        good = (type(value) is int or (type(value) is float and name in _NUMBERS)) and low <= value <= high
    else:
        good = type(value) is bool
    if not good:
        raise UsageError(f"{shown} cannot be used: {name} is {accepted(name)}")


Layer = dict[str, tuple[Any, str]]  # setting -> value and where it was read


def _of_file(path: Path) -> Layer:
    """Settings of a TOML file, which is a table of them. Raises UsageError for anything else."""
    reader = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        with path.open("rb") as handle:
            content = handle.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise ValueError("it is too large for a configuration")
        values = reader.loads(content.decode("utf-8"))
    except OSError as error:
        raise UsageError(f"the configuration {path} could not be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # TOML's and UTF-8's errors are ValueErrors
        raise UsageError(f"the configuration {path} is no TOML file: {error}") from error
    layer = {}
    for name, value in values.items():
        if name not in names():
            raise UsageError(f"{path}: there is no setting {name!r}; the settings are {', '.join(names())}")
        value = None if value == "auto" and name in _LIMITS else value
        _check(name, value, f"{path}: {name} = {value!r}")
        layer[name] = (value, f"file {path}")
    return layer


def _of_environment(environ: Mapping[str, str]) -> Layer:
    """Settings of the environment; an empty variable is one that is not set."""
    layer = {}
    for name, variable in VARIABLES.items():
        text = environ.get(name, "").strip()
        if not text:
            continue
        try:
            value = variable.read(text)
            _check(variable.setting, value, name)
        except (ValueError, UsageError) as error:
            raise UsageError(f"the environment variable {name} is {text!r}: give {variable.accepted}, or unset it") from error
        layer[variable.setting] = (value, f"environment variable {name}")
    return layer


def _of_flags(flags: Mapping[str, Any]) -> Layer:
    layer = {}
    for name, value in flags.items():
        if name not in names():
            raise UsageError(f"there is no setting {name!r}; the settings are {', '.join(names())}")
        if value is not None:  # checked where the configuration is made
            layer[name] = (value, "flag")
    return layer
