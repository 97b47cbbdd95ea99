"""Errors that a user can fix, each with its exit status.

Raise them where the cause is known. The command line prints ``error: <one line>`` and leaves with
`exit_status`; a mistake in a scenario prints no traceback.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial


class FedkdError(Exception):
    """Base of every error that fedkd raises on purpose."""

    exit_status = 3


class UserError(FedkdError):
    """The user's input is wrong (exit status 2).

    Args:
        message: The error and the allowed values, e.g. ``must be ≥ 0, got -1``.
        key: Dotted scenario key (``fusion.beta``), when one is to blame.
        file: File the key stands in, when there is one.
    """

    exit_status = 2

    def __init__(self, message: str, *, key: str | None = None, file: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.key = key
        self.file = file

    def __str__(self) -> str:
        return ": ".join(part for part in (self.file, self.key, self.message) if part)

    def __reduce__(self) -> tuple[object, ...]:
        return partial(type(self), key=self.key, file=self.file), (self.message,)

    def at(self, *, key: str | None = None, file: str | None = None) -> UserError:
        """Return this error with `key` and `file` filled in where they are still unknown."""
        return type(self)(self.message, key=self.key or key, file=self.file or file)


@contextmanager
def blaming(*, key: str | None = None, file: str | None = None) -> Iterator[None]:
    """Fill in the key and the file of a `UserError` that leaves the block, where they are unknown."""
    try:
        yield
    except UserError as error:
        raise error.at(key=key, file=file) from error


def refuse_if(wrong: object, message: str, key: str | None, *, file: str | None = None) -> None:
    """Raise a `UserError` about a key if something is wrong with it."""
    if wrong:
        raise UserError(message, key=key, file=file)


class TrainingDiverged(FedkdError):
    """A loss stopped being a finite number."""


class RunFailed(FedkdError):
    """The run failed while running (exit status 3).

    Args:
        round: Round in which it happened, 1-based.
        details: The traceback, for the log file.
        diverged: True if training led to NaN: a result of the method, not an accident.
    """

    exit_status = 3

    def __init__(
        self,
        message: str,
        *,
        round: int | None = None,
        client: int | None = None,
        details: str = "",
        diverged: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.round = round
        self.client = client
        self.details = details
        self.diverged = diverged

    def __str__(self) -> str:
        where = [f"client {self.client}"] if self.client is not None else []
        where += [f"round {self.round}"] if self.round is not None else []
        return f"{', '.join(where)}: {self.message}" if where else self.message


class EngineLost(RunFailed):
    """Ray itself failed or never started; no client is to blame."""


class ActorsLost(EngineLost):
    """Clients' process or node is lost; the run can continue from the last checkpoint.

    `client` is the client at work in a process that died; None: a whole node was lost.
    """


class Interrupted(FedkdError):
    """The user stopped the run; its state is saved (exit status 130)."""

    exit_status = 130


LONGEST_LINE = 1000
"""Longest error in a message; a longer one keeps its beginning and end."""


def one_line(text: str) -> str:
    """Return a text as one line of printable characters, shortened to `LONGEST_LINE`."""
    line = "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape", "backslashreplace").decode()
        for letter in " ".join(text.split())
    )
    if len(line) <= LONGEST_LINE:
        return line
    end = LONGEST_LINE // 4
    return f"{line[: LONGEST_LINE - end - 3]} … {line[-end:]}"


def words_of(error: BaseException) -> str:
    """Return an exception's text, if it has one."""
    try:
        return str(error).strip()
    except Exception as failure:  # a foreign class, whose `__str__` may do anything
        return f"no text: its __str__ raised {type(failure).__name__}"


def described(error: BaseException) -> str:
    """Return an exception's kind and the first line of its text."""
    kind, words = type(error).__name__, words_of(error)
    return f"{kind}: {words.splitlines()[0]}" if words else kind


NEAR = 0.7
"""Least similarity of two names, from 0 to 1, for one to count as a misspelling of the other."""
MAX_LISTED_ITEMS = 30
"""Names that an error lists."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name nearest to a misspelt one, if any."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=NEAR)
    for other in known:  # of short names: the order of their letters, or one letter of three or more
        wrong = sum(a != b for a, b in zip(name, other, strict=False))
        if sorted(name) == sorted(other) or (len(name) == len(other) >= 3 and wrong == 1):
            near.append(other)
    return next(iter(near), None)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``did you mean 'x'?`` for the nearest known name, else the list of what is allowed."""
    known = sorted(known)
    near = nearest(name, known)
    if near is not None:
        return f"did you mean '{near}'?"
    more = f", … ({len(known)} in all)" if len(known) > MAX_LISTED_ITEMS else ""
    return f"allowed: {', '.join(known[:MAX_LISTED_ITEMS])}{more}" if known else "nothing is allowed here"


@contextmanager
def told_in_one_line() -> Iterator[None]:
    """Let a script end like the command line on errors that a user can fix."""
    try:
        yield
    except FedkdError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        raise SystemExit(error.exit_status) from None
