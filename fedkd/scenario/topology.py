"""The table of a scenario that says who hears whom."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedkd.scenario.sections import Section


class Topology(Section):
    """Who hears whom. Beside a star there is no server: clients send what they know to each other."""

    graph: Literal[
        "star", "ring", "k_regular", "random_regular", "matching", "one_peer_exponential", "complete", "file"
    ] = "star"
    """`star`: a server hears everybody. Without one: `ring` (client n hears n ± 1); `k_regular` (n ± 1 … n ±
    k/2); `random_regular` (k/2 random rings one upon the other, drawn each round); `matching` (random pairs,
    drawn each round); `one_peer_exponential` (in round t client n hears n + 2^((t − 1) mod ⌈log₂ N⌉) alone);
    `complete`; `file` (as `path` says)."""
    k: Annotated[int, Field(ge=2)] | None = None
    """Others that a client hears in `k_regular` and `random_regular`, even and below N (fewer where random
    rings share links); absent: 4."""
    order: Literal["numbered", "shuffled"] = "numbered"
    """Seats in `ring`, `k_regular` and `one_peer_exponential`: by client number, or drawn once for the
    run."""
    path: str | None = None
    """JSON file with whom each client hears (`file`): `{"hears": [[1, 2], [0], [0]]}`, or with such a list
    for each round, taken in turn, `{"rounds": [[…], […]]}`; or what a run has left in `topology.json`."""
    mixing: Literal["metropolis", "push_sum"] | None = None
    """How `gossip` mixes weights: `metropolis`, 1 / (1 + the larger number of links), needs links both
    ways; `push_sum` does not. Absent: `metropolis` in every round that allows it."""
    relay: bool = False
    """Whether clients pass on the newest that they heard of others, one link a round. The strategy weighs
    it by its age, so it needs a `stale_decay`."""
