"""What a run has spent so far."""

import resource
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Totals:
    """What has been spent so far."""

    bytes_up: int = 0  # payload that clients have sent, to the server or, without one, to each other
    bytes_down: int = 0  # payload that the method has sent to clients, evaluations left out
    evaluation_bytes: int = 0  # payload sent to clients for evaluations alone
    seconds: float = 0.0  # wall-clock time of all rounds
    virtual_seconds: float = 0.0  # simulated time of all rounds, where there is a clock


def peak_memory_mb() -> float:
    """Return the largest memory this process has used, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3
