"""``fedkd new scenario --from FILE`` writes a scenario that `fedkd check` accepts."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedkd.cli.main import main

pytest.importorskip("pyarrow")


def visits(rows: int = 240, **columns: Any) -> str:
    """Return a table with a column that is known by its name for each role, and others by their values."""
    draw = np.random.default_rng(0)
    found = {
        "record": [f"r{n}" for n in range(rows)],
        "Hospital_ID": draw.choice(["Oslo", "Bonn", "Rome"], rows),
        "diagnosis": draw.choice(["ill", "well"], rows),
        "age": draw.normal(50, 9, rows).round(2),
        "stage": draw.choice(["1", "2", "3+"], rows, p=[0.4, 0.4, 0.2]),
        'code, "x"': draw.integers(0, 4, rows),
    }
    found |= columns
    quoted = ['"' + name.replace('"', '""') + '"' for name in found]
    lines = zip(*found.values(), strict=True)
    return "\n".join([",".join(quoted), *(",".join(map(str, line)) for line in lines)])


def write(folder: Path, text: str, *words: str) -> dict[str, Any]:
    """Write a scenario for a table in a folder beside it, check it, and return it."""
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data" / "my visits.csv").write_text(text)
    out = folder / "made"
    assert (
        main(["new", "scenario", *words, "--from", str(folder / "data" / "my visits.csv"), "--out", str(out)])
        == 0
    )
    (file,) = out.iterdir()
    assert main(["check", str(file)]) == 0
    return tomllib.loads(file.read_text())


def test_a_quantity_named_like_a_label_is_a_target(tmp_path):
    draw = np.random.default_rng(1)
    found = write(tmp_path, visits(diagnosis=["ill"] * 240, target=draw.normal(size=240).round(3)))
    assert found["data"]["task"] == "regression"
    assert found["data"]["args"]["columns"]["label"] == "target"


def test_columns_get_the_roles_that_they_look_like(tmp_path, capsys):
    found = write(tmp_path, visits())
    said = capsys.readouterr().out
    assert "record: ignored, 240 values" in said and "diagnosis: label, 2 values" in said
    assert (
        "clients are Bonn, Oslo, Rome" in said and f"fedkd run {tmp_path / 'made' / 'my-visits.toml'}" in said
    )
    assert found["name"] == "my-visits"
    columns = {"label": "diagnosis", "client": "Hospital_ID", "ignore": ["record"], "categorical": ["stage"]}
    assert found["data"]["args"] == {"path": "../data/my visits.csv", "columns": columns}
    assert found["data"]["clients"] == 3 and found["data"]["partition"] == {"scheme": "natural"}


def test_without_known_names_the_last_column_with_few_values_is_the_label(tmp_path):
    text = visits().replace("diagnosis", "d").replace("Hospital_ID", "h")
    found = write(tmp_path, text, "mine")
    assert found["name"] == "mine" and found["data"]["partition"] == {"scheme": "dirichlet"}
    assert found["data"]["args"]["columns"]["label"] == 'code, "x"' and found["data"]["clients"] == 4


@pytest.mark.parametrize(
    ("column", "missing"), [("age", "mean"), ("diagnosis", "drop"), ("Hospital_ID", "drop")]
)
def test_missing_values_are_seen(column, missing, tmp_path):
    values = ["" if n % 9 == 0 else f"{n % 3}" for n in range(240)]
    found = write(tmp_path, visits(**{column: values}))
    assert found["data"]["args"]["missing"] == missing


def test_columns_of_no_use_are_ignored(tmp_path):
    more = {"empty": [""] * 240, "serial": range(240), "ends": ["inf", *range(239)]}
    assert write(tmp_path, visits(**more))["data"]["args"]["columns"]["ignore"] == [
        "record",
        "empty",
        "serial",
        "ends",
    ]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("scenario",), "--from: a scenario needs the file of a table: --from FILE"),
        (("model", "mine", "--from", "a.csv"), "--from: only with: fedkd new scenario"),
        (("model",), "NAME: a model needs a name (see fedkd new --help)"),
        (
            ("scenario", "--from", "gone.csv"),
            "--from: gone.csv must be a file with one of the extensions .csv, ",
        ),
        (("scenario", "--from", "a.csv"), "--from: no column looks like a label; the columns are x, z"),
        (("scenario", "--from", "only.csv"), "--from: no column is left to learn from"),
        (("scenario", "--from", "short.csv"), "--from: a scenario needs 30 rows, the table has 9 without"),
        (("scenario", "a b", "--from", "a.csv"), "NAME: must be letters, digits"),
        (("scenario", "taken", "--from", "a.csv"), "taken.toml: exists already"),
    ],
)
def test_wrong_words_are_refused_in_one_line(words, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("a.csv").write_text("x,z\n" + "".join(f"{n / 7},{n}\n" for n in range(99)))
    Path("short.csv").write_text("x,y\n" + "".join(f"{n / 7},{n % 2}\n" for n in range(9)))
    Path("only.csv").write_text("y\n" + "0\n1\n" * 50)
    Path("taken.toml").touch()
    assert main(["new", *words]) == 2
    assert capsys.readouterr().err.startswith(f"error: {told}")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.csv",
        "only.csv",
        "short.csv",
        "taken.toml",
    ]
