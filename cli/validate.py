"""`rvc-coreml validate`."""

from __future__ import annotations

import click

from .common import JSON_HELP, one_line, print_json, progress_bar, table


@click.command()
@click.argument("library", metavar="LIB")
@click.option(
    "--backend",
    type=click.Choice(["auto", "coreml", "reference", "torch"]),
    default="auto",
    show_default=True,
    help="What runs the packages: auto is Core ML on a Mac, else the reference executor; torch runs no package.",
)
@click.option("--json", "as_json", is_flag=True, help=JSON_HELP)
def command(library: str, backend: str, as_json: bool) -> None:
    """Check every package of a library against PyTorch.

    Each stage runs on fixed inputs; the exit code is 1 if one fails. SNR is mean-removed. fp16 stages need 45 dB and a
    worst-frame cosine of 0.999, fp32 stages 90 dB and 0.99999. The case "recorded" compares the golden tensors that the
    conversion stored with PyTorch today.

    \b
    Example:
      rvc-coreml validate library
    """
    from ..runtime.backends import choose_backend
    from ..runtime.backends.coreml_backend import coreml_available
    from ..runtime.library import Library
    from ..runtime.validation import validate_library

    opened = Library.open(library)
    packages = "coreml" if coreml_available() else "reference"
    chosen = choose_backend(packages if backend == "auto" else backend)
    with progress_bar() as progress:
        checks = validate_library(opened, chosen, progress)
    failed = [check for check in checks if not check.passed]
    if as_json:
        print_json({"library": library, "backend": chosen.name, "passed": not failed, "checks": [check.as_dict() for check in checks]})
    else:
        rows = []
        for check in checks:
            figures = ["", "", ""]
            if check.comparison is not None:
                figures = [f"{check.comparison.snr_db:.1f}", f"{check.comparison.worst_cosine:.6f}", f"{check.comparison.level:.4f}"]
            verdict = "ok" if check.passed else "FAILED" + (f": {one_line(check.problem)}" if check.problem else "")
            rows.append([check.component, check.stage, check.precision, check.case, check.output, *figures, verdict])
        without = " (PyTorch against itself: no package was run)" if chosen.name == "torch" else ""
        click.echo(table(["component", "stage", "precision", "case", "output", "SNR dB", "cosine", "level", "verdict"], rows))
        click.echo(f"{len(checks) - len(failed)} of {len(checks)} checks passed on {chosen.name}{without}")
    if failed:
        raise SystemExit(1)
