"""What the Neural Engine's layout promises for the M1, counted by a second reading of the facts that shares no code with the linter."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from count_operations import build_network
from rvc_coreml.converters.mlprogram import convert_stage
from rvc_coreml.converters.placement import assess_package
from rvc_coreml.models.layouts import ANE, default_windows, stage_of
from rvc_coreml.runtime.library import Library
from support.independent_placement import Opinion, is_product, opinion

VOICE_STAGES = ("text_encoder", "flow", "decoder")
FULL_SIZE = ("content_encoder", "text_encoder", "flow", "decoder_48k", "decoder_40k", "decoder_32k", "rmvpe", "fcpe")
LEAST = {"text_encoder": 1.0, "flow": 1.0}  # of the FLOPs; 0.99 of all others
# Where a stage may transpose, and how often in each such place. The decoder's upsamplings put their phases behind the places in time.
TRANSPOSES = {
    "content_encoder": (r"^.*self_attn", 1),
    "text_encoder": (r"^.*attn_layers\.\d+", 1),
    "decoder": (r"^dec\.ups\.\d+$", 2),
}


def check(found: Opinion, stage: str, modules: dict[str, str]) -> None:
    assert found.flops > 0
    assert found.share_of_flops >= LEAST.get(stage, 0.99), found.blocked[:10]
    assert found.hazards == []
    assert found.counts["gather"] == found.counts["conv_transpose"] == found.counts["layer_norm"] == 0
    place, most = TRANSPOSES.get(stage, ("^nowhere$", 0))
    matched = [re.search(place, modules[name]) for name in found.names.get("transpose", ())]
    assert None not in matched, found.names["transpose"]
    transposed = Counter(match[0] for match in matched if match is not None)
    assert max(transposed.values(), default=0) <= most, transposed


# ---- narrow packages, as a library has them ----


@pytest.mark.parametrize("stage", VOICE_STAGES)
def test_a_voice_of_a_library_is_taken_whole(small_library: Path, stage: str) -> None:
    voice = Library.open(small_library).voice("v2")
    check(opinion(voice.package(stage)), stage, voice.operations(stage))


def test_the_content_encoder_of_a_library_is_taken_whole(small_library: Path) -> None:
    encoder = Library.open(small_library).content_encoder()
    assert encoder.manifest.stages["content_encoder"].layout == ANE
    check(opinion(encoder.package("content_encoder")), "content_encoder", encoder.operations("content_encoder"))


@pytest.mark.parametrize("stage", ["content_encoder", *VOICE_STAGES])
def test_both_count_the_same_operations_and_flops(small_library: Path, stage: str) -> None:
    library = Library.open(small_library)
    package = (library.content_encoder() if stage == "content_encoder" else library.voice("v2")).package(stage)
    (linter,) = assess_package(package, "m1").values()
    second = opinion(package)
    assert second.flops == pytest.approx(linter.flops, rel=1e-6)
    assert second.operations == len(linter.counted)
    assert linter.share_of_flops <= second.share_of_flops + 1e-9  # nothing that the linter lets through is refused here


def test_a_package_in_single_precision_is_taken_nowhere(small_library: Path) -> None:
    found = opinion(Library.open(small_library).voice("v2_fp32").package("flow"))
    assert found.share_of_flops == 0
    assert {fact for _name, _kind, fact in found.blocked} >= {"D3: no half precision"}


# ---- the second reading itself ----


def test_products_of_the_factors() -> None:
    assert [number for number in range(1, 21) if is_product(number)] == [1, 2, 3, 4, 6, 8, 9, 12, 16, 18]


def one(build: Callable[..., object], *inputs: object, folder: Path) -> Opinion:
    from support.programs import build_program, write_program

    return opinion(write_program(build_program(build, inputs), folder / "package"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("length", "taps", "stride", "facts"),
    [
        (16384, 13, 1, set()),
        (16385, 13, 1, {"D1: an axis of 16385"}),
        (2000, 14, 1, {"D4: 14 taps across, stride 1"}),
        (2000, 7, 2, set()),
        (2000, 8, 2, {"D4: 8 taps across, stride 2"}),
        (2000, 3, 5, {"D5: stride 5"}),
    ],
)
def test_a_convolution_is_judged_by_its_axis_its_taps_and_its_stride(
    tmp_path: Path, length: int, taps: int, stride: int, facts: set[str]
) -> None:
    import numpy as np
    from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so

    weight = np.ones((2, 3, taps), np.float16)
    found = one(
        lambda x: mb.conv(x=x, weight=weight, strides=[stride], pad_type="same", name="y"),
        np.zeros((1, 3, length), np.float16),
        folder=tmp_path,
    )
    assert {fact for _name, _kind, fact in found.blocked} == facts
    assert found.flops == 2 * 2 * 3 * taps * -(-length // stride)


def test_hazards_of_a_small_program(tmp_path: Path) -> None:
    import numpy as np
    from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so

    def build(x: object) -> object:
        masked = mb.add(x=x, y=np.full((1, 1, 8), -np.inf, np.float16))
        summed = mb.cumsum(x=masked, axis=2)
        return mb.slice_by_index(x=mb.floor_div(x=summed, y=np.float16(2)), begin=[0, 0, 3], end=[1, 4, 8], name="y")

    found = one(build, np.zeros((1, 4, 8), np.float16), folder=tmp_path)
    assert {fact.split(":")[0] + fact.split(":")[1] for _name, _kind, fact in found.hazards} == {
        "D16 a constant of -inf",
        "broken cumsum",
        "broken floor_div",
        "D11 a slice that begins inside the last axis",
    }


# ---- full size ----


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL_SIZE)
def test_a_full_size_package_is_taken_whole(tmp_path: Path, name: str) -> None:
    network, stage_name = build_network(name)
    stage = stage_of(network, stage_name, ANE, default_windows(network, stage_name, ANE)[0])
    with torch.no_grad():
        made = convert_stage(stage, "fp16")
    path = tmp_path / f"{name}.mlpackage"
    made.model.save(str(path))
    found = opinion(path)
    check(found, stage_name, made.operations)
    (linter,) = assess_package(path, "m1").values()
    assert found.flops == pytest.approx(linter.flops, rel=1e-6)
    assert not linter.hazards
    if name.startswith("decoder"):
        assert {fact for _name, _kind, fact in found.unproven} == {"D5: dilation 5"}  # said, and not dropped
