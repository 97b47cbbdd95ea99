"""Records of a fusion: weights between clients, and messages between them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedkd.fusion import BlockedWeights, Guidance, leave_one_out_is_cheap, leave_one_out_shift


@dataclass(frozen=True, eq=False)
class FusionReport:
    """Weights between N clients in a fusion, `[N, N]`, receiver first, and the distances behind them.

    Attributes:
        clients: The N clients whose knowledge was fused, some of it old; `present` took part in the round.
        left_out: Change of each receiver's guidance without each sender, `[N, N]` (see
            `fedkd.fusion.math.left_out`); None: unknown, or too many clients.
        heard: Share of predictions that filters keep; None: no filters.
    """

    clients: tuple[int, ...]
    weights: np.ndarray | BlockedWeights
    present: tuple[int, ...]
    distances: np.ndarray | None = None
    left_out: np.ndarray | None = None
    heard: float | None = None


@dataclass(frozen=True, eq=False)
class Links:
    """Messages between N clients in a round without a server, receiver first.

    `heard` `[N, N]` bool has a false diagonal; `sizes` `[N, N]` int64 are the bytes over each link.
    """

    clients: tuple[int, ...]
    heard: np.ndarray
    sizes: np.ndarray

    @property
    def total(self) -> int:
        return int(self.sizes.sum())


def report_of(
    guidance: Guidance,
    weights: np.ndarray | BlockedWeights,
    clients: tuple[int, ...],
    present: tuple[int, ...],
) -> FusionReport:
    """Return the report of some guidance with weights `[N, N]` among N clients."""
    mixed = guidance.mixed
    moves = None
    if mixed is not None and isinstance(weights, np.ndarray) and leave_one_out_is_cheap(mixed):
        moves = leave_one_out_shift(weights, mixed)
    return FusionReport(clients, weights, present, guidance.distances, moves)


def merged_reports(reports: Sequence[FusionReport]) -> FusionReport:
    """Merge reports on different clients in client order, without weights between them."""
    if len(reports) == 1:
        return reports[0]
    clients = sorted(client for report in reports for client in report.clients)

    def table(name: str) -> np.ndarray | None:
        found = [(report.clients, getattr(report, name)) for report in reports]
        parts = [(own, values) for own, values in found if values is not None]
        return _merged(clients, parts, np.nan) if parts else None

    weights = _merged(clients, [(report.clients, np.asarray(report.weights)) for report in reports], 0.0)
    told = [(report.heard, len(report.clients)) for report in reports if report.heard is not None]
    return FusionReport(
        clients=tuple(clients),
        weights=weights.astype(reports[0].weights.dtype),
        present=tuple(sorted(client for report in reports for client in report.present)),
        distances=table("distances"),
        left_out=table("left_out"),
        heard=sum(heard * n for heard, n in told) / sum(n for _, n in told) if told else None,
    )


def merged_links(links: Sequence[Links]) -> Links:
    if len(links) == 1:
        return links[0]
    clients = sorted(client for own in links for client in own.clients)
    heard = _merged(clients, [(own.clients, own.heard) for own in links], 0.0)
    sizes = _merged(clients, [(own.clients, own.sizes) for own in links], 0.0)
    return Links(tuple(clients), heard.astype(bool), sizes.astype(np.int64))


def _merged(
    clients: Sequence[int], parts: Sequence[tuple[Sequence[int], np.ndarray]], between: float
) -> np.ndarray:
    """Return tables of some clients each as one of all `[N, N]` float64, with `between` elsewhere."""
    # A client is in two parts if the cache has its knowledge of a former task; its last place counts.
    place = {client: position for position, client in enumerate(clients)}
    whole = np.full((len(clients), len(clients)), between)
    for own, values in parts:
        places = [place[client] for client in own]
        whole[np.ix_(places, places)] = values
    return whole
