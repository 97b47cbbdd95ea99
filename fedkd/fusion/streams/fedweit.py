"""FedWeIT's server and messages; the learner is `fedkd.continual.adapters.fedweit`."""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from fedkd.continual import Layout
from fedkd.fusion import Capabilities, FusionStrategy, Guidance, Kind, Knowledge, LocalObjective
from fedkd.fusion.views import Arrays, ClientView, Network, ServerModels
from fedkd.plugins import hyperparameters
from fedkd.storage import add_prefix, strip_prefix

BASE, UNITS = "base", "units"
"""Numbers of some units of the base, side by side, float32; which units these are, a bit each."""
PARTS, PART_BITS, TASKS = "parts", "part_bits", "tasks"
"""Nonzero values of a client's parts; their places, a bit each ``[n, ⌈P/8⌉]``; each part's task ``[n]``."""
KNOWN = "known/"
"""Parts of others, ``known/{client}/{task}/`` `values`, `bits` and `stamp`, the fusion they arrived in."""
FAN_IN, FUSIONS, LAST = "fan_in", "fusions", "last"
TOLD = "told"


@hyperparameters
class FedWeIT(LocalObjective, FusionStrategy):
    """Average each unit of the base over its senders; send each client's parts to all others.

    ::

        client n:  the rows of B of the `keep` share of each layer's units with the largest mask m_t
                   A_t, once the task is over                                              sparse
        server:    B_u ← mean over the clients that sent unit u; other units stay
                   the knowledge base ← A_t of (n, t)
        client n:  B_u ← the server's, for every unit that was sent, when its next training begins;
                   parts of the others, each once

    An average changes a client only when it trains again, so an average cannot erase the task before its end.

    The paper averages ``B ⊙ m_t``, but masks below 1 shrink such a base round by round. So clients send the
    base itself where the mask is large, as in the authors' code, which ranks units by the size of the score.
    All begin with one base. An absent client receives the whole base, and all parts that it has missed.
    """

    name: ClassVar[str] = "fedweit"
    capabilities: ClassVar[Capabilities] = Capabilities(
        sends="the weights of units that a mask keeps, and sparse parts of tasks",
        kinds={
            BASE: Kind.WEIGHTS,
            UNITS: Kind.INDICES,
            PARTS: Kind.WEIGHTS,
            PART_BITS: Kind.INDICES,
            TASKS: Kind.INDICES,
        },
        shapes={BASE: "b", UNITS: "U", PARTS: "p", PART_BITS: "t Q", TASKS: "t"},
        receives={BASE: "b", UNITS: "U", KNOWN + "*": "*"},
        guides="each",
        needs={"gradients", "weights", "one_architecture"},
        uses_transfer_set=False,
        learner="fedweit",
        reach="each client, with its next message: the base, and new parts of the others",
    )
    paper: ClassVar[str] = (
        "Yoon, Jeong, Lee, Yang & Hwang, Federated Continual Learning with Weighted Inter-client Transfer,"
        " ICML 2021, arXiv 2003.03196"
    )

    keep: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Share of each layer's units whose rows of the base a client sends; 0.7 in the authors' code. Fewer
    bytes the smaller, and fewer clients to average over; 1 averages everything, as FedAvg does."""

    def prepare(self, server: ServerModels) -> Guidance:
        """Return the whole initial base."""
        architecture = server.architecture_of(0)
        weights, trainable = server.initial_weights(architecture), server.trainable(architecture)
        layout = _layout(weights, trainable)
        base = layout.flat(weights)
        memory = {
            BASE: base,
            FAN_IN: layout.fan_in(),
            FUSIONS: np.zeros(1, np.int64),
            LAST: np.zeros(max(server.clients_of(architecture)) + 1, np.int64),
        }
        return Guidance(None, memory=memory, shared=_rows(base, np.ones(layout.units, bool), layout.fan_in()))

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return new rows and parts for the round's clients, and all missing ones for others."""
        server, uploads, fan_in = knowledge.server, knowledge.payload, memory[FAN_IN]
        assert server is not None
        base, sent = averaged(memory[BASE], uploads[BASE], uploads[UNITS], fan_in)
        now = memory[FUSIONS] + 1
        known = strip_prefix(KNOWN, memory)
        for n, client in enumerate(knowledge.clients):
            for task, part in received(uploads[PARTS][n], uploads[PART_BITS][n], uploads[TASKS][n]).items():
                known |= add_prefix(f"{client}/{task}/", {**part, "stamp": now.astype(np.int32)})
        last = memory[LAST].copy()
        rows, everything = _rows(base, sent, fan_in), _rows(base, np.ones(len(fan_in), bool), fan_in)
        everyone = server.clients_of(server.architecture_of(knowledge.clients[0]))
        absent, tables = {}, dict[tuple[str, ...], Arrays]()
        for client in sorted(set(everyone).difference(knowledge.clients)):
            news = _news(known, client, last[client])
            # Clients that lack the same parts share one table.
            absent[client] = tables.setdefault(tuple(news), {**everything, **add_prefix(KNOWN, news)})
        personal = [
            {**rows, **add_prefix(KNOWN, _news(known, n, int(now[0]) - 1))} for n in knowledge.clients
        ]
        last[list(knowledge.clients)] = now
        kept = {BASE: base, FAN_IN: fan_in, FUSIONS: now, LAST: last, **add_prefix(KNOWN, known)}
        return Guidance(None, memory=kept, personal=personal, absent=absent)

    def upload(self, client: ClientView) -> dict[str, np.ndarray]:
        """Return the base's rows in the present mask, and parts of finished tasks."""
        weights, learned = client.weights(), client.learned
        layout = _layout(weights, client.trainable())
        done = int(client.memory.get(TOLD, np.zeros(1, np.int64))[0])
        places = range(done, len(learned))
        told = client.learner_tells(places)
        client.memory[TOLD] = np.array([len(learned)], np.int64)
        masks = [self._kept(told[f"mask/{name}"]) for name in layout.shapes]
        units = np.concatenate([np.empty(0, bool), *masks])
        parts = {learned[place]: strip_prefix(f"part/{place}/", told) for place in places}
        flat = {task: layout.flat(part) for task, part in parts.items() if part}  # some were never trained
        stacked = np.array(list(flat.values()), np.float32).reshape(len(flat), layout.size)
        return {
            **_rows(layout.flat(weights), units, layout.fan_in()),
            PARTS: stacked[stacked != 0],
            PART_BITS: np.packbits(stacked != 0, axis=1),
            TASKS: np.array(list(flat), np.int32),
        }

    def misfit(self, upload: Arrays, sizes: Mapping[str, int], network: Network | None) -> str | None:
        """Refuse rows and parts that do not match their bits."""
        told = {PARTS: int(np.unpackbits(upload[PART_BITS]).sum())}
        if network is not None:
            layout = _layout(network.weights, network.trainable)
            for name, bits in ((UNITS, layout.units), (PART_BITS, layout.size)):
                if upload[name].shape[-1] != -(-bits // 8):
                    return f"array {name} has {upload[name].shape[-1]} bytes, must have {-(-bits // 8)}"
            if np.unpackbits(upload[PART_BITS], axis=1)[:, layout.size :].any():
                return f"array {PART_BITS} has bits of more than {layout.size} weights"
            told[BASE] = int(layout.fan_in()[_unpacked(upload[UNITS], layout.fan_in())].sum())
        for name, numbers in told.items():
            if len(upload[name]) != numbers:
                return f"array {name} has {len(upload[name])} numbers, must have {numbers}"
        return None

    def _kept(self, mask: np.ndarray) -> np.ndarray:
        """Return the units of a layer to send, `[out]` bool; of equal ones the first."""
        largest = np.argsort(-mask, kind="stable")[: ceil(self.keep * len(mask))]
        return np.isin(np.arange(len(mask)), largest)

    def apply(self, client: ClientView, guidance: Arrays) -> None:
        """Store rows and parts until the client trains; newer rows replace older ones."""
        memory, fan_in = client.memory, _layout(client.weights(), client.trainable()).fan_in()
        rows = _unpacked(guidance[UNITS], fan_in)
        base, waiting = np.zeros(fan_in.sum(), np.float32), np.zeros(len(fan_in), bool)
        if BASE in memory:
            waiting = _unpacked(memory[UNITS], fan_in)
            base[np.repeat(waiting, fan_in)] = memory[BASE]
        base[np.repeat(rows, fan_in)] = guidance[BASE]
        memory |= _rows(base, rows | waiting, fan_in)
        memory |= {name: np.array(values) for name, values in guidance.items() if name.startswith(KNOWN)}

    def before_training(self, client: ClientView) -> None:
        """Load the stored rows of the base, and hand the parts to the learner."""
        memory = client.memory
        if BASE not in memory:
            return
        weights = client.weights()
        layout = _layout(weights, client.trainable())
        fan_in, flat = layout.fan_in(), layout.flat(weights)
        flat[np.repeat(_unpacked(memory[UNITS], fan_in), fan_in)] = memory[BASE]
        client.load_weights(weights | layout.split(flat))
        client.tell_learner(strip_prefix(KNOWN, memory))
        for name in [BASE, UNITS, *(n for n in memory if n.startswith(KNOWN))]:
            del memory[name]


def averaged(
    base: np.ndarray, rows: Sequence[np.ndarray], bits: Sequence[np.ndarray], fan_in: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the base `[P]` float32 with each sent unit's mean, and the units that were sent, `[U]` bool."""
    total, senders = np.zeros(len(base)), np.zeros(len(fan_in))
    for own, packed in zip(rows, bits, strict=True):
        units = _unpacked(packed, fan_in)
        total[np.repeat(units, fan_in)] += own
        senders += units
    mean = total / np.repeat(np.maximum(senders, 1), fan_in)
    return np.where(np.repeat(senders > 0, fan_in), mean, base).astype(np.float32), senders > 0


def received(values: np.ndarray, bits: np.ndarray, tasks: np.ndarray) -> dict[int, Arrays]:
    """Return `values` and `bits` of each part that a client sent, by task."""
    counts = [int(np.unpackbits(own).sum()) for own in bits]
    split = np.split(values, np.cumsum(counts)[:-1]) if counts else []
    return {
        int(task): {"values": own.astype(np.float32), "bits": where}
        for task, own, where in zip(tasks, split, bits, strict=True)
    }


def _news(known: Arrays, client: int, since: int) -> Arrays:
    """Return other clients' parts that arrived after a fusion."""
    return {
        name: values
        for name, values in known.items()
        if name.split("/")[0] != str(client) and int(known[f"{name.rpartition('/')[0]}/stamp"][0]) > since
    }


def _layout(weights: Arrays, trainable: tuple[str, ...]) -> Layout:
    return Layout.of({name: weights[name].shape for name in trainable})


def _rows(base: np.ndarray, units: np.ndarray, fan_in: np.ndarray) -> dict[str, np.ndarray]:
    """Return the rows of some units `[U]` bool of a base `[P]`, and their bits."""
    return {BASE: base[np.repeat(units, fan_in)], UNITS: np.packbits(units)}


def _unpacked(bits: np.ndarray, fan_in: np.ndarray) -> np.ndarray:
    return np.unpackbits(bits, count=len(fan_in)).astype(bool)
