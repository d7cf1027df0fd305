"""Positions in the context, with models that read everything, nothing, or only the ends."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from palimpsest.errors import ContextOverflowError, InputError
from palimpsest.evaluation.haystack import Haystack, Recipe
from palimpsest.evaluation.layers.contextual import (
    Needle,
    effective_length,
    measure_positions,
    mid_sequence_drop,
    position_summary,
    u_contrast,
)
from palimpsest.models.base import LanguageModel

TEXT = " ".join(f"Nothing happens on day {n} of this story. Then it goes on." for n in range(80))
NEEDLES = [Needle(f"n{k}", f"The code of gate {k} is word{k}x. ", f"\nQ: code of gate {k}? A:", (f"word{k}x",)) for k in range(10)]


class Window(LanguageModel):
    """Sees the needle only where `sees` says so of its place in the prompt, from 0 to 1."""

    name, door, capabilities, parameters, prepends_bos = "window", "scripted", frozenset({"text"}), None, False
    context_length, fingerprint = 2048, "0" * 64

    def __init__(self, tokenizer, sees):
        self.tokenizer, self.sees = tokenizer, sees

    def score(self, batch_ids, **options):
        raise self.lacks("logprobs", "scoring")

    def generate(self, prefixes, max_new_tokens, *, progress=None, **options):
        out = []
        for ids in prefixes:
            text = self.tokenizer.decode(ids)
            gate = text.rsplit("code of gate ", 1)[1].split("?")[0]
            place = text.find(f"The code of gate {gate} is")
            found = place >= 0 and self.sees(place / len(text), len(ids))
            out.append([np.array(self.tokenizer.encode(f" It is word{gate}x.\nQ: more" if found else " I forgot.\n")[:max_new_tokens])])
        return out


@pytest.fixture(scope="module")
def haystack(tiny_tokenizer):
    return Haystack(tiny_tokenizer, [TEXT])


def measure(tiny_tokenizer, haystack, sees, **options):
    return measure_positions(Window(tiny_tokenizer, sees), haystack, NEEDLES, [300, 600, 900], answer_tokens=40, **options)


def test_one_who_reads_all_has_no_drop(tiny_tokenizer, haystack):
    found = measure(tiny_tokenizer, haystack, lambda place, length: True)
    assert found.table.height == 3 * 10 * 12
    for row in found.summary["by_length"]:
        assert row["accuracy"]["estimate"] == row["all_depths"]["estimate"] == 1
        assert row["control"]["estimate"] == 0
        assert row["drop"]["estimate"] == row["u_contrast"]["difference"]["estimate"] == 0
        assert row["u_contrast"]["p_value"] == 1
        assert row["gain"]["low"] > 0.5
        assert [cell["n"] for cell in row["by_depth"]] == [10] * 11
    assert found.summary["effective_length"] == 900


def test_one_who_reads_the_ends_has_a_drop_and_a_u(tiny_tokenizer, haystack):
    found = measure(tiny_tokenizer, haystack, lambda place, length: not 0.3 < place < 0.7 or length < 400)
    short, long = found.summary["by_length"][0], found.summary["by_length"][-1]
    assert short["drop"]["estimate"] == 0
    assert long["drop"] == {"estimate": 1, "low": 1, "high": 1}
    assert long["u_contrast"]["difference"]["estimate"] > 0.5
    assert long["u_contrast"]["p_value"] < 0.01
    assert 0.3 <= long["worst_depth"] <= 0.7
    assert found.summary["effective_length"] == 300
    one_sided = measure(tiny_tokenizer, haystack, lambda place, length: place > 0.75).summary["by_length"][-1]
    assert one_sided["drop"]["estimate"] == 0.5
    curve = found.curves["positions"]
    assert [series.name for series in curve.series] == ["300 tokens", "600 tokens", "900 tokens", "without the needle"]


def test_one_who_reads_nothing_gains_nothing(tiny_tokenizer, haystack):
    found = measure(tiny_tokenizer, haystack, lambda place, length: False)
    assert found.summary["effective_length"] is None
    assert all(row["gain"]["estimate"] == 0 for row in found.summary["by_length"])


def test_a_row_makes_its_prompt_again_and_a_run_its_table(tiny_tokenizer, haystack):
    seen = []

    class Listening(Window):
        def generate(self, prefixes, max_new_tokens, **options):
            seen.extend(prefixes)
            return super().generate(prefixes, max_new_tokens, **options)

    found = measure_positions(Listening(tiny_tokenizer, lambda p, n: True), haystack, NEEDLES[:2], [200], [0.0, 0.5, 1.0], answer_tokens=40)
    for row, prompt in zip(found.table.to_dicts(), seen, strict=True):
        needle = next(n for n in NEEDLES if n.id == row["id"])
        hidden = ((), ()) if row["depth"] is None else ((needle.text,), (row["depth"],))
        assert np.array_equal(haystack.make(Recipe(*hidden, row["length"], "", needle.question, row["filler_seed"])).ids, prompt)
        assert len(prompt) == 200
    again = measure_positions(Window(tiny_tokenizer, lambda p, n: True), haystack, NEEDLES[:2], [200], [0.0, 0.5, 1.0], answer_tokens=40)
    assert again.table.equals(found.table)


def test_the_contrast_has_no_constant_and_no_linear_part():
    depths = np.linspace(0, 1, 7)
    rng = np.random.default_rng(0)
    bent = u_contrast(depths, rng.normal(size=(12, 1)) + rng.normal(size=(12, 1)) * depths)
    assert bent.difference.estimate == pytest.approx(0, abs=1e-9)
    u = u_contrast(depths, np.tile((depths - 0.5) ** 2, (12, 1)) + 0.01 * rng.normal(size=(12, 7)))
    hill = u_contrast(depths, -np.tile((depths - 0.5) ** 2, (12, 1)) + 0.01 * rng.normal(size=(12, 7)))
    assert u.difference.low > 0 > hill.difference.high
    assert max(u.p_value, hill.p_value) < 0.01


def test_the_drop_is_resampled_by_needle():
    depths = np.array([0.0, 0.5, 1.0])
    right = np.array([[1, 0, 1], [1, 1, 1], [0, 0, 0], [1, 0, 0]] * 5)
    drop = mid_sequence_drop(depths, right)
    assert drop.estimate == pytest.approx(np.mean([1, 0, 0, 0.5]))
    assert drop.low < drop.estimate < drop.high
    with pytest.raises(InputError, match="middle"):
        mid_sequence_drop(np.array([0.0, 0.3, 1.0]), right)


def test_the_effective_length_ends_at_the_first_fall():
    assert effective_length({100: 0.5, 200: 0.5, 400: 0.4, 800: 0.5}) == 200
    assert effective_length({100: 0.5}) == 100


def test_depths_without_a_middle_have_no_drop(tiny_tokenizer, haystack):
    found = measure_positions(Window(tiny_tokenizer, lambda p, n: True), haystack, NEEDLES, [200], [0.0, 1.0], answer_tokens=40)
    assert found.summary["by_length"][0]["drop"] is None
    assert position_summary(found.table) == found.summary
    assert isinstance(found.table, pl.DataFrame)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"needles": NEEDLES[:1]}, InputError, "1 needles"),
        ({"needles": [NEEDLES[0]] * 2}, InputError, "distinct"),
        ({"lengths": []}, InputError, "lengths"),
        ({"depths": [0.5, 0.1]}, InputError, "ascending"),
        ({"lengths": [2045]}, ContextOverflowError, "2045"),
        ({"needles": [NEEDLES[0], Needle("x", "a. ", "b", ("story",))]}, InputError, "'story'"),
    ],
)
def test_what_cannot_be_measured_is_refused(tiny_tokenizer, haystack, options, error, match):
    asked = {"needles": NEEDLES, "lengths": [200], **options}
    with pytest.raises(error, match=match):
        measure_positions(Window(tiny_tokenizer, lambda p, n: True), haystack, **asked)
