"""What of an error nobody hears, and clips compared so that it decides nothing. docs/metrics.md has the derivation."""

from __future__ import annotations

import numpy as np

from .spectra import Array

# Speech has an active level of about -20 dBFS RMS in a recording and is listened to at about 65 dB SPL, so -85 dBFS RMS is 0 dB SPL, where
# hearing begins (ISO 226, ISO 389-7).
INAUDIBLE_DBFS = -85.0
INAUDIBLE = 10 ** (INAUDIBLE_DBFS / 20)  # RMS, full scale being 1
_SILENT = 1e-9  # RMS: below it there is no shape to keep


def raised(reference: Array, actual: Array, least: float) -> tuple[Array, Array]:
    """A clip and its reference with the reference brought up to an RMS of `least` about its mean, and the error left as it is.

    So an error is judged as it would be under a signal of that level. A louder reference and what is compared with it are given back
    untouched. Digital silence has no shape that could be louder: seeded white noise stands in its place.
    """
    wanted = reference.astype(np.float64)
    level = float(wanted.std())
    if not level < least:
        return reference, actual
    if level < _SILENT:
        more = least * np.random.default_rng(0).standard_normal(wanted.shape)
    else:
        more = (wanted - wanted.mean()) * (least / level - 1)
    return wanted + more, actual + more
