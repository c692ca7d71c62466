"""The steps `vocoder` and `voice` on a made-up target, small and on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import wave
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rvc_coreml.models import Hubert, HubertConfig, load_voice
from rvc_coreml.runtime.retrieval import read_index
from support.target_speech import write_target
from train_embedded import __main__ as command
from train_embedded import adversarial, session, voice
from train_embedded.adversarial import rate_at
from train_embedded.hugging_face import write_hugging_face
from train_embedded.index import build_index

ENCODER = HubertConfig(
    conv_channels=(16,) * 7, hidden=32, layers=2, heads=2, feed_forward=48, position_kernel=16, position_groups=4, projection=256
)
SMALL = ["--device", "cpu", "--size", "tiny", "--batch", "3", "--segment", "20", "--workers", "1", "--sample-minutes", "9"]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    write_target(tmp_path)
    return tmp_path


def write_encoder(work: Path) -> None:
    torch.manual_seed(0)
    (work / "encoder").mkdir()
    write_hugging_face(Hubert(ENCODER), work / "encoder" / "hf")


def vocoder(work: Path, *options: str) -> int:
    return command.main(["vocoder", "--work", str(work), *SMALL, "--window", "40", *options])


def whole_voice(work: Path, *options: str) -> int:
    return command.main(["voice", "--work", str(work), *SMALL, "--window", "60", "--copies", "1", *options])


def log(work: Path, step: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (work / step / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def report_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adversarial, "REPORT_SECONDS", 0.0)
    monkeypatch.setattr(adversarial, "CHECKPOINT_SECONDS", 0.0)


def test_the_vocoder_learns_and_leaves_what_it_should(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report_always(monkeypatch)
    assert vocoder(work, "--steps", "30", "--adversarial-from", "0.9", "--rate", "2e-3") == 0
    lines = log(work, "vocoder")
    assert lines[0]["clips"] == 4
    assert lines[0]["held_out"] == 1
    assert 85 < lines[0]["lowest_pitch"] < lines[0]["highest_pitch"] < 160
    mels = [line["mel"] for line in lines if "mel" in line]
    assert np.mean(mels[-5:]) < 0.8 * np.mean(mels[:3])
    assert lines[-1]["step"] == 30
    assert {line["phase"] for line in lines[1:]} == {"reconstruction", "adversarial"}
    assert lines[-1]["held_out_mel"] > 0
    with wave.open(str(work / "vocoder" / "samples" / "000030_0.wav")) as made:
        assert made.getframerate() == 32000
        assert made.getnframes() > 32000
    assert (work / "vocoder" / "samples" / "original_0.wav").is_file()


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_exactly(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report_always(monkeypatch)
    options = ("--steps", "4", "--adversarial-from", "0.25")
    assert vocoder(work, *options) == 0
    whole = torch.load(work / "vocoder" / "last.pt", weights_only=True)
    with monkeypatch.context() as patch:
        step = adversarial.Stepper.__call__
        calls: list[int] = []

        def stopping(self: adversarial.Stepper) -> adversarial.Losses:
            if len(calls) == 2:
                raise KeyboardInterrupt
            calls.append(1)
            return step(self)

        patch.setattr(adversarial.Stepper, "__call__", stopping)
        with pytest.raises(KeyboardInterrupt):
            vocoder(work, *options)
    assert torch.load(work / "vocoder" / "last.pt", weights_only=True)["step"] == 2
    assert vocoder(work, *options, "--resume") == 0
    resumed = torch.load(work / "vocoder" / "last.pt", weights_only=True)
    assert resumed["step"] == 4
    for part in ("synthesizer", "posterior", "discriminators", "averaged"):
        for name, value in whole[part].items():
            assert torch.equal(resumed[part][name], value), f"{part} {name}"


@pytest.mark.slow
def test_the_minutes_are_kept_with_everything_written(work: Path) -> None:
    started = time.monotonic()
    assert vocoder(work, "--minutes", "0.1", "--adversarial-from", "1") == 0
    assert time.monotonic() - started < 15
    assert (work / "vocoder" / "last.pt").is_file()
    assert log(work, "vocoder")[-1]["step"] >= 1


def test_the_voice_learns_loads_in_the_project_and_speaks(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report_always(monkeypatch)
    assert vocoder(work, "--steps", "4") == 0
    write_encoder(work)
    monkeypatch.setattr(voice, "ALIGNMENT_UNTIL", 0.7)
    assert whole_voice(work, "--steps", "20", "--rate", "2e-3") == 0
    lines = log(work, "voice")
    divergences = [line["kl"] for line in lines if line.get("phase") == "alignment"]
    assert np.mean(divergences[-3:]) < 0.7 * divergences[0]
    assert lines[-1]["phase"] == "joint"
    assert {"mel", "stft", "kl", "discriminators", "fooled", "features", "held_out_mel"} <= set(lines[-1])

    loaded = load_voice(work / "voice" / "voice.pth")
    assert (loaded.version, loaded.has_f0, loaded.sample_rate) == ("v1", True, 32000)
    frames, config = 50, loaded.config
    audio = loaded.synthesizer.infer(
        torch.randn(1, frames, 256),
        torch.full((1, frames), 40),
        torch.full((1, frames), 120.0),
        0,
        torch.randn(1, config.inter_channels, frames),
        torch.randn(1, frames * config.samples_per_frame, 1),
    )
    assert audio.shape == (1, 1, frames * 320)
    assert audio.std() > 1e-4
    content = torch.load(work / "voice" / "voice.pth", weights_only=True)
    assert not any(name.startswith("enc_q") for name in content["weight"])
    assert {value.dtype for value in content["weight"].values()} == {torch.float16}

    features = np.load(work / "voice" / "features.npy")
    assert features.dtype == np.float16
    assert features.shape[1] == 256
    assert abs(len(features) - lines[0]["minutes_of_speech"] * 60 * 50) <= 4  # half a frame or less of each clip is left out


def test_a_stopped_voice_goes_on_exactly(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report_always(monkeypatch)
    assert vocoder(work, "--steps", "1") == 0
    write_encoder(work)
    options = ("--steps", "4")
    assert whole_voice(work, *options) == 0
    whole = torch.load(work / "voice" / "last.pt", weights_only=True)
    saved = session.Session.save

    def once(self: session.Session, state: dict[str, Any]) -> None:
        saved(self, state)
        if self.step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(session.Session, "save", once)
        with pytest.raises(KeyboardInterrupt):
            whole_voice(work, *options)
    assert whole_voice(work, *options, "--resume") == 0
    resumed = torch.load(work / "voice" / "last.pt", weights_only=True)
    for name, value in whole["averaged"].items():
        assert torch.equal(resumed["averaged"][name], value), name


def test_nothing_that_the_training_machine_lacks_is_imported() -> None:
    missing = ("coremltools", "faiss", "soundfile", "scipy", "soxr", "click", "rich", "pyworld", "tqdm", "psutil", "huggingface_hub")
    code = f"""
import sys
sys.modules.update(dict.fromkeys({missing!r}))
from train_embedded import index, vocoder, voice
from rvc_coreml.models.checkpoint import hubert
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(voice.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--minutes", "0"), "more than 0"),
        (("--steps", "0"), "at least 1"),
        (("--steps", "1", "--segment", "50"), "no longer than --window"),
        (("--steps", "1", "--pitch-model", "nowhere.onnx"), "nowhere.onnx is not there"),
    ],
)
def test_options_that_cannot_be_used(work: Path, options: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert vocoder(work, *options) != 0
    assert said in capsys.readouterr().err


def test_missing_steps_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert vocoder(tmp_path, "--steps", "1") != 0
    assert "run the step generate first" in capsys.readouterr().err
    write_target(tmp_path)
    assert whole_voice(tmp_path, "--steps", "1") != 0
    assert "run the step encoder first" in capsys.readouterr().err
    write_encoder(tmp_path)
    assert whole_voice(tmp_path, "--steps", "1") != 0
    assert "run the step vocoder first" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_device_is_one_sentence(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert vocoder(work, "--steps", "1", "--device", "cuda") != 0
    assert "no CUDA device" in capsys.readouterr().err


def test_the_rate_rises_and_falls() -> None:
    rates = [rate_at(share, 1.0) for share in np.linspace(0, 1, 101)]
    assert max(rates) == pytest.approx(1.0, abs=0.01)
    assert rates[0] < 0.1
    assert rates[-1] == pytest.approx(adversarial.LAST_RATE)
    assert all(later <= earlier for earlier, later in pairwise(rates[3:]))


def test_an_index_is_small_and_loads_in_the_project(tmp_path: Path) -> None:
    features = np.random.default_rng(0).standard_normal((1500, 256)).astype(np.float16)
    build_index(features, tmp_path / "whole.index")
    build_index(features, tmp_path / "small.index", most=400)
    assert read_index(tmp_path / "whole.index").count == 1500
    assert read_index(tmp_path / "small.index", 256).count == 400
    with pytest.raises(ValueError, match="at least 39"):
        build_index(features[:10], tmp_path / "none.index")
