"""The claim check of the memory-based model at its smallest scale, its parts, and TiMBL where it is installed."""

from __future__ import annotations

import numpy as np
import pytest

from palimpsest.errors import InputError, MissingDependencyError
from palimpsest.experiments import energy, memory_based_lm, timbl_peer
from palimpsest.models.memory_based import MemoryBasedLM


def test_smoke_runs_and_its_invariant_holds():
    claim = memory_based_lm.run("smoke", 0)
    assert claim.passed
    held = [check.what for check in claim.checks if check.threshold is not None]
    assert held == ["explanation: training positions that hold what they are named for"]
    assert [row["tokens"] for row in claim.rows if row["part"] == "learning"] == list(memory_based_lm.SMOKE_LEVELS)
    assert [row["n"] for row in claim.rows if row["part"] == "memorisation"] == [2, 4, 8]
    again = memory_based_lm.run("smoke", 0)
    assert again.rows == claim.rows
    assert memory_based_lm.run("smoke", 1).rows != claim.rows


def test_other_scales_are_refused(monkeypatch):
    with pytest.raises(InputError, match="'gpu'"):
        memory_based_lm.run("gpu", 0)
    monkeypatch.setattr(timbl_peer, "has_binding", lambda: False)
    with pytest.raises(MissingDependencyError, match="python3-timbl"):
        memory_based_lm.run("cpu", 0)


def test_instances_are_the_windows_of_the_model():
    docs = [np.array([5, 6, 7, 8]), np.array([9])]
    contexts, classes = memory_based_lm.instances(docs, 2)
    assert contexts.tolist() == [[-2, -2], [5, -2], [6, 5], [7, 6], [-2, -2]]
    assert classes.tolist() == [5, 6, 7, 8, 9]
    assert [row.tolist() for row in memory_based_lm.rows_of(contexts)] == [[], [5], [5, 6], [6, 7], []]
    assert [doc.tolist() for doc in memory_based_lm.first(docs, 3)] == [[5, 6, 7]]
    assert [doc.tolist() for doc in memory_based_lm.first(docs, 5)] == [[5, 6, 7, 8], [9]]
    with pytest.raises(InputError, match="5 tokens, 6"):
        memory_based_lm.first(docs, 6)


def test_a_wrong_explanation_would_be_seen(monkeypatch):
    learnt, _, _ = memory_based_lm.words(0, 100)
    [check] = memory_based_lm.explanations(learnt, 1000, 0)
    assert check.ours == 1.0
    explain = MemoryBasedLM.explain

    def shifted(self, context, top=10, token=None):
        return explain(self, context[:-1], top, token)

    monkeypatch.setattr(MemoryBasedLM, "explain", shifted)
    [check] = memory_based_lm.explanations(learnt, 1000, 0)
    assert check.ours < 0.9
    assert not check.passed


def test_votes_are_compared_as_shares():
    assert memory_based_lm.same_votes({3: 0.25, 5: 0.75}, np.array([3, 5]), np.array([1.0, 3.0]))
    assert not memory_based_lm.same_votes({3: 0.25, 5: 0.75}, np.array([3, 5]), np.array([1.0, 2.0]))
    assert not memory_based_lm.same_votes({3: 0.25, 5: 0.75}, np.array([3, 6]), np.array([1.0, 3.0]))
    assert not memory_based_lm.same_votes({3: 1.0}, np.array([3, 6]), np.array([1.0, 3.0]))


def test_energy_only_grows():
    before = energy.joules()
    assert sum(range(200_000)) > 0
    assert energy.joules() >= before
    assert energy.source()


def test_the_counter_is_read_where_it_can_be(tmp_path, monkeypatch):
    (tmp_path / "energy_uj").write_text("2500000\n")
    monkeypatch.setattr(energy, "_COUNTER", tmp_path)
    assert energy.joules() == 2.5
    assert "counter" in energy.source()
    monkeypatch.setattr(energy, "_COUNTER", tmp_path / "none")
    assert "10 W" in energy.source()


@pytest.mark.skipif(not timbl_peer.has_binding(), reason="python3-timbl is not installed")
@pytest.mark.parametrize("algorithm", ["igtree", "tribl2", "ib1"])
def test_timbl_answers_the_same(tmp_path, algorithm):
    """Labels and votes, ties included: ids are given in the order of the text, so TiMBL's last tie-break is ours."""
    learnt, held_out, _ = memory_based_lm.words(3, 300)
    docs, test = memory_based_lm.first(learnt, 3000), memory_based_lm.first(held_out, 120)
    contexts, truth = memory_based_lm.instances(test, 4)
    timbl_peer.write_instances(tmp_path / "x.train", *memory_based_lm.instances(docs, 4))
    timbl_peer.write_instances(tmp_path / "x.test", contexts, truth)
    peer = timbl_peer.run_binding(tmp_path, algorithm)
    model = MemoryBasedLM(4, algorithm).fit(docs)
    queries = memory_based_lm.rows_of(contexts)
    assert model.predict(queries).astype(str).tolist() == peer["labels"]
    on_path, equal = memory_based_lm.votes_agree(model, queries, peer["distributions"])
    assert (on_path if algorithm == "igtree" else equal) == 1.0  # TiMBL prunes its trees: then it answers from a node further up
    assert peer["bytes"] > 0
    program = timbl_peer.run_program(tmp_path, algorithm)
    if program is not None:
        assert program["labels"] == peer["labels"]
