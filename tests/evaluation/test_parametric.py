"""What the weights know, with tables of log-probabilities that a test can see through."""

from __future__ import annotations

import math
import warnings

import numpy as np
import polars as pl
import pytest

from palimpsest.audit.membership import BiasedSplitWarning
from palimpsest.audit.samples import PrefixSuffix
from palimpsest.corpus import FactWorld
from palimpsest.errors import CapabilityError, InputError
from palimpsest.evaluation.layers.edits import Contest, Edit, drawdown, measure_edits
from palimpsest.evaluation.layers.parametric import (
    Cued,
    exposure,
    measure_closed_book,
    measure_privacy,
    target_logprobs,
    world_cues,
)
from palimpsest.models import ScoreCache
from palimpsest.models.base import LanguageModel, Scores
from palimpsest.stats import wilson_interval


class Table(LanguageModel):
    """Gives each completion of a cue the log-probability that a table says, spread over its tokens; everything else has `floor` a token."""

    name, door, capabilities, parameters, prepends_bos = "table", "scripted", frozenset({"text", "logprobs"}), None, False
    context_length, fingerprint = 512, "0" * 64

    def __init__(self, tokenizer, known, floor=-5.0):
        self.tokenizer, self.known, self.floor = tokenizer, known, floor

    def score(self, batch_ids, *, start=1, **options):
        starts = start if isinstance(start, list) else [start] * len(batch_ids)
        rows = []
        for ids, first in zip(batch_ids, starts, strict=True):
            cue, target = self.tokenizer.decode(ids[:first]), self.tokenizer.decode(ids[first:]).strip()
            total = self.known.get(cue, {}).get(target)
            tokens = len(ids) - first
            rows.append(np.full(tokens, self.floor if total is None else total / tokens, np.float32))
        return Scores(rows, [row > -1 for row in rows])

    def generate(self, prefixes, max_new_tokens, **options):
        texts = []
        for ids in prefixes:
            values = self.known.get(self.tokenizer.decode(ids), {})
            texts.append(max(values, key=values.__getitem__) if values else "nothing")
        return [[np.array(self.tokenizer.encode(f" {text} and more")[:max_new_tokens])] for text in texts]


@pytest.fixture(scope="module")
def world():
    return FactWorld(seed=5, people=20)


def test_closed_book_tells_what_is_known_from_what_is_not(tiny_tokenizer, world):
    facts = world_cues(world, world.facts("birthplace"), distractors=3)
    seen, unseen = facts[:10], facts[10:]
    known = {cue: {fact.golds[0]: -0.1} for fact in seen for cue in fact.cues}
    known[seen[0].cues[2]] = {seen[0].distractors[0]: -0.1}  # one fact is not known under one of its cues
    found = measure_closed_book(Table(tiny_tokenizer, known), seen, unseen, answer_tokens=40)
    summary = found.summary
    assert found.table.height == 20 * 3
    assert summary["facts"]["worst_cue"] == wilson_interval(9, 10)._asdict()
    assert summary["facts"]["right"]["estimate"] == pytest.approx(29 / 30)
    assert [row["estimate"] for row in summary["facts"]["by_cue"]] == [1, 1, 0.9]
    assert summary["facts"]["first"]["estimate"] == pytest.approx(29 / 30)
    assert summary["controls"]["worst_cue"]["estimate"] == 0
    assert summary["controls"]["reciprocal_rank"]["estimate"] == pytest.approx(1 / 2.5)  # four equal candidates
    assert summary["difference"]["low"] > 0.4
    assert summary["facts"]["chance_first"] == 0.25
    wrong = found.table.filter((pl.col("id") == seen[0].id) & (pl.col("cue") == 2))
    assert wrong["rank"].to_list() == [3.0]  # behind one, level with two
    assert wrong["f1"][0] < 1


def test_ranks_are_by_mean_logprob_a_token(tiny_tokenizer):
    long, short = "wordy gold of many tokens", "x"
    model = Table(tiny_tokenizer, {"cue": {long: -6.0, short: -4.0}})
    sums = target_logprobs(model, ["cue"] * 2, [long, short])
    means = target_logprobs(model, ["cue"] * 2, [long, short], mean=True)
    assert sums == pytest.approx([-6, -4], abs=1e-4)
    assert means[0] > means[1]
    facts = [Cued(name, ("cue",), (long,), (short,)) for name in "ab"]
    assert measure_closed_book(model, facts, facts).table["rank"].to_list() == [1.0] * 4


def edit(number):
    return Edit(
        f"e{number}", f"E{number} lives in", f"New{number}", f"Old{number}",
        paraphrases=(f"The home of E{number} is", f"E{number} has a house in"),
        neighbours=((f"N{number} lives in", f"True{number}"),),
        consequences=(Contest(f"E{number} votes in", f"NewLand{number}", f"OldLand{number}"),),
    )  # fmt: skip


def tables(tokenizer, edits, *, generalises=True, spills=False, ports=False):
    before, after = {}, {}
    for e in edits:
        for prompt in (e.prompt, *e.paraphrases):
            before[prompt] = {e.new: -9.0, e.old: -1.0}
            after[prompt] = {e.new: -1.0, e.old: -9.0} if generalises or prompt == e.prompt else before[prompt]
        for prompt, true in e.neighbours:
            before[prompt] = {true: -1.0, e.new: -9.0}
            after[prompt] = {true: -9.0, e.new: -1.0} if spills else before[prompt]
        for contest in e.consequences:
            before[contest.prompt] = {contest.wanted: -9.0, contest.rival: -1.0}
            after[contest.prompt] = {contest.wanted: -1.0, contest.rival: -9.0} if ports else before[contest.prompt]
    return Table(tokenizer, before), Table(tokenizer, after)


@pytest.mark.parametrize(
    ("options", "expected", "harmonic"),
    [
        ({}, (1, 1, 1, 0), 1.0),
        ({"generalises": False}, (1, 0, 1, 0), 0.0),
        ({"spills": True}, (1, 1, 0, 0), 0.0),
        ({"ports": True}, (1, 1, 1, 1), 1.0),
    ],
)
def test_each_figure_of_an_edit_sees_its_own_part(tiny_tokenizer, options, expected, harmonic):
    edits = [edit(number) for number in range(8)]
    found = measure_edits(*tables(tiny_tokenizer, edits, **options), edits, ["a general text", "another one"])
    after, before = found.summary["after"], found.summary["before"]
    assert tuple(after[name]["estimate"] for name in ("ES", "PS", "NS", "portability")) == expected
    assert tuple(before[name]["estimate"] for name in ("ES", "PS", "NS", "portability")) == (0, 0, 1, 0)
    assert found.summary["S"] == harmonic
    assert found.summary["change"]["ES"]["p_value"] == pytest.approx(2 / 2**8)
    assert found.summary["drawdown"]["rise"]["estimate"] == pytest.approx(0)
    assert found.table.height == 8 * 5


def test_the_harmonic_mean_is_of_what_was_asked(tiny_tokenizer):
    edits = [edit(number) for number in range(4)]
    before, after = tables(tiny_tokenizer, edits)
    after.known[edits[0].paraphrases[0]] = before.known[edits[0].paraphrases[0]]
    found = measure_edits(before, after, edits, ["a text", "b text"], [Contest("E1 lives in", "New1", "Old1")])
    assert found.summary["after"]["PS"]["estimate"] == 7 / 8
    assert found.summary["S"] == pytest.approx(3 / (1 + 8 / 7 + 1))
    assert found.summary["change"]["probe"]["difference"]["estimate"] == 1
    plain = [Edit("a", "E1 lives in", "New1", "Old1"), Edit("b", "E2 lives in", "New2", "Old2")]
    assert measure_edits(before, after, plain, ["a text", "b text"]).summary["S_of"] == ["ES"]


def test_drawdown_is_the_rise_of_perplexity(tiny_tokenizer):
    texts = ["one general text", "and a second, longer general text", "third"]
    found = drawdown(Table(tiny_tokenizer, {}, -2.0), Table(tiny_tokenizer, {}, -2.1), texts)
    assert found["perplexity_before"] == pytest.approx(math.exp(2), rel=1e-5)
    assert found["rise"]["estimate"] == pytest.approx(math.exp(0.1) - 1, rel=1e-5)
    assert found["rise"]["low"] == pytest.approx(found["rise"]["high"], rel=1e-4)


def test_a_real_model_is_asked(tiny_model, other_model, world):
    cues = world_cues(world, world.facts("mayor")[:6], distractors=2)
    found = measure_closed_book(tiny_model, cues[:3], cues[3:])
    assert found.table["rank"].is_between(1, 3).all()
    cue, gold = cues[0].cues[0], cues[0].golds[0]
    ids, tail = tiny_model.tokenizer.encode(cue), tiny_model.tokenizer.encode(f" {gold}")
    naive = sum(float(tiny_model.logprobs([ids + tail[: n + 1]])[0][-1]) for n in range(len(tail)))
    assert target_logprobs(tiny_model, [cue], [gold])[0] == pytest.approx(naive, abs=1e-3)
    assert measure_edits(tiny_model, other_model, [edit(1), edit(2)], ["a text here", "b text here"]).summary["n"] == 2


def test_privacy_is_measured_by_the_audit(tiny_model):
    rng = np.random.default_rng(0)
    prefixes = [rng.integers(2, 300, 6) for _ in range(8)]
    own = [np.concatenate([p, w[0]]) for p, w in zip(prefixes, tiny_model.generate(prefixes, 6, stop_at_eos=False), strict=True)]
    members = [PrefixSuffix(ids, 6, 6, {"id": str(n)}) for n, ids in enumerate(own)]
    others = [PrefixSuffix(rng.integers(2, 300, 12), 6, 6, {"id": f"o{n}"}) for n in range(8)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BiasedSplitWarning)  # random ids against a model's own
        shared = ScoreCache(tiny_model)
        found = measure_privacy(shared, members, others)
    assert found["extraction"].table["extracted"].all()
    assert not found["extraction_control"].table["extracted"].any()
    assert set(found) == {"extraction", "extraction_control", "membership"}
    passages = len(members) + len(others)
    assert shared.counts.rows >= 2 * passages  # extraction and membership ask for every passage
    assert shared.counts.scored_rows <= shared.counts.rows - passages


def test_exposure_counts_ranks():
    rng = np.random.default_rng(0)
    references = rng.normal(size=255)
    for canary in (-9.0, 0.0, 9.0, float(references[3])):
        rank = sum(value >= canary for value in [*references]) + 1
        assert exposure(canary, references) == pytest.approx(8 - math.log2(rank))
    assert exposure(9.0, references) == 8
    assert exposure(-9.0, references) == 0


@pytest.mark.parametrize(
    ("bad", "error", "match"),
    [
        (lambda m: Cued("a", (), ("x",)), InputError, "0 cues"),
        (lambda m: Cued("a", ("c",), ("x",), ("x",)), InputError, "none of them"),
        (lambda m: measure_closed_book(m, [Cued("a", ("c",), ("x",))], []), InputError, "0 controls"),
        (
            lambda m: measure_closed_book(m, [Cued("a", ("c",), ("x",))] * 2, [Cued("a", ("c", "d"), ("x",))] * 2),
            InputError,
            "of cues",
        ),
        (lambda m: measure_edits(m, m, [edit(1)], ["text"]), InputError, "1 edits"),
        (lambda m: measure_edits(m, m, [edit(1), edit(1)], ["text"]), InputError, "distinct"),
        (lambda m: measure_edits(m, m, [edit(1), edit(2)], []), InputError, "0 texts"),
        (lambda m: drawdown(m, m, ["x"]), InputError, "2 tokens"),
        (lambda m: target_logprobs(m, [""], ["x"]), InputError, "no tokens"),
        (lambda m: exposure(0.0, []), InputError, "0 references"),
    ],
)
def test_bad_input_is_refused(tiny_tokenizer, bad, error, match):
    with pytest.raises(error, match=match):
        bad(Table(tiny_tokenizer, {}))


def test_a_door_without_scores_is_refused(tiny_tokenizer):
    model = Table(tiny_tokenizer, {})
    model.capabilities = frozenset({"text"})
    with pytest.raises(CapabilityError):
        measure_closed_book(model, [Cued("a", ("c",), ("x",))] * 2, [Cued("a", ("c",), ("x",))] * 2)
