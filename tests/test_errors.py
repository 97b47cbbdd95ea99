"""Errors as lines: whatever somebody else's exception says, or does not say."""

from __future__ import annotations

import pytest

from fedkd.errors import LONGEST_LINE, described, one_line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("two\nlines,\t and more ", "two lines, and more"),
        ("\x1b[2J red \0", r"\x1b[2J red \x00"),
        ("half \udcff", r"half \udcff"),
        ("α ≥ 0", "α ≥ 0"),
    ],
)
def test_a_line_has_printable_letters_alone(text, line):
    assert one_line(text) == line
    assert one_line(text).encode()


def test_a_long_line_keeps_its_beginning_and_its_end():
    line = one_line(f"begins {'x' * 100_000} ends")
    assert len(line) == LONGEST_LINE
    assert line.startswith("begins xxx") and " … " in line and line.endswith("xxx ends")


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("no\nsuch width"), "ValueError: no"),
        (ValueError(), "ValueError"),
        (Mute(), "Mute: no word about it, its __str__ raised ValueError"),
    ],
)
def test_an_exception_is_described_by_its_first_line(error, words):
    assert described(error) == words
