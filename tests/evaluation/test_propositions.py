"""P1 and P4: against enumeration, on planted facts, and on measured curves. (P2 is in test_card.py.)"""

from __future__ import annotations

import itertools
import math
from datetime import date

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.errors import InputError
from palimpsest.evaluation.haystack import Haystack
from palimpsest.evaluation.items import Item
from palimpsest.evaluation.layers.contextual import Needle, measure_positions
from palimpsest.evaluation.prompting import Budget
from palimpsest.evaluation.propositions import (
    CHANNELS,
    Source,
    attribute,
    break_even,
    every_configuration,
    identifiable,
    minimal_configurations,
    patterns,
    predicted_accuracy,
    prediction_agreement,
)
from palimpsest.evaluation.retrieval import Doc, Snapshot
from palimpsest.evaluation.settings import ThreeSettingRun
from palimpsest.models.base import LanguageModel
from palimpsest.stats import Interval, wilson_interval

ASKED = date(2024, 1, 1)
ONLINE = frozenset({Source.WEIGHTS, Source.STORE})
PARAM = frozenset({Source.WEIGHTS})


def test_online_alone_never_tells_the_weights_from_the_store():
    for extra in itertools.chain.from_iterable(itertools.combinations([Source.CONTEXT, Source.EPISODIC], k) for k in range(3)):
        assert not identifiable([ONLINE | set(extra)], [Source.WEIGHTS, Source.STORE])
    assert identifiable([ONLINE, PARAM], [Source.WEIGHTS, Source.STORE, Source.NONE])


@given(st.lists(st.sampled_from(list(Source)), min_size=2, max_size=5, unique=True))
def test_the_minimal_sets_are_all_and_only_the_smallest(sources):
    found = minimal_configurations(sources)
    size = len(found[0])
    assert size == math.ceil(math.log2(len(sources)))
    every = every_configuration()
    smaller = itertools.chain.from_iterable(itertools.combinations(every, k) for k in range(size))
    assert not any(len({tuple(s in c for c in chosen) for s in sources}) == len(sources) for chosen in smaller)
    for chosen in found:
        assert len(set(patterns(chosen, sources).values())) == len(sources)
    naive = {frozenset(c) for c in itertools.combinations(every, size) if len({tuple(s in x for x in c) for s in sources}) == len(sources)}
    assert {frozenset(chosen) for chosen in found} == naive


def test_what_cannot_be_switched_cannot_be_told_apart():
    fixed = every_configuration([Source.STORE])
    assert all(configuration >= set(CHANNELS) - {Source.STORE} for configuration in fixed)
    with pytest.raises(InputError, match="weights and context"):
        minimal_configurations(available=fixed)
    assert len(minimal_configurations([Source.WEIGHTS, Source.STORE], available=fixed)[0]) == 1
    with pytest.raises(InputError, match="1 sources"):
        minimal_configurations([Source.STORE])


def test_planted_facts_are_attributed_to_where_they_were_planted(make_reader):
    """Facts in the weights, in the store, in neither: PARAM and ONLINE together find where each is; ONLINE alone does not."""
    people = [f"P{n:02}x" for n in range(30)]
    planted = {name: (Source.WEIGHTS, Source.STORE, Source.NONE)[n % 3] for n, name in enumerate(people)}
    reader = make_reader({name: f"Town{name}" for name in people if planted[name] is Source.WEIGHTS}, people)
    docs = [Doc(name, f"On 2020-01-01: {name} lives in Town{name}.", date(2020, 1, 1)) for name in people if planted[name] is Source.STORE]
    items = [Item(name, f"Where does {name} live?", (f"Town{name}",), ASKED) for name in people]
    run = ThreeSettingRun(reader, items, Snapshot(docs), budget=Budget(evidence_tokens=200, answer_tokens=30, k=2))
    table = run.run().table.sort("setting", "id")
    right = {name: table.filter(table["setting"] == name)["right"].to_list() for name in ("param", "offline")}
    sources = [Source.WEIGHTS, Source.STORE, Source.NONE]
    found = attribute({PARAM: right["param"], ONLINE: right["offline"]}, sources)
    assert found == [(planted[name],) for name in sorted(people)]
    alone = attribute({ONLINE: right["offline"]}, sources)
    assert all(len(fits) == (1 if planted[name] is Source.NONE else 2) for fits, name in zip(alone, sorted(people), strict=True))
    with pytest.raises(InputError, match="same items"):
        attribute({PARAM: [True], ONLINE: [True, False]})


# --- P4 -----------------------------------------------------------------------------------------------------------------------------


@given(
    st.floats(0, 1), st.floats(0, 1), st.floats(0, 1),
    st.dictionaries(st.integers(100, 100_000), st.floats(0, 1), min_size=1, max_size=6),
)  # fmt: skip
def test_retrieval_wins_from_the_break_even_on(hit, short, none, reading):
    found = break_even(hit, short, none, reading, window=100)
    worth = predicted_accuracy(hit, short, none)
    assert worth == pytest.approx(hit * short + (1 - hit) * none)
    for length, accuracy in reading.items():
        assert (found.winner(length) == "retrieval") == (worth > accuracy)
        if found.length is not None and length > found.length * (1 + 1e-9):
            assert found.winner(length) == "retrieval"
    if found.length is None:
        assert found.winner(max(reading)) == "reading"
    else:
        assert min(reading) - 1e-6 <= found.length <= max(reading) * (1 + 1e-9)
        assert found.cost_ratio == pytest.approx(found.length / 100)


class Fading(LanguageModel):
    """Finds the needle with a chance that falls with the length of what it reads."""

    name, door, capabilities, parameters, prepends_bos = "fading", "scripted", frozenset({"text"}), None, False
    context_length, fingerprint = 10_000, "0" * 64

    def __init__(self, tokenizer):
        self.tokenizer, self.rng = tokenizer, np.random.default_rng(0)

    def score(self, batch_ids, **options):
        raise self.lacks("logprobs", "scoring")

    def generate(self, prefixes, max_new_tokens, *, progress=None, **options):
        out = []
        for ids in prefixes:
            text = self.tokenizer.decode(ids)
            gate = text.rsplit("code of gate ", 1)[1].split("?")[0]
            found = f"The code of gate {gate} is" in text and self.rng.random() < min(1.0, 250 / len(ids))
            out.append([np.array(self.tokenizer.encode(f" word{gate}x\n" if found else " lost\n")[:max_new_tokens])])
        return out


def test_the_predicted_winner_is_the_measured_one(tiny_tokenizer):
    """The prediction is made of the parts of retrieval and of one curve; the measurement is retrieval itself, and another curve."""
    text = " ".join(f"Nothing happens on day {n} of this story. Then it goes on." for n in range(200))
    haystack = Haystack(tiny_tokenizer, [text])
    needles = [Needle(f"n{k}", f"The code of gate {k} is word{k}x. ", f"\nQ: code of gate {k}? A:", (f"word{k}x",)) for k in range(40)]
    lengths, depths, hit = [220, 400, 1500, 3000], [0.0, 0.5, 1.0], 0.75

    def curve(seed):
        model = Fading(tiny_tokenizer)
        model.rng = np.random.default_rng(seed)
        found = measure_positions(model, haystack, needles, lengths, depths, answer_tokens=30, seed=seed)
        return {row["length"]: row for row in found.summary["by_length"]}

    first, second = curve(1), curve(2)
    reading = {length: first[length]["accuracy"]["estimate"] for length in lengths}
    predicted = break_even(hit, reading[220], first[220]["control"]["estimate"], reading, window=220)
    rng = np.random.default_rng(3)
    shown = rng.random(200) < hit
    measured = wilson_interval(int((shown & (rng.random(200) < 250 / 250)).sum()), 200)
    agreement = prediction_agreement(predicted, measured, {length: Interval(**second[length]["accuracy"]) for length in lengths})
    assert agreement["decided"] >= 3
    assert agreement["share"] >= 0.8
    assert {row["measured"] for row in agreement["by_length"]} == {"reading", "retrieval"}
    assert 220 < predicted.length < 1500


@pytest.mark.parametrize(
    "bad",
    [
        lambda: predicted_accuracy(1.1, 0.5, 0.5),
        lambda: break_even(0.5, 0.5, 0.5, {}, 10),
        lambda: break_even(0.5, 0.5, 0.5, {100: 1.5}, 10),
        lambda: break_even(0.5, 0.5, 0.5, {100: 0.5}, 0),
        lambda: break_even(0.5, 0.5, 0.5, {100: 0.5}, 10).winner(200),
    ],
)
def test_shares_and_lengths_are_checked(bad):
    with pytest.raises(InputError):
        bad()
