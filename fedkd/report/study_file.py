"""A study as a file, `study.json` of a bench folder: tables, figures and a page can be made of it anew."""

from __future__ import annotations

import json
from dataclasses import replace
from math import isfinite
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from fedkd.errors import UserError
from fedkd.json_text import NotJson, parse_json
from fedkd.report.study import Study
from fedkd.tracking.atomic import write_text_atomically
from fedkd.tracking.folder import STUDY


def write_study(study: Study, folder: Path) -> None:
    """Write a study into a bench folder. What is no finite number is left out: JSON cannot say it."""
    finals = [{name: value for name, value in run.final.items() if isfinite(value)} for run in study.runs]
    runs = tuple(replace(run, final=final) for run, final in zip(study.runs, finals, strict=True))
    table = TypeAdapter(Study).dump_python(replace(study, runs=runs), mode="json")
    write_text_atomically(folder / STUDY, json.dumps(table, allow_nan=False) + "\n")


def read_study(folder: Path) -> Study:
    """Read the study of a bench folder.

    Raises:
        UserError: There is none, or what is there is no study.
    """
    path = folder / STUDY
    try:
        study = TypeAdapter(Study).validate_python(parse_json(path.read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            "not found; the bench writes it once its cells have run (until then: fedkd report RUN RUN …)",
            file=str(path),
        ) from None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", file=str(path)) from None
    except (NotJson, ValidationError):
        raise UserError("is no study of a bench; the bench writes it anew", file=str(path)) from None
    if any(len(run.levels) != len(study.axes) for run in study.runs):
        raise UserError("is no study of a bench; the bench writes it anew", file=str(path))
    return study
