"""Names for things that do not exist: people, cities, companies, books, … drawn from syllables and from lists of common words.

No name is given twice, and none stands inside another, so that a text can be searched for them. A
likeness to somebody real is chance.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np

from palimpsest.errors import InputError

_ONSETS = "b br d dr f fl g gr h j k kr l m n p pr r s st t tr v w z th"
_VOWELS = "a e i o u"
_CODAS = "l n r s m t k nd lt rn sk v x th"

# What follows a word of syllables.
_ENDINGS = {
    "parent": "",  # people, see `_person`
    "person": "",
    "city": "burg mouth ford stead haven bridge minster",
    "country": "ia land mark istan onia",
    "river": "a e in ona",
    "language": "ish ese ian ic",
}
_SECOND = {
    "company": "Works,Holdings,Brothers,Industries,Trading,Laboratories",
    "university": "University,College,Academy,Institute",
    "team": "Rovers,United,Wanderers,Athletic,Rangers",
    "award": "Prize,Medal,Award,Ribbon",
}
# What is put together from two common words; none begins with a vowel's sound, so that "a" may stand before it.
_PAIRS = {
    "occupation": (
        "glass copper silk clay paper timber leather stone wool velvet marble pearl",
        "dealer painter restorer merchant inspector carver broker weigher buyer dyer porter polisher",
    ),
    "instrument": (
        "bass tenor glass double reed wooden brass pocket concert folding",
        "flute harp lute drum horn fiddle zither bagpipe trumpet clavier",
    ),
    "currency": (
        "silver copper golden paper black white double royal heavy light",
        "crown penny mark florin ducat shilling thaler groat dinar peso",
    ),
    "product": (
        "copper brass wooden glass folding painted woollen paper steel clay silver velvet",
        "kettles lamps chairs clocks hats boots umbrellas scales mirrors bells carpets boxes",
    ),
    "genre": (
        "gothic pastoral comic tragic maritime military rural political courtly satirical",
        "romance farce chronicle mystery ballad fable saga memoir dialogue thriller",
    ),
    "work": (
        "Copper Silent Broken Hidden Wandering Burning Patient Crooked Golden Frozen Hollow Restless Scarlet Gentle Distant Borrowed "
        "Painted Drowning Faithful Forgotten Velvet Nameless Iron Laughing Sleeping Bitter Hundredth Last Pale Stolen Tall Vanishing "
        "Weary Winter Paper Salt Thirsty Unlucky Whispering Narrow",
        "Orchard Lighthouse Ferry Garden Letter Harbour Mirror Staircase Clock Island Bridge Kitchen Winter Carriage Shepherd Stranger "
        "Window Meadow Ladder Compass Barrel Feather Chapel Tailor Candle Quarry Fountain Widow Sparrow Cellar Lantern Thistle Pilgrim "
        "Anchor Gatekeeper Beehive Violin Portrait Corridor Gardener",
    ),
}
KINDS = (*_ENDINGS, *_SECOND, *_PAIRS)


class NameMaker:
    """Draws names; each is given once.

    Args:
        rng: of all draws.

    Example:
        >>> maker = NameMaker(np.random.default_rng(0))
        >>> len(set(maker.draw("city", 50))), all(name.startswith("The ") for name in maker.draw("work", 5))
        (50, True)
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._given: set[str] = set()
        self._inside: set[str] = set()  # whatever begins at the start of a word of a name
        self._first_names = [self._word(2) for _ in range(120)]

    def draw(self, kind: str, n: int) -> list[str]:
        """`n` new names of a kind, one of `KINDS`.

        Raises:
            InputError: an unknown kind, or more names than there are words for.
        """
        if kind not in KINDS:
            raise InputError(f"The kind {kind!r} is unknown.", f"Choose one of {', '.join(KINDS)}.")
        if kind in _PAIRS:
            return self._pairs(kind, n)
        return [self._new(self._recipe(kind)) for _ in range(n)]

    def _pairs(self, kind: str, n: int) -> list[str]:
        first, second = (words.split() for words in _PAIRS[kind])
        article = "The " if kind == "work" else ""
        names = [f"{article}{a} {b}" for a, b in product(first, second) if a != b and f"{article}{a} {b}" not in self._given]
        if n > len(names):
            raise InputError(f"{n} names of the kind {kind!r} are asked for, there are {len(names)}.", "Ask for a smaller world.")
        chosen = [names[i] for i in self._rng.permutation(len(names))[:n].tolist()]
        for name in chosen:
            self._keep(name)
        return chosen

    def _recipe(self, kind: str) -> Callable[[], str]:
        if kind in ("person", "parent"):
            return lambda: f"{self._pick(self._first_names)} {self._word()}"
        if kind in _SECOND:
            return lambda: f"{self._word()} {self._pick(_SECOND[kind].split(','))}"
        return lambda: self._word() + self._pick(_ENDINGS[kind].split())

    def _new(self, make: Callable[[], str]) -> str:
        while True:
            name = make()
            if name not in self._inside and not any(part in self._given for part in _from_word_starts(name)):
                self._keep(name)
                return name

    def _keep(self, name: str) -> None:
        self._given.add(name)
        self._inside.update(_from_word_starts(name))

    def _word(self, syllables: int | None = None) -> str:
        """A capitalised word of so many syllables; None: of two, or of three in one case of five."""
        if syllables is None:
            syllables = 2 + int(self._rng.random() < 0.2)
        parts = [self._pick(_ONSETS.split()) + self._pick(_VOWELS.split()) for _ in range(syllables)]
        return ("".join(parts) + self._pick(_CODAS.split())).capitalize()

    def _pick(self, values: list[str]) -> str:
        return values[int(self._rng.integers(len(values)))]


def _from_word_starts(name: str) -> list[str]:
    """Every run of characters that begins where a word begins: names of one word are capitalised, so one can stand inside only there."""
    starts = [i for i in range(len(name)) if i == 0 or name[i - 1] == " "]
    return [name[start:end] for start in starts for end in range(start + 1, len(name) + 1)]
