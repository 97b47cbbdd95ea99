"""The page on architecture names functions that exist."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parent.parent / "docs" / "architecture.md"
SECTION = PAGE.read_text(encoding="utf-8").partition("## One client's round")[2].partition("\n## ")[0]
NAMES = re.findall(r"`([a-z_]+\.[a-z_]+\.[A-Za-z_.]+)`", SECTION)


def test_the_round_is_told():
    assert len(NAMES) > 25


@pytest.mark.parametrize("name", sorted(set(NAMES)))
def test_every_step_exists(name):
    room, module, *path = name.split(".")
    found = import_module(f"fedkd.{room}.{module}")
    for part in path:
        found = getattr(found, part)
    assert callable(found)
