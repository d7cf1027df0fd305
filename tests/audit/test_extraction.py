"""Discoverable extraction: the teacher-forced path against real generation, and what is made of the table."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import polars as pl
import pytest

from palimpsest.audit.extraction import measure_extraction
from palimpsest.audit.laws import extraction_summary, rates, size_law, with_gain
from palimpsest.audit.samples import PrefixSuffix
from palimpsest.corpus import CorpusIndex
from palimpsest.errors import CapabilityError, InputError, TokenizerMismatchError
from palimpsest.measurement import Measurement
from palimpsest.models import LanguageModel
from palimpsest.stats import wilson_interval

PREFIX, SUFFIX = 24, 8


def test_what_was_made_extractable_is_extracted_and_nothing_else(tiny_model, known_samples):
    table = measure_extraction(tiny_model, known_samples, PREFIX).table
    right = [sample.meta["right"] for sample in known_samples]
    assert table["matched"].to_list() == right
    assert table["extracted"].to_list() == [r == SUFFIX for r in right]
    assert 10 < table["extracted"].sum() < 40


def test_teacher_forcing_equals_greedy_generation_on_every_sample_and_context(tiny_model, narrow_door, known_samples):
    forced = measure_extraction(tiny_model, known_samples, (4, 16, PREFIX))
    written = measure_extraction(narrow_door(tiny_model, {"text", "weights"}), known_samples, (4, 16, PREFIX))
    assert forced.provenance["decoding"]["path"] == "score"
    assert written.provenance["decoding"]["path"] == "generate"
    columns = ["id", "context", "extracted", "matched"]
    assert forced.table.select(columns).equals(written.table.select(columns))
    assert "logprob" not in written.table.columns
    assert written.summary["laws"]["copies"]["gain"] == {"reason": "there are no levels of copies with a gain"}


class Server(LanguageModel):
    """A door like a completion endpoint's: text only, stops at EOS, and cuts what was written into tokens again."""

    def __init__(self, model):
        self.model, self.name, self.door = model, model.name, "server"
        self.tokenizer, self.context_length = model.tokenizer, model.context_length
        self.capabilities, self.parameters, self.prepends_bos = frozenset({"text"}), None, False

    @property
    def fingerprint(self):
        return self.model.fingerprint

    def score(self, *args, **kwargs):
        raise self.lacks("logprobs", "score")

    def generate(self, prefixes, max_new_tokens, *, num_beams, stop_at_eos, progress):
        assert stop_at_eos
        found = self.model.generate(prefixes, max_new_tokens, num_beams=num_beams, stop_at_eos=True, progress=progress)
        again = [[self.tokenizer.encode(self.tokenizer.decode(row.tolist())) for row in rows] for rows in found]
        return [[np.array(row[:max_new_tokens], dtype=np.int64) for row in rows] for rows in again]


class Parrot(Server):
    """A server that always writes the same text."""

    def __init__(self, model, text):
        super().__init__(model)
        self.text = text

    def generate(self, prefixes, max_new_tokens, **_):
        return [[np.array(self.tokenizer.encode(self.text)[:max_new_tokens])] for _ in prefixes]


def test_a_text_door_extracts_the_same_text(tiny_model, tiny_tokenizer):
    prefixes = np.random.default_rng(2).integers(2, tiny_tokenizer.vocab_size, size=(200, PREFIX))
    samples, expected = [], []
    for prefix, rows in zip(prefixes, tiny_model.generate(list(prefixes), 3, stop_at_eos=False), strict=True):
        if tiny_tokenizer.encode(tiny_tokenizer.decode(rows[0].tolist())) == rows[0].tolist() and 1 not in rows[0]:
            right = len(samples) % 2 == 0
            suffix = rows[0] if right else np.array(tiny_tokenizer.encode("zq!"))
            samples.append(PrefixSuffix(np.concatenate([prefix, suffix]), PREFIX, len(suffix)))
            expected.append(right)
    assert len(samples) > 10
    forced = measure_extraction(tiny_model, samples, PREFIX).table
    written = measure_extraction(Server(tiny_model), samples, PREFIX).table
    assert written["extracted"].to_list() == forced["extracted"].to_list() == expected


def test_the_same_text_in_other_tokens_is_extracted_from_a_text_door(tiny_model, tiny_tokenizer):
    def spelled(text):
        return np.array([i for character in text for i in tiny_tokenizer.encode(character)])

    right, wrong = spelled("the word"), spelled("the wood")
    assert right.tolist() != tiny_tokenizer.encode("the word")
    broken = np.array(tiny_tokenizer.encode("é")[:1])  # half a character: its text is U+FFFD, as is any other half's
    samples = [PrefixSuffix(np.concatenate([[5, 6], suffix]), 2, len(suffix)) for suffix in (right, wrong, broken)]
    assert measure_extraction(Parrot(tiny_model, "the word was"), samples, 2).table["extracted"].to_list() == [True, False, False]
    assert measure_extraction(Parrot(tiny_model, "\ufffd\ufffd"), samples[2:], 2).table["extracted"].to_list() == [False]


def test_suffixes_with_eos_are_skipped_by_a_door_that_stops_there(tiny_model):
    ids = np.arange(2, 2 + PREFIX + SUFFIX)
    ended = ids.copy()
    ended[-2] = 1
    samples = [PrefixSuffix(ids, PREFIX, SUFFIX), PrefixSuffix(ended, PREFIX, SUFFIX)]
    result = measure_extraction(Server(tiny_model), samples, PREFIX)
    assert result.summary["skipped"] == [{"context": PREFIX, "reason": "the suffix holds EOS, where this door stops", "samples": 1}]
    assert result.table.height == 1
    assert measure_extraction(tiny_model, samples, PREFIX).table.height == 2


def test_log_probs_are_those_of_the_suffix_alone(tiny_model, known_samples):
    table = measure_extraction(tiny_model, known_samples, (10,)).table
    sample = known_samples[3]
    alone = tiny_model.score([sample.ids[PREFIX - 10 :]]).logprobs[0][-SUFFIX:]
    assert table["logprob"][3] == pytest.approx(alone.mean(), abs=1e-5)


def test_rate_never_grows_with_a_longer_suffix(tiny_model, known_samples):
    extracted = [measure_extraction(tiny_model, known_samples, PREFIX, suffix=k).table["extracted"].to_numpy() for k in (1, 3, 5, 8)]
    for shorter, longer in pairwise(extracted):
        assert (longer <= shorter).all()
    assert extracted[0].sum() > extracted[-1].sum()


def test_beam_search_of_one_beam_is_greedy_and_wide_beams_find_likelier_text(tiny_model, known_samples):
    greedy = measure_extraction(tiny_model, known_samples, PREFIX)
    one = measure_extraction(tiny_model, known_samples, PREFIX, decode="beam", num_beams=1)
    assert one.table["extracted"].equals(greedy.table["extracted"])
    # what eight beams write is at least as likely as what greedy writes; made to samples, the beam measurement must find it
    prefixes = [sample.prefix for sample in known_samples]
    beams = [rows[0] for rows in tiny_model.generate(prefixes, SUFFIX, num_beams=8, stop_at_eos=False)]
    own = [PrefixSuffix(np.concatenate([p, b]), PREFIX, SUFFIX) for p, b in zip(prefixes, beams, strict=True)]
    wide = measure_extraction(tiny_model, own, PREFIX, decode="beam", num_beams=8)
    assert wide.table["extracted"].all()
    assert not measure_extraction(tiny_model, own, PREFIX).table["extracted"].all()
    assert wide.provenance["decoding"] == {"scheme": "beam", "num_beams": 8, "path": "generate"}


def test_what_cannot_be_measured_is_counted(tiny_model, known_samples):
    longer = PrefixSuffix(np.arange(2, 2 + 126), 118, 8, {"copies": 1})
    result = measure_extraction(tiny_model, [*known_samples, longer], (PREFIX, 50, 118, 119))
    assert result.summary["skipped"] == [
        {"context": 50, "reason": "prefix too short", "samples": 40},
        {"context": 118, "reason": "prefix too short", "samples": 40},
        {"context": 119, "reason": "prefix too short", "samples": 41},
    ]
    assert result.table.group_by("context").len().sort("context").rows() == [(24, 41), (50, 1), (118, 1)]
    assert result.summary["context"] == PREFIX


def test_contexts_beyond_the_model_are_counted(tiny_model, narrow_door, known_samples):
    short = narrow_door(tiny_model, {"logprobs", "text"}, context_length=20)
    result = measure_extraction(short, known_samples, (12, 13))
    assert result.summary["skipped"] == [{"context": 13, "reason": "longer than the model can see", "samples": 40}]
    with pytest.raises(InputError, match="None of 40 samples can be measured"):
        measure_extraction(short, known_samples, (13,))


def test_gain_over_a_reference_is_paired_and_zero_over_itself(tiny_model, other_model, known_samples):
    same = measure_extraction(tiny_model, known_samples, (8, PREFIX), reference=tiny_model)
    assert same.table["gain"].to_list() == [0.0] * 80
    assert same.table["reference_extracted"].equals(same.table["extracted"])
    other = measure_extraction(tiny_model, known_samples, (8, PREFIX), reference=other_model)
    expected = other_model.score([s.ids[PREFIX - 8 :] for s in known_samples], start=8).logprobs
    assert other.table["reference_logprob"][:40].to_list() == pytest.approx([lp.mean() for lp in expected], abs=1e-6)
    for context in (8, PREFIX):  # and the controls' mean is taken off
        here = other.table.filter(pl.col("context") == context)
        better = here["logprob"] - here["reference_logprob"]
        assert (here["gain"] - better + better.filter(here["copies"] == 0).mean()).abs().max() < 1e-12
    planted = measure_extraction(tiny_model, known_samples[8:], 8, reference=other_model).table
    assert (planted["gain"] - planted["logprob"] + planted["reference_logprob"]).abs().max() < 1e-12


def test_without_a_reference_the_gain_is_over_the_controls_of_the_same_context(tiny_model, known_samples):
    table = measure_extraction(tiny_model, known_samples, (8, PREFIX)).table
    for context in (8, PREFIX):
        here = table.filter(pl.col("context") == context)
        control = here.filter(pl.col("copies") == 0)["logprob"].mean()
        assert (here["gain"] - here["logprob"] + control).abs().max() < 1e-12


def test_any_match_finds_what_is_written_elsewhere_in_the_corpus(tiny_model, narrow_door, known_samples, tmp_path):
    greedy = [rows[0] for rows in tiny_model.generate([s.prefix for s in known_samples], SUFFIX, stop_at_eos=False)]
    missed = [i for i, s in enumerate(known_samples) if s.meta["right"] < SUFFIX]
    elsewhere = missed[::2]  # what the model writes in the place of these suffixes stands in other documents
    index = CorpusIndex.build(
        [s.ids for s in known_samples] + [np.concatenate([[5, 7], greedy[i]]) for i in elsewhere], None, tmp_path / "i"
    )
    result = measure_extraction(tiny_model, known_samples, PREFIX, index=index)
    expected = [i in elsewhere or s.meta["right"] == SUFFIX for i, s in enumerate(known_samples)]
    assert result.table["any_match"].to_list() == expected
    assert result.summary["overall"]["any_rate"] == np.mean(expected) > result.summary["overall"]["rate"]
    written = measure_extraction(narrow_door(tiny_model, {"text", "weights"}), known_samples, PREFIX, index=index)
    assert written.table["any_match"].to_list() == expected
    assert result.provenance["corpus"] == index.fingerprint
    narrow = CorpusIndex.build([[1, 2, 3]], None, tmp_path / "n")  # one byte a token: most ids of the model cannot be asked for
    assert measure_extraction(tiny_model, known_samples, PREFIX, index=narrow).table["any_match"].sum() == 40 - len(missed)


def test_rates_have_wilson_intervals(tiny_model, known_samples):
    summary = measure_extraction(tiny_model, known_samples, PREFIX).summary
    top = summary["by_copies"][-1]
    assert (top["copies"], top["n"], top["extracted"]) == (64, 8, 8)
    assert (top["low"], top["high"]) == wilson_interval(8, 8)[1:]
    assert [row["rate"] for row in summary["by_copies"]] == sorted(row["rate"] for row in summary["by_copies"])
    assert {row["domain"] for row in summary["by_domain"]} == {"a", "b"}
    assert summary["overall"]["n"] == 40


def synthetic(rate_of, contexts=(10, 100), copies=(0, 1, 10, 100, 1000), n=400, gain_of=None, seed=0):
    """A table as `measure_extraction` makes it, drawn from known laws."""
    rng = np.random.default_rng(seed)
    rows = []
    for sample in range(n * len(copies)):
        level = copies[sample // n]
        luck = rng.random()
        for context in contexts:
            lp = -4.0 + (gain_of(level, context) if gain_of else 0.0) + rng.normal(0, 0.3)
            hit = luck < rate_of(level, context)
            rows.append((sample, str(sample), "a", level, context, 8, hit, 8 if hit else 3, lp))
    names = ["sample", "id", "domain", "copies", "context", "suffix_len", "extracted", "matched", "logprob"]
    return pl.DataFrame(rows, schema=names, orient="row")


def test_known_laws_are_found_with_their_intervals():
    def rate(copies, context):
        return 0.1 + 0.25 * np.log10(copies) + 0.15 * (np.log10(context) - 1) if copies else 0.0

    def gain(copies, context):
        return 0.5 * np.log10(copies) + 0.2 * (np.log10(context) - 1) if copies else 0.0

    summary = extraction_summary(with_gain(synthetic(rate, gain_of=gain, contexts=(10, 30, 100))))
    copies, context = summary["laws"]["copies"], summary["laws"]["context"]
    assert copies["rate"]["slope"] == pytest.approx(0.25, abs=0.04)
    assert copies["rate"]["low"] <= 0.25 <= copies["rate"]["high"]
    assert copies["rate"]["levels"] == [1, 10, 100]  # at 1000 copies everything is extracted: that level is saturated
    assert copies["gain"]["levels"] == [1, 10, 100, 1000]
    assert copies["gain"]["slope"] == pytest.approx(0.5, abs=0.05)
    assert copies["gain"]["r2"] > 0.98
    assert context["gain"]["slope"] == pytest.approx(0.2, abs=0.05)
    assert context["gain"]["low"] > 0


def test_saturated_rates_have_no_law_but_a_reason():
    laws = extraction_summary(synthetic(lambda copies, _: float(copies >= 100)))["laws"]
    assert laws["copies"]["rate"] == {"reason": "0 of 4 levels of copies have a mean between 5 % and 95 %, and a fit needs 3"}
    assert laws["copies"]["gain"] == {"reason": "there are no levels of copies with a gain"}
    assert laws["context"]["rate"] == {"reason": "2 of 2 contexts have a mean between 5 % and 95 %, and a fit needs 3"}


def test_copies_are_grouped_by_quarters_of_an_octave():
    copies = [1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 64, 75, 76]
    table = pl.DataFrame({"copies": copies, "context": 1, "extracted": [True] * len(copies)})
    groups = [(row["copies_low"], row["copies_high"], row["n"]) for row in rates(table, "copies")]
    # 2^(12/4) = 8 <= 8, 9 < 2^(13/4) = 9.51; 2^6 = 64 <= 64, 75 < 2^(25/4) = 76.1 (76 too)
    assert groups == [(1, 1, 2), (2, 2, 1), (3, 3, 1), (4, 4, 1), (5, 5, 1), (6, 6, 1), (7, 7, 1), (8, 9, 2), (10, 10, 1), (64, 76, 3)]


def test_size_law_finds_the_slope_over_parameters(tiny_model):
    pairs = []
    for size, base in ((10**6, 0.2), (10**7, 0.4), (10**8, 0.6)):
        table = synthetic(lambda copies, _, base=base: base if copies else 0.0, gain_of=lambda c, _, base=base: base if c else 0.0)
        measured = Measurement("extraction", with_gain(table), {}, {})
        pairs.append(({"name": f"m{size}", "parameters": size}, measured))
    law = size_law(pairs[::-1])  # any order
    assert law.summary["context"] == 100
    assert law.summary["laws"]["rate"]["slope"] == pytest.approx(0.2, abs=0.01)
    assert law.summary["laws"]["rate"]["low"] > 0.15
    assert law.summary["laws"]["gain"]["slope"] == pytest.approx(0.2, abs=0.03)
    assert [row["parameters"] for row in law.summary["models"]] == [10**6, 10**7, 10**8]
    assert law.summary["models"][0]["n"] == 1600
    assert "extraction-size" in law.curves
    with pytest.raises(InputError, match="parameters"):
        size_law(pairs[:1])
    with pytest.raises(InputError, match="parameters"):
        size_law([pairs[0], pairs[0]])
    shorter = Measurement("extraction", pairs[1][1].table.filter(pl.col("sample") < 5), {}, {})
    with pytest.raises(InputError, match="not all the same"):
        size_law([pairs[0], (pairs[1][0], shorter)])


def test_size_law_of_real_measurements(tiny_model, other_model, known_samples):
    pairs = [(model, measure_extraction(model, known_samples, (8, PREFIX))) for model in (tiny_model, other_model)]
    law = size_law(pairs)
    assert [row["parameters"] for row in law.summary["models"]] == [other_model.parameters, tiny_model.parameters]
    assert law.summary["models"][1]["rate"] > law.summary["models"][0]["rate"]
    assert "a fit needs 3" in law.summary["laws"]["rate"]["reason"]


def test_measurement_survives_json_and_draws(tiny_model, known_samples):
    result = measure_extraction(tiny_model, known_samples, (8, PREFIX), reference=tiny_model)
    again = Measurement.from_json(result.to_json())
    assert again.table.select(result.table.columns).equals(result.table)
    assert again.summary["by_copies"] == json.loads(result.to_json())["summary"]["by_copies"]
    assert set(result.curves) == {"extraction-copies", "extraction-gain", "extraction-context"}
    names = [series.name for series in result.curves["extraction-copies"].series]
    assert names[:3] == ["8 tokens of context", "24 tokens of context", "reference model"]
    assert result.provenance["model"]["fingerprint"] == tiny_model.fingerprint
    assert result.provenance["environment"]["packages"]


def test_samples_without_copies_have_rates_by_context_only(tiny_model, known_samples):
    bare = [PrefixSuffix(s.ids, s.prefix_len, s.suffix_len) for s in known_samples]
    result = measure_extraction(tiny_model, bare, (8, PREFIX))
    assert result.summary["by_copies"] == [] == result.summary["by_context_copies"]
    assert [row["n"] for row in result.summary["by_context"]] == [40, 40]
    assert set(result.curves) == {"extraction-context"}


def test_progress_reaches_its_end(tiny_model, narrow_door, known_samples):
    for door in (tiny_model, narrow_door(tiny_model, {"text", "weights"})):
        heard = []
        measure_extraction(door, known_samples, (8, PREFIX), progress=lambda done, total, heard=heard: heard.append((done, total)))
        assert heard == sorted(heard)
        assert heard[-1] == (80, 80)


@pytest.mark.parametrize(
    "arguments",
    [{"context": 0}, {"context": ()}, {"decode": "luck"}, {"suffix": 9}, {"suffix": 0}, {"decode": "beam", "num_beams": 0}],
)
def test_impossible_questions_are_refused(tiny_model, known_samples, arguments):
    with pytest.raises(InputError):
        measure_extraction(tiny_model, known_samples, **({"context": 8} | arguments))


def test_no_samples_no_tokenizer_no_door(tiny_model, narrow_door, known_samples):
    with pytest.raises(InputError, match="no samples"):
        measure_extraction(tiny_model, [], 8)
    with pytest.raises(InputError, match="not a PrefixSuffix"):
        measure_extraction(tiny_model, [np.arange(5)], 8)
    with pytest.raises(CapabilityError, match="'text'"):
        measure_extraction(narrow_door(tiny_model, {"logprobs"}), known_samples, 8, decode="beam")
    with pytest.raises(CapabilityError, match="'logprobs'"):
        measure_extraction(tiny_model, known_samples, 8, reference=narrow_door(tiny_model, {"text"}))
    import tokenizers

    from palimpsest.tokenizer import Tokenizer

    strange = Tokenizer(tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, [])))
    with pytest.raises(TokenizerMismatchError):
        measure_extraction(tiny_model, known_samples, 8, reference=narrow_door(tiny_model, {"logprobs"}, tokenizer=strange))
