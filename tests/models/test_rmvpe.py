"""RMVPE against upstream's recorded numbers, and against the same network written a second time without shortcuts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rvc_coreml.golden_outputs
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rvc_coreml.errors import IncompleteCheckpoint, WrongCheckpointKind
from rvc_coreml.models.checkpoint.pitch import load_pitch
from rvc_coreml.models.mel import RMVPE_MEL, log_mel
from rvc_coreml.models.rmvpe import THRESHOLD, Rmvpe, RmvpeConfig, decode_local_average
from safetensors.torch import save_file
from support.rmvpe_checkpoints import NARROW, rmvpe_shapes, rmvpe_state, write_rmvpe
from torch import Tensor

from . import reference_rmvpe as reference

UPSTREAM = Path(rvc_coreml.golden_outputs.__file__).parent / "upstream"


@pytest.fixture(scope="module")
def recorded() -> dict[str, NDArray[np.generic]]:
    with np.load(UPSTREAM / "rmvpe.npz", allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Rmvpe:
    return load(write_rmvpe(tmp_path_factory.mktemp("rmvpe") / "rmvpe.pt"))


def load(path: Path) -> Rmvpe:
    network = load_pitch(path, "rmvpe").network
    assert isinstance(network, Rmvpe)
    return network


def spectrogram(frames: int, seed: int = 0) -> Tensor:
    """Log-mel (1, 128, frames) with the range of real ones."""
    return torch.randn(1, 128, frames, generator=torch.Generator().manual_seed(seed)) * 2 - 4


def test_entries_and_shapes_are_upstreams() -> None:
    listed = json.loads((UPSTREAM / "checkpoint_shapes.json").read_text())["rmvpe"]
    assert rmvpe_shapes(RmvpeConfig()) == {name: tuple(shape) for name, shape in listed.items()}


def test_mel_equals_the_formulas_in_float64_where_float32_can(recorded: dict[str, np.ndarray]) -> None:
    """float32's FFT costs 1.4e-5 of a logarithm in the quietest bins, in upstream's recording as here."""
    audio = recorded["audio_0"].astype(np.float64) / 32768
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(audio, 512, mode="reflect"), 1024)[::160]
    magnitude = np.abs(np.fft.rfft(frames * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)))).T
    edges = 700 * (10 ** (np.linspace(*(2595 * np.log10(1 + np.array([30, 8000]) / 700)), 130) / 2595) - 1)
    hertz = np.arange(513) * 16000 / 1024
    exact = np.zeros((128, magnitude.shape[1]))
    for low, centre, high, row in zip(edges, edges[1:], edges[2:], exact, strict=False):
        weights = np.interp(hertz, [low, centre, high], [0, 2 / (high - low), 0])
        row[:] = np.log(np.maximum(weights @ magnitude, 1e-5))
    ours = log_mel(torch.from_numpy(audio.astype(np.float32))[None], RMVPE_MEL)[0].numpy()
    for values in (ours, recorded["mel_0"]):
        assert values.shape == exact.shape
        assert np.abs(values - exact).max() < 2e-5
        assert np.abs(values - exact).mean() < 1e-6


def test_full_network_reproduces_upstream(recorded: dict[str, np.ndarray], tmp_path: Path) -> None:
    """As near to the formulas in float64 as upstream's recording is, whose own rounding reaches 1.2e-5.

    These weights make features near 1000, so that any two float32 runs of one network differ by about that: upstream's
    own operations in upstream's own order, run again on another processor, lie 1.2e-5 to 2.5e-5 from the recording.
    """
    path = write_rmvpe(tmp_path / "rmvpe.pt", RmvpeConfig(), int(recorded["seed"]))
    network, mel = load(path), torch.from_numpy(recorded["mel_0"])[None]
    state = {name: value.double() for name, value in rmvpe_state(RmvpeConfig(), int(recorded["seed"])).items()}
    with torch.inference_mode():
        ours = network(mel)[0].double().numpy()
        exact = reference.salience(state, mel.double())[0].numpy()
    theirs = recorded["salience_0"].astype(np.float64)
    assert ours.shape == theirs.shape
    assert np.abs(theirs - exact).max() < 1.3e-5
    assert np.abs(ours - exact).max() < 2 * np.abs(theirs - exact).max()
    assert rms(ours - exact) < 1.5 * rms(theirs - exact)
    assert rms(ours - theirs) < 3e-6


def rms(values: NDArray[np.floating]) -> float:
    return float(np.sqrt(np.mean(values**2)))


@settings(max_examples=12, deadline=None)
@given(frames=st.integers(1, 90), end_padding=st.sampled_from(["constant", "reflect"]), seed=st.integers(0, 3))
def test_network_equals_the_plain_one_at_any_length(frames: int, end_padding: str, seed: int) -> None:
    if end_padding == "reflect" and -frames % NARROW.granularity >= frames:
        return  # too short for torch's reflection, which the plain one uses
    state, mel = rmvpe_state(seed=seed), spectrogram(frames, seed)
    network = NETWORKS.setdefault(seed, _network(state))
    network.end_padding = end_padding
    with torch.inference_mode():
        assert (network(mel) - reference.salience(state, mel, end_padding, NARROW.blocks)).abs().max() < 1e-5


NETWORKS: dict[int, Rmvpe] = {}


def _network(state: dict[str, Tensor]) -> Rmvpe:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        torch.save(state, Path(folder) / "rmvpe.pt")
        return load(Path(folder) / "rmvpe.pt")


def test_the_two_end_paddings_differ_only_near_the_end(narrow: Rmvpe) -> None:
    mel, found = spectrogram(401), {}
    with torch.inference_mode():
        for narrow.end_padding in ("constant", "reflect"):
            found[narrow.end_padding] = narrow.body(narrow.prepare(mel))
    narrow.end_padding = "constant"
    difference = (found["constant"] - found["reflect"]).abs().amax(dim=(0, 2))
    assert difference[401 - narrow.config.reach - 1 :].max() > 1e-3
    assert difference[: 401 - narrow.config.reach].max() == 0


def test_reach_is_what_a_frame_depends_on(narrow: Rmvpe) -> None:
    frames, centre = 320, 161
    changed = (mel := narrow.prepare(spectrogram(frames)).double()).clone()
    changed[:, :, centre] += 1000.0
    exact = _network(rmvpe_state()).double()
    with torch.inference_mode():
        moved = (exact.body(changed) - exact.body(mel)).abs().amax(dim=(0, 2)).nonzero().flatten() - centre
    assert narrow.config.reach - narrow.granularity <= int(moved.abs().max()) <= narrow.config.reach


@pytest.mark.parametrize("chunk", [4, 20, 48])
def test_chunks_of_time_change_nothing(narrow: Rmvpe, chunk: int) -> None:
    prepared = narrow.prepare(spectrogram(200))
    with torch.inference_mode():
        narrow.chunk = None
        whole = narrow.body(prepared)
        narrow.chunk = chunk
        chunked = narrow.body(prepared)
    narrow.chunk = None
    assert (chunked - whole).abs().max() <= 1e-5 * whole.abs().max()


@pytest.mark.parametrize("valid", [4, 28, 60])
def test_a_masked_window_equals_the_clip_alone(narrow: Rmvpe, valid: int) -> None:
    prepared, window = narrow.prepare(spectrogram(valid)), 64
    filled = torch.cat([prepared, torch.full((1, 128, window - valid), 7.0)], dim=2)
    mask = (torch.arange(window) < valid).float().reshape(1, 1, -1)
    with torch.inference_mode():
        alone, inside = narrow.body(prepared), narrow.body(filled, mask)[:, :valid]
    assert (inside - alone).abs().max() <= 1e-5 * alone.abs().max()


def test_blocks_of_a_long_clip_give_what_one_run_gives(narrow: Rmvpe) -> None:
    with torch.inference_mode():
        hidden = narrow.body(narrow.prepare(spectrogram(300)))
        pieces = hidden.split(77, dim=1)
        blocks = torch.cat(list(narrow.finish_blocks(lambda index: pieces[index], len(pieces))), dim=1)
        assert (blocks - narrow.finish(hidden)).abs().max() < 1e-6


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), peak=st.integers(0, 359), strength=st.floats(0, 1), threshold=st.sampled_from([0.0, 0.03, 0.5]))
def test_decoding_equals_upstreams_formula(seed: int, peak: int, strength: float, threshold: float) -> None:
    salience = torch.rand(3, 360, generator=torch.Generator().manual_seed(seed)) * 0.4
    salience[1, peak] = strength
    salience[2] = 0
    np.testing.assert_allclose(decode_local_average(salience[None], threshold).numpy(), reference.pitch(salience, threshold), rtol=1e-9)


def test_the_threshold_is_upstreams(narrow: Rmvpe) -> None:
    salience = torch.zeros(1, 2, 360)
    salience[0, 0, 100], salience[0, 1, 100] = THRESHOLD - 1e-4, THRESHOLD + 1e-4
    assert (narrow.decode(salience) > 0).tolist() == [False, True]


@pytest.mark.parametrize("samples", [0, 1, 159, 160, 512, 513, 4000])
def test_any_clip_has_a_frame_every_ten_milliseconds(narrow: Rmvpe, samples: int) -> None:
    found = narrow.pitch(torch.zeros(1, samples))
    assert found.shape == (samples // 160 + 1,)
    assert bool(torch.isfinite(found).all())


def test_nested_files_and_unused_entries_are_read(narrow: Rmvpe, tmp_path: Path) -> None:
    state = rmvpe_state() | {"unet.tf.layers.0.weight": torch.full((3,), float("nan"))}
    torch.save({"model": state, "step": 3}, tmp_path / "nested.pt")
    nested = load(tmp_path / "nested.pt")
    assert all(torch.equal(value, nested.state_dict()[name]) for name, value in narrow.state_dict().items())


def test_a_librarys_own_file_is_read_back(narrow: Rmvpe, tmp_path: Path) -> None:
    checkpoint = load_pitch(write_rmvpe(tmp_path / "rmvpe.pt"))
    save_file(checkpoint.source_state, tmp_path / "weights.safetensors", checkpoint.file_metadata())
    again = load(tmp_path / "weights.safetensors")
    assert again.config == NARROW
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in narrow.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("unet.encoder.layers.0.conv.0.conv.1.running_var"), "running_var"),
        (lambda state: state.pop("unet.encoder.bn.bias"), r"unet\.encoder\.bn\.bias"),
        (lambda state: state.pop("fc.1.bias"), r"fc\.1\.bias"),
        (lambda state: state.update({"cnn.bias": torch.zeros(5)}), r"cnn\.bias is \(5,\)"),
        (lambda state: state["cnn.weight"].fill_(float("nan")), "NaN"),
        (lambda state: state.update({"unet.decoder.layers.0.conv1.1.bias": torch.zeros(9)}), "differ in shape"),
    ],
)
def test_a_damaged_file_is_refused_in_one_sentence(change, message: str, tmp_path: Path) -> None:
    state = rmvpe_state()
    change(state)
    torch.save(state, tmp_path / "rmvpe.pt")
    with pytest.raises(IncompleteCheckpoint, match=message) as caught:
        load_pitch(tmp_path / "rmvpe.pt")
    assert "\n" not in str(caught.value)


def test_other_files_are_named_for_what_they_are(tmp_path: Path) -> None:
    torch.save({"something": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(WrongCheckpointKind, match="no pitch model known here"):
        load_pitch(tmp_path / "other.pt")
    with pytest.raises(WrongCheckpointKind, match="not the pitch model 'fcpe'"):
        load_pitch(write_rmvpe(tmp_path / "rmvpe.pt"), "fcpe")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(WrongCheckpointKind, match="holds a list"):
        load_pitch(tmp_path / "list.pt")
