from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.errors import UsageError
from rvc_coreml.runtime.pitch import f0_file
from rvc_coreml.runtime.pitch.f0_file import PitchTrack, read_f0_file

WEBUI = "0.00,100.0\n0.01,110.5\n0.02,0\n0.05,200"


def written(folder: Path, text: str | bytes, name: str = "f0.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(
    "text",
    [
        WEBUI,
        WEBUI + "\n\n",
        "\ufeff" + WEBUI,
        WEBUI.replace("\n", "\r\n"),
        WEBUI.replace(",", "\t"),
        WEBUI.replace(",", ";"),
        WEBUI.replace(",", " , "),
        WEBUI.replace(",", "  "),
        "time,frequency\n" + WEBUI,
        "# from a tool\nseconds\tHz\tconfidence\n" + WEBUI.replace(",", "\t").replace("\n", "\t0.9\n") + "\t0.9",
    ],
)
def test_every_form_of_the_lines_gives_the_same_track(tmp_path: Path, text: str) -> None:
    track = read_f0_file(written(tmp_path, text))
    np.testing.assert_array_equal(track.seconds, [0, 0.01, 0.02, 0.05])
    np.testing.assert_array_equal(track.hertz, [100, 110.5, 0, 200])


def test_arrays_are_read_in_either_form(tmp_path: Path) -> None:
    np.save(tmp_path / "hz.npy", np.array([100, 0, 120], np.float32))
    track = read_f0_file(tmp_path / "hz.npy")
    np.testing.assert_allclose(track.seconds, [0, 0.01, 0.02])
    np.testing.assert_array_equal(track.hertz, [100, 0, 120])
    np.save(tmp_path / "rows.npy", np.array([[0.5, 100], [0.7, 120]]))
    np.testing.assert_array_equal(read_f0_file(tmp_path / "rows.npy").seconds, [0.5, 0.7])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no line"),
        ("time,hz\n", "holds no line"),
        ("0,100\n0.01", r"line 2: '0\.01' is not 'seconds,Hz'"),
        ("0,100\nabc,1", "line 2: 'abc,1' is not"),
        ("0,x", "line 1: '0,x' is not"),
        ("time,hz\nmore,words\n0,1", "line 2: 'more,words'"),
        ("0,100\n0,110", "line 2: 0.0 s does not come after 0.0 s"),
        ("\n0.2,100\n0.1,110", "line 3: 0.1 s does not come after 0.2 s"),
        ("0,-1", r"line 1: a pitch of -1\.0 Hz is out of range, give 0 \(unvoiced\) to 8000"),
        ("0,9000", "line 1: a pitch of 9000"),
        ("0,nan", "line 1: a pitch of nan"),
        ("-1,100", "line 1: a time of -1"),
        ("inf,100", "line 1: a time of inf"),
        ("1e9,100", "line 1: a time of 1000000000"),
        (b"\xff\xfe\x00", "is not text"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        read_f0_file(written(tmp_path, text))
    assert str(tmp_path / "f0.csv") in str(caught.value)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((2, 3)), r"shape \(2, 3\) of float64"),
        (np.zeros(0), "shape"),
        (np.array(["a"]), "of <U1"),
        (np.zeros(3, complex), "complex128"),
        (np.array([100, -1.0]), "row 1: a pitch of -1"),
        (np.array([[0, 100], [0, 100.0]]), "row 1: 0.0 s does not come after"),
        (np.array([[np.nan, 100]]), "row 0: a time of nan"),
        (np.array([{}]), "is not a plain NumPy array"),
    ],
)
def test_a_bad_array_is_explained(tmp_path: Path, array: np.ndarray, said: str) -> None:
    np.save(tmp_path / "f0.npy", array, allow_pickle=True)
    with pytest.raises(UsageError, match=said):
        read_f0_file(tmp_path / "f0.npy")


def test_missing_oversized_and_foreign_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"nothing\.csv cannot be read: No such file"):
        read_f0_file(tmp_path / "nothing.csv")
    with pytest.raises(UsageError, match="is not a file"):
        read_f0_file(tmp_path)
    with pytest.raises(UsageError, match="is not a plain NumPy array"):
        read_f0_file(written(tmp_path, WEBUI, "text.npy"))
    monkeypatch.setattr(f0_file, "MAX_BYTES", 10)
    with pytest.raises(UsageError, match="more than the 10 that are read"):
        read_f0_file(written(tmp_path, WEBUI))


@given(step=st.floats(0.004, 0.3), points=st.integers(2, 40), pad=st.integers(0, 50), frames=st.integers(1, 400), seed=st.integers(0, 999))
@settings(max_examples=60)
def test_a_track_overwrites_as_upstream_does(step: float, points: int, pad: int, frames: int, seed: int) -> None:
    """RVC-WebUI's lines: np.interp over whole frames from the first time (0) to the last, from frame x_pad * 100 on."""
    random = np.random.default_rng(seed)
    table = np.stack([np.arange(points) * step, random.uniform(60, 900, points)], axis=1)
    pitch = random.uniform(60, 900, frames)
    count = np.floor(np.round((table[:, 0].max() - table[:, 0].min()) * 100, 6) + 1).astype(int)
    values = np.interp(list(range(count)), table[:, 0] * 100, table[:, 1])
    wanted = pitch.copy()
    room = wanted[pad : pad + len(values)].shape[0]
    wanted[pad : pad + len(values)] = values[:room]
    np.testing.assert_array_equal(PitchTrack(table[:, 0], table[:, 1]).laid_over(pitch, pad), wanted)


def test_a_track_that_begins_later_leaves_what_comes_before() -> None:
    track = PitchTrack(np.array([0.02, 0.04]), np.array([200.0, 220.0]))
    np.testing.assert_allclose(track.laid_over(np.full(8, 100.0), 1), [100, 100, 100, 200, 210, 220, 100, 100])
    np.testing.assert_allclose(track.laid_over(np.full(2, 100.0), 1), [100, 100])


def test_a_track_alone_makes_a_contour_whose_pads_mirror_it() -> None:
    track = PitchTrack(np.array([0.0, 0.03]), np.array([100.0, 130.0]))
    np.testing.assert_allclose(track.whole_contour(6), [100, 110, 120, 130, 0, 0])
    np.testing.assert_allclose(track.whole_contour(9, 2), [120, 110, 100, 110, 120, 130, 0, 130, 120])
    for frames in range(8):
        assert track.whole_contour(frames, 3).shape == (frames,)
