"""A folder as people have them: voices of several kinds, indexes, archives, other models, damaged files and junk."""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import torch

from support.checkpoints import small_config, voice_content, write_small_hubert, write_voice

BUILT = "added_IVF4_Flat_nprobe_1_{}_{}.index"


class Harmful:
    """Pickles as a call of os.system."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


def write_index(path: Path, width: int = 768, count: int = 200, seed: int = 0) -> Path:
    """As RVC's training writes it, with 4 cells."""
    index = faiss.index_factory(width, "IVF4,Flat")
    vectors = np.random.default_rng(seed).standard_normal((200, width)).astype(np.float32)
    index.train(vectors)
    if count:
        index.add(vectors[:count])
    faiss.write_index(index, str(path))
    return path


def write_zip(path: Path, *files: tuple[str, Path | bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files:
            archive.writestr(name, content if isinstance(content, bytes) else content.read_bytes())
    return path


def write_hostile_zip(path: Path, voice: Path) -> Path:
    """A voice beside a path that leads out and a link."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(voice, "hostile.pth")
        archive.writestr("../../escaped.pth", b"out")
        link = zipfile.ZipInfo("link.pth")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    return path


def write_mixed_folder(folder: Path) -> Path:
    """33 files. The voices are `singer` (twice, and a copy), `Old Singer`, `nof0` and `zipped`; the rest is not one."""
    deep = folder / "deep" / "down"
    deep.mkdir(parents=True)
    singer = write_voice(folder / "singer.pth")
    (folder / "z copy.pth").write_bytes(singer.read_bytes())
    write_voice(deep / "Singer.pth", seed=8)
    write_voice(folder / "Old Singer_e20_s300.pth", version="v1", config=small_config("v1", 48000))
    write_voice(folder / "nof0.safetensors", f0=False)
    zipped = write_voice(folder / "zipped.pth", seed=9)
    inner = write_index(folder / "inner.index", seed=3)
    write_zip(
        folder / "pack.zip",
        ("inner/zipped.pth", zipped),
        (f"inner/{BUILT.format('zipped', 'v2')}", inner),
        ("inner/readme.txt", b"hello"),
        ("__MACOSX/inner/._zipped.pth", b"\0\5\26\7"),
    )
    zipped.unlink()
    inner.unlink()

    write_index(folder / BUILT.format("singer", "v2"))
    write_index(folder / BUILT.format("singer", "v2").replace("added", "trained"), count=0)
    write_index(folder / BUILT.format("old_singer", "v1"), width=256)
    write_index(folder / BUILT.format("stranger", "v2"), seed=1)
    truncated = write_index(folder / "nof0.index", seed=2)
    os.truncate(truncated, truncated.stat().st_size - 1000)
    (folder / "other.index").write_text("of another program")

    for name, content in {
        "song.wav": b"RIFF....WAVE",
        "notes.txt": b"text",
        "cover.png": b"\x89PNG",
        ".DS_Store": b"\0\0\0\1Bud1",
        "._singer.pth": b"\0\5\26\7",
        "features.npy": b"\x93NUMPY",
        "voices.7z": b"7z\xbc\xaf'\x1c",
        "book.docx": b"PK\3\4 and so on",
    }.items():
        (folder / name).write_bytes(content)

    write_small_hubert(folder / "hubert_base.pt", "bare")
    torch.save({"model": {"enc_p.x": torch.zeros(2)}, "iteration": 3, "optimizer": {}, "learning_rate": 1e-4}, folder / "G_2333.pth")
    torch.save({"model": {"discriminators.0.x": torch.zeros(2)}, "iteration": 3}, folder / "D_2333.pth")

    os.truncate(write_voice(folder / "truncated.pth"), 200_000)
    (folder / "empty.pth").write_bytes(b"")
    (folder / "page.pth").write_text("<html>not found</html>")
    torch.save(voice_content(extra={"info": Harmful(f"touch {folder / 'harmed'}")}), folder / "harmful.pth")
    write_voice(folder / "incomplete.pth", drop=("emb_g.weight",))

    write_hostile_zip(folder / "hostile.zip", singer)
    write_zip(folder / "bomb.zip", ("bomb.pth", bytes(5_000_000)))
    write_zip(folder / "nested.zip", ("pack.zip", folder / "pack.zip"))
    (folder / "broken.zip").write_bytes((folder / "pack.zip").read_bytes()[:5000])
    return folder
