"""``fedkd new scenario --from FILE``: a scenario for a table, with guesses to correct."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fedkd.data import MAX_CATEGORIES, clean_column, read_table_file, whole_numbers
from fedkd.errors import UserError, one_line, refuse_if
from fedkd.scenario import NAME_PATTERN
from fedkd.storage import expand_path

LABELS = ("label", "target", "class", "diagnosis", "y")
CLIENTS = ("client", "hospital", "site", "user", "device", "owner")
FEW_CLASSES = 20  # of a label with another name
FEWEST_ROWS = 30  # of a client: most of them are training samples


def new_scenario(source: str | Path, name: str | None = None, out: str | Path = ".") -> Iterator[str]:
    """Write ``NAME.toml``, by default called like the table; yield lines for the user."""
    import tomli_w

    path, folder = expand_path(source, key="--from"), expand_path(out, key="--out")
    name = name or re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("._-") or "table"
    told = f"must be letters, digits, '.', '_' and '-', and begin with a letter or digit, got {name!r}"
    refuse_if(not re.match(NAME_PATTERN, name), told, "NAME")
    target = folder / f"{name}.toml"
    refuse_if(target.exists(), "exists already; choose another NAME or another --out", None, file=str(target))
    try:
        notes, data = _guess(read_table_file(path), path)
    except UserError as error:
        raise UserError(error.message, key="--from") from error
    data["args"] = {"path": os.path.relpath(path.resolve(), folder.resolve())} | data["args"]
    model = {"model": "mlp", "args": {"hidden": [32]}}
    tables = {"name": name, "rounds": 5, "data": data, "clients": [model], "engine": {"kind": "inline"}}
    lines = ["# Columns of the table, with guesses. Correct them under [data.args.columns]."]
    lines += [f"#   {note}" for note in notes]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        target.write_text("\n".join(lines) + "\n\n" + tomli_w.dumps(tables), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", file=str(target)) from error
    yield from (f"wrote {target}", *(f"  {note}" for note in notes))
    yield from (f"next: fedkd check {target}", f"      fedkd run {target}")


def _guess(table: Any, path: Path) -> tuple[list[str], dict[str, Any]]:
    """Return a line for each column, and the table `[data]` without the path."""
    import pyarrow as pa

    used: dict[str, Any] = {}
    classes: dict[str, int] = {}
    roles: dict[str, Any] = {"label": "", "ignore": [], "categorical": []}
    notes: dict[str, str] = {}
    for name in table.column_names:
        column, mixed = _cleaned(table, name, path)
        discrete = column is None or whole_numbers(column)
        sizes = _sizes(column)
        count = len(sizes)
        is_text = column is not None and column.type == pa.string()
        notes[name] = f"{count:,} {'values' if is_text else 'numbers'}"
        many = is_text and count > MAX_CATEGORIES
        owns = name.lower().removesuffix("_id") in CLIENTS and (sizes >= FEWEST_ROWS).sum() > 1
        if owns and "client" not in roles:
            roles["client"], used[name] = name, column
        elif many or count in (0, table.num_rows * discrete):
            roles["ignore"].append(name)
        else:
            used[name] = column
            roles["categorical"] += [name] * mixed
            classes |= {name: count} if discrete and 1 < count <= MAX_CATEGORIES else {}
    named = [name for name in classes if name.lower() in LABELS]
    few = [name for name, count in classes.items() if count <= FEW_CLASSES]
    quantities = [name for name in used if name.lower() in LABELS and used[name].type == pa.float64()]
    regression = not named and bool(quantities)
    told = f"no column looks like a label; the columns are {', '.join(table.column_names)}"
    refuse_if(not named and not few and not quantities, told, None)
    label, client = [*named, *quantities, *few[::-1]][0], roles.get("client")
    roles["label"] = label
    roles["categorical"] = [name for name in roles["categorical"] if name != label]
    refuse_if(used.keys() <= {label, client}, "no column is left to learn from", None)
    frame = pa.table(used)
    args: dict[str, Any] = {"columns": {key: value for key, value in roles.items() if value}}
    if any(column.null_count for column in used.values()):
        args["missing"] = "drop" if any(used[n].null_count for n in (label, client) if n) else "mean"
        frame = frame.drop_null() if args["missing"] == "drop" else frame
    told = f"a scenario needs {FEWEST_ROWS} rows, the table has {frame.num_rows} without those that it drops"
    refuse_if(frame.num_rows < FEWEST_ROWS, told, None)
    clients = 0 if client is None else int((_sizes(frame[client]) >= FEWEST_ROWS).sum())
    data: dict[str, Any] = {"dataset": "table", "clients": clients or max(2, min(10, frame.num_rows // 50))}
    data |= {"task": "regression"} if regression else {}
    data["partition"] = {"scheme": "natural" if clients else "dirichlet"}
    data["transfer"] = {"size": max(1, frame.num_rows // 10)}
    words = {label: "label, ", client: "client, "} | dict.fromkeys(roles["ignore"], "ignored, ")
    return [one_line(f"{n}: {words.get(n, '')}{note}") for n, note in notes.items()], data | {"args": args}


def _cleaned(table: Any, name: str, path: Path) -> tuple[Any, bool]:
    """Return a column as numbers or text, and whether it mixes both; None: it is neither."""
    for numbers in ("most", "none"):
        try:
            return clean_column(table, name, path, numbers=numbers), numbers == "none"
        except UserError:
            continue
    return None, False


def _sizes(column: Any) -> np.ndarray:
    """Return the number of rows of each value."""
    import pyarrow.compute as pc

    if column is None:
        return np.zeros(0, np.int64)
    return pc.value_counts(column.drop_null()).field("counts").to_numpy()
