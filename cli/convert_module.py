"""`rvc-coreml convert module`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from .common import JSON_HELP, note, one_line, print_json, progress_bar, terminal_width
from .convert import PATTERN_HELP, PRECISION_HELP, command
from .fallback import fallback_options, require_output, show_check, strict_report


@command.command()
@click.argument("function", metavar="MODULE:FUNCTION")
@click.option(
    "-o",
    "--output",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Folder to write: a new one, or one that this command wrote before.",
)
@click.option("--precision", type=click.Choice(["fp16", "fp32"]), default="fp16", show_default=True, help=f"{PRECISION_HELP}.")
@fallback_options(PATTERN_HELP)
@click.option("--json", "as_json", is_flag=True, help=JSON_HELP)
def module(
    function: str,
    output: Path | None,
    precision: str,
    check: bool,
    strict: bool,
    keep_in_pytorch: tuple[str, ...],
    rewrites: tuple[str, ...],
    as_json: bool,
) -> None:
    """Convert a PyTorch model of your own: packages, and PyTorch for what Core ML cannot take.

    FUNCTION of the importable MODULE returns (module, example_inputs) or (module, example_inputs, example_kwargs). It is
    imported and called, the current folder first, so it is your own code that runs. Shapes are those of the example inputs.
    FOLDER is what rvc_coreml.HybridModel.load takes.

    \b
    Examples:
      rvc-coreml convert module my_models:denoiser -o denoiser
      rvc-coreml convert module my_models:denoiser --check
      rvc-coreml convert module my_models:denoiser -o denoiser --keep-in-pytorch head.softmax
    """
    from ..converters.own_module import check_own_module, convert_own_module, load_own_module
    from ..runtime.hybrid.storage import require_target

    require_output(output, check)
    if output is not None and not check:
        require_target(output)
    own = load_own_module(function)
    if check:
        found = check_own_module(own, precision=precision, keep_in_pytorch=keep_in_pytorch, rewrites=rewrites)
        show_check({function: [found]}, strict, as_json)
        return
    start = time.perf_counter()
    with strict_report(as_json), progress_bar() as progress:
        model = convert_own_module(
            own,
            precision=precision,
            keep_in_pytorch=keep_in_pytorch,
            rewrites=rewrites,
            strict=strict,
            notify=note,
            progress=lambda step: progress(step, 0.0),
        )
    model.save(str(output))
    report: dict[str, Any] = {"folder": str(output), "seconds": round(time.perf_counter() - start, 2), **model.report.as_dict()}
    if as_json:
        print_json(report)
        return
    click.echo(f"{one_line(function)} in {output}, {report['seconds']:.0f} s")
    click.echo(model.report.text(terminal_width()))
    click.echo(f"use it: rvc_coreml.HybridModel.load({str(output)!r})")
