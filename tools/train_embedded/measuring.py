"""What the evaluation listens with: recognisers, a speaker encoder, pitch estimators, DNSMOS. None is a dependency of the project."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import soundfile
from numpy.typing import NDArray
from rvc_coreml.errors import UsageError
from rvc_coreml.runtime.pitch import F0_MAX, F0_MIN, estimate_pitch

RATE = 16000
Samples = NDArray[np.float32]
# Module -> its package. Resemblyzer asks for packages that it does not use here, and moonshine-voice is only read from.
PACKAGES = {
    "moonshine_cpp": "moonshine-cpp==0.1.4",
    "pocketsphinx": "pocketsphinx==5.1.1",
    "librosa": "librosa==0.11.0",
    "webrtcvad": "webrtcvad-wheels==2.0.14.post1",
    "speechmos": "speechmos==0.0.1.1",
    "swift_f0": "swift-f0==0.3.0",
}
BARE_PACKAGES = {"resemblyzer": "resemblyzer==0.1.4", "moonshine_voice": "moonshine-voice==0.1.5"}
INSTALL = f"pip install {' '.join(PACKAGES.values())} && pip install --no-deps {' '.join(BARE_PACKAGES.values())}"
LEAST_SPEECH = 0.5  # seconds: of a clip in which less is found, the speaker encoder gets all


def missing_packages() -> list[str]:
    """Modules that are not installed."""
    return [module for module in (*PACKAGES, *BARE_PACKAGES) if importlib.util.find_spec(module) is None]


def require_packages() -> None:
    """Raises UsageError naming every package that is missing, and how all are installed."""
    missing = missing_packages()
    if missing:
        raise UsageError(f"the evaluation needs packages that are not installed ({', '.join(missing)}): {INSTALL}")


def versions() -> dict[str, str]:
    names = [requirement.partition("==")[0] for requirement in (*PACKAGES.values(), *BARE_PACKAGES.values())]
    return {name: importlib.metadata.version(name) for name in names}


def package_folder(module: str) -> Path:
    """Where a package's files lie, without importing it."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(f"{module} is not installed: {INSTALL}")
    return Path(next(iter(spec.submodule_search_locations)))


class Recogniser(Protocol):
    def __call__(self, samples: Samples) -> str:
        """What is read in 16 kHz audio (N,)."""
        ...


class Moonshine:
    """moonshine-cpp's base-en model. It is asked through files: `transcribe` of 0.1.4 names a type that ctypes lacks."""

    def __init__(self) -> None:
        import moonshine_cpp  # pyright: ignore[reportMissingImports]

        self._model = moonshine_cpp.MoonshineModel()

    def __call__(self, samples: Samples) -> str:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "clip.wav"
            soundfile.write(path, samples, RATE, subtype="PCM_16")
            try:
                return str(self._model.transcribe_wav(str(path)))
            except UnicodeDecodeError as error:  # cut within a character, which happens to noise
                return error.object.decode("utf-8", "ignore")


class PocketSphinx:
    """pocketsphinx with its en-us model and language model. Made anew for each clip, since it adapts to what it has heard."""

    def __call__(self, samples: Samples) -> str:
        from pocketsphinx import Decoder  # pyright: ignore[reportMissingImports]

        decoder = Decoder(samprate=RATE, loglevel="FATAL")
        decoder.start_utt()
        decoder.process_raw((np.clip(samples, -1, 1) * 32767).astype(np.int16).tobytes(), full_utt=True)
        decoder.end_utt()
        found = decoder.hyp()
        return "" if found is None else str(found.hypstr)


RECOGNISERS: dict[str, Callable[[], Recogniser]] = {"moonshine": Moonshine, "pocketsphinx": PocketSphinx}


class Speakers:
    """Resemblyzer's speaker encoder: similarities are cosines of its embeddings, which have no negative entries."""

    def __init__(self) -> None:
        from resemblyzer import VoiceEncoder  # pyright: ignore[reportMissingImports]

        self._encoder: Any = VoiceEncoder("cpu", verbose=False)

    def embedding(self, samples: Samples) -> NDArray[np.float32]:
        """16 kHz audio (N,), its silences shortened -> (256,) of length 1."""
        from resemblyzer import normalize_volume, preprocess_wav  # pyright: ignore[reportMissingImports]
        from resemblyzer.hparams import audio_norm_target_dBFS  # pyright: ignore[reportMissingImports]

        if not np.abs(samples).max(initial=0.0):
            raise UsageError("silence has no speaker")
        speech = preprocess_wav(samples)
        if len(speech) < LEAST_SPEECH * RATE:
            speech = normalize_volume(samples, audio_norm_target_dBFS, increase_only=True)
        return np.asarray(self._encoder.embed_utterance(speech), np.float32)


def mean_embedding(embeddings: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """A speaker's, from those of several clips: (256,) of length 1."""
    mean = np.mean(embeddings, axis=0)
    return mean / np.linalg.norm(mean)


def quality(samples: Samples) -> dict[str, float]:
    """DNSMOS of 16 kHz audio (N,), 1 to 5: overall, signal, background, and the single score of the P.808 model."""
    from speechmos import dnsmos  # pyright: ignore[reportMissingImports]

    found = dnsmos.run(np.clip(samples, -1, 1), RATE)
    return {name: float(found[key]) for name, key in (("OVRL", "ovrl_mos"), ("SIG", "sig_mos"), ("BAK", "bak_mos"), ("P808", "p808_mos"))}


def harvest(samples: Samples) -> NDArray[np.float64]:
    """WORLD's harvest: Hz every 10 ms."""
    return estimate_pitch(samples, "harvest")


def swift_f0(samples: Samples) -> NDArray[np.float64]:
    """SwiftF0 by its author's own package: Hz every 16 ms, 0 where its confidence is below its own limit."""
    from swift_f0 import SwiftF0  # pyright: ignore[reportMissingImports]

    found = SwiftF0(threads=1).detect(samples, RATE, fmin=F0_MIN, fmax=F0_MAX)
    return np.where(found.confidence >= 0.5, found.pitch_hz, 0.0)


ESTIMATORS: dict[str, Callable[[Samples], NDArray[np.float64]]] = {"harvest": harvest, "swift_f0": swift_f0}
