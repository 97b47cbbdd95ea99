"""Who would have gained how much from whom, and who was expected to: `transferability/round-00003.npz`.

Arrays of a round, receivers first, float64 unless said; the same bytes in every repetition of a run:

    clients              [N]     who was measured, ascending, int64
    gain_local           [N, N]  change of accuracy on own test data, of a copy that learned from the sender
    gain_global          [N, N]  the same on the common test set
    predicted_NAME       [N, N]  what a predictor expected, in no unit; more is more
    complement_by_class  [N, N, C]  share of a class's transfer samples that the sender alone has right
    transfer_rate        [N, N]  share of these that the copy has right

The last two need labels of the transfer set. NaN: not defined.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fedkd.storage import NO_RUN, read_table, table_path, write_table

FOLDER = "transferability"
PREDICTED = "predicted_"


@dataclass(frozen=True, eq=False)
class TransferMap:
    """The transferability map of a round; tables are `[N, N]`, receivers first."""

    round: int
    clients: tuple[int, ...]  # the N clients that were measured
    gain_local: np.ndarray
    gain_global: np.ndarray
    predicted: Mapping[str, np.ndarray] = field(default_factory=dict)  # by predictor
    complement_by_class: np.ndarray | None = None  # [N, N, C]; None: labels are not known
    transfer_rate: np.ndarray | None = None  # None: labels are not known

    @property
    def gains(self) -> dict[Literal["local", "global"], np.ndarray]:
        """What was gained, by split."""
        return {"local": self.gain_local, "global": self.gain_global}


def write_transfer_map(folder: Path, found: TransferMap, run: str = NO_RUN) -> None:
    """Write a round's map into the folder of a run, whose scenario has the digest `run`."""
    tables: dict[str, Any] = {"gain_local": found.gain_local, "gain_global": found.gain_global}
    tables |= {f"{PREDICTED}{name}": table for name, table in found.predicted.items()}
    tables |= {"complement_by_class": found.complement_by_class, "transfer_rate": found.transfer_rate}
    known = {name: table.astype(np.float64) for name, table in tables.items() if table is not None}
    clients = np.array(found.clients, dtype=np.int64)
    write_table(table_path(folder / FOLDER, "round", found.round), {"clients": clients, **known}, run)


def read_transfer_map(folder: Path, round: int) -> TransferMap | None:
    """Return a round's map; None: there is none, or it cannot be read as such."""
    arrays = read_table(table_path(folder / FOLDER, "round", round))
    if arrays is None:
        return None
    try:
        clients = tuple(map(int, arrays.pop("clients")))
        if list(clients) != sorted(set(clients)) or min(clients, default=0) < 0:
            return None
        for name, table in arrays.items():
            shape = table.shape[:2] if name == "complement_by_class" else table.shape
            if table.dtype.kind != "f" or shape != (len(clients), len(clients)):
                return None
        local, common = arrays["gain_local"], arrays["gain_global"]
    except (ValueError, KeyError, TypeError):
        return None
    names = [name.removeprefix(PREDICTED) for name in arrays if name.startswith(PREDICTED)]
    predicted = {name: arrays[PREDICTED + name] for name in names}
    rest = arrays.get("complement_by_class"), arrays.get("transfer_rate")
    return TransferMap(round, clients, local, common, predicted, *rest)
