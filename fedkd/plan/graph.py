"""The graph of communicating clients, drawn or read from a file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedkd.errors import UserError, described, refuse_if
from fedkd.randomness import numpy_generator
from fedkd.scenario import Scenario, read_client_file
from fedkd.storage import parse_json

MOST_CLIENTS = 10_000  # most clients of a graph: its matrix takes N² bytes
DEFAULT_NEIGHBOURS = 4
DRAWN_EACH_ROUND = ("random_regular", "matching")
PLACED = ("ring", "k_regular", "one_peer_exponential")  # graphs that depend on the order of clients
WITH_K = ("k_regular", "random_regular")
ORDERS = ("numbered", "shuffled")

Hears = tuple[tuple[int, ...], ...]  # senders of each client, ascending


@dataclass(frozen=True)
class Graph:
    """Links among N clients over a run; kind `file` cycles through `listed`."""

    clients: int
    kind: str
    seed: int
    k: int = DEFAULT_NEIGHBOURS
    order: str = "numbered"
    listed: tuple[Hears, ...] = ()

    def edges(self, round: int) -> np.ndarray:
        """Return a round's links, receiver first, `[N, N]` bool with a true diagonal."""
        clients = self.clients
        heard = np.eye(clients, dtype=bool)
        match self.kind:
            case "complete":
                heard[:] = True
            case "ring":
                self._link_around(heard, 1)
            case "k_regular":
                for distance in range(1, self.k // 2 + 1):
                    self._link_around(heard, distance)
            case "random_regular":
                generator = numpy_generator(self.seed, "edges", round=round)
                for _ in range(self.k // 2):
                    around = generator.permutation(clients)
                    heard[around, np.roll(around, 1)] = True
                    heard[np.roll(around, 1), around] = True
            case "matching":
                order = numpy_generator(self.seed, "edges", round=round).permutation(clients)
                one, other = order[0 : clients - 1 : 2], order[1::2]
                heard[one, other] = heard[other, one] = True
            case "one_peer_exponential":
                seats, steps = self._seats(), max((clients - 1).bit_length(), 1)
                heard[seats, np.roll(seats, -(2 ** ((round - 1) % steps)))] = True
            case "file":
                for client, others in enumerate(self.listed[(round - 1) % len(self.listed)]):
                    heard[client, list(others)] = True
            case _:
                raise ValueError(f"no graph '{self.kind}'")
        return heard

    @property
    def stays(self) -> bool:
        """True if links are the same in every round."""
        return self.period == 1

    @property
    def period(self) -> int | None:
        """Rounds after which links repeat; None if they are drawn each round."""
        if self.kind in DRAWN_EACH_ROUND:
            return None
        if self.kind == "one_peer_exponential":
            return max((self.clients - 1).bit_length(), 1)
        return max(len(self.listed), 1)

    def _seats(self) -> np.ndarray:
        if self.order == "shuffled":
            return numpy_generator(self.seed, "edges").permutation(self.clients)
        return np.arange(self.clients)

    def _link_around(self, heard: np.ndarray, distance: int) -> None:
        seats = self._seats()
        heard[seats, np.roll(seats, distance)] = True
        heard[seats, np.roll(seats, -distance)] = True

    def to_json(self) -> str:
        """Return the graph as JSON, which `from_json` reads back."""
        table = {"clients": self.clients, "graph": self.kind, "seed": self.seed, "k": self.k}
        listed = {"rounds": self.listed} if self.listed else {}
        return json.dumps(table | {"order": self.order} | listed) + "\n"

    @staticmethod
    def from_json(text: str, *, file: str | None = None) -> Graph:
        """Return a graph from `to_json`, or from a table with ``hears`` or ``rounds``."""
        try:
            table = parse_json(text)
            if not isinstance(table, dict):
                raise ValueError("must be a table with 'hears' or 'rounds'")
            kind = table.get("graph", "file")
            if kind == "file":
                rounds = table["rounds"] if "rounds" in table else [table["hears"]]
                if not isinstance(rounds, list) or not rounds:
                    raise ValueError("'rounds' must list the senders of each client for at least one round")
                listed = tuple(_read_hears(hears) for hears in rounds)
                if len({len(hears) for hears in listed}) > 1:
                    raise ValueError("all rounds must have the same number of clients")
                return Graph(len(listed[0]), "file", int(table.get("seed", 0)), listed=listed)
            numbers = {name: table[name] for name in ("clients", "seed", "k")}
            if any(type(number) is not int for number in numbers.values()):
                raise ValueError("clients, seed and k must be integers")
            graph = Graph(kind=str(kind), order=table["order"], **numbers)
            if graph.order not in ORDERS:
                raise ValueError(f"order must be one of {', '.join(ORDERS)}")
            if (problem := _misfit(graph.kind, graph.clients, graph.k)) is not None:
                raise ValueError(problem)
            graph.edges(1)
        except KeyError as error:
            raise UserError(f"not a graph: {error} is missing", file=file) from None
        except (ValueError, TypeError, OverflowError) as error:
            raise UserError(f"not a graph: {described(error)}", file=file) from None
        return graph


def draw_graph(scenario: Scenario) -> Graph | None:
    """Return the graph of a scenario; None with a server."""
    topology, clients = scenario.topology, scenario.data.clients
    if topology.graph == "star":
        return None
    told = f"a graph has at most {MOST_CLIENTS:,} clients, but data.clients is {clients:,}"
    refuse_if(clients > MOST_CLIENTS, told, "topology.graph")
    if topology.graph == "file":
        key, search = "topology.path", map(Path, scenario.plugin_path)
        if topology.path is None:
            raise UserError("missing; graph 'file' needs a JSON file with each client's senders", key=key)
        return read_client_file(topology.path, clients, search, Graph.from_json, key=key)[0]
    k = DEFAULT_NEIGHBOURS if topology.k is None else topology.k
    if (problem := _misfit(topology.graph, clients, k)) is not None:
        raise UserError(problem, key="topology.k")
    return Graph(clients, topology.graph, scenario.seed, k, topology.order)


def _misfit(kind: str, clients: int, k: int) -> str | None:
    """Return the reason why a graph cannot have so many clients, if any."""
    if clients < 1:
        return f"a graph needs at least one client, got {clients}"
    if kind not in WITH_K:
        return None
    if k < 2 or k % 2:
        return f"must be even, as each link needs its mirror image, got {k}"
    if k >= clients:
        return f"must be < {clients}, the number of clients, got {k}"
    return None


def _read_hears(hears: object) -> Hears:
    """Return the checked senders of each client in a round, without itself."""
    if not isinstance(hears, list) or not hears or not all(isinstance(own, list) for own in hears):
        raise ValueError("must have one list of senders per client")
    found = []
    for client, own in enumerate(hears):
        for other in own:
            if type(other) is not int or not 0 <= other < len(hears):
                raise ValueError(f"client {client} has the sender {other!r}; clients are 0..{len(hears) - 1}")
        if len(set(own)) < len(own):
            raise ValueError(f"client {client} has a sender twice")
        found.append(tuple(sorted(set(own) - {client})))
    return tuple(found)
