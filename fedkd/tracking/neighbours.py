"""Tables of a round about pairs of clients, receivers first, as `.npz` files.

`fusion/round-00003.npz` holds the fusion weights between clients:

    clients    [N]     clients whose knowledge was fused, ascending
    weights    [N, N]  weight of each sender in each receiver's targets
    distances  [N, N]  distances behind the weights, if the strategy has any
    left_out   [N, N]  change of a receiver's targets without the sender, if computed

Above `MOST_WHOLE` clients each receiver keeps its `KEPT` largest weights: tables are `[N, KEPT]`, and
`senders` `[N, KEPT]` names the client of each entry.

`fusion/links-00003.npz` holds the traffic over each link in a run without a server:

    clients   [N]  participants, ascending
    receiver  [L]
    sender    [L]
    bytes     [L]  sent over the link

`transferability/round-00003.npz` holds measured and predicted gains between clients, in float64:

    clients              [N]     measured clients, ascending, int64
    gain_local           [N, N]  change of local test accuracy of a copy that distilled the sender
    gain_global          [N, N]  the same on the common test set
    predicted_NAME       [N, N]  score of a predictor, without a unit; higher predicts more gain
    complement_by_class  [N, N, C]  share of a class's transfer samples that only the sender classifies right
    transfer_rate        [N, N]  share of these that the copy classifies right

The last two need labels of the transfer set. Undefined entries are NaN.

All files have the same bytes in every repetition of a run; `fedkd.storage.digests` adds digests.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fedkd.fusion import KEPT, BlockedWeights, largest
from fedkd.storage import NO_RUN_DIGEST, read_table, table_path, write_table

FUSION_STEM, TRANSFERABILITY_FOLDER = "fusion", "transferability"
MOST_WHOLE = 500  # most clients for whole tables, of a megabyte each
PREDICTED = "predicted_"
WRONG = (ValueError, KeyError, TypeError)  # errors of missing or malformed tables


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Fusion weights of a round; tables are `[N, N]`, or `[N, K]` with `senders`."""

    round: int
    clients: tuple[int, ...]  # the N clients whose knowledge was fused
    weights: np.ndarray
    distances: np.ndarray | None = None
    left_out: np.ndarray | None = None
    senders: np.ndarray | None = None  # client of every column, by row; None if columns are the clients


def write_neighbours(
    folder: Path,
    round: int,
    clients: Sequence[int],
    weights: np.ndarray | BlockedWeights,
    distances: np.ndarray | None = None,
    left_out: np.ndarray | None = None,
    *,
    run: str = NO_RUN_DIGEST,
) -> None:
    """Write a round's tables `[N, N]` into a run folder; `run` is the digest of the run."""
    path = table_path(folder / FUSION_STEM, "round", round)
    names = np.array(clients)
    if isinstance(weights, BlockedWeights):
        tables = {"weights": weights.weights, "distances": weights.distances}
        return write_table(path, {"clients": names, **tables, "senders": names[weights.senders]}, run)
    known = _known(np.float32, {"weights": weights, "distances": distances, "left_out": left_out})
    arrays: dict[str, Any] = {"clients": names, **known}
    if len(clients) > MOST_WHOLE:
        places = largest(known["weights"], KEPT)
        arrays = {name: np.take_along_axis(table, places, axis=1) for name, table in known.items()}
        arrays |= {"clients": names, "senders": names[places]}
    return write_table(path, arrays, run)


def read_neighbours(folder: Path, round: int) -> Neighbours | None:
    """Return a round's tables; None if they are missing or malformed."""
    arrays = read_table(table_path(folder / FUSION_STEM, "round", round)) or {}
    with suppress(*WRONG):
        clients = tuple(map(int, arrays["clients"]))
        weights, senders = arrays["weights"], arrays.get("senders")
        tables = [weights, *(arrays[name] for name in ("distances", "left_out", "senders") if name in arrays)]
        shape = (len(clients), len(clients) if senders is None else weights.shape[-1])
        if all(table.shape == shape and table.dtype.kind in "fiu" for table in tables):
            told = arrays.get("distances"), arrays.get("left_out"), senders
            return Neighbours(round, clients, weights, *told)
    return None


@dataclass(frozen=True, eq=False)
class LinkTable:
    """Traffic between clients in a round."""

    round: int
    clients: tuple[int, ...]  # the N clients that took part
    heard: np.ndarray  # links, receiver first, [N, N] bool; the diagonal is false
    sizes: np.ndarray  # bytes over each link, [N, N] int64


def write_links(
    folder: Path,
    round: int,
    clients: Sequence[int],
    heard: np.ndarray,
    sizes: np.ndarray,
    run: str = NO_RUN_DIGEST,
) -> None:
    """Write a round's links (see `LinkTable`) into a run folder."""
    names, links = np.array(clients), np.nonzero(heard)
    receiver, sender = (names[places] for places in links)
    sent = sizes[links].astype(np.int64)
    arrays = {"clients": names, "receiver": receiver, "sender": sender, "bytes": sent}
    write_table(table_path(folder / FUSION_STEM, "links", round), arrays, run)


def read_links(folder: Path, round: int) -> LinkTable | None:
    """Return a round's links; None if they are missing or malformed."""
    arrays = read_table(table_path(folder / FUSION_STEM, "links", round)) or {}
    with suppress(*WRONG):
        names, *links = (arrays[name] for name in ("clients", "receiver", "sender", "bytes"))
        receiver, sender, sizes = links
        whole = all(array.ndim == 1 and array.dtype.kind in "iu" for array in (names, *links))
        alike = whole and len(receiver) == len(sender) == len(sizes)
        if alike and np.isin([*receiver, *sender], names).all():
            heard = np.zeros((len(names), len(names)), dtype=bool)
            table = np.zeros(heard.shape, dtype=np.int64)
            places = np.searchsorted(names, receiver), np.searchsorted(names, sender)
            heard[places], table[places] = True, sizes
            return LinkTable(round, tuple(map(int, names)), heard, table)
    return None


@dataclass(frozen=True, eq=False)
class TransferMap:
    """The transferability map of a round; tables are `[N, N]`, receivers first."""

    round: int
    clients: tuple[int, ...]  # the N clients that were measured
    gain_local: np.ndarray
    gain_global: np.ndarray
    predicted: Mapping[str, np.ndarray] = field(default_factory=dict)  # by predictor
    complement_by_class: np.ndarray | None = None  # [N, N, C]; None without labels
    transfer_rate: np.ndarray | None = None  # None without labels

    @property
    def gains(self) -> dict[Literal["local", "global"], np.ndarray]:
        """Measured gains by split."""
        return {"local": self.gain_local, "global": self.gain_global}


def write_transfer_map(folder: Path, found: TransferMap, run: str = NO_RUN_DIGEST) -> None:
    """Write a round's map into a run folder; `run` is the digest of the run."""
    tables: dict[str, Any] = {"gain_local": found.gain_local, "gain_global": found.gain_global}
    tables |= {f"{PREDICTED}{name}": table for name, table in found.predicted.items()}
    tables |= {"complement_by_class": found.complement_by_class, "transfer_rate": found.transfer_rate}
    arrays = {"clients": np.array(found.clients, dtype=np.int64), **_known(np.float64, tables)}
    write_table(table_path(folder / TRANSFERABILITY_FOLDER, "round", found.round), arrays, run)


def read_transfer_map(folder: Path, round: int) -> TransferMap | None:
    """Return a round's map; None if it is missing or malformed."""
    arrays = read_table(table_path(folder / TRANSFERABILITY_FOLDER, "round", round)) or {}
    with suppress(*WRONG):
        clients = tuple(map(int, arrays.pop("clients")))
        if list(clients) != sorted(set(clients)) or min(clients, default=0) < 0:
            return None
        for name, table in arrays.items():
            shape = table.shape[:2] if name == "complement_by_class" else table.shape
            if table.dtype.kind != "f" or shape != (len(clients), len(clients)):
                return None
        gains = arrays["gain_local"], arrays["gain_global"]
        predicted = {
            name.removeprefix(PREDICTED): table
            for name, table in arrays.items()
            if name.startswith(PREDICTED)
        }
        rest = arrays.get("complement_by_class"), arrays.get("transfer_rate")
        return TransferMap(round, clients, *gains, predicted, *rest)
    return None


def _known(kind: type, tables: Mapping[str, np.ndarray | None]) -> dict[str, np.ndarray]:
    """Return the tables that are not None, converted to a dtype."""
    return {name: table.astype(kind) for name, table in tables.items() if table is not None}
