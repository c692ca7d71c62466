"""Every package of a network in parts under golden-gated placement, on Core ML as the stand-in has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rvc_coreml.errors import StrictError, UsageError
from rvc_coreml.runtime.config import OptimizationConfig
from rvc_coreml.runtime.devices import available_devices
from rvc_coreml.runtime.hybrid import HybridModel
from support.coreml import StandIn, coreml
from support.hybrid import hybrid

__all__ = ["coreml"]
X = torch.linspace(-2, 2, 2 * 4 * 16).reshape(2, 4, 16)


class Chain(torch.nn.Module):
    """A package, an operation that stays, a package; its state counts calls, so that a repeated call would show."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (torch.nn.Conv1d(4, 4, 3, padding=1) for _ in range(2))
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.calls += 1
        y = torch.sinc(self.first(x)) + torch.randn_like(x)
        return self.second(y), self.calls + 0


@pytest.fixture(scope="module")
def module() -> Chain:
    torch.manual_seed(3)
    return Chain().eval()


@pytest.fixture(scope="module")
def folder(module: Chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = hybrid(module, [((X,), {})], ("aten.sinc.default", "aten.randn_like.default"), backend="torch")
    return made.save(tmp_path_factory.mktemp("placed") / "chain")


def wanted(module: Chain, calls: int, seed: int = 1) -> torch.Tensor:
    torch.manual_seed(seed)
    module.calls.fill_(calls - 1)
    return module(X)[0].detach()


def right(model: HybridModel, module: Chain, calls: int) -> bool:
    torch.manual_seed(1)
    found, counted = model(X)
    expected = wanted(module, calls)
    return bool(counted == calls) and float((found - expected).norm() / expected.norm()) < 0.01


def packages(model: HybridModel) -> list[str]:
    return [part.name for part in model.plan.packages]


def test_every_package_runs_on_core_ml_after_its_golden(coreml: StandIn, folder: Path, module: Chain) -> None:
    lines: list[str] = []
    model = HybridModel.load(folder, "coreml", notify=lines.append)
    assert right(model, module, 1)
    assert right(model, module, 2)
    assert lines == []
    assert set(model.executed_by.values()) == {"coreml (ALL)"}
    assert list(model.executed_by) == packages(model)
    assert {stage for stage, _units in coreml.loaded} == set(packages(model))
    assert coreml.predictions == dict.fromkeys(packages(model), 3)  # its golden, and two calls
    rows = model.placement
    assert [row["stage"] for row in rows] == packages(model)
    assert all(row["candidates"][0]["verdict"] == "good" and row["candidates"][0]["snr_db"] > 45 for row in rows)


@pytest.mark.parametrize("kind", ["scale", "nan", "load_error", "exception"])
def test_a_package_that_is_wrong_on_some_units_moves_to_others_and_says_so_once(
    coreml: StandIn, folder: Path, module: Chain, kind: str
) -> None:
    coreml.fault(kind, stage="p2", units="ALL")
    lines: list[str] = []
    model = HybridModel.load(folder, "coreml", notify=lines.append)
    assert right(model, module, 1)
    assert right(model, module, 2)
    ran = model.executed_by
    assert ran.pop("p2") == "coreml (CPU_AND_NE)"
    assert set(ran.values()) == {"coreml (ALL)"}
    assert len(lines) == 1
    assert lines[0].startswith("small, p2: coreml (ALL) is not used")
    assert "running on coreml (CPU_AND_NE) instead" in lines[0]


def test_a_package_that_is_wrong_everywhere_runs_in_pytorch_and_the_others_stay(coreml: StandIn, folder: Path, module: Chain) -> None:
    coreml.fault("scale", stage="p2")
    lines: list[str] = []
    model = HybridModel.load(folder, "coreml", notify=lines.append)
    assert right(model, module, 1)
    ran = model.executed_by
    assert ran.pop("p2") == "torch (cpu)"
    assert set(ran.values()) == {"coreml (ALL)"}
    assert lines[-1].endswith("running on torch (cpu) instead")


def test_strict_raises_instead(coreml: StandIn, folder: Path) -> None:
    coreml.fault("scale", stage="p2", units="ALL")
    with pytest.raises(StrictError, match=r"small, p2: .* and --strict allows nothing else"):
        HybridModel.load(folder, "coreml", strict=True, notify=lambda _line: None)(X)


def test_a_package_that_goes_bad_in_use_moves_on_and_the_call_is_right(coreml: StandIn, folder: Path, module: Chain) -> None:
    """The fault comes after its golden was right: the value is unusual, PyTorch contradicts it, and the call goes on elsewhere."""
    coreml.fault("scale", stage="p2", units="ALL", after=2)
    model = HybridModel.load(folder, "coreml", notify=lambda _line: None)
    assert right(model, module, 1)
    assert right(model, module, 2)
    assert right(model, module, 3)
    assert model.executed_by["p2"] == "coreml (CPU_AND_NE)"


def test_a_call_is_repeated_where_its_golden_shows_that_a_package_went_bad(coreml: StandIn, folder: Path, module: Chain) -> None:
    """A level of 1.3 is nothing unusual: the golden shows it, and the call is made again with the same noise and the same state."""
    coreml.fault("scale", stage="p2", units="ALL", after=1, factor=1.3)
    model = HybridModel.load(folder, "coreml", notify=lambda _line: None, config=OptimizationConfig(watch_every=1))
    assert right(model, module, 1)
    assert right(model, module, 2)
    assert model.executed_by["p2"] == "coreml (CPU_AND_NE)"


def test_units_are_chosen_for_all_packages_or_for_one(coreml: StandIn, folder: Path) -> None:
    model = HybridModel.load(folder, "coreml", compute_units="CPU_ONLY", notify=print)
    assert set(model.executed_by.values()) == {"coreml (CPU_ONLY)"}
    model = HybridModel.load(folder, "coreml", compute_units={"p0": "cpu_and_gpu"}, notify=print)
    assert model.executed_by == {**dict.fromkeys(packages(model), "coreml (ALL)"), "p0": "coreml (CPU_AND_GPU)"}
    with pytest.raises(UsageError, match="no compute units 'TPU'"):
        HybridModel.load(folder, "coreml", compute_units="TPU")(X)
    with pytest.raises(UsageError, match="small has no package 'decoder'; its packages are p0, p2"):
        HybridModel.load(folder, "coreml", compute_units={"decoder": "ALL"})(X)
    for backend in ("reference", "torch"):
        with pytest.raises(UsageError, match="compute units belong to Core ML"):
            HybridModel.load(folder, backend, compute_units="ALL")(X)


def test_a_device_that_is_not_there_is_one_sentence(folder: Path) -> None:
    missing = next(device for device in ("mps", "cuda:99") if device not in available_devices())
    with pytest.raises(UsageError, match=missing.partition(":")[0]):
        HybridModel.load(folder, "torch", device=missing)


def test_without_goldens_every_package_runs_in_pytorch_and_says_why(coreml: StandIn, folder: Path, module: Chain, tmp_path: Path) -> None:
    import json
    import shutil

    copied = tmp_path / "copied"
    shutil.copytree(folder, copied)
    shutil.rmtree(copied / "golden")
    manifest: dict[str, Any] = json.loads((copied / "manifest.json").read_text())
    del manifest["files"]["golden"]
    (copied / "manifest.json").write_text(json.dumps(manifest))
    lines: list[str] = []
    model = HybridModel.load(copied, "coreml", notify=lines.append)
    assert right(model, module, 1)
    assert set(model.executed_by.values()) == {"torch (cpu)"}
    assert all("holds no golden outputs" in line for line in lines)
    assert len(lines) == len(packages(model))
