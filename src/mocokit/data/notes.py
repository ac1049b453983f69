"""What a user may not expect of the data, a line each: how many it is about, and the first name."""

import os
from collections import Counter
from collections.abc import Sequence

_NAMED = 3  # of a list of names
_KINDS = 8  # of endings that a line names
TABLES = (".csv", ".tsv", ".parquet", ".json")  # endings of files that labels are often in


def count(number: int, one: str, several: str) -> str:
    """Such as "1 class", "1,000 classes"."""
    return f"{number:,} {one if number == 1 else several}"


def listed(names: Sequence[str]) -> str:
    """The first names and how many more there are."""
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


class Notes:
    """How many images each text is about, and the first of them."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._firsts: dict[str, str] = {}

    def add(self, text: str, name: str) -> None:
        """Note of the image ``name`` a ``text`` that goes on from "3 images"."""
        self._counts[text] = self._counts.get(text, 0) + 1
        self._firsts.setdefault(text, name)

    def lines(self) -> list[str]:
        """A line for each text."""
        return [
            f"{count(number, 'image', 'images')} {text}; the first is {self._firsts[text]}"
            for text, number in self._counts.items()
        ]


class OtherFiles:
    """Files that are not read, by their ending; ``tables`` are the paths of those that may hold labels."""

    def __init__(self) -> None:
        self.tables: list[str] = []
        self._numbers: Counter[str] = Counter()
        self._firsts: dict[str, str] = {}

    def add(self, name: str) -> None:
        """Count the file of this path with slashes."""
        ending = os.path.splitext(name)[1].lower() or "without an ending"
        self._numbers[ending] += 1
        self._firsts[ending] = min(self._firsts.get(ending, name), name)
        if ending in TABLES:
            self.tables.append(name)

    def kinds(self) -> list[tuple[str, int]]:
        """Endings and how many files have them, sorted."""
        return sorted(self._numbers.items())

    def lines(self) -> list[str]:
        """One line, or none if there are no such files."""
        if not self._numbers:
            return []
        kinds = [f"{number:,} {ending}" for ending, number in self._numbers.most_common(_KINDS)]
        more = len(self._numbers) - len(kinds)
        also = f" and {more:,} more kinds" if more else ""
        return [f"not read, as they are no images: {', '.join(kinds)}{also}; the first is {min(self._firsts.values())}"]

    def first_of(self, endings: tuple[str, ...]) -> str | None:
        """The first of these files whose name ends so."""
        return min((name for name in self._firsts.values() if name.lower().endswith(endings)), default=None)
