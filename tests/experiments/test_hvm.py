"""The claim check of HVM: its smallest scale, its texts, and its verdict on figures that are known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from palimpsest.errors import InputError
from palimpsest.experiments import hvm


@pytest.fixture(scope="module")
def smoke():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PALIMPSEST_DATA", raising=False)
        yield hvm.run("smoke", 0)


def test_smoke_runs_and_everything_comes_back(smoke):
    assert smoke.passed
    assert [check.what for check in smoke.checks if check.threshold is not None] == ["sequences that do not come back from their code"]
    assert {row["source"] for row in smoke.rows} == {"generated", "novels"}
    assert len(smoke.rows) == 2 * 2 * 4  # sources, sequences, models
    assert [curve.id for curve in smoke.curves] == ["hvm-learning"]


def test_the_same_seed_gives_the_same_claim(smoke, monkeypatch):
    monkeypatch.delenv("PALIMPSEST_DATA", raising=False)
    again = hvm.run("smoke", 0)
    assert again.rows == smoke.rows
    assert again.checks == smoke.checks


def test_other_scales_are_refused():
    with pytest.raises(InputError, match="'gpu'"):
        hvm.run("gpu", 0)


def test_texts_of_the_users_are_read_where_they_are(tmp_path, monkeypatch):
    for name, content in (
        ("tinyshakespeare/input.txt", "First Citizen:\n"),
        ("kjv-bible/kjv.tsv", "Gen\t1\t1\tIn the\nGen\t1\t2\tAnd the\n"),
    ):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(content)
    monkeypatch.setenv("PALIMPSEST_DATA", str(tmp_path))
    assert hvm._texts() == {"Shakespeare": "First Citizen:\n", "King James Bible": "In the And the"}


FIGURES = {"HVM": (300, 70, 3000), "HCM": (700, 75, 3500), "LZ78": (400, 400, 6000)}  # units, entries, complexity and storage


def rows(source: str, n: int, **changed) -> list[dict]:
    figures = FIGURES | changed
    return [
        {"source": source, "sequence": number, "model": model, "parse_length": units, "entries": entries, "kept": kept, "total": 9000}
        for number in range(n)
        for model, (units, entries, kept) in figures.items()
    ]


@pytest.mark.parametrize(
    ("worse", "n_worse", "failing"),
    [
        ({}, 0, 0),
        ({"HVM": (700, 70, 3000)}, 1, 0),  # a tie is no win, but four of five are enough
        ({"HVM": (700, 70, 3000)}, 2, 1),
        ({"HVM": (300, 70, 3500)}, 2, 1),
        ({"HCM": (700, 75, 6000)}, 2, 1),
        ({"HVM": (800, 70, 7000)}, 5, 2),
    ],
)
def test_the_verdict_on_generated_sequences(worse, n_worse, failing):
    checks = hvm._generated(rows("generated", 5 - n_worse) + rows("generated", n_worse, **worse))
    assert sum(not check.passed for check in checks) == failing
    assert sum(check.threshold is not None for check in checks) == 3


@pytest.mark.parametrize(
    ("worse", "failing"),
    [
        ({}, []),
        ({"HVM": (701, 70, 3000)}, ["units of a parse"]),
        ({"HVM": (700, 70, 3000)}, []),
        ({"HVM": (300, 201, 3000)}, ["entries of the dictionary, HVM"]),
        ({"HCM": (700, 200, 5101)}, ["complexity and storage, HCM"]),
    ],
)
def test_the_verdict_on_text(worse, failing):
    checks = hvm._text(rows("novels", 3, **worse), "novels")
    failed = [check.what for check in checks if not check.passed]
    assert len(failed) == len(failing)
    assert all(words in what for words, what in zip(failing, failed, strict=True))
    assert sum(check.threshold is not None for check in checks) == 5


def test_transfer_is_held_against_a_tenth_of_a_bit():
    first, *reported = hvm._transfer(100)
    assert (first.relation, first.threshold) == (">=", 0.1)
    assert first.passed
    assert not replace(first, ours=0.09).passed
    assert all(check.threshold is None for check in reported)
