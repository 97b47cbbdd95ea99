"""Cases of tables, text and series: files of rows that are wrong or odd, and the words that read them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from campaign.base import Bench, tables, write_scenario
from campaign.sandbox import Place
from campaign.values import damaged

ROWS = 60
CELLS = (
    *("", " ", "NA", "nan", "NaN", "inf", "-Infinity", "null", "None", "1e400", "-1e-400", "1e15", "1e16"),
    *("9" * 40, "-" + "9" * 400, "0x1f", "1_000", "1,5", "1.5.2", "٣", "½", "true", "FALSE", "2024-02-30"),
    *(
        '"',
        '""',
        '"a',
        'a"b',
        '"a\nb"',
        "'",
        "a\tb",
        "a\r",
        "\0",
        "\ufeff",
        "\u2028",
        "é" * 300,
        "=1+1",
        "[1]",
        "{}",
    ),
)
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1", "cp1252", "utf-32", "shift_jis")
NAMES = (
    "age",
    "text",
    "site",
    "split",
    "label",
    "",
    " age",
    "label ",
    "a,b",
    '"q"',
    "ключ",
    "x" * 3000,
    "label",
)
ENDS = ("\n", "\r\n", "\r", "\n\n", "")
TOKENIZERS = (
    *({"kind": "bytes"}, {"kind": "words", "length": 4}, {"kind": "words", "vocabulary": 3}),
    *(
        {"kind": "bpe", "vocabulary": 300},
        {"kind": "file", "path": "words.txt"},
        {"kind": "words", "length": 0},
    ),
    *({"kind": "words", "learn_from": "train"}, {"kind": "odd"}, {"length": 10**9}, {}),
)


def attempt(place: Place, bench: Bench, rng: np.random.Generator) -> None:
    """Give fedkd a table or series that is wrong, or odd, to check, to run, or to make a scenario from."""
    suffix = str(
        rng.choice(
            [".csv", ".tsv", ".jsonl", ".parquet", ".arrow", ".ts"], p=[0.4, 0.1, 0.15, 0.15, 0.1, 0.1]
        )
    )
    place.inputs.mkdir(parents=True, exist_ok=True)
    path = place.inputs / f"rows{suffix}"
    path.write_bytes(content(suffix, rng))
    (place.inputs / "words.txt").write_bytes("red\nblue\n\nred\n".encode(str(rng.choice(ENCODINGS[:4]))))
    if suffix != ".ts" and rng.random() < 0.25:
        place.run(bench.command, ["new", "scenario", "--from", path, "--out", place.out])
        return
    scenario = tables(rounds=1)
    scenario["data"] |= {"dataset": "ts" if suffix == ".ts" else "table", "args": arguments(suffix, rng)}
    owned = "client" in scenario["data"]["args"].get("columns", {}) or rng.random() < 0.05
    scheme = str(rng.choice(["iid", "dirichlet", "natural"], p=[0.3, 0.3, 0.4] if owned else [0.5, 0.5, 0.0]))
    scenario["data"]["clients"] = 2
    scenario["data"]["partition"] = {
        "scheme": scheme,
        "min_samples": 2,
    }
    scenario["data"]["transfer"]["size"] = 6
    del scenario["data"]["test_size"]
    model = "bag" if "text" in scenario["data"]["args"].get("columns", {}) else "mlp"
    scenario["clients"] = [{"model": str(rng.choice([model, "sgd"], p=[0.9, 0.1]))}]
    if rng.random() < 0.1:
        scenario["data"]["task"] = "regression"
        scenario["data"]["args"].get("columns", {})["label"] = "age"
    words = (
        ["run", "--quiet", "--engine", "inline", "--out", place.out / "run"]
        if rng.random() < 0.4
        else ["check"]
    )
    place.run(bench.command, [words[0], write_scenario(place, scenario), *words[1:]])


def arguments(suffix: str, rng: np.random.Generator) -> dict[str, Any]:
    """Return `data.args`: mostly the roles that the columns have."""
    args: dict[str, Any] = {"path": f"rows{suffix}"}
    if suffix == ".ts":
        return args | ({"owners": "label"} if rng.random() < 0.5 else {})
    columns: dict[str, Any] = {"label": "label"}
    for key, name, chance in (("client", "site", 0.6), ("split", "split", 0.2), ("text", "text", 0.3)):
        if rng.random() < chance:
            columns[key] = name
    if rng.random() < 0.1:
        columns["ignore"] = [str(rng.choice(NAMES))]
    if rng.random() < 0.1:
        columns[str(rng.choice(["label", "features", "categorical", "clent"]))] = str(rng.choice(NAMES))
    if rng.random() < 0.7:
        args["missing"] = str(rng.choice(["mean", "drop", "zero"], p=[0.6, 0.37, 0.03]))
    if "text" in columns and rng.random() < 0.7:
        args["tokenizer"] = TOKENIZERS[rng.integers(len(TOKENIZERS))]
    return args | {"columns": columns}


def content(suffix: str, rng: np.random.Generator) -> bytes:
    """Return a file of rows with oddities, and in some cases after an accident."""
    names, rows = _rows(rng)
    if suffix in (".csv", ".tsv"):
        found = _separated(names, rows, ",\t"[suffix == ".tsv"], rng)
    elif suffix == ".jsonl":
        found = _lines_of_json(names, rows, rng)
    elif suffix == ".ts":
        found = _series(rng)
    else:
        found = _typed(suffix, rng)
    return damaged(found, rng) if rng.random() < 0.2 else found


def _rows(rng: np.random.Generator) -> tuple[list[str], list[list[str]]]:
    names = ["age", "text", "site", "split", "label"]
    rows = [
        [
            *(f"{rng.normal(40, 9):.2f}", f"the {['red', 'blue', 'sky'][n % 3]} car {n}"),
            *("AB"[n % 2], ["train", "test"][n % 4 == 0], "xyz"[n % 3]),
        ]
        for n in range(int(rng.choice([ROWS, 1, 0, 4], p=[0.9, 0.03, 0.03, 0.04])))
    ]
    if rng.random() < 0.3 and rows:  # a column of one oddity, or of numbers alone
        column, cell = int(rng.integers(5)), CELLS[rng.integers(len(CELLS))]
        for row in rows:
            row[column] = cell if rng.random() < 0.9 else str(rng.integers(10**6))
    for _ in range(int(rng.choice([0, 1, 5])) if rows else 0):
        rows[rng.integers(len(rows))][rng.integers(5)] = CELLS[rng.integers(len(CELLS))]
    if rng.random() < 0.15:
        names[rng.integers(5)] = NAMES[rng.integers(len(NAMES))]
    return names, rows


def _separated(names: list[str], rows: list[list[str]], separator: str, rng: np.random.Generator) -> bytes:
    lines = [separator.join(names), *(separator.join(row) for row in rows)]
    roll, end = rng.random(), str(rng.choice(ENDS, p=[0.6, 0.2, 0.1, 0.06, 0.04]))
    if roll < 0.06 and rows:  # ragged
        place = int(rng.integers(len(lines)))
        lines[place] = lines[place] + separator * int(rng.integers(1, 4)) if rng.random() < 0.5 else ""
    elif roll < 0.08:  # a million columns
        lines = [separator.join(f"c{n}" for n in range(10**6)) + separator + "label"]
        lines += [separator.join(["1"] * 10**6 + [label]) for label in "xy"]
    elif roll < 0.1:
        lines = [lines[0], *(line * 3000 for line in lines[1:3])]
    text = end.join(lines) + (end if rng.random() < 0.8 else "")
    coding = str(rng.choice(ENCODINGS)) if rng.random() < 0.2 else "utf-8"
    return text.encode(coding, "replace")


def _lines_of_json(names: list[str], rows: list[list[str]], rng: np.random.Generator) -> bytes:
    odd = (None, True, 10**30, -(10**400), 1.5, [1, 2], {"a": 1}, "", float("nan"), float("inf"), "x", [])
    lines = []
    for row in rows:
        table: dict[str, Any] = dict(zip(names, row, strict=True))
        if rng.random() < 0.5:
            table["age"] = float(rng.normal(40, 9))
        if rng.random() < 0.03:
            table[str(rng.choice(names))] = odd[rng.integers(len(odd))]
        if rng.random() < 0.02:
            table.pop(str(rng.choice(names)), None)
        lines.append(json.dumps(table, ensure_ascii=bool(rng.random() < 0.5)))
    if rng.random() < 0.1 and lines:
        lines[rng.integers(len(lines))] = str(rng.choice(["", "[]", "1", "{", '{"a":}', "null"]))
    return ("\n".join(lines) + "\n").encode("utf-8", "replace")


def _typed(suffix: str, rng: np.random.Generator) -> bytes:
    """Return Parquet or Arrow with columns of any type."""
    import pyarrow as pa
    from pyarrow import parquet

    count = int(rng.choice([ROWS, 1, 0], p=[0.9, 0.05, 0.05]))
    numbers = rng.normal(size=count)
    columns: dict[str, Any] = {
        "age": numbers,
        "text": [f"the {n % 5} car" for n in range(count)],
        "site": ["AB"[n % 2] for n in range(count)],
        "split": [["train", "test"][n % 4 == 0] for n in range(count)],
        "label": ["xyz"[n % 3] for n in range(count)],
    }
    odd: tuple[Any, ...] = (
        *(pa.nulls(count), pa.array([None] * count, pa.float64()), pa.array([[1]] * count), numbers * np.inf),
        *(
            pa.array([{"a": 1}] * count, pa.struct([("a", pa.int64())])),
            pa.array([b"\xff"] * count, pa.binary()),
        ),
        *(np.arange(count, dtype=np.uint64) + 2**63, pa.array([True] * count), numbers.astype(np.float16)),
        *(pa.array(np.arange(count), pa.timestamp("s")), pa.array(["a"] * count).dictionary_encode()),
        *(
            pa.array([None, *range(count - 1)][:count], pa.int32()),
            pa.array([1] * count, pa.decimal128(38, 5)),
        ),
        *(pa.array(np.arange(count), pa.duration("ms")), pa.array(["x"] * count, pa.large_string())),
        *(np.full(count, 1e300), np.full(count, -1e-310), pa.array(np.arange(count) % 5, pa.uint8())),
    )
    for _ in range(int(rng.integers(3))):
        columns[str(rng.choice(list(columns)))] = odd[rng.integers(len(odd))]
    table, sink = pa.table(columns), pa.BufferOutputStream()
    if rng.random() < 0.1:
        table = table.append_column("label", table["label"])
    if suffix == ".parquet":
        parquet.write_table(table, sink)
    else:
        new = pa.ipc.new_file if rng.random() < 0.6 else pa.ipc.new_stream
        with new(sink, table.schema) as file:
            file.write_table(table)
    return sink.getvalue().to_pybytes()


def _series(rng: np.random.Generator) -> bytes:
    heads = (
        "@problemName a",
        "@timeStamps false",
        "@timeStamps true",
        "@classLabel true x y",
        "@classLabel false",
        "# a",
    )
    lines = [str(rng.choice(heads)) for _ in range(rng.integers(4))] + ["@data"] * (rng.random() < 0.95)
    channels = int(rng.choice([1, 2, 5]))
    for n in range(int(rng.choice([ROWS, 3, 0], p=[0.9, 0.05, 0.05]))):
        steps = [[f"{v:.2f}" for v in rng.normal(n % 2, 1, rng.integers(1, 9))] for _ in range(channels)]
        if rng.random() < 0.02:
            steps[0][0] = CELLS[rng.integers(len(CELLS))]
        if rng.random() < 0.01:
            steps.append(["1"])
        lines.append(":".join([*(",".join(values) for values in steps), "xy"[n % 2]]))
    return str(rng.choice(ENDS[:3])).join(lines).encode("utf-8", "replace")
