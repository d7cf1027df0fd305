"""Tables: the text of the file to the byte, cells as csv reads them, and every table that cannot be tested."""

from __future__ import annotations

import csv
import io

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.audit.tabular_cells import codes, row_text, same
from palimpsest.audit.tabular_table import Table, require_column
from palimpsest.errors import CorpusError, InputError

cells = st.text(st.sampled_from('ab1.,;"\n é日'), max_size=5)


@given(st.lists(st.lists(cells, min_size=3, max_size=3), min_size=12, max_size=16), st.sampled_from(["\n", "\r\n", "\r"]))
def test_rows_are_pieces_of_the_file_and_cells_are_those_of_csv(body, newline):
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator=newline, quoting=csv.QUOTE_ALL).writerows([["x", "y", "z"], *body])
    table = Table.parse(out.getvalue(), name="t", delimiter=",")
    assert [list(row) for row in table.cells] == [list(row) for row in csv.reader(io.StringIO(out.getvalue(), newline=""))][1:] == body
    assert newline.join([table.header, *table.rows, ""]) == table.text == out.getvalue()
    for start, row in zip(table.starts, table.rows, strict=True):
        assert table.text[start : start + len(row)] == row
        assert table.text[:start] + table.text[start:] == out.getvalue()
    assert (table.newline, table.columns) == (newline, ("x", "y", "z"))


@given(st.lists(cells, min_size=2, max_size=4))
def test_a_written_row_is_read_back(row):
    assert next(csv.reader(io.StringIO(row_text(row), newline=""))) == row


def text_of(lines):
    return "\n".join(lines) + "\n"


ROWS = [f"{i},{i * 0.5},{'ab'[i % 2]}" for i in range(12)]


def test_kinds_missing_values_and_mixed_types():
    rows = [f"{i},{'' if i == 3 else i},{'?' if i == 4 else 'x' if i == 5 else i},u{i}" for i in range(12)]
    table = Table.parse(text_of(["a,b,c,d", *rows]), name="t")
    assert table.kinds == ("number", "number", "text", "text")
    assert np.isnan(table.matrix[3, 1])
    assert np.isfinite(np.delete(table.matrix, 1, axis=1)).all()
    assert codes(["b", "a", "b", "c"]).tolist() == [0, 1, 0, 2]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found(delimiter):
    lines = [line.replace(",", delimiter) for line in ["a,b,c", *ROWS]]
    table = Table.parse(text_of(lines), name="t")
    assert (table.delimiter, table.columns) == (delimiter, ("a", "b", "c"))
    assert table.with_cells(2, {0: "7"}) == delimiter.join(["7", "1.0", "a"])


def test_a_file_without_names_with_a_mark_and_with_blank_lines():
    table = Table.parse(text_of([*ROWS[:6], "", *ROWS[6:]]), name="t")
    assert (table.header, table.columns, len(table)) == (None, ("column_1", "column_2", "column_3"), 12)
    assert any("names" in note for note in table.notes)
    marked = Table.parse("\ufeff" + text_of(["a,b,c", *ROWS]), name="t")
    assert marked.columns == ("a", "b", "c")
    quoted = Table.parse("\ufeff" + text_of(['"a, the first",b,c', *ROWS]), name="t")
    assert (quoted.columns, quoted.header) == (("a, the first", "b", "c"), '"a, the first",b,c')
    assert Table.parse("\ufeff" + text_of(ROWS), name="t").header is None
    assert Table.parse("\ufeff" + text_of(['"a;b";c;d', *(row.replace(",", ";") for row in ROWS)]), name="t").columns == ("a;b", "c", "d")
    assert Table.parse(text_of(["a;b", *(f"{i}\u2028;{i}" for i in range(120))]), name="t").delimiter == ";"
    assert Table.parse(text_of(["2019,2020,k", *ROWS]), name="t", header=True).columns == ("2019", "2020", "k")


def test_changed_cells_keep_the_form_of_their_row():
    rows = [*ROWS[:11], '11,"5,5",b']
    table = Table.parse(text_of(["a,b,c", *rows]), name="t")
    assert table.with_cells(11, {0: "9"}) == '9,"5,5",b'
    assert table.with_cells(1, {2: "x,y"}) == '1,0.5,"x,y"'
    assert table.with_cells(1, {}) == table.rows[1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("a\n" + "1\n" * 20, "one column"),
        ("a,b\n1,2\n", "1 rows"),
        ("a,b\n" + "1,2\n" * 11, "11 rows"),
        ("a,b\n" + "1,2\n" * 12 + "1,2,3\n", "line 14 has 3 cells"),
        ("a,a\n" + "1,2\n" * 12, "two columns"),
        ("a,b\n" + "1,2\n" * 12 + '1,"2\n', "line 14"),
        ("a,b\n" + "1,2\n" * 12 + f"1,{'x' * 131_073}\n", "line 14 is longer than 131,072 characters"),
    ],
)
def test_tables_that_cannot_be_tested(text, words, tmp_path):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(CorpusError, match=words) as caught:
        Table.read(path)
    assert "bad.csv" in caught.value.problem
    assert caught.value.remedy


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "latin.csv").write_bytes(b"a,b\n" + b"caf\xe9,1\n" * 20)
    (tmp_path / "fake.parquet").write_text("no parquet")
    for name, words in (("latin.csv", "byte 7 is 0xe9"), ("fake.parquet", "cannot be read"), ("gone.csv", "no .*gone.csv")):
        with pytest.raises(CorpusError, match=words):
            Table.read(tmp_path / name)


def test_parquet_is_written_as_csv(tmp_path):
    frame = pl.DataFrame({"n": list(range(12)), "t": ["a,b"] * 6 + [None] * 6})
    frame.write_parquet(tmp_path / "t.parquet")
    table = Table.read(tmp_path / "t.parquet")
    assert table.rows[0] == '0,"a,b"'
    assert table.cells[11] == ("11", "")
    assert any("Parquet" in note for note in table.notes)
    pl.DataFrame({"n": [[1]] * 12, "m": [1] * 12}).write_parquet(tmp_path / "nested.parquet")
    with pytest.raises(CorpusError, match="'n' holds lists"):
        Table.read(tmp_path / "nested.parquet")


def test_what_says_the_same():
    assert same("1.50", " 1.5")
    assert same('"a"', "a")
    assert not same("1", "10")
    assert not same("nan", "0")
    assert not same("1_0", "10")
    table = Table.parse(text_of(["a,b,c", *ROWS]), name="t")
    assert require_column(table, "b") == 1
    with pytest.raises(InputError, match="no column 'q'"):
        require_column(table, "q")
