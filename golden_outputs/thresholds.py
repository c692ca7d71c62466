"""What agreement is enough, and why: one table of limits, three bands, one verdict.

No limit is loosened to pass. Recorded golden outputs carry a snapshot of this table, and a number that is looser than
the recorded one needs a line in their manifest that says why (`widened`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

from .hearing import INAUDIBLE, INAUDIBLE_DBFS
from .metrics import Comparison

Border = float | tuple[float, float]
Direction = Literal["at_least", "at_most", "range"]


class Verdict(str, Enum):
    """What a comparison comes to. Broken is never used; degraded is used and said."""

    GOOD = "good"
    DEGRADED = "degraded"
    BROKEN = "broken"


_UNEXPLAINED = "no line of threshold_changes says why"
SEVERITY = {Verdict.GOOD: 0, Verdict.DEGRADED: 1, Verdict.BROKEN: 2}


@dataclass(frozen=True)
class Limit:
    """Where one metric stops being good, where it stops being degraded and is broken, and the reason of both.

    A value on a border is on its good side. `at_least` and `at_most` have a number for each border, `range` a pair.
    """

    metric: str
    good: Border
    degraded: Border
    reason: str
    direction: Direction = "at_least"

    def value(self, comparison: Comparison) -> float | None:
        """None where a metric of audio was not measured."""
        if hasattr(comparison, self.metric):
            return float(getattr(comparison, self.metric))
        return None if comparison.audio is None else float(getattr(comparison.audio, self.metric))

    def band(self, value: float) -> Verdict:
        """NaN is broken."""
        if self._within(value, self.good):
            return Verdict.GOOD
        return Verdict.DEGRADED if self._within(value, self.degraded) else Verdict.BROKEN

    def _within(self, value: float, border: Border) -> bool:
        if isinstance(border, tuple):
            return border[0] <= value <= border[1]
        return value >= border if self.direction == "at_least" else value <= border

    def missed(self, value: float, verdict: Verdict) -> str:
        """Which border a value of this verdict lies beyond, as "snr_db 28.1 is below 30"."""
        border = self.good if verdict is Verdict.DEGRADED else self.degraded
        if isinstance(border, tuple):
            return f"{self.metric} {value:.4g} is outside {border[0]:g} to {border[1]:g}"
        return f"{self.metric} {value:.6g} is {'below' if self.direction == 'at_least' else 'above'} {border:g}"


@dataclass(frozen=True)
class Judgement:
    """A verdict and what decided it: one entry for each limit that was missed as badly as that. Empty where all is good."""

    verdict: Verdict
    decided_by: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """One line."""
        return ": ".join([self.verdict.value, *(["; ".join(self.decided_by)] if self.decided_by else [])])


NOT_FINITE = "it is not finite"
PART = "part"  # of a network in parts
USABLE_SNR, USABLE_LEVEL = 30.0, (0.9, 1.1)

# What every stage shares, and all that placement asks. Each is also where degraded ends and broken begins.
SHARED = (
    Limit("snr_db", USABLE_SNR, USABLE_SNR, "far below what half precision gives (45 to 60 dB) and far above any wrong result"),
    Limit("level", USABLE_LEVEL, USABLE_LEVEL, "1 dB is heard; the known failure of fp16 vocoders is a level of 4.25", "range"),
)
# Not a metric but what they allow for in audio: see `quietest`.
HEARING = (
    Limit(
        "inaudible_dbfs",
        INAUDIBLE_DBFS,
        INAUDIBLE_DBFS,
        "speech at -20 dBFS is listened to at 65 dB SPL, so an error of -85 dBFS is at 0 dB SPL, where hearing begins (ISO 226, ISO 389-7)",
        "at_most",
    ),
)
_LEVELS = {
    "fp16": Limit(
        "level", (0.99, 1.01), USABLE_LEVEL, "rounding has no bias, so a level off by 1% is a scale; 10% is 1 dB and heard", "range"
    ),
    "fp32": Limit("level", (0.999, 1.001), USABLE_LEVEL, "as in half precision and ten times closer; 10% is 1 dB and heard", "range"),
}
_STAGES = {
    "fp16": (
        Limit(
            "snr_db",
            45.0,
            USABLE_SNR,
            "11 bits are about 66 dB for one rounding; 45 dB leaves room for a few hundred in a row (measured: 46 to 65)",
        ),
        _LEVELS["fp16"],
    ),
    "fp32": (
        Limit("snr_db", 90.0, USABLE_SNR, "24 bits are about 144 dB for one rounding, with the same room (measured: 128 and more)"),
        _LEVELS["fp32"],
    ),
}
_WHOLE = "the whole output counts as one frame, since nobody here knows its axes"
# A part of a network that nobody here knows has no time, frames or sound to speak of.
_PARTS = {
    "fp16": (*_STAGES["fp16"], Limit("worst_cosine", 0.999, 0.9, f"2.6 degrees, a value 27 dB off; {_WHOLE}")),
    "fp32": (*_STAGES["fp32"], Limit("worst_cosine", 0.99999, 0.9, f"0.26 degrees, which no rounding of single precision does; {_WHOLE}")),
}
_ANOTHER_FRAME = "at 26 degrees a frame of features is another sound"
_QUIET_FRAME = "a frame of audio 40 dB below its clip is turned by 45 degrees by an error as quiet as itself"
_ONE_VALUE = "one wrong value among a frame's hundreds moves neither SNR nor cosine; an error of the size of the RMS is no rounding"
_FEATURES = {
    "fp16": (
        *_STAGES["fp16"],
        Limit("worst_cosine", 0.999, 0.9, f"2.6 degrees, a frame 27 dB off (measured: 0.99998); {_ANOTHER_FRAME}"),
        Limit("max_relative_error", 0.1, 1.0, f"18 times an RMS error of 45 dB (measured: 0.025); {_ONE_VALUE}", "at_most"),
    ),
    "fp32": (
        *_STAGES["fp32"],
        Limit("worst_cosine", 0.99999, 0.9, f"0.26 degrees, which no rounding of single precision does; {_ANOTHER_FRAME}"),
        Limit("max_relative_error", 0.001, 1.0, f"30 times an RMS error of 90 dB (measured: 0.000002); {_ONE_VALUE}", "at_most"),
    ),
}
_PEAKS = "salience is a few peaks of 18 times the RMS over near-zero values, and a third of a peak is another pitch"
_PITCH = {
    "fp16": (*_FEATURES["fp16"][:3], Limit("max_relative_error", 0.5, 5.0, f"a thirtieth of a peak (measured: 0.04); {_PEAKS}", "at_most")),
    "fp32": (
        *_FEATURES["fp32"][:3],
        Limit("max_relative_error", 0.005, 5.0, f"1% of half precision's (measured: 0.00001); {_PEAKS}", "at_most"),
    ),
}
# Audio: white noise under recorded speech anchors the spectral metrics, 60 dB below it for good fp16, 90 dB for good fp32 and
# 30 dB, where SNR ends too, for broken. Rounding follows the signal's own spectrum and does far less.
_SPEECH_60, _SPEECH_90 = "what noise 60 dB below recorded speech does", "what noise 90 dB below recorded speech does"
_SPEECH_30 = "beyond the second border, what noise 30 dB below it does"
_SOUND = {
    "fp16": (
        Limit("log_mel_cosine", 0.98, 0.6, f"{_SPEECH_60} (measured: 0.9994); {_SPEECH_30}"),
        Limit("stft_distance", 0.2, 1.5, f"{_SPEECH_60} (measured: 0.012); {_SPEECH_30}", "at_most"),
        Limit("mcd_db", 1.5, 8.0, f"{_SPEECH_60} (measured: 0.02); {_SPEECH_30}", "at_most"),
        Limit(
            "pitch_agreement", 0.95, 0.8, "frames at the edge of voicing may fall on either side; one in five is a tune with wrong notes"
        ),
    ),
    "fp32": (
        Limit("log_mel_cosine", 0.9999, 0.6, f"{_SPEECH_90}; {_SPEECH_30}"),
        Limit("stft_distance", 0.01, 1.5, f"{_SPEECH_90}; {_SPEECH_30}", "at_most"),
        Limit("mcd_db", 0.05, 8.0, f"{_SPEECH_90}; {_SPEECH_30}", "at_most"),
        Limit("pitch_agreement", 0.98, 0.8, "as in half precision, with fewer frames at the edge"),
    ),
}
_DECODER = {
    "fp16": (
        *_STAGES["fp16"],
        Limit("worst_cosine", 0.999, 0.7, f"2.6 degrees, 10 ms of audio 27 dB off (measured: 0.99999); {_QUIET_FRAME}"),
        *_SOUND["fp16"],
    ),
    "fp32": (
        *_STAGES["fp32"],
        Limit("worst_cosine", 0.99999, 0.7, f"0.26 degrees, which no rounding of single precision does; {_QUIET_FRAME}"),
        *_SOUND["fp32"],
    ),
}
_PIPELINE = {
    "fp16": (
        Limit("snr_db", 40.0, USABLE_SNR, "four stages in a row add their errors (measured: 45 to 48 dB); below 30 dB as for every stage"),
        _LEVELS["fp16"],
        Limit("worst_cosine", 0.99, 0.7, f"8 degrees, 10 ms of audio 17 dB off (measured: 0.9997); {_QUIET_FRAME}"),
        *_SOUND["fp16"],
    ),
    "fp32": (
        Limit("snr_db", 80.0, USABLE_SNR, "four stages in a row add their errors (measured: 115 dB); below 30 dB as for every stage"),
        _LEVELS["fp32"],
        Limit("worst_cosine", 0.9999, 0.7, f"0.8 degrees; {_QUIET_FRAME}"),
        *_SOUND["fp32"],
    ),
}
_ROWS = {
    PART: _PARTS,
    "content_encoder": _FEATURES,
    "text_encoder": _FEATURES,
    "flow": _FEATURES,
    "decoder": _DECODER,
    "pitch": _PITCH,
    "pipeline": _PIPELINE,
}
LIMITS: dict[tuple[str, str], tuple[Limit, ...]] = {
    (what, precision): limits for what, precisions in _ROWS.items() for precision, limits in precisions.items()
}


def limit(what: str, precision: str, metric: str) -> Limit:
    """One limit of the table; KeyError where there is none."""
    return {entry.metric: entry for entry in LIMITS[what, precision]}[metric]


@dataclass(frozen=True)
class Quietest:
    """RMS of a clip, and of a frame of 10 ms, that is judged as though it were no quieter; full scale is 1."""

    clip: float
    frame: float


def quietest(what: str) -> Quietest:
    """Where an inaudible error is just good in half precision: the decoder's -40 dBFS for 45 dB, the pipeline's -45 dBFS for 40 dB.

    Whatever is louder is judged by its own level. Raises KeyError for what has no row.
    """
    snr, cosine = (limit(what, "fp16", metric).good for metric in ("snr_db", "worst_cosine"))
    assert isinstance(snr, float), "a lower limit"  # noqa: S101
    assert isinstance(cosine, float), "a lower limit"  # noqa: S101
    return Quietest(INAUDIBLE * 10 ** (snr / 20), INAUDIBLE * cosine / (1 - cosine**2) ** 0.5)


def judge(comparison: Comparison, what: str, precision: str) -> Judgement:
    """The worst band of any metric. `what` is a stage or "pipeline"; metrics of audio count where they were measured.

    Raises KeyError for a row that is not in the table.
    """
    return _judged(comparison, LIMITS[what, precision])


def usable(comparison: Comparison) -> bool:
    """Whether placement may use what gave this: not broken by the limits that all stages share."""
    return _judged(comparison, SHARED).verdict is Verdict.GOOD


def _judged(comparison: Comparison, limits: tuple[Limit, ...]) -> Judgement:
    if not comparison.finite:
        return Judgement(Verdict.BROKEN, (NOT_FINITE,))
    found = [(entry, value, entry.band(value)) for entry in limits if (value := entry.value(comparison)) is not None]
    worst = max((band for _entry, _value, band in found), key=SEVERITY.__getitem__, default=Verdict.GOOD)
    if worst is Verdict.GOOD:
        return Judgement(worst)
    return Judgement(worst, tuple(entry.missed(value, worst) for entry, value, band in found if band is worst))


def snapshot() -> dict[str, Any]:
    """The whole table for JSON: {"decoder": {"fp16": {"snr_db": {good, degraded, direction, reason}}}}, "shared" and "hearing"."""
    rows: dict[str, Any] = {}
    for (what, precision), limits in (*LIMITS.items(), (("shared", "any"), SHARED), (("hearing", "any"), HEARING)):
        rows.setdefault(what, {})[precision] = {
            entry.metric: {
                "good": _plain(entry.good),
                "degraded": _plain(entry.degraded),
                "direction": entry.direction,
                "reason": entry.reason,
            }
            for entry in limits
        }
    return rows


def widened(recorded: dict[str, Any], changes: list[dict[str, Any]]) -> list[str]:
    """One sentence for every limit that is looser now than in `recorded` and that no line of `changes` explains.

    A line is {threshold, from, to, why, date} with a threshold like "decoder/fp16/snr_db/good"; lines are followed in their
    order from the recorded number. `to` is null for a limit that is gone, `from` where a recording knows no inaudible error.
    """
    found = []
    for name, was, now in loosened(recorded, changes):
        if now is None:
            found.append(f"the limit {name} is gone, {_shown(was)} is recorded, and {_UNEXPLAINED}")
        else:
            found.append(f"the limit {name} is {_shown(now)}, looser than the recorded {_shown(was)}, and {_UNEXPLAINED}")
    return found


def loosened(recorded: dict[str, Any], changes: list[dict[str, Any]]) -> list[tuple[str, Any, Any]]:
    """The same as (threshold, from, to): the number that `changes` lead to, and today's, None where it is gone."""
    today = dict(_borders(snapshot()))
    found = []
    for name, (old, direction) in _borders(recorded):
        allowed = _followed(name, old, changes)
        new = today[name][0] if name in today else None
        if allowed is not None and (new is None or today[name][1] != direction or _looser(new, allowed, direction)):
            found.append((name, allowed, new))
    if "hearing" not in recorded:  # every error counted then
        for name, (new, direction) in _borders({"hearing": snapshot()["hearing"]}):
            allowed = _followed(name, None, changes)
            if allowed is None or _looser(new, allowed, direction):
                found.append((name, allowed, new))
    return found


def _borders(rows: dict[str, Any]) -> Iterator[tuple[str, tuple[Any, str]]]:
    """("decoder/fp16/snr_db/good", (number or pair, direction)) for every border of a snapshot."""
    for what, precisions in rows.items():
        for precision, metrics in precisions.items():
            for metric, entry in metrics.items():
                for border in ("good", "degraded"):
                    yield f"{what}/{precision}/{metric}/{border}", (entry[border], entry["direction"])


def _followed(name: str, old: Any, changes: list[dict[str, Any]]) -> Any:
    """The number that the complete lines of `changes` lead to."""
    for line in changes:
        complete = all(str(line.get(key) or "").strip() for key in ("why", "date"))
        if complete and line.get("threshold") == name and line.get("from") == old and {"from", "to"} <= set(line):
            old = line["to"]
    return old


def _looser(new: Any, old: Any, direction: str) -> bool:
    if direction == "range":
        return new[0] < old[0] or new[1] > old[1]
    return new < old if direction == "at_least" else new > old


def _plain(border: Border) -> float | list[float]:
    return list(border) if isinstance(border, tuple) else border


def _shown(border: Any) -> str:
    if border is None:
        return "none"
    return f"{border[0]:g} to {border[1]:g}" if isinstance(border, list) else f"{border:g}"
