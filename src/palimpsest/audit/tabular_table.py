"""A table as a model may have read it: the text of the file, byte for byte, and the cells that it holds.

What a model remembers is text, so rows are pieces of the file: `prefix + suffix` of every cut is the file again. Records are parsed as
the standard `csv` module does (quoted delimiters, quotes and newlines, CRLF), which says where each ends. A Parquet file has no text; it
is written as CSV first, which need not be the text that was published.

Cells stay text. A column is a number when every cell that is not missing reads as one, so that a column of mixed types is text.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import polars as pl

from palimpsest.audit.tabular_cells import codes, missing, number, quoted, row_text
from palimpsest.errors import CorpusError, InputError
from palimpsest.files import sha256_json

ENDINGS = (".csv", ".tsv", ".parquet")
FEWEST = 12  # rows: ten to show, one to ask for, and another to compare with
MOST = 100_000  # rows that are read
_DELIMITERS = ",;\t|"


@dataclass(frozen=True)
class Table:
    """A table and its text.

    Attributes:
        name: what a model would call it.
        columns: their names, at least 2.
        rows: the text of every row without its newline, at least 12 of them; blank lines of the file are no rows.
        cells: one tuple of texts a row, as `csv` parses it.
        header: the text of the first line without its newline; None where the file begins with a row.
        newline: what ends a row, "\\n", "\\r\\n" or "\\r".
        delimiter: what stands between cells.
        text: the file from its beginning, without a byte-order mark, to the end of the last row that was read.
        notes: what had to be done to read it.

    Example:
        >>> table = Table.parse("a,b\\n" + "".join(f"{i},x\\n" for i in range(12)), name="demo")
        >>> table.columns, table.rows[2], table.kinds
        (('a', 'b'), '2,x', ('number', 'text'))
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]
    header: str | None
    newline: str = "\n"
    delimiter: str = ","
    text: str = ""
    notes: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: str | os.PathLike[str], *, header: bool | None = None, delimiter: str | None = None) -> Table:
        """Reads a `.csv`, `.tsv` or `.parquet` file.

        Args:
            path: the file; its stem becomes the table's name.
            header: whether the first line names the columns; None finds out.
            delimiter: what stands between cells; None finds out.

        Raises:
            CorpusError: no such file, not UTF-8, no Parquet, or a table that cannot be tested; see `parse`.
        """
        path = Path(path)
        try:
            if path.suffix.lower() == ".parquet":
                frame = pl.read_parquet(path, n_rows=MOST)
                nested = [name for name, dtype in frame.schema.items() if dtype.is_nested() or dtype == pl.Binary]
                if nested:
                    raise CorpusError(f"{path}: the column {nested[0]!r} holds lists, structures or bytes.", "Leave it out.")
                table = cls.parse(frame.write_csv(), name=path.stem, header=True, delimiter=",")
                return replace(
                    table, notes=(*table.notes, "The Parquet file was written as CSV to be asked for; its published text may differ.")
                )
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise CorpusError(f"There is no {path}.", "Give the path of a .csv, .tsv or .parquet file.") from error
        except (pl.exceptions.PolarsError, OSError) as error:
            raise CorpusError(f"{path} cannot be read: {error}.", "Give a .csv, .tsv or .parquet file.") from error
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise CorpusError(
                f"{path} is not UTF-8: byte {error.start} is {data[error.start]:#04x}.", "Convert it to UTF-8 first."
            ) from error
        try:
            return cls.parse(text, name=path.stem, header=header, delimiter=delimiter or ("\t" if path.suffix.lower() == ".tsv" else None))
        except CorpusError as error:
            raise CorpusError(f"{path}: {error.problem}", error.remedy) from error

    @classmethod
    def parse(cls, text: str, *, name: str, header: bool | None = None, delimiter: str | None = None) -> Table:
        """A table from the text of a file.

        Raises:
            CorpusError: fewer than 2 columns or 12 rows, a row with more or fewer cells than the first, a quote that is never
                closed, a cell beyond the limit of `csv`.
        """
        text = text.removeprefix("\ufeff")  # before a quote it would hide that the cell is quoted
        records = _records(text, delimiter or _delimiter(text))
        if not records:
            raise CorpusError("the table is empty.", "Give a table with a header and rows.")
        width = len(records[0].cells)
        if width < 2:
            raise CorpusError("the table has one column.", "A row must say more than one thing: give at least two columns.")
        for record in records:
            if len(record.cells) != width:
                raise CorpusError(
                    f"line {record.line} has {len(record.cells)} cells, the first line {width}.",
                    "Repair the row, or quote the cell that holds a delimiter.",
                )
        first = records[0].cells
        named = header if header is not None else not any(number(cell) is not None for cell in first)
        body = records[1:] if named else records
        notes = () if named else ("The file has no line of column names.",)
        if len(body) > MOST:
            notes = (*notes, f"Only the first {MOST:,} of {len(body):,} rows were read.")
            body = body[:MOST]
        if len(body) < FEWEST:
            raise CorpusError(f"the table has {len(body)} rows.", f"At least {FEWEST} are needed: ten to show, one to ask for, one more.")
        columns = [cell.strip() for cell in first] if named else [f"column_{i + 1}" for i in range(width)]
        if len(set(columns)) < width:
            twice = next(column for column in columns if columns.count(column) > 1)
            raise CorpusError(f"two columns are called {twice!r}.", "Give every column a name of its own.")
        return cls(
            name,
            tuple(columns),
            tuple(record.text for record in body),
            tuple(record.cells for record in body),
            records[0].text if named else None,
            next((end for end in ("\r\n", "\r") if text[: body[0].end].endswith(end)), "\n"),
            records[0].delimiter,
            text[: body[-1].end],
            notes,
        )

    @classmethod
    def of(cls, name: str, columns: Sequence[str], cells: Sequence[Sequence[str]], like: Table | None = None) -> Table:
        """A table from cells, written with the delimiter and newline of `like`."""
        delimiter, newline = (like.delimiter, like.newline) if like else (",", "\n")
        lines = [row_text(row, delimiter) for row in (columns, *cells)]
        return cls(
            name,
            tuple(columns),
            tuple(lines[1:]),
            tuple(tuple(row) for row in cells),
            lines[0],
            newline,
            delimiter,
            newline.join([*lines, ""]),
            () if like is None else like.notes,
        )

    def __len__(self) -> int:
        return len(self.rows)

    def with_cells(self, row: int, changed: dict[int, str]) -> str:
        """The text of a row with other cells in some columns; what is not changed keeps its own text where the row needs no quotes."""
        cells = [changed.get(column, cell) for column, cell in enumerate(self.cells[row])]
        plain = self.delimiter.join(self.cells[row]) == self.rows[row] and not any(
            quoted(cell, self.delimiter) for cell in changed.values()
        )
        return self.delimiter.join(cells) if plain else row_text(cells, self.delimiter)

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """ "number" or "text" for every column; a column of nothing but missing values is text."""
        return tuple("number" if np.isfinite(column).any() else "text" for column in self._numbers)

    @cached_property
    def matrix(self) -> np.ndarray:
        """Float64 (rows, columns): numbers, NaN where missing; texts as codes, the most common first."""
        out = np.empty((len(self), len(self.columns)))
        for j, kind in enumerate(self.kinds):
            out[:, j] = self._numbers[j] if kind == "number" else codes([row[j].strip() for row in self.cells])
        return out

    @cached_property
    def _numbers(self) -> list[np.ndarray]:
        """The columns as numbers; all NaN where some cell is neither a number nor missing."""
        columns = []
        for cells in zip(*self.cells, strict=True):
            values = [number(cell) if not missing(cell) else float("nan") for cell in cells]
            mixed = any(value is None for value in values)
            columns.append(np.full(len(cells), np.nan) if mixed else np.array(values, np.float64))
        return columns

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Where every row begins in `text`: `text[starts[i]:][: len(rows[i])] == rows[i]`."""
        places, at = [], 0 if self.header is None else self.text.index(self.header) + len(self.header)
        for row in self.rows:
            at = self.text.index(row, at)
            places.append(at)
            at += len(row)
        return tuple(places)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of names, delimiter, newline and rows."""
        return sha256_json([self.name, self.columns, self.header, self.delimiter, self.newline, self.rows])


@dataclass(frozen=True)
class _Record:
    text: str
    cells: tuple[str, ...]
    end: int  # characters from the beginning of the file to the end of its newline
    line: int
    delimiter: str


def _records(text: str, delimiter: str) -> list[_Record]:
    """The records of a CSV text with their places. Blank lines are left out."""
    lines = io.StringIO(text, newline="")
    taken: list[str] = []

    def feed() -> Iterator[str]:
        for line in lines:
            taken.append(line)
            yield line

    out: list[_Record] = []
    place = line = 0
    reader = csv.reader(feed(), delimiter=delimiter, strict=True)
    try:
        for cells in reader:
            raw = "".join(taken)
            taken.clear()
            place += len(raw)
            if cells:
                out.append(_Record(raw.rstrip("\r\n"), tuple(cells), place, line + 1, delimiter))
            line = reader.line_num
    except csv.Error as error:
        if "field limit" in str(error):
            raise CorpusError(
                f"a cell that begins on line {line + 1} is longer than {csv.field_size_limit():,} characters.",
                "Leave its column out; if all cells are short, a quote before it is not closed.",
            ) from error
        raise CorpusError(f"line {line + 1} is not CSV: {error}.", "Close every quote, and double quotes inside a quoted cell.") from error
    return out


def _delimiter(text: str) -> str:
    """The delimiter that cuts the first hundred lines into equally many cells, the most of them; a comma where none does."""
    sample = "".join(islice(io.StringIO(text, newline=""), 100))
    best, most = ",", 1
    for candidate in _DELIMITERS:
        try:
            widths = {len(record.cells) for record in _records(sample, candidate)}
        except CorpusError:  # the sample may end inside a quoted cell; the whole text is parsed strictly later
            continue
        if len(widths) == 1 and (width := widths.pop()) > most:
            best, most = candidate, width
    return best


def require_column(table: Table, column: str) -> int:
    """The number of a column.

    Raises:
        InputError: the table has no such column.
    """
    if column not in table.columns:
        raise InputError(f"{table.name} has no column {column!r}.", f"Choose one of {', '.join(table.columns)}.")
    return table.columns.index(column)
