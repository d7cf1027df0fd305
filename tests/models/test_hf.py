"""The contract of a door, held against the plain way of doing each thing, for every architecture."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from tokenizers import processors
from transformers import LogitsProcessor

from palimpsest.errors import ContextOverflowError, InputError, NonFiniteError
from palimpsest.models import GREEDY, HFModel, Sampler
from palimpsest.models.sampler_scores import warpers

SAMPLERS = (
    GREEDY,
    Sampler(),
    Sampler(0.7),
    Sampler(1.0, top_k=5),
    Sampler(1.3, top_k=1),
    Sampler(0.8, top_k=40, top_p=0.9),
    Sampler(1.0, top_p=0.5),
    Sampler(1.5, top_p=0.95),
    Sampler(1.0, top_k=10_000),
)


@pytest.fixture(scope="module")
def rows(tiny_tokenizer):
    """Rows of many lengths, among them one token and the longest that fits."""
    rng = np.random.default_rng(0)
    return [rng.integers(2, tiny_tokenizer.vocab_size, length) for length in (7, 1, 30, 2, 30, 64, 12, 30, 3)]


def naive_logits(model: HFModel, row) -> torch.Tensor:
    """Logits (time, vocabulary) of one row on its own, without mask, positions or padding."""
    with torch.inference_mode():
        return model.model(torch.tensor(np.asarray(row))[None]).logits[0].float()


def test_scores_are_those_of_a_naive_loop(architecture_model, rows):
    scores = architecture_model.score(rows, moments=True)
    for index, row in enumerate(rows):
        logits = naive_logits(architecture_model, row)[:-1]
        logp = logits.double().log_softmax(-1)
        p = logp.exp()
        mean = (p * logp).sum(-1)
        variance = (p * logp.square()).sum(-1) - mean.square()
        target = torch.tensor(row[1:])
        np.testing.assert_allclose(scores.logprobs[index], logp.gather(-1, target[:, None])[:, 0], atol=1e-4)
        np.testing.assert_array_equal(scores.greedy_hits[index], logits.argmax(-1) == target)
        np.testing.assert_allclose(scores.mean[index], mean, atol=1e-4)
        np.testing.assert_allclose(scores.var[index], variance, atol=1e-3)
        assert scores.logprobs[index].dtype == np.float32
        assert scores.greedy_hits[index].dtype == np.bool_
        assert scores.logprobs[index].shape == (len(row) - 1,)
    np.testing.assert_array_equal(architecture_model.logprobs(rows)[2], architecture_model.score(rows).logprobs[2])


def test_sampler_scores_are_those_of_the_warpers(architecture_model, rows):
    scores = architecture_model.score(rows, samplers=SAMPLERS)
    assert list(scores.sampled) == list(SAMPLERS)
    for index, row in enumerate(rows):
        logits = naive_logits(architecture_model, row)[:-1]
        for sampler in SAMPLERS:
            x = logits
            if sampler.temperature == 0:
                x = torch.full_like(x, -torch.inf).scatter(-1, x.argmax(-1, keepdim=True), 0.0)
            else:
                for warp in warpers(sampler):
                    x = warp(None, x)
            expected = x.double().log_softmax(-1).gather(-1, torch.tensor(row[1:])[:, None])[:, 0].numpy()
            found = scores.sampled[sampler][index]
            assert found.dtype == np.float64
            np.testing.assert_array_equal(np.isneginf(found), np.isneginf(expected), err_msg=str(sampler))
            finite = np.isfinite(expected)
            np.testing.assert_allclose(found[finite], expected[finite], atol=2e-4, err_msg=str(sampler))


def test_sampler_scores_are_those_of_generate(architecture_model, rows):
    """What transformers itself would sample from at the first new token, against our score of every id there."""
    prefix = rows[0]
    ids = torch.tensor(prefix)[None]
    for sampler in SAMPLERS[2:]:
        own = {"temperature": sampler.temperature, "top_k": sampler.top_k or 0, "top_p": sampler.top_p or 1.0}
        with torch.inference_mode():
            out = architecture_model.model.generate(
                ids, max_new_tokens=1, do_sample=True, output_scores=True, return_dict_in_generate=True, pad_token_id=1, **own
            )
        expected = out.scores[0][0].double().log_softmax(-1).numpy()
        some = np.argsort(-expected)[:60]
        scores = architecture_model.score([np.append(prefix, token) for token in some], start=len(prefix), samplers=[sampler])
        found = np.array([values[0] for values in scores.sampled[sampler]])
        np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected[some]), err_msg=str(sampler))
        np.testing.assert_allclose(np.exp(found), np.exp(expected[some]), atol=1e-4, err_msg=str(sampler))


def test_batch_composition_changes_nothing(architecture_model, rows):
    together = architecture_model.score(rows, moments=True, samplers=SAMPLERS[:4])
    for index, row in enumerate(rows):
        alone = architecture_model.score([row], moments=True, samplers=SAMPLERS[:4])
        for name in ("logprobs", "mean", "var"):
            np.testing.assert_allclose(getattr(alone, name)[0], getattr(together, name)[index], atol=1e-4)
        np.testing.assert_array_equal(alone.greedy_hits[0], together.greedy_hits[index])
        for sampler in SAMPLERS[:4]:
            np.testing.assert_allclose(np.exp(alone.sampled[sampler][0]), np.exp(together.sampled[sampler][index]), atol=1e-4)


def test_start_cuts_the_scores_and_nothing_else(architecture_model, rows):
    whole = architecture_model.score(rows, moments=True)
    starts = [1 + (5 * index) % len(row) for index, row in enumerate(rows)]
    cut = architecture_model.score(rows, start=starts, moments=True)
    for index, (row, first) in enumerate(zip(rows, starts, strict=True)):
        assert len(cut.logprobs[index]) == len(row) - first
        np.testing.assert_allclose(cut.logprobs[index], whole.logprobs[index][first - 1 :], atol=1e-5)
        np.testing.assert_allclose(cut.var[index], whole.var[index][first - 1 :], atol=1e-4)


def test_a_greedy_continuation_is_a_row_of_hits(architecture_model, rows):
    prefixes = [row[:40] for row in rows]
    continued = architecture_model.generate(prefixes, 10, stop_at_eos=False)
    full = [np.concatenate([prefix, ids[0]]) for prefix, ids in zip(prefixes, continued, strict=True)]
    scores = architecture_model.score(full, start=[len(prefix) for prefix in prefixes])
    assert all(hits.all() and len(hits) == 10 for hits in scores.greedy_hits)
    # and a wrong token is not one
    full[2][len(prefixes[2]) + 3] ^= 1
    hits = architecture_model.score(full[2:3], start=len(prefixes[2])).greedy_hits[0]
    assert hits[:3].all()
    assert not hits[3]


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3, "n": 2}, {"temperature": 0.9, "top_k": 20, "n": 3, "seed": 5}], ids=["greedy", "beam", "sample"]
)
def test_continuations_do_not_depend_on_the_batch(architecture_model, rows, options):
    """Mixed lengths are padded on the left; the same prefixes alone are not padded at all."""
    prefixes = [row[:40] for row in rows]
    together = architecture_model.generate(prefixes, 6, **options)
    for index in (0, 5):
        if options.get("temperature"):
            with_others = architecture_model.generate(prefixes[: index + 1], 6, **options)[index]
        else:
            with_others = architecture_model.generate([prefixes[index]], 6, **options)[0]
        assert len(together[index]) == options.get("n", 1)
        for a, b in zip(together[index], with_others, strict=True):
            np.testing.assert_array_equal(a, b)


def test_continuations_of_one_prefix_share_its_reading(architecture_model, rows):
    """Alone a prefix is read by `generate` itself; three continuations read it once, and the first of them is the same text."""
    prefixes = [row[:30] for row in rows[:3]]
    options = {"temperature": 0.9, "top_k": 20, "seed": 5}
    alone = architecture_model.generate(prefixes, 6, n=1, **options)
    read = []
    base = architecture_model.model.base_model

    def note(_, args, kwargs):
        read.append(tuple((args[0] if args else kwargs["input_ids"]).shape))

    hook = base.register_forward_pre_hook(note, with_kwargs=True)
    try:
        together = architecture_model.generate(prefixes, 6, n=3, **options)
    finally:
        hook.remove()
    assert read[0][0] == len(prefixes), "a prefix was read more than once"
    assert read[1] == (3 * len(prefixes), 1)
    for one, three in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one[0], three[0])
    assert any(not np.array_equal(three[0], three[1]) for three in together)


def test_a_model_without_position_ids_is_not_padded(tiny_tokenizer, rows):
    """Bloom's positions come from its mask and cannot be given: rows of different length do not share a batch."""
    from transformers import BloomConfig, BloomForCausalLM

    class Widths(LogitsProcessor):
        def __init__(self):
            self.batches = []

        def start_batch(self, prefix_lengths, padded_length):
            self.batches.append({*prefix_lengths, padded_length})

        def __call__(self, input_ids, scores):
            return scores

    config = BloomConfig(vocab_size=tiny_tokenizer.vocab_size, hidden_size=16, n_layer=1, n_head=2, initializer_range=0.3)
    model = HFModel(BloomForCausalLM(config), tiny_tokenizer)
    widths = Widths()
    together = model.generate(rows, 4, processors=[widths])
    assert all(len(lengths) == 1 for lengths in widths.batches)
    np.testing.assert_array_equal(together[0][0], model.generate(rows[:1], 4)[0][0])
    for index, row in enumerate(rows):
        np.testing.assert_allclose(model.score(rows).logprobs[index], model.score([row]).logprobs[0], atol=1e-4)


def test_beam_search_is_transformers_own(architecture_model, rows):
    prefix = rows[0]
    found = architecture_model.generate([prefix], 6, num_beams=4, n=4, stop_at_eos=False)[0]
    with torch.inference_mode():
        own = architecture_model.model.generate(
            torch.tensor(prefix)[None],
            max_new_tokens=6,
            num_beams=4,
            num_return_sequences=4,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=1,
        )
    expected = [row[len(prefix) :].tolist() for row in own]
    if architecture_model.model.generation_config.eos_token_id not in [token for row in expected for token in row]:
        assert [row.tolist() for row in found] == expected


def test_sampling_follows_the_distribution(tiny_model, rows):
    """The share of each first token among 600 draws against its probability under the sampler."""
    sampler = Sampler(0.8, top_k=6)
    prefix = rows[0]
    drawn = np.array([ids[0] for ids in tiny_model.generate([prefix], 1, temperature=0.8, top_k=6, n=600, stop_at_eos=False)[0]])
    every = np.arange(tiny_model.vocab_size)
    scores = tiny_model.score([np.append(prefix, token) for token in every], start=len(prefix), samplers=[sampler])
    probability = np.exp([values[0] for values in scores.sampled[sampler]])
    share = np.bincount(drawn, minlength=len(every)) / len(drawn)
    assert np.isclose(probability.sum(), 1, atol=1e-4)
    assert (probability > 0).sum() == 6
    assert share[probability == 0].sum() == 0
    standard_error = np.sqrt(probability * (1 - probability) / len(drawn))
    assert (np.abs(share - probability) <= 4.5 * standard_error + 1e-9).all()


def test_seeds_repeat_and_differ(tiny_model, rows):
    def draw(seed):
        return [ids.tolist() for ids in tiny_model.generate(rows[:1], 12, temperature=1.0, n=4, seed=seed, stop_at_eos=False)[0]]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert len({tuple(ids) for ids in draw(1)}) > 1


def test_greedy_gives_n_equal_continuations(tiny_model, rows):
    continuations = tiny_model.generate(rows[:2], 5, n=3)
    assert [len(copies) for copies in continuations] == [3, 3]
    for copies in continuations:
        assert all(np.array_equal(copies[0], copy) for copy in copies)


class Force(LogitsProcessor):
    """Admits one id only; keeps what it was told of its batches."""

    def __init__(self, forced):
        self.forced, self.batches, self.seen = forced, [], []

    def start_batch(self, prefix_lengths, padded_length):
        self.batches.append((list(prefix_lengths), padded_length))

    def __call__(self, input_ids, scores):
        lengths, width = self.batches[-1]
        if input_ids.shape[1] == width:
            repeats = len(input_ids) // len(lengths)
            self.seen += [input_ids[row, width - lengths[row // repeats] :].tolist() for row in range(len(input_ids))]
        return torch.full_like(scores, -torch.inf).index_fill_(-1, torch.tensor([self.forced]), 0.0)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"temperature": 1.0, "n": 2}], ids=["greedy", "beam", "sample"])
def test_processors_rule_and_know_where_prefixes_begin(architecture_model, rows, options):
    force = Force(forced=17)
    out = architecture_model.generate(rows[:4], 3, processors=[force], stop_at_eos=False, **options)
    if options.get("num_beams"):  # with one admissible id the other beams are dead, the best is not
        assert all(copies[0].tolist() == [17, 17, 17] for copies in out)
    else:
        assert all(ids.tolist() == [17, 17, 17] for copies in out for ids in copies)
    repeats = options.get("num_beams", 1) * options.get("n", 1)
    assert sorted(force.seen) == sorted(row.tolist() for row in rows[:4] for _ in range(repeats))


def test_eos_ends_a_continuation_and_is_not_returned(tiny_model, rows):
    class EosAfterTwo(LogitsProcessor):
        def __call__(self, input_ids, scores):
            return scores if input_ids.shape[1] < len(rows[0]) + 2 else scores.index_fill(-1, torch.tensor([1]), 1e4)

    free = tiny_model.generate(rows[:1], 6, stop_at_eos=False)[0][0]
    stopped = tiny_model.generate(rows[:1], 6, processors=[EosAfterTwo()])[0][0]
    np.testing.assert_array_equal(stopped, free[:2])
    assert stopped.dtype == np.int64
    assert len(tiny_model.generate(rows[:1], 6, processors=[EosAfterTwo()], stop_at_eos=False)[0][0]) == 6


def test_the_models_own_generation_settings_do_not_leak_in(tiny_tokenizer, rows):
    model = HFModel(random_model_with_penalty(tiny_tokenizer.vocab_size), tiny_tokenizer)
    own = model.model.generation_config
    full = np.concatenate([rows[0], model.generate(rows[:1], 12, stop_at_eos=False)[0][0]])
    assert model.score([full], start=len(rows[0])).greedy_hits[0].all()
    assert model.model.generation_config is own
    assert own.repetition_penalty == 5.0


def random_model_with_penalty(vocab: int):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=vocab, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, eos_token_id=1)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = LlamaForCausalLM(config)
    model.generation_config.repetition_penalty = 5.0
    return model


def test_bos_policies(tiny_model, tiny_tokenizer, rows):
    inner = tiny_model.model
    plain = HFModel(inner, tiny_tokenizer)
    assert not plain.prepends_bos  # the tokenizer adds none
    with_bos = HFModel(inner, tiny_tokenizer, bos="always")
    adding = dataclasses.replace(tiny_tokenizer, adds_bos=True)
    assert HFModel(inner, adding).prepends_bos
    assert not HFModel(inner, adding, bos="never").prepends_bos
    row = rows[0]
    by_hand = plain.score([np.concatenate([[0], row])]).logprobs[0]
    scored = with_bos.score([row]).logprobs[0]
    assert len(scored) == len(row) - 1  # BOS is not scored, nor is the first id
    np.testing.assert_allclose(scored, by_hand[1:], atol=1e-5)
    np.testing.assert_array_equal(with_bos.generate([row], 5)[0][0], plain.generate([np.concatenate([[0], row])], 5)[0][0])
    states = with_bos.hidden_states([row], [2])[0][2]
    np.testing.assert_allclose(states, plain.hidden_states([np.concatenate([[0], row])], [2])[0][2][1:], atol=1e-5)
    with pytest.raises(InputError, match="BOS"):
        HFModel(inner, dataclasses.replace(tiny_tokenizer, bos_id=None), bos="always")
    with pytest.raises(InputError, match="sometimes"):
        HFModel(inner, tiny_tokenizer, bos="sometimes")


def test_hidden_states(architecture_model, rows):
    found = architecture_model.hidden_states(rows, [0, 2])
    for index, row in enumerate(rows):
        with torch.inference_mode():
            states = architecture_model.model(torch.tensor(row)[None], output_hidden_states=True).hidden_states
        for layer in (0, 2):
            assert found[index][layer].shape == (len(row), 32)
            np.testing.assert_allclose(found[index][layer], states[layer][0].numpy(), atol=1e-4)
    with pytest.raises(InputError, match="Layer 3"):
        architecture_model.hidden_states(rows, [3])


@pytest.mark.parametrize(
    ("batch", "error", "says"),
    [
        ([], InputError, "no rows"),
        ([[2, 3], []], InputError, "Row 1 is empty"),
        ([[2, 3], [4, 320]], InputError, "Row 1 holds the id 320"),
        ([[-1, 3]], InputError, "id -1"),
        ([[0.5, 1.0]], InputError, "float64"),
        ([np.ones((2, 2), int)], InputError, "shape"),
        (np.arange(2, 6), InputError, "batch of rows"),
        ("text", InputError, "batch of rows"),
        ([list(range(2, 2 + 65))], ContextOverflowError, "65 tokens"),
    ],
)
def test_bad_rows_are_named(architecture_model, batch, error, says):
    for call in (architecture_model.score, lambda rows: architecture_model.hidden_states(rows, [0])):
        with pytest.raises(error, match=says):
            call(batch)
    with pytest.raises(error, match=says.replace("Row", "Prefix")):
        architecture_model.generate(batch, 1)


def test_bad_settings_are_named(tiny_model, rows):
    for start in (0, 8, "1", [1, 2]):
        with pytest.raises(InputError, match="start"):
            tiny_model.score(rows[:1], start=start)
    for options in (
        {"n": 0},
        {"num_beams": 0},
        {"num_beams": 2, "n": 3},
        {"num_beams": 2, "temperature": 1.0},
        {"seed": -1},
        {"temperature": -1.0},
        {"temperature": 1e-300},
        {"temperature": float("inf")},
        {"num_beams": 999_999},
    ):
        with pytest.raises(InputError):
            tiny_model.generate(rows[:1], 2, **options)
    with pytest.raises(InputError, match="max_new_tokens"):
        tiny_model.generate(rows[:1], 0)
    with pytest.raises(ContextOverflowError, match="Prefix 0 has 64 tokens and 65"):
        tiny_model.generate(rows[5:6], 65)
    with pytest.raises(InputError, match="batch_tokens"):
        HFModel(tiny_model.model, tiny_model.tokenizer, batch_tokens=0)


def test_nan_logits_name_row_and_position(make_model, tiny_tokenizer, rows):
    inner = make_model("llama")
    model = HFModel(inner, tiny_tokenizer, batch_tokens=48)
    with torch.no_grad():
        inner.model.embed_tokens.weight[300] = torch.nan  # tied: every logit of id 300 is NaN, and all that attends to it
    with pytest.raises(NonFiniteError, match=r"row \d+, position 1\b"):
        model.score(rows)
    with pytest.raises(NonFiniteError, match="prefix 0, new token 0"):
        model.generate(rows[:1], 3)


def test_nan_in_one_row_blames_that_row(make_model, tiny_tokenizer, rows):
    inner = make_model("gpt2")
    with torch.no_grad():
        inner.transformer.wpe.weight[20] = torch.nan  # touches only rows of more than 20 tokens
    model = HFModel(inner, tiny_tokenizer)
    batch = [rows[0], rows[6], rows[2]]  # 7, 12 and 30 tokens
    model.score(batch[:2])
    with pytest.raises(NonFiniteError, match="row 2, position"):
        model.score(batch)


def test_progress_reaches_the_end(tiny_model, rows):
    calls: list[tuple[int, int]] = []
    HFModel(tiny_model.model, tiny_model.tokenizer, batch_tokens=64).score(rows, progress=lambda *call: calls.append(call))
    assert len(calls) > 1
    assert calls[-1] == (len(rows), len(rows))
    assert calls == sorted(calls)
    tiny_model.generate(rows[:3], 2, progress=lambda *call: calls.append(call))
    assert calls[-1] == (3, 3)


def test_fingerprints_are_of_the_weights(make_model, tiny_tokenizer):
    def fingerprint(seed):
        return HFModel(make_model("llama", seed), tiny_tokenizer).fingerprint

    assert fingerprint(0) == fingerprint(0) != fingerprint(1)
    half = HFModel(make_model("llama").to(torch.bfloat16), tiny_tokenizer)
    assert half.fingerprint != fingerprint(0)
    assert len(half.score([[5, 6, 7]]).logprobs[0]) == 2  # half precision scores, in float32


def test_a_head_that_mixes_positions_gets_the_full_logits(make_model, tiny_tokenizer, rows):
    """Skipping positions in front of such a head would be wrong, and is not done."""

    class Mixing(torch.nn.Linear):
        def forward(self, hidden):
            return super().forward(hidden.cumsum(dim=1))

    inner = make_model("gpt-neox")
    mixing = Mixing(32, tiny_tokenizer.vocab_size, bias=False)
    mixing.weight = inner.get_output_embeddings().weight
    inner.set_output_embeddings(mixing)
    model = HFModel(inner, tiny_tokenizer, batch_tokens=48)
    assert not model._head_is_positionwise
    scores = model.score(rows, start=[max(1, len(row) // 2) for row in rows])
    for row, found in zip(rows, scores.logprobs, strict=True):
        expected = naive_logits(model, row)[:-1].log_softmax(-1).gather(-1, torch.tensor(row[1:])[:, None])[:, 0]
        np.testing.assert_allclose(found, expected[max(1, len(row) // 2) - 1 :], atol=1e-4)


def test_every_architecture_takes_the_short_way(architecture_model):
    assert architecture_model._head_is_positionwise


def test_threads_may_share_a_model(tiny_model, rows):
    """Scoring picks positions inside the model's own forward pass; a neighbour's pass must not be touched."""
    expected = tiny_model.score(rows).logprobs
    written = tiny_model.generate(rows[:3], 5)

    def work(index):
        if index % 2:
            return tiny_model.score(rows).logprobs, expected
        return [copies[0] for copies in tiny_model.generate(rows[:3], 5)], [copies[0] for copies in written]

    with ThreadPoolExecutor(4) as pool:
        for found, wanted in pool.map(work, range(24)):
            for one, other in zip(found, wanted, strict=True):
                np.testing.assert_allclose(one, other, atol=1e-5)


def test_adds_bos_is_read_off_the_tokenizer(tmp_path, tiny_tokenizer):
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    from palimpsest.models.load import read_tokenizer

    backend = tokenizers.Tokenizer.from_str(tiny_tokenizer.backend.to_str())
    for adds in (False, True):
        if adds:
            backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
        folder = tmp_path / str(adds)
        PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
        assert read_tokenizer(folder).adds_bos is adds
        assert read_tokenizer(folder).encode("word") == tiny_tokenizer.encode("word")  # encode itself never adds it
