"""README.md and docs/ match the package.

What runs them is `test_docs_run.py`, by name: ``-m docs``.
"""

from __future__ import annotations

import ast
import copy
import re
import sys
import tomllib
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from pkgutil import resolve_name
from typing import Any
from urllib.parse import urlsplit

import prose
import pytest
import tomli_w
import yaml
from conftest import digits_tables
from prose import DOCS, PAGES, REPOSITORY, Block

import fedkd
from fedkd.benchmark.runner import plan_bench
from fedkd.benchmark.schema import BenchFile
from fedkd.cli.main import _parser
from fedkd.continual.registry import LEARNERS
from fedkd.data.registry import DATASETS, PARTITIONS
from fedkd.errors import UserError
from fedkd.fusion.kinds import Kind
from fedkd.fusion.registry import STRATEGIES, make_strategy
from fedkd.models.registry import MODELS
from fedkd.plan.load import load_scenario
from fedkd.scenario.schema import Scenario
from fedkd.scenario.shipped_files import shipped_names
from fedkd.tuning.schema import load_search
from fedkd.tuning.trials import check_space

sys.path.append(str(REPOSITORY / "scripts"))
from reference import keys, markdown, outside, results, uploads
from reference.pages import PAGES as MADE

SECTION = (DOCS / "architecture.md").read_text(encoding="utf-8")
SECTION = SECTION.partition("## One client's round")[2].partition("\n## ")[0]
NAMES = re.findall(r"`([a-z_]+\.[a-z_]+\.[A-Za-z_.]+)`", SECTION)
LINKING = [*PAGES, *(REPOSITORY / name for name in ("CHANGELOG.md", "CONTRIBUTING.md"))]


def by_place(blocks: list[Block]) -> list:
    return [pytest.param(block, id=block.place) for block in blocks]


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


@cache
def made(page: str) -> str:
    """Return a page that is made of the code."""
    return MADE[page]()


def name_on_site(page: Path) -> str:
    """Return the path of a page below docs/; empty for other files."""
    return page.relative_to(DOCS).as_posix() if page.is_relative_to(DOCS) else ""


def text_of(page: Path) -> str:
    name = name_on_site(page)
    return made(name) if name in MADE else page.read_text(encoding="utf-8")


# The page on architecture -----------------------------------------------------------------------------------


def test_the_docs_describe_every_step_of_a_round():
    assert len(NAMES) > 25


@pytest.mark.parametrize("name", sorted(set(NAMES)))
def test_every_documented_step_exists(name):
    assert callable(resolve_name(f"fedkd.{name}"))


# Blocks of code ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_code_block_has_a_language(page):
    """Blocks that nobody recognises would be blocks that nobody runs."""
    found = list(prose.blocks(page))
    assert [block.place for block in found if block.language not in prose.LANGUAGES] == []
    fences = len(re.findall(r"^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert fences == 2 * len(found), "a fence is not closed, or is indented"
    files = [block.file for block in found if block.file is not None]
    assert len(set(files)) == len(files), "two blocks are the same file"


@pytest.mark.parametrize("block", by_place(prose.all_blocks("bash", "console")))
def test_documented_commands_parse(block):
    """Every word of `fedkd` is one that there is, and every file that it names too."""
    parser = _parser()
    for program, *rest in block.commands():
        why = prose.why_not_run([program, *rest])
        told = why is not None or program in ("fedkd", "python", "cmp")
        assert told, f"say in tests/support/prose.py why '{program}' is not run"
        if program != "fedkd":
            continue
        named = getattr(parser.parse_args(rest), "scenario", None)
        if named is not None and why is None:
            kind = "bench" if rest[0] == "bench" else "scenario"
            files = {other.file for other in prose.blocks(block.page)}
            assert named in files or named in shipped_names(kind) or (REPOSITORY / named).is_file(), named


@pytest.mark.parametrize("block", by_place(prose.all_blocks("python")))
def test_python_blocks_compile(block):
    ast.parse(block.text)


@pytest.mark.parametrize("block", by_place(prose.all_blocks("toml")))
def test_toml_blocks_load(block, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    prose.write_files(block.page, tmp_path)
    tables = tomllib.loads(block.text)
    if tables.keys() <= {"project", "tool"}:  # of a package
        return
    if "search" in tables:
        path = tmp_path / "search.toml"
        path.write_text(block.text, encoding="utf-8")
        check_space(load_search(path))
        return
    is_bench = bool(tables.keys() & (BenchFile.model_fields.keys() - Scenario.model_fields.keys()))
    if block.file is not None:
        path = tmp_path / block.file
        plan_bench(path) if is_bench else load_scenario(path)
        return
    if is_bench:  # a part of one, whatever it begins from
        tables.pop("base", None)
        path = tmp_path / "merged.toml"
        path.write_text(tomli_w.dumps({"scenario": digits_tables()} | tables), encoding="utf-8")
        plan_bench(path)
        return
    errors = list(errors_of(tables, tmp_path))
    assert None in errors, f"no scenario that it is a part of is one: {errors}"


STREAM = {"learner": "naive", "head": "task", "tasks": {"kind": "split", "count": 5}}
IN_TURN = STREAM | {"tasks": STREAM["tasks"] | {"order": "shuffled", "pace": "poisson"}}
BASES: list[dict[str, Any]] = [
    {},
    {"continual": STREAM},
    {"continual": IN_TURN},
    {"continual": STREAM | {"head": "class"}},
    {"continual": STREAM | {"learner": "fedweit"}},
    {"engine": {"kind": "ray"}, "data": {"clients": 10}},
]
"""What a fragment may be a part of, besides the scenario of the tests."""


def errors_of(fragment: dict[str, Any], folder: Path) -> Iterator[str | None]:
    """Yield what is wrong with each scenario that the fragment is put into; None: nothing."""
    for base in BASES:
        tables = merged(merged(digits_tables(), base), fragment)
        if "continual" in tables and "rounds" not in fragment:
            del tables["rounds"]
        path = folder / "merged.toml"
        path.write_text(tomli_w.dumps(tables), encoding="utf-8")
        try:
            load_scenario(path)
            yield None
        except UserError as error:
            yield str(error)


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Return tables in each other; another strategy, scheme or source begins without the first one's keys."""
    found = copy.deepcopy(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(found.get(key), dict)
        both = both and value.keys().isdisjoint({"strategy", "scheme", "source"})
        found[key] = merged(found[key], value) if both else value
    return found


def test_most_documented_commands_are_run():
    """The reasons are few, and none is there for nothing."""
    commands = [words for block in prose.all_blocks("bash", "console") for words in block.commands()]
    whys = [prose.why_not_run(words) for words in commands]
    assert set(prose.NOT_RUN.values()) - set(whys) == set()
    assert sum(why is not None for why in whys) < len(commands) / 3


# Links ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "page", [*LINKING, *(DOCS / name for name in MADE)], ids=lambda page: str(page.relative_to(REPOSITORY))
)
def test_links_have_existing_targets(page):
    text = re.sub(r"`[^`\n]*`", "", without_code(text_of(page)))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            parts = urlsplit(target)
            assert parts.scheme == "mailto" or (parts.scheme == "https" and "." in parts.netloc), target
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists() or name_on_site(there) in MADE, f"{target}: no such file"
        if anchor and there.suffix == ".md" and name_on_site(there) != "api.md":
            assert anchor in anchors(text_of(there)), f"{target}: no such heading"


@pytest.mark.parametrize(
    "page", sorted(DOCS.rglob("*.md")), ids=lambda page: str(page.relative_to(REPOSITORY))
)
def test_linked_markdown_files_are_pages_of_the_site(page):
    """The site carries other files along as they are, where the links of Markdown would lead nowhere."""
    linked = outside.targets(page.relative_to(DOCS).as_posix(), page.read_text(encoding="utf-8"))
    assert [target for target in linked if target.endswith(".md")] == []


def test_named_readme_sections_exist():
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    headings = set(re.findall(r"^#+ (.*)$", without_code(readme), flags=re.MULTILINE))
    for page in DOCS.rglob("*.md"):
        named = re.findall(r'README, "([^"]+)"', page.read_text(encoding="utf-8"))
        assert set(named) <= headings, f"{page.name} names a section that the README lacks"


def test_extras_install_from_a_clone():
    """No package index has fedkd yet, so `pip install 'fedkd[…]'` finds nothing."""
    texts = [*LINKING, *(REPOSITORY / "fedkd").rglob("*.py")]
    named = [
        path.name for path in texts if re.search(r"pip install '?fedkd", path.read_text(encoding="utf-8"))
    ]
    assert named == []


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings that the site and code hosts agree on."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", without_code(text), flags=re.MULTILINE):
        plain = re.sub(r"[^\w\s-]", "", heading.strip().lower()).strip()
        ascii_only = unicodedata.normalize("NFKD", plain).encode("ascii", "ignore").decode()
        site, host = re.sub(r"[-\s]+", "-", ascii_only), plain.replace(" ", "-")
        found |= {site} & {host}
    return found


def test_every_page_is_in_the_navigation():
    """A page that is missing here is one that nobody finds: put it under `nav` in mkdocs.yml."""

    def pages(entries: list[Any]) -> Iterator[str]:
        for entry in entries:
            (target,) = entry.values()
            yield from [target] if isinstance(target, str) else pages(target)

    named = list(pages(yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    written = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert sorted(named) == sorted(written | MADE.keys() | {"contributing.md", "changelog.md"})


# What is made of the code -----------------------------------------------------------------------------------


def test_a_docstring_becomes_markdown():
    class Described:
        """Return what it is, a `<thing>` <so>.

        As in::

            a  = b | c
              ↑ kept as it stands

        More ``code``.

        Args:
            nothing: Not shown.

        The end.
        """

    assert markdown.docstring(Described).splitlines() == [
        *(
            "What it is, a `<thing>` &lt;so>.",
            "",
            "As in:",
            "",
            "```text",
            "a  = b | c",
            "  ↑ kept as it stands",
            "```",
        ),
        *("", "More `code`.", "", "The end."),
    ]


def test_rows_of_a_removed_bench_are_reported():
    with pytest.raises(LookupError, match="no heading that becomes #gone"):
        results._table("benches.md", "gone")


@pytest.mark.parametrize(("page", "model"), [("scenario", Scenario), ("bench", BenchFile)])
def test_every_key_is_described(page, model):
    """In its section, with a description: a key without one would be a blank."""
    text = made(f"reference/{page}.md")
    for key in keys.keys(model):
        section, _, name = key.rpartition(".")
        title = f"## `[{section}]`\n" if section else "## At the top\n"
        (row,) = re.findall(rf"^\| `{name}` \|.*$", section_of(text, title), flags=re.MULTILINE)
        assert len(row.rstrip("| ").rpartition(" | ")[2]) > 5, f"{key} says nothing: {row}"


@pytest.mark.parametrize(
    ("page", "registry"),
    [("strategies", STRATEGIES), ("learners", LEARNERS), ("models", MODELS), ("datasets", DATASETS)],
)
def test_every_part_is_described(page, registry):
    text = made(f"reference/{page}.md")
    for name in registry.builtin:
        assert len(section_of(text, f"## {name}\n").strip()) > 40, name


def test_every_partition_is_described():
    text = made("reference/partitions.md")
    for name in PARTITIONS.builtin:
        assert re.search(rf"^\| `{name}` \| .{{10,}} \|$", text, flags=re.MULTILINE), name


def test_hyperparameters_are_documented_with_limits_and_defaults():
    knfu = section_of(made("reference/strategies.md"), "## knfu\n")
    assert "| `beta` | float ≥ 0 | `10.0` | β: how sharply" in knfu
    assert "arXiv 2403.11892" in knfu and "| 0.5 | knfu |" in knfu, "its paper, and its rows of our bench"
    assert '| `distribution` | "soft" \\| "hard"' in knfu


def test_documented_data_set_arguments_match_the_code():
    text = made("reference/datasets.md")
    assert "| `log_mean` | `4.0` | float |" in section_of(text, "## synthetic\n")
    assert "| `path` | absent | str |" in section_of(text, "## npz\n")
    assert "No arguments." in section_of(text, "## digits\n")


def test_every_verb_is_described():
    verbs = next(action.choices for action in _parser()._actions if action.choices)
    assert all(f"## fedkd {verb}\n" in made("reference/commands.md") for verb in verbs)


def test_documented_uploads_are_measured():
    text = made("reference/uploads.md")
    for name in STRATEGIES.builtin:
        assert f"[`{name}`](strategies.md#{name})" in text
    for row in (
        "[`knfu`](strategies.md#knfu) | `logits` | `transfer_logits` | [M, C] float32 | 4 · M · C |",
        "[`cfd`](strategies.md#cfd) | `votes` | `votes` | [M] uint8 | M |",
        "[`fedproto`](strategies.md#fedproto) | `prototypes` | `features` | [C, F] float32 | 4 · C · F |",
        "[`feddf`](strategies.md#feddf) | `parameters` | `weights` | [P + B] float32 | 4 · (P + B) |",
        "[`fedmask`](strategies.md#fedmask) | `mask` | `masks` | [⌈P/8⌉] uint8 | ⌈P/8⌉ |",
        "[`local`](strategies.md#local) | nothing |",
    ):
        assert row in text
    assert '| `distribution = "shared"` | `label_counts` [C] int64 |' in text


@pytest.mark.parametrize(
    ("strategy", "hyperparameters"),
    [("knfu", {"distribution": "shared"}), ("cfd", {}), ("fedproto", {}), ("feddf", {"server_epochs": 0})],
)
def test_documented_upload_bytes_equal_those_of_a_run(strategy, hyperparameters, digits_scenario, tmp_path):
    mlp = {"model": "mlp", "args": {"hidden": [16]}}
    fusion = {"strategy": strategy, **hyperparameters}
    tables = digits_scenario | {"rounds": 1, "clients": [mlp], "fusion": fusion}
    counted = fedkd.run(tables, out=tmp_path / "run", progress=False).summary["final"]["bytes_up"]
    sizes = {"M": 60, "C": 10, "F": 16, "P": 64 * 16 + 16 + 16 * 10 + 10, "B": 0}
    sent = uploads.sent_by(make_strategy(strategy, hyperparameters))
    told = [array.bytes.replace("·", "*") for array in sent if array.kind is not Kind.COUNTERS]
    assert counted == 4 * sum(eval(formula, sizes) for formula in told)


def test_every_kind_of_upload_is_documented():
    text = (DOCS / "privacy.md").read_text(encoding="utf-8")
    table = section_of(made("reference/uploads.md"), "## What the kinds are\n")
    kinds = re.findall(r"^\| `(\w+)` \| .{5,} \|$", table, flags=re.MULTILINE)
    assert kinds and [kind for kind in kinds if f"`{kind}`" not in text] == []


def section_of(text: str, title: str) -> str:
    assert title in text, title
    return re.split(r"^## ", text.partition(title)[2], flags=re.MULTILINE)[0]
