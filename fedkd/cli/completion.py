"""Shell completion of verbs, options, shipped names, files, and keys of ``--set``.

It needs argcomplete (extra `completion`): ``eval "$(register-python-argcomplete fedkd)"``.
"""

import argparse
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel

from fedkd.plugins import require_package
from fedkd.scenario import TOML_SUFFIX, Scenario, ShippedKind, section_class, shipped_names

ASKED = "_ARGCOMPLETE"  # environment variable that a shell sets when it asks for completions


def complete(parser: argparse.ArgumentParser) -> None:
    """Print the completions for a shell and end the process."""
    argcomplete = require_package("argcomplete", "completion in a shell", "completion")
    for action, kind in _arguments(parser):
        if action.dest == "scenario":
            action.completer = lambda prefix, kind=kind, **_: scenario_words(prefix, kind)
        elif action.dest in ("set", "search"):
            action.completer = lambda prefix, **_: set_words(prefix)
        elif action.dest in ("folder", "ours", "theirs", "out"):
            action.completer = argcomplete.DirectoriesCompleter()
    argcomplete.autocomplete(parser)


def _arguments(parser: argparse.ArgumentParser) -> Iterator[tuple[Any, ShippedKind]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb, inner in action.choices.items():
                kind: ShippedKind = "bench" if verb == "bench" else "scenario"
                yield from ((own, kind) for own in inner._actions)


def scenario_words(prefix: str, kind: ShippedKind) -> list[str]:
    """Return the shipped names, TOML files and folders that begin with `prefix`."""
    names = [name for name in shipped_names(kind) if name.startswith(prefix)]
    return sorted(names) + list(_files(prefix))


def _files(prefix: str) -> Iterator[str]:
    folder, _, start = prefix.rpartition("/")
    place = Path(f"{folder}/" if folder or prefix.startswith("/") else ".").expanduser()
    try:
        found = sorted(os.scandir(place), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in found:
        if entry.name.startswith(start) and (start or not entry.name.startswith(".")):
            shown = f"{folder}/{entry.name}" if "/" in prefix else entry.name
            if entry.is_dir():
                yield f"{shown}/"
            elif entry.name.endswith(TOML_SUFFIX):
                yield shown


def set_words(prefix: str) -> list[str]:
    """Return the keys of a scenario that begin with `prefix`, each with ``=``."""
    return [f"{key}=" for key in keys_of(Scenario) if key.startswith(prefix)]


def keys_of(section: type[BaseModel], path: str = "") -> Iterable[str]:
    """Yield the dotted keys of a section and its subsections."""
    for name, field in section.model_fields.items():
        inner = None if get_origin(field.annotation) is list else section_class(field.annotation)
        if inner is None:
            yield f"{path}{name}"
        else:
            yield from keys_of(inner, f"{path}{name}.")
