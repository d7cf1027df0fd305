"""The claim check of the copyright measurement: its smallest scale, its verdict, and the chapters that are asked for."""

from __future__ import annotations

import polars as pl
import pytest

from palimpsest.audit.copyright import Work, words_of
from palimpsest.errors import InputError
from palimpsest.experiments import copyright_lcs
from palimpsest.measurement import Measurement


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALIMPSEST_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("PALIMPSEST_DATA", raising=False)
        yield


def test_smoke_runs_and_no_run_is_impossible():
    claim = copyright_lcs.run("smoke", 0)
    assert claim.passed
    assert [check.ours for check in claim.checks if check.threshold is not None] == [0]
    assert [row["copies"] for row in claim.rows] == [0, 1, 2, 4, 6]
    assert claim.curves[0].series[0].points


def test_other_scales_are_refused():
    with pytest.raises(InputError, match="'gpu'"):
        copyright_lcs.run("gpu", 0)


def measured(runs: dict[int, list[int]]) -> Measurement:
    rows = [(str(copies), float(copies), 30, run, run, run, 1.0) for copies, values in runs.items() for run in values]
    names = ["work", "popularity", "words", "run", "continuation_run", "subsequence", "floor"]
    return Measurement("copyright", pl.DataFrame(rows, schema=names, orient="row"), {}, {})


@pytest.mark.parametrize(
    ("runs", "expected"),
    [({0: [2, 3], 1: [3, 3], 8: [9, 20]}, True), ({0: [2, 3], 1: [9, 9], 8: [3, 3]}, False), ({0: [6, 6], 1: [7, 7], 8: [20, 20]}, False)],
)
def test_the_verdict_follows_the_runs(runs, expected):
    checks = copyright_lcs._planted_checks(copyright_lcs.by_copies(measured(runs)))
    assert all(check.passed for check in checks) == expected


def test_what_cannot_be_is_counted():
    works = [Work("8", "a b c")]
    assert copyright_lcs.impossible(measured({8: [3]}), works) == 0
    assert copyright_lcs.impossible(measured({8: [4]}), works) == 1


def test_chapters_leave_enough_to_write(tmp_path, monkeypatch):
    assert copyright_lcs.bible() is None
    keys = [*copyright_lcs.FAMOUS, *((book, str(i)) for book in copyright_lcs.OBSCURE for i in range(4))]
    verses = [[f'{book} {chapter} "v{n} ' + "and it came to pass " * 4 for n in range(12)] for book, chapter in keys]
    lines = [f"{b}\t{c}\t{n}\t{v}\n" for (b, c), chapter in zip(keys, verses, strict=True) for n, v in enumerate(chapter)]
    (tmp_path / "kjv-bible").mkdir()
    (tmp_path / "kjv-bible" / "kjv.tsv").write_text("".join(lines))
    monkeypatch.setenv("PALIMPSEST_DATA", str(tmp_path))
    table = copyright_lcs.bible()
    assert table == dict(zip(keys, verses, strict=True))
    kinds = copyright_lcs.chapters(table, 0)
    assert [len(works) for works in kinds.values()] == [5, 20, 5]
    for kind, works in kinds.items():
        for work in works:
            assert len(work.starts) == (1 if kind == "little quoted" else 4)
            for start in work.starts:
                assert len(words_of(work.text[start:])) >= 90
                assert start == 0 or work.text[start - 1] == "\n"
    assert sorted(kinds["shuffled"][0].text.split("\n")) == sorted(kinds["famous"][0].text.split("\n"))
    assert [w.title for w in copyright_lcs.chapters(table, 1)["little quoted"]] != [w.title for w in kinds["little quoted"]]
