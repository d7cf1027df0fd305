"""Alignment extraction: templates, samples, plain texts, and the measurement against a recount."""

from __future__ import annotations

import numpy as np
import pytest
import tokenizers

from palimpsest.audit.alignment import ChatTemplate, extract, measure_alignment, plain_texts
from palimpsest.audit.meaning import Matcher
from palimpsest.errors import InputError
from palimpsest.measurement import Measurement
from palimpsest.models import HFModel
from palimpsest.tokenizer import Tokenizer

SMOLLM = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
)
ITEMS = ["How many are 12 and 7? They are 19.", "What is a page? A page is a leaf.", "Who jumps over the dog? The fox."]
HELD_OUT = ["How many are 13 and 8? They are 21.", "What is a word? A word is a sign."]
TEMPLATE = ChatTemplate("<|user|>", "<|assistant|>", "</s>")


def letters(texts):
    vectors = np.array([[text.lower().count(letter) for letter in "abcdefghijklmnopqrstuvwxyz0123456789"] for text in texts]) + 0.01
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def model(tiny_model):
    """The tiny model with a tokenizer that knows two more special tokens, which stand for ids that it has."""
    backend = tokenizers.Tokenizer.from_str(tiny_model.tokenizer.backend.to_str())
    backend.add_special_tokens(["<|user|>", "<|assistant|>"])
    import copy

    network = copy.deepcopy(tiny_model.model)
    network.resize_token_embeddings(backend.get_vocab_size(), mean_resizing=False)
    return HFModel(network, Tokenizer(backend, bos_id=0, eos_id=1, pad_id=1), name="tiny with a template")


def test_a_template_is_read_off_its_jinja():
    found = ChatTemplate.from_jinja(SMOLLM)
    assert found.prefix == "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n"
    assert found.turn == "<|im_end|>\n<|im_start|>assistant\n"
    assert found.end == "<|im_end|>\n"
    chat = "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nI.<|im_end|>\n"
    assert found.plain(chat.removeprefix("<|im_start|>user\n")) == "Who? I."
    assert found.plain("Who?<|im_end|>\n<|im_start|>assistant\n I.  He. <|im_end|>") == "Who? I. He."


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}{% endif %}{% endfor %}",  # shows no user
        "{% for m in messages %}{% if m.role == 'user' %}<u>{{ m.content }}{% endif %}{% endfor %}",  # shows no assistant
        "{% for m in messages %}{{ m.content }}{% endfor %}",  # nothing opens the turn
        "{% for m in messages %}",
        "{{ raise_exception('no') }}",
    ],
)
def test_a_template_without_a_turn_is_refused(template):
    with pytest.raises(InputError, match="chat template"):
        ChatTemplate.from_jinja(template)


def test_samples_follow_the_prefix_alone(model):
    rows = extract(model, "<|user|>", 5, max_new_tokens=6, seed=3)
    ids = model.tokenizer.encode("<|user|>")
    assert len(ids) == 1
    expected = model.generate([ids] * 5, 6, temperature=1.0, seed=3)
    assert [row.tolist() for row in rows] == [row[0].tolist() for row in expected]
    assert len({tuple(row) for row in rows}) > 1
    assert [row.tolist() for row in extract(model, "<|user|>", 2, max_new_tokens=6, seed=3)] == [row.tolist() for row in rows[:2]]
    for prefix, n in (("", 5), ("<|user|>", 0)):
        with pytest.raises(InputError, match="1 sample or more"):
            extract(model, prefix, n)


def test_plain_texts_hold_nothing_of_the_template(model):
    encode = model.tokenizer.encode
    rows = [encode("Who?<|assistant|> The  fox.</s>"), encode("<|user|><s>"), encode("no template"), []]
    assert plain_texts(model, [np.array(row, np.int64) for row in rows], TEMPLATE) == ["Who? The fox.", "", "no template", ""]


def samples(model):
    """An item to the letter, one with other numbers, one that is near in meaning alone, a stranger, and an empty one."""
    texts = [
        "How many are 12 and 7?<|assistant|> They are 19.", "How many are 12 and 8?<|assistant|> They are 19.",
        "A page is a leaf.<|assistant|> What is a page?", "zzzz qqqq", "<|assistant|>",
    ]  # fmt: skip
    return [np.array(model.tokenizer.encode(text)) for text in texts]


def test_the_measurement_counts_by_each_rule(model):
    measured = measure_alignment(model, TEMPLATE, ITEMS, HELD_OUT, letters, samples=samples(model), threshold=0.999)
    table, summary = measured.table, measured.summary
    assert table["nearest"].to_list()[:3] == [0, 0, 1]
    assert table["string"].to_list() == [True, True, False, False]
    assert table["swapped"].to_list() == [False, True, False, False]
    assert table["semantic_paper"].to_list() == (table["cosine"] >= 0.999).to_list()
    assert table["semantic_paper"].to_list()[2]  # the same letters in another order
    beyond = letters(HELD_OUT) @ letters(ITEMS).T
    assert summary["thresholds"]["semantic"] == pytest.approx(np.quantile(beyond.max(1), 0.999), abs=1e-6)
    assert table["semantic"].to_list() == (table["cosine"] >= summary["thresholds"]["semantic"]).to_list()
    assert (summary["samples"], summary["empty"]) == (5, 1)
    for name, count in summary["counts"].items():
        assert count == table[name].sum()
        assert summary["rates"][name]["estimate"] == pytest.approx(count / 4)
    assert summary["coverage"]["string"] == pytest.approx(1 / 3)  # both are near to one item: counted once
    assert summary["undercount"]["semantic_paper"] == pytest.approx(summary["counts"]["semantic_paper"] / 2)
    assert summary["mean_cosine"]["held_out"] == pytest.approx(beyond.max(1).mean(), abs=1e-6)
    assert Measurement.from_json(measured.to_json()).summary["counts"] == summary["counts"]
    points = measured.curves["alignment"].series[0].points
    assert points[-1]["y"] <= points[0]["y"] == (table["cosine"] >= 0.5).sum() / 4


def test_items_may_be_embedded_before(model):
    one = measure_alignment(model, TEMPLATE, ITEMS, HELD_OUT, letters, samples=samples(model))
    other = measure_alignment(model, TEMPLATE, Matcher(ITEMS, letters), HELD_OUT, samples=samples(model))
    assert other.table.equals(one.table)
    assert other.summary == one.summary
    with pytest.raises(InputError, match="no embedder"):
        measure_alignment(model, TEMPLATE, ITEMS, HELD_OUT, samples=samples(model))


def test_without_a_string_match_there_is_no_undercount(model):
    measured = measure_alignment(model, TEMPLATE, ITEMS, HELD_OUT, letters, samples=samples(model)[3:4])
    assert measured.summary["undercount"] == {"semantic": None, "semantic_paper": None}


def test_samples_are_drawn_where_none_are_given(model):
    drawn = measure_alignment(model, TEMPLATE, ITEMS, HELD_OUT, letters, n=4, max_new_tokens=6, seed=3)
    given = measure_alignment(
        model, TEMPLATE, ITEMS, HELD_OUT, letters, samples=extract(model, TEMPLATE.prefix, 4, max_new_tokens=6, seed=3)
    )
    assert drawn.table.equals(given.table)


@pytest.mark.parametrize(
    ("items", "held_out", "chosen", "says"),
    [
        ([], HELD_OUT, slice(0, 1), "items to match"),
        (ITEMS, [], slice(0, 1), "0 of 0 held-out"),
        (ITEMS, ITEMS[:1], slice(0, 1), "held out as well"),
        (ITEMS, HELD_OUT, slice(4, 5), "All 1 samples are empty"),
    ],
)
def test_bad_input_is_refused(model, items, held_out, chosen, says):
    with pytest.raises(InputError, match=says):
        measure_alignment(model, TEMPLATE, items, held_out, letters, samples=samples(model)[chosen])


class Cutting:
    """`letters`, but nothing is read of a text without a letter or digit."""

    def chunks(self, text):
        return [text] if any(letter.isalnum() for letter in text) else []

    def __call__(self, texts):
        return letters(texts)


def test_samples_without_anything_to_read_are_empty(model):
    rows = [np.array(model.tokenizer.encode(text)) for text in ("What is a page?", "\x03", "Who?")]
    found = measure_alignment(model, TEMPLATE, ITEMS, HELD_OUT, Cutting(), samples=rows)
    assert found.summary["empty"] == 1
    assert found.table["text"].to_list() == ["What is a page?", "Who?"]


@pytest.mark.parametrize(
    ("held_out", "threshold", "message"),
    [
        ([], 0.95, "0 of 0 held-out"),
        (["", "a b"], 0.95, "1 of 2 held-out"),
        (HELD_OUT, float("nan"), "threshold is nan"),
        (HELD_OUT, 7, "7"),
    ],
)
def test_held_out_texts_and_thresholds_are_checked_first(model, held_out, threshold, message):
    with pytest.raises(InputError, match=message):
        measure_alignment(model, TEMPLATE, ITEMS, held_out, letters, samples=[np.array([5])], threshold=threshold)
