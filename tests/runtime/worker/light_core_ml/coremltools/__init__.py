"""A coremltools that starts at once, for tests of the worker as a process: models that compute y = 2 x, and do as their inputs say."""

from __future__ import annotations

import ctypes
import enum
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np


class ComputeUnit(enum.Enum):
    ALL = 1
    CPU_AND_GPU = 2
    CPU_ONLY = 3
    CPU_AND_NE = 4


class CompiledMLModel:
    def __init__(self, path: str, compute_units: ComputeUnit = ComputeUnit.ALL, function_name: str | None = None) -> None:
        del compute_units, function_name
        if not (Path(path) / "coremldata.bin").is_file():
            raise RuntimeError(f"{path} is no compiled model")
        self.path = path

    def predict(self, data: dict[str, np.ndarray], state: Any = None) -> dict[str, Any]:
        del state
        if "say" in data:
            print("on stdout")
            print("Core ML has something to say", file=sys.stderr, flush=True)
        if "chatter" in data:
            sys.stderr.write("word " * 400_000)
        if "crash" in data:
            sys.stderr.write("ANE compiler gave up\n\n")
            sys.stderr.flush()
            os.kill(os.getpid(), signal.SIGSEGV)
        if "exit" in data:
            os._exit(3)
        if "hang" in data:
            time.sleep(1000)
        if "hold" in data:  # as native code does that never lets other threads run
            ctypes.PyDLL(None).sleep(1000)
        if "modules" in data:
            return {name: int(name in sys.modules) for name in ("torch", "transformers", "sklearn", "scipy")}
        return {"y": 2 * data["x"], "place": self.path, "again": data["x"]}


def _compile_model(model: str, destination_path: str | None = None) -> str:
    assert destination_path is None
    folder = Path(tempfile.mkdtemp(prefix="light-")) / f"{Path(model).stem}.mlmodelc"
    folder.mkdir()
    (folder / "coremldata.bin").write_bytes(b"compiled")
    return str(folder)


models = SimpleNamespace(CompiledMLModel=CompiledMLModel, utils=SimpleNamespace(compile_model=_compile_model))
