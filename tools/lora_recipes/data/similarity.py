"""Which texts are asked again elsewhere: equal after normalisation, or nearly, by their words.

Where a script does not separate words (Chinese, Japanese, Thai, Lao, Khmer, Burmese), pairs of neighbouring
characters stand for them.
"""

import bisect
import itertools
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

_Words = frozenset[str]
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Thai and Lao, Myanmar, Khmer, kana, and Chinese characters (Unicode's blocks). Korean writes blanks."""
_RUNS = re.compile(rf"([{_UNSPACED}]+)|[^{_UNSPACED}\s]+")


class _Blanked(dict[int, int | str]):
    """A table for str.translate: punctuation of any script becomes a blank."""

    def __missing__(self, code: int) -> int | str:
        self[code] = " " if unicodedata.category(chr(code)).startswith("P") else code
        return self[code]


_BLANKED = _Blanked()


def normalised(text: str) -> str:
    """The words of a text, one blank apart, without case, punctuation and forms that only look different (NFKC)."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.translate(_BLANKED).split())


def words_of(text: str) -> _Words:
    """The words of a normalised text; two characters of a script without blanks are one, a single one is one too."""
    if text.isascii():
        return frozenset(text.split())
    found: set[str] = set()
    for run in _RUNS.finditer(text):
        word = run.group()
        found.update(map("".join, itertools.pairwise(word)) if run.group(1) and len(word) > 1 else (word,))
    return frozenset(found)


@dataclass(frozen=True)
class Overlap:
    """A text and the one most like it among others, each by its index from 0."""

    row: int
    other: int
    similarity: float
    """Shared words over all words of both (Jaccard of the word sets), up to 1.0."""
    exact: bool
    """Equal after normalisation; the same words in another order are 1.0, but not exact."""


def overlaps(texts: Sequence[str], among: Sequence[str], threshold: float = 0.8) -> list[Overlap]:
    """The best match of each text that has one of at least `threshold`; of equally good ones the first.

    An equal text comes before all others. A text without a word matches nothing.
    The search is exact: it finds what a comparison of all pairs finds, without making it.
    Raises ValueError for a threshold outside (0, 1].
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold {threshold}: expected a share above 0 and up to 1.")
    index = _Index([normalised(text) for text in among], threshold)
    best: dict[str, tuple[int, float, bool] | None] = {"": None}
    for text in (plain := [normalised(text) for text in texts]):
        if text not in best:
            best[text] = index.best(text)
    return [Overlap(row, *found) for row, text in enumerate(plain) if (found := best[text])]


class _Index:
    """An inverted index of the rarest words only: the prefix filter of set similarity joins.

    Two sets with a Jaccard similarity of t share at least ceil(t * size) words of either. Then the
    first size - ceil(t * size) + 1 words of both, in one order, have a word in common. With rare
    words first, few sets share one.
    """

    def __init__(self, among: list[str], threshold: float) -> None:
        self._threshold = threshold
        self._first: dict[str, int] = {}
        distinct: dict[_Words, int] = {}
        for row, text in enumerate(among):
            self._first.setdefault(text, row)
            distinct.setdefault(words_of(text), row)
        distinct.pop(frozenset(), None)
        self._count = Counter(word for words in distinct for word in words)
        self._sets = sorted(distinct.items(), key=lambda item: len(item[0]))
        self._sizes = [len(words) for words, _ in self._sets]
        self._postings: defaultdict[str, list[int]] = defaultdict(list)  # ascending, so by size too
        for number, (words, _) in enumerate(self._sets):
            for word in self._prefix(words):
                self._postings[word].append(number)

    def _prefix(self, words: _Words) -> list[str]:
        ordered = sorted(words, key=lambda word: (self._count[word], word))
        return ordered[: len(ordered) - self._least(len(ordered)) + 1]

    def _least(self, size: int) -> int:
        return math.ceil(self._threshold * size - 1e-9)  # 0.56 * 25 is 14.000000000000002

    def best(self, text: str) -> tuple[int, float, bool] | None:
        """The row, similarity and exactness of the best match of a normalised text, or None."""
        if text in self._first:
            return self._first[text], 1.0, True
        asked = words_of(text)
        low = bisect.bisect_left(self._sizes, self._least(len(asked)))
        high = bisect.bisect_right(self._sizes, len(asked) / self._threshold + 1e-9)
        near: set[int] = set()
        for word in self._prefix(asked):
            postings = self._postings.get(word, ())
            near.update(postings[bisect.bisect_left(postings, low) : bisect.bisect_left(postings, high)])
        found = [(self._jaccard(asked, self._sets[number][0]), -self._sets[number][1]) for number in near]
        similarity, row = max(found, default=(0.0, 0))
        return (-row, similarity, False) if similarity >= self._threshold else None

    @staticmethod
    def _jaccard(one: _Words, two: _Words) -> float:
        common = len(one & two)
        return common / (len(one) + len(two) - common)
