"""Trials of order memory: an excerpt of a book, and two segments of it of which one came first.

Pink, Vo, Wu et al., *Assessing Episodic Memory in LLMs with Sequence Order Recall Tasks* (SORT, 2024, arXiv 2410.08133). A book is a row
of words without front matter, chapter titles and paragraph marks, which would betray the order. An excerpt of L_E words begins with a
sentence, and so do two segments of L_S words in it that do not overlap; their starts are D words apart, lo < D <= hi for one of four bins.
The starts of the excerpts must pass for uniform over the books (Kolmogorov-Smirnov, p > 0.05), else all trials are drawn anew, and which
segment is shown as A is balanced exactly.

Departures: trials are dealt evenly over bins and books instead of 110 a book and bin; a segment that stands twice in its excerpt is not
taken; a full stop behind a title or an initial ends no sentence; everything hangs on one seed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import stats

from palimpsest.errors import InputError

_START, _END = (
    re.compile(rf"^\W*\*\*\*\s*{word} OF TH\w+ PROJECT GUTENBERG.*$", re.MULTILINE | re.IGNORECASE) for word in ("START", "END")
)
_HEADING = re.compile(r"\s*(#|\[illustration|(chapter|book|volume|part|canto|letter)\s+([ivxlc]+|\d+)\b.{0,60}$)", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?][\"'”’)\]_]*$")
_NO_END = re.compile(
    r"^[\"'“‘(\[_]*(mr|mrs|ms|dr|st|messrs|mme|mlle|capt|col|gen|lieut|lt|sergt|rev|hon|prof|jr|sr|vol|no|[a-z])\.$", re.IGNORECASE
)
OPENING = 50  # words of the paragraph that is taken for the first of the text
DRAWS, REDRAWS = 400, 20  # excerpts tried for one trial; whole draws until the starts pass for uniform


@dataclass(frozen=True)
class OrderTrial:
    """One trial.

    Attributes:
        id: its number.
        book: title of the book.
        words: (L_E,) of the excerpt.
        at: where the earlier and the later segment start, in words of the excerpt.
        segment_words: L_S.
        bin: (lo, hi): lo < at[1] - at[0] <= hi.
        start: where the excerpt starts, in words of the book.
        earlier_is_a: whether the earlier segment is shown as A.
    """

    id: str
    book: str
    words: tuple[str, ...]
    at: tuple[int, int]
    segment_words: int
    bin: tuple[float, float]
    start: int
    earlier_is_a: bool

    @property
    def excerpt(self) -> str:
        """The excerpt as text."""
        return " ".join(self.words)

    @property
    def segments(self) -> tuple[str, str]:
        """The earlier and the later segment."""
        earlier, later = (" ".join(self.words[at : at + self.segment_words]) for at in self.at)
        return earlier, later

    def shuffled(self, seed: int) -> str:
        """The excerpt with its sentences in an order by lot and both segments whole: it says nothing of their order."""
        cuts = set(sentence_starts(self.words).tolist()) | {0, len(self.words)}
        for at in self.at:
            cuts = {cut for cut in cuts if not at < cut < at + self.segment_words} | {at, at + self.segment_words}
        ordered = sorted(cuts)
        pieces = [self.words[a:b] for a, b in pairwise(ordered)]
        order = np.random.default_rng((seed, self.start, *self.at)).permutation(len(pieces))
        return " ".join(word for piece in order for word in pieces[piece])


def book_words(text: str) -> list[str]:
    """The words of a book's prose: what stands between Gutenberg's marks, without headings and paragraphs that have no small letter,
    from the first long paragraph on that ends as a sentence does (before it are title page and contents), if there is one.

    Example:
        >>> book_words("# Title: Emma\\n\\n## CHAPTER I\\n\\nEmma Woodhouse,\\nhandsome.")
        ['Emma', 'Woodhouse,', 'handsome.']
    """
    begin, end = _START.search(text), _END.search(text)
    prose = text[begin.end() if begin else 0 : end.start() if end else len(text)]
    parts = [part for part in re.split(r"\n\s*\n", prose) if part.upper() != part and not _HEADING.match(part)]
    paragraphs = [part.split() for part in parts]
    opening = (at for at, words in enumerate(paragraphs) if len(words) >= OPENING and _SENTENCE_END.search(words[-1]))
    return [word for words in paragraphs[next(opening, 0) :] for word in words]


def sentence_starts(words: Sequence[str]) -> np.ndarray:
    """Positions of the words that begin a sentence, int64, ascending; the first word does.

    Example:
        >>> sentence_starts("It is. Mr. Bennet nods.".split()).tolist()
        [0, 2]
    """
    ends = [bool(_SENTENCE_END.search(word)) and not _NO_END.match(word) for word in words[:-1]]
    return np.concatenate([[0], np.flatnonzero(ends) + 1]).astype(np.int64) if words else np.empty(0, np.int64)


def distance_edges(excerpt_words: int, segment_words: int) -> tuple[float, ...]:
    """The paper's edges of the bins of D.

    Example:
        >>> distance_edges(1000, 50)
        (50, 250.0, 333.3333333333333, 500.0, 800.0)
    """
    first = (excerpt_words / 4, excerpt_words / 3) if excerpt_words < 5000 else (1000, excerpt_words / 4)
    return (segment_words, *first, excerpt_words / 2, excerpt_words / 1.25)


def build_trials(
    texts: Mapping[str, str],
    excerpt_words: int,
    segment_words: int,
    n: int,
    *,
    edges: Sequence[float] | None = None,
    seed: int = 0,
) -> list[OrderTrial]:
    """Draws `n` trials, dealt evenly over the bins of the distance and over the books that are long enough.

    Args:
        texts: title -> text.
        excerpt_words, segment_words: L_E and L_S.
        n: even; in half of the trials the earlier segment is A.
        edges: of the bins of D; by default `distance_edges`.
        seed: of everything.

    Raises:
        InputError: n odd, edges that do not rise from L_S on, no book of L_E words, or no pair of segments at some distance.

    Example:
        >>> trials = build_trials({"Emma": text}, 250, 20, 100)                                  # doctest: +SKIP
        >>> trials[0].segments[0] in trials[0].excerpt                                           # doctest: +SKIP
        True
    """
    cuts = list(edges) if edges is not None else list(distance_edges(excerpt_words, segment_words))
    if n < 2 or n % 2:
        raise InputError(f"{n} trials cannot be shown in both orders equally often.", "Give an even number.")
    if segment_words < 1 or len(cuts) < 2 or cuts[0] < segment_words or any(a >= b for a, b in pairwise(cuts)):
        raise InputError(f"Segments of {segment_words} words and edges {cuts}.", "Give rising edges from the segment's length on.")
    books = {title: book_words(text) for title, text in texts.items()}
    books = {title: words for title, words in books.items() if len(words) > excerpt_words}
    if not books:
        raise InputError(
            f"None of {len(texts)} books has more than {excerpt_words} words.", "Give longer books or ask for shorter excerpts."
        )
    starts = {title: sentence_starts(words) for title, words in books.items()}
    titles = list(books)
    rng = np.random.default_rng(seed)
    bins = len(cuts) - 1
    for _ in range(REDRAWS):
        trials: list[OrderTrial] = []
        of_book = rng.permutation(np.arange(n) % len(titles))
        of_bin = np.arange(n) % bins
        is_a = np.empty(n, dtype=bool)
        is_a[np.lexsort((rng.random(n), of_bin))] = np.arange(n) % 2 == 0  # balanced in all, and in every bin to within one
        for number in range(n):
            title, span = titles[of_book[number]], (cuts[of_bin[number]], cuts[of_bin[number] + 1])
            start, at = _draw(books[title], starts[title], excerpt_words, segment_words, span, rng)
            words = tuple(books[title][start : start + excerpt_words])
            trials.append(OrderTrial(str(number), title, words, at, segment_words, span, start, bool(is_a[number])))
        shares = [trial.start / (len(books[trial.book]) - excerpt_words) for trial in trials]
        if stats.kstest(shares, "uniform").pvalue > 0.05:
            return trials
    raise InputError(
        f"In {REDRAWS} draws the excerpts of {excerpt_words} words did not lie evenly over the books.", "Give longer books or other edges."
    )


def _draw(
    words: Sequence[str], starts: np.ndarray, excerpt_words: int, segment_words: int, span: tuple[float, float], rng: np.random.Generator
) -> tuple[int, tuple[int, int]]:
    """The start of an excerpt, and of two segments in it whose distance is in `span` and which stand in it once."""
    allowed = starts[starts + excerpt_words <= len(words)]
    for _ in range(DRAWS):
        start = int(rng.choice(allowed))
        inside = starts[(starts >= start) & (starts + segment_words <= start + excerpt_words)] - start
        low = np.searchsorted(inside, inside + span[0], side="right")  # first later start with D > lo
        high = np.searchsorted(inside, inside + span[1], side="right")  # first with D > hi
        counts = np.maximum(high - low, 0)
        if counts.sum() == 0:
            continue
        pick = int(rng.integers(counts.sum()))
        earlier = int(np.searchsorted(np.cumsum(counts), pick, side="right"))
        later = int(low[earlier] + pick - counts[:earlier].sum())
        at = int(inside[earlier]), int(inside[later])
        excerpt = words[start : start + excerpt_words]
        if all(_stands_once(excerpt, excerpt[place : place + segment_words]) for place in at):
            return start, at
    raise InputError(
        f"No two segments of {segment_words} words begin {span[0]:g} to {span[1]:g} words apart in {DRAWS} excerpts of {excerpt_words}.",
        "Give other edges, longer excerpts or more text.",
    )


def _stands_once(words: Sequence[str], segment: Sequence[str]) -> bool:
    held, wanted = f" {' '.join(words)} ", f" {' '.join(segment)} "
    first = held.find(wanted)
    return held.find(wanted, first + 1) < 0
