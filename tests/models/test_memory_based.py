"""The memory-based model against a few lines of plain Python that look at every stored window."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from math import log2

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given, settings

from palimpsest.corpus import Document
from palimpsest.errors import CorpusError, InputError
from palimpsest.models import _window_kernels
from palimpsest.models.memory_based import MemoryBasedLM

ALGORITHMS = ("igtree", "ib1", "tribl2")
documents = st.lists(st.lists(st.integers(0, 5), max_size=14), min_size=1, max_size=6).filter(lambda docs: any(docs))
queries = st.lists(st.lists(st.integers(0, 7), max_size=5), min_size=1, max_size=8)


class Naive:
    """Windows in a list; every question looks at all of them."""

    def __init__(self, docs, n, k=1, weights=None):
        self.n, self.k = n, k
        self.windows = []  # (features, nearest first), class, (document, offset)
        for d, doc in enumerate(docs):
            for t, token in enumerate(doc):
                self.windows.append((self.features(doc[:t]), token, (d, t)))
        self.frequency = Counter(token for _, token, _ in self.windows)
        self.weights = self.gain_ratios() if weights is None else weights
        self.order = sorted(range(n), key=lambda j: -self.weights[j])

    def features(self, before):
        padded = [None] * self.n + list(before)
        return tuple(reversed(padded[len(padded) - self.n :]))

    def gain_ratios(self):
        def entropy(values):
            total = len(values)
            return -sum(m / total * log2(m / total) for m in Counter(values).values())

        classes = [token for _, token, _ in self.windows]
        out = []
        for j in range(self.n):
            values = [features[j] for features, _, _ in self.windows]
            inside = sum(
                values.count(v) / len(values) * entropy([c for c, w in zip(classes, values, strict=True) if w == v]) for v in set(values)
            )
            gain, split = entropy(classes) - inside, entropy(values)
            out.append(gain / split if gain > 1e-10 and split > 1e-10 else 0.0)
        return out

    def path(self, query):
        """The windows of every node from the root to the deepest."""
        nodes = [self.windows]
        for j in self.order:
            below = [w for w in nodes[-1] if w[0][j] == query[j]]
            if not below:
                break
            nodes.append(below)
        return nodes

    def gap(self, window, query):
        return sum(self.weights[j] for j in range(self.n) if window[0][j] != query[j])

    def rings(self, windows, query, k):
        distances = []
        for gap in sorted(self.gap(w, query) for w in windows):
            if not distances or gap > distances[-1] + 1e-9:
                distances.append(gap)
        return [w for w in windows if self.gap(w, query) <= distances[:k][-1] + 1e-9]

    def winner(self, windows):
        votes = Counter(token for _, token, _ in windows)
        tied = [c for c in votes if votes[c] == max(votes.values())]
        return min(tied, key=lambda c: (-self.frequency[c], c)), len(tied) > 1

    def answer(self, before, algorithm):
        """The voters and the winner."""
        query = self.features(before)
        nodes = self.path(query)
        if algorithm == "igtree":
            return nodes[-1], self.winner(nodes[-1])[0]
        among = self.windows if algorithm == "ib1" else nodes[-1]
        voters = self.rings(among, query, self.k)
        best, tied = self.winner(voters)
        if tied and not (algorithm == "tribl2" and len(nodes) == self.n + 1):
            wider = self.rings(among, query, self.k + 1)
            second, still = self.winner(wider)
            if not still:
                return wider, second
        return voters, best

    def interpolated(self, before, token, vocab, algorithm, discount=0.75):
        query = self.features(before)
        nodes = self.path(query)
        p = 1 / vocab
        voters, _ = self.answer(before, algorithm)
        if algorithm != "igtree" and {w[2] for w in voters} != {w[2] for w in nodes[-1]}:
            nodes.append(voters)
        for node in nodes:
            votes = Counter(c for _, c, _ in node)
            p = max(votes[token] - discount, 0) / len(node) + discount * len(votes) / len(node) * p
        return p


def table(rows):
    offsets, ids, votes = rows
    return [dict(zip(ids[a:b].tolist(), votes[a:b].tolist(), strict=True)) for a, b in pairwise(offsets)]


@settings(max_examples=60)
@given(documents, queries, st.integers(0, 3), st.integers(1, 2))
@example([[0] * 11], [[]], 1, 1)  # features that say nothing weigh nothing, whatever the rounding
@example([[0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]], [[]], 3, 1)
def test_votes_and_winners_are_those_of_a_scan(docs, contexts, n, k):
    for algorithm in ALGORITHMS:
        asked = 1 if algorithm == "igtree" else k
        naive = Naive(docs, n, asked)
        model = MemoryBasedLM(n, algorithm, asked).fit(docs)
        np.testing.assert_allclose(model.memory.weights, naive.weights, atol=1e-12)
        naive.weights = model.memory.weights.tolist()  # equal up to rounding: which of two equal ones is greater must not differ
        naive.order = (model.memory.features - 1).tolist()
        predicted = model.predict(contexts).tolist()
        for context, found, winner in zip(contexts, table(model.distribution(contexts)), predicted, strict=True):
            voters, best = naive.answer(context, algorithm)
            assert found == Counter(token for _, token, _ in voters), (algorithm, context)
            assert winner == best, (algorithm, context)
            told = model.explain(context, top=1000)
            assert sorted((near.document, near.offset) for near in told) == sorted(place for _, _, place in voters)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("n", [1, 4, 7])
@pytest.mark.parametrize("options", [{}, {"k": 2}, {"k": 3, "weights": "none"}, {"decay": "inverse"}, {"weights": "ig"}])
def test_winners_are_those_of_the_votes(algorithm, n, options):
    if algorithm == "igtree":
        options = {name: value for name, value in options.items() if name == "weights"}
    rng = np.random.default_rng(7)
    docs = [rng.zipf(1.5, size).clip(max=60) for size in rng.integers(1, 90, size=60)]
    asked = [rng.zipf(1.5, size).clip(max=63) for size in rng.integers(0, n + 3, size=400)] + [doc[:5] for doc in docs]
    whole = MemoryBasedLM(n, algorithm, **options).fit(docs)
    for model, parts in ((whole, 1), (whole.remembering(docs[:7]), 2)):
        assert len(model.memory.parts) == parts
        codes = model.memory.encode(asked)
        ballot = model._voting.vote(codes, *model.memory.descend(codes))
        np.testing.assert_array_equal(model.predict(asked), model.memory.ids[ballot.winner])


@settings(max_examples=40)
@given(documents, queries, st.integers(0, 3), st.sampled_from(ALGORITHMS))
def test_probabilities_are_those_of_the_recursion(docs, contexts, n, algorithm):
    model = MemoryBasedLM(n, algorithm).fit(docs, vocab_size=9)
    naive = Naive(docs, n, weights=model.memory.weights.tolist())
    naive.order = (model.memory.features - 1).tolist()
    rows = model.probabilities(contexts)
    assert rows.shape == (len(contexts), 9)
    assert (rows > 0).all()
    np.testing.assert_allclose(rows.sum(axis=1), 1, atol=1e-9)
    for context, row in zip(contexts, rows, strict=True):
        expected = [naive.interpolated(context, token, 9, algorithm) for token in range(9)]
        np.testing.assert_allclose(row, expected, atol=1e-12)
        whole = [*context, 3]
        one_by_one = [model.probabilities([whole[:t]])[0, token] for t, token in enumerate(whole)]
        np.testing.assert_allclose(model.logprobs(whole), np.log(one_by_one), atol=1e-9)


@settings(max_examples=30)
@given(documents, queries, st.integers(0, 3), st.sampled_from(ALGORITHMS))
def test_without_backoff_the_vote_is_the_distribution(docs, contexts, n, algorithm):
    model = MemoryBasedLM(n, algorithm, backoff="stop").fit(docs, vocab_size=9)
    rows = model.probabilities(contexts)
    for row, votes in zip(rows, table(model.distribution(contexts)), strict=True):
        np.testing.assert_allclose(row, [votes.get(token, 0) / sum(votes.values()) for token in range(9)])
    for context in contexts:
        with np.errstate(divide="ignore"):
            expected = [np.log(model.probabilities([context[:t]])[0, token]) for t, token in enumerate(context)]
        np.testing.assert_allclose(model.logprobs(context), expected)


@settings(max_examples=40)
@given(st.lists(documents, min_size=1, max_size=5), queries, st.integers(0, 3), st.sampled_from(ALGORITHMS))
@example([[[0, 0, 0, 0]], [[1]]], [[1]], 1, "igtree")  # a token that the larger index does not know
def test_learning_in_pieces_is_learning_at_once(pieces, contexts, n, algorithm):
    whole = MemoryBasedLM(n, algorithm).fit([doc for docs in pieces for doc in docs], vocab_size=9)
    parts = MemoryBasedLM(n, algorithm).fit(pieces[0], vocab_size=9)
    for docs in pieces[1:]:
        parts.partial_fit(docs)
    same_answers(whole, parts, contexts)
    fork = parts.remembering(contexts)
    again = MemoryBasedLM(n, algorithm).fit([doc for docs in pieces for doc in docs], vocab_size=9)
    again.memory.learn([np.asarray(row, np.uint32) for row in contexts], map(str, range(len(contexts))), overlay=True)
    same_answers(again, fork, contexts)
    same_answers(whole, parts, contexts)  # a fork leaves the model as it is


def same_answers(one, other, contexts):
    assert one.predict(contexts).tolist() == other.predict(contexts).tolist()
    assert table(one.distribution(contexts)) == table(other.distribution(contexts))
    np.testing.assert_allclose(one.probabilities(contexts), other.probabilities(contexts), atol=1e-12)
    for context in contexts:
        np.testing.assert_allclose(one.logprobs(context), other.logprobs(context), atol=1e-12)
        assert [(near.document, near.offset, near.position) for near in one.explain(context, 50)] == [
            (near.document, near.offset, near.position) for near in other.explain(context, 50)
        ]
    assert (one.vocab_size, len(one.memory)) == (other.vocab_size, len(other.memory))
    assert len(one.memory.sources) == len(other.memory.sources)


@settings(max_examples=25)
@given(documents, documents, queries, st.sampled_from(ALGORITHMS))
def test_what_is_forgotten_was_never_learnt(kept, gone, contexts, algorithm):
    named = [Document("kept", ids=np.array(doc, np.int64)) for doc in kept] + [
        Document("gone", ids=np.array(doc, np.int64)) for doc in gone
    ]
    named = [named[i] for i in np.random.default_rng(len(contexts)).permutation(len(named))]
    first = Document("kept", ids=np.array([3, 1, 4, 1]))
    model = MemoryBasedLM(2, algorithm).fit([first, *named[:2]], vocab_size=9).partial_fit(named[2:])
    model.forget(["gone"] if "gone" in model.memory.sources else [])
    same_answers(model, MemoryBasedLM(2, algorithm).fit([first, *(doc for doc in named if doc.id == "kept")], vocab_size=9), contexts)


def test_one_cannot_forget_everything_or_what_is_not_there():
    model = MemoryBasedLM(2).fit([Document("a", ids=np.array([1, 2])), Document("b", ids=np.array([], np.int64))])
    with pytest.raises(InputError, match="no document 'c'"):
        model.forget(["a", "c"])
    with pytest.raises(CorpusError, match="Nothing would be left"):
        model.forget(["a"])
    assert model.predict([[1]]).tolist() == [2]
    assert model.forget(["b"]).memory.sources == ["a"]


def zipf(seed, length, kinds=300):
    """Tokens as unevenly distributed as words, each depending on the one before."""
    rng = np.random.default_rng(seed)
    steps = np.minimum(rng.zipf(1.3, length) - 1, kinds - 1)
    return np.where(rng.random(length) < 0.5, steps, (np.roll(steps, 1) * 7 + 3) % kinds).astype(np.int64)


@pytest.mark.parametrize("n", [2, 5])
def test_thousands_of_windows_in_several_indexes(n):
    """Large nodes are stored, small ones counted; long lists are read in part: the answers are those of a scan all the same."""
    docs = [zipf(seed, 700) for seed in range(6)]
    contexts = np.lib.stride_tricks.sliding_window_view(zipf(99, 150 + n), n).copy()
    contexts[::7, -1] = 1000  # never met
    for algorithm in ALGORITHMS:
        model = MemoryBasedLM(n, algorithm).fit(docs[:5])
        split = MemoryBasedLM(n, algorithm).fit(docs[:4]).partial_fit([docs[4][:60], docs[4][60:]])
        one = MemoryBasedLM(n, algorithm).fit([*docs[:4], docs[4][:60], docs[4][60:]])
        assert len(split.memory.parts) > 1
        same_answers(one, split, contexts[:40])
        naive = Naive([doc.tolist() for doc in docs[:5]], n, weights=model.memory.weights.tolist())
        predicted, votes = model.predict(contexts), table(model.distribution(contexts))
        for context, winner, found in list(zip(contexts.tolist(), predicted.tolist(), votes, strict=True))[:60]:
            voters, best = naive.answer(context, algorithm)
            assert (winner, found) == (best, Counter(token for _, token, _ in voters))


def test_the_order_of_documents_changes_nothing():
    docs = [zipf(seed, 120, 20).tolist() for seed in range(8)]
    contexts = [zipf(50, 4, 20).tolist() for _ in range(5)] + [[3, 1], [19], []]
    for algorithm in ALGORITHMS:
        one, other = MemoryBasedLM(3, algorithm).fit(docs), MemoryBasedLM(3, algorithm).fit(docs[::-1])
        assert one.predict(contexts).tolist() == other.predict(contexts).tolist()
        np.testing.assert_allclose(one.probabilities(contexts), other.probabilities(contexts), atol=1e-12)


def test_a_heavier_feature_comes_first():
    """When the token two places before says everything and the next one nothing, the tree asks the former first."""
    rng = np.random.default_rng(0)
    doc = rng.integers(0, 7, 600)
    for t in range(2, 600):
        doc[t] = (doc[t - 2] * 3 + 1) % 7 if rng.random() < 0.8 else doc[t]
    model = MemoryBasedLM(2).fit([doc])
    assert model.memory.weights[1] > model.memory.weights[0]
    assert model.memory.features.tolist() == [2, 1]
    assert model.explain([5, 99])[0].matched == (2,)
    flat = MemoryBasedLM(2, weights="none").fit([doc])
    assert flat.memory.features.tolist() == [1, 2]
    first = [0, 1, 2, 3] * 20
    turned = MemoryBasedLM(2).fit([first])
    assert turned.memory.features.tolist() == [1, 2]
    turned.partial_fit([doc])  # now the order of the features changes, and everything is sorted anew
    assert turned.memory.weights[1] > turned.memory.weights[0]
    same_answers(turned, MemoryBasedLM(2).fit([first, doc]), [[5, 2], [1, 6], [5, 99]])


def test_no_window_reaches_into_the_document_before():
    model = MemoryBasedLM(2, "ib1").fit([[1, 2, 3], [4, 5]])
    first = next(near for near in model.explain([7], top=9) if (near.document, near.offset) == (1, 1))
    assert first.window == (None, 4)
    assert table(model.distribution([[]])) == [{1: 1, 4: 1}]  # two documents begin


def test_explanations_hold():
    docs = [Document("a", ids=np.array([1, 2, 3, 4, 1, 2, 5])), Document("b", ids=np.array([9, 2, 3]))]
    near = MemoryBasedLM(3, weights="none").fit(docs).explain([7, 1, 2])
    assert [(n.source, n.document, n.offset, n.position, n.token, n.window, n.matched) for n in near] == [
        ("a", 0, 2, 2, 3, (None, 1, 2), (1, 2)),
        ("a", 0, 6, 6, 5, (4, 1, 2), (1, 2)),
    ]
    assert len({n.distance for n in near}) == 1
    assert MemoryBasedLM(3, weights="none").fit(docs).explain([7, 1, 2], top=1) == near[:1]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_documents_of_one_token(algorithm):
    """Every context is the same padding: the nodes of all levels hold everything."""
    model = MemoryBasedLM(2, algorithm).fit([[token] for token in [4, 5, 4, 6, 4, 5, 4, 7, 8, 9]])
    assert model.predict([[], [4]]).tolist() == [4, 4]
    assert table(model.distribution([[]])) == [{4: 4, 5: 2, 6: 1, 7: 1, 8: 1, 9: 1}]
    np.testing.assert_allclose(model.probabilities([[], [1]]).sum(axis=1), 1)
    assert len(model.explain([], top=99)) == 10


def test_frequencies_alone():
    model = MemoryBasedLM(0).fit([[3, 3, 1], [1, 3]])
    assert model.predict([[], [1, 2]]).tolist() == [3, 3]
    assert table(model.distribution([[1]])) == [{1: 2, 3: 3}]
    np.testing.assert_allclose(np.exp(model.logprobs([3, 2])), [2.25 / 5 + 0.3 / 4, 0.3 / 4])


@pytest.mark.parametrize(
    ("decay", "nearer", "further"), [("inverse", 1 / 0.25, 1 / 0.5), ("linear", 1, 0), ("exponential", np.exp(-0.25), np.exp(-0.5))]
)
def test_decays(decay, nearer, further):
    model = MemoryBasedLM(2, "ib1", k=2, decay=decay, weights="none").fit([[1, 2, 3], [4, 2, 5], [6, 8, 7]])
    model.memory._weights = np.array([0.25, 0.25])
    # after (9, 2): 3 and 5 agree in one feature, everything else in none
    votes = table(model.distribution([[9, 2]]))[0]
    assert votes[3] == pytest.approx(nearer)
    assert votes.get(7, 0) == pytest.approx(further)


def test_equal_distances_are_one_ring_whatever_the_order_of_the_sum():
    # after (1, 2, 3): 10 differs in the heaviest feature, 11 in the two others, and 0.3 is not 0.2 + 0.1 to the last bit
    for k, votes in ((1, {10: 2, 11: 1}), (2, {10: 2, 11: 1, 12: 1})):
        model = MemoryBasedLM(3, "ib1", k=k, weights="none").fit([[1, 2, 9, 10], [1, 2, 9, 10], [8, 7, 3, 11], [1, 6, 5, 12]])
        model.memory._weights = np.array([0.3, 0.2, 0.1])
        assert table(model.distribution([[1, 2, 3]])) == [votes]


def test_ids_may_be_large_and_vocabularies_wide():
    big = (1 << 32) - 2
    for algorithm in ALGORITHMS:
        model = MemoryBasedLM(2, algorithm).fit([[big, 7, 5, big, 7, 5]])
        assert model.predict([[big, 7], [7, 5]]).tolist() == [5, big]
        assert model.vocab_size == big + 1
        with pytest.raises(InputError, match="too long"):
            model.probabilities([[7]])
    wide = np.arange(70_000)
    model = MemoryBasedLM(2).fit([wide, wide])
    assert model.memory.parts[0].tokens.dtype == np.uint32
    assert model.predict(wide[:-1, None])[:69_999].tolist() == wide[1:].tolist()
    grown = MemoryBasedLM(2).fit([wide[:60_000], wide[:60_000], wide[:60_000]]).partial_fit([wide[60_000:]])
    assert {part.tokens.dtype.itemsize for part in grown.memory.parts} == {2, 4}
    assert grown.predict([[100], [65_000]]).tolist() == [101, 65_001]


@settings(max_examples=20)
@given(documents)
def test_nodes_too_small_to_be_stored_are_counted_like_the_others(docs):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_window_kernels, "SMALL", 2)  # compiled in: only the interpreted form sees it
        stored = MemoryBasedLM(2).fit(docs)
        part = stored.memory.parts[0]
        shared = _window_kernels.shared_features(part.tokens, part.order, part.features, part.pad)
        lo, top, classes, borders = _window_kernels.store_nodes.py_func(part.tokens, part.order, shared, 2, part.kinds, part.pad)
    for level in (1, 2):
        for node in range(borders[level], borders[level + 1]):
            end = next((i for i in range(lo[node] + 1, len(part)) if shared[i] < level), len(part))
            counts = Counter(part.tokens[part.order[lo[node] : end]].tolist())
            best = [c for c in counts if counts[c] == max(counts.values())]
            assert (top[node], classes[node]) == (best[0] if len(best) == 1 else part.pad, len(counts))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"n": -1}, "n is -1"),
        ({"n": 1.5}, "n is 1.5"),
        ({"k": 0, "algorithm": "ib1"}, "k is 0"),
        ({"k": -2, "algorithm": "ib1"}, "k is -2"),
        ({"k": 2}, "single node"),
        ({"decay": "linear"}, "single node"),
        ({"algorithm": "trible"}, "igtree, ib1, tribl2"),
        ({"weights": "chi"}, "gr, ig, none"),
        ({"backoff": "katz"}, "interpolate, stop"),
        ({"discount": 1.0}, "discount is 1.0"),
    ],
)
def test_bad_settings_are_named(arguments, says):
    with pytest.raises(InputError, match=says):
        MemoryBasedLM(**arguments)


def test_bad_input_is_named():
    with pytest.raises(CorpusError, match="no tokens"):
        MemoryBasedLM().fit([])
    with pytest.raises(CorpusError, match="no tokens"):
        MemoryBasedLM().fit([[], []])
    with pytest.raises(InputError, match="4294967296"):
        MemoryBasedLM().fit([[1, 1 << 32]])
    with pytest.raises(InputError, match="never negative"):
        MemoryBasedLM().fit([[1, -1]])
    with pytest.raises(InputError, match="no tokenizer"):
        MemoryBasedLM().fit(["text"])
    with pytest.raises(InputError, match="Call fit"):
        MemoryBasedLM().predict([[1]])
    model = MemoryBasedLM().fit([[1, 2, 3]])
    before = model.memory.sources
    with pytest.raises(InputError, match="never negative"):
        model.partial_fit([[4, 5], [-1]])
    assert model.memory.sources == before
    assert len(model.memory) == 3  # nothing of a refused batch is learnt
    for context in ([[-1]], [[1.5]], [[[1]]], "12", np.array([1, 2])):
        with pytest.raises(InputError):
            model.predict(context)
    with pytest.raises(InputError, match="top is 0"):
        model.explain([1], top=0)
    with pytest.raises(CorpusError, match="no tokens"):
        model.evaluate([[]])
    assert model.predict([]).tolist() == []
    assert model.logprobs([]).tolist() == []


def test_what_is_too_much_is_refused_and_changes_nothing(monkeypatch):
    model = MemoryBasedLM(2).fit([[1, 2, 3]])
    monkeypatch.setattr("palimpsest.models._memory.MAX_LENGTH", 9)
    with pytest.raises(InputError, match="too many"):
        model.partial_fit([[7, 7, 7, 7]])
    same_answers(model, MemoryBasedLM(2).fit([[1, 2, 3]]), [[1], [7]])
    model.partial_fit([[3, 4]])
    assert len(model.memory) == 5


def test_evaluation_adds_up():
    docs = [zipf(1, 300, 30), zipf(2, 50, 30)]
    for algorithm in ALGORITHMS:
        model = MemoryBasedLM(3, algorithm, backoff="stop").fit(docs[:1])
        found = model.evaluate(docs)
        logprobs = np.concatenate([model.logprobs(doc) for doc in docs])
        contexts = [doc[max(0, t - 3) : t] for doc in docs for t in range(len(doc))]
        assert found["tokens"] == 350
        assert found["n_zero"] == np.isneginf(logprobs).sum() > 0
        assert found["nll"] == np.inf
        assert found["accuracy"] == np.mean(model.predict(contexts) == np.concatenate(docs))
