"""Exceptions become one readable line on standard error."""

from __future__ import annotations

import pytest

from fedkd.errors import LONGEST_LINE, UserError, described, one_line, told_in_one_line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("two\nlines,\t and more ", "two lines, and more"),
        ("\x1b[2J red \0", r"\x1b[2J red \x00"),
        ("half \udcff", r"half \udcff"),
        ("α ≥ 0", "α ≥ 0"),
    ],
)
def test_an_error_line_has_printable_characters_only(text, line):
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
        (Mute(), "Mute: no text: its __str__ raised ValueError"),
    ],
)
def test_an_exception_is_described_by_the_first_line_of_its_text(error, words):
    assert described(error) == words


def test_a_script_exits_with_one_line_and_the_status_of_the_error(capsys):
    with pytest.raises(SystemExit) as end, told_in_one_line():
        raise UserError("must be ≥ 1,\ngot 0", key="rounds")
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: rounds: must be ≥ 1, got 0\n"
    with pytest.raises(ZeroDivisionError), told_in_one_line():
        raise ZeroDivisionError
