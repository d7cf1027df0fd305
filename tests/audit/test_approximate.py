"""Approximate memorization on a model whose continuations are known."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import LogitsProcessor

from palimpsest.audit.approximate import TRANSFORMS, measure_approximate, undo_style
from palimpsest.audit.samples import PrefixSuffix
from palimpsest.audit.similarity import bleu, edit_similarity, longest_common_substring
from palimpsest.errors import CapabilityError, ContextOverflowError, InputError
from palimpsest.measurement import Measurement

PROMPTS = ["In the beginning was the word, and", "The quick brown fox jumps over the", "A palimpsest is a Page that still shows"]


class Written:
    """A `generate` that writes what a table says, and remembers what it was asked."""

    def __init__(self, model, table):
        self.model, self.table, self.asked = model, table, []

    def __call__(self, prefixes, max_new_tokens, *, processors=(), progress=None, **_):
        self.asked.append((list(prefixes), max_new_tokens, processors))
        tokenizer = self.model.tokenizer
        return [[np.array(tokenizer.encode(self.table[tokenizer.decode(p.tolist())])[:max_new_tokens], dtype=np.int64)] for p in prefixes]


def samples_of(tokenizer, pairs):
    rows = [(tokenizer.encode(prefix), tokenizer.encode(suffix)) for prefix, suffix in pairs]
    return [PrefixSuffix(np.array(p + s), len(p), len(s), {"copies": 4 * i, "domain": "x"}) for i, (p, s) in enumerate(rows)]


def test_the_model_s_own_continuation_is_verbatim_and_another_is_compared(tiny_model):
    tokenizer = tiny_model.tokenizer
    samples = []
    for number, prompt in enumerate(PROMPTS):
        prefix = tokenizer.encode(prompt)
        out = tiny_model.generate([prefix], 10, stop_at_eos=False)[0][0].copy()
        out[5 : 5 + number] = (out[5 : 5 + number] + 7) % 318 + 2
        samples.append(PrefixSuffix(np.concatenate([prefix, out]), len(prefix), 10))
    table = measure_approximate(tiny_model, samples, transforms=["identity"]).table
    assert table["verbatim"].to_list() == [True, False, False]
    for row, sample in zip(table.iter_rows(named=True), samples, strict=True):
        out = tiny_model.generate([sample.prefix], 10)[0][0]
        head = tokenizer.decode(sample.prefix.tolist())
        text, truth = (tokenizer.decode([*sample.prefix.tolist(), *ids.tolist()])[len(head) :] for ids in (out, sample.suffix))
        y, s = tokenizer.encode(undo_style(text)), tokenizer.encode(undo_style(truth))
        assert row["output_text"] == text
        assert row["true_text"] == truth
        assert row["bleu"] == bleu(y[: len(s)], s)
        assert row["edit_similarity"] == edit_similarity(y[: len(s)], s)
        assert row["longest_run"] == longest_common_substring(y[: len(s)], s).length


def test_styles_are_asked_for_and_undone(tiny_model, monkeypatch):
    """The table answers every style of the first prompt with the truth in that style, and the rest with something else."""
    tokenizer = tiny_model.tokenizer
    pairs = [("The quick brown Fox", " jumps over the lazy Dog"), ("In the beginning", " was the Word")]
    answers = {TRANSFORMS[name](pairs[0][0]): TRANSFORMS[name](pairs[0][1]) for name in TRANSFORMS}
    answers |= {TRANSFORMS[name](pairs[1][0]): "7" for name in TRANSFORMS}
    door = Written(tiny_model, answers)
    monkeypatch.setattr(tiny_model, "generate", door)
    measured = measure_approximate(tiny_model, samples_of(tokenizer, pairs))
    rows = {(row["sample"], row["transform"]): row for row in measured.table.iter_rows(named=True)}
    for name in TRANSFORMS:
        assert rows[0, name]["recovered"]
        assert rows[0, name]["approximate"]
        assert rows[0, name]["bleu"] == rows[0, name]["edit_similarity"] == 1.0
        assert rows[0, name]["verbatim"] == (name == "identity")
        assert rows[0, name]["prefix_text"] == TRANSFORMS[name](pairs[0][0])
        assert not rows[1, name]["recovered"] | rows[1, name]["approximate"]
    assert door.asked[1][1] == max(len(tokenizer.encode(pair[1].upper())) for pair in pairs)
    assert all(processors == () for _, _, processors in door.asked)
    assert measured.summary["any_transform"]["estimate"] == 0.5


def test_the_untouched_prompt_keeps_its_own_ids(tiny_model, monkeypatch):
    """Ids that the tokenizer itself would not give (one byte each) must reach the model as they are."""
    letters = np.array([tiny_model.tokenizer.encode(c)[0] for c in "the thefox jumps"])
    asked = []
    monkeypatch.setattr(tiny_model, "generate", lambda prefixes, *_, **__: asked.append(prefixes) or [[np.array([5])]])
    measure_approximate(tiny_model, [PrefixSuffix(letters, 10, 6)], transforms=["identity", "lower"])
    assert asked[0][0].tolist() == letters[:10].tolist()
    assert asked[1][0].tolist() == tiny_model.tokenizer.encode("the thefox")
    assert len(asked[1][0]) < 10


@pytest.mark.parametrize(("limits", "expected"), [((0.75, None), False), ((None, 0.75), True), ((0.2, None), True), ((None, 0.9), False)])
def test_the_two_thresholds(tiny_model, monkeypatch, limits, expected):
    """One token of eight is another: edit similarity 7/8, BLEU-4 well below."""
    tokenizer = tiny_model.tokenizer
    prefix, truth, written = "In the beginning", "QWZXKVHU", "QWZYKVHU"  # letters that no merge joins
    monkeypatch.setattr(tiny_model, "generate", Written(tiny_model, {prefix: written}))
    table = measure_approximate(tiny_model, samples_of(tokenizer, [(prefix, truth)]), *limits, transforms=["identity"]).table
    row = table.row(0, named=True)
    assert row["edit_similarity"] == 7 / 8
    assert 0.2 < row["bleu"] <= 0.75
    assert row["approximate"] == expected


def test_what_is_written_beyond_the_length_of_the_truth_does_not_count(tiny_model, monkeypatch):
    tokenizer = tiny_model.tokenizer
    monkeypatch.setattr(
        tiny_model, "generate", Written(tiny_model, {"In the beginning": " was the word and the word was written down again"})
    )
    samples = samples_of(tokenizer, [("In the beginning", " was the word")])
    row = measure_approximate(tiny_model, samples, transforms=["identity"], max_new_tokens=30).table.row(0, named=True)
    assert row["bleu"] == 1.0
    assert row["recovered"]
    assert not row["verbatim"]


def test_a_guard_is_passed_on_and_named(tiny_model):
    class Forbid(LogitsProcessor):
        def __call__(self, input_ids, scores):
            scores = scores.clone()
            scores[:, greedy] = -float("inf")
            return scores

    prefix = tiny_model.tokenizer.encode(PROMPTS[0])
    out = tiny_model.generate([prefix], 6, stop_at_eos=False)[0][0]
    greedy = int(out[0])
    samples = [PrefixSuffix(np.concatenate([prefix, out]), len(prefix), 6)]
    free = measure_approximate(tiny_model, samples, transforms=["identity"])
    held = measure_approximate(tiny_model, samples, transforms=["identity"], guard=Forbid())
    assert free.table["verbatim"].to_list() == [True]
    assert free.table["guarded"].to_list() == [False]
    assert held.table["verbatim"].to_list() == [False]
    assert held.table["guarded"].to_list() == [True]
    assert held.summary["guarded"]
    assert held.provenance["guard"] == "Forbid"


def test_rates_by_copies_and_the_curve(tiny_model, known_samples):
    measured = measure_approximate(tiny_model, known_samples, transforms=["identity", "upper"])
    frame = measured.table
    for record in measured.summary["rates"]:
        part = [r for r in frame.iter_rows(named=True) if r["transform"] == record["transform"]]
        part = [r for r in part if record["copies"] in (None, r["copies"])]
        assert record["n"] == len(part)
        for rate in ("verbatim", "recovered", "approximate"):
            assert record[rate]["estimate"] == sum(r[rate] for r in part) / len(part)
            assert record[rate]["low"] <= record[rate]["estimate"] <= record[rate]["high"]
    identity = [r for r in measured.summary["rates"] if r["transform"] == "identity" and r["copies"] is not None]
    assert [r["verbatim"]["estimate"] for r in identity] == [0, 0.25, 0.5, 0.75, 1.0]
    assert all(r["approximate"]["estimate"] >= r["verbatim"]["estimate"] for r in identity)
    points = measured.curves["approximate"].series[0].points
    assert [p["x"] for p in points] == [0, 1, 4, 16, 64]
    again = Measurement.from_json(measured.to_json())
    assert again.summary == measured.summary
    assert again.table["output_text"].to_list() == frame["output_text"].to_list()


def test_a_suffix_of_white_space_is_compared_by_its_ids(tiny_model, monkeypatch):
    tokenizer = tiny_model.tokenizer
    for written, same in (("   ", True), (" the", False)):
        monkeypatch.setattr(tiny_model, "generate", Written(tiny_model, {"In the beginning": written}))
        row = measure_approximate(tiny_model, samples_of(tokenizer, [("In the beginning", "   ")]), transforms=["identity"]).table.row(
            0, named=True
        )
        assert row["verbatim"] == row["recovered"] == row["approximate"] == same


def test_capitals_that_do_not_fit_lose_the_far_end_of_the_prompt(tiny_model):
    text = "the quick brown fox jumps over the lazy dog and the five boxing wizards jump quickly and the word was written down " * 2
    ids = np.array(tiny_model.tokenizer.encode(text))
    sample = PrefixSuffix(ids, len(ids) - 10, 10)
    assert len(tiny_model.tokenizer.encode(tiny_model.tokenizer.decode(ids.tolist()).upper())) > tiny_model.context_length
    row = measure_approximate(tiny_model, [sample], transforms=["upper"]).table.row(0, named=True)
    written = len(tiny_model.tokenizer.encode(row["true_text"].upper()))
    assert row["prompt_tokens"] == tiny_model.context_length - written


def test_progress_counts_every_prompt(tiny_model, known_samples):
    heard = []
    measure_approximate(tiny_model, known_samples[:6], transforms=["identity", "lower"], progress=lambda done, of: heard.append((done, of)))
    assert heard[-1] == (12, 12)
    assert heard == sorted(heard)


def test_bad_input(tiny_model, known_samples, narrow_door):
    with pytest.raises(InputError, match="no samples"):
        measure_approximate(tiny_model, [])
    with pytest.raises(InputError, match="rot13"):
        measure_approximate(tiny_model, known_samples, transforms=["rot13"])
    with pytest.raises(InputError, match="not known"):
        measure_approximate(tiny_model, known_samples, transforms=[])
    for limits in ((None, None), (1.5, 0.5), (0.5, -1)):
        with pytest.raises(InputError, match="thresholds"):
            measure_approximate(tiny_model, known_samples, *limits)
    with pytest.raises(InputError, match="max_new_tokens"):
        measure_approximate(tiny_model, known_samples, max_new_tokens=0)
    with pytest.raises(ContextOverflowError, match="no room for a prompt"):
        measure_approximate(tiny_model, known_samples, max_new_tokens=500)
    with pytest.raises(CapabilityError):
        measure_approximate(narrow_door(tiny_model, {"logprobs"}), known_samples)
