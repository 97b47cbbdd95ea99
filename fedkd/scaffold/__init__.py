"""``fedkd new``: write a working part with a scenario and a test."""

import sys
from collections.abc import Iterator
from importlib.resources import files
from importlib.util import find_spec
from keyword import iskeyword
from pathlib import Path
from string import Template
from typing import Literal, get_args

from fedkd.errors import UserError, refuse_if
from fedkd.scaffold.from_table import new_scenario as new_scenario
from fedkd.storage import expand_path

Kind = Literal["strategy", "model", "learner"]
KINDS: tuple[str, ...] = get_args(Kind)
FILES = {"module.py": "{name}.py", "scenario.toml": "{name}.toml", "test.py": "test_{name}.py"}
"""Templates and the names of their files."""
IMPORTED = (
    *("capabilities", "class_var", "field", "fusion_strategy", "guidance", "knowledge", "learner"),
    *("learner_context", "learner_state", "mapping", "step", "table_field", "tensor", "user_error"),
)
"""Names whose class would hide an import of a template."""
LONGEST_NAME = 100  # file systems allow names of 255 bytes


def new(kind: Kind, name: str, out: str | Path = ".") -> Iterator[str]:
    """Write ``NAME.py``, ``NAME.toml`` and ``test_NAME.py``; yield lines for the user.

    A class is called ``NAME`` in camel case. The folder `out` is created if it is missing.

    Raises:
        UserError: The name is taken or not a module name, files exist, or the folder is not writable.
    """
    _check_spelling(kind, name)
    folder = expand_path(out, key="--out")
    made = {folder / target.format(name=name): source for source, target in FILES.items()}
    for path in made:
        if path.exists():
            raise UserError("already exists; choose another name or another --out", file=str(path))
    _check_free(kind, name)
    words = {"name": name, "Class": "".join(part.capitalize() for part in name.split("_"))}
    templates = files(__name__) / "templates" / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, source in made.items():
            text = Template((templates / f"{source}.template").read_text(encoding="utf-8"))
            path.write_text(text.substitute(words), encoding="utf-8")
            yield f"wrote {path}"
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", file=str(error.filename or folder)) from error
    module, scenario, test = made
    yield f"next: edit {module}"
    yield f"      python -m pytest {test}"
    yield f"      fedkd run {scenario}"


def _check_spelling(kind: Kind, name: str) -> None:
    if not name.isidentifier() or not name.isascii() or iskeyword(name) or name != name.lower():
        told = f"a {kind}'s name must be lower-case letters, digits and '_', starting with a letter,"
        raise UserError(f"{told} got {name!r}", key="NAME")
    refuse_if(
        len(name) > LONGEST_NAME, f"must have at most {LONGEST_NAME} characters, got {len(name)}", "NAME"
    )
    refuse_if(name.startswith(("_", "test_")), f"must not start with '_' or 'test_', got {name!r}", "NAME")


def _check_free(kind: Kind, name: str) -> None:
    from fedkd.continual import LEARNERS
    from fedkd.fusion import STRATEGIES
    from fedkd.models import MODELS

    if name in {"strategy": STRATEGIES, "model": MODELS, "learner": LEARNERS}[kind].names():
        raise UserError(f"a {kind} named '{name}' already exists (fedkd list)", key="NAME")
    refuse_if(name in IMPORTED, f"the file already imports a class of the name '{name}'", "NAME")
    # A file with the name of an installed module would hide it, or never be imported.
    if name in sys.stdlib_module_names or find_spec(name) is not None:
        raise UserError(f"a module named '{name}' already exists", key="NAME")
