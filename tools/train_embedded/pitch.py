"""Pitch of the target's clips with SwiftF0 (MIT) through onnxruntime, on worker processes, as conversion takes it: Hz every 10 ms."""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from rvc_coreml.models.swiftf0 import F0_MAX, F0_MIN, THRESHOLD, SwiftF0

SAMPLE_RATE = 16000
COARSE_BINS = 254  # RVC spreads its coarse pitch over 1..255
CLIPS_FOR_A_WORKER = 16  # fewer are done before a process has started
_sessions: dict[str, Any] = {}


def open_model(path: Path) -> Any:
    """A session on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def contour(session: Any, audio: NDArray[np.floating]) -> NDArray[np.float32]:
    """16 kHz audio (N,) -> Hz (N // 160 + 1,), frame t centred on sample 160 * t; the project's own resampling of the model's grid."""
    signal = np.asarray(audio, np.float32)
    limits = {"fmin": np.array(F0_MIN, np.float32), "fmax": np.array(F0_MAX, np.float32)}
    hertz, confidence = (
        np.asarray(values[0], np.float64) for values in session.run(["pitch", "confidence"], {"audio": signal[None], **limits})
    )
    with torch.device("meta"):  # no weights are needed for this, and drawing some would move the seed of training
        network = SwiftF0()
    return network.contour(np.where(confidence >= THRESHOLD, hertz, 0.0), signal).astype(np.float32)


def coarse_pitch(hertz: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Hz -> 1..255 on the mel scale, RVC-WebUI's formula and rounding; 1 for unvoiced."""
    low, high = (1127.0 * math.log(1.0 + edge / 700.0) for edge in (F0_MIN, F0_MAX))
    mel = 1127.0 * np.log(1.0 + np.asarray(hertz, np.float64) / 700.0)
    scaled = np.where(mel > 0, (mel - low) * COARSE_BINS / (high - low) + 1, mel)
    return np.rint(np.clip(scaled, 1, COARSE_BINS + 1)).astype(np.uint8)


def contours(model: Path, clips: Sequence[NDArray[np.int16]], workers: int | None = None) -> list[NDArray[np.float32]]:
    """The contours of many int16 clips, on up to `workers` processes (None: one a core)."""
    count = min(workers or os.cpu_count() or 1, len(clips) // CLIPS_FOR_A_WORKER)
    if count < 2:
        return [_work(str(model), clip) for clip in clips]
    with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(_work, [str(model)] * len(clips), clips, chunksize=4))


def _work(model: str, clip: NDArray[np.int16]) -> NDArray[np.float32]:
    if model not in _sessions:
        _sessions[model] = open_model(Path(model))
    return contour(_sessions[model], clip.astype(np.float32) / 32768)
