"""Budgets, sizes and warnings of every device, on a machine that need have none of them."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rvc_coreml.errors import UsageError
from rvc_coreml.runtime import devices
from rvc_coreml.runtime.backends.torch_backend import TorchBackend

GB = 1 << 30
CARD = SimpleNamespace(name="NVIDIA H200", major=9, minor=0, is_integrated=False)


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Mac of 16 GiB whose system recommends 10.5."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: int(10.5 * GB), raising=False)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=16 * GB, available=6 * GB))
    monkeypatch.setattr(devices, "available_to_process", lambda: 16 * GB)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    found = SimpleNamespace(**vars(CARD))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: found)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (100 * GB, 140 * GB))
    return found


@pytest.mark.usefixtures("mac")
def test_apple_silicon_takes_what_the_system_recommends_and_seventy_percent_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for device in ("mps", "coreml"):
        assert devices.is_unified(device)
        assert devices.budget(device) == int(10.5 * GB)
    monkeypatch.delattr(torch.mps, "recommended_max_memory")  # torch before 2.5
    assert devices.budget("mps") == int(0.7 * 16 * GB)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert devices.budget("coreml") == int(0.7 * 16 * GB)


def test_a_card_has_its_own_memory(card: SimpleNamespace) -> None:
    assert devices.budget("cuda") == int(0.8 * 100 * GB)
    assert not devices.is_unified("cuda:1")
    card.is_integrated = True
    assert devices.is_unified("cuda")


def test_the_cpu_takes_a_share_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "free_memory", lambda: 8 * GB)
    assert devices.budget("cpu") == 4 * GB


@pytest.mark.parametrize(
    ("name", "capability", "gains"),
    [
        ("NVIDIA H200", (9, 0), True),
        ("Tesla V100-SXM2", (7, 0), True),
        ("NVIDIA GeForce RTX 2060", (7, 5), True),
        ("NVIDIA GeForce GTX 1660 Ti", (7, 5), False),
        ("NVIDIA GeForce GTX 1080", (6, 1), False),
        ("Tesla P40", (6, 1), False),
    ],
)
def test_half_precision_is_for_cards_with_tensor_cores(card: SimpleNamespace, name: str, capability: tuple[int, int], gains: bool) -> None:
    card.name, (card.major, card.minor) = name, capability
    assert devices.gains_from_half("cuda") is gains


def test_half_precision_is_not_for_machines_without_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not devices.gains_from_half("cuda")


@given(free=st.integers(0, 200 * GB), window=st.integers(0, 50 * GB))
def test_a_batch_fits_its_share_and_is_never_empty(free: int, window: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "free_memory", lambda: free)
        count = devices.windows_together("cpu", window)
        assert 1 <= count <= devices.MOST_WINDOWS
        assert count == 1 or count * window <= free * devices.FREE_SHARE * devices.WORK_SHARE
        assert devices.windows_together("cpu", window, chosen=7) == 7


@given(free=st.integers(0, 200 * GB))
def test_a_search_takes_its_share_within_bounds(free: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "free_memory", lambda: free)
        taken = devices.search_memory("cpu")
        assert devices.LEAST_SEARCHED <= taken <= devices.MOST_SEARCHED
        assert taken == devices.LEAST_SEARCHED or taken <= free * devices.FREE_SHARE * devices.WORK_SHARE


@pytest.mark.parametrize("samples", [64, 400, 480])
def test_pieces_on_metal_stay_below_its_longest_axis(samples: int) -> None:
    for chosen in (None, 20, 10_000):
        frames = devices.frames_within("mps", samples, chosen)
        assert frames is not None
        assert frames * samples <= 65_536
        assert chosen != 20 or frames == 20
        assert devices.frames_within("cpu", samples, chosen) == devices.frames_within("cuda", samples, chosen) == chosen
    assert devices.frames_within("mps", 10**6) == 1


@pytest.mark.usefixtures("card")
def test_devices_that_are_not_here_are_named_with_those_that_are() -> None:
    devices.require_device("cpu")
    devices.require_device("cuda:1")
    for device in ("cuda:2", "mps"):
        with pytest.raises(UsageError, match=rf"{device}.*cuda, cpu"):
            devices.require_device(device)
    for nonsense in ("tpu", "cpu:1", "cuda:", "cuda:x", ""):
        with pytest.raises(UsageError, match="unknown"):
            devices.require_device(nonsense)


def test_waiting_and_emptying_reach_the_device_that_is_meant(monkeypatch: pytest.MonkeyPatch, card: SimpleNamespace) -> None:
    calls: list[str] = []
    for module, device in ((torch.cuda, "cuda"), (torch.mps, "mps")):
        for name in ("synchronize", "empty_cache"):
            monkeypatch.setattr(module, name, lambda *_given, said=f"{device} {name}": calls.append(said))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    for device in ("cpu", "coreml", "cuda:1", "mps"):
        devices.synchronize(device)
        devices.empty_cache(device)
    assert calls == ["cuda synchronize", "cuda empty_cache", "mps synchronize", "mps empty_cache"]


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    seen = []

    def fail() -> None:
        with devices.threads(before + 2):
            seen.append(torch.get_num_threads())
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert seen == [before + 2]
    assert torch.get_num_threads() == before
    with devices.threads(None):
        assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("system", "environ", "said"),
    [
        ("darwin", {"PYTORCH_MPS_HIGH_WATERMARK_RATIO": "0.0"}, "freeze the Mac"),
        ("darwin", {"PYTORCH_MPS_HIGH_WATERMARK_RATIO": "0"}, "freeze the Mac"),
        ("darwin", {"PYTORCH_MPS_HIGH_WATERMARK_RATIO": "1.4"}, "more than macOS recommends"),
        ("darwin", {"PYTORCH_MPS_HIGH_WATERMARK_RATIO": "3"}, "0 to 2"),
        ("darwin", {"PYTORCH_MPS_HIGH_WATERMARK_RATIO": "lots"}, "0 to 2"),
        ("darwin", {"PYTORCH_MPS_HIGH_WATERMARK_RATIO": "0.5", "PYTORCH_MPS_LOW_WATERMARK_RATIO": "0.8"}, "unset both"),
        ("darwin", {"PYTORCH_ENABLE_MPS_FALLBACK": "0"}, "fail instead of running on the CPU"),
        ("darwin", {"OMP_NUM_THREADS": "64"}, "more threads than the 8 cores"),
        ("linux", {"OMP_NUM_THREADS": "1"}, "7 of 8 cores idle"),
        ("linux", {"MKL_NUM_THREADS": "all"}, "no number"),
        ("linux", {"OMP_NUM_THREADS": "0"}, "no number"),
        ("linux", {"KMP_DUPLICATE_LIB_OK": "TRUE"}, "two OpenMP runtimes"),
        ("linux", {"CUDA_VISIBLE_DEVICES": ""}, "hides every GPU"),
        ("linux", {"CUDA_LAUNCH_BLOCKING": "1"}, "waits after every"),
        ("linux", {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, "system call"),
    ],
)
def test_harmful_settings_are_named(system: str, environ: dict[str, str], said: str) -> None:
    (sentence,) = devices.harmful_settings(environ, system, cores=8)
    assert said in sentence
    assert any(name in sentence for name in environ)


@pytest.mark.parametrize("system", ["darwin", "linux"])
@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"PYTORCH_MPS_HIGH_WATERMARK_RATIO": "0.7"},
        {"PYTORCH_MPS_HIGH_WATERMARK_RATIO": "1.0", "PYTORCH_MPS_LOW_WATERMARK_RATIO": "0.9"},
        {"PYTORCH_ENABLE_MPS_FALLBACK": "1", "OMP_NUM_THREADS": "8", "KMP_DUPLICATE_LIB_OK": "FALSE", "CUDA_VISIBLE_DEVICES": "0,1"},
        {"OMP_NUM_THREADS": "4,2"},
    ],
)
def test_harmless_settings_are_not(system: str, environ: dict[str, str]) -> None:
    assert devices.harmful_settings(environ, system, cores=8) == []


def test_metals_settings_harm_only_a_mac() -> None:
    assert devices.harmful_settings({"PYTORCH_MPS_HIGH_WATERMARK_RATIO": "0.0"}, "linux", cores=8) == []
    assert devices.harmful_settings({"CUDA_VISIBLE_DEVICES": ""}, "darwin", cores=8) == []


@pytest.mark.parametrize(("system", "given", "found"), [("darwin", None, "1"), ("darwin", "0", "0"), ("linux", None, "None")])
def test_the_fallback_of_metal_is_asked_for_before_torch_is_imported(system: str, given: str | None, found: str) -> None:
    code = (
        "import os, sys; os.environ.pop('PYTORCH_ENABLE_MPS_FALLBACK', None)\n"
        f"if {given!r}: os.environ['PYTORCH_ENABLE_MPS_FALLBACK'] = {given!r}\n"
        f"sys.platform = {system!r}; import rvc_coreml\n"
        "print(os.environ.get('PYTORCH_ENABLE_MPS_FALLBACK'), 'torch' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert shown.split() == [found, "False"]


def test_the_torch_backend_runs_on_the_best_device() -> None:
    assert TorchBackend().device == "cpu"  # by conftest
    assert devices.best_device() in devices.available_devices()
