"""Libraries that many tests read and none changes."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from filelock import FileLock
from numpy.typing import NDArray
from rvc_coreml.converters.conversion import convert_content_encoder, convert_voice
from rvc_coreml.runtime.backends import torch_backend
from rvc_coreml.runtime.downloads import CACHE_VARIABLE
from support.checkpoints import SMALL_HUBERT, small_config, write_small_hubert, write_voice
from support.remembered import remembered

# Small networks on shared cores spend hundreds of times their work waiting for a second thread.
torch.set_num_threads(1)
if "PYTEST_XDIST_WORKER" in os.environ:  # the same for processes that tests start beside other workers' tests
    os.environ.setdefault("OMP_NUM_THREADS", "1")
AUDIO = Path(__file__).parent.parent / "golden_outputs" / "audio"
LONGEST = (
    "test_full_size.py",
    "cli/test_bad_input.py",
    "converters/test_conversion.py",
    "runtime/reference/test_fuzz.py",
    "test_planted_faults.py",
    "cli/test_commands.py",
    "runtime/placement/test_faults.py",
    "runtime/test_validation.py",
    "cli/test_tune.py",
    "cli/test_validate.py",
    "cli/test_convert_many.py",
    "runtime/test_upstream_pipeline.py",
    "runtime/test_converter.py",
    "converters/fallback/test_small_models.py",
    "models/test_onnx_voices.py",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With several workers a file stays with one, and so do all operations: the last of their files asks what the others ran.

    The longest files begin, so that none of them is left to one worker at the end.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            folder = file.rpartition("/")[0]
            return folder if folder.endswith("/ops") else file

        def _assign_work_unit(self, node: Any) -> None:
            for file in LONGEST:
                if f"tests/{file}" in self.workqueue:
                    self.workqueue.move_to_end(f"tests/{file}", last=False)
                    break
            super()._assign_work_unit(node)

    return ByFile(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """All that is imported and collected stays: searching it for garbage meanwhile would take a tenth of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    """Nor is it searched again and again afterwards."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def quick_conversion() -> Iterator[None]:
    """As this project converts, also where a test calls coremltools itself; and without its search for garbage at the end."""
    from coremltools.converters import _converters_entry
    from rvc_coreml.converters.passes import unchecked_passes

    with pytest.MonkeyPatch.context() as patch, unchecked_passes():
        patch.setattr(_converters_entry, "gc", SimpleNamespace(collect=lambda: 0))
        yield


@pytest.fixture
def remembered_conversions() -> Iterator[None]:
    """For tests of what surrounds a conversion: the same one is made once, and at small windows."""
    with remembered():
        yield


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch runs on the CPU in every test, whatever the machine has."""
    monkeypatch.setattr(torch_backend, "best_device", lambda: "cpu")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """On a Mac, what tests compile and decide stays out of the user's cache, and what the user's holds out of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def small_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow content encoder with the voices `v2`, `v1`, `nof0` and `v2_fp32`, made once for all workers."""
    shared = tmp_path_factory.getbasetemp()
    folder = (shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared) / "small"
    library = folder / "library"
    with FileLock(f"{folder}.lock"), remembered():
        if not (folder / "done").exists():
            folder.mkdir(exist_ok=True)
            convert_content_encoder(write_small_hubert(folder / "hubert", config=_wide_enough()), library, windows="255")
            convert_voice(write_voice(folder / "v2.pth"), library)
            convert_voice(write_voice(folder / "v1.pth", version="v1", config=small_config("v1", 48000)), library)
            convert_voice(write_voice(folder / "nof0.pth", f0=False), library)
            convert_voice(write_voice(folder / "v2_fp32.pth"), library, precision="fp32")
            (folder / "done").touch()
    return library


def _wide_enough() -> object:
    """A small encoder whose outputs have the widths that voices read."""
    from dataclasses import replace

    return replace(SMALL_HUBERT, hidden=768, heads=12, feed_forward=32, layers=1, position_groups=16, projection=256)


@pytest.fixture(scope="session")
def speech() -> NDArray[np.float32]:
    """A LibriVox sentence: 7.1 s at 16 kHz."""
    return soundfile.read(AUDIO / "librivox_austen_0870.wav", dtype="float32")[0]


@pytest.fixture(scope="session")
def long_speech() -> NDArray[np.float32]:
    """30 s at 16 kHz, made of the three LibriVox sentences."""
    clips = [soundfile.read(path, dtype="float32")[0] for path in sorted(AUDIO.glob("*.wav"))]
    return np.concatenate(clips * 2)[: 30 * 16000]


@pytest.fixture
def speech_file(tmp_path: Path, speech: NDArray[np.float32]) -> Path:
    """The first two seconds of it in a file."""
    path = tmp_path / "speech.wav"
    soundfile.write(path, speech[:32000], 16000)
    return path
