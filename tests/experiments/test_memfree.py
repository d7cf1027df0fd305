"""The claim check of MemFree decoding at its smallest scale, its planted corpus, and the checks that it is made of."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from palimpsest.errors import InputError
from palimpsest.experiments import memfree
from palimpsest.experiments.memfree_suite import CAPITALS, PREFIX, SUFFIX, build_suite
from palimpsest.measurement import Measurement


@pytest.fixture(scope="module")
def suite_and_claim(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALIMPSEST_CACHE", str(tmp_path_factory.mktemp("cache")))
        claim = memfree.run("smoke", 0)
        suite = build_suite(memfree.SMOKE)
        assert suite.index.n_documents == memfree.SMOKE.lab.n_sequences
        return suite, claim


def test_smoke_holds_the_guarantees_and_reports_the_rest(suite_and_claim):
    _, claim = suite_and_claim
    assert claim.passed
    held = [check for check in claim.checks if check.threshold is not None]
    assert len(held) == 2 + 3 * 2
    assert all(check.ours == 0 for check in held)
    assert any(check.baseline for check in held), "without a guard something protected must come out"
    emissions = [row for row in claim.rows if row["arm"] == "emission"]
    assert {(row["decoding"], row["source"]) for row in emissions} == {
        (d, s) for d in ("greedy", "sampled", "beam") for s in ("none", "index", "bloom")
    }
    assert all(row["tokens"] >= 400 for row in emissions if row["source"] != "none")
    assert len([row for row in claim.rows if row["arm"] == "passages"]) == 3 * 4 * 2
    claim.to_dict()


def test_what_is_planted(suite_and_claim):
    """Cased passages stand as often as asked, in capitals a quarter as often; noisy ones in variants; controls never."""
    suite, _ = suite_and_claim
    config = memfree.SMOKE
    for row in suite.ledger.iter_rows(named=True):
        assert len(row["ids"]) == PREFIX + SUFFIX
        exact = suite.index.count(row["ids"])
        capitals = suite.index.count(suite.tokenizer.encode(row["text"].upper()))
        if row["domain"] == "cased":
            assert (exact, capitals) == (config.cased[1], config.cased[1] // CAPITALS)
        else:
            assert capitals == 0
            assert exact == 0 if row["domain"] == "control" else exact < config.noisy[1]
    planted = suite.stream.planted.texts.filter(pl.col("domain").str.starts_with("noisy"))
    assert int(planted["copies"].sum()) == config.noisy[0] * config.noisy[1]
    clean = np.array(suite.ledger.filter(pl.col("domain") == "noisy")["ids"].to_list())
    variants = np.repeat(np.array(planted["ids"].to_list()), planted["copies"].to_numpy(), axis=0)
    wrong = (variants[:, None, :] != clean).mean(axis=2).min(axis=1)
    assert 0.15 < wrong.mean() < 0.3
    assert wrong.max() < 0.6


def results(noisy, control, plain, capitals, free=1.0):
    """Measurements of ten noisy, four cased and ten control passages with these numbers of near copies under guard."""

    def frame(near, verbatim):
        rows = []
        for domain, n, transform, hits in (
            ("noisy", 10, "identity", near[0]),
            ("control", 10, "identity", near[1]),
            ("cased", 10, "identity", near[2]),
            ("cased", 10, "upper", near[3]),
        ):
            rows += [{"domain": domain, "transform": transform, "approximate": i < hits, "verbatim": i < verbatim * n} for i in range(n)]
        return Measurement("approximate", pl.DataFrame(rows), {}, {})

    return {"free": frame((10, 0, 10, 10), free), "held": frame((noisy, control, plain, capitals), 0)}


@pytest.mark.parametrize(
    ("figures", "failing"),
    [
        ((4, 0, 0, 8), []),
        ((4, 0, 1, 8), []),
        ((0, 0, 0, 8), ["nearly word for word", "5 times"]),
        ((4, 1, 0, 8), ["5 times"]),
        ((4, 0, 0, 4), ["capitals"]),
        ((4, 0, 2, 8), ["capitals"]),
        ((4, 0, 0, 8, 0.4), ["without a guard"]),
    ],
)
def test_the_cpu_scale_holds_every_threshold_of_the_claim(figures, failing):
    checks = memfree._claimed(results(*figures), full=True)
    failed = [check.what for check in checks if not check.passed]
    assert len(failed) == len(failing)
    assert all(word in what for word, what in zip(failing, failed, strict=True))
    assert all(check.threshold is None for check in memfree._claimed(results(*figures), full=False))


def test_one_protected_ngram_or_one_verbatim_passage_fails_the_guarantees():
    emitted = [
        {"decoding": "greedy", "source": source, "n": 6, "tokens": 1000, "protected_ngrams": count}
        for source, count in (("none", 50), ("index", 0), ("bloom", 1))
    ]
    checks = memfree._guarantees(results(4, 0, 0, 8), 0, emitted)
    assert [check.what for check in checks if not check.passed] == ["protected 6-grams per 100,000 tokens, greedy, bloom"]
    assert checks[-1].ours == 100
    assert checks[-1].baseline == 5000
    assert not memfree._guarantees(results(4, 0, 0, 8), 1, [])[1].passed
    swapped = results(4, 0, 0, 8)
    swapped["held"] = swapped["free"]
    assert not memfree._guarantees(swapped, 0, [])[0].passed


def test_there_is_no_gpu_scale():
    with pytest.raises(InputError, match="no scale 'gpu'"):
        memfree.run("gpu", 0)
