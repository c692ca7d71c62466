"""`rvc-coreml run`."""

from __future__ import annotations

from pathlib import Path

import click

from .common import JSON_HELP, print_json


@click.command()
@click.argument("package", type=click.Path(path_type=Path))
@click.argument("inputs", metavar="INPUTS.npz", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, metavar="OUTPUTS.npz", type=click.Path(path_type=Path), help="Where the outputs go.")
@click.option(
    "--backend",
    type=click.Choice(["auto", "coreml", "reference"]),
    default="auto",
    show_default=True,
    help="auto is Core ML on a Mac and the reference executor elsewhere.",
)
@click.option("--json", "as_json", is_flag=True, help=JSON_HELP)
def command(package: Path, inputs: Path, output: Path, backend: str, as_json: bool) -> None:
    """Run any ML Program package on inputs from a file.

    The inputs are named arrays in an .npz file, and so are the outputs.

    \b
    Example:
      rvc-coreml run flow.mlpackage inputs.npz -o outputs.npz --backend reference
    """
    from ..runtime.packages import load_package, read_arrays, write_arrays

    model = load_package(package, backend)
    outputs = model.predict(read_arrays(inputs))
    write_arrays(output, outputs)
    shapes = {name: list(array.shape) for name, array in outputs.items()}
    if as_json:
        print_json({"output": str(output), "outputs": shapes})
    else:
        click.echo(f"{output}: " + ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items()))
