"""Files of rows and columns: CSV, TSV, JSON lines, Parquet and Arrow."""

from __future__ import annotations

import codecs
import re
from collections import Counter
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkd.data.dataset import LARGEST
from fedkd.data.memory_budget import check_memory_budget
from fedkd.errors import UserError, described, refuse_if
from fedkd.plugins import require_package

if TYPE_CHECKING:
    import pyarrow as pa

KEY = "data.args.path"
SEPARATORS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*SEPARATORS, ".jsonl", ".parquet", ".arrow")
ABSENT = ("", "NA", "N/A", "n/a", "#N/A", "NaN", "nan", "NULL", "null")
"""Texts that stand for a missing value."""
NUMBER = r"^[-+]?((\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|(?i:inf|infinity))$"
MAX_CATEGORIES = 1000
"""Classes of a label, and categories of a feature."""
MAX_COLUMNS = 50_000
"""Columns of a table: each costs about 20 kB and some of the readers' time."""
CHUNK = 1 << 24  # bytes


def read_table_file(path: Path) -> pa.Table:
    """Read a file by its extension; columns of CSV and TSV are text. Bad files are a `UserError`."""
    pyarrow = require_package("pyarrow", "a table", "table")
    told = f"{path} must be a file with one of the extensions {', '.join(SUFFIXES)}"
    refuse_if(path.suffix.lower() not in SUFFIXES or not path.is_file(), told, KEY)
    refuse_if(path.stat().st_size == 0, f"{path} is empty", KEY)
    try:
        table = _read(path, path.suffix.lower())
        table.validate(full=True)  # what a damaged file claims may lie outside of it
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        # pyarrow counts rows of JSON from 0.
        told = re.sub(r"(?<=in row )\d+", lambda row: str(int(row[0]) + 1), described(error))
        raise UserError(f"cannot read {path}: {told}", key=KEY) from error
    names = table.column_names
    _check_width(path, len(names))
    for name, count in Counter(names).items():
        refuse_if(count > 1, f"{path} has {count} columns named '{name}'", KEY)
    refuse_if(table.num_rows == 0, f"{path} has no rows, its columns are {', '.join(names) or 'none'}", KEY)
    return table


def _read(path: Path, suffix: str) -> pa.Table:
    if suffix == ".parquet":
        from pyarrow import parquet

        with parquet.ParquetFile(path) as file:
            _check_width(path, file.metadata.num_columns)
            size = 8 * file.metadata.num_rows * file.metadata.num_columns
            check_memory_budget(size, f"{path} unpacks to at least", KEY)
            return file.read()
    if suffix == ".arrow":
        from pyarrow import ArrowInvalid, ipc, memory_map

        try:
            return ipc.open_file(memory_map(str(path))).read_all()
        except ArrowInvalid:  # the format of streams has the same extension
            return ipc.open_stream(memory_map(str(path))).read_all()
    check_memory_budget(path.stat().st_size, f"{path} has", KEY)
    _check_text(path)
    if suffix == ".jsonl":
        from pyarrow import json

        # One block: the type of a column depends on all of its values. Keys of an object have no order.
        block = json.ReadOptions(use_threads=False, block_size=min(path.stat().st_size + 1, 2**31 - 1))
        table = json.read_json(path, read_options=block)
        return table.select(sorted(table.column_names))
    with path.open("rb") as file:  # before pyarrow makes an array of each
        _check_width(path, file.readline().count(SEPARATORS[suffix].encode()) + 1)
    _check_quotes(path, SEPARATORS[suffix])
    return _read_csv(path, SEPARATORS[suffix])


def _check_width(path: Path, columns: int) -> None:
    told = f"{path} has {columns:,} columns, at most {MAX_COLUMNS:,} fit; an npz file takes more features"
    refuse_if(columns > MAX_COLUMNS, told, KEY)


def _read_csv(path: Path, separator: str) -> pa.Table:
    import pyarrow as pa
    from pyarrow import csv

    def ragged(row: Any) -> str:
        columns = f"{row.actual_columns} values for {row.expected_columns} columns"
        ragged_rows.append(f"row {row.number - 1} has {columns}")
        return "error"

    ragged_rows: list[str] = []
    given: dict[str, Any] = {
        "read_options": csv.ReadOptions(use_threads=False, block_size=CHUNK),  # rows have numbers
        "parse_options": csv.ParseOptions(
            delimiter=separator, newlines_in_values=True, invalid_row_handler=ragged
        ),
    }
    try:
        with csv.open_csv(path, **given) as reader:
            names = reader.schema.names
        # Guessed types would depend on the first rows.
        types = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
        table = csv.read_csv(path, convert_options=types, **given)
    except pa.ArrowInvalid as error:
        if not ragged_rows:
            raise
        raise UserError(f"{path}: {ragged_rows[0]}", key=KEY) from error
    return table.rename_columns([name.strip() for name in names])


def _check_text(path: Path) -> None:
    decoder, start = codecs.getincrementaldecoder("utf-8")(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            told = f"{path} is not UTF-8 text (byte {{}}); save it as UTF-8"
            refuse_if(b"\0" in chunk, told.format(start + chunk.find(b"\0")), KEY)
            try:
                decoder.decode(chunk, final=len(chunk) < CHUNK)
            except UnicodeDecodeError as error:
                raise UserError(told.format(start + error.start), key=KEY) from None
            start += len(chunk)


def _check_quotes(path: Path, separator: str) -> None:
    """Raise a `UserError` for a quote without a closing one: its value would contain the next rows.

    A quoted value may contain newlines. Its closing quote stands before a separator or the end of a line.
    """
    field = rf"(?:(?<![^{separator}\r\n])|(?<=\A\xef\xbb\xbf))\""  # a quote elsewhere is text
    closed = rf"(?:[^\"]++|\"\")*+\"(?:\Z|(?=[ {separator}\r\n]))"
    before_text = r"(?:[^\"\r\n]++|\"\")*+\"(?!\")"
    good = re.compile(rf"(?:[^\"]++|{field}(?:{closed}|{before_text})|(?!{field})\")*+".encode("latin-1"))
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        match = good.match(data)
        assert match is not None
        if (opened := match.end()) < len(data):
            line = data[:opened].count(b"\n") + 1
            told = f'{path}, line {line}: the quote (") that opens a value here has no closing quote;'
            raise UserError(f"{told} a quote inside a quoted value is written twice", key=KEY)


def clean_column(table: pa.Table, name: str, path: Path, *, numbers: str) -> pa.ChunkedArray:
    """Return a column as float64 or as text, with nulls for missing values.

    Text of a CSV file becomes numbers if `numbers` is "all" and all of it are, or if `numbers` is "most" and
    most of it are; other text is a `UserError` then. With "none" it stays text, as that of typed files does.
    Infinite and huge numbers are a `UserError`.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    column, where = table[name], f"{path.name}: column '{name}'"
    is_a, kind = pa.types, column.type
    if is_a.is_integer(kind) or is_a.is_floating(kind) or is_a.is_decimal(kind):
        values = column.cast(pa.float64(), safe=False)
        return _finite(pc.if_else(pc.is_nan(values), pa.scalar(None, pa.float64()), values), where)
    try:
        text = column.cast(kind.value_type) if is_a.is_dictionary(kind) else column
        refuse_if(is_a.is_nested(text.type), "", None)
        text = pc.utf8_trim_whitespace(text.cast(pa.string()))
    except (pa.ArrowException, UserError):
        told = f"{where} holds {kind}, neither numbers nor categories; put it under ignore"
        raise UserError(told, key=KEY) from None
    text = pc.if_else(pc.is_in(text, value_set=pa.array(ABSENT)), pa.scalar(None, pa.string()), text)
    numeric = pc.match_substring_regex(text, NUMBER)
    count, present = pc.sum(numeric).as_py() or 0, len(text) - text.null_count
    typed = path.suffix.lower() not in SEPARATORS
    if typed or numbers == "none" or 2 * count <= present or (numbers == "all" and count < present):
        return text
    if count < present:
        row = pc.index(numeric, False).as_py()
        told = f"{where}, row {row + 1} holds '{text[row].as_py()[:50]}', most other values are numbers;"
        raise UserError(f"{told} correct it, or name the column under categorical", key=KEY)
    return _finite(text.cast(pa.float64()), where)


def whole_numbers(column: pa.ChunkedArray) -> bool:
    """Return whether no value is a number with a fraction; text has none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    return column.type == pa.string() or bool(pc.all(pc.equal(pc.floor(column), column)).as_py())


def _finite(values: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
    import pyarrow.compute as pc

    large = pc.greater(pc.abs(values), LARGEST)
    if (row := pc.index(large, True).as_py()) >= 0:
        told = f"row {row + 1} holds {values[row].as_py():g}; numbers must be within ±{LARGEST:g}"
        raise UserError(f"{where}, {told}", key=KEY)
    return values
