"""A door that remembers: one forward pass for every distinct row, whatever the number of measurements that ask for it.

Several measurements of an audit want different statistics of the same passages: extraction the greedy hits of the suffix, the classes all
log-probabilities, probabilistic extraction the suffix under a sampler, membership the moments. `ScoreCache` stands before any door, has
its contract, and answers from what the door has said before:

* a row that was scored, from the same or an earlier position, and with the statistics that are wanted now;
* a row with which a longer scored row begins: a causal model's scores of an id depend on nothing but the ids before it. Models that look
  at the length of the whole input (`HFModel.length_free`) are asked again;
* a greedy continuation, also of fewer tokens than were written (by a model with weights: a server's text is cut into tokens anew);
  beam search and sampling only for the same question, because a sampled text belongs to its seed and its place in the batch.

Rows of one call that are equal, or begin one another, are scored once.

A statistic that was not asked for cannot be had without a second pass. `expect` says beforehand what will be asked for: the rows that
were announced are scored all at once, with everything that will be wanted of them, when the first of them is asked for. Their batches,
and with them the last bits of their scores, do not depend on which measurement comes first, so an audit that is killed and goes on says
the same. Scores differ from those of the bare door by what padding does to a sum in float32 (below 1e-4).

Memory is bounded: announced rows stay, as many as fit; of other rows and of texts the least recently used are forgotten. What is asked
with logits processors, and hidden states, always go to the door. The model behind it must not change meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from palimpsest.errors import CapabilityError, InputError, PalimpsestError
from palimpsest.models.base import LanguageModel, Progress, Sampler, Scores
from palimpsest.models.batching import check_rows, check_starts
from palimpsest.models.decoding import Decoding, until_stop
from palimpsest.models.score_store import IDS, Entry, Need, ScoreStore, Text, ids_of, joined, key_of

MAX_BYTES = 1 << 28
Rows = Sequence[Sequence[int] | np.ndarray]


@dataclass
class CacheCounts:
    """What was asked, and what of it the door had to do.

    Attributes:
        rows, tokens: rows whose scores were asked for, and their ids.
        scored_rows, scored_tokens: rows that the door scored, and their ids.
        prefixes: prefixes whose continuation was asked for, without those under logits processors.
        written_prefixes: of these, the ones that the door continued.
    """

    rows: int = 0
    tokens: int = 0
    scored_rows: int = 0
    scored_tokens: int = 0
    prefixes: int = 0
    written_prefixes: int = 0


class ScoreCache(LanguageModel):
    """A door with a memory; see the module's docstring.

    Args:
        model: the door that is asked.
        max_bytes: the most bytes that are kept between calls.

    Attributes:
        behind: the door.
        counts: see `CacheCounts`.

    Raises:
        InputError: `model` is a cache itself, or max_bytes < 0.

    Example:
        >>> cached = ScoreCache(model)                                            # doctest: +SKIP
        >>> taken = cached.expect(rows, moments=True)                            # doctest: +SKIP
        >>> cached.score(rows, start=9); cached.score(rows, moments=True)        # one pass   # doctest: +SKIP
        >>> cached.counts.rows, cached.counts.scored_rows                        # doctest: +SKIP
        (200, 100)
    """

    def __init__(self, model: LanguageModel, max_bytes: int = MAX_BYTES) -> None:
        if isinstance(model, ScoreCache) or max_bytes < 0:
            raise InputError(f"A cache of {max_bytes} bytes before a {type(model).__name__}.", "Give a bare door, and at least 0 bytes.")
        self.behind = model
        self.counts = CacheCounts()
        self.name, self.door, self.tokenizer = model.name, model.door, model.tokenizer
        self.capabilities, self.context_length = model.capabilities, model.context_length
        self.parameters, self.prepends_bos = model.parameters, model.prepends_bos
        self._ids = min(IDS, int(getattr(model, "vocab_size", IDS)))
        self._store = ScoreStore(max_bytes, bool(getattr(model, "length_free", True)))
        self._expected: dict[bytes, Need] = {}
        self._promised = 0  # bytes that the announced rows take, or will

    @property
    def fingerprint(self) -> str:
        """That of the door behind."""
        return self.behind.fingerprint

    @property
    def held_bytes(self) -> int:
        """What is kept at the moment."""
        return self._store.nbytes

    def expect(self, rows: Rows, *, start: int | Sequence[int] = 1, moments: bool = False, samplers: Sequence[Sampler] = ()) -> int:
        """Says what will be asked for; what is said of a row before it is scored adds up.

        Args:
            rows, start, moments, samplers: as for `score`.

        Returns:
            For how many of the rows there is room, the first ones; the others are scored as they are asked for.

        Raises:
            InputError, ContextOverflowError: rows that the model cannot see.
        """
        checked = check_rows(rows, self._ids, self.context_length, int(self.prepends_bos))
        for taken, (row, first) in enumerate(zip(checked, check_starts(start, checked), strict=True)):
            key, need = key_of(row), Need(first, moments, frozenset(samplers))
            known = self._expected.get(key)
            wanted = need if known is None else known | need
            self._promised += wanted.nbytes(key) - (0 if known is None else known.nbytes(key))
            if self._promised > self._store.max_bytes:
                self._promised -= wanted.nbytes(key) - (0 if known is None else known.nbytes(key))
                return taken
            self._expected[key] = wanted
        return len(checked)

    def score(
        self,
        batch_ids: Rows,
        *,
        start: int | Sequence[int] = 1,
        moments: bool = False,
        samplers: Sequence[Sampler] = (),
        progress: Progress | None = None,
    ) -> Scores:
        """See `LanguageModel.score`."""
        rows = check_rows(batch_ids, self._ids, self.context_length, int(self.prepends_bos))
        starts = check_starts(start, rows)
        keys = [key_of(row) for row in rows]
        needs = [Need(first, moments, frozenset(samplers)) for first in starts]
        before = replace(self.counts)
        try:
            found = self._entries(keys, needs, progress)
        except PalimpsestError:
            # An announced row may be at fault, or the message counts rows that the caller did not give: it is asked as the caller asked.
            self._expected.clear()
            self.counts = before
            return self.behind.score(batch_ids, start=start, moments=moments, samplers=samplers, progress=progress)
        finally:
            self._store.trim()
        self.counts.rows += len(rows)
        self.counts.tokens += sum(map(len, rows))

        def cut(name: str | Sampler) -> list[np.ndarray]:
            return [
                entry.arrays[name][first - entry.need.start : len(row) - entry.need.start].copy()
                for entry, row, first in zip(found, rows, starts, strict=True)
            ]

        if progress:
            progress(len(rows), len(rows))
        return Scores(
            cut("logprobs"),
            cut("greedy_hits"),
            cut("mean") if moments else None,
            cut("var") if moments else None,
            {sampler: cut(sampler) for sampler in samplers},
        )

    def _entries(self, keys: list[bytes], needs: list[Need], progress: Progress | None) -> list[Entry]:
        """An entry for every row, the missing ones having been scored."""
        missing: dict[bytes, Need] = {}
        for key, need in zip(keys, needs, strict=True):
            if self._store.find(key, need) is None:
                missing[key] = need | missing[key] if key in missing else need
        for key in missing.keys() & self._expected.keys():
            self._expected[key] |= missing[key]
        announced = {key: need for key, need in self._expected.items() if self._store.find(key, need) is None}
        planned = ScoreStore(0, self._store.extends)
        planned.put({key: Entry(need, {}) for key, need in joined(announced, self._store.extends).items()}, pinned=True)
        rest = {key: need for key, need in missing.items() if planned.find(key, need) is None}
        passes = []
        if len(rest) < len(missing):
            passes.append((joined(announced, self._store.extends), True))
            self._expected = {}
        for key in rest:  # what is known of a row is not given up when more is wanted of it
            known = self._store.known(key)
            rest[key] = rest[key] | known if known is not None else rest[key]
        passes.append((joined(rest, self._store.extends), False))
        total, done = sum(len(wanted) for wanted, _ in passes), 0
        for wanted, pinned in passes:
            for moments, samplers in dict.fromkeys((need.moments, need.samplers) for need in wanted.values()):
                group = {key: need for key, need in wanted.items() if (need.moments, need.samplers) == (moments, samplers)}

                def tell(count: int, _: int, done: int = done) -> None:
                    if progress:
                        progress((done + count) * len(keys) // total, len(keys))

                self._store.put(self._ask(group, moments, sorted(samplers, key=str), tell), pinned=pinned)
                done += len(group)
        found = [self._store.find(key, need) for key, need in zip(keys, needs, strict=True)]
        return [entry for entry in found if entry is not None]

    def _ask(self, group: dict[bytes, Need], moments: bool, samplers: list[Sampler], progress: Progress) -> dict[bytes, Entry]:
        """What the door says of some rows, of which the same statistics are wanted."""
        rows = [ids_of(key) for key in group]
        starts = [need.start for need in group.values()]
        scores = self.behind.score(rows, start=starts, moments=moments, samplers=samplers, progress=progress)
        self.counts.scored_rows += len(rows)
        self.counts.scored_tokens += sum(map(len, rows))
        lists: dict[str | Sampler, list[np.ndarray]] = {"logprobs": scores.logprobs, "greedy_hits": scores.greedy_hits}
        lists |= {name: values for name, values in (("mean", scores.mean), ("var", scores.var)) if values is not None}
        for sampler, values in scores.sampled.items():
            lists[sampler] = values
        return {
            key: Entry(need, {name: np.array(values[i]) for name, values in lists.items()}) for i, (key, need) in enumerate(group.items())
        }

    def generate(
        self,
        prefixes: Rows,
        max_new_tokens: int,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        n: int = 1,
        num_beams: int = 1,
        seed: int = 0,
        stop_at_eos: bool = True,
        processors: Sequence[Any] = (),
        progress: Progress | None = None,
    ) -> list[list[np.ndarray]]:
        """See `LanguageModel.generate`."""
        drawn = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
        options: dict[str, Any] = {"num_beams": num_beams, "stop_at_eos": stop_at_eos, **drawn}
        if processors:  # they count what they do
            return self.behind.generate(prefixes, max_new_tokens, n=n, processors=processors, progress=progress, **options)
        Decoding(Sampler(temperature, top_k, top_p), max_new_tokens, n, num_beams, seed)  # refuses what no door can do
        rows = check_rows(prefixes, self._ids, self.context_length, max_new_tokens + int(self.prepends_bos), "Prefix")
        self.counts.prefixes += len(rows)
        keys = [key_of(row) for row in rows]
        if temperature == 0 and num_beams == 1:
            try:
                texts = self._greedy(keys, max_new_tokens, options, progress)
            except PalimpsestError:  # its message counts prefixes that the caller did not give
                return self.behind.generate(prefixes, max_new_tokens, n=n, progress=progress, **options)
            made = [[ids.copy() for _ in range(n)] for ids in texts]  # greedy continuations are all equal
        else:
            question = ("whole", tuple(keys), max_new_tokens, n, *options.values())
            text = self._store.text(question)
            if text is None:
                told = self.behind.generate(prefixes, max_new_tokens, n=n, progress=progress, **options)
                self.counts.written_prefixes += len(rows)
                text = Text([ids for own in told for ids in own], max_new_tokens)
                self._store.put_text(question, text)
            made = [[ids.copy() for ids in text.ids[i * n : (i + 1) * n]] for i in range(len(rows))]
        self._store.trim()
        if progress:
            progress(len(rows), len(rows))
        return made

    def _greedy(self, keys: list[bytes], tokens: int, options: dict[str, Any], progress: Progress | None) -> list[np.ndarray]:
        """The greedy continuation of every prefix; each distinct one is written once."""
        known: dict[bytes, np.ndarray | None] = {key: self._written(key, tokens, options["stop_at_eos"]) for key in dict.fromkeys(keys)}
        missing = [key for key, ids in known.items() if ids is None]
        if missing:
            told = self.behind.generate([ids_of(key) for key in missing], tokens, progress=progress, **options)
            self.counts.written_prefixes += len(missing)
            for key, own in zip(missing, told, strict=True):
                self._store.put_text(self._question(key, tokens, options["stop_at_eos"]), Text(own[:1], tokens))
                known[key] = own[0]
        return [ids for key in keys if (ids := known[key]) is not None]

    def _written(self, key: bytes, tokens: int, stop: bool) -> np.ndarray | None:
        """The greedy continuation of a prefix, if it is known; what runs on behind EOS tells what ends there, as far as it goes."""
        text = self._store.text(self._question(key, tokens, stop))
        if text is not None and text.reaches(tokens):
            return text.ids[0][:tokens]
        stops = getattr(self.behind, "stop_ids", None)
        other = self._store.text(self._question(key, tokens, not stop))
        if other is None or stops is None or (len(other.ids[0]) < tokens):
            return None
        return until_stop(other.ids[0][:tokens], stops) if stop else other.ids[0][:tokens]

    def _question(self, key: bytes, tokens: int, stop: bool) -> tuple[object, ...]:
        return ("greedy", key, None if "weights" in self.capabilities else tokens, stop)

    def hidden_states(self, batch_ids: Rows, layers: Sequence[int]) -> list[dict[int, np.ndarray]]:
        """See `LanguageModel.hidden_states`; they are not kept."""
        return self.behind.hidden_states(batch_ids, layers)

    def lacks(self, capability: str, need: str) -> CapabilityError:
        """As the door behind says."""
        return self.behind.lacks(capability, need)
