"""The external layer, with a reader whose sources are known."""

from __future__ import annotations

import math
from datetime import date

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from palimpsest.errors import InputError
from palimpsest.evaluation.items import Item
from palimpsest.evaluation.layers.external import (
    Cited,
    cited_in,
    leave_out,
    measure_attribution,
    measure_following,
    measure_retrieval,
    swap,
)
from palimpsest.evaluation.prompting import Budget, Template
from palimpsest.evaluation.retrieval import Doc, Passage, Snapshot

DAY = date(2020, 1, 1)
BUDGET = Budget(evidence_tokens=200, answer_tokens=40, k=4)


def doc(name, text):
    return Doc(name, f"On {DAY.isoformat()}: {text}", DAY)


def item(name, gold, *evidence):
    return Item(name, f"Where is {name}?", (gold,), DAY, evidence_ids=frozenset(evidence))


def test_an_answer_falls_into_one_of_four_cells():
    rome, other = Passage(doc("rome", "Ann is in Rome."), 1.0), Passage(doc("other", "Nothing to see."), 0.5)
    records = [
        Cited(item("a", "Rome", "rome"), "Rome", (rome, other), ("rome",)),
        Cited(item("b", "Rome", "rome"), "Rome", (rome, other), ("other",)),
        Cited(item("c", "Rome", "rome"), "Bern", (rome, other), ("rome", "other")),
        Cited(item("d", "Rome", "rome"), "Bern", (rome, other), ()),
        Cited(item("e", "Rome"), "Rome", (rome, other), ("rome",)),
    ]
    found = measure_attribution(records)
    assert found.table["cell"].to_list() == [
        "right, supported", "right, unsupported", "wrong, supported", "wrong, unsupported", "right, unsupported",
    ]  # fmt: skip
    assert found.summary["lucky"]["estimate"] == 2 / 5
    assert found.summary["unfaithful"]["estimate"] == 1 / 5
    assert sum(cell["estimate"] for cell in found.summary["cells"].values()) == pytest.approx(1)
    assert found.table["precision"].to_list() == [1, 0, 0.5, None, 0]
    assert found.table["recall"].to_list() == [1, 0, 1, 0, None]
    assert found.summary["left_out"] == 0


def test_leaving_out_what_is_cited_shows_whether_it_mattered(make_reader):
    reader = make_reader({"Bob": "Rome"}, ["Ann", "Bob"])
    template = Template()
    passages = (Passage(doc("x", "Ann lives in Rome."), 1.0), Passage(doc("y", "Bob was seen in Rome."), 0.5))
    needed = Cited(item("Ann", "Rome"), "Rome", passages, ("x",))
    known = Cited(item("Bob", "Rome"), "Rome", passages, ("y",))
    assert leave_out(reader, needed, template, BUDGET) > 0
    assert leave_out(reader, known, template, BUDGET) == 0  # learned: it is answered alike without the document
    found = measure_attribution([needed, known], model=reader, budget=BUDGET)
    assert found.table["supported"].to_list() == [True, False]
    assert found.summary["left_out"] == 2
    with pytest.raises(InputError, match="empty"):
        leave_out(reader, Cited(item("Ann", "Rome"), " ", passages, ("x",)), template, BUDGET)


def test_citations_are_read_from_the_answer():
    assert cited_in("Rome [1], surely [3] [1]", ["a", "b", "c"]) == ("Rome, surely", ("a", "c"))
    assert cited_in("Rome", ["a"]) == ("Rome", ())
    with pytest.raises(InputError, match="not shown"):
        Cited(item("a", "Rome"), "Rome", (), ("ghost",))


def test_who_follows_changed_evidence_reads_it(make_reader):
    """Ann is read; the stubborn model knows Bob better than any document."""

    class Stubborn(type(make_reader({}, []))):
        def answer(self, prompt):
            return "Rome" if "Bob" in prompt.rsplit("Question:", 1)[1] else super().answer(prompt)

    people = ["Ann", "Bob"]
    docs = {name: doc(name, f"{name} lives in Rome.") for name in people}
    items = [item(name, "Rome", name) for name in people]
    model = Stubborn(make_reader({}, people).tokenizer, {}, people)
    found = measure_following(model, items, docs, dict.fromkeys(people, "Bern"), budget=BUDGET)
    assert found.table.select("right", "swapped_answer", "follows", "stays").rows() == [
        (True, "Bern", True, False),
        (True, "Rome", False, True),
    ]
    assert found.summary["follows"]["estimate"] == found.summary["follows_if_right"]["estimate"] == 0.5
    with pytest.raises(InputError, match="does not hold"):
        measure_following(model, items, {**docs, "Ann": doc("Ann", "Ann lives somewhere.")}, dict.fromkeys(people, "Bern"))
    with pytest.raises(InputError, match="lacks"):
        measure_following(model, items, docs, {"Ann": "Bern"})
    with pytest.raises(InputError, match="does not fit"):
        measure_following(model, items, docs, dict.fromkeys(people, "Bern"), budget=Budget(5, 5, 1))


def test_swapping_takes_whole_words_and_longest_forms():
    assert swap("New York City and new york, not New Yorkers", ["New York", "New York City"], "Bern") == "Bern and Bern, not New Yorkers"
    assert swap("a.b axb", ["a.b"], r"\1") == r"\1 axb"


@given(st.lists(st.booleans(), min_size=2, max_size=6), st.integers(1, 8))
def test_ranks_are_scored_as_scikit_learn_does(relevant, k):
    """The retriever gives d0, d1, … in this order."""

    class Fixed:
        def search(self, query, k, as_of=None):
            return [Passage(Doc(f"d{n}", "text", DAY), 1.0 / (n + 1)) for n in range(len(relevant))][:k]

    evidence = frozenset(f"d{n}" for n, hit in enumerate(relevant) if hit) or frozenset({"lost"})
    items = [Item(name, "Q?", ("x",), DAY, evidence_ids=evidence) for name in "ab"]
    found = measure_retrieval(Fixed(), items, k)
    row = found.table.row(0, named=True)
    first = next((n + 1 for n, hit in enumerate(relevant[:k]) if hit), None)
    assert row["rank"] == first
    assert row["reciprocal"] == (1 / first if first else 0)
    if any(relevant):
        gains = np.array([relevant], float)
        assert row["ndcg"] == pytest.approx(ndcg_score(gains, -np.arange(len(relevant))[None].astype(float), k=k))
    assert row["found"] == pytest.approx(sum(relevant[:k]) / len(evidence))
    assert found.summary[f"Hit@{k}"]["estimate"] == float(first is not None)


def test_a_snapshot_is_searched_as_of_the_day():
    docs = [Doc("old", "Ann lives in Rome", date(2010, 1, 1)), Doc("new", "Ann lives in Bern", date(2030, 1, 1))]
    items = [Item(name, "Where lives Ann?", ("Bern",), DAY, evidence_ids=frozenset({"new"})) for name in "ab"]
    found = measure_retrieval(Snapshot(docs), items, 5)
    assert found.table["rank"].to_list() == [None, None]
    assert not math.isnan(found.summary["MRR"]["low"])
    with pytest.raises(InputError, match="0 items declare"):
        measure_retrieval(Snapshot(docs), [Item("a", "Q?", ("x",), DAY)])
