"""The definition of memory: on systems that are one, and on systems that lack one property each."""

from __future__ import annotations

import numpy as np
import pytest

from palimpsest.corpus import Document, FactWorld
from palimpsest.errors import InputError
from palimpsest.evaluation.layers.parametric import target_logprobs
from palimpsest.evaluation.memory_test import Boundary, Probe, ProbeItem, is_memory, run_probe
from palimpsest.models.memory_based import MemoryBasedLM
from palimpsest.models.memory_door import MemoryModel

ITEMS = 20


def probe(gain=3.0, unrelated=0.0, later=2.0, weak=None, seed=0, **more):
    rng = np.random.default_rng(seed)
    base, other = rng.normal(-8, 2, (ITEMS, 4, 3)), rng.normal(-8, 2, (ITEMS, 5, 3))
    after = base + gain + 0.3 * rng.normal(size=base.shape)
    if weak == "paraphrase":
        after[:, 2] = base[:, 2] + 0.3 * rng.normal(size=(ITEMS, 3))
    if weak == "seed":
        after[:, :, 1] = base[:, :, 1] - 0.3 * np.abs(rng.normal(size=(ITEMS, 4)))
    return Probe(
        base,
        after,
        base + later + 0.3 * rng.normal(size=base.shape),
        other,
        other + unrelated + 0.3 * rng.normal(size=other.shape),
        **{"boundary": Boundary.SESSION, **more},
    )


@pytest.mark.parametrize(
    ("options", "lacks"),
    [
        ({}, set()),
        ({"gain": 0.0, "later": 0.0}, {"influential", "addressable", "persistent", "stable"}),
        ({"gain": -2.0, "later": -2.0}, {"influential", "addressable", "persistent", "stable"}),
        ({"unrelated": 3.0}, {"addressable", "stable"}),
        ({"later": 0.0}, {"persistent"}),
        ({"weak": "paraphrase"}, {"stable"}),
        ({"weak": "seed"}, {"stable"}),
    ],
)
def test_each_property_is_tested_by_itself(options, lacks):
    verdict = is_memory(probe(**options), draws=2000)
    assert {name for name in ("influential", "addressable", "persistent", "stable") if not getattr(verdict, name)} == lacks
    assert verdict.is_memory == (not lacks)
    assert verdict.to_dict()["is_memory"] == verdict.is_memory


def test_the_statistics_stand_beside_the_verdict():
    verdict = is_memory(probe(), draws=2000)
    assert verdict.gain.difference.low < 3 < verdict.gain.difference.high
    assert verdict.retention.estimate == pytest.approx(2 / 3, abs=0.03)
    assert verdict.retention.low < verdict.retention.estimate < verdict.retention.high
    assert list(verdict.stability) == ["paraphrase 0", "paraphrase 1", "paraphrase 2", "paraphrase 3", "seed 0", "seed 1", "seed 2"]
    assert is_memory(probe(gain=0.0, later=0.0), draws=500).retention is None


def test_chance_is_rarely_taken_for_memory():
    taken = [is_memory(probe(gain=0.0, later=0.0, seed=seed), draws=300) for seed in range(60)]
    assert np.mean([verdict.influential or verdict.persistent for verdict in taken]) <= 0.15
    assert not any(verdict.is_memory for verdict in taken)


class Notebook:
    """A system that knows what was written until the session ends, or for ever."""

    def __init__(self, lasting):
        self.lasting, self.notes = lasting, set()

    def reset(self, seed):
        self.notes, self.rng = set(), np.random.default_rng(seed)

    def write(self, texts):
        self.notes |= set(texts)

    def cross(self, boundary, other_writes):
        if not self.lasting and boundary is Boundary.SESSION:
            self.notes = set()

    def score(self, cues, targets):
        known = [any(cue.split()[-1] in note and target in note for note in self.notes) for cue, target in zip(cues, targets, strict=True)]
        return np.where(known, -1.0, -6.0) + 0.1 * self.rng.normal(size=len(known))


@pytest.mark.parametrize("lasting", [True, False])
def test_a_system_is_probed_through_its_own_doors(lasting):
    items = [
        ProbeItem(f"n{i} is v{i}x", f"v{i}x", tuple(f"{form} n{i}" for form in ("of", "about", "and")), (f"of n{i + 50}", f"of n{i + 60}"))
        for i in range(12)
    ]
    found = run_probe(Notebook(lasting), items, Boundary.SESSION)
    assert found.without.shape == (12, 3, 3)
    assert found.unrelated_after.shape == (12, 2, 3)
    verdict = is_memory(found, draws=1000)
    assert (verdict.influential, verdict.addressable, verdict.persistent, verdict.stable) == (True, True, lasting, True)
    assert (found.after.mean() - found.without.mean()) == pytest.approx(5, abs=0.2)


def test_a_probe_that_cannot_decide_is_refused():
    good = probe()
    with pytest.raises(InputError, match="4 items"):
        is_memory(
            Probe(*(getattr(good, n)[:4] for n in ("without", "after", "later", "unrelated_without", "unrelated_after")), Boundary.SESSION)
        )
    with pytest.raises(InputError, match="2 paraphrases"):
        Probe(good.without[:, :2], good.after[:, :2], good.later[:, :2], good.unrelated_without, good.unrelated_after, Boundary.SESSION)
    with pytest.raises(InputError, match="do not fit"):
        Probe(good.without[:9], good.after, good.later, good.unrelated_without, good.unrelated_after, Boundary.SESSION)
    with pytest.raises(InputError, match="NaN"):
        Probe(np.full((9, 3, 3), np.nan), good.after, good.later, good.unrelated_without, good.unrelated_after, Boundary.SESSION)
    with pytest.raises(InputError, match="how many writes"):
        probe(boundary=Boundary.OTHER_WRITES)
    with pytest.raises(InputError, match="numbers of own"):
        run_probe(Notebook(True), [ProbeItem("a", "b", ("c",), ())], Boundary.SESSION)


# --- a real system ------------------------------------------------------------------------------------------------------------------


class LearningModel:
    """A memory-based language model that learns incrementally, forgets exactly, and lives on in a folder."""

    def __init__(self, tokenizer, folder, wordings):
        self.tokenizer, self.folder, self.wordings = tokenizer, folder, wordings

    def reset(self, seed):
        base = FactWorld(seed=50 + seed, people=20)
        self.model = MemoryBasedLM(n=24).fit([base.sentence(fact) for fact in base.facts("residence")], self.tokenizer)

    def write(self, texts):
        self.model.partial_fit(
            [Document(f"written-{k}", line) for k, text in enumerate(texts) for line in text.split("\n")[: self.wordings]]
        )

    def cross(self, boundary, other_writes):
        if boundary is Boundary.RESTART:
            self.model.save(self.folder)
            self.model = MemoryBasedLM.load(self.folder)
        elif boundary is Boundary.OTHER_WRITES:
            other = FactWorld(seed=99, people=20)
            self.model.partial_fit([other.sentence(fact) for fact in other.facts("employer")[:other_writes]])
        else:
            self.model = self.model.forget([f"written-{k}" for k in range(12)])

    def score(self, cues, targets):
        return target_logprobs(MemoryModel(self.model, self.tokenizer), cues, targets)


@pytest.mark.parametrize(
    ("wordings", "boundary", "lacks"),
    [
        (3, Boundary.RESTART, set()),
        (3, Boundary.OTHER_WRITES, set()),
        (3, Boundary.SESSION, {"persistent"}),
        (1, Boundary.RESTART, {"stable"}),
    ],
)
def test_a_model_that_learns_has_a_memory_of_what_it_was_told(tiny_tokenizer, tmp_path, wordings, boundary, lacks):
    """Told in three wordings it answers to all three; told in one, only to that one; told to forget, to none."""
    world = FactWorld(seed=7, people=24)
    facts = world.facts("residence")[:12]
    items = [
        ProbeItem(
            "\n".join(world.sentence(fact, form) for form in (6, 7, 8)),
            fact.object,
            tuple(world.cue(fact, form) for form in (6, 7, 8)),
            (world.cue(other, 6), world.cue(other, 7)),
        )
        for fact, other in zip(facts, facts[6:] + facts[:6], strict=True)
    ]
    system = LearningModel(tiny_tokenizer, tmp_path / "memory", wordings)
    found = run_probe(system, items, boundary, other_writes=10 if boundary is Boundary.OTHER_WRITES else 0)
    verdict = is_memory(found, draws=2000)
    assert {name for name in ("influential", "addressable", "persistent", "stable") if not getattr(verdict, name)} == lacks
    if boundary is Boundary.RESTART:
        assert np.array_equal(found.later, found.after)
    if boundary is Boundary.SESSION:
        assert np.allclose(found.later, found.without)
