"""Whether what clients send of their features can be compared at all."""

from __future__ import annotations

from collections.abc import Sequence

from fedkd.errors import UserError


def check_feature_widths(strategy: str, clients: Sequence[int], widths: Sequence[int]) -> None:
    """Check that all clients' features are equally wide.

    Args:
        strategy: Which needs it.
        clients: Client indices.
        widths: Of the features of each.

    Raises:
        UserError: They are not; it names one client of each width.
    """
    first: dict[int, int] = {}
    for client, width in zip(clients, widths, strict=True):
        first.setdefault(width, client)
    if len(first) > 1:
        seen = ", ".join(f"{width} (client {client})" for width, client in first.items())
        raise UserError(
            f"'{strategy}' needs models whose features are equally wide, got {seen}", key="clients.model"
        )
