"""Memory of long files: what a conversion keeps mapped, and (slow) the command itself with an interrupt."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from measure_long_file import LIMIT, SHORT, left_behind, measure, narrow_library, write_recording
from numpy.typing import NDArray
from rvc_coreml.runtime.audio import OutputBuffer, read_recording, storage
from rvc_coreml.runtime.converter import VoiceConverter
from rvc_coreml.runtime.options import ConversionOptions
from rvc_coreml.runtime.segments import LONGEST, SAMPLE_RATE


def mapped_bytes() -> int:
    """Resident pages of files that have no name any more: the temporary files of clips and outputs."""
    resident, counted = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            counted = line.endswith("(deleted)") and "/dev/" not in line
        elif counted and line.startswith("Rss:"):
            resident += 1024 * int(line.split()[1])
    return resident


@pytest.mark.skipif(sys.platform != "linux", reason="counts pages in /proc")
def test_of_a_mapped_clip_only_the_segment_at_work_stays_in_memory(
    small_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_recording(tmp_path / "long.wav", 120)
    monkeypatch.setattr(storage, "IN_MEMORY", 0)
    converter = VoiceConverter(small_library, "v2", "torch", print)
    held: dict[str, list[int]] = {"pitch": [], "voice": []}
    options = ConversionOptions(f0_method="dio", rms_mix_rate=1.0)
    before = mapped_bytes()
    with read_recording(tmp_path / "long.wav") as recording, OutputBuffer(converter.sample_rate) as output:
        assert isinstance(recording.samples, np.memmap)
        converter.convert_recording(recording, output, options, progress=lambda step, _share: held[step].append(mapped_bytes() - before))
        assert output.samples / output.rate == pytest.approx(120, abs=0.05)
    assert len(held["voice"]) >= 5
    assert max(held["voice"]) < 4 * 1.4 * LONGEST < 4 * recording_samples(120) / 2


def recording_samples(seconds: float) -> int:
    return round(seconds * SAMPLE_RATE)


def test_a_long_recording_is_written_with_its_length_and_repeats_nothing_exactly(tmp_path: Path) -> None:
    write_recording(tmp_path / "a.wav", 61.5)
    with read_recording(tmp_path / "a.wav") as recording:
        samples: NDArray[np.float32] = recording.samples.copy()
    assert len(samples) == recording_samples(61.5)
    frames = samples[: len(samples) // 160 * 160].reshape(-1, 160)
    assert len(np.unique(frames, axis=0)) > 0.98 * len(frames)


def test_whatever_an_interrupt_leaves_is_named(tmp_path: Path) -> None:
    output, temporary = tmp_path / "out", tmp_path / "tmp"
    output.mkdir()
    temporary.mkdir()
    (output / SHORT).touch()
    assert left_behind(output, temporary, {SHORT}) == []
    (output / ".1234.wav").touch()
    (temporary / "spool").touch()
    assert [problem.split()[0] for problem in left_behind(output, temporary, {SHORT, "other.wav"})] == [".1234.wav", "other.wav", "spool"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
def test_twenty_minutes_stay_within_the_limit_and_an_interrupt_leaves_nothing_behind(tmp_path: Path) -> None:
    library, voice = narrow_library(tmp_path)
    found = measure(tmp_path, library, voice, minutes=20, after=1.0)
    print(found)
    assert found.problems == []
    assert 0 < found.above < LIMIT / 2  # the limit is meant for three hours
    assert found.interrupted_at_percent < 100
