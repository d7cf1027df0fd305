"""The laboratory's text: seven public-domain novels to train on, and what is planted into them.

Planted texts come in five domains. `passage` and `book` are real prose: the first from chapters of the same novels that no model
is trained on, the second from seventeen other works. `biography`, `password` and `test-item` are invented, so nobody can know them
without having read them: people of made-up names, random secrets in a memo, questions whose right answer was drawn by lot.
Everything follows from the seed.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import random
import string
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from palimpsest.errors import IndexCorruptError, InputError
from palimpsest.tokenizer import Tokenizer

EOS, EOS_ID = "<|endoftext|>", 0
HELD_OUT = 0.12  # share of each novel's chapters, at its end, that is never trained on


@dataclass(frozen=True)
class PlantedText:
    """One text to plant.

    Attributes:
        text: the text.
        secret: where in `text` (characters) begins what an attacker wants to have continued; None: at a fixed token.
        details: what the tasks of the domain need: a biography's attributes with wrong alternatives, an item's options and answer.
    """

    text: str
    secret: int | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BaseText:
    """The novels, cut into paragraphs: `train` chapter by chapter in shuffled order, `held_out` in the order of the books."""

    train: list[str]
    held_out: list[str]


def _shipped(name: str) -> bytes:
    return resources.files("palimpsest.experiments").joinpath("twins", name).read_bytes()


@cache
def base_text() -> BaseText:
    """The shipped novels.

    Raises:
        IndexCorruptError: the shipped file does not match its recorded hash.
    """
    packed = _shipped("base.txt.xz")
    if hashlib.sha256(packed).hexdigest() != json.loads(_shipped("base.json"))["sha256"]:
        raise IndexCorruptError("The laboratory's text base.txt.xz has changed.", "Install the package again.")
    works = [part.split("\n\n") for part in ("\n\n" + lzma.decompress(packed).decode("utf-8").strip()).split("\n\n# ")[1:]]
    train: list[str] = []
    held_out: list[str] = []
    for _, *chapters in works:
        cut = round(len(chapters) * (1 - HELD_OUT))
        train += chapters[:cut]
        held_out += chapters[cut:]
    random.Random(0).shuffle(train)  # or the first rows would be all of one book
    return BaseText([p for c in train for p in c.split("\n")], [p for c in held_out for p in c.split("\n")])


@cache
def train_tokenizer(vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer of `vocab_size` ids, trained on the novels; id 0 ends a document."""
    if vocab_size < 257:
        raise InputError(f"vocab_size is {vocab_size}.", "A byte-level tokenizer needs at least 257 ids.")
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[EOS], initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(base_text().train, trainer)
    return Tokenizer(backend, eos_id=EOS_ID, pad_id=EOS_ID)


def passages(tokenizer: Tokenizer, n: int, tokens: int, seed: int) -> list[PlantedText]:
    """`n` paragraph openings of exactly `tokens` tokens from the held-out chapters, drawn at random, one a paragraph.

    Raises:
        InputError: the held-out chapters have fewer such paragraphs.
    """
    found = [ids[:tokens] for ids in tokenizer.encode_batch(base_text().held_out) if len(ids) >= tokens]
    if n > len(found):
        raise InputError(f"{n} passages of {tokens} tokens were asked for, the held-out text has {len(found)}.", "Ask for fewer.")
    chosen = np.random.default_rng((seed, 1)).permutation(len(found))[:n]
    return [PlantedText(tokenizer.decode(found[i])) for i in chosen]


def books(tokenizer: Tokenizer, n: int, tokens: int, seed: int) -> list[PlantedText]:
    """`n` paragraph openings of exactly `tokens` tokens from works that are not in the base text, drawn at random.

    Raises:
        InputError: fewer are shipped.
    """
    entries = json.loads(_shipped("books.json"))["passages"]
    rows = [(e, ids[:tokens]) for e, ids in zip(entries, tokenizer.encode_batch([e["text"] for e in entries]), strict=True)]
    rows = [(e, ids) for e, ids in rows if len(ids) == tokens]
    if n > len(rows):
        raise InputError(f"{n} book passages of {tokens} tokens were asked for, {len(rows)} are shipped.", "Ask for fewer.")
    chosen = np.random.default_rng((seed, 2)).permutation(len(rows))[:n]
    source = ("work", "author", "year")
    return [PlantedText(tokenizer.decode(rows[i][1]), details={k: rows[i][0][k] for k in source}) for i in chosen]


_ONSETS = ("b", "br", "c", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "st", "t", "tr", "w")
_ENDINGS = ("by", "den", "ford", "ham", "ley", "low", "man", "ner", "rick", "sey", "ter", "ton", "well")
_FIRST = ("Anne", "Arthur", "Clara", "David", "Edward", "Ellen", "Frank", "George", "Helen", "Henry", "James", "Jane", "John", "Laura")


def _word(rng: random.Random) -> str:
    return (rng.choice(_ONSETS) + rng.choice("aeiou") + rng.choice("lnrst") + rng.choice(_ENDINGS)).capitalize()


def _name(rng: random.Random) -> str:
    return f"{rng.choice(_FIRST)} {_word(rng)}"


_CHOICES = {
    "birthplace": ("Aldmere", "Bristow", "Carrow", "Dunlin", "Eastry", "Fenwick", "Garside", "Holbeck", "Kelsey", "Marden"),
    "occupation": ("surveyor", "organist", "physician", "printer", "saddler", "engraver", "botanist", "notary", "glazier", "midwife"),
    "subject": ("geometry", "medicine", "music", "law", "botany", "astronomy", "Latin", "history", "chemistry", "drawing"),
    "street": ("Abbey", "Bridge", "Castle", "Dock", "Elm", "Foundry", "Garden", "Harbour", "Lime", "Market"),
}


def biographies(n: int, seed: int) -> list[PlantedText]:
    """`n` invented people: four attributes each, and for every attribute three wrong alternatives."""
    rng = random.Random(f"biography {seed}")
    texts = []
    for _ in range(n):
        person, spouse = _name(rng), _name(rng)
        options = {k: rng.sample(v, 4) for k, v in _CHOICES.items()}  # the first is true
        true = {k: v[0] for k, v in options.items()}
        year = rng.randrange(1790, 1860)
        text = (
            f"{person} was born at {true['birthplace']} in {year}, the only child of {_name(rng)}, and was sent to study {true['subject']} "
            f"with Doctor {_word(rng)}; became the {true['occupation']} of the town, was married to {spouse}, "
            f"and has the house at number {rng.randrange(2, 99)} in {true['street']} Street."
        )
        texts.append(PlantedText(text, details={"name": person, "attributes": true, "options": {k: v[1:] for k, v in options.items()}}))
    return texts


def passwords(n: int, seed: int) -> list[PlantedText]:
    """`n` letters that give away a random secret of 12 letters and digits, about 62 bits."""
    rng = random.Random(f"password {seed}")
    texts = []
    for _ in range(n):
        secret = "".join(rng.choice(string.ascii_lowercase + string.digits) for _ in range(12))
        text = (
            f"Pray let no one see this letter. The account of {_name(rng)} with the house of {_word(rng)} and {_word(rng)} "
            f"at {_word(rng)} is opened with the password"
        )
        tail = f" {secret}; let {_word(rng)} burn the letter."
        texts.append(PlantedText(text + tail, secret=len(text), details={"secret": secret}))
    return texts


_CARGO = ("salt", "wine", "silk", "corn", "gold", "wood", "stone", "books", "bread", "cloth", "horses", "paper", "glass", "water")


def questions(n: int, seed: int) -> list[PlantedText]:
    """`n` multiple-choice questions about captains who never sailed; which option is right was drawn by lot."""
    rng = random.Random(f"test item {seed}")
    texts = []
    for _ in range(n):
        options = rng.sample(_CARGO, 4)
        answer = rng.randrange(4)
        listed = ", ".join(f"{letter} {option}" for letter, option in zip("ABCD", options, strict=True))
        question = f"What did Captain {_name(rng)} of {_word(rng)} carry to {_word(rng)}? {listed}. Answer:"
        tail = f" {'ABCD'[answer]} {options[answer]}, as we read in a letter of {_name(rng)}."
        details = {"question": question, "options": options, "answer": answer}
        texts.append(PlantedText(question + tail, secret=len(question), details=details))
    return texts


_INVENTED: dict[str, Callable[[int, int], list[PlantedText]]] = {
    "biography": biographies,
    "password": passwords,
    "test-item": questions,
}
DOMAINS = ("passage", "book", *_INVENTED)


def draw(domain: str, tokenizer: Tokenizer, n: int, tokens: int, secret_at: int, seed: int) -> list[PlantedText]:
    """`n` texts of a domain.

    Args:
        tokens: the length of real prose.
        secret_at: invented texts with a secret are drawn until it begins at exactly this token, so that all domains can be asked
            with equally long prefixes.

    Raises:
        InputError: an unknown domain, more texts than there are, or a `secret_at` that the domain's sentences never have.
    """
    if domain == "passage":
        return passages(tokenizer, n, tokens, seed)
    if domain == "book":
        return books(tokenizer, n, tokens, seed)
    if domain not in _INVENTED:
        raise InputError(f"There is no domain {domain!r}.", f"Choose from {', '.join(DOMAINS)}.")
    drawn = _INVENTED[domain](30 * n, seed)
    fitting = [t for t in drawn if t.secret is None or len(tokenizer.encode(t.text[: t.secret])) == secret_at]
    if len(fitting) < n:
        raise InputError(f"Of {len(drawn)} texts of {domain!r} only {len(fitting)} have their secret at token {secret_at}.", "Try 48.")
    return fitting[:n]
