"""Whether the weights of a stage in another layout are the checkpoint's in another arrangement: permuted, reversed, split, padded
with zeros or repeated as a whole, and nothing computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

Arrays = Mapping[str, np.ndarray]


def rearranged_problems(own: Arrays, plain: Arrays, sources: Mapping[str, tuple[str, ...]]) -> list[str]:
    """A sentence for each of a stage's `own` parameters that is not made of the `plain` ones that `sources` says, and for each left out."""
    problems = [f"{name} does not say what it is made of" for name in own if name not in sources]
    used = {name for names in sources.values() for name in names}
    problems += [f"{name} is in no parameter of the layout" for name in plain if name not in used]
    for mine, theirs in _groups({name: names for name, names in sources.items() if name in own}):
        unknown = [name for name in theirs if name not in plain]
        if unknown:
            problems.append(f"{mine[0]} is made of {unknown[0]}, which is no parameter of the stage")
        elif not _same_values([own[name] for name in mine], [plain[name] for name in theirs]):
            problems.append(f"{' and '.join(mine[:3])} do not hold the values of {' and '.join(theirs[:3])}")
    return problems


def _groups(sources: Mapping[str, tuple[str, ...]]) -> list[tuple[list[str], list[str]]]:
    """Own and plain parameters that belong together, because one is made of several or several of one."""
    found: list[tuple[list[str], list[str]]] = []
    of_plain: dict[str, int] = {}
    for name, names in sources.items():
        places = sorted({of_plain[plain] for plain in names if plain in of_plain})
        place = places[0] if places else len(found)
        if not places:
            found.append(([], []))
        for other in places[1:]:
            found[place][0].extend(found[other][0])
            found[place][1].extend(found[other][1])
            found[other] = ([], [])
        found[place][0].append(name)
        found[place][1].extend(plain for plain in names if plain not in found[place][1])
        of_plain.update(dict.fromkeys(found[place][1], place))
    return [group for group in found if group[0]]


def _same_values(own: Sequence[np.ndarray], plain: Sequence[np.ndarray]) -> bool:
    """Whether each value but zero is there as often, or all of them the same number of times as often."""
    if len(own) == len(plain) == 1 and own[0].size == plain[0].size and np.array_equal(own[0].ravel(), plain[0].ravel()):
        return True
    mine, theirs = _sorted(own), _sorted(plain)
    if not theirs.size:
        return not mine.size
    times, rest = divmod(mine.size, theirs.size)
    return times > 0 and not rest and bool(np.array_equal(mine.reshape(-1, times), np.broadcast_to(theirs[:, None], (theirs.size, times))))


def _sorted(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """All their values but zero."""
    values = np.concatenate([array.ravel() for array in arrays])
    return np.sort(values[values != 0])
