"""`rvc-coreml validate --windows` as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from rvc_coreml.runtime.library import Library
from support.cli import one_sentence, rvc, tree


def test_a_table_a_picture_and_json_say_the_same(small_library: Path, tmp_path: Path, speech: NDArray[np.float32]) -> None:
    audio, picture, before = tmp_path / "two.wav", tmp_path / "windows.png", tree(small_library)
    soundfile.write(audio, speech[:32000], 16000)
    chosen = ["validate", small_library, "--windows", "--audio", audio, "--voice", "v1"]
    shown = rvc(*chosen, "--plot", picture)
    assert shown.exit_code == 0, shown.output
    found = json.loads(rvc(*chosen, "--json").stdout)
    assert (found["audio"], found["seconds"]) == (str(audio), 2.0)
    assert [(stage["component"], stage["stage"], stage["frames"]) for stage in found["stages"]] == [
        ("content encoder", "content_encoder", 99),
        ("voice 'v1'", "text_encoder", 198),
    ]
    rows = [row for stage in found["stages"] for row in stage["rows"]]
    measured = [row["snr_db"] for row in rows if row["windows"] > 1]
    assert len(measured) >= 5
    for value in measured:
        assert f"{value:.1f} dB" in shown.stdout
    own = [row for row in rows if row["in_library"]]
    entry = Library.open(small_library).voice("v1").manifest.stages["text_encoder"]
    assert (entry.window, entry.context) in [(row["window"], row["context"]) for row in own]
    assert shown.stdout.count("in the library") == len(own)
    assert shown.stdout.count("holds the clip") == sum(row["windows"] == 1 for row in rows)
    assert f"{audio} lasts 2.0 s: it can tell about shorter windows only" in shown.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert tree(small_library) == before


def test_without_a_file_the_speech_that_comes_along_says_how_short_it_is(small_library: Path) -> None:
    found = json.loads(rvc("validate", small_library, "--windows", "--stage", "content_encoder", "--json").stdout)
    assert [stage["stage"] for stage in found["stages"]] == ["content_encoder"]
    assert found["notes"][0] == "the speech that comes with rvc-coreml lasts 1.2 s: it can tell about shorter windows only"
    assert "give --audio with more than" in found["notes"][1]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--audio", "song.wav"], "--audio needs --windows"),
        (["--plot", "windows.png"], "--plot needs --windows"),
        (["--windows", "--strict"], "--strict does not go with --windows"),
        (["--windows", "--backend", "torch"], "--backend does not go with --windows"),
        (["--windows", "--stage", "flow"], "flow has windows without error"),
        (["--windows", "--plot", "windows.txt"], "windows.txt has to end in .png, .svg, .pdf"),
        (["--windows", "--audio", "nothing.wav"], "nothing.wav"),
        (["--windows", "--voice", "nobody"], "nobody"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_does_not_go_together_is_one_sentence(small_library: Path, arguments: list[str], sentence: str) -> None:
    assert sentence in one_sentence(rvc("validate", small_library, *arguments))
