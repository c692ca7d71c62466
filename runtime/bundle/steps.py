"""What each step of a conversion does, in words, formulas and pseudocode, with the names of its tables and vectors.

Texts hold constants as {name}; `filled` puts the contract's values in, so that page and contract are of one mind.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .capture import Capture
from .pitch_steps import pitch_model_steps

HOST, PACKAGE = "host", "package"
_PLACE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Step:
    """One step. `given` and `gives` name vectors, `tables` files under host/, `package` the stage it runs."""

    id: str
    title: str
    about: str
    formulas: tuple[str, ...] = ()
    code: str = ""
    tables: tuple[str, ...] = ()
    given: tuple[str, ...] = ()
    gives: tuple[str, ...] = ()
    package: str | None = None

    @property
    def kind(self) -> str:
        return HOST if self.package is None else PACKAGE


def filled(step: Step, constants: Mapping[str, Any]) -> Step:
    """The step with every {name} replaced. Raises KeyError for a constant that is not there."""

    def put(text: str) -> str:
        return _PLACE.sub(lambda found: shown(constants[found[1]]), text)

    return replace(
        step,
        title=put(step.title),
        about=put(step.about),
        formulas=tuple(put(line) for line in step.formulas),
        code=put(step.code).strip("\n"),
    )


def shown(value: Any) -> str:
    """A number as one writes it; lists by their name alone."""
    if isinstance(value, list):
        return "[…]"
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def plan(capture: Capture) -> list[Step]:
    """The steps of this voice, in order."""
    return list(_steps(capture))


def _steps(capture: Capture) -> Iterator[Step]:
    pitched, indexed = "contour" in capture.trace.values, capture.has_index
    yield from (RESAMPLE, HIGH_PASS, SEGMENTS, PAD)
    if pitched:
        yield from _pitch(capture)
    yield from (NORMALISE, WINDOWS, CONTENT)
    if indexed:
        yield RETRIEVAL
    yield _phone(pitched, indexed)
    if pitched:
        yield from (COARSE, EMBEDDING)
    yield _text_encoder(pitched)
    yield _noise(pitched)
    yield FLOW
    if pitched:
        yield SOURCE
    yield _decoder(pitched)
    yield from (LOUDNESS, LIMIT)


def _pitch(capture: Capture) -> Iterator[Step]:
    if capture.network is None:
        yield replace(
            ESTIMATE,
            about=(
                "Hz for every 10 ms of the padded clip, 0 where unvoiced. The library has no pitch model: any estimator will do that"
                f" searches from {{f0_min}} to {{f0_max}} Hz. The vector is rvc-coreml's {capture.method}."
            ),
        )
    else:
        yield from (Step(**values) for values in pitch_model_steps(capture.network))
    median = capture.method == "harvest"
    formulas = ["contour[t] = estimate[t] · 2^({semitones} / 12)"]
    if median:
        formulas.insert(0, "estimate[t] ← median(estimate[t-1], estimate[t], estimate[t+1]), zeros beyond the ends (harvest only)")
    yield Step(
        "contour",
        "Contour of a segment",
        "The user's shift in semitones, then the frames of the segment: T of them from frame start / {hop} on, zeros where the"
        " estimate ends."
        " Unvoiced frames stay 0.",
        (*formulas, "T = min(⌊n / {hop}⌋, 2 · ⌊(n - {content_reach}) / {content_hop} + 1⌋), n the samples of the padded segment"),
        given=("pitch_estimate",),
        gives=("contour",),
    )


RESAMPLE = Step(
    "resample",
    "To {input_rate} Hz, mono",
    "Float samples, -1 to 1, the mean of the channels, at {input_rate} Hz. Any good resampler will do (rvc-coreml takes soxr's"
    " VHQ), so the"
    " vectors begin behind it. Everything up to the voice's own audio is at {input_rate} Hz.",
    gives=("clip",),
)

HIGH_PASS = Step(
    "high_pass",
    "Peak and high-pass",
    "A louder recording is scaled down to a peak of {input_peak}. Then a Butterworth high-pass of order {high_pass_order} at"
    " {high_pass_hz} Hz"
    " runs forwards and backwards, in float64: its poles lie so near to 1 that float32 does not do. The ends are extended by"
    " point reflection first. A pass begins in the steady state of its first sample, which for a high-pass means: subtract that"
    " sample and"
    " begin from rest. Recordings beyond five minutes may be filtered in blocks with two seconds of context.",
    (
        "x ← x / max(1, max|x| / {input_peak})",
        "p = min({high_pass_padding}, N - 1);  e = [2x[0] - x[p] … 2x[0] - x[1],  x,  2x[N-1] - x[N-2] … 2x[N-1] - x[N-1-p]]",
        "F(u):  v = u - u[0];  y[n] = Σ_{k=0..5} b[k] · v[n-k] - Σ_{k=1..5} a[k] · y[n-k]",
        "y = reverse(F(reverse(F(e)))), without its first and last p samples",
    ),
    """
b, a = constants.high_pass_b, constants.high_pass_a      # float64
func F(u):                                               # transposed direct form II
    s = [0, 0, 0, 0, 0]
    for n in 0 ..< u.count:
        v = u[n] - u[0]
        y[n] = b[0]*v + s[0]
        for k in 0 ... 3: s[k] = b[k+1]*v + s[k+1] - a[k+1]*y[n]
        s[4] = b[5]*v - a[5]*y[n]
    return y
""",
    given=("clip",),
    gives=("filtered",),
)

SEGMENTS = Step(
    "segments",
    "Segments of a long clip",
    "Up to {longest} samples a clip is one segment. A longer one is cut near every {center} samples, where 160 samples are quietest."
    " Every segment keeps the pads of the whole clip or the audio of its neighbours around it, and is converted by itself; its audio,"
    " without {pad_frames} frames at either end, follows that of the segment before; a last one with no more frames than these gives"
    " nothing. High-pass, pads, pitch, loudness and output are done once for the whole clip, everything from contour to decoder"
    " for each segment. The contract's `segments` gives those of a long"
    " example: the vector `filtered`, once for each of its gains and multiplied by it.",
    (
        "s(t) = Σ_{k=-80..79} |x[t + k]|, reflected beyond the clip's ends (x[-k] = x[k], x[N-1+k] = x[N-1-k])",
        "cut = {hop} · ⌊argmin s(t) / {hop}⌋, the first of equals,",
        "      over c - {query} ≤ t < min(c + {query}, N) for c = {center}, 2 · {center}, … < N",
    ),
    """
if N + {hop} <= {longest}: cuts = []
bounds = [0] + cuts
for i in 0 ..< bounds.count:                 # in samples of the padded clip
    start = bounds[i]
    stop  = last segment ? N + 2*{pad} : bounds[i+1] + 2*{pad} + {hop}

# For an output exactly as long as the input: reflect {extra} samples more at the clip's end,
# let every stop reach {extra} further, keep (bounds[i+1] - bounds[i]) / {hop} frames of a
# segment, of the last ⌈(N - bounds[i]) / {hop}⌉, and cut what is then too long.
""",
    given=("filtered",),
)

PAD = Step(
    "pad",
    "Pads",
    "{pad} samples reflected on either side, the edge itself not repeated. A clip shorter than that is reflected again and again.",
    ("padded[i] = x[{pad} - i] before the clip,  padded[{pad} + N - 1 + i] = x[N - 1 - i] behind it",),
    given=("filtered",),
    gives=("padded",),
)

ESTIMATE = Step("pitch", "Pitch", "", given=("padded",), gives=("pitch_estimate",))

NORMALISE = Step(
    "normalise",
    "Waveform and GroupNorm statistics",
    "The content encoder's first layer is followed by a GroupNorm over the whole segment, which a window does not see. So the"
    " host computes"
    " its statistics, in float64, from the means and products of the waveform's patches alone, and the package takes scale and"
    " shift. The"
    " waveform itself is moved to zero mean and unit peak for half precision's sake; scale and shift undo that.",
    (
        "offset = mean(x);  gain = min(1 / max|x - offset|, {max_gain}), 1 for silence;  x' = (x - offset) · gain",
        "patch p_t = x[{content_stride}·t … {content_stride}·t + {content_kernel} - 1], t < ⌊(n - {content_kernel}) /"
        " {content_stride}⌋ + 1",
        "μ = mean(p), C = mean(p pᵀ) - μ μᵀ  ({content_kernel} and {content_kernel} by {content_kernel} values)",
        "mean_c = w_c · μ;  var_c = max(0, w_c · C w_c);  f_c = gamma_c / √(var_c + {content_eps})",
        "norm_scale_c = f_c / gain;  norm_shift_c = beta_c - (mean_c - offset · Σ_k w_ck) · f_c",
    ),
    tables=("content_weight", "content_gamma", "content_beta"),
    given=("padded",),
    gives=("norm_values", "norm_mean", "norm_variance", "norm_scale", "norm_shift", "normalised"),
)

WINDOWS = Step(
    "windows",
    "Windows: planned, masked, joined",
    "A package always takes W frames. What is shorter gets zeros behind it and a mask that is 1 for its valid frames and 0 for"
    " the rest. What is"
    " longer is cut into windows that overlap: each is W frames, the last ends with the clip. Seams lie C frames from a window's edge."
    " Flow, decoder and pitch model: a frame comes from the window that keeps it (join). Content encoder and text encoder see the"
    " whole window at once, so one window fades into the next around every seam (blend). The contract's `windows` lists the plan"
    " of some lengths; the"
    " vectors hold the fading weights of one length, a row for each window.",
    (
        "blend:  y[t] = Σ_i weight_i[t] · window_i[t]",
        "weight_i = ramp(t; keep_from_i, h_{i-1}) · (1 - ramp(t; keep_to_i, h_i)), no ramp at the clip's ends",
        "ramp(t; seam, h) = clamp((t + 0.5 - seam) / (2h) + 0.5, 0, 1);  for h = 0: 1 where t + 0.5 > seam, else 0",
        "h_i = min(⌊{fade_share} · min(stop_i - keep_to_i, keep_from_{i+1} - start_{i+1})⌋, ⌊kept_i / 2⌋, ⌊kept_{i+1} / 2⌋)",
        "stop = start + valid,  kept = keep_to - keep_from",
    ),
    """
func plan(first, last, W, C):                # frames first ..< last
    if last - first <= W: return [(start: first, valid: last - first, keep: first ..< last)]
    keep = first; start = first
    loop:
        start = min(start, last - W)
        end   = start + W == last
        to    = end ? last : start + W - C
        append (start, valid: W, keep: keep ..< to)
        if end: return
        keep = to; start = keep - C
""",
    gives=("fade_content_encoder", "fade_text_encoder"),
)

CONTENT = Step(
    "content_encoder",
    "Content encoder",
    "Windows over the F frames of 20 ms, blended. A window of v frames takes the normalised waveform from sample {content_hop} ·"
    " start on,"
    " (v - 1) · {content_hop} + {content_reach} of them, and zeros behind. norm_scale and norm_shift are the same for all windows."
    " This voice takes the output {content_output}; another is not for it.",
    ("F = ⌊(n - {content_reach}) / {content_hop}⌋ + 1",),
    given=("normalised", "norm_scale", "norm_shift"),
    gives=("features",),
    package="content_encoder",
)

RETRIEVAL = Step(
    "retrieval",
    "Retrieval",
    "Each 20 ms frame is mixed with the voice's own features nearest to it. Only the {probed_cells} nearest of the {index_cells}"
    " cells are"
    " searched, as faiss does. A frame whose cells hold fewer than {neighbours_count} vectors takes those; one without any, or"
    " with a value that is not finite, stays.",
    (
        "cells: the {probed_cells} with the least |x - centroid|²",
        "rows index_offsets[c] ..< index_offsets[c + 1] of index_vectors are those of cell c",
        "d_1 ≤ … ≤ d_{neighbours_count}: the least |x - v|² among them",
        "weight_i = (d_1 / d_i)², 1 where d_i = d_1;  weights divided by their sum",
        "y = {index_rate} · Σ_i weight_i v_i + (1 - {index_rate}) · x",
    ),
    tables=("index_centroids", "index_offsets", "index_vectors"),
    given=("features",),
    gives=("neighbours", "distances", "retrieved"),
)


def _phone(pitched: bool, indexed: bool) -> Step:
    source = "retrieved" if indexed else "features"
    about, formulas = "Every 20 ms frame twice.", [f"phone[t] = {source}[⌊t / 2⌋],  t < T"]
    given = [source]
    if indexed and pitched:
        about += " Unvoiced frames keep more of what the content encoder said, which protects consonants (nothing is done at protect 0.5)."
        formulas.append(
            "where contour[t] < {unvoiced_below} Hz:  phone[t] = {protect} · retrieved[⌊t / 2⌋] + (1 - {protect}) · features[⌊t / 2⌋]"
        )
        given = ["retrieved", "features", "contour"]
    if not pitched:
        formulas.append("T = min(⌊n / {hop}⌋, 2F), n the samples of the padded segment")
    return Step("phone", "To 10 ms frames", about, tuple(formulas), given=tuple(given), gives=("phone",))


COARSE = Step(
    "coarse",
    "Coarse pitch",
    "Hz to one of 255 classes on the mel scale; unvoiced frames are class 1. Halves are rounded to even.",
    (
        "m(f) = 1127 · ln(1 + f / 700)",
        "coarse = round(clamp((m(f) - m({f0_min})) · {mel_bins} / (m({f0_max}) - m({f0_min})) + 1, 1, 255)) for f > 0, else 1",
    ),
    given=("contour",),
    gives=("coarse",),
)

EMBEDDING = Step(
    "pitch_embedding",
    "Pitch embedding",
    "A look-up, on the host because Core ML does not gather on the Neural Engine.",
    ("pitch_embedding[t] = pitch_table[coarse[t]]",),
    tables=("pitch_table",),
    given=("coarse",),
    gives=("pitch_embedding",),
)


def _text_encoder(pitched: bool) -> Step:
    return Step(
        "text_encoder",
        "Text encoder",
        "Windows over the T frames, blended; mean and log deviation of the prior.",
        given=("phone", "pitch_embedding") if pitched else ("phone",),
        gives=("m_p", "logs_p"),
        package="text_encoder",
    )


def _noise(pitched: bool) -> Step:
    source = " and T · {samples_per_frame} for the harmonic source" if pitched else ""
    return Step(
        "noise",
        "Noise",
        "Standard normal numbers, drawn anew or from a seed: {inter_channels} by T for the prior" + source + ". Any generator will"
        " do; the"
        " vectors hold those that the other vectors were made with. The package scales the prior's noise itself.",
        gives=("noise_prior", "noise_source") if pitched else ("noise_prior",),
    )


FLOW = Step(
    "flow",
    "Flow",
    "Only what the kept audio depends on is computed. Of T frames, K = T - 2 · {pad_frames} are kept. The decoder is given z from"
    " frame a to b, and"
    " the flow is run with its own context around that. Windows are planned over the stretch first ..< last, cropped to what they"
    " keep of a ..< b"
    " (those without any are left out), and joined. g is the speaker's row of the table.",
    (
        "a = max(0, {pad_frames} - {decoder_context});  b = min(T, {pad_frames} + K + {decoder_context})",
        "first = max(0, a - {flow_context});  last = min(T, b + {flow_context});  plan(first, last, W, {flow_context})",
    ),
    tables=("speakers",),
    given=("m_p", "logs_p", "noise_prior", "g"),
    gives=("z",),
    package="flow",
)

SOURCE = Step(
    "source",
    "Harmonic source",
    "A sine that follows the contour, made in closed form in float64: the phase in cycles at the start of a frame is the sum of"
    " all frames before"
    " it, folded frame by frame, from the segment's first frame on. Summing sample by sample in float32 drifts audibly. The"
    " contour is rounded"
    " to float32 first. Made for the frames a ..< b that the decoder is given.",
    (
        "phase[t] = frac(Σ_{u<t} frac(f[u] / 100))",
        "sine = {sine_amplitude} · sin(2π · frac(phase[t] + f[t] · (i + 1) / {voice_rate})),  i = 0 … {samples_per_frame} - 1",
        "voiced (f[t] > 0):  e = sine + {voiced_noise} · noise;  unvoiced:  e = {unvoiced_noise} · noise",
        "source = tanh({source_weight} · e + {source_bias})",
    ),
    given=("contour", "noise_source"),
    gives=("phases", "source"),
)


def _decoder(pitched: bool) -> Step:
    return Step(
        "decoder",
        "Decoder and trim",
        "Windows planned over a ..< b, cropped to the frames that are kept, {pad_frames} ..< {pad_frames} + K, and joined:"
        " {samples_per_frame}"
        " samples a frame at {voice_rate} Hz. That is the segment's audio without its pads; segments follow one another.",
        ("plan(a, b, W, {decoder_context}), every window cropped to {pad_frames} ..< {pad_frames} + K",),
        given=("z", "source", "g") if pitched else ("z", "g"),
        gives=("audio",),
        package="decoder",
    )


LOUDNESS = Step(
    "loudness",
    "Loudness",
    "Over the whole clip: the envelope of the output is moved towards that of the filtered input (without pads). At rms_mix_rate"
    " 1 nothing is"
    " done. Envelopes are those of frames of one second every half second, zeros beyond the ends, interpolated to the N samples"
    " of the output.",
    (
        "hop = rate / 2 ({input_rate} or {voice_rate} Hz);  rms[m] = √(Σ_{i = m·hop - hop}^{m·hop + hop - 1} x[i]² / (2 · hop)), "
        " m = 0 … ⌊length / hop⌋",
        "at sample i:  p = (i + 0.5) · M / N - 0.5, clamped to 0 … M - 1, linear between ⌊p⌋ and ⌈p⌉ (M frames)",
        "y[i] = x[i] · (rms_in / max(rms_out, {rms_floor}))^(1 - {rms_mix_rate})",
    ),
    given=("filtered", "audio"),
    gives=("loudness_in", "loudness_out", "mixed"),
)

LIMIT = Step(
    "limit",
    "Output",
    "A louder result is scaled down to a peak of {output_peak}. rvc-coreml writes 16 bits as x · 32768, cut towards zero. Another"
    " sample rate"
    " is made before this step.",
    ("y = x / max(1, max|x| / {output_peak})",),
    given=("mixed",),
    gives=("output",),
)
