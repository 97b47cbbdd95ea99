"""Series from the `.ts` files of the UCR and UEA archives, such as JapaneseVowels."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedkd.data.dataset import Dataset, dataset_from_arrays
from fedkd.data.kinds import SERIES
from fedkd.data.memory_budget import check_memory_budget
from fedkd.data.partitions.stratified import own_test_split
from fedkd.data.request import SourceRequest
from fedkd.errors import UserError, refuse_if

KEY = "data.args.path"
TRAIN, TEST = "_TRAIN.ts", "_TEST.ts"


@dataclass(frozen=True)
class SeriesFile:
    """The cases of a file: each a list of channels [t] float64, and the text of its class or target."""

    path: Path
    cases: list[list[np.ndarray]]
    labels: list[str]


def load(request: SourceRequest) -> Dataset:
    """Return series [n, C, T] float32 with classes, or with a numeric target in regression.

    `path` is a folder with one `*_TRAIN.ts` and one `*_TEST.ts`, or the first of these files; any other file
    is split (`test_share`, `split_seed`). Shorter series are continued with their last value up to the
    longest. With `owners = "label"` each class is one owner, so the partition scheme `natural` gives every
    client one class: a speaker of JapaneseVowels. Missing values and time stamps are refused.
    """
    args = request.arguments(path=str, owners=str, test_share=0.2, split_seed=0)
    told = f"must be 'label' or absent, got {args['owners']!r}"
    refuse_if(args["owners"] not in (None, "label"), told, "data.args.owners")
    files = [read_series_file(path) for path in _paths(request.path(args["path"]))]
    x = padded(files)
    labels, names = _labels(
        [text for file in files for text in file.labels], request.regression, files[0].path
    )
    if len(files) == 2:
        test = np.arange(len(x)) >= len(files[0].cases)
    else:
        test = own_test_split(labels, args["test_share"], args["split_seed"])
    owners = None
    if args["owners"] is not None:
        told = "needs classes, but the labels are targets"
        refuse_if(names is None, told, "data.args.owners")
        owners = np.array(names)[labels[~test]]
    return dataset_from_arrays(
        request.name,
        *(x[~test], labels[~test], x[test], labels[test]),
        class_names=names,
        owners=owners,
        kind=SERIES,
        regression=request.regression,
        key=KEY,
    )


def _paths(path: Path) -> list[Path]:
    if path.is_dir():
        found = {end: sorted(path.glob(f"*{end}")) for end in (TRAIN, TEST)}
        for end, those in found.items():
            told = f"{path} must hold one file *{end}, it holds {len(those)}"
            refuse_if(len(those) != 1, told, KEY)
        return [found[TRAIN][0], found[TEST][0]]
    refuse_if(path.suffix.lower() != ".ts", f"{path} must be a file .ts or a folder of two", KEY)
    test = path.with_name(path.name.removesuffix(TRAIN) + TEST)
    return [path, test] if path.name.endswith(TRAIN) and test.is_file() else [path]


def read_series_file(path: Path) -> SeriesFile:
    """Read a `.ts` file; a damaged one is a `UserError` with its line.

    After the header, which ends with `@data`, a line is a case: channels of comma-separated values between
    colons, and its label.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path} as UTF-8 text: {error}", key=KEY) from error
    start = next((n for n, line in enumerate(lines) if line.strip().lower() == "@data"), None)
    refuse_if(start is None, f"{path} has no line @data", KEY)
    assert start is not None
    header = [line.strip().lower().split() for line in lines[:start]]
    for wrong in (["@timestamps", "true"], ["@classlabel", "false"]):
        refuse_if(wrong in header, f"{path} says '{' '.join(wrong)}', which is not read", KEY)
    cases, labels = [], list[str]()
    for number, line in enumerate(lines[start + 1 :], start=start + 2):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        *channels, label = line.strip().split(":")
        told = f"{path}, line {number}: must have channels and a label between colons, got '{line[:40]}'"
        refuse_if(not channels or not label.strip(), told, KEY)
        cases.append([_values(text, path, number) for text in channels])
        labels.append(label.strip())
        told = f"{path}, line {number}: must have {len(cases[0])} channels, got {len(channels)}"
        refuse_if(len(channels) != len(cases[0]), told, KEY)
    refuse_if(not cases, f"{path} holds no series", KEY)
    return SeriesFile(path, cases, labels)


def _values(text: str, path: Path, line: int) -> np.ndarray:
    try:
        return np.array([float(value) for value in text.split(",")])
    except ValueError:
        told = f"{path}, line {line}: must hold numbers, got '{text[:40]}'"
        raise UserError(told, key=KEY) from None


def padded(files: list[SeriesFile]) -> np.ndarray:
    """Return all cases [n, C, T] float64; the last value of a shorter series is repeated."""
    cases = [case for file in files for case in file.cases]
    channels, length = len(cases[0]), max(len(values) for case in cases for values in case)
    told = f"{files[-1].path} must have {channels} channels like {files[0].path}"
    refuse_if(any(len(case) != channels for case in cases), told, KEY)
    check_memory_budget(8 * len(cases) * channels * length, f"{files[0].path} takes", KEY)
    x = np.empty((len(cases), channels, length))
    for row, case in enumerate(cases):
        for channel, values in enumerate(case):
            x[row, channel, : len(values)] = values
            x[row, channel, len(values) :] = values[-1]
    return x


def _labels(texts: list[str], regression: bool, path: Path) -> tuple[np.ndarray, list[str] | None]:
    if regression:
        try:
            return np.array([float(text) for text in texts]), None
        except ValueError as error:
            raise UserError(f"{path}: targets of regression must be numbers: {error}", key=KEY) from None
    names, codes = np.unique(texts, return_inverse=True)
    refuse_if(len(names) < 2, f"{path} has one class only, '{names[0]}'", KEY)
    return codes.astype(np.int64), [str(name) for name in names]
