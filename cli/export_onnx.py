"""`rvc-coreml export-onnx`."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import UsageError
from .common import JSON_HELP, print_json


@click.command()
@click.argument("source", metavar="VOICE", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, metavar="FILE", type=click.Path(path_type=Path), help="ONNX file to write.")
@click.option(
    "--layout",
    required=True,
    metavar="NAME",
    help="webui (phone, pitch, ds, rnd: the caller draws the prior noise) or w-okada (feats, pitch, sid: drawn inside).",
)
@click.option("--voice", metavar="NAME", help="Voice of the library, where VOICE is one; may be left out where it has one.")
@click.option("--opset", type=int, default=17, show_default=True, metavar="N", help="Version of ONNX's operations, 13 to 21.")
@click.option("--half", is_flag=True, help="Features and stored weights in half precision; w-okada's layout only.")
@click.option("--frames", type=int, metavar="N", help="Fix the length to N frames of 10 ms, as old exports did.  [default: any length]")
@click.option("--license", "licence", metavar="TEXT", help="Licence of the weights, kept in the file's metadata.")
@click.option("--json", "as_json", is_flag=True, help=JSON_HELP)
def command(
    source: Path,
    output: Path,
    layout: str,
    voice: str | None,
    opset: int,
    half: bool,
    frames: int | None,
    licence: str | None,
    as_json: bool,
) -> None:
    """Write a voice as ONNX, in the layout of RVC-WebUI or of w-okada's client.

    VOICE is a voice file (.pth, .safetensors or .onnx) or a model library. The WebUI's layout adds rnd as it is given:
    pass 0.66666 times standard normal noise to hear what PyTorch gives. Noise of the harmonic source is drawn inside.

    \b
    Examples:
      rvc-coreml export-onnx singer.pth -o singer.onnx --layout webui
      rvc-coreml export-onnx library --voice singer -o singer.onnx --layout w-okada
    """
    from ..converters.onnx_export import OnnxOptions, export_onnx, open_voice
    from ..runtime.files import require_writable, same_file

    if same_file(source, output):
        raise UsageError(f"{output} is the voice itself: name another file to write")
    require_writable(output)
    opened, origin = open_voice(source, voice, licence)
    model = export_onnx(opened, output, OnnxOptions(layout, opset, half, frames), origin)
    inputs = {value.name: _shape(value) for value in model.graph.input}
    outputs = {value.name: _shape(value) for value in model.graph.output}
    report = {
        "file": str(output),
        "layout": layout,
        "version": opened.version,
        "f0": opened.has_f0,
        "sample_rate": opened.sample_rate,
        "opset": opset,
        "inputs": inputs,
        "outputs": outputs,
        "bytes": output.stat().st_size,
    }
    if as_json:
        print_json(report)
        return
    kind = f"{opened.version} voice{'' if opened.has_f0 else ' without f0'}, {opened.sample_rate} Hz"
    click.echo(f"{output}: {kind}, layout {layout}, opset {opset}, {report['bytes'] / 1e6:.0f} MB")
    click.echo("takes " + ", ".join(f"{name} ({', '.join(map(str, shape))})" for name, shape in inputs.items()))


def _shape(value: object) -> list[int | str]:
    dimensions = value.type.tensor_type.shape.dim  # pyright: ignore[reportAttributeAccessIssue]
    return [dimension.dim_param or dimension.dim_value for dimension in dimensions]
