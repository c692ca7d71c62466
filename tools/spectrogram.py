"""Pictures of sounds."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from scipy import signal

mpl.use("Agg")
from matplotlib import pyplot as plt

RANGE_DB = 80
MAX_HZ = 8000
WINDOW_SECONDS, HOP_SECONDS = 0.032, 0.008


def draw_spectrograms(path: Path, sounds: list[tuple[str, NDArray[np.float32], int]]) -> None:
    """One panel for each (title, samples (N,), rate in Hz), on a common scale of decibels below each sound's peak."""
    figure, axes = plt.subplots(len(sounds), 1, figsize=(11, 3.2 * len(sounds)), sharex=True, squeeze=False, layout="constrained")
    image = None
    for axis, (title, samples, rate) in zip(axes[:, 0], sounds, strict=True):
        window = int(WINDOW_SECONDS * rate)
        frequencies, times, power = signal.spectrogram(
            samples, rate, window="hann", nperseg=window, noverlap=window - int(HOP_SECONDS * rate), mode="magnitude"
        )
        decibels = 20 * np.log10(np.maximum(power, 1e-9))
        image = axis.pcolormesh(
            times, frequencies, decibels - decibels.max(), vmin=-RANGE_DB, vmax=0, cmap="magma", shading="auto", rasterized=True
        )
        axis.set_ylim(0, min(MAX_HZ, rate / 2))
        axis.set_ylabel("Hz")
        axis.set_title(f"{title} ({rate} Hz)", loc="left", fontsize=10)
    axes[-1, 0].set_xlabel("seconds")
    if image is not None:
        figure.colorbar(image, ax=axes[:, 0], label="dB below peak")
    figure.savefig(path, dpi=110)
    plt.close(figure)
