"""`rvc-coreml benchmark`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from .common import JSON_HELP, note, print_json, progress_bar, table

STANDARD_OUTPUT = "-"

if TYPE_CHECKING:
    from ..runtime.benchmark import Make, Step, Timing
    from ..runtime.library import Library


def _names(_context: click.Context, parameter: click.Parameter, value: str | None) -> list[str]:
    """A list such as cpu,cuda; a callback for options."""
    if value is None:
        return []
    names = [name.strip() for name in value.split(",")]
    if not all(names):
        raise click.BadParameter(f"{value!r} is no list such as {parameter.metavar}")
    return names


@click.command()
@click.option("-m", "--model-library", "library", required=True, metavar="LIB", help="Model library written by convert.")
@click.option("--voice", help="Name of the voice; not needed where the library has one.")
@click.option("--input", "input_file", metavar="FILE", type=click.Path(path_type=Path), help="What to convert; a made-up voice otherwise.")
@click.option("--seconds", type=click.FloatRange(0.5, 3600), default=10.0, show_default=True, help="Length of what is converted.")
@click.option("--runs", type=click.IntRange(1, 1000), default=5, show_default=True, help="Rounds after the warm-up.")
@click.option("--devices", metavar="cpu,cuda", callback=_names, help="Where to run; the device of 'infer' otherwise.")
@click.option("--precision", metavar="fp32,fp16", callback=_names, help="Of what PyTorch runs; the device's default otherwise.")
@click.option("--f0-method", default="auto", show_default=True, help="Pitch estimator.")
@click.option("--index-rate", type=click.FloatRange(0, 1), default=0.75, show_default=True, help="Share of retrieved features.")
@click.option("--ablate", is_flag=True, help="Also the gain of each optimisation in turn, on the first device.")
@click.option("--config", metavar="FILE", type=click.Path(path_type=Path), help="TOML file of settings; RVC_COREML_CONFIG otherwise.")
@click.option("--chart", metavar="FILE", type=click.Path(path_type=Path), help="Draw bars by stage (.png, .svg or .pdf).")
@click.option(
    "--json", "json_file", metavar="[FILE]", is_flag=False, flag_value=STANDARD_OUTPUT, help=f"{JSON_HELP} Or write it to a file."
)
def command(
    library: str,
    voice: str | None,
    input_file: Path | None,
    seconds: float,
    runs: int,
    devices: list[str],
    precision: list[str],
    f0_method: str,
    index_rate: float,
    ablate: bool,
    config: Path | None,
    chart: Path | None,
    json_file: str | None,
) -> None:
    """Time conversions by stage, device and precision.

    Everything is loaded and warmed up first and then run in turn; figures are medians. With --ablate, every optimisation
    is switched off and added again one by one, and each output is compared with the first: the exit code is 1 where one
    of them is wrong.

    \b
    Examples:
      rvc-coreml benchmark -m library --voice singer
      rvc-coreml benchmark -m library --voice singer --devices cpu,cuda --precision fp32,fp16 --chart speed.png
      rvc-coreml benchmark -m library --voice singer --seconds 30 --ablate
    """
    from ..runtime import benchmark
    from ..runtime.config import OptimizationConfig
    from ..runtime.doctor import conversion_device
    from ..runtime.files import require_writable, write_json
    from ..runtime.library import Library

    if chart is not None:
        from ..runtime.reference.plot import check_plot

        check_plot(chart)
    if json_file not in (None, STANDARD_OUTPUT):
        require_writable(Path(json_file))
    opened = Library.open(library)
    voice = _voice(opened, voice)
    chosen = devices or [conversion_device()]
    given = benchmark.cases(chosen, precision, lambda device: OptimizationConfig.load(device, config))
    audio = benchmark.example_voice(seconds) if input_file is None else _recorded(input_file, seconds)
    long = len(audio) / benchmark.RATE
    make = _maker(opened, voice, {"f0_method": f0_method, "index_rate": index_rate})
    with progress_bar() as progress:
        timings = benchmark.time_cases(make, given, audio, runs, progress)
        steps: list[Step] = []
        if ablate:
            steps = benchmark.ablate(make, given[0].device, given[0].config, audio, runs, progress)
    found = benchmark.report(timings, long, steps)
    found = {"voice": voice, "runs": runs, "f0_method": f0_method, **found}
    if chart is not None and any(timing.rounds for timing in timings):
        from ..runtime.benchmark_chart import draw

        draw(timings, steps, chart, f"{voice}: {long:.1f} s of audio, medians of {runs}")
    if json_file == STANDARD_OUTPUT:
        print_json(found)
    else:
        if json_file is not None:
            write_json(Path(json_file), found)
        _show(timings, steps, long, runs)
    if any(timing.problem for timing in timings) or any(not step.correct and step.kept for step in steps):
        click.get_current_context().exit(1)


def _voice(library: Library, name: str | None) -> str:
    names = library.voice_names()
    if name is None and len(names) != 1:
        raise UsageError(f"which voice? name one with --voice; the library has {', '.join(names) or 'none'}")
    return names[0] if name is None else library.voice(name).manifest.name


def _recorded(path: Path, seconds: float) -> Any:
    """The beginning of a file, 16 kHz (N,)."""
    import numpy as np

    from ..runtime.audio import SAMPLE_RATE, read_recording

    with read_recording(path) as recording:
        return np.array(recording.samples[: round(seconds * SAMPLE_RATE)], np.float32)


def _maker(library: Library, voice: str, options: dict[str, Any]) -> Make:
    """Converters of the voice, each with a backend of its own on the device that is asked for."""
    from ..runtime.config import OptimizationConfig
    from ..runtime.converter import VoiceConverter
    from ..runtime.profiling import Profile

    class Fixed:
        def __init__(self, device: str, config: OptimizationConfig, profile: Profile) -> None:
            on_core_ml = device == "coreml"
            self._converter = VoiceConverter(
                library,
                voice,
                "coreml" if on_core_ml else "torch",
                note,
                device=None if on_core_ml else device,
                config=config,
                profile=profile,
            )

        @property
        def executed_by(self) -> dict[str, str]:
            return self._converter.executed_by

        def convert(self, audio: Any, sample_rate: int, /) -> Any:
            return self._converter.convert(audio, sample_rate, **options)

    return Fixed


def _show(timings: list[Timing], steps: list[Step], seconds: float, runs: int) -> None:
    from ..runtime.benchmark import markdown

    click.echo(f"{seconds:.1f} s of audio, medians of {runs}\n")
    stages = list(dict.fromkeys(name for timing in timings for name in timing.by_stage()))
    rows = []
    for timing in timings:
        if timing.problem:
            rows.append([timing.case.name, f"failed ({timing.problem})", *["-"] * (len(stages) + 2)])
            continue
        by_stage = timing.by_stage()
        rows.append(
            [
                timing.case.name,
                f"{timing.seconds:.3f}",
                f"{timing.seconds / seconds:.3f}",
                f"{timing.first:.3f}",
                *[f"{by_stage.get(name, 0.0):.3f}" for name in stages],
            ]
        )
    click.echo(table(["case", "seconds", "real-time factor", "first run", *[name.replace("_", " ") for name in stages]], rows))
    if steps:
        click.echo("\n" + markdown(steps, seconds))
