"""The documentation is run: every page from above to below in a folder of its own, the notebooks, the site.

By name, since it takes a minute: ``bash scripts/docs.sh test``, or ``python -m pytest -m docs``. What can be
told of blocks without running them is in `test_docs.py`.
"""

from __future__ import annotations

import contextlib
import filecmp
import http.server
import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import browsing
import numpy as np
import prose
import pytest
import tomli_w
from browsing import until
from conftest import digits_tables
from prose import PAGES, REPOSITORY, Block
from reports import undrawn, unrendered

from fedkd.cli.main import main
from fedkd.scenario.shipped_files import shipped_names

pytestmark = pytest.mark.docs

DATA = Path(os.environ.get("FEDKD_DATA") or REPOSITORY.parent / "shared" / "data").resolve()
TUTORIAL, DEPLOYMENT = prose.DOCS / "tutorial.md", prose.DOCS / "deployment.md"
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
TOLD = ("check", "list")
"""Verbs whose output is the same everywhere, so that what a page shows of it can be compared."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that a page's reader is in; what was imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDKD_DATA", str(DATA))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("MPLBACKEND", "agg")
    path, modules = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(tmp_path))
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_the_code_of_a_page_runs(page: Path, folder: Path):
    # The tutorial promises figures; drawing those of all pages takes longer than the pages themselves.
    with undrawn(), nullcontext() if page == TUTORIAL else unrendered():
        _run_page(page, folder)


def _run_page(page: Path, folder: Path) -> None:
    prose.write_files(page, folder)
    if page == DEPLOYMENT:
        write_what_was_agreed(folder)
    names: dict[str, Any] = {"__name__": "__page__"}
    for block in prose.blocks(page):
        if block.language == "python" and block.file is None:
            exec(compile(block.text, block.place, "exec"), names)
        for place, words in enumerate(block.commands() if block.language in ("bash", "console") else ()):
            run(words, place, block)
    if page == TUTORIAL:
        named = re.findall(r"\{(runs/[^}]+)\}", page.read_text(encoding="utf-8"))
        assert len(named) == 2 and all((folder / path).is_file() for path in [*named, "figure.pdf"])


def write_what_was_agreed(folder: Path) -> None:
    """Write what somebody has who joins a federation with samples of their own: images of two classes."""
    images = {name: np.full((6, 1, 8, 8), 0.5, np.float32) for name in ("transfer_x", "test_x", "x")}
    labels = {name: np.arange(6) % 2 for name in ("test_y", "y")}
    scale = {"mean": np.zeros((1, 1, 1), np.float32), "std": np.ones((1, 1, 1), np.float32)}
    of_all = ("transfer_x", "test_x", "test_y", "mean", "std")
    np.savez(folder / "agreed.npz", **{name: (images | labels | scale)[name] for name in of_all})
    np.savez(folder / "mine.npz", x=images["x"], y=labels["y"])
    (folder / "client-3").mkdir()
    (folder / "client-3" / "scenario.toml").write_text(tomli_w.dumps(digits_tables()), encoding="utf-8")


def run(words: list[str], place: int, block: Block) -> None:
    """Run one command of a block, on the inline engine."""
    program, *rest = words
    if prose.why_not_run(words) is not None or is_left_to_others(rest, block):
        return
    if program == "cmp":
        assert filecmp.cmp(*rest, shallow=False), f"{block.place}: {' '.join(words)}"
    elif program == "python":
        runpy.run_path(rest[0], run_name="__main__")
    else:
        assert program == "fedkd"
        said = fedkd(with_values(rest, block.values), block)
        if block.language == "console" and rest[0] in TOLD:
            lines = {line.rstrip() for line in said.splitlines()}
            assert [line for line in block.printed(place) if line.rstrip() not in lines] == [], block.place


def is_left_to_others(rest: list[str], block: Block) -> bool:
    """Whether it runs what is shipped: `test_scenarios.py` and `benchmark/` run each of these, shortened."""
    if rest[0] == "check" and not DATA.is_dir():  # pages of their own scenarios do without
        return rest[1].startswith("scenarios/")
    if block.values or rest[0] not in ("run", "bench"):
        return False
    kind = "bench" if rest[0] == "bench" else "scenario"
    return rest[1] in shipped_names(kind) or (REPOSITORY / rest[1]).is_file()


def with_values(rest: list[str], values: list[str]) -> list[str]:
    if rest[0] == "run":
        return [*rest, "--set", *values, "engine.kind=inline"]
    if rest[0] == "bench":
        return [*rest, "--set", *values, "parallel=false"]
    if rest[0] == "tune":  # of however many trials
        return [*rest, "--trials", "2", "--set", *values, "parallel=false"]
    return rest


def fedkd(words: list[str], block: Block) -> str:
    """Return what a command says; files of the repository are where the page says that they are."""
    words = [str(REPOSITORY / word) if word.startswith("scenarios/") else word for word in words]
    said, complained = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained):
        status = main(words)
    assert status == 0, f"{block.place}: fedkd {' '.join(words)}\n{said.getvalue()}{complained.getvalue()}"
    return said.getvalue()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as a reader builds it: a fresh clone, and the command of `scripts/docs.sh`.

    The clone holds the tracked files as they are now. Its environment is that of the tests.
    """
    pytest.importorskip("mkdocs")
    clone = tmp_path_factory.mktemp("clone")
    for name in tracked():
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, clone / name)
    python = clone / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    (clone / ".venv" / "installed-docs").touch()
    done = subprocess.run(
        ["bash", "scripts/docs.sh", "build"],
        cwd=clone,
        env=os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(clone)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return clone / "build" / "site"


def tracked() -> list[str]:
    """Return the files that git tracks and that are there."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("needs a clone, whose files git lists")
    return [name for name in listed.stdout.split("\0") if name and (REPOSITORY / name).is_file()]


def test_the_site_is_complete(site: Path):
    for page in ("index.html", "tutorial.html", "reference/strategies.html", "api.html", "changelog.html"):
        assert (site / page).is_file(), page
    assert 'id="fedkd.fusion.strategy.FusionStrategy.fuse"' in (site / "api.html").read_text(encoding="utf-8")
    assert (site / "repository" / "scripts" / "cluster" / "slurm.sh").is_file(), "files that pages link to"
    clusters = (site / "clusters.html").read_text(encoding="utf-8")
    assert clusters.count('<svg class="formula"') > 10 and "arithmatex" not in clusters


def test_the_site_loads_nothing_from_elsewhere(site: Path):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|iframe)[^>]+src="(https?:[^"]+)"', text)
        loaded += re.findall(r'<link[^>]+rel="(?:stylesheet|preconnect)"[^>]+href="(https?:[^"]+)"', text)
        assert loaded == [], page


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    yield from browsing.started()


@pytest.fixture(scope="module")
def served(site: Path) -> Iterator[str]:
    """The address of the site, served as its front page says."""
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=site)
    handler.log_message = lambda *arguments: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


SEARCH = "document.querySelector('.md-search__input')"


def test_search_finds_a_key_when_the_site_is_served(browser: Any, served: str):
    browsing.show(browser, f"{served}/index.html")
    assert browser.execute_script("return document.getElementById('serve').hidden")
    browser.execute_script(
        f"{SEARCH}.focus(); {SEARCH}.value = 'clients_per_round'; {SEARCH}.dispatchEvent(new Event('keyup'))"
    )
    until(browser, "document.querySelector('.md-search-result__item a[href*=\"reference/scenario\"]')")


def test_a_site_opened_as_files_explains_how_to_serve_it(browser: Any, site: Path):
    browsing.show(browser, (site / "index.html").as_uri())
    until(browser, "!document.getElementById('serve').hidden")


@pytest.mark.parametrize("size", [browsing.DESKTOP, browsing.PHONE])
def test_keys_of_the_reference_are_not_wrapped(browser: Any, site: Path, size: tuple[int, int]):
    for page in ("scenario", "bench", "strategies"):
        browsing.show(browser, (site / "reference" / f"{page}.html").as_uri(), size)
        keys = "[...document.querySelectorAll('.md-typeset td:first-child code')]"
        broken = f"return {keys}.filter(key => key.getClientRects().length > 1).map(key => key.textContent)"
        assert browser.execute_script(f"return {keys}.length") > 0
        assert browser.execute_script(broken) == []
        width = browser.execute_script("return document.documentElement.scrollWidth")
        assert width <= size[0], "tables scroll, pages do not"
