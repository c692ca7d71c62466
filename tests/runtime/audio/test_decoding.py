"""Files that libsndfile, PyAV and ffmpeg read, and files that none of them does."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from rvc_coreml.errors import AudioError
from rvc_coreml.runtime.audio import decoding
from support.sounds import RATE, frequency_and_level, read, tone


@pytest.fixture(params=["pyav", "ffmpeg"])
def through(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Either way to FFmpeg's libraries, as the only one."""
    if request.param == "pyav":
        pytest.importorskip("av", reason="PyAV is not installed")
    elif shutil.which("ffmpeg") is None:
        pytest.skip("the ffmpeg program is not installed")
    decoder = {"pyav": decoding._pyav, "ffmpeg": decoding._ffmpeg}[request.param]
    monkeypatch.setattr(decoding, "_ffmpegs", lambda: [decoder])
    return request.param


@pytest.fixture
def nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without PyAV and ffmpeg."""
    monkeypatch.setattr(decoding, "_ffmpegs", list)


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg", "mp3", "raw", "txt", ""])
@pytest.mark.parametrize(
    "content", [b"", b"hello", b"RIFF", bytes(1000), np.random.default_rng(0).bytes(3000)], ids=["empty", "text", "riff", "zeros", "random"]
)
def test_what_is_no_audio_is_refused(tmp_path: Path, content: bytes, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    path.write_bytes(content)
    with pytest.raises(AudioError, match="cannot be read as audio"):
        read(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"none\.wav does not exist"):
        read(tmp_path / "none.wav")
    with pytest.raises(AudioError, match="cannot be read as audio"):
        read(tmp_path)


def test_a_path_that_cannot_exist_is_refused() -> None:
    with pytest.raises(AudioError):
        read(Path("x" * 5000))


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_a_truncated_wav_gives_what_is_left(tmp_path: Path, share: float) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(RATE), RATE)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    samples, seconds = read(path)
    assert seconds == pytest.approx(0.8 * share, abs=0.01)
    assert len(samples) == round(seconds * RATE)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_a_truncated_flac_is_refused_with_the_place(tmp_path: Path, share: float) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 3 * RATE), RATE)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(AudioError, match=r"a\.flac is damaged: decoding failed after \d\.\d s"):
        read(path)


@pytest.mark.parametrize("ending", ["ogg", "mp3"])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.95])
def test_truncated_compressed_audio_is_refused_or_shorter(tmp_path: Path, ending: str, share: float) -> None:
    path = tmp_path / f"a.{ending}"
    soundfile.write(path, tone(RATE, 5), RATE)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    message = ""
    try:
        samples, seconds = read(path)
    except AudioError as error:
        message = str(error)
        samples, seconds = np.zeros(0), 0.0
    assert (str(path) in message) or (0 < seconds < 5)
    assert len(samples) == pytest.approx(seconds * RATE, abs=1)


def test_a_wav_of_unknown_length_is_read_to_its_end(tmp_path: Path) -> None:
    """As a program writes one into a pipe."""
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(RATE), RATE)
    data = bytearray(path.read_bytes())
    place = data.find(b"data")
    data[4:8] = data[place + 4 : place + 8] = b"\xff" * 4
    path.write_bytes(data)
    assert read(path)[1] == pytest.approx(0.8)


def flac_claiming(path: Path, samples: int) -> None:
    """A FLAC file of 0.8 s whose header claims another number of samples (36 bits)."""
    soundfile.write(path, tone(RATE), RATE)
    data = bytearray(path.read_bytes())
    data[21] = data[21] & 0xF0 | samples >> 32
    data[22:26] = (samples & 0xFFFFFFFF).to_bytes(4, "big")
    path.write_bytes(data)


def test_a_flac_of_unknown_length_is_refused_with_the_remedy(tmp_path: Path, nothing_more: None) -> None:
    flac_claiming(tmp_path / "a.flac", 0)
    with pytest.raises(AudioError, match="save it again"):
        read(tmp_path / "a.flac")


def test_a_flac_of_unknown_length_is_read_by_those_who_can(tmp_path: Path, through: str) -> None:
    flac_claiming(tmp_path / "a.flac", 0)
    assert read(tmp_path / "a.flac")[1] == pytest.approx(0.8)


def test_a_flac_that_claims_too_much_is_refused(tmp_path: Path) -> None:
    flac_claiming(tmp_path / "a.flac", (1 << 36) - 1)
    with pytest.raises(AudioError, match=r"a\.flac is damaged"):
        read(tmp_path / "a.flac")


MEDIA = [
    *((name, "aac", 44100, "stereo") for name in ("a.m4a", "a.mp4", "a.mov", "a.aac", "a.ts", "a.mkv")),
    ("a.m4a", "aac", 22050, "mono"),
    ("a.m4a", "alac", 96000, "stereo"),
    ("a.webm", "libopus", 48000, "stereo"),
    ("a.opus", "libopus", 48000, "mono"),
    ("a.ac3", "ac3", 48000, "5.1"),
    ("a.mkv", "flac", 192000, "stereo"),
    ("a.mov", "pcm_s32le", 8000, "stereo"),
    ("a.avi", "pcm_u8", 16000, "mono"),
    ("a.mkv", "pcm_f64le", 44100, "mono"),
    ("a", "aac", 48000, "stereo"),
    ("named.wav", "aac", 48000, "stereo"),
]


def write_media(path: Path, codec: str, rate: int, layout: str, samples: np.ndarray, container: str | None = None) -> None:
    """Mono samples in every channel of a file that FFmpeg's libraries make."""
    av = pytest.importorskip("av", reason="PyAV writes the files")
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate, layout=layout)
        channels = stream.codec_context.layout.nb_channels
        frame = av.AudioFrame.from_ndarray(np.repeat(samples[None].astype(np.float32), channels, 0), format="fltp", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        fitting = av.AudioResampler(format=stream.codec_context.format or "fltp", layout=layout, rate=rate)
        for part in [*fitting.resample(frame), *fitting.resample(None), None]:
            for packet in stream.encode(part):
                file.mux(packet)


@pytest.mark.parametrize(("name", "codec", "rate", "layout"), MEDIA)
def test_what_libsndfile_does_not_know_is_read(tmp_path: Path, through: str, name: str, codec: str, rate: int, layout: str) -> None:
    container = {"": "mp4", ".wav": "mp4", ".aac": "adts"}.get(Path(name).suffix)
    write_media(tmp_path / name, codec, rate, layout, tone(rate, 2), container)
    samples, seconds = read(tmp_path / name)
    exact = codec in ("alac", "flac", "libopus") or codec.startswith("pcm") or name.endswith(("m4a", "mp4", "mov"))
    assert seconds == pytest.approx(2, abs=1e-6 if exact else 0.1)
    assert len(samples) == pytest.approx(seconds * RATE, abs=1)
    hertz, level = frequency_and_level(samples)
    assert hertz == pytest.approx(1000, abs=0.5)
    # FFmpeg's own mixer leaves the low channel of 5.1 empty when it fills it from a full-range one
    assert level == pytest.approx(0.5, rel=0.2 if layout == "5.1" else 0.02)


def test_a_video_without_sound_is_refused(tmp_path: Path, through: str) -> None:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "a.mp4"), "w") as file:
        stream = file.add_stream("mpeg4", rate=24)
        stream.width = stream.height = 32
        for packet in [*stream.encode(av.VideoFrame(32, 32, "yuv420p")), *stream.encode(None)]:
            file.mux(packet)
    with pytest.raises(AudioError, match=r"a\.mp4 cannot be read as audio"):
        read(tmp_path / "a.mp4")


def test_blocks_of_decoded_frames_do_not_show(tmp_path: Path, through: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_media(tmp_path / "a.mkv", "pcm_s16le", 44100, "stereo", np.random.default_rng(0).uniform(-0.9, 0.9, 50000))
    whole = read(tmp_path / "a.mkv")
    monkeypatch.setattr(decoding, "BLOCK", 5000)
    pieces = read(tmp_path / "a.mkv")
    assert pieces[1] == whole[1] == 50000 / 44100
    np.testing.assert_allclose(pieces[0], whole[0], atol=1e-6)


@pytest.mark.parametrize("name", ["-i.m4a", "--help", "http:a b 'c' $(d) %d\n;e.m4a", "ä☃.m4a", "pipe:0"])
def test_no_name_means_anything_but_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, through: str, name: str) -> None:
    write_media(tmp_path / "plain.m4a", "aac", 44100, "stereo", tone(44100))
    (tmp_path / "plain.m4a").rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert read(Path(name))[1] == pytest.approx(0.8)
    assert read(tmp_path / name)[1] == pytest.approx(0.8)


PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile '{}'\n",
    "description": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=a\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 9 RTP/AVP 0\n",
}


@pytest.mark.parametrize("ending", ["m4a", "m3u8", "ffconcat", "sdp"])
@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_playlist_leads_nowhere(tmp_path: Path, through: str, kind: str, ending: str) -> None:
    write_media(tmp_path / "other.ts", "aac", 44100, "stereo", tone(44100))
    path = tmp_path / f"a.{ending}"
    path.write_text(PLAYLISTS[kind].format("other.ts"))
    with pytest.raises(AudioError, match="cannot be read as audio"):
        read(path)


def test_damage_midway_is_reported_with_its_place(tmp_path: Path, through: str) -> None:
    path = tmp_path / "a.mkv"
    write_media(path, "flac", 44100, "stereo", np.random.default_rng(0).uniform(-0.5, 0.5, 88200))
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = bytes((7 * value + 13) % 256 for value in data[middle : middle + 400])
    path.write_bytes(data)
    with pytest.raises(AudioError, match=r"a\.mkv is damaged: decoding failed after (0\.[89]|1\.0) s"):
        read(path)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
@pytest.mark.parametrize("name", ["a.m4a", "a.webm", "a.aac"])
def test_truncated_media_is_refused_or_shorter(tmp_path: Path, through: str, name: str, share: float) -> None:
    path = tmp_path / name
    write_media(path, "libopus" if name == "a.webm" else "aac", 48000, "stereo", tone(48000, 3))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    message = ""
    try:
        samples, seconds = read(path)
    except AudioError as error:
        message = str(error)
        samples, seconds = np.zeros(0), 0.0
    assert (str(path) in message) or (0 < seconds < 3)
    assert len(samples) == pytest.approx(seconds * RATE, abs=1)


@pytest.mark.parametrize("content", [b"hello", bytes(3000)])
def test_without_pyav_and_ffmpeg_the_sentence_names_both(tmp_path: Path, nothing_more: None, content: bytes) -> None:
    (tmp_path / "a.m4a").write_bytes(content)
    with pytest.raises(AudioError) as raised:
        read(tmp_path / "a.m4a")
    assert "rvc-coreml[media]" in str(raised.value)
    assert "ffmpeg program" in str(raised.value)


def test_pyav_comes_before_ffmpeg_and_either_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    present: set[str] = set()
    monkeypatch.setattr(decoding.importlib.util, "find_spec", lambda name: name in present or None)
    monkeypatch.setattr(decoding.shutil, "which", lambda name: name if name in present else None)
    assert decoding._ffmpegs() == []
    present.add("ffmpeg")
    assert decoding._ffmpegs() == [decoding._ffmpeg]
    present.add("av")
    assert decoding._ffmpegs() == [decoding._pyav]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a program named ffmpeg on the PATH that does what is given, with `channels` floats in AU's header."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(decoding, "_ffmpegs", lambda: [decoding._ffmpeg])

    def install(body: str) -> None:
        script = folder / "ffmpeg"
        script.write_text(f"#!{sys.executable} -SE\nimport sys, struct, array\nout = sys.stdout.buffer\n{body}\n")
        script.chmod(0o755)

    return install


HEADER = "out.write(struct.pack('>4s5I', b'.snd', 32, 0xFFFFFFFF, 6, 8000, 2) + bytes(8))\n"


def test_ffmpeg_is_asked_for_floats_of_the_first_track_of_a_plain_file(tmp_path: Path, program: Callable[[str], None]) -> None:
    program(
        f"open({str(tmp_path / 'asked')!r}, 'w').write(repr(sys.argv[1:]))\n"
        + HEADER
        + "a = array.array('f', [0.25, 0.75] * 40000); a.byteswap(); out.write(a.tobytes() + b'odd')"
    )
    (tmp_path / "a.m4a").write_bytes(b"media")
    stream_seconds = 40000 / 8000
    samples, seconds = read(tmp_path / "a.m4a")
    assert seconds == stream_seconds
    assert len(samples) == 5 * RATE
    asked = (tmp_path / "asked").read_text()
    assert f"'-i', 'file:{tmp_path / 'a.m4a'}'" in asked
    assert "'-protocol_whitelist', 'file,pipe', '-format_whitelist'" in asked


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("sys.exit('[mov @ 0x12ab] moov atom not found\\nmore of it')", r"cannot be read as audio: ffmpeg .*\(moov atom not found\)$"),
        ("sys.exit(1)", "cannot be read as audio: ffmpeg does not read it .*it does not say why"),
        ("sys.exit(\"Format not on whitelist 'aac'\")", "cannot be read as audio: .*it is not a plain audio or video file"),
        ("", "cannot be read as audio"),
        ("out.write(b'RIFF' * 10)", "cannot be read as audio"),
        (HEADER, "holds no audio samples"),
        (HEADER + "out.write(bytes(8 * 8000))\nsys.exit('bad\\x07 data')", "is damaged: decoding failed after 1.0 s .bad"),
        (HEADER.replace("8000, 2", "8000, 9"), "9 channels"),
        (HEADER.replace("8000, 2", "999, 2"), "999 Hz"),
        (HEADER.replace("8000, 2", "8000, 0"), "cannot be read as audio"),
    ],
)
def test_what_ffmpeg_fails_at_is_one_sentence(tmp_path: Path, program: Callable[[str], None], body: str, message: str) -> None:
    program(body)
    (tmp_path / "a.m4a").write_bytes(b"media")
    with pytest.raises(AudioError, match=message) as raised:
        read(tmp_path / "a.m4a")
    assert "\n" not in str(raised.value)


def test_an_ffmpeg_that_does_not_start_is_one_sentence(tmp_path: Path, program: Callable[[str], None]) -> None:
    program("")
    (tmp_path / "bin" / "ffmpeg").write_text("#!/nowhere/at/all\n")
    (tmp_path / "a.m4a").write_bytes(b"media")
    with pytest.raises(AudioError, match="does not start"):
        read(tmp_path / "a.m4a")


def test_ffmpeg_is_ended_when_reading_is_given_up(tmp_path: Path, program: Callable[[str], None]) -> None:
    """It writes without end; NaN ends the reading."""
    program(HEADER + "nan = array.array('f', [float('nan')] * 100000); nan.byteswap()\nwhile True: out.write(nan.tobytes())")
    (tmp_path / "a.m4a").write_bytes(b"media")
    with pytest.raises(AudioError, match=r"NaN or infinite samples, the first at 0\.000 s"):
        read(tmp_path / "a.m4a")
