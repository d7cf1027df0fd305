"""Needles and wordings: scripted readers, naive oracles of the figures, and what is refused."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.errors import ContextOverflowError, InputError
from palimpsest.evaluation.haystack import Haystack
from palimpsest.evaluation.needle import NeedleTest, measure_needles, reconstruct, score_answer
from palimpsest.evaluation.prompt_dependence import components, outcomes, prompt_dependence, spread
from palimpsest.models.base import LanguageModel

TEXT = " ".join(f"Nothing happens on day {n} of this story. Then it goes on." for n in range(80))
ASKED = ("\nQ: capital of {0}? A:", "\nThe capital of {0} is")
FALSE = NeedleTest("false", "The capital of Zq is Arlby. ", tuple(q.format("Zq") for q in ASKED), ("Arlby",), ("Paris",), "plain")
PLAIN = NeedleTest("plain", "The capital of Qz is Arlby. ", tuple(q.format("Qz") for q in ASKED), ("Arlby",))
TESTS = [FALSE, PLAIN]
GRID = {"lengths": [200, 300], "depths": [0.0, 0.5, 1.0], "seeds": [0, 1]}


class Reader(LanguageModel):
    """Answers what the needle says where `reads(town, wording, place)`; else with Paris for the town Zq and nothing for the other."""

    name, door, capabilities, parameters, prepends_bos = "reader", "scripted", frozenset({"text"}), None, False
    context_length, fingerprint = 512, "0" * 64

    def __init__(self, tokenizer, reads):
        self.tokenizer, self.reads, self.seen = tokenizer, reads, []

    def score(self, batch_ids, **options):
        raise self.lacks("logprobs", "scoring")

    def generate(self, prefixes, max_new_tokens, *, progress=None, **options):
        out = []
        for ids in prefixes:
            self.seen.append(ids)
            text = self.tokenizer.decode(ids)
            wording = int(text.endswith(" is"))
            town = text.rsplit("capital of ", 1)[1][:2]
            place = text.find(f"The capital of {town} is Arlby.")
            known = place >= 0 and self.reads(town, wording, place / len(text))
            answer = " Arlby.\nmore" if known else " Paris" if town == "Zq" else " no"
            out.append([np.array(self.tokenizer.encode(answer)[:max_new_tokens])])
        return out


@pytest.fixture(scope="module")
def haystack(tiny_tokenizer):
    return Haystack(tiny_tokenizer, [TEXT], cycle=True)


def measure(haystack, reads=lambda *a: True, **options):
    return measure_needles(Reader(haystack.tokenizer, reads), haystack, **{"tests": TESTS, **GRID, "answer_tokens": 40, **options})


def test_one_who_reads_all_depends_on_no_prompt(haystack):
    found = measure(haystack)
    assert found.table.height == 4 * 2 * 2 * (3 + 1)
    assert found.summary["recall"] == 1
    assert found.summary["control"]["estimate"] == 0
    assert found.summary["prompt_dependence"] == {"estimate": 0, "low": 0, "high": 0}
    assert found.summary["omnibus"]["p_value"] == 1
    assert found.summary["components"] == {"rest": 0, "length": 0, "depth": 0, "seed": 0, "prompt": 0}
    assert found.summary["conflicts"][0]["p_value"] == 1
    assert found.table["right"].to_list() == [depth is not None for depth in found.table["depth"]]


def test_one_who_reads_one_wording_depends_on_it(haystack):
    found = measure(haystack, lambda town, wording, place: wording == 1)
    assert found.summary["prompt_dependence"] == {"estimate": 1, "low": 1, "high": 1}
    assert found.summary["omnibus"]["p_value"] < 1e-6
    assert all(test["p_value"] < 1e-3 for test in found.summary["omnibus_by_test"].values())
    assert found.summary["conflicts"][0]["difference"]["estimate"] == 0
    assert found.summary["shuffled"]["prompt_dependence"] < 0.7
    assert found.summary["shuffled"]["not_significant"] > 0.85


def test_one_who_trusts_its_training_fails_the_needle_that_contradicts_it(haystack):
    found = measure(haystack, lambda town, wording, place: town == "Qz")
    conflict = found.summary["conflicts"][0]
    assert (conflict["first"], conflict["second"], conflict["difference"]["estimate"]) == ("plain", "false", -1)
    assert conflict["prior"]["estimate"] == 1
    assert found.table.filter(pl.col("test") == "plain")["prior"].sum() == 0
    assert all(test["p_value"] == 1 for test in found.summary["omnibus_by_test"].values())


def test_a_reader_of_one_place_shows_in_the_component_of_depth(haystack):
    parts = measure(haystack, lambda town, wording, place: place < 0.25).summary["components"]
    assert parts["depth"] > 0.3
    assert parts["prompt"] <= 0
    assert parts["length"] <= 0


def test_prompts_are_exact_hold_the_needle_once_and_can_be_made_again(haystack):
    reader = Reader(haystack.tokenizer, lambda *a: True)
    found = measure_needles(reader, haystack, TESTS, **GRID, before="Read.\n", answer_tokens=40)
    fillers = {}
    for row, ids in zip(found.table.to_dicts(), reader.seen, strict=True):
        context = reconstruct(row, haystack, TESTS, "Read.\n")
        assert np.array_equal(context.ids, ids)
        assert len(ids) == row["length"]
        assert not {0, 1} & set(ids.tolist())
        needle = haystack.tokenizer.encode(next(test.needle for test in TESTS if test.name == row["test"]))
        places = [at for at in range(len(ids)) if ids[at : at + len(needle)].tolist() == needle]
        assert len(places) == (row["depth"] is not None)
        text = haystack.tokenizer.decode(np.concatenate([ids[: places[0]], ids[places[0] + len(needle) :]]) if places else ids)
        end = text[: text.rindex("\n")][-60:]
        assert fillers.setdefault((row["length"], row["seed"]), end) == end
    assert len(set(fillers.values())) > 1
    with pytest.raises(InputError, match="'other'"):
        reconstruct({**found.table.row(0, named=True), "test": "other"}, haystack, TESTS)


def test_the_filler_starts_where_it_holds_no_key(tiny_tokenizer):
    spoiled = Haystack(tiny_tokenizer, [TEXT[:1500] + " He saw Paris once. "], cycle=True)
    found = measure(spoiled, seeds=list(range(6)))
    first = found.table.select("seed", "length", "filler_seed").unique()
    moved = first.filter(pl.col("filler_seed") != pl.col("seed") * 1_000_003 + pl.col("length") * 1009)
    assert 0 < moved.height < first.height
    assert first.height == 12
    with pytest.raises(InputError, match="Arlby"):
        measure(Haystack(tiny_tokenizer, ["He went to Arlby. "], cycle=True))


def test_an_answer_is_scored_four_ways():
    assert score_answer("The capital of Zq is Arlby.", FALSE) == {
        "right": True,
        "verbatim": True,
        "prior": False,
        "partial": 1.0,
        "empty": False,
    }
    assert score_answer("Not Paris but Arlby", FALSE) == {"right": True, "verbatim": False, "prior": False, "partial": 1.0, "empty": False}
    assert score_answer("paris", FALSE) == {"right": False, "verbatim": False, "prior": True, "partial": 0.0, "empty": False}
    assert score_answer(" .", PLAIN)["empty"]
    two = replace(PLAIN, key=("eat a sandwich", "picnic"))
    assert score_answer("a sandwich", two) == {"right": False, "verbatim": False, "prior": False, "partial": 0.5, "empty": False}


layouts = st.tuples(st.integers(1, 3), st.integers(2, 3), st.integers(1, 2), st.integers(2, 4), st.integers(0, 10**6))


def table_of(lengths, depths, seeds, prompts, seed):
    rng = np.random.default_rng(seed)
    rows = [
        {"test": f"t{p // 2}", "wording": p % 2, "length": n, "depth": d / 4, "seed": s, "right": bool(rng.integers(2)), "prior": False}
        for n, d, s, p in itertools.product(range(lengths), range(depths), range(seeds), range(prompts))
    ]
    return pl.DataFrame(rows).sample(fraction=1, shuffle=True, seed=seed)


@settings(max_examples=40, deadline=None)
@given(layouts)
def test_the_figures_are_those_of_their_definitions(layout):
    table = table_of(*layout)
    names, cells, right = outcomes(table)
    rows = table.to_dicts()
    for number, (test, wording) in enumerate(names):
        for cell, (length, depth, seed) in enumerate(cells.rows()):
            (row,) = [
                r for r in rows if (r["test"], r["wording"], r["length"], r["depth"], r["seed"]) == (test, wording, length, depth, seed)
            ]
            assert right[cell, number] == row["right"]
    means = [np.mean([r["right"] for r in rows if (r["test"], r["wording"]) == name]) for name in names]
    interval = spread(right, resamples=50)
    assert interval.estimate == pytest.approx(max(means) - min(means))
    assert 0 <= interval.low <= interval.high <= 1
    found = components(right, cells)
    assert found == pytest.approx(naive_components(rows), abs=1e-12)


def naive_components(rows):
    grand = np.mean([r["right"] for r in rows])
    factors = {
        "prompt": lambda r: (r["test"], r["wording"]),
        **{name: (lambda r, name=name: r[name]) for name in ("length", "depth", "seed")},
    }
    effects, levels = {}, {}
    for name, level in factors.items():
        groups = {}
        for row in rows:
            groups.setdefault(level(row), []).append(row["right"])
        effects[name] = {key: np.mean(values) - grand for key, values in groups.items()}
        levels[name] = len(groups)
    left = [r["right"] - grand - sum(effects[name][level(r)] for name, level in factors.items()) for r in rows]
    rest = np.sum(np.square(left)) / (len(rows) - 1 - sum(count - 1 for count in levels.values()))
    found = {"rest": rest}
    for name, level in factors.items():
        square = sum(effects[name][level(r)] ** 2 for r in rows)
        found[name] = (square / (levels[name] - 1) - rest) * levels[name] / len(rows) if levels[name] > 1 else None
    return found


def test_components_of_known_variance_are_found():
    rng = np.random.default_rng(0)
    cells = pl.DataFrame(
        {"length": np.repeat([1, 2], 60), "depth": np.tile(np.repeat(np.arange(60) / 60, 1), 2), "seed": np.zeros(120, int)}
    )
    y = rng.normal(scale=2, size=(1, 80)) + np.tile(rng.normal(scale=1, size=60), 2)[:, None] + rng.normal(scale=0.5, size=(120, 80))
    found = components(y, cells)
    assert found["prompt"] == pytest.approx(4, rel=0.35)
    assert found["depth"] == pytest.approx(1, rel=0.35)
    assert found["rest"] == pytest.approx(0.25, rel=0.1)
    assert abs(found["length"]) < 0.02
    assert found["seed"] is None


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"tests": [PLAIN, PLAIN]}, InputError, "distinct"),
        ({"tests": [replace(PLAIN, questions=ASKED[:1])]}, InputError, "2 prompts"),
        ({"tests": [FALSE]}, InputError, "no twin"),
        ({"tests": [replace(FALSE, needle="The capital of Zq is surely Arlby. "), PLAIN]}, InputError, "no twin"),
        ({"lengths": []}, InputError, "lengths"),
        ({"depths": [0.5, 0.5]}, InputError, "depths"),
        ({"seeds": [1, 1]}, InputError, "seeds"),
        ({"lengths": [500]}, ContextOverflowError, "500"),
        ({"lengths": [20]}, InputError, "no room"),
    ],
)
def test_what_cannot_be_measured_is_refused(haystack, options, error, match):
    with pytest.raises(error, match=match):
        measure(haystack, **options)


def test_a_haystack_that_does_not_cycle_and_a_torn_table_are_refused(tiny_tokenizer, haystack):
    with pytest.raises(InputError, match="cycle"):
        measure(Haystack(tiny_tokenizer, [TEXT]))
    table = measure(haystack).table
    with pytest.raises(InputError, match="in 12 cells"):
        prompt_dependence(table.slice(0, table.height - 1))
    with pytest.raises(InputError, match="combinations"):
        components(np.ones((2, 3)), pl.DataFrame({"length": [1, 2], "depth": [0.0, 1.0], "seed": [0, 0]}))
