"""What every command owes its user, whatever it was given."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator

from campaign.sandbox import Outcome

STATUSES = (0, 2, 3, 130)
MOST_LINES = 3
WARNING = re.compile(r"^.*\b\w*Warning: .*$", re.MULTILINE)
OURS = re.compile(r"/(fedkd|torch|numpy|sklearn|PIL|flwr|ray)/")
"""Where a warning must not come from; what a user's own plug-in warns of is the user's to read."""


def complaints(outcome: Outcome, *, stopped_by: int | None = None) -> Iterator[str]:
    """Yield what a command did that none may do.

    Args:
        outcome: How it ended.
        stopped_by: The signal that it was sent from outside, if any: it may have died of it.
    """
    status, errors = outcome.status, outcome.stderr
    died = stopped_by is not None and status == -stopped_by
    if status == -signal.SIGKILL and not died:
        yield "it had to be killed: it does not end when it is asked to"
    elif status not in STATUSES and not died:
        yield f"exit status {status}"
    if "Traceback (most recent call last)" in outcome.stdout + errors:
        yield "a traceback"
    if "internal error" in errors:
        yield "an internal error"
    told = [line for line in errors.splitlines() if line.startswith("error: ")]
    if status in (2, 3, 130) and len(told) != 1:
        yield f"{len(told)} lines begin with 'error: '"
    if status in (2, 3, 130) and len(errors.splitlines()) > MOST_LINES:
        yield f"{len(errors.splitlines())} lines on standard error"
    if status == 0 and told:
        yield "an error, and exit status 0"
    for line in WARNING.findall(errors):
        if OURS.search(line):
            yield f"a warning: {line.strip()}"
            break
    if outcome.strays:
        yield f"written or removed outside the run folder: {', '.join(outcome.strays[:5])}"
