"""What a run has spent so far."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Totals:
    """What has been spent so far."""

    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0
