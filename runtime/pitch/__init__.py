"""Pitch: estimators behind one registry, what users may do to a contour, and the two forms in which a voice takes it.

`registry` holds the estimators and runs them, `model_methods` those with a pitch model (which `neural`
executes; `embedded` has one), `classical` those without weights, `contour` the options and the coarse form, `f0_file` contours from files.
"""

from . import model_methods  # isort: skip  # estimators register in the order in which users see them
from . import classical
from .constants import F0_MAX, F0_MIN, FRAME_RATE, HOP, SAMPLE_RATE
from .contour import apply_contour_options, autotune, coarse_pitch, fill_unvoiced, median_filter, shift_semitones
from .f0_file import PitchTrack, read_f0_file
from .registry import AUTO, ESTIMATORS, Estimator, PitchModels, best_method, choose_method, estimate_pitch, estimator, resolve_method

__all__ = [
    "AUTO",
    "ESTIMATORS",
    "F0_MAX",
    "F0_MIN",
    "FRAME_RATE",
    "HOP",
    "SAMPLE_RATE",
    "Estimator",
    "PitchModels",
    "PitchTrack",
    "apply_contour_options",
    "autotune",
    "best_method",
    "choose_method",
    "classical",
    "coarse_pitch",
    "estimate_pitch",
    "estimator",
    "fill_unvoiced",
    "median_filter",
    "model_methods",
    "read_f0_file",
    "resolve_method",
    "shift_semitones",
]
