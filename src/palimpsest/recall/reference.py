"""MindRef: a model names the article that answers a question, then the words with which the passage begins; no index is searched.

Wang et al., *Can Large Language Models Recall Reference Location Like Humans?* (ACL 2025, arXiv 2402.17010; www-Ye/MindRef). What a
model has read in pretraining serves as the retriever, in two constrained stages:

1. beam search over *titles*, held to a token trie of all of them and closed by EOS; the n best are kept, with their log-probability a
   token, S_title;
2. beam search over *prefixes* of `prefix_len` tokens, held to the token index of those articles alone, which are not cut into passages:
   a prefix may begin anywhere. It is located, and the passage is the `passage_len` tokens from there on, as far as the article goes.

Both scores are mean log-probabilities a token of the unconstrained model, and a passage has

    score = λ · S_title + (1 − λ) · S_prefix,     λ = 0.9.

Departures: the published code locates a prefix at its first occurrence in an article, here every occurrence is a passage; a prefix that is
short because an article ends with it stands only there; articles that share a title are all kept; an FM-index is built for each question
there, here a suffix array for each set of articles. Beams are scored again by one pass over prompt and continuation, so that the
implementation of the beam search does not decide how length counts. The paper's prompts are the defaults.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from palimpsest.corpus.passages import PassageIndex
from palimpsest.errors import InputError
from palimpsest.guard.constrained import ConstrainedLogits, Constraint, Ids, IndexConstraint, TrieConstraint
from palimpsest.models.base import LanguageModel, Progress
from palimpsest.models.shared_prefix import score_continuations

TITLE_PROMPT = "Question: {}\n\nThe Wikipedia article corresponding to the above question is:\n\nTitle:"
PASSAGE_PROMPT = "Question: {}\n\nThe Wikipedia paragraph to answer the above question is:\n\nAnswer:"


@dataclass(frozen=True)
class Article:
    """A whole document with its title.

    Attributes:
        id: its name, unique.
        title: what the model is to recall; several articles may share one.
        text: not cut into passages.
    """

    id: str
    title: str
    text: str


@dataclass(frozen=True)
class Reference:
    """A passage that was recalled.

    Attributes:
        article, title: where it stands.
        start, end: of the passage, in tokens of the article.
        text: of the passage.
        score: λ · title_score + (1 − λ) · passage_score; where no title was asked for, passage_score.
        title_score, passage_score: mean log-probability (nat a token) of the title with EOS, None without one, and of the prefix.
    """

    article: str
    title: str
    start: int
    end: int
    text: str
    score: float
    title_score: float | None
    passage_score: float


class ReferenceRecall:
    """Recalls passages of articles that answer a question.

    Args:
        model: a door with weights.
        articles: what can be recalled.
        n_titles: titles kept; None leaves the first stage out and holds the prefix to all articles at once.
        title_beams, passage_beams: of the two searches.
        prefix_len: tokens that are written to find a passage.
        lam: weight λ of the title.
        passage_len: tokens of a passage.
        exact_titles: score every title instead of searching; for lists that are short.
        title_prompt, passage_prompt: with one {} for the question.

    Attributes:
        articles, rows: what can be recalled, and the token ids of each, int64.

    Raises:
        CapabilityError: a door without weights.
        InputError: no article, one without id, title or text, an id twice, a number out of range, a prompt without {}, no EOS id, or EOS
            inside an article.

    Example:
        >>> recall = ReferenceRecall(load_model("smollm2-135m"), articles)             # doctest: +SKIP
        >>> recall.search("Who was the first person on the moon?")[0].title           # doctest: +SKIP
        'Apollo program'
    """

    def __init__(
        self,
        model: LanguageModel,
        articles: Sequence[Article],
        *,
        n_titles: int | None = 2,
        title_beams: int = 15,
        passage_beams: int = 10,
        prefix_len: int = 16,
        lam: float = 0.9,
        passage_len: int = 150,
        exact_titles: bool = False,
        title_prompt: str = TITLE_PROMPT,
        passage_prompt: str = PASSAGE_PROMPT,
    ) -> None:
        model.require("weights", "Decoding under a constraint")
        if model.tokenizer.eos_id is None:
            raise InputError(f"The tokenizer of {model.name} has no EOS id.", "Give a Tokenizer with eos_id: a title must end somewhere.")
        if min(title_beams, passage_beams, prefix_len, 1 if n_titles is None else n_titles) < 1 or not 0 <= lam <= 1:
            raise InputError(
                f"n_titles is {n_titles}, beams {title_beams} and {passage_beams}, prefix_len {prefix_len}, lam {lam}.",
                "Give at least 1 of each, and lam from 0 to 1.",
            )
        if passage_len < prefix_len:
            raise InputError(f"A passage of {passage_len} tokens is shorter than its prefix of {prefix_len}.", "Give a longer passage_len.")
        for prompt in (title_prompt, passage_prompt):
            if prompt.count("{}") != 1:
                raise InputError(f"The prompt {prompt!r} has no single place for the question.", "Write {} once where it belongs.")
        self.model, self.eos = model, model.tokenizer.eos_id
        self.articles = _checked(articles)
        self.n_titles, self.title_beams, self.passage_beams = n_titles, title_beams, passage_beams
        self.prefix_len, self.lam, self.passage_len, self.exact_titles = prefix_len, lam, passage_len, exact_titles
        self.title_prompt, self.passage_prompt = title_prompt, passage_prompt
        self.rows = [np.array(ids, np.int64) for ids in model.tokenizer.encode_batch([article.text for article in self.articles])]
        for article, row in zip(self.articles, self.rows, strict=True):
            if self.eos in row:
                raise InputError(
                    f"The article {article.id!r} holds the id {self.eos} (EOS), which ends decoding.", "Take it out of the text."
                )
        self._titled: dict[Ids, list[int]] = defaultdict(list)  # ids of a title -> articles
        for number, ids in enumerate(model.tokenizer.encode_batch([f" {article.title}" for article in self.articles])):
            self._titled[tuple(ids)].append(number)
        self._trie = TrieConstraint(self._titled)
        self._indexes: dict[tuple[int, ...], PassageIndex] = {}

    def search(self, question: str, k: int = 10) -> list[Reference]:
        """The `k` best passages for a question, the best first.

        Raises:
            InputError: a question without text, k < 1.
            ContextOverflowError: it does not fit the context.
        """
        return self.search_batch([question], k)[0]

    def search_batch(self, questions: Sequence[str], k: int = 10, progress: Progress | None = None) -> list[list[Reference]]:
        """`search` for many questions, which are decoded together; `progress` hears of the second stage."""
        if k < 1:
            raise InputError(f"k is {k}.", "Give at least 1.")
        if self.n_titles is None:
            every: dict[int, float | None] = dict.fromkeys(range(len(self.articles)))
            return self.passages(questions, [every] * len(questions), k, progress)
        chosen = [self.articles_of(dict(found[: self.n_titles])) for found in self.titles(questions)]
        return self.passages(questions, chosen, k, progress)

    def titles(self, questions: Sequence[str]) -> list[list[tuple[Ids, float]]]:
        """The first stage: for every question the ids of the titles found and their scores, the best first."""
        prompts = self._prompts(questions, self.title_prompt)
        every = list(self._titled)
        if self.exact_titles:
            found = [every] * len(prompts)
        else:
            longest = max(map(len, every)) + 1
            written = self._beams(prompts, longest, self.title_beams, self._trie)
            found = [[ids for ids in rows if ids in self._titled] for rows in written]
        sums = score_continuations(self.model, prompts, [[(*ids, self.eos) for ids in rows] for rows in found])
        ranked = []
        for rows, totals in zip(found, sums, strict=True):
            scored = [(ids, float(total) / (len(ids) + 1)) for ids, total in zip(rows, totals, strict=True)]
            ranked.append(sorted(scored, key=lambda pair: -pair[1]))
        return ranked

    def articles_of(self, titles: dict[Ids, float]) -> dict[int, float | None]:
        """The numbers of the articles that have one of the titles -> the title's score."""
        return {number: score for ids, score in titles.items() for number in self._titled[ids]}

    def passage(self, number: int, start: int) -> tuple[str, int, str]:
        """The passage of article `number` that begins at a token: (id of the article, start, text)."""
        return self.articles[number].id, start, self.model.tokenizer.decode(self.rows[number][start : start + self.passage_len])

    def unconstrained(self, questions: Sequence[str]) -> list[np.ndarray]:
        """What the second stage would write without a constraint: the best beam of at most `prefix_len` tokens, int64."""
        prompts = self._prompts(questions, self.passage_prompt)
        return [rows[0] for rows in self.model.generate(prompts, self.prefix_len, num_beams=self.passage_beams)]

    def passages(
        self, questions: Sequence[str], chosen: Sequence[dict[int, float | None]], k: int = 10, progress: Progress | None = None
    ) -> list[list[Reference]]:
        """The second stage: for every question the `k` best passages of its articles, given as number -> score of the title."""
        prompts = self._prompts(questions, self.passage_prompt)
        indexes = [self._index(tuple(sorted(numbers))) for numbers in chosen]
        constraints: dict[Ids, Constraint] = {
            tuple(prompt): IndexConstraint(index, self.prefix_len) for prompt, index in zip(prompts, indexes, strict=True)
        }
        written = self._beams(prompts, self.prefix_len, self.passage_beams, constraints, progress)
        prefixes = [[ids for ids in rows if index.count(ids)] for rows, index in zip(written, indexes, strict=True)]
        sums = score_continuations(self.model, prompts, prefixes)
        answers = []
        for numbers, index, rows, totals in zip(chosen, indexes, prefixes, sums, strict=True):
            order = sorted(numbers)
            found = [
                self._reference(order[document], start, numbers[order[document]], float(total) / len(ids))
                for ids, total in zip(rows, totals, strict=True)
                for document, start in index.locate(ids, at_end=len(ids) < self.prefix_len)
            ]
            answers.append(sorted(found, key=lambda reference: -reference.score)[:k])
        return answers

    def _reference(self, number: int, start: int, title_score: float | None, passage_score: float) -> Reference:
        name, _, text = self.passage(number, start)
        end = min(len(self.rows[number]), start + self.passage_len)
        score = passage_score if title_score is None else self.lam * title_score + (1 - self.lam) * passage_score
        return Reference(name, self.articles[number].title, start, end, text, score, title_score, passage_score)

    def _beams(
        self,
        prompts: list[list[int]],
        length: int,
        beams: int,
        constraint: Constraint | dict[Ids, Constraint],
        progress: Progress | None = None,
    ) -> list[list[Ids]]:
        """For every prompt the distinct rows that its beams wrote, without EOS; a beam that found no room left may have left the set."""
        bos = self.model.tokenizer.bos_id if self.model.prepends_bos else None
        processor = ConstrainedLogits(constraint, self.eos, bos)
        written = self.model.generate(prompts, length, num_beams=beams, n=beams, processors=[processor], progress=progress)
        return [list(dict.fromkeys(tuple(row.tolist()) for row in rows if len(row))) for rows in written]

    def _index(self, numbers: tuple[int, ...]) -> PassageIndex:
        """The token index of some articles; kept, since questions share them."""
        if numbers not in self._indexes:
            self._indexes[numbers] = PassageIndex([self.rows[number] for number in numbers])
        return self._indexes[numbers]

    def _prompts(self, questions: Sequence[str], prompt: str) -> list[list[int]]:
        if isinstance(questions, str) or not questions or not all(question.strip() for question in questions):
            raise InputError(f"The questions are {questions!r}.", "Give a list of questions, each with text.")
        return self.model.tokenizer.encode_batch([prompt.replace("{}", question) for question in questions])


def _checked(articles: Sequence[Article]) -> list[Article]:
    seen: set[str] = set()
    for number, article in enumerate(articles):
        if not article.id or not article.title.strip() or not article.text.strip():
            raise InputError(f"Article {number} ({article.id!r}) has no id, no title or no text.", "Give all three.")
        if article.id in seen:
            raise InputError(f"The id {article.id!r} is given twice.", "Give every article an id of its own.")
        seen.add(article.id)
    if not seen:
        raise InputError("There are no articles.", "Give at least one.")
    return list(articles)
