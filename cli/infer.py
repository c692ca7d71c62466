"""`rvc-coreml infer`."""

from __future__ import annotations

import time
from pathlib import Path

import click

from .common import JSON_HELP, note, print_json, progress_bar, warn_of_embedder


@click.command()
@click.argument("input", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("-m", "--model-library", "library", required=True, metavar="LIB", help="Model library written by convert.")
@click.option("--voice", required=True, help="Name of the voice in the library.")
@click.option(
    "--backend",
    type=click.Choice(["auto", "coreml", "reference", "torch"]),
    default="auto",
    show_default=True,
    help="What runs the stages; auto is Core ML on a Mac and PyTorch elsewhere.",
)
@click.option("--pitch", type=float, default=0.0, show_default=True, metavar="SEMITONES", help="Transposition.")
@click.option(
    "--f0-method",
    type=click.Choice(["harvest", "dio"]),
    default="harvest",
    show_default=True,
    help="Pitch estimator: harvest is the more robust, dio the faster.",
)
@click.option("--speaker", "--sid", type=int, default=0, show_default=True, help="Speaker of a multi-speaker voice.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the voice's noise; the same seed gives the same output.")
@click.option("--json", "as_json", is_flag=True, help=JSON_HELP)
def command(
    input: Path, output: Path, library: str, voice: str, backend: str, pitch: float, f0_method: str, speaker: int, seed: int, as_json: bool
) -> None:
    """Convert speech or singing into a voice of a library.

    INPUT is wav, flac, ogg or mp3; OUTPUT is wav, flac or ogg and gets the voice's sample rate.

    \b
    Example:
      rvc-coreml infer speech.wav out.wav -m library --voice singer --pitch 12
    """
    from ..errors import UsageError
    from ..runtime.audio import OutputBuffer, output_format, read_recording
    from ..runtime.converter import VoiceConverter
    from ..runtime.files import require_writable, same_file
    from ..runtime.library import Library
    from ..runtime.memory import peak_memory

    output_format(output)
    if same_file(input, output):
        raise UsageError(f"{output} is the input itself: choose another output")
    Library.open(library).voice(voice)
    require_writable(output)
    fallbacks: list[str] = []

    def report(line: str) -> None:
        fallbacks.append(line)
        note(line)

    with read_recording(input) as recording, OutputBuffer() as buffer:
        converter = VoiceConverter(library, voice, backend, report)
        warn_of_embedder(converter.voice)
        if converter.voice.manifest.index is not None:
            note(f"the feature index of {voice!r} is stored but not used yet")
        start = time.perf_counter()
        with progress_bar() as progress:
            converter.convert_recording(recording, buffer, pitch=pitch, speaker=speaker, seed=seed, f0_method=f0_method, progress=progress)
        buffer.write(output, converter.sample_rate)
        seconds = time.perf_counter() - start
        result = {
            "output": str(output),
            "voice": voice,
            "backend": converter.backend.name,
            "executed_by": converter.executed_by,
            "fallbacks": fallbacks,
            "sample_rate": converter.sample_rate,
            "samples": buffer.samples,
            "audio_seconds": round(recording.seconds, 3),
            "seconds": round(seconds, 3),
            "real_time_factor": round(seconds / recording.seconds, 3),
            "peak_memory_bytes": peak_memory(),
        }
    if as_json:
        print_json(result)
        return
    ran = sorted(set(converter.executed_by.values()))
    click.echo(f"{output}: {recording.seconds:.1f} s at {converter.sample_rate} Hz, voice {voice!r}, run by {' and '.join(ran)}")
    click.echo(
        f"real-time factor {seconds / recording.seconds:.2f} ({seconds:.1f} s, loading not counted),"
        f" peak memory {peak_memory() / 1e9:.2f} GB"
    )
