"""Every fault that a conversion is known to have had, planted: the checks that CI runs fail, and say where it is.

Faults are planted in a package, while the library's weights and golden outputs are right, and in the source network,
while the golden outputs recorded before are right. What no output shows is planted for the weight audit.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import record_goldens
import torch
from rvc_coreml.converters.audit import audit_component, audit_package
from rvc_coreml.converters.conversion import convert_content_encoder, convert_voice
from rvc_coreml.errors import AuditError, ConversionError
from rvc_coreml.golden_outputs.reports import Report
from rvc_coreml.models import hubert, synthesizer
from rvc_coreml.models.flow import ResidualCouplingBlock
from rvc_coreml.models.stages import DEFAULT_WINDOWS, VOICE_STAGES
from rvc_coreml.models.text_encoder import FeedForward, masked
from rvc_coreml.runtime.backends import torch_backend
from rvc_coreml.runtime.backends.base import Backend
from rvc_coreml.runtime.backends.reference_backend import ReferenceBackend
from rvc_coreml.runtime.backends.torch_backend import TorchBackend
from rvc_coreml.runtime.library import Component, Library
from rvc_coreml.runtime.validation import validate_library
from support.checkpoints import SMALL_HUBERT, small_config, voice_state, write_small_hubert, write_voice
from support.damage import biases, converted, drop_bias, largest_weight, operation_of, swapped, transpose_kernel
from torch import Tensor
from torch.nn import functional as F

STAGES = ("content_encoder", *VOICE_STAGES)
SMALL_WINDOWS = {"content_encoder": 110, "text_encoder": 210, "flow": 60, "decoder": 40}
LOUD = 2.0**15  # twice, it takes whatever a hidden layer holds beyond half precision's 65504
Patch = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    """A content encoder of twelve narrow layers and a narrow voice, at small windows, in the layout of the code that is at fault."""
    folder = tmp_path_factory.mktemp("planted")
    with pytest.MonkeyPatch.context() as patch:
        for stage, window in SMALL_WINDOWS.items():
            patch.setitem(DEFAULT_WINDOWS, stage, window)
        convert_voice(write_voice(folder / "voice.pth"), folder / "library", layout="plain")
        encoder = write_small_hubert(folder / "hubert", config=replace(SMALL_HUBERT, layers=12))
        window = str(SMALL_WINDOWS["content_encoder"])
        convert_content_encoder(encoder, folder / "library", layout="plain", windows=window)
        yield Library.open(folder / "library")


def component_of(library: Library, stage: str) -> Component:
    return library.content_encoder() if stage == "content_encoder" else library.voice("voice")


def validated(library: Library, stage: str, backend: Backend | None = None, **options: Any) -> Report:
    """What `rvc-coreml validate LIB --stage STAGE --explain` does."""
    return validate_library(library, backend or ReferenceBackend(), stages=[stage], explain=True, **options)


@pytest.mark.parametrize("stage", STAGES)
def test_without_a_fault_every_stage_passes(library, stage):
    report = validated(library, stage, audit=audit_component)
    assert report.passed
    assert not report.explained


# ---------------------------------------------------------------- faults of the code


def noise_at_full_scale(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(synthesizer, "PRIOR_SCALE", 1.0)


def flip_after_coupling(patch: pytest.MonkeyPatch) -> None:
    """The inverse flow with each flip behind its coupling instead of before it."""

    def forward(self: Any, z: Tensor, g: Tensor, mask: Tensor | None = None) -> Tensor:
        for index in (6, 7, 4, 5, 2, 3, 0, 1):
            z = self.flows[index](z, g, mask)
        return z

    patch.setattr(ResidualCouplingBlock, "forward", forward)


def ninth_layer(patch: pytest.MonkeyPatch) -> None:
    """v2 voices are given what v1 voices read."""
    right = hubert.TransformerEncoder.forward

    def forward(self: Any, x: Tensor, upto: tuple[int, ...], frame_mask: Tensor | None = None) -> list[Tensor]:
        return right(self, x, tuple(hubert.V1_LAYER for _count in upto), frame_mask)

    patch.setattr(hubert.TransformerEncoder, "forward", forward)


def hidden_layer_too_loud(patch: pytest.MonkeyPatch) -> None:
    """Right in float32: a hidden layer is scaled up and back down."""

    def forward(self: Any, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = torch.relu(self.conv_1(F.pad(masked(x, mask), self.padding))) * LOUD * LOUD
        x = F.conv1d(F.pad(masked(x, mask), self.padding), self.conv_2.weight) * (1 / LOUD) * (1 / LOUD)
        return masked(x + self.conv_2.bias[:, None], mask)

    patch.setattr(FeedForward, "forward", forward)


def weights_changed(module: str, change: Callable[[torch.nn.Module], None]) -> Patch:
    """The network is loaded wrongly: one of its modules is not what the checkpoint says."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        right = torch_backend._load

        def load(component: Component) -> torch.nn.Module:
            network = right(component)
            change(network.get_submodule(module))
            return network

        patch.setattr(torch_backend, "_load", load)

    return plant


@torch.no_grad()
def transpose(module: Any) -> None:
    module.weight.copy_(module.weight.transpose(0, 1).clone())


@torch.no_grad()
def silence_bias(module: Any) -> None:
    module.bias.zero_()


@dataclass(frozen=True)
class Fault:
    """A patch of the code and the stage it spoils; the operation that an explanation names for a package converted with it,
    and the function of the network and its module for the network itself.
    """

    plant: Patch
    stage: str
    operation_type: str
    module: str | None
    text: str
    function: str = ""
    function_module: str | None = None


FAULTS = {
    "noise scaled by 1.0": Fault(noise_at_full_scale, "flow", "add", None, r"source network goes on with mul in sample_prior\(\)", "add"),
    "a swapped channel flip": Fault(
        flip_after_coupling,
        "flow",
        "slice_by_index",
        "flow.flows.6",
        r"made of flip of flow\.flows\.7, and the package with slice_by_index",
        "getitem",
        "flow.flows.6",
    ),
    "layer 9 instead of 12": Fault(
        ninth_layer,
        "content_encoder",
        "mul",
        None,
        r"'features_v2', but it holds .* of hubert\.encoder\.layers\.8\.final_layer_norm",
        "mul",
    ),
    "a transposed kernel": Fault(
        weights_changed("dec.resblocks.4.convs1.0", transpose),
        "decoder",
        "conv",
        "dec.resblocks.4.convs1.0",
        "its weight is transposed",
        "conv1d",
        "dec.resblocks.4.convs1.0",
    ),
    "a dropped decoder bias": Fault(
        weights_changed("dec.ups.3", silence_bias),
        "decoder",
        "conv_transpose",
        "dec.ups.3",
        "its bias is missing",
        "conv_transpose1d",
        "dec.ups.3",
    ),
    "an fp16 overflow": Fault(
        hidden_layer_too_loud, "text_encoder", "mul", "enc_p.encoder.ffn_layers.0", "not finite in the package's half precision"
    ),
}
OVERFLOW = "an fp16 overflow"  # no fault in float32


@contextmanager
def wrong_package(library: Library, fault: Fault, folder: Path) -> Iterator[Component]:
    """A library whose package of the stage was converted with the fault, and all else without."""
    component = component_of(library, fault.stage)
    with pytest.MonkeyPatch.context() as patch:
        fault.plant(patch)
        modules = converted(TorchBackend("cpu").stage(component, fault.stage), folder / "wrong.mlpackage")
    with swapped(component, fault.stage, folder / "wrong.mlpackage", modules):
        yield component


@pytest.mark.parametrize("name", [name for name in FAULTS if FAULTS[name].stage != "decoder"])  # see the damage on disk below
def test_a_package_converted_with_the_fault_is_broken_and_its_operation_is_named(library, name, tmp_path):
    fault = FAULTS[name]
    with wrong_package(library, fault, tmp_path):
        report = validated(library, fault.stage)
    explanation = the_explanation(report, fault.stage)
    assert (explanation["operation_type"], explanation["module"]) == (fault.operation_type, fault.module)
    assert explanation["snr_db"] < 30
    assert re.search(fault.text, explanation["text"])
    assert explanation["operation"] in explanation["text"]


@pytest.mark.parametrize(
    ("name", "backend"),
    [*((name, "torch") for name in FAULTS if name != OVERFLOW), ("noise scaled by 1.0", "reference")],
)
def test_the_fault_in_the_source_network_breaks_its_recorded_golden_outputs(library, name, backend, monkeypatch):
    fault = FAULTS[name]
    fault.plant(monkeypatch)
    report = validated(library, fault.stage, TorchBackend("cpu") if backend == "torch" else ReferenceBackend())
    assert {check.ran for check in report.failed} == {"torch (cpu)"}
    explanation = the_explanation(report, fault.stage)
    assert (explanation["operation_type"], explanation["module"]) == (fault.function, fault.function_module)
    assert explanation["text"].startswith("the network in PyTorch no longer gives the golden outputs, and the package does")


@pytest.mark.parametrize(
    ("name", "network", "module"),
    [
        ("noise scaled by 1.0", "v2_40k", None),
        ("a swapped channel flip", "v2_40k", None),
        ("layer 9 instead of 12", "content_encoder", None),
        ("a transposed kernel", "v2_40k", ("dec.resblocks.4.convs1.0", transpose)),
        ("a dropped decoder bias", "v2_40k", ("dec.ups.3", silence_bias)),
    ],
)
def test_the_fault_breaks_the_golden_outputs_that_the_project_keeps(name, network, module, monkeypatch):
    """Those of golden_outputs/recorded, which every run of the tests compares; what comes after the stage differs too."""
    if module is None:
        FAULTS[name].plant(monkeypatch)
    else:
        right = record_goldens._seeded

        def changed(made: torch.nn.Module, seed: int = record_goldens.SEED) -> torch.nn.Module:
            seeded = right(made, seed)
            if isinstance(made, synthesizer.Synthesizer) and seed == record_goldens.SEED:  # the first voice
                module[1](seeded.get_submodule(module[0]))
            return seeded

        monkeypatch.setattr(record_goldens, "_seeded", changed)
    stage = FAULTS[name].stage
    found = record_goldens.differences(only=[network])
    assert any(re.match(rf"({network}_)?{stage}, full: the output", problem) for problem in found)
    before = VOICE_STAGES[: VOICE_STAGES.index(stage)] if stage in VOICE_STAGES else ()
    assert not any(problem.startswith(f"{network}_{earlier},") for problem in found for earlier in before)


def test_a_conversion_that_overflows_is_refused_and_its_stage_is_named(library, tmp_path):
    loud = 3e4 * voice_state(small_config())["enc_p.emb_phone.weight"]
    voice = write_voice(tmp_path / "voice.pth", half=False, tensors={"enc_p.emb_phone.weight": loud})
    with pytest.raises(ConversionError, match="the converted text_encoder does not compute what PyTorch does"):
        convert_voice(voice, tmp_path / "library", windows=[f"{stage}={SMALL_WINDOWS[stage]}" for stage in VOICE_STAGES])
    assert not (tmp_path / "library").exists()


def the_explanation(report: Report, stage: str) -> dict[str, Any]:
    """Of a report that failed at that stage and nowhere else."""
    assert not report.passed
    assert {check.stage for check in report.failed} == {stage}
    (check,) = report.explained
    assert check.explanation is not None
    return dict(check.explanation)


# ---------------------------------------------------------------- damage of a saved package


@contextmanager
def damaged(library: Library, stage: str, folder: Path) -> Iterator[Path]:
    """A copy of a stage's package to damage; it is in the library's place."""
    component = component_of(library, stage)
    package = shutil.copytree(component.package(stage), folder / "copy.mlpackage")
    with swapped(component, stage, package, component.operations(stage)):
        yield component.package(stage)


@pytest.mark.parametrize(
    ("stage", "module", "operation_type"),
    [
        ("content_encoder", "hubert.encoder.layers.3.self_attn.v_proj", "linear"),
        ("text_encoder", "enc_p.encoder.attn_layers.0.conv_v", "conv"),
        ("decoder", "dec.resblocks.7.convs2.1", "conv"),
    ],
)
def test_a_kernel_transposed_on_disk_is_named_by_the_outputs_and_by_the_audit(library, stage, module, operation_type, tmp_path):
    with damaged(library, stage, tmp_path) as package:
        operation = operation_of(package, component_of(library, stage).operations(stage), module)
        transpose_kernel(package, operation)
        report = validated(library, stage)
        problems = audit_component(component_of(library, stage))
    explanation = the_explanation(report, stage)
    assert (explanation["operation"], explanation["operation_type"], explanation["module"]) == (operation, operation_type, module)
    assert "its weight is transposed" in explanation["text"]
    assert {problem.stage for problem in problems} == {stage}
    assert any(problem.text.startswith(f"{module}.weight differs") for problem in problems)


def test_a_decoder_bias_dropped_on_disk_is_named(library, tmp_path):
    with damaged(library, "decoder", tmp_path) as package:
        operation = operation_of(package, component_of(library, "decoder").operations("decoder"), "dec.noise_convs.1")
        drop_bias(package, operation)
        explanation = the_explanation(validated(library, "decoder"), "decoder")
    assert (explanation["operation"], explanation["module"]) == (operation, "dec.noise_convs.1")
    assert "its bias is missing" in explanation["text"]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("damage", "values"), [("element", r"1 of \d+ values"), ("tensor", r"(\d+) of \1 values")])
def test_an_element_or_a_tensor_off_by_one_percent_fails_the_audit_and_is_named(library, stage, damage, values, tmp_path):
    """Outputs cannot show it: an element of a decoder's convolution costs 121 dB."""
    with damaged(library, stage, tmp_path) as package:
        weights = largest_weight(package)
        wrong = slice(None) if damage == "tensor" else int(np.argmax(np.abs(weights)))
        weights[wrong] = weights[wrong] * weights.dtype.type(1.01)
        weights.flush()
        problems = audit_component(component_of(library, stage))
    texts = [problem.text for problem in problems if problem.stage == stage]
    assert len(texts) == len(problems)
    assert any(re.match(rf"\S+\.weight differs \({values}", text) for text in texts)


@pytest.mark.parametrize("stage", STAGES)
def test_every_dropped_bias_fails_the_audit_and_is_named(library, stage, tmp_path):
    """The text encoder's key biases too, which have no effect on any output."""
    component = component_of(library, stage)
    modules, source = component.operations(stage), TorchBackend("cpu").stage(component, stage)
    names = {name for name, parameter in source.named_parameters() if name.endswith((".bias", ".beta")) and parameter.any()}
    names = {name for name in names if not any(part in name for part in ("conv_layers.0.2.", "m_source."))}
    found = set()
    for operation in biases(component.package(stage)):
        package = shutil.copytree(component.package(stage), tmp_path / f"{len(found)}.mlpackage", dirs_exist_ok=True)
        drop_bias(package, operation)
        with pytest.raises(AuditError, match=stage) as caught:
            audit_package(package, source, modules)
        missing = re.findall(r"(\S+) is missing", str(caught.value))
        assert len(missing) == 1
        assert missing[0].startswith(f"{modules[operation]}.")
        found.update(missing)
    assert found == names


def test_a_dropped_key_bias_is_invisible_to_the_outputs(library, tmp_path):
    """Softmax takes no notice of what all keys share, so this is the audit's alone."""
    with damaged(library, "text_encoder", tmp_path) as package:
        modules = component_of(library, "text_encoder").operations("text_encoder")
        drop_bias(package, operation_of(package, modules, "enc_p.encoder.attn_layers.1.conv_k"))
        report = validated(library, "text_encoder", audit=audit_component)
    assert {check.case for check in report.failed} == {"weights"}
    assert "enc_p.encoder.attn_layers.1.conv_k.bias is missing" in report.failed[0].reason
