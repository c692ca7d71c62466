"""Audio in and out, in blocks, so that hours need no more memory than minutes.

`read_recording` and `recording_of` give mono float32 at 16 kHz, high-passed as RVC-WebUI does; `OutputBuffer` collects what was
converted, mixes its loudness, changes its rate, limits its peak, and writes it.
"""

from .filters import high_pass, high_pass_tensor
from .formats import FORMATS, format_rate, output_format
from .output import OutputBuffer, check_output_options
from .reading import Recording, prepare, read_recording, recording_of
from .storage import SAMPLE_RATE, Samples, reflect_padded, release

__all__ = [
    "FORMATS",
    "SAMPLE_RATE",
    "OutputBuffer",
    "Recording",
    "Samples",
    "check_output_options",
    "format_rate",
    "high_pass",
    "high_pass_tensor",
    "output_format",
    "prepare",
    "read_recording",
    "recording_of",
    "reflect_padded",
    "release",
]
