"""The limit on a process's address space (`ulimit -v`), under which libraries abort instead of raising."""

import resource

from fedkd.errors import RunFailed

LEAST_BYTES = 800_000 * 1024
"""Below it torch cannot be loaded, or a library in Rust ends the process with SIGABRT."""


def limited_to() -> str | None:
    """Return the limit in words; None: there is none."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else f"{soft / 1e6:,.0f} MB (ulimit -v {soft // 1024})"


def check_address_space() -> None:
    """Raise `RunFailed` if the limit is so low that the run could only end by an abort."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY and soft < LEAST_BYTES:
        raise RunFailed(
            f"this needs more memory than there is: the address space is limited to {limited_to()}, and torch"
            f" alone takes {LEAST_BYTES / 1e6:,.0f} MB"
        )
