"""Longest common runs of outputs and works, against the plain dynamic programme, and the measurement on models whose text is known."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.audit.copyright import (
    REQUESTS,
    Work,
    block_coverage,
    lcs_subsequence,
    lcs_substring,
    measure_copyright,
    words_of,
    works_from,
)
from palimpsest.errors import CapabilityError, InputError

texts = st.lists(st.sampled_from(["a", "b", "C"]), max_size=14).map(" ".join)
BOOK = "It was the best of times, it was the worst of times, it was the age of wisdom."


def dynamic(a: list[str], b: list[str]) -> tuple[int, int]:
    """Longest common subsequence and substring by the full tables."""
    longest = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    run = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            longest[i + 1][j + 1] = longest[i][j] + 1 if x == y else max(longest[i][j + 1], longest[i + 1][j])
            run[i + 1][j + 1] = run[i][j] + 1 if x == y else 0
    return longest[-1][-1], max(map(max, run))


@given(texts, texts)
def test_both_are_what_the_tables_say(a, b):
    subsequence, substring = dynamic(a.lower().split(), b.lower().split())
    assert lcs_subsequence(a, b) == lcs_subsequence(b, a) == subsequence
    assert lcs_substring(a, b) == lcs_substring(b, a) == substring
    assert Work("", b).runs(words_of(a)).max(initial=0) == substring
    assert substring <= subsequence <= lcs_subsequence(a, a) == len(a.split())


@given(texts, texts, st.integers(1, 4))
def test_coverage_is_the_share_of_words_in_runs_and_falls_with_their_length(output, book, k):
    words, held = output.lower().split(), f" {book.lower()} "
    inside = {t for i in range(len(words) - k + 1) if f" {' '.join(words[i : i + k])} " in held for t in range(i, i + k)}
    assert block_coverage(output, Work("", book), k) == pytest.approx(len(inside) / len(words) if words else 0.0)
    assert block_coverage(output, Work("", book), k + 1) <= block_coverage(output, Work("", book), k)


def test_words_are_folded_and_unified():
    assert words_of("“Don’t”—said\n\nÉMILE_1, (co-op)!") == ["don't", "said", "émile", "1", "co", "op"]
    with pytest.raises(InputError, match="0 words"):
        block_coverage("a", Work("", "a"), 0)


def test_the_place_of_a_run():
    work = Work("", BOOK)
    assert work.place(["was", "the"]) == 1
    assert work.place(["was", "the", "worst"]) == 7


def test_works_are_read_without_the_licence(tmp_path):
    marks = ["*** START OF THE PROJECT GUTENBERG EBOOK X ***", "*** END OF THE PROJECT GUTENBERG EBOOK X ***"]
    text = "\n".join(["The Project Gutenberg eBook", marks[0], "Call me.", marks[1], "Licence"])
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"id": "X", "text": text, "popularity": 3}) + "\n" + json.dumps({"id": "Y", "text": "Plain."}) + "\n"
    )
    works = works_from(tmp_path)
    assert [(w.title, w.text.strip(), w.popularity) for w in works] == [("X", "Call me.", 3.0), ("Y", "Plain.", None)]


class Parrot:
    """A door that goes on with given texts."""

    name, capabilities = "parrot", frozenset({"text"})

    def __init__(self, tokenizer, answers):
        self.tokenizer, self.answers, self.asked = tokenizer, list(answers), []

    def require(self, capability, need):
        if capability not in self.capabilities:
            raise CapabilityError(need)

    def describe(self):
        return {"name": self.name}

    def generate(self, prefixes, max_new_tokens, **how):
        self.asked = [self.tokenizer.decode(prefix) for prefix in prefixes]
        return [[np.array(self.tokenizer.encode(text)[:max_new_tokens])] for text in self.answers]


def test_what_is_re_emitted_is_measured_and_what_is_echoed_is_not(tiny_tokenizer):
    text = f"{BOOK}\n\nIt was the spring of hope."
    prompt_tokens = len(tiny_tokenizer.encode("It was the best of times,"))
    recited = " it was the worst of TIMES; it was not so."
    model = Parrot(tiny_tokenizer, [recited, "nothing here that it was the best of", ""])
    works = [Work(str(i), text, popularity=p, starts=(0,)) for i, p in enumerate((3, 2, 1))]
    result = measure_copyright(model, works, prompt_tokens=prompt_tokens, new_tokens=100)
    assert model.asked == ["It was the best of times,"] * 3
    first, second, third = result.table.iter_rows(named=True)
    assert (first["run_text"], first["run"]) == ("it was the worst of times it was", 8)
    assert first["words"] == 10
    assert first["works"] == 3
    assert not first["stock"]
    assert first["subsequence"] == lcs_subsequence(recited, "it was the worst of times it was the age")
    assert first["continuation_run"] == 8
    assert first["similarity"] == first["subsequence"] / 10
    assert 0 < first["floor"] <= first["subsequence"]
    assert second["run"] == 0  # all of it stands in the prompt
    assert (third["words"], third["run"], third["subsequence"], third["similarity"]) == (0, 0, 0, 0.0)
    assert result.summary["longest"] == 8
    assert result.summary["popularity"] == pytest.approx(np.corrcoef([3, 1.5, 1.5], [3, 2, 1])[0, 1])
    assert [work["longest"] for work in result.summary["works"]] == [8, 0, 0]


def test_a_long_run_is_flagged_and_a_phrase_of_many_works_is_stock(tiny_tokenizer):
    words = [f"w{i}" for i in range(120)]
    text = " ".join(words)
    output = " ".join([*words[5:60], "no", *words[70:120]])
    model = Parrot(tiny_tokenizer, [output] * 4)
    result = measure_copyright(model, [Work(str(i), text, starts=(0,)) for i in range(4)], prompt_tokens=4, new_tokens=10_000)
    assert result.table["run"].to_list() == [55] * 4
    assert result.table["runs_flagged"].to_list() == [2] * 4
    assert result.table["stock"].all()
    assert result.summary["popularity"] is None


def test_a_chat_preface_is_skipped_by_alignment(tiny_tokenizer):
    model = Parrot(tiny_tokenizer, [f"Sure, here it is: {BOOK}", "I cannot.", BOOK])
    result = measure_copyright(model, [Work("Two Cities", f"Chapter one. {BOOK} And more.")], "instruct")
    assert model.asked == [request.format(title="Two Cities") for request in REQUESTS]
    assert result.table["run"].to_list() == [18, 0, 18]
    assert result.table["subsequence"].to_list()[2] == 18
    assert result.table["subsequence"].to_list()[0] >= 16  # the window is as long as the output and begins four words early


def test_paragraphs_are_drawn_and_short_works_counted(tiny_model):
    paragraphs = [f"{i}{i}{i} " + "the quick brown fox jumps over the lazy dog and " * 4 for i in range(8)]
    works = [Work("long", "\n\n".join(paragraphs)), Work("short", "the fox")]
    results = [measure_copyright(tiny_model, works, prompt_tokens=20, new_tokens=8, positions=3, seed=seed) for seed in (0, 0, 1)]
    assert results[0].table.equals(results[1].table)
    assert results[0].summary["skipped"] == 1
    assert results[0].table["work"].to_list() == ["long"] * 3
    starts = {works[0].text.index(paragraph) for paragraph in paragraphs}
    drawn = [set(result.table["start"].to_list()) for result in results]
    assert len(drawn[0]) == 3
    assert drawn[0] <= starts
    assert drawn[0] != drawn[2]


def test_bad_input_is_refused(tiny_model, narrow_door):
    work = Work("a", BOOK)
    for wrong in ({"works": []}, {"prompt": "other"}, {"prompt_tokens": 0}, {"positions": 0}, {"prompt_tokens": 500}):
        with pytest.raises(InputError):
            measure_copyright(tiny_model, **({"works": [work]} | wrong))
    with pytest.raises(CapabilityError):
        measure_copyright(narrow_door(tiny_model, ["logprobs"]), [work])
