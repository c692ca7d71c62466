"""`rvc-coreml run`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError, printable
from .common import FUNCTION_HELP, JSON_HELP, NUMERICS_HELP, memory_limit_option, print_json, time_limit_option

if TYPE_CHECKING:
    import numpy as np


@click.command()
@click.argument("package", type=click.Path(path_type=Path))
@click.argument("inputs", metavar="INPUTS.npz", type=click.Path(path_type=Path))
@click.option("-o", "--output", metavar="OUTPUTS.npz", type=click.Path(path_type=Path), help="Where the outputs go.")
@click.option(
    "--backend",
    type=click.Choice(["auto", "coreml", "reference"]),
    default="auto",
    show_default=True,
    help="auto is Core ML on a Mac and the reference executor elsewhere.",
)
@click.option("--function", metavar="NAME", help=FUNCTION_HELP)
@click.option("--numerics", metavar="POLICY", default="declared", show_default=True, help=NUMERICS_HELP)
@click.option(
    "--intermediates",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Also write the result of every operation there, as .npy files with an index (reference executor).",
)
@memory_limit_option
@time_limit_option
@click.option("--json", "as_json", is_flag=True, help=JSON_HELP)
def command(
    package: Path,
    inputs: Path,
    output: Path | None,
    backend: str,
    function: str | None,
    numerics: str,
    intermediates: Path | None,
    memory_limit: int | None,
    time_limit: float | None,
    as_json: bool,
) -> None:
    """Run any ML Program package on inputs from a file.

    The inputs are named arrays in an .npz file, and so are the outputs; a classifier's probabilities come with their
    classes as NAME.labels. A package with states starts from zeros.

    \b
    Examples:
      rvc-coreml run flow.mlpackage inputs.npz -o outputs.npz --backend reference
      rvc-coreml run model.mlpackage inputs.npz --numerics float64 --intermediates values
    """
    from ..runtime.files import atomic_folder, require_writable, same_file
    from ..runtime.hybrid.storage import is_hybrid
    from ..runtime.packages import check_arrays_name, load_package, read_arrays, write_arrays
    from ..runtime.reference import ReferenceModel

    if is_hybrid(package):
        raise UsageError(f"{package} is a network in parts, not one package: load it with rvc_coreml.HybridModel.load({str(package)!r})")
    if output is None and intermediates is None:
        raise UsageError("nothing would be kept: name a file with -o, or a folder with --intermediates")
    if output is not None:
        check_arrays_name(output)
        if same_file(inputs, output):
            raise UsageError(f"{output} is the file of inputs: name another one for the outputs")
        require_writable(output)
    if intermediates is not None and backend == "auto":
        backend = "reference"
    model = load_package(package, backend, numerics=numerics, function=function, memory_limit=memory_limit, time_limit=time_limit)
    arrays = read_arrays(inputs, memory_limit)
    report: dict[str, Any] = {}
    if intermediates is None:
        outputs = model.predict(arrays, model.make_state() if model.states else None)
    elif isinstance(model, ReferenceModel):
        from ..runtime.reference.values import Execution, write_intermediates

        execution = Execution(model, arrays)
        with atomic_folder(intermediates) as folder:
            count = write_intermediates(execution, folder)
        outputs = execution.outputs
        report |= {"intermediates": str(intermediates), "values": count}
    else:
        raise UsageError("only the reference executor can show intermediate values; choose --backend reference")
    outputs = _as_arrays(outputs)
    if output is not None:
        write_arrays(output, outputs)
        report["output"] = str(output)
    shapes = {name: list(value.shape) for name, value in outputs.items()}
    if as_json:
        print_json({**report, "outputs": shapes})
        return
    if intermediates is not None:
        click.echo(f"{intermediates}: {report['values']} values")
    if output is not None:
        click.echo(f"{output}: " + ", ".join(f"{printable(name)} {tuple(shape)}" for name, shape in shapes.items()))


def _as_arrays(outputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A classifier gives a plain value and a dict, and an .npz file holds neither."""
    import numpy as np

    arrays = {}
    for name, value in outputs.items():
        if isinstance(value, dict):
            arrays[f"{name}.labels"] = np.array(list(value))
            value = list(value.values())
        arrays[name] = np.asarray(value)
    return arrays
