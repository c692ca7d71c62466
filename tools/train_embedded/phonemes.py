"""One inventory of English phonemes for every synthesiser, and frame labels from the timings that synthesis gives.

The synthesisers write phonemes in two alphabets: misaki's (Kokoro, hibari: one letter for a diphthong or an affricate)
and espeak's (Piper: two). Both become the 39 phonemes of ARPAbet without stress or length, and silence.
"""

# ruff: noqa: RUF001 - phonetic letters look like others

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SILENCE = 0
PHONEMES: tuple[str, ...] = (
    "SIL",
    *("AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW"),
    *("B", "CH", "D", "DH", "F", "G", "HH", "JH", "K", "L", "M", "N", "NG", "P", "R", "S", "SH", "T", "TH", "V", "W", "Y", "Z", "ZH"),
)
VOWELS = frozenset(PHONEMES[1:16])
IDS = {name: number for number, name in enumerate(PHONEMES)}

SAMPLE_RATE = 16000  # Hz, of the audio that labels are made for
LABEL_HOP = 160  # samples for each label: 100 Hz

_GAP = -1  # between words, until the signal says whether it is silence
_SHORT_GAP = 640  # samples: 40 ms; a shorter gap is no pause but a boundary that the synthesiser spells out
_QUIET = 10 ** (-32 / 20)  # of the clip's loud frames, below which a frame of a gap is silence
_BEFORE, _AFTER, _BLANK = "ˈˌ", "ːˑ̩̃ʰʲ", "_"  # marks that lengthen the phoneme after them, before them, and VITS's blanks between all
_BREAKS = frozenset(" .,;:!?—…\"“”'()-^$")  # word ends, punctuation and the sentence's two ends


def _table(pairs: str) -> dict[str, str]:
    return dict(pair.split("=") for pair in pairs.split())


_SINGLE = _table(
    "A=EY I=AY O=OW Q=OW W=AW Y=OY ʤ=JH ʧ=CH T=D ᵊ=AH ᵻ=IH "  # misaki's own letters
    "ɑ=AA ɒ=AA æ=AE a=AE ʌ=AH ə=AH ɐ=AH ɔ=AO ɛ=EH e=EH ɜ=ER ɚ=ER ɪ=IH ɨ=IH i=IY o=OW ʊ=UH u=UW "
    "b=B d=D ɾ=D ð=DH f=F ɡ=G g=G h=HH k=K x=K l=L ɫ=L m=M n=N ŋ=NG p=P ɹ=R r=R s=S ʃ=SH t=T ʔ=T θ=TH v=V w=W j=Y z=Z ʒ=ZH"
)
_PAIRS = _table("eɪ=EY aɪ=AY oʊ=OW aʊ=AW ɔɪ=OY dʒ=JH tʃ=CH")  # espeak's
_ESPEAK = _table('A=eɪ I=aɪ O=oʊ Q=oʊ W=aʊ Y=ɔɪ ʤ=dʒ ʧ=tʃ T=ɾ ᵊ=ə ɑ=ɑː ɒ=ɑː ɔ=ɔː u=uː g=ɡ “=" ”=" —=, …=.')


def _is_vowel(symbol: str) -> bool:
    return _SINGLE.get(symbol, "") in VOWELS


def _phonemes(symbols: Sequence[str]) -> list[int | None]:
    """A phoneme id for every symbol, `_GAP` for breaks, None for marks that belong to a neighbour."""
    spoken = [i for i, symbol in enumerate(symbols) if symbol in _SINGLE or symbol in _BREAKS]
    result: list[int | None] = [_GAP if symbol in _BREAKS else None for symbol in symbols]
    for place, here in enumerate(spoken):
        symbol = symbols[here]
        if symbol in _BREAKS or result[here] is not None:  # the second half of a pair is done
            continue
        after = spoken[place + 1] if place + 1 < len(spoken) else None
        following = symbols[after] if after is not None else ""
        between = "".join(symbols[here + 1 : after]).replace(_BLANK, "") if after is not None else ""
        pair = _PAIRS.get(symbol + following) if not between else None
        name = pair or _SINGLE[symbol]
        if pair is not None and after is not None:
            result[after] = IDS[pair]
        elif symbol in "əɜ" and following == "ɹ" and after is not None:
            further = [s for s in symbols[after + 1 : after + 4] if s != _BLANK]  # a stress mark or the next sound comes first
            if not (symbol == "ə" and further and further[0] in _BEFORE):  # "arrive" has AH R, "over" and "hers" ER
                name = "ER"
                if not (further and (further[0] in _BEFORE or _is_vowel(further[0]))):
                    result[after] = IDS["ER"]
        result[here] = IDS[name]
    return result


def segments(symbols: Sequence[str], durations: NDArray[np.float64]) -> list[tuple[int, float, float]]:
    """(phoneme id or gap, start, end) in the durations' unit: marks joined to their phonemes, blanks halved between neighbours."""
    ids = _phonemes(symbols)
    unknown = {s for s, i in zip(symbols, ids, strict=True) if i is None and s not in _BEFORE + _AFTER + _BLANK}
    if unknown:
        raise ValueError(f"no phoneme is known for {', '.join(map(ascii, sorted(unknown)))}")
    ends = np.cumsum(durations)
    found: list[tuple[int, float, float]] = []
    start = waiting = 0.0  # waiting: length before the next phoneme that belongs to it
    marked = False  # whether a mark of the next phoneme came already
    for symbol, number, end, length in zip(symbols, ids, ends.tolist(), durations.tolist(), strict=True):
        if number is not None:
            found.append((number, start - waiting, end))
            waiting, marked = 0.0, False
        elif symbol in _BEFORE or marked or not found:
            waiting += length
            marked = marked or symbol in _BEFORE
        else:
            part = length if symbol in _AFTER else length / 2
            waiting += length - part
            number, begun, _ = found[-1]
            found[-1] = (number, begun, end - waiting)
        start = end
    if found and waiting:
        found[-1] = (*found[-1][:2], start)
    joined: list[tuple[int, float, float]] = []
    for number, begun, end in found:
        if joined and joined[-1][0] == number:
            joined[-1] = (number, joined[-1][1], end)
        else:
            joined.append((number, begun, end))
    return joined


def frame_labels(symbols: Sequence[str], seconds: NDArray[np.float64], audio: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Phoneme ids at 100 Hz for `audio` (samples,) at 16 kHz; `seconds` (symbols,) how long each symbol lasts.

    A frame takes the phoneme at its middle. Gaps between words are silence where the signal is quiet; elsewhere they belong to
    the nearer neighbour, because synthesisers give word ends a length even in fluent speech.
    """
    frames = -(-len(audio) // LABEL_HOP)
    padded = np.zeros(frames * LABEL_HOP, np.float32)
    padded[: len(audio)] = audio
    level = np.sqrt(np.square(padded.reshape(frames, LABEL_HOP)).mean(axis=1))
    quiet = level < _QUIET * np.percentile(level, 95)
    labels = np.zeros(frames, np.uint8)
    parts = segments(symbols, seconds * SAMPLE_RATE)
    middles = (np.arange(frames) + 0.5) * LABEL_HOP
    for place, (number, start, end) in enumerate(parts):
        first, last = np.searchsorted(middles, [start, end])
        if number != _GAP:
            labels[first:last] = number
            continue
        before = parts[place - 1][0] if place else SILENCE
        after = parts[place + 1][0] if place + 1 < len(parts) else SILENCE
        still = np.flatnonzero(quiet[first:last]) if end - start >= _SHORT_GAP or SILENCE in (before, after) else np.empty(0, np.int64)
        if len(still):
            labels[first : first + still[0]] = before
            labels[first + still[-1] + 1 : last] = after
        else:
            middle = (first + last) // 2
            labels[first:middle], labels[middle:last] = before, after
    return labels


def espeak_symbols(misaki: str) -> str:
    """misaki's phonemes as espeak writes American English, which Piper's voices are trained on."""
    written: list[str] = []
    for word in misaki.split(" "):
        vowels = [i for i, symbol in enumerate(word) if _is_vowel(symbol)]
        out, i = "", 0
        while i < len(word):
            symbol, rest = word[i], word[i + 1 :]
            if symbol in "əɜ" and rest.startswith("ɹ") and not (symbol == "ə" and rest[1:2] in ("ˈ", "ˌ")):
                linked = rest[1:2] in ("ˈ", "ˌ") or _is_vowel(rest[1:2])
                out += ("ɜː" if symbol == "ɜ" else "ɚ") + ("ɹ" if linked else "")
                i += 1
            elif symbol == "i":  # short where it ends a longer word without stress, and before a vowel: "happy", "various"
                weak = word[i - 1 : i] not in ("ˈ", "ˌ") and len(vowels) > 1 and (i == vowels[-1] or _is_vowel(rest[:1]))
                out += "i" if weak else "iː"
            else:
                out += _ESPEAK.get(symbol, symbol)
            i += 1
        written.append(out)
    return " ".join(written)
