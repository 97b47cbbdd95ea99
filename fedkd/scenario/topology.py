"""The table of a scenario that says who hears whom."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedkd.scenario.sections import Section


class Topology(Section):
    """Who hears whom. Beside a star there is no server: clients send what they know to each other."""

    graph: Literal[
        "star",
        "ring",
        "k_regular",
        "random_regular",
        "matching",
        "one_peer_exponential",
        "complete",
        "file",
    ] = "star"
    """`star`: a server hears everybody. Without one: `ring` (client n hears n ± 1); `k_regular` (n ± 1 … n ±
    k/2); `random_regular` (k/2 random rings one upon the other, drawn each round); `matching` (random pairs,
    drawn each round); `one_peer_exponential` (in round t client n hears n + 2^((t − 1) mod ⌈log₂ N⌉) alone);
    `complete`; `file` (as `path` says)."""
    k: Annotated[int, Field(ge=2)] | None = None
    """Others that each client hears in `k_regular` and `random_regular`, an even number below N; absent: 4.
    Random rings may have a link in common, so that somebody hears fewer."""
    order: Literal["numbered", "shuffled"] = "numbered"
    """Who sits where in `ring`, `k_regular` and `one_peer_exponential`: by client number, or as it is drawn
    once for the run."""
    path: str | None = None
    """JSON file with whom each client hears (`file`): `{"hears": [[1, 2], [0], [0]]}`, or with such a list
    for each round, taken in turn, `{"rounds": [[…], […]]}`; or what a run has left in `topology.json`."""
    mixing: Literal["metropolis", "push_sum"] | None = None
    """How weights of models are mixed (`gossip`): `metropolis`, 1 / (1 + the larger number of links), where
    everyone is heard by those whom it hears; `push_sum` needs no such thing. Absent: `metropolis` in every
    round in which it can be."""
    relay: bool = False
    """Whether clients also pass on what they have heard from others, the newest of each: what is said goes
    one link further every round. The strategy weighs it by its age, so it needs a `stale_decay`."""
