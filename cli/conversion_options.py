"""The options of a conversion, under the names that users of RVC programs know."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .grouped import GroupedOption

if TYPE_CHECKING:
    from ..runtime.options import ConversionOptions

# As runtime.pitch registers them; importing that would make --help wait for its packages.
F0_METHODS = ("auto", "rmvpe", "fcpe", "crepe", "crepe-tiny", "swiftf0", "harvest", "dio", "pm")
PITCH, TIMBRE, SOUND = "Pitch", "Timbre", "Output sound"
_NAMES = (
    *("pitch", "octaves", "f0_method", "f0_autotune", "f0_autotune_strength", "f0_unvoiced", "filter_radius", "rmvpe_padding"),
    *("index_rate", "retrieval", "protect", "speaker", "v1_features", "rms_mix_rate", "resample_sr", "length", "split", "seed"),
)


def conversion_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """All of them, in the order of --help; `read_options` makes a ConversionOptions of what they give."""
    for option in reversed(_options()):
        function = option(function)
    return function


def read_options(values: dict[str, Any]) -> ConversionOptions:
    """Take the options' values out of a command's. Raises UsageError for what is out of range."""
    from ..errors import UsageError
    from ..runtime.options import ConversionOptions

    given = {name: values.pop(name) for name in _NAMES}
    octaves, strength, tuned = given.pop("octaves"), given.pop("f0_autotune_strength"), given.pop("f0_autotune")
    if strength is not None and not tuned:
        raise UsageError("--f0-autotune-strength does nothing without --f0-autotune: add it, or leave both out")
    given["pitch"] += 12 * octaves
    given["unvoiced"] = given.pop("f0_unvoiced")
    options = ConversionOptions(autotune=(1.0 if strength is None else strength) if tuned else 0.0, **given)
    options.check()
    return options


def _options() -> list[Callable[[Callable[..., Any]], Callable[..., Any]]]:
    def option(*names: str, **settings: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        return click.option(*names, cls=GroupedOption, **settings)

    def number(*names: str, default: float | None, metavar: str, kind: type = float, **settings: Any) -> Any:
        return option(*names, type=kind, default=default, show_default=default is not None, metavar=metavar, **settings)

    def choice(*names: str, choices: tuple[str, ...], **settings: Any) -> Any:
        return option(*names, type=click.Choice(choices), default=choices[0], show_default=True, **settings)

    return [
        number(
            "--pitch",
            default=0.0,
            metavar="SEMITONES",
            group=PITCH,
            aliases=("--f0up-key", "--f0upkey", "--n-semitones"),
            help="Shift, -48 to 48, fractions allowed; 12 from a low voice to a high one.",
        ),
        number(
            "--octaves", default=0, kind=int, metavar="N", group=PITCH, aliases=("--n-octaves",), help="Whole octaves, added to --pitch."
        ),
        choice(
            "--f0-method",
            choices=F0_METHODS,
            group=PITCH,
            aliases=("--f0method",),
            help="Pitch estimator; auto is the best that the library has a model for (convert pitch), else the built-in swiftf0.",
        ),
        option(
            "--f0-file",
            type=click.Path(path_type=Path),
            group=PITCH,
            aliases=("--f0file",),
            help="Pitch to sing instead: lines of 'seconds,Hz', or a .npy array. For one input.",
        ),
        option("--f0-autotune", is_flag=True, group=PITCH, aliases=("--autotune-vocals",), help="Move the pitch to the nearest note."),
        number(
            "--f0-autotune-strength",
            default=None,
            metavar="0..1",
            group=PITCH,
            aliases=("--autotune-strength",),
            help="How far.  [default: 1, all the way]",
        ),
        choice(
            "--f0-unvoiced",
            choices=("keep", "interpolate"),
            group=PITCH,
            help="Unvoiced frames stay so, or get a pitch between their neighbours' (RVC-WebUI from 2026).",
        ),
        number(
            "--filter-radius",
            default=3,
            kind=int,
            metavar="0..7",
            group=PITCH,
            aliases=("--filterradius",),
            help="Above 2, harvest's pitch is median-filtered.",
        ),
        choice("--rmvpe-padding", choices=("constant", "reflect"), group=PITCH, help="Of RMVPE's last frames: RVC-WebUI's, or Applio's."),
        number(
            "--index-rate",
            default=0.75,
            metavar="0..1",
            group=TIMBRE,
            aliases=("--indexrate",),
            help="Share of the voice's own features from its index: more is closer to the voice, less articulate. 0 turns it off.",
        ),
        choice("--retrieval", choices=("faithful", "exact"), group=TIMBRE, help="Search the index as its file asks for, or all of it."),
        number(
            "--protect",
            default=0.33,
            metavar="0..0.5",
            group=TIMBRE,
            aliases=("--protect-rate",),
            help="Share of them in breath and consonants: less protects these more, 0.5 not at all.",
        ),
        number(
            "--speaker",
            "--sid",
            default=0,
            kind=int,
            metavar="N",
            group=TIMBRE,
            aliases=("--speaker-id",),
            help="Speaker of a multi-speaker voice.",
        ),
        choice("--v1-features", choices=("webui", "applio"), group=TIMBRE, help="Layer that v1 voices read: 9, or 12 as in Applio."),
        number(
            "--rms-mix-rate",
            "--volume-envelope",
            default=0.25,
            metavar="0..1",
            group=SOUND,
            aliases=("--rmsmixrate",),
            help="Loudness over time: 0 the input's, 1 the voice's own.",
        ),
        number(
            "--resample-sr",
            default=0,
            kind=int,
            metavar="HZ",
            group=SOUND,
            aliases=("--resamplesr", "--output-sr"),
            help="Sample rate of the output, 16000 to 192000; 0 is the voice's.",
        ),
        choice(
            "--length",
            choices=("upstream", "input"),
            group=SOUND,
            help="RVC-WebUI loses up to 20 ms at the end of every segment; input keeps the length.",
        ),
        choice(
            "--split",
            choices=("abs", "sum"),
            group=SOUND,
            help="Clips past 41 s are cut where |x| is least, or |sum of x| (before 2024).",
        ),
        number(
            "--seed",
            default=0,
            kind=int,
            metavar="N",
            group=SOUND,
            help="Of the voice's noise; the same seed gives the same output.",
        ),
    ]
