"""The laboratory of tables and the claim check at its smoke scale."""

from __future__ import annotations

from dataclasses import replace

import pytest

from palimpsest.errors import InputError, MissingDependencyError
from palimpsest.experiments import tabular_lab, tabular_memory, tabular_peer
from palimpsest.experiments.claim import SCALES
from palimpsest.experiments.tabular_lab import EXPOSURES, LabConfig, lab_tables, source_tables, table_tokenizer


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def test_seen_and_unseen_tables_share_no_row_of_their_file():
    sources = source_tables(shipped=True)
    config = LabConfig(rows=36, columns=4, unseen=12, seed=5)
    tables = lab_tables(config, sources)
    seen, unseen = [t for t in tables if t.exposures], [t for t in tables if not t.exposures]
    assert sorted(t.exposures for t in seen) == sorted(2 * EXPOSURES)
    assert len(unseen) == 12
    assert [t.source for t in seen] == [t.source for t in unseen[: len(seen)]]
    rows = {source.name: {row[:4] for row in source.cells} for source in sources}
    for entry in tables:
        assert len(entry.table) == 36
        assert set(entry.table.cells) <= rows[entry.source]
        assert entry.table.text.split("\n")[0] == ",".join(entry.table.columns)
    total = sum(len(entry.table) for entry in tables if entry.source == "breast-cancer-wisconsin")
    full = lab_tables(replace(config, columns=99), sources)
    whole = [row for entry in full if entry.source == "breast-cancer-wisconsin" for row in entry.table.rows]
    assert len(whole) == total == len(set(whole))  # blocks do not overlap: this file has no row twice
    assert lab_tables(config, sources)[3].table.rows == tables[3].table.rows
    with pytest.raises(InputError, match="pairs of tables"):
        lab_tables(replace(config, rows=300), sources[:1])


def test_the_tokenizer_reads_tables_back():
    tokenizer = table_tokenizer(400, source_tables(shipped=True))
    text = '5.1,3.5\r\n"a""b",12345,日\n'
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert max(map(len, tokenizer.pieces(tokenizer.encode("1234567890")))) <= 2


def test_smoke(cache, monkeypatch):
    monkeypatch.setenv("PALIMPSEST_CACHE", str(cache))
    claim = tabular_memory.run("smoke", 0)
    assert claim.passed
    assert len(claim.rows) == 16
    assert {row["copies"] for row in claim.rows} == {0, *EXPOSURES}
    assert all(0 <= row["p_value"] <= 1 and "matches" in row for row in claim.rows)
    assert claim.curves[0].series[0].points[0]["n"] == 8


def test_what_is_missing_is_said(monkeypatch):
    with pytest.raises(InputError, match="gpu"):
        tabular_memory.run(SCALES[2], 0)
    monkeypatch.delenv("PALIMPSEST_DATA", raising=False)
    with pytest.raises(InputError, match="tables are not here"):
        tabular_lab.source_tables()
    monkeypatch.setattr(tabular_peer, "has_tabmemcheck", lambda: False)
    with pytest.raises(MissingDependencyError, match="tabmemcheck"):
        tabular_memory.run("cpu", 0)
