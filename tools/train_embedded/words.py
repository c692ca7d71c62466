"""How many words of one reading are still there in another."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Alignment:
    """Two readings word by word, in order, by the fewest edits, and of these by the most equal words."""

    words: int  # of the first reading
    kept: int  # of them that stand in the second one too
    substituted: int
    inserted: int

    @property
    def missing(self) -> int:
        return self.words - self.kept - self.substituted

    @property
    def survival(self) -> float | None:
        """Share of the first reading's words that are kept; None where it has none."""
        return self.kept / self.words if self.words else None

    @property
    def error_rate(self) -> float | None:
        """Word error rate of the second reading against the first; None where that has no words."""
        return (self.substituted + self.missing + self.inserted) / self.words if self.words else None


def words_of(text: str) -> list[str]:
    """Lower-case words without punctuation; a hyphen parts two words, an apostrophe does not."""
    plain = unicodedata.normalize("NFKD", text.lower()).encode("ascii", "ignore").decode()
    return re.findall(r"[a-z0-9]+", plain.replace("'", ""))  # a typographic apostrophe is not ASCII and gone already


def align(first: Sequence[str], second: Sequence[str]) -> Alignment:
    """Levenshtein's alignment of two lists of words."""
    # A cell is (edits, -kept, substituted, inserted); the smallest is the best.
    row = [(place, 0, 0, place) for place in range(len(second) + 1)]
    for count, word in enumerate(first, 1):
        above, row = row, [(count, 0, 0, 0)]
        for place, other in enumerate(second):
            edits, kept, substituted, inserted = above[place]
            both = (edits, kept - 1, substituted, inserted) if word == other else (edits + 1, kept, substituted + 1, inserted)
            edits, kept, substituted, inserted = above[place + 1]
            missing = (edits + 1, kept, substituted, inserted)
            edits, kept, substituted, inserted = row[place]
            row.append(min(both, missing, (edits + 1, kept, substituted, inserted + 1)))
    _edits, kept, substituted, inserted = row[-1]
    return Alignment(len(first), -kept, substituted, inserted)


def joined(alignments: Sequence[Alignment]) -> Alignment:
    """The sums over several clips."""
    return Alignment(*(sum(getattr(one, name) for one in alignments) for name in ("words", "kept", "substituted", "inserted")))
