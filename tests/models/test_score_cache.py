"""The door that remembers: it says what the bare door says, and asks it once for every row."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessor

from palimpsest.errors import CapabilityError, ContextOverflowError, InputError, NonFiniteError
from palimpsest.models import EndpointModel, HFModel, LanguageModel, Sampler, ScoreCache, Scores
from palimpsest.models.hf import _scalings
from palimpsest.models.score_store import ids_of, key_of
from palimpsest.tokenizer import Tokenizer

SAMPLERS = (Sampler(1.0, top_k=5), Sampler(0.7))


class Counting(LanguageModel):
    """A door that notes what it is asked: every scored row and every prefix that it continues."""

    def __init__(self, model):
        self.model, self.scored, self.calls, self.continued = model, [], 0, []
        for name in ("name", "door", "tokenizer", "capabilities", "context_length", "parameters", "prepends_bos"):
            setattr(self, name, getattr(model, name))
        for name in ("stop_ids", "length_free", "vocab_size"):
            if hasattr(model, name):
                setattr(self, name, getattr(model, name))

    @property
    def fingerprint(self):
        return self.model.fingerprint

    def score(self, batch_ids, **options):
        self.calls += 1
        self.scored += [tuple(map(int, row)) for row in batch_ids]
        return self.model.score(batch_ids, **options)

    def generate(self, prefixes, max_new_tokens, **options):
        self.continued += [tuple(map(int, row)) for row in prefixes]
        return self.model.generate(prefixes, max_new_tokens, **options)


@pytest.fixture
def counted(tiny_model):
    return Counting(tiny_model)


@pytest.fixture
def cache(counted):
    return ScoreCache(counted)


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    return [rng.integers(2, 320, length) for length in (9, 1, 30, 2, 30, 64, 12)]


def same(found: Scores, expected: Scores) -> None:
    """Two scores, up to what padding does to a sum."""
    for name in ("logprobs", "greedy_hits", "mean", "var"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert (ours is None) == (theirs is None)
        for one, other in zip(ours or (), theirs or (), strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_allclose(one, other, atol=1e-4)
    assert list(found.sampled) == list(expected.sampled)
    for sampler, values in found.sampled.items():
        for one, other in zip(values, expected.sampled[sampler], strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_allclose(one, other, atol=1e-3)


def test_it_has_the_contract_of_the_door_behind(cache, tiny_model, rows):
    assert cache.describe() == tiny_model.describe()
    assert cache.room == tiny_model.room
    assert cache.fingerprint == tiny_model.fingerprint
    states = ScoreCache(tiny_model).hidden_states(rows[:2], [0, 2])
    np.testing.assert_array_equal(states[0][2], tiny_model.hidden_states(rows[:2], [0, 2])[0][2])
    for key in map(key_of, rows):
        np.testing.assert_array_equal(key_of(ids_of(key)), key)


def test_a_row_is_scored_once_and_serves_later_positions_and_fewer_statistics(cache, counted, tiny_model, rows):
    same(cache.score(rows, moments=True, samplers=SAMPLERS), tiny_model.score(rows, moments=True, samplers=SAMPLERS))
    starts = [len(row) // 2 + 1 for row in rows]
    same(cache.score(rows, start=starts), tiny_model.score(rows, start=starts))
    same(cache.score(rows[::-1], moments=True), tiny_model.score(rows[::-1], moments=True))
    same(cache.score(rows, samplers=SAMPLERS[1:]), tiny_model.score(rows, samplers=SAMPLERS[1:]))
    assert sorted(counted.scored) == sorted(tuple(row.tolist()) for row in rows)
    assert (cache.counts.rows, cache.counts.scored_rows) == (4 * len(rows), len(rows))
    assert cache.counts.scored_tokens == sum(map(len, rows))


def test_what_was_not_known_is_asked_and_what_was_known_is_kept(cache, counted, tiny_model, rows):
    row = rows[2:3]
    cache.score(row, start=20, samplers=SAMPLERS[:1])
    same(cache.score(row, start=20, moments=True), tiny_model.score(row, start=20, moments=True))
    same(cache.score(row, start=5), tiny_model.score(row, start=5))
    assert counted.calls == 3
    same(
        cache.score(row, start=6, moments=True, samplers=SAMPLERS[:1]), tiny_model.score(row, start=6, moments=True, samplers=SAMPLERS[:1])
    )
    assert counted.calls == 3  # the third pass took everything along


def test_a_longer_row_answers_for_those_with_which_it_begins(cache, counted, tiny_model, rows):
    long = rows[5]
    cache.score([long], moments=True)
    parts = [long[:n] for n in (1, 2, 40, 63)]
    same(cache.score(parts, moments=True), tiny_model.score(parts, moments=True))
    assert counted.calls == 1
    cache.score([long[1:]])  # the same tokens in another context
    assert counted.calls == 2


def test_rows_of_one_call_that_are_equal_or_begin_one_another_are_scored_once(cache, counted, tiny_model, rows):
    asked = [rows[5][:20], rows[0], rows[5], rows[5][:3], rows[0], rows[5]]
    starts = [2, 1, 30, 3, 8, 1]
    same(cache.score(asked, start=starts), tiny_model.score(asked, start=starts))
    assert sorted(counted.scored) == sorted([tuple(rows[0].tolist()), tuple(rows[5].tolist())])


def test_what_is_announced_is_scored_in_one_pass_with_everything(cache, counted, tiny_model, rows):
    assert cache.expect(rows, moments=True, samplers=SAMPLERS) == len(rows)
    assert cache.expect(rows[:3]) == 3
    assert counted.calls == 0
    same(cache.score(rows[3:4], start=2), tiny_model.score(rows[3:4], start=2))
    assert counted.calls == 1
    same(cache.score(rows, moments=True, samplers=SAMPLERS), tiny_model.score(rows, moments=True, samplers=SAMPLERS))
    assert counted.calls == 1
    other = np.arange(40, 50)
    cache.score([other, *rows])
    assert counted.scored[len(rows) :] == [tuple(other.tolist())]


def test_the_bits_do_not_depend_on_which_measurement_comes_first(tiny_model, rows):
    found = []
    for order in ((slice(0, 3), slice(3, 7)), (slice(5, 7), slice(0, 5))):
        cache = ScoreCache(tiny_model)
        cache.expect(rows, moments=True)
        for part in order:
            cache.score(rows[part])
        found.append(cache.score(rows, moments=True))
    for name in ("logprobs", "mean", "var"):
        for one, other in zip(getattr(found[0], name), getattr(found[1], name), strict=True):
            np.testing.assert_array_equal(one, other)


def test_answers_are_the_callers_own(cache, rows):
    before = cache.score(rows)
    kept = [values.copy() for values in before.logprobs]
    for values in before.logprobs:
        values[:] = 7.0
    for one, other in zip(cache.score(rows).logprobs, kept, strict=True):
        np.testing.assert_array_equal(one, other)
    [[text]] = cache.generate(rows[:1], 5)
    copy = text.copy()
    text[:] = 0
    np.testing.assert_array_equal(cache.generate(rows[:1], 5)[0][0], copy)


calls = st.lists(
    st.tuples(
        st.lists(st.tuples(st.integers(0, 3), st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=5),
        st.booleans(),
        st.sampled_from([(), SAMPLERS[:1], SAMPLERS]),
        st.booleans(),
    ),
    min_size=1,
    max_size=5,
)


@given(asked=calls, max_bytes=st.sampled_from([0, 1500, 6000, 1 << 20]))
@settings(max_examples=40)
def test_any_sequence_of_calls_says_what_the_bare_door_says(tiny_model, asked, max_bytes):
    rng = np.random.default_rng(1)
    texts = [rng.integers(2, 320, 12) for _ in range(3)]
    texts.append(np.concatenate([texts[0][:6], texts[1][:6]]))  # two texts that begin alike
    counted = Counting(tiny_model)
    cache = ScoreCache(counted, max_bytes)
    for chosen, moments, samplers, announce in asked:
        rows = [texts[number][:length] for number, length, _ in chosen]
        starts = [min(start, len(row)) for row, (_, _, start) in zip(rows, chosen, strict=True)]
        if announce:
            cache.expect(rows, start=starts, moments=moments, samplers=samplers)
        else:
            same(
                cache.score(rows, start=starts, moments=moments, samplers=samplers),
                tiny_model.score(rows, start=starts, moments=moments, samplers=samplers),
            )
        assert cache.held_bytes <= max_bytes
    assert cache.counts.scored_rows == len(counted.scored) <= cache.counts.rows + 5 * len(asked)


def test_memory_is_bounded_and_the_least_recently_used_is_forgotten(counted, rows):
    rng = np.random.default_rng(2)
    texts = [rng.integers(2, 320, 50) for _ in range(8)]
    cache = ScoreCache(counted, 5 * (600 + 200 + 5 * 49))
    for text in texts[:5]:
        cache.score([text])
    cache.score(texts[:1])  # used again
    for text in texts[5:]:
        cache.score([text])
    assert cache.held_bytes <= 5 * (600 + 200 + 5 * 49)
    cache.score(texts[:1])
    assert counted.calls == 8
    cache.score(texts[1:2])
    assert counted.calls == 9
    assert cache.expect(texts) == 5  # more than fit are not promised
    assert ScoreCache(counted, 0).expect(texts) == 0


def test_announced_rows_stay(counted, rows):
    rng = np.random.default_rng(2)
    texts = [rng.integers(2, 320, 50) for _ in range(8)]
    cache = ScoreCache(counted, 3000)
    assert cache.expect(texts[:2]) == 2
    cache.score(texts[:2])
    for text in texts[2:]:
        cache.score([text])
    cache.score(texts[:2])
    assert counted.scored.count(tuple(texts[0].tolist())) == 1
    assert cache.held_bytes <= 3000


def test_greedy_text_is_written_once_and_serves_shorter_runs(cache, counted, tiny_model, rows):
    prefixes = [rows[0], rows[2], rows[0]]
    for tokens, n, stop in ((12, 1, False), (7, 2, False), (12, 1, True), (5, 1, True)):
        found = cache.generate(prefixes, tokens, n=n, stop_at_eos=stop)
        expected = tiny_model.generate(prefixes, tokens, n=n, stop_at_eos=stop)
        for ours, theirs in zip(found, expected, strict=True):
            assert len(ours) == len(theirs) == n
            for one, other in zip(ours, theirs, strict=True):
                np.testing.assert_array_equal(one, other)
    assert sorted(counted.continued) == sorted(tuple(row.tolist()) for row in rows[0:3:2])
    cache.generate(prefixes, 13)
    assert len(counted.continued) == 4
    assert (cache.counts.prefixes, cache.counts.written_prefixes) == (15, 4)


def test_what_ends_at_eos_is_known_for_every_length(tiny_model, tiny_tokenizer, rows):
    prefix = rows[:1]
    [[text]] = tiny_model.generate(prefix, 40, stop_at_eos=False)
    ending = int(text[8])  # a model for which this token ends a text
    tiny_model = HFModel(tiny_model.model, Tokenizer(tiny_tokenizer.backend, eos_id=ending))
    counted = Counting(tiny_model)
    cache = ScoreCache(counted)
    first = cache.generate(prefix, 40)[0][0]
    np.testing.assert_array_equal(cache.generate(prefix, 50)[0][0], tiny_model.generate(prefix, 50)[0][0])
    assert len(counted.continued) == 1
    on = cache.generate(prefix, 40, stop_at_eos=False)[0][0]  # behind EOS nothing is known
    assert (len(on), len(counted.continued)) == (40, 2)
    assert len(first) <= 8
    np.testing.assert_array_equal(on[: len(first)], first)


@pytest.mark.parametrize("how", [{"temperature": 1.0, "seed": 3}, {"num_beams": 3}, {"temperature": 0.7, "top_k": 9, "n": 3}])
def test_sampled_and_beamed_text_is_kept_for_the_same_question_alone(cache, counted, tiny_model, rows, how):
    prefixes = [rows[0], rows[2]]
    expected = tiny_model.generate(prefixes, 6, **how)
    for _ in range(2):
        for ours, theirs in zip(cache.generate(prefixes, 6, **how), expected, strict=True):
            for one, other in zip(ours, theirs, strict=True):
                np.testing.assert_array_equal(one, other)
    assert len(counted.continued) == 2
    turned = cache.generate(prefixes[::-1], 6, **how)  # a text belongs to its place in the batch
    for ours, theirs in zip(turned, tiny_model.generate(prefixes[::-1], 6, **how), strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])
    cache.generate(prefixes, 6, **{**how, "seed": 4})
    assert len(counted.continued) == 6


def test_what_is_asked_with_processors_goes_to_the_door(cache, counted, rows):
    class Never(LogitsProcessor):
        def __call__(self, input_ids, scores):
            scores[:, 5:] = -np.inf
            return scores

    cache.generate(rows[:1], 4)
    [[held]] = cache.generate(rows[:1], 4, processors=[Never()], stop_at_eos=False)
    assert held.max() < 5
    assert len(counted.continued) == 2
    assert cache.counts.prefixes == 1


def test_the_text_of_a_server_serves_only_the_same_length(server, tiny_tokenizer, rows):
    counted = Counting(EndpointModel(server.url, server.name, tiny_tokenizer, backoff=0.001))
    cache = ScoreCache(counted)
    for tokens in (6, 4, 6, 4):
        cache.generate([rows[0]], tokens)
    assert len(counted.continued) == 2


def test_a_model_that_looks_at_the_length_is_asked_for_every_row(tiny_model, rows):
    counted = Counting(tiny_model)
    counted.length_free = False
    cache = ScoreCache(counted)
    asked = [rows[5], rows[5][:9], rows[5]]
    same(cache.score(asked), tiny_model.score(asked))
    cache.score([rows[5][:30]])
    assert len(counted.scored) == 3


def test_which_models_look_at_the_length(make_tiny_rope):
    assert make_tiny_rope(None).length_free
    assert make_tiny_rope({"rope_type": "linear", "factor": 2.0}).length_free
    assert not make_tiny_rope({"rope_type": "dynamic", "factor": 2.0}).length_free


@pytest.fixture
def make_tiny_rope(tiny_tokenizer):
    """A tiny Llama with a kind of rotary scaling."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(scaling):
        config = LlamaConfig(
            vocab_size=320,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            rope_parameters=None if scaling is None else {"rope_theta": 10000.0, **scaling},
        )
        return HFModel(LlamaForCausalLM(config), tiny_tokenizer)

    return make


def test_scalings_of_layers_are_seen():
    layers = {"full": {"rope_type": "longrope"}, "sliding": {"rope_type": "default"}}
    assert "longrope" in _scalings(SimpleNamespace(rope_parameters=layers))


def test_errors_are_those_of_the_door(cache, counted, tiny_model, rows):
    for bad in ([], [[]], [[1.5]], [[3, 999]], [[2, 3], [3, -1]], [[1] * 129], "text"):
        with pytest.raises((InputError, ContextOverflowError)) as ours:
            cache.score(bad)
        with pytest.raises((InputError, ContextOverflowError)) as theirs:
            tiny_model.score(bad)
        assert (type(ours.value), str(ours.value)) == (type(theirs.value), str(theirs.value))
    cache.score([[2, 3]])
    with pytest.raises(InputError, match="Row 1 holds the id 999"):
        cache.score([[2, 3], [3, 999]])
    with pytest.raises(InputError, match="start is 4"):
        cache.score([[2, 3]], start=4)
    for wrong in ({"max_new_tokens": 0}, {"max_new_tokens": 3, "n": 0}, {"max_new_tokens": 3, "temperature": -1.0}):
        with pytest.raises(InputError):
            cache.generate(rows[:1], **wrong)
    with pytest.raises(ContextOverflowError, match="Prefix 1"):
        cache.generate([rows[0], rows[5]], 100)
    cache.generate([[2, 3]], 4)
    with pytest.raises(InputError, match="Prefix 1 holds the id 999"):
        cache.generate([[2, 3], [999, 3]], 4)
    for wrong in ({"max_bytes": -1}, {"model": cache}):
        with pytest.raises(InputError):
            ScoreCache(**{"model": tiny_model, **wrong})


def test_an_announced_row_that_fails_harms_no_other(tiny_model, rows):
    class Fails(Counting):
        def score(self, batch_ids, **options):
            if any(len(row) == 64 for row in batch_ids):
                raise NonFiniteError(f"row {next(i for i, row in enumerate(batch_ids) if len(row) == 64)}", "")
            return super().score(batch_ids, **options)

    cache = ScoreCache(Fails(tiny_model))
    cache.expect(rows)
    same(cache.score(rows[:3]), tiny_model.score(rows[:3]))
    with pytest.raises(NonFiniteError, match="row 1"):
        cache.score([rows[0], rows[5]])


def test_what_the_door_cannot_do_is_refused_as_it_refuses(tiny_model):
    door = Counting(tiny_model)
    door.capabilities = frozenset({"text"})
    cache = ScoreCache(door)
    with pytest.raises(CapabilityError, match="logprobs"):
        cache.require("logprobs", "This")


def test_progress_never_goes_back_and_ends_full(cache, rows):
    heard = []
    cache.expect(rows, moments=True)
    cache.score([*rows[:3], np.arange(60, 75)], progress=lambda done, total: heard.append((done, total)))
    assert heard == sorted(heard)
    assert heard[-1] == (4, 4)
    assert {total for _, total in heard} == {4}


def test_what_is_announced_after_it_was_scored_is_not_forgotten(counted, rows):
    announced = rows[2]
    cache = ScoreCache(counted, 20_000)
    cache.score([announced])
    assert cache.expect([announced], moments=True) == 1
    cache.score([announced], moments=True)
    cache.score([np.arange(2, 40) + shift for shift in range(60)])  # far more than there is room for
    before = counted.calls
    cache.score([announced], moments=True)
    assert counted.calls == before
    assert cache.held_bytes <= 20_000
