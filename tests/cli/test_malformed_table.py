"""Tables that cannot be read end with exit status 2 and one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from fedkd.cli.main import main

pa = pytest.importorskip("pyarrow")

HEADER = "id,age,sex,site,label"
ROWS = [f"p{i},{20 + i},{'FM'[i % 2]},{'AB'[i % 2]},{['no', 'yes'][i // 2 % 2]}" for i in range(80)]
COLUMNS = {"label": "label", "client": "site", "ignore": ["id"]}


def csv(*rows: str, header: str = HEADER) -> bytes:
    """Return the good table, with `rows` in the place of its third and following rows."""
    return "\n".join([header, *ROWS[:2], *rows, *ROWS[2 + len(rows) :], ""]).encode()


def parquet(**columns: Any) -> bytes:
    from pyarrow import parquet

    sink = pa.BufferOutputStream()
    labels = [f"{i // 2 % 2}" for i in range(80)]
    parquet.write_table(pa.table({"age": range(80), "label": labels} | columns), sink)
    return sink.getvalue().to_pybytes()


def damaged_arrow() -> bytes:
    """Return a file whose text column claims bytes that are not there."""
    sink = pa.BufferOutputStream()
    table = pa.table({"age": ["a", "b", "c", "d"] * 20, "label": [0, 1] * 40})
    with pa.ipc.new_file(sink, table.schema) as file:
        file.write_table(table)
    content = sink.getvalue().to_pybytes()
    offsets = np.arange(2, 80, dtype=np.int32).tobytes()
    assert content.count(offsets) == 1
    return content.replace(offsets, np.full(78, 2**30, np.int32).tobytes())


def jsonl(*rows: dict[str, Any]) -> bytes:
    good = [{"age": i, "label": i % 2 == 0} for i in range(80 - len(rows))]
    return "".join(json.dumps(row) + "\n" for row in (*good, *rows)).encode()


PLAIN = {"label": "label"}
CASES: dict[str, tuple[str, bytes | None, dict[str, Any], tuple[str, ...]]] = {
    "missing file": ("gone.csv", None, {}, ("data.args.path: no file or folder 'gone.csv'",)),
    "unknown extension": (
        "a.xlsx",
        b"PK",
        {},
        ("data.args.path", "a.xlsx", ".csv, .tsv, .jsonl, .parquet, .arrow"),
    ),
    "empty file": ("a.csv", b"", {}, ("data.args.path", "a.csv is empty")),
    "empty JSON lines": ("a.jsonl", b"\n", {}, ("data.args.path", "a.jsonl")),
    "header only": ("a.csv", HEADER.encode() + b"\n", {}, ("a.csv has no rows", "id, age, sex, site, label")),
    "ragged row": ("a.csv", csv("p2,22,F,A"), {}, ("a.csv: row 3 has 4 values for 5 columns",)),
    "a quote without an end": (
        "a.csv",
        csv('p2,22,F,A,"no'),
        {},
        ('a.csv, line 4: the quote (") that opens a value here has no closing quote',),
    ),
    "a quote that the next quoted value closes": (
        "a.csv",
        csv('p2,22,"F,A,no', 'p3,23,"M",B,no'),
        {},
        ('a.csv, line 4: the quote (") that opens a value here has no closing quote',),
    ),
    "duplicate column": (
        "a.csv",
        csv(header="id,age,age,site,label"),
        {},
        ("a.csv has 2 columns named 'age'",),
    ),
    "Latin-1": (
        "a.csv",
        csv("p2,22,F,Köln,no").decode().encode("latin-1"),
        {},
        ("a.csv is not UTF-8 text (byte ",),
    ),
    "UTF-16": (
        "a.csv",
        csv().decode().encode("utf-16-le"),
        {},
        ("is not UTF-8 text (byte 1); save it as UTF-8",),
    ),
    "a cut Parquet file": ("a.parquet", parquet()[:200], {}, ("data.args.path: cannot read", "a.parquet")),
    "text as Parquet": ("a.parquet", csv(), {}, ("data.args.path: cannot read", "a.parquet")),
    "text as Arrow": ("a.arrow", csv(), {}, ("data.args.path: cannot read", "a.arrow")),
    "a damaged Arrow file": (
        "a.arrow",
        damaged_arrow(),
        {"columns": PLAIN},
        ("data.args.path: cannot read",),
    ),
    "cut JSON": ("a.jsonl", jsonl() + b'{"age":', {}, ("data.args.path: cannot read", "a.jsonl")),
    "JSON of two types": (
        "a.jsonl",
        jsonl({"age": "old"}),
        {"columns": PLAIN},
        ("age", "number to string in row 80"),
    ),
    "text among numbers": (
        "a.csv",
        csv("p2,old,F,A,no"),
        {},
        ("column 'age', row 3 holds 'old'", "categorical"),
    ),
    "infinity": ("a.csv", csv("p2,inf,F,A,no"), {}, ("column 'age', row 3 holds inf", "within ±1e+15")),
    "infinity in Parquet": (
        "a.parquet",
        parquet(age=[float(i) for i in range(79)] + [float("-inf")]),
        {"columns": PLAIN},
        ("column 'age', row 80 holds -inf",),
    ),
    "huge integer": ("a.csv", csv(f"p2,{10**30},F,A,no"), {}, ("column 'age', row 3 holds 1e+30",)),
    "huge label": (
        "a.parquet",
        parquet(label=[10**17, 1] * 40),
        {"columns": PLAIN},
        ("'label', row 1 holds 1e+17",),
    ),
    "NaN": (
        "a.csv",
        csv("p2,nan,F,A,no"),
        {},
        ("data.args.missing", "column 'age': 1 of 80 values are missing"),
    ),
    "NaN in Parquet": (
        "a.parquet",
        parquet(age=[float(i) for i in range(79)] + [float("nan")]),
        {"columns": PLAIN},
        ("data.args.missing", "column 'age': 1 of 80 values are missing", '"mean", or "drop"'),
    ),
    "missing client": (
        "a.csv",
        csv("p2,22,F,,no"),
        {"missing": "mean"},
        ("data.args.missing", "column 'site': 1 of 80 values are missing", '"drop" leaves their rows out'),
    ),
    "missing label": (
        "a.csv",
        csv("p2,22,F,A,"),
        {"missing": "mean"},
        ("column 'label': 1 of 80 values are missing",),
    ),
    "a column without values": (
        "a.parquet",
        parquet(note=pa.nulls(80)),
        {"columns": PLAIN, "missing": "drop"},
        ("column 'note' holds no value; put it under ignore",),
    ),
    "lists": ("a.parquet", parquet(parts=[[1]] * 80), {"columns": PLAIN}, ("column 'parts' holds list<",)),
    "one class": (
        "a.csv",
        csv(header="id,age,label,site,y").replace(b",M,", b",F,"),
        {},
        ("one class only, 'F'",),
    ),
    "fractions as label": (
        "a.parquet",
        parquet(label=[i + 0.5 for i in range(80)]),
        {"columns": PLAIN},
        (
            "data.args.columns.label",
            "column 'label'",
            'looks like a quantity: set data.task = "regression"',
        ),
    ),
    "many labels": (
        "a.parquet",
        parquet(age=range(2000), label=range(2000)),
        {"columns": PLAIN},
        ("data.args.columns.label", "column 'label' has 2,000 values; it looks like a quantity"),
    ),
    "many categories": (
        "a.parquet",
        parquet(age=[f"v{i}" for i in range(2000)], label=[i % 2 for i in range(2000)]),
        {"columns": PLAIN},
        ("column 'age' has 2,000 categories, at most 1,000 fit; put it under ignore",),
    ),
    "no label": (
        "a.csv",
        csv(),
        {"columns": {}},
        ("data.args.columns.label: must name", "id, age, sex, site, label"),
    ),
    "unknown column": (
        "a.csv",
        csv(),
        {"columns": COLUMNS | {"client": "sites"}},
        ("data.args.columns.client: no column 'sites'; did you mean 'site'?",),
    ),
    "unknown role": (
        "a.csv",
        csv(),
        {"columns": COLUMNS | {"lable": "age"}},
        ("columns.lable: unknown key; did you",),
    ),
    "a role of another type": (
        "a.csv",
        csv(),
        {"columns": COLUMNS | {"ignore": "id"}},
        ("must be a list of columns",),
    ),
    "columns of another type": (
        "a.csv",
        csv(),
        {"columns": "label"},
        ("data.args.columns: must be of type dict",),
    ),
    "one column twice": (
        "a.csv",
        csv(),
        {"columns": COLUMNS | {"features": ["age", "age"]}},
        ("column twice",),
    ),
    "label as a feature": (
        "a.csv",
        csv(),
        {"columns": {"label": "label", "features": ["age", "label"]}},
        ("data.args.columns.features: must not hold the label",),
    ),
    "label as client": (
        "a.csv",
        csv(),
        {"columns": PLAIN | {"client": "label"}},
        ("must be different columns",),
    ),
    "no features": (
        "a.csv",
        csv(),
        {"columns": PLAIN | {"ignore": HEADER.split(",")}},
        ("leaves no column",),
    ),
    "another split": (
        "a.csv",
        csv(),
        {"columns": COLUMNS | {"split": "sex"}},
        ("data.args.columns.split", "column 'sex' must have the values train and test, it has F, M"),
    ),
    "unknown treatment": (
        "a.csv",
        csv(),
        {"missing": "zero"},
        ("data.args.missing: must be 'mean' or 'drop'",),
    ),
}


def scenario(folder: Path, path: str, args: dict[str, Any]) -> str:
    data = {
        "dataset": "table",
        "args": {"path": path, "columns": COLUMNS} | args,
        "clients": 2,
        "partition": {
            "scheme": "natural" if "client" in {**COLUMNS, **args}.get("columns", COLUMNS) else "iid"
        },
        "transfer": {"size": 8},
    }
    tables = {"rounds": 1, "data": data, "clients": [{"model": "mlp"}], "engine": {"kind": "inline"}}
    (folder / "it.toml").write_text(tomli_w.dumps(tables))
    return str(folder / "it.toml")


@pytest.mark.parametrize("name", CASES)
def test_a_malformed_table_is_refused_in_one_line(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path, content, args, expected = CASES[name]
    if content is not None:
        (tmp_path / path).write_bytes(content)
    file = scenario(tmp_path, path, args)
    assert main(["check", file]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {file}: data.") and error.count("\n") == 1, error
    assert [text for text in expected if text not in error] == [], error


def test_the_table_of_these_cases_is_good(tmp_path, capsys):
    for path, content in {"a.csv": csv(), "b.csv": b"\xef\xbb\xbf" + csv()}.items():
        (tmp_path / path).write_bytes(content)
        assert main(["check", scenario(tmp_path, path, {})]) == 0
    assert "clients are A, B" in capsys.readouterr().out


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, capsys):
    (tmp_path / "a.csv").write_bytes(csv())
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main(["check", scenario(tmp_path, "a.csv", {})]) == 2
    error = capsys.readouterr().err
    assert "a table needs pyarrow; in a clone of fedkd: pip install '.[table]'" in error
