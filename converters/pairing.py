"""Which feature index belongs to which voice: by name as training tools write it, then by width and by place.

RVC-WebUI writes `added_IVF{cells}_Flat_nprobe_1_{name}_{version}.index` (and an empty `trained_` one), keeps copies as
`{name}_IVF...`, and Applio writes `{name}.index`. A voice's file is `{name}.pth`, or `{name}_e{epoch}_s{step}.pth` and
`{name}_{epoch}e_{step}s.pth` for those saved on the way.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from ..models.config import PHONE_CHANNELS
from .collection import Index, Item

_BUILT = re.compile(r"^(?P<outer>.+?) ivf\d+ flat(?: nprobe \d+)?(?: (?P<inner>.*))?$")
_VERSION = re.compile(r"(?:^| )v[12]$")
_EPOCH = re.compile(r" (?:e\d+(?: s\d+)?|\d+e(?: \d+s)?)(?: best epoch)?$")
_COPY = re.compile(r" ?\(\d+\)$")  # what browsers add to a second download
_STEPS = ("added", "trained")
_NO_NAMES = {"", "index", "feature", "features", "model"}


@dataclass(frozen=True)
class Choice:
    """The index of a voice, or why it has none where one might be expected."""

    index: Index | None = None
    remark: str | None = None


def fold(name: str) -> str:
    """A name as it is compared: case, spaces and underscores do not count, nor does a browser's (1)."""
    folded = unicodedata.normalize("NFC", name).casefold().replace("_", " ")
    return _COPY.sub("", " ".join(folded.split()))


def index_names(stem: str) -> tuple[str, ...]:
    """The names of voice that an index may mean, the likeliest first; none where its name carries no voice's."""
    folded = fold(stem)
    built = _BUILT.match(folded)
    if built:  # the tool has written the version
        inner = built["inner"] or ""
        names = [_VERSION.sub("", inner), inner]
        if built["outer"] not in _STEPS:
            names.append(built["outer"])
    else:
        first, _, rest = folded.partition(" ")
        own = rest if first in _STEPS else folded
        names = [own, _VERSION.sub("", own)]
    found = dict.fromkeys(name for name in names if name not in _NO_NAMES | {"v1", "v2", *_STEPS})
    return tuple(found)


def is_trained(index: Index) -> bool:
    """Whether it is the one from before vectors were added, which holds none."""
    return fold(index.item.stem).startswith("trained ")


def voice_names(stem: str) -> tuple[str, ...]:
    """The names under which a voice's index may go: its own, and its own without epoch and step."""
    folded = fold(stem)
    return tuple(dict.fromkeys((folded, _EPOCH.sub("", folded))))


@dataclass
class Pairing:
    """Every index with the voices it may belong to. `same` tells whether two indexes hold the same."""

    voices: Sequence[Item]
    indexes: Sequence[Index]
    same: Callable[[Item, Item], bool] = lambda _one, _other: False
    taken: set[str] = field(default_factory=set)  # labels of the indexes that a voice uses or has

    def __post_init__(self) -> None:
        self._owners = {index.item.label: self._find_owners(index) for index in self.indexes if not is_trained(index)}

    def choose(self, voice: Item, version: str) -> Choice:
        """The index for a voice of that version: the nearest of fitting name and width, none where several remain."""
        width = PHONE_CHANNELS[version]
        named = [index for index in self.indexes if voice in self._owners.get(index.item.label, ())]
        fitting = [index for index in named if index.width == width]
        near = [index for index in fitting if index.item.container == voice.container] or fitting
        if not near:
            return Choice(remark=f"no index of width {width}: {_list(named)}" if named else None)
        if len(near) > 1 and not all(self.same(near[0].item, other.item) for other in near[1:]):
            return Choice(remark=f"{len(near)} indexes fit and none was taken ({_list(near)}): name one with --index")
        self.taken.update(index.item.label for index in near)
        return Choice(near[0])

    def named(self, voice: Item) -> bool:
        """Whether any index bears the voice's name."""
        return any(voice in owners for owners in self._owners.values())

    def left_over(self) -> Iterable[tuple[Index, str]]:
        """Every index that no voice has taken, with the reason."""
        for index in self.indexes:
            if index.item.label not in self.taken:
                yield index, self._why(index)

    def _why(self, index: Index) -> str:
        if is_trained(index):
            twin = fold(index.item.stem).removeprefix("trained ")
            added = any(fold(other.item.stem) == f"added {twin}" for other in self.indexes)
            return "a 'trained' index, which holds no vectors; " + ("the 'added' one is used" if added else "its 'added' one is missing")
        owners = self._owners[index.item.label]
        if owners:
            return f"named as {_list(owners)}, and not taken for it: it is of another width, one of several, or its voice was not converted"
        names = index_names(index.item.stem)
        if not names:
            return "its name carries no voice's, and it does not lie alone with one: name it with --index"
        return f"no voice is named {names[0]!r}: name it with --index"

    def _find_owners(self, index: Index) -> list[Item]:
        """The voices that an index names; where some lie beside it, others of the same name have to find their own."""
        names = index_names(index.item.stem)
        for name in names:
            owners = [voice for voice in self.voices if name in voice_names(voice.stem)]
            if owners:
                local = {fold(voice.stem) for voice in owners if voice.container == index.item.container}
                return [voice for voice in owners if voice.container == index.item.container or fold(voice.stem) not in local]
        beside = [voice for voice in self.voices if voice.container == index.item.container]
        rivals = [other for other in self.indexes if other.item.container == index.item.container and not is_trained(other)]
        return beside if not names and len(beside) == 1 and len(rivals) == 1 else []


def _list(things: Iterable[Item | Index]) -> str:
    return ", ".join((thing.item if isinstance(thing, Index) else thing).label for thing in things)
