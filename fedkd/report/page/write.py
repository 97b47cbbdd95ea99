"""Writing the pages of run folders and bench folders."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from fedkd.errors import UserError
from fedkd.plugins import MissingPackage, require_package
from fedkd.report.page.bench import bench_page
from fedkd.report.page.comparison import comparison_page
from fedkd.report.page.page import MARK, Page, render
from fedkd.report.page.record import read_record
from fedkd.report.page.run import run_page
from fedkd.report.study import Study, read_study
from fedkd.storage import expand_path, write_bytes_atomically
from fedkd.tracking import (
    BENCH_FILE,
    CELLS_FILE,
    METRICS_FILE,
    REPORT_FILE,
    SCENARIO_FILE,
    STUDY_FILE,
    TUNE_FILE,
    remove_leftovers,
)

MOST_BYTES = 30_000_000  # of `metrics.jsonl` for a page at the end of a run: reading takes a second


def write_report(folders: Sequence[Path], out: Path | None = None, study: Study | None = None) -> Path:
    """Write the page of a run, a bench, or several runs side by side; return the file.

    Args:
        folders: Run folders, or one bench folder.
        out: The file, or the folder of `report.html`. Default: the run or bench folder; `.` for several runs.
        study: Of a bench folder. Default: read from the folder.

    Raises:
        UserError: A folder cannot be read, the file cannot be written, or a package is missing.
    """
    for package in ("plotly.offline", "jinja2"):  # before a long read
        require_package(package, REPORT_FILE, "report")
    page = _page(folders, study)
    path = folders[0] / REPORT_FILE if len(folders) == 1 else Path(REPORT_FILE)
    if out is not None:
        out = expand_path(out, key="--out")
        path = out if out.suffix.lower() in (".html", ".htm") or out.is_file() else out / REPORT_FILE
    _check_replaceable(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent, path.name)
        write_bytes_atomically(path, render(page).encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", file=str(path)) from error
    return path


def _page(folders: Sequence[Path], study: Study | None) -> Page:
    for folder in folders:
        runs, why = folder / "runs", ""
        if not folder.is_dir():
            why = "no such folder" if not folder.exists() else "is not a folder"
        elif (folder / TUNE_FILE).is_file():
            why = f"is a search, with its table in table.md; for pages of its runs: {runs}/*"
        if why:
            raise UserError(why, file=str(folder))
    benches = [folder for folder in folders if _is_bench(folder)]
    if len(folders) > 1 and benches:
        runs = benches[0] / "runs"
        told = f"is a bench folder with its own page; for its runs side by side: {runs}/*"
        raise UserError(told, file=str(benches[0]))
    if len(folders) > 1:
        return comparison_page([read_record(folder) for folder in folders])
    if not benches:
        return run_page(read_record(folders[0]))
    source = None
    with suppress(OSError, UnicodeDecodeError):
        source = (folders[0] / BENCH_FILE).read_text(encoding="utf-8")
    return bench_page(study or read_study(folders[0]), folders[0], source)


def _is_bench(folder: Path) -> bool:
    there = any((folder / name).exists() for name in (STUDY_FILE, CELLS_FILE, "runs"))
    return there and not (folder / SCENARIO_FILE).exists()


def _check_replaceable(path: Path) -> None:
    """Refuse to overwrite a file that is not a page of fedkd."""
    try:
        if not path.exists() and not path.is_symlink():
            return
        with path.open("rb") as file:
            if MARK.encode() in file.read(1000):
                return
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", file=str(path)) from error
    told = "exists and is not a report of fedkd; choose another file with --out"
    raise UserError(told, key="--out", file=str(path))


def write_final_report(folder: Path, tell: Callable[[str], None]) -> None:
    """Write the page of a run or bench that has just ended; `tell` the reason if that fails.

    Raises:
        MissingPackage: A package for pages is missing.
    """
    try:
        if (folder / METRICS_FILE).exists() and (folder / METRICS_FILE).stat().st_size > MOST_BYTES:
            why = f"was left out because {METRICS_FILE} is large"
            tell(f"{REPORT_FILE} {why}; to write it: fedkd report {folder}")
            return
        write_report([folder])
    except MissingPackage:
        raise
    except UserError as error:
        tell(f"{REPORT_FILE} could not be written: {error}")
    except Exception as error:  # a failed page must not fail a finished run
        tell(f"{REPORT_FILE} could not be written: {type(error).__name__}: {error}")
