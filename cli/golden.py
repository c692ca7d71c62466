"""`rvc-coreml golden`: the recordings that packages are judged by."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import JSON_HELP, print_json, progress_bar, table

if TYPE_CHECKING:
    from ..runtime.library import Component, Library

VOICE_HELP = "Only this voice; otherwise everything that the library holds."


@click.group()
def command() -> None:
    """Record, list and check the golden outputs of a library.

    A conversion records them by itself. Record again after an update that changes what is recorded, or to have real
    features or another voice's speech among the inputs.

    \b
    Examples:
      rvc-coreml golden show library
      rvc-coreml golden check library
      rvc-coreml golden record library --voice singer --features features.npy
    """


@command.command()
@click.argument("library", metavar="LIB")
@click.option("--voice", metavar="NAME", help=VOICE_HELP)
@click.option(
    "--features",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Features of a real content encoder, (frames, 768 or 256) at 50 Hz as .npy: a case more for voices.",
)
@click.option(
    "--audio", metavar="FILE", type=click.Path(path_type=Path), help="Speech to record instead of the package's own; its loudest 1.2 s."
)
@click.option("--reason", metavar="TEXT", help="Why limits are looser than when the library was recorded; kept in its manifest.")
@click.option("--json", "as_json", is_flag=True, help=JSON_HELP)
def record(library: str, voice: str | None, features: Path | None, audio: Path | None, reason: str | None, as_json: bool) -> None:
    """Record the golden outputs again, from the weights that the library keeps.

    PyTorch computes them in float32 on the CPU and checks them against float64. A library in use keeps what it has read;
    a recording that fails leaves the old one.

    \b
    Example:
      rvc-coreml golden record library
    """
    from ..errors import UsageError
    from ..runtime.recording import read_features, read_speech, reads_features
    from ..runtime.recording import record as record_again

    opened, components = _components(library, voice)
    given = None if features is None else read_features(features)
    speech = None if audio is None else read_speech(audio)
    if given is not None and not any(reads_features(component, given[0]) for component in components):
        raise UsageError(f"{features} has features of width {given[0].shape[1]}, which no voice here reads")
    done = []
    with progress_bar() as progress:
        for position, component in enumerate(components):
            progress(component.title, position / len(components))
            done.append(record_again(opened, component, speech=speech, features=given, reason=reason))
    _report(library, done, as_json)


@command.command()
@click.argument("library", metavar="LIB")
@click.option("--voice", metavar="NAME", help=VOICE_HELP)
@click.option("--json", "as_json", is_flag=True, help=JSON_HELP)
def show(library: str, voice: str | None, as_json: bool) -> None:
    """List the recordings: cases, size, who made them with what, and reasons for loosened limits.

    \b
    Example:
      rvc-coreml golden show library
    """
    _report(library, _components(library, voice)[1], as_json)


@command.command()
@click.argument("library", metavar="LIB")
@click.option("--voice", metavar="NAME", help=VOICE_HELP)
@click.option("--json", "as_json", is_flag=True, help=JSON_HELP)
def check(library: str, voice: str | None, as_json: bool) -> None:
    """Check that the recordings are whole and that PyTorch still gives them; no package is run.

    Exit code 1 where a file is not the recorded one, a limit is looser than it was without a reason, or a result differs.

    \b
    Example:
      rvc-coreml golden check library
    """
    from ..runtime.recording import check as check_component

    opened, components = _components(library, voice)
    found = []
    with progress_bar() as progress:
        for position, component in enumerate(components):
            progress(component.title, position / len(components))
            found += check_component(opened, component)
    passed = all(drift.passed for drift in found)
    if as_json:
        print_json({"library": library, "passed": passed, "checks": [drift.as_dict() for drift in found]})
    else:
        rows = [[item.component, item.stage, item.case, _decibels(item.snr_db), "same" if item.passed else "DIFFERS"] for item in found]
        click.echo(table(["component", "stage", "case", "SNR dB", "verdict"], rows))
        for problem in dict.fromkeys(item.problem for item in found if item.problem):
            click.echo(problem)
        failed = sum(not item.passed for item in found)
        click.echo(f"{len(found)} checks, {failed} failed" if failed else f"{len(found)} checks, all as recorded")
    if not passed:
        raise SystemExit(1)


def _components(path: str, voice: str | None) -> tuple[Library, list[Component]]:
    from ..runtime.library import Library

    library = Library.open(path)
    return library, library.components() if voice is None else [library.voice(voice)]


def _decibels(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _report(library: str, components: list[Component], as_json: bool) -> None:
    from ..golden_outputs.golden import read_manifest
    from ..runtime.goldens import golden_folder

    entries: list[dict[str, Any]] = []
    for component in components:
        folder = golden_folder(component)
        manifest = read_manifest(folder)
        sets = {name: list(entry["cases"]) for name, entry in manifest["sets"].items()}
        size = sum(file.stat().st_size for file in folder.iterdir())
        own = {"kind": component.manifest.kind, "name": component.manifest.name, "folder": str(folder), "bytes": size, "sets": sets}
        entries.append(own | {name: manifest[name] for name in ("producer", "tools", "threshold_changes")})
    if as_json:
        print_json({"library": library, "components": entries})
        return
    rows = [
        [component.title, name, ", ".join(cases), entry["producer"]]
        for component, entry in zip(components, entries, strict=True)
        for name, cases in entry["sets"].items()
    ]
    click.echo(table(["component", "set", "cases", "by"], rows))
    for component, entry in zip(components, entries, strict=True):
        tools = ", ".join(f"{name} {version}" for name, version in entry["tools"].items())
        click.echo(f"{component.title}: {entry['bytes'] / 1e6:.1f} MB, recorded with {tools}")
        for line in entry["threshold_changes"]:
            threshold, was, now, date, why = (line.get(key) for key in ("threshold", "from", "to", "date", "why"))
            click.echo(f"{component.title}: {threshold} went from {was} to {now} on {date}: {why}")
